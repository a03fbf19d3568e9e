"""MedThink's trainer beside the article's plain recipe and TRL with Liger: tokens per second and peak memory.

    python -m benchmarks.train                                   # the true shape on a GPU, the tiny one on a CPU
    python -m benchmarks.train --model DIR --modes lora-seed-mix --runs plain,ours --out result.json

Each recipe runs in a process of its own, one after the other, on the same rows; without `--model` a model of random weights
is made for all. Timed are whole optimizer steps after the warm-up, and real tokens: padding counts for nothing. What cannot
run says why and leaves the others alone. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.train.modes import MODES, RECIPES, has
from benchmarks.train.random_model import TINY_SHAPE, TRUE_SHAPE, make_model
from benchmarks.train.rows import MOST

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "liger-kernel", "triton", "flash-attn")
GB = 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when our own recipe could not run, else 0."""
    options = _parser().parse_args(arguments)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="train-bench-") as scratch:
        device = _device()
        tiny = options.tiny or device == "cpu"
        model = options.model or Path(scratch) / "Qwen3-1.7B"
        if options.model is None:
            make_model(model, TINY_SHAPE if tiny else TRUE_SHAPE)
        ids_below = int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
        spec = {
            "model": str(model),
            "warm_up": options.warm_up,
            "longest": 128 if tiny else MOST,
            "ids_below": ids_below,
        }
        results: list[dict[str, Any]] = []
        for mode in (mode for mode in MODES if mode.name in options.modes):
            for name in (name for name in options.runs if has(mode, name)):
                rows = options.rows if mode.lengths == "mix" else options.long_rows
                job = spec | {"mode": mode.name, "recipe": name, "rows": rows}
                results.append(run_one(job, Path(scratch) / f"{mode.name}-{name}", options.limit))
                print(f"[{time.monotonic() - begun:4.0f} s] {_line(results[-1])}", file=sys.stderr, flush=True)
                _write(options.out, device, tiny, options, results)
    print(table(results))
    return int(any("error" in result for result in results if result["recipe"].startswith("ours")))


def run_one(job: dict[str, Any], folder: Path, limit_s: float) -> dict[str, Any]:
    """The figures of one recipe, or `error` with the last line that it wrote."""
    folder.mkdir(parents=True)
    spec, result, log = folder / "spec.json", folder / "result.json", folder / "log"
    spec.write_text(json.dumps(job | {"out": str(folder / "run")}), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.train.worker", str(spec), str(result)]
    begun = time.monotonic()
    known = {"mode": job["mode"], "recipe": job["recipe"], "rows": job["rows"]}
    try:
        with log.open("wb") as out:
            subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, check=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return known | {"error": f"not over after {limit_s:.0f} s"}
    except subprocess.CalledProcessError:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return known | {"error": (lines or ["no output"])[-1][:300], "log": lines[-30:]}
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return known | figures | {"wall_seconds": round(time.monotonic() - begun, 1)}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, with each recipe's speed as a ratio to the plain one's."""
    lines = ["| mode | recipe | peak GB | reserved GB | tokens/s | x plain |", "| --- | --- | --- | --- | --- | --- |"]
    plain = {r["mode"]: r["tokens_per_s"] for r in results if r["recipe"] == "plain" and "tokens_per_s" in r}
    for result in results:
        name = f"| {result['mode']} | {result['recipe']} |"
        if "error" in result:
            lines.append(f"{name} not run: {result['error']} | | | |")
            continue
        reserved = f"{result['reserved_bytes'] / GB:.2f}" if "reserved_bytes" in result else "-"
        base = plain.get(result["mode"])
        ratio = f"{result['tokens_per_s'] / base:.2f}" if base else "-"
        lines.append(f"{name} {result['peak_bytes'] / GB:.2f} | {reserved} | {result['tokens_per_s']:,.0f} | {ratio} |")
    return "\n".join(lines)


def _line(result: dict[str, Any]) -> str:
    name = f"{result['mode']} {result['recipe']}"
    if "error" in result:
        return f"{name}: not run: {result['error']}\n" + "\n".join(result.get("log", []))
    return f"{name}: {result['peak_bytes'] / GB:.2f} GB, {result['tokens_per_s']:,.0f} tokens/s"


def _write(path: Path, device: str, tiny: bool, options: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    known = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "shape": "given" if options.model else "tiny, random weights" if tiny else "Qwen3-1.7B, random weights",
        "recipes": RECIPES,
        "aims": {mode.name: mode.aim for mode in MODES},
        "results": list(results),
    }
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _names(known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes, recipes = [mode.name for mode in MODES], list(RECIPES)
    parser.add_argument("--model", type=Path, help="directory of a Qwen3 (default: random weights)")
    parser.add_argument("--modes", type=_names(modes), default=modes, help=f"of {','.join(modes)} (default: all)")
    parser.add_argument("--runs", type=_names(recipes), default=recipes, help=f"of {','.join(recipes)} (default: all)")
    parser.add_argument("--rows", type=int, default=192, help="of the length mix (default: %(default)s)")
    parser.add_argument("--long-rows", type=int, default=128, help="of full length (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not timed (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one recipe (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short rows, as on a CPU")
    parser.add_argument("--out", type=Path, default=Path("train-benchmark.json"), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
