"""Whether the fast ways of training give what the slow ones give, on this device: `python -m benchmarks.train.agreement`.

The reference is each row by itself in fp32. Beside it stand bf16 runs: each row by itself, rows padded, and rows packed, by every
attention that works here, compiled and not. Printed is the relative distance of losses and of the adapter's gradients; a
packed run is right when it is no further away than bf16 alone is. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.train.random_model import TINY_SHAPE, TRUE_SHAPE, make_model
from benchmarks.train.rows import make_rows, mixed_lengths
from services.trainer.attention import FLASH, SDPA, VARLEN, choose
from services.trainer.batch import RowTensors, make_batch, row_tensors
from services.trainer.config import make_config
from services.trainer.encode import Row
from services.trainer.errors import TrainError
from services.trainer.loop import pick_device
from services.trainer.model import attach, autocasts, can_compile, compile_layers, load_base
from services.trainer.rows import TrainingRow


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when a packed run is further from the reference than twice what bf16 alone is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train.agreement", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="of the true width, on a GPU (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=6)
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    device = pick_device("auto")
    shape = TINY_SHAPE if device == "cpu" else TRUE_SHAPE | {"num_hidden_layers": options.layers}
    longest = 128 if device == "cpu" else 2048
    rows = [
        row_tensors(TrainingRow(Row(row.ids, row.labels), row.answer))
        for row in make_rows(mixed_lengths(options.rows, longest), shape["vocab_size"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), shape)
        found = distances(Path(folder), rows, device)
    print(json.dumps(found))
    alone = found["alone sdpa bf16"]
    return int(any(d > 2 * a for far in found.values() for d, a in zip(far, alone, strict=True)))


def distances(base: Path, rows: Sequence[RowTensors], device: str) -> dict[str, tuple[float, float]]:
    """By way of training, from the reference: of the losses of all tokens, and of the gradients."""
    reference = train_once(base, [[row] for row in rows], device, attention=SDPA, precision="fp32")
    ways: dict[str, tuple[list[list[RowTensors]], dict[str, Any]]] = {
        "alone sdpa bf16": ([[row] for row in rows], {"attention": SDPA}),
    }
    for name in (SDPA, VARLEN, FLASH):
        try:
            choose(name, device, torch.bfloat16)
        except TrainError:
            continue
        ways[f"padded {name} bf16"] = ([list(rows)], {"attention": name, "packed": False})
        ways[f"packed {name} bf16"] = ([list(rows)], {"attention": name})
        if can_compile(device) and name != SDPA:
            ways[f"packed {name} bf16 compiled"] = ([list(rows)], {"attention": name, "compiled": True})
    found = {}
    for name, (batches, options) in ways.items():
        losses, gradients = train_once(base, batches, device, **options)
        found[name] = (_distance(losses, reference[0]), _distance(gradients, reference[1]))
        print(f"{name:34s} losses {found[name][0]:.2e}  gradients {found[name][1]:.2e}", flush=True)
    return found


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def train_once(
    base: Path,
    batches: Sequence[Sequence[RowTensors]],
    device: str,
    *,
    attention: str,
    precision: str = "bf16",
    packed: bool = True,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of all tokens in the rows' order, and the gradients of an adapter that is not at its beginning."""
    settings = {"base": base, "precision": precision, "attention": attention, "device": device}
    config = make_config(settings)
    model = attach(load_base(config, device), config).to(device)
    torch.manual_seed(1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:  # B is zero at first, and A's gradients with it
            parameter.copy_(0.02 * torch.randn(parameter.shape))
    if compiled:
        compile_layers(model)
    model.train()
    losses = []
    for batch in batches:
        inputs = make_batch(batch, packed, 1.0)
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocasts(config)):
            outputs = model(**inputs)
        outputs["loss"].backward()
        losses.append(outputs["losses"].float())
    return torch.cat(losses), torch.cat([parameter.grad.float().flatten() for parameter in trained])


if __name__ == "__main__":
    sys.exit(main())
