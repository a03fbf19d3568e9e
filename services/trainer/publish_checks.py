"""What `publish` knows before it touches the volume: the run, its record, and the base model it must fit. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.contract.adapter_files import AdapterError, read_json, read_tensors
from services.contract.adapter_fit import check_options, check_tensors, module_sizes
from services.contract.adapter_manifest import CONFIG, CONTENT, WEIGHTS, BaseRecord, Details, check_name, config_sha256
from services.contract.chat_format import ChatFormat, ChatFormatError
from services.trainer.base_model import base_id
from services.trainer.publish_weights import check_finite, check_size, check_trained

RECORD = "run.json"
SERVED_NAME = "Qwen3-1.7B"  # the server always answers to it with the base model
_UNFINISHED = ("running", "stopped")  # an adapter beside it is of an earlier end, and the record does not describe it
_INSIDE_A_RUN = ("", "adapter", "best", "final", "model")


@dataclass(frozen=True)
class Base:
    """The base model's folder and what decides whether an adapter fits it."""

    folder: Path
    config: dict[str, Any]
    chat_format: ChatFormat

    @property
    def record(self) -> BaseRecord:
        return BaseRecord(
            id=base_id(self.folder),
            config_sha256=config_sha256(self.config),
            chat_format_sha256=self.chat_format.digest,
        )


@dataclass(frozen=True)
class RunRecord:
    """What `train` wrote down, as far as publishing needs it; `None` for what it did not."""

    status: str | None = None
    base: str | None = None
    base_config_sha256: str | None = None
    chat_format_sha256: str | None = None
    data_sha256: str | None = None
    system_prompt: str | None = None
    trainer_version: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    def details(self, base: Base) -> Details:
        return Details(
            base=base.record.model_copy(update={"id": self.base or base.record.id}),
            data_sha256=self.data_sha256,
            system_prompt=self.system_prompt,
            metrics=self.metrics,
            trainer_version=self.trainer_version,
        )


def read_base(folder: Path) -> Base:
    """Raises `AdapterError` unless `folder` holds the config and tokenizer of a Qwen3 model."""
    from tokenizers import Tokenizer

    if not (folder / "config.json").is_file():
        raise AdapterError(f"there is no base model in {folder}: give --base the folder with its config.json")
    config = read_json(folder / "config.json")
    layers = config.get("num_hidden_layers")
    if config.get("model_type") != "qwen3" or not isinstance(layers, int):
        raise AdapterError(
            f"{folder} holds no Qwen3 model ({str(config.get('model_type'))[:40]!r}): give another --base"
        )
    module_sizes(config)
    try:
        return Base(folder, config, ChatFormat.load(folder, Tokenizer.from_str))
    except ChatFormatError as error:
        raise AdapterError(f"{error}: give --base a folder with Qwen3's tokenizer.json") from error


def find_result(run: Path, marker: str) -> Path:
    """The folder that holds the file `marker`: `run` itself or one that training puts its result in."""
    if not run.is_dir():
        raise AdapterError(f"there is no folder {run}: give --run the folder that training wrote")
    for inside in _INSIDE_A_RUN:
        if (run / inside / marker).is_file():
            return run / inside
    raise AdapterError(f"{run} holds no {marker}: give --run the folder of a finished run")


def find_adapter(run: Path) -> Path:
    """The adapter's folder, with both of its files there."""
    folder = find_result(run, CONFIG)
    missing = [name for name in CONTENT if not (folder / name).is_file()]
    if missing:
        pickled = (
            " (adapter_model.bin is a pickle, which nobody should load)"
            if (folder / "adapter_model.bin").exists()
            else ""
        )
        raise AdapterError(f"{folder} has no {missing[0]}{pickled}: train again, or save it as safetensors")
    return folder


def read_record(folder: Path) -> RunRecord | None:
    """The record of the run that made the result in `folder`: there, or in one of the two folders above it."""
    for place in (folder, folder.resolve().parent, folder.resolve().parent.parent):
        if (place / RECORD).is_file():
            return _parse_record(read_json(place / RECORD))
    return None


def check_record(record: RunRecord | None, base: Base, unrecorded: bool) -> RunRecord:
    """Raises `AdapterError` unless the run was made on this base and with its tokenizer, as far as anybody can know."""
    record = record or RunRecord()
    if record.status in _UNFINISHED and not unrecorded:
        raise AdapterError(f"the run is {record.status}, not finished: go on with train --resume, then publish")
    ours = base.record
    for what, recorded, found in (
        ("base model", record.base_config_sha256, ours.config_sha256),
        ("tokenizer or turn format", record.chat_format_sha256, ours.chat_format_sha256),
    ):
        if recorded is None and not unrecorded:
            raise AdapterError(
                f"no {RECORD} says which {what} the run used: publish the run's own folder, or say --unrecorded"
            )
        if recorded not in (None, found):
            raise AdapterError(
                f"the run used another {what} than {base.folder}: give the run's own --base, or train again"
            )
    return record


def check_free_name(name: str, base: Base) -> str:
    """Raises `AdapterError` for a name that is none, or that the server answers to with something else."""
    check_name(name)
    if name.casefold() in (SERVED_NAME.casefold(), base.record.id.casefold(), "models"):
        raise AdapterError(f"the name {name!r} is taken by the base model or its folder: choose another --name")
    return name


def check_adapter(folder: Path, base: Base, max_rank: int) -> None:
    """Raises `AdapterError` unless the engine can serve what lies in `folder`, and its numbers are sound."""
    config = read_json(folder / CONFIG)
    check_options(config, max_rank)
    tensors = read_tensors(folder / WEIGHTS)
    check_tensors(config, tensors, base.config)
    check_finite(folder / WEIGHTS, tensors)
    check_size(folder / WEIGHTS, tensors)
    check_trained(folder / WEIGHTS, tensors)


def _parse_record(written: dict[str, Any]) -> RunRecord:
    """Takes what has the right type, at the top or one level down, and leaves the rest: a later trainer may write more."""
    levels = [written, *(value for value in written.values() if isinstance(value, dict))]

    def text(key: str) -> str | None:
        return next((level[key] for level in levels if isinstance(level.get(key), str)), None)

    metrics = written.get("metrics")
    return RunRecord(
        status=text("status"),
        base=name if isinstance(name := written.get("base"), str) else None,
        base_config_sha256=text("base_config_sha256"),
        chat_format_sha256=text("chat_format_sha256"),
        data_sha256=text("data_sha256"),
        system_prompt=text("system_prompt"),
        trainer_version=text("trainer_version") or text("git") or "",
        metrics=metrics if isinstance(metrics, dict) else {},
    )
