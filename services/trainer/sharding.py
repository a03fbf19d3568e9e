"""Full fine-tunes over several processes: every weight, gradient and moment lies in parts, one a process (FSDP2). Needs torch.

By torch's `fully_shard` itself and not by accelerate, which shards only on GPUs: this way what runs on GPUs is what tests run
on two CPU processes. A checkpoint holds the whole model, and each process's part of the optimizer's state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from services.trainer.saved_weights import MODEL_WEIGHTS, read_tensors_of


class Sharded(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The sharded model in another object, so that Trainer takes it as wrapped already."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, **batch: Any) -> Any:
        return self.module(**batch)


def shard(model: Any, device: str, processes: int, compute_bf16: bool) -> Sharded:
    """Shards each layer, and the rest together, over all processes of the started process group.

    `compute_bf16`: weights are in fp32 and are cast when they are gathered. Gradients are averaged in fp32 either way.
    """
    mesh = init_device_mesh(device, (processes,))
    compute = torch.bfloat16 if compute_bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return Sharded(model)


def gather(model: Any, keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU, for the process that keeps them; every process must call this."""
    whole = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = full.cpu()
    return whole


@torch.no_grad()  # type: ignore[untyped-decorator]
def scatter(model: Any, folder: Path) -> None:
    """Puts a checkpoint's whole tensors into this process's parts."""
    tensors = read_tensors_of(model, folder, MODEL_WEIGHTS)
    for name, parameter in model.named_parameters():
        full = tensors[name].to(device=parameter.device, dtype=parameter.dtype)
        parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements))


def optimizer_file(folder: Path, process: int) -> Path:
    return folder / f"optimizer_{process}.pt"


def save_optimizer(optimizer: Any, path: Path) -> None:
    state = optimizer.state_dict()
    state["state"] = {
        key: {name: value.to_local() if isinstance(value, DTensor) else value for name, value in entry.items()}
        for key, entry in state["state"].items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def load_optimizer(optimizer: Any, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, entry in state["state"].items():
        like = parameters[key]
        for name, value in entry.items():
            if name != "step":
                entry[name] = DTensor.from_local(
                    value.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                )
    optimizer.load_state_dict(state)
