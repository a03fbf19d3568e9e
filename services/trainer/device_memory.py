"""How much memory the device at hand has left for a training process. Imports torch only to ask a GPU."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.trainer.memory import GB

# What a process takes beside its tensors. A margin, not a measurement: CUDA's context, cuBLAS' workspace and kernels on a GPU,
# Python with torch and transformers on a CPU; and the allocator's fragments, as a share of the tensors.
_FIXED = {"cuda": int(0.8 * GB), "cpu": int(0.9 * GB)}
_FRAGMENTS = 0.06
_CGROUP, _MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


class DeviceError(ValueError):
    """A device that was asked for and is not there; the message fits in one line."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may take on one device. `total` is what the device has, `free` what others leave of it."""

    kind: Literal["cuda", "cpu"]
    name: str
    free: int
    total: int

    def overhead(self, tensors: int) -> int:
        """Bytes beside the tensors, for a peak of `tensors` bytes."""
        return _FIXED[self.kind] + int(_FRAGMENTS * tensors)


def find_budget(device: str, memory_gb: float | None = None) -> Budget:
    """Of the device that the setting `device` means on this machine; `memory_gb` is for another machine's.

    Without a GPU here, `memory_gb` with `auto` or `cuda` means one. Raises `DeviceError` for `cuda` where there is none.
    """
    if memory_gb is not None:
        if memory_gb <= 0:
            raise DeviceError("--memory-gb must be above 0")
        size = int(memory_gb * GB)
        return Budget("cpu" if device == "cpu" else "cuda", f"a device of {memory_gb:g} GB", size, size)
    if device != "cpu" and (budget := _of_gpu()) is not None:
        return budget
    if device == "cuda":
        raise DeviceError("device is cuda but torch sees no GPU: say device=auto, or give --memory-gb to plan for one")
    return _of_cpu()


def _of_gpu() -> Budget | None:
    import torch

    if not torch.cuda.is_available():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0"))
    free, total = torch.cuda.mem_get_info(index)
    # What this process has reserved already is not free, but its own.
    return Budget("cuda", torch.cuda.get_device_name(index), free + torch.cuda.memory_reserved(index), total)


def _of_cpu() -> Budget:
    """The machine's memory, or the container's, whichever is less."""
    total, free = _machine_memory()
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is not None and limit < total:
        total = limit
        free = min(free, limit - (used or 0))
    return Budget("cpu", "the CPU's memory", max(free, 0), total)


def _machine_memory() -> tuple[int, int]:
    """Total, and what could be had without swapping; all of it where Linux does not say."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024
    return total, total


def _cgroup_number(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((_CGROUP / name).read_text())
    return None
