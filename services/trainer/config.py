"""Every setting of a training run, in one frozen object read from YAML and `--set name=value`. Needs no torch.

A later source wins: field defaults, then the preset, then the YAML file, then `--set`. What is written back beside a run
(`as_yaml`) has every value resolved, so that it gives the same run when the presets have changed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Per preset, what differs from the field's own default. LoRA learns best at about ten times the rate of a full fine-tune.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ALL_LINEAR, "learning_rate": 2e-4},
    "seed": {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": ("q_proj", "v_proj"), "learning_rate": 2e-4},
}
# A full fine-tune has no preset; on some two thousand dialogues its held-out loss rises from the second epoch on.
FULL: dict[str, Any] = {"learning_rate": 2e-5, "epochs": 1.0}
LORA_FIELDS = ("preset", "rank", "alpha", "dropout", "targets")
REPORTERS = ("tensorboard", "swanlab")

_FP16_REASON = (
    "fp16 is refused: Qwen3 was trained in bf16 and overflows to NaN in fp16. Say bf16, or fp32 on a card without bf16"
)


class ConfigError(ValueError):
    """A setting that does not exist or makes no sense; the message names each, and fits in one line."""


class TrainConfig(BaseModel):
    """A training run. Lengths and batches are in tokens, as the base model's tokenizer counts them."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    method: Literal["lora", "full"] = Field("lora", description="an adapter beside a frozen base, or every weight")
    preset: str = Field("default", description="LoRA settings to start from: default, or seed (the article's)")
    base: Path = Field(Path("Qwen3-1.7B"), description="directory of the base model")
    data: Path = Field(Path("data"), description="directory that `prepare` wrote")
    out: Path = Field(Path("runs/latest"), description="directory for the run's record, checkpoints and result")

    rank: int = Field(16, ge=1, le=512, description="LoRA rank; vLLM loads up to 16 unless it is started with more")
    alpha: float = Field(32, gt=0, description="LoRA scale: the adapter's product counts alpha / rank times")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before A; 0 saves the mask of every LoRA input")
    targets: tuple[str, ...] = Field(ALL_LINEAR, min_length=1, description="linear modules that get an adapter")

    learning_rate: float = Field(2e-4, gt=0, lt=1, description="highest rate, reached at the end of the warm-up")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="the rate after the warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay; of weights that are trained, norms left out")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    epochs: float = Field(3.0, gt=0, description="passes over the data; early stopping may end sooner")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps to end after, whatever `epochs` says")

    max_length: int = Field(2048, ge=16, description="longest row; `prepare` drops or refuses longer, nothing is cut")
    packing: bool = Field(True, description="fill a micro-batch with whole rows end to end, without padding")
    batch_tokens: int = Field(8192, ge=16, description="tokens of one packed micro-batch on one device (packing on)")
    batch_size: int = Field(4, ge=1, description="rows of one padded micro-batch on one device (packing off)")
    gradient_accumulation: int = Field(4, ge=1, description="micro-batches of one optimizer step, on each device")

    precision: Literal["bf16", "fp32"] = Field("bf16", description="type of the forward and backward pass")
    trained_weights: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description=(
            "how trained weights take part in the forward pass; auto is `precision`. LoRA keeps weights, gradients and moments "
            "in fp32 either way: bf16 casts the weights, fp32 casts each adapter's input, which costs memory. Full: "
            "everything in bf16 with updates rounded stochastically, or everything in fp32 under autocast"
        ),
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="recompute activations in the backward pass; auto: only when the plan needs it"
    )
    attention: Literal["auto", "flash_attention_2", "varlen", "sdpa"] = Field(
        "auto", description="auto: FlashAttention-2 when installed, else torch's varlen attention on a GPU, else SDPA"
    )
    loss_chunk: int = Field(1024, ge=1, description="supervised positions whose logits exist at one time")
    think_loss_weight: float = Field(1.0, ge=0, le=1, description="weight of a thinking token's loss; an answer's is 1")

    eval_every: int | None = Field(None, ge=1, description="steps between evaluations; none: at the end of each epoch")
    patience: int = Field(2, ge=0, description="evaluations without a better answer loss until training ends; 0: never")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; none: with each evaluation")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints that stay on the disk, beside the best")

    seed: int = Field(42, ge=0, description="for weights, order, dropout and rounding")
    system_prompt: str | None = Field(None, description="for rows without their own; none: the one in the data card")
    report_to: tuple[str, ...] = Field((), description="besides metrics.jsonl: tensorboard, swanlab")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: a GPU when torch sees one")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Puts the preset's values below what was given, so that the resolved object has no hidden defaults."""
        if not isinstance(given, Mapping):
            return given
        if given.get("method") == "full":
            useless = [name for name in LORA_FIELDS if name in given]
            if useless:
                raise ValueError(f"{', '.join(useless)}: only for method lora, leave out with method full")
            return {**FULL, **given}
        preset = given.get("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}: there are {', '.join(PRESETS)}")
        return {**PRESETS[preset], **given}

    @field_validator("precision", "trained_weights", mode="before")
    @classmethod
    def _refuse_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError(_FP16_REASON)
        return value

    @field_validator("targets", "report_to", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`a,b` on the command line; `all-linear` and `none` as peft and transformers say it."""
        if value == "all-linear":
            return ALL_LINEAR
        if value in ("none", "", None):
            return ()
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for target in value:
            if target not in ALL_LINEAR:
                raise ValueError(f"{target!r} is none of {', '.join(ALL_LINEAR)}")
        return tuple(name for name in ALL_LINEAR if name in value)

    @field_validator("report_to")
    @classmethod
    def _known_reporters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in REPORTERS:
                raise ValueError(f"{name!r} is none of {', '.join(REPORTERS)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.packing and self.batch_tokens < self.max_length:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} cannot hold a row of max_length {self.max_length}: raise it, or packing=false"
            )
        if self.precision == "fp32" and self.trained_weights == "bf16":
            raise ValueError("trained_weights bf16 does not go with precision fp32: leave it at auto")
        return self

    @property
    def weights_dtype(self) -> Literal["bf16", "fp32"]:
        """`trained_weights` with `auto` resolved."""
        return self.precision if self.trained_weights == "auto" else self.trained_weights

    @property
    def micro_batch_tokens(self) -> int:
        """Most tokens that one forward pass on one device holds, padding included."""
        return self.batch_tokens if self.packing else self.batch_size * self.max_length

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every one resolved; reading them again gives an equal config."""
        unused = set(LORA_FIELDS) if self.method == "full" else set()
        return self.model_dump(mode="json", exclude=unused)

    def as_yaml(self) -> str:
        """`as_dict` as a file for `--config`."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def sha256(self) -> str:
        """Hash over everything but `out`: a run that moved is the same run."""
        values = {name: value for name, value in self.as_dict().items() if name != "out"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_config(path: Path | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """The config of a YAML file (none: defaults) with `name=value` settings over it, their values read as YAML.

    Raises `ConfigError` that names every wrong setting at once, in one line.
    """
    given = _read_yaml(path) if path is not None else {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set needs name=value, not {setting!r}")
        given[name.strip()] = _scalar(value)
    return make_config(given)


def make_config(given: Mapping[str, Any]) -> TrainConfig:
    """`TrainConfig(**given)`, with pydantic's errors as one line of `ConfigError`."""
    try:
        return TrainConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(problem) for problem in error.errors())) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `name: value` lines")
    return {str(name): value for name, value in content.items()}


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _explain(problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{_nearest(name)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, TrainConfig.model_fields, n=1)
    return f", did you mean {near[0]!r}?" if near else f": there are {', '.join(TrainConfig.model_fields)}"
