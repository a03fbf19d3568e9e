"""A shared volume for tests: right versions by the real publisher, wrong ones put there behind its back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.contract.adapter_files import file_record
from services.contract.adapter_manifest import (
    CONFIG,
    CONTENT,
    CURRENT,
    MANIFEST,
    WEIGHTS,
    BaseRecord,
    Details,
    config_sha256,
    content_version,
    publish,
    rollback,
)
from tests.trainer.adapters import (
    Tensors,
    adapter_config,
    adapter_tensors,
    safetensors_bytes,
)

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
TINY_BASE: dict[str, Any] = {**TINY, "num_key_value_heads": 1, "vocab_size": 64, "architectures": ["Qwen3ForCausalLM"]}


@dataclass
class Volume:
    """A volume for adapters of one base model. `work` is a folder outside of it."""

    root: Path
    work: Path
    base: Mapping[str, Any]
    chat_format_sha256: str
    size: float = 0.3  # of the random weights
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def sizes(self) -> dict[str, Any]:
        return {k: self.base[k] for k in (*TINY, "num_key_value_heads")}

    def tensors(self, seed: int = 0, **options: Any) -> Tensors:
        return adapter_tensors(**({"seed": seed, "size": self.size} | self.sizes | options))

    def publish(self, name: str, seed: int = 0, system_prompt: str | None = None) -> str:
        """A good version of its own for every `seed`, current afterwards."""
        return self.place(name, self.tensors(seed), system_prompt=system_prompt)

    def place(
        self,
        name: str,
        tensors: Tensors | bytes | None = None,
        config: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        **base: str,
    ) -> str:
        """Published as it is, whatever it is: hashes and manifest are right, the rest is as given."""
        self.made += 1
        folder = self.work / str(self.made)
        folder.mkdir(parents=True)
        given = (
            tensors if isinstance(tensors, bytes) else safetensors_bytes(self.tensors() if tensors is None else tensors)
        )
        (folder / WEIGHTS).write_bytes(given)
        (folder / CONFIG).write_text(json.dumps(adapter_config() if config is None else config), encoding="utf-8")
        return publish(self.root, name, folder, self.details(system_prompt, **base)).version

    def details(self, system_prompt: str | None = None, **base: str) -> Details:
        known = {"id": "tiny", "config_sha256": config_sha256(self.base), "chat_format_sha256": self.chat_format_sha256}
        metrics = {"val_loss": 1.25}
        record = BaseRecord(**(known | base))
        return Details(base=record, data_sha256="d" * 64, metrics=metrics, system_prompt=system_prompt)

    def place_raw(self, name: str, change: Callable[[Path], None], *, current: bool = True) -> str:
        """A good version, then `change` on its folder, then `CURRENT`: what no publisher would do."""
        version = self.publish(f"{name}-source", seed=self.made + 1000)
        (self.root / name).mkdir(exist_ok=True)
        folder = self.root / name / version
        os.rename(self.root / f"{name}-source" / version, folder)
        self.remove(f"{name}-source")
        manifest = json.loads((folder / MANIFEST).read_text()) | {"name": name}
        overwrite(folder / MANIFEST, json.dumps(manifest))
        change(folder)
        if not folder.exists():  # renamed to what it holds now
            version = next(path.name for path in folder.parent.iterdir() if path.is_dir())
        if current:
            self.point(name, version)
        return version

    def point(self, name: str, version: str) -> None:
        overwrite(self.root / name / CURRENT, f"{version}\n")

    def rollback(self, name: str, version: str | None = None) -> str:
        return rollback(self.root, name, version)

    def folder(self, name: str, version: str) -> Path:
        return self.root / name / version

    def remove(self, name: str) -> None:
        (self.root / name / CURRENT).unlink()

    def vanish(self) -> None:
        os.rename(self.root, self.root.with_name("away"))

    def come_back(self) -> None:
        os.rename(self.root.with_name("away"), self.root)


def overwrite(path: Path, content: str | bytes) -> None:
    """Replaces a file, read-only or not, by one rename as a publisher would."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def write_manifest_again(folder: Path) -> None:
    """Makes hashes and version in the manifest those of the files that lie there now; the folder is renamed to it."""
    files = {name: file_record(folder / name) for name in CONTENT}
    known = json.loads((folder / MANIFEST).read_text()) | {"created": time.time()}
    known |= {"files": {k: v.model_dump() for k, v in files.items()}, "version": content_version(files)}
    overwrite(folder / MANIFEST, json.dumps(known))
    os.rename(folder, folder.with_name(known["version"]))
