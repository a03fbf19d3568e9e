"""How long after its publication a running server serves a version: `python -m benchmarks.publish_to_served --adapter DIR`.

Publishes copies of one trained adapter, each with its weights scaled a little differently and so a version of its own, to the
volume that the server watches, and asks `GET /v1/adapters` until the version is current and a chat request says that it wrote
the reply. Counted is from the moment `CURRENT` names the version. Publishing's own checks are not part of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.contract.adapter_manifest import CONFIG, WEIGHTS, Details, publish
from services.trainer.publish_checks import Base, read_base

LIMIT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True, help="folder with an adapter of the served base")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--volume", type=Path, required=True, help="volume that the server watches")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--name", default="publish-benchmark")
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args(arguments)
    base = read_base(options.base)
    found = []
    for n in range(options.times):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "adapter"
            write_variant(options.adapter, folder, 1 + n * 1e-2)
            found.append(time_one(options, base, folder))
        print(f"{n + 1}/{options.times}: current after {found[-1][0]:.2f} s, answered after {found[-1][1]:.2f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    for what, values in zip(("current", "answered"), zip(*found, strict=True), strict=True):
        print(f"{what}: median {statistics.median(values):.2f} s, longest {max(values):.2f} s of {len(values)}")
    return 0


def write_variant(adapter: Path, folder: Path, scale: float) -> None:
    """The same adapter with every weight times `scale`."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    shutil.copy(adapter / CONFIG, folder / CONFIG)
    tensors = {name: (value * scale).to(value.dtype) for name, value in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def time_one(options: argparse.Namespace, base: Base, folder: Path) -> tuple[float, float]:
    """Seconds from `CURRENT` until the version is current on the server, and until it has answered."""
    manifest = publish(options.volume, options.name, folder, Details(base=base.record))
    begun = time.monotonic()
    while current(options.url, options.name) != manifest.version:
        if time.monotonic() - begun > LIMIT_S:
            raise TimeoutError(f"{options.url} did not take {manifest.version} up: does it watch {options.volume}?")
        time.sleep(0.01)
    ready = time.monotonic() - begun
    body = {"model": options.name, "messages": [{"role": "user", "content": "你好"}], "max_tokens": 1}
    reply = ask(f"{options.url}/v1/chat/completions", body)
    if reply["adapter"]["version"] != manifest.version:
        raise RuntimeError(f"another version answered: {reply['adapter']}")
    return ready, time.monotonic() - begun


def current(url: str, name: str) -> str | None:
    adapters = ask(f"{url}/v1/adapters")["data"]
    return next((adapter["current"] for adapter in adapters if adapter["name"] == name), None)


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


if __name__ == "__main__":
    raise SystemExit(main())
