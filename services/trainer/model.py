"""The model that is trained: a Qwen3 base from a directory, with an adapter beside it or all of it unfrozen. Needs torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from services.trainer import attention
from services.trainer.base_model import check_base
from services.trainer.config import TrainConfig
from services.trainer.loss import supervised_cross_entropy

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class LossHead(torch.nn.Linear):  # type: ignore[misc]  # torch is untyped here
    """An LM head that gives the loss where it gets targets.

    As the module's own forward pass, so that FSDP has its weight together when it is used.
    """

    loss_chunk = 1024
    compiled = False

    def forward(self, hidden: torch.Tensor, targets: Any = None, weights: Any = None) -> Any:
        if targets is None:
            return super().forward(hidden)
        return supervised_cross_entropy(hidden, self.weight, targets, weights, self.loss_chunk, self.compiled)


class TrainingQwen3(Qwen3ForCausalLM):  # type: ignore[misc]  # transformers is untyped here
    """Qwen3 whose forward pass takes `batch.make_batch` and gives losses; logits of all tokens never exist."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.lm_head.__class__ = LossHead

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        row_ends: torch.Tensor | None = None,
        row_lengths: tuple[int, ...] | None = None,
        **_unused: Any,
    ) -> dict[str, torch.Tensor]:
        """`loss`: weighted sum of the targets' losses, with gradient; `losses` [n]: each, without."""
        if input_ids.shape[1] == 1:  # an empty pack: what is compiled takes any length but 1
            input_ids, position_ids = input_ids.repeat(1, 2), position_ids.repeat(1, 2)
            row_ends, row_lengths = (None, None) if row_ends is None else (2 * row_ends, (2,))
        borders = {}
        if row_ends is not None and row_lengths is not None:
            borders = attention.borders(self.config._attn_implementation, row_ends, row_lengths)
        outputs = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask={"full_attention": None},  # a dict is taken as ready made: no mask is built
            use_cache=False,
            **borders,
        )
        hidden = outputs.last_hidden_state
        loss, losses = self.lm_head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, kept), targets, weights)
        return {"loss": loss, "losses": losses}


@dataclass(frozen=True)
class Counts:
    """Parameters; the base's LM head is its embedding and counts once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"trainable parameters: {self.trainable:,} of {self.total:,} ({100 * self.trainable / self.total:.4f} %)"


def count_parameters(model: Any) -> Counts:
    return Counts(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=sum(p.numel() for p in model.parameters()),
    )


def load_base(config: TrainConfig, device: str) -> Any:
    """The base in the type that it trains in, on the CPU. Raises `ModelError` and `TrainError`."""
    check_base(config.base)
    dtype = DTYPES[config.precision if config.method == "lora" else config.weights_dtype]
    chosen = attention.choose(config.attention, device, DTYPES[config.precision])
    model = TrainingQwen3.from_pretrained(
        config.base, dtype=dtype, attn_implementation=attention.register(chosen), local_files_only=True
    )
    model.lm_head.loss_chunk = config.loss_chunk
    return model


def attach(model: Any, config: TrainConfig) -> Any:
    """Puts the adapter beside a frozen base, or unfreezes all; the same seed gives the same weights.

    An adapter's own weights are fp32 whatever the base's type, as are their gradients and moments: the forward pass of
    `trained_weights: bf16` casts them, not its inputs, which would keep a second, wider copy of every activation.
    """
    if config.method == "full":
        model.requires_grad_(True)
        return model
    torch.manual_seed(config.seed)
    options = LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, options, autocast_adapter_dtype=True)
    if config.weights_dtype == "bf16":
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.cast_input_dtype_enabled = False
    return model


def can_compile(device: str) -> bool:
    """Whether torch can make GPU kernels here: by Triton, which itself needs a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return device == "cuda" and compiler is not None and importlib.util.find_spec("triton") is not None


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compiles the layers and the loss, in place: norms, rotation and gates become a few kernels that read memory once.

    Layer by layer, since all have one shape and the first's code serves the others, and for packs of any length. What is
    compiled keeps less for its backward pass than `memory` counts. It happens in the first steps; torch's own
    TORCHDYNAMO_DISABLE=1 prevents it.
    """
    # Numbers such as a norm's epsilon stay constants: as variables, each layer would be traced and lowered a second time.
    torch._dynamo.config.specialize_float = True
    model.enable_input_require_grads()  # or the first layer's backward pass would be another program than the others'
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.model.layers:
        layer.compile(backend=backend, dynamic=True)
    base.lm_head.compiled = backend == "inductor"


def autocasts(config: TrainConfig) -> bool:
    """Whether the forward pass runs under autocast: trained weights in fp32, products in bf16."""
    if config.precision == "fp32":
        return False
    return config.weights_dtype == ("bf16" if config.method == "lora" else "fp32")
