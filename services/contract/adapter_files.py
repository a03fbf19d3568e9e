"""Files of an adapter, read with suspicion: whatever lies there, reading ends in what it holds or in one line of why not."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

BLOCK = 1024 * 1024
_MOST_HEADER_BYTES = 64 * 1024 * 1024
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_Size = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class AdapterError(ValueError):
    """This adapter, or this volume, cannot be used; the message names the cause and fits in one line."""


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 (hex) of one file."""

    model_config = ConfigDict(frozen=True)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def file_record(path: Path) -> FileRecord:
    """Hash of a regular file; a symbolic link is refused."""
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise AdapterError(f"cannot read {path.name}: {error.strerror or error}") from error
    return FileRecord(size=size, sha256=digest.hexdigest())


def open_regular(path: Path) -> int:
    """A descriptor for reading; a symbolic link is refused, and so is a pipe, on which opening would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `AdapterError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"cannot read {path.name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} is no JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path.name} is not a JSON object")
    return value


class TensorRecord(BaseModel):
    """Type and shape of one tensor in a safetensors file, and its bytes' place after the header."""

    model_config = ConfigDict(frozen=True)
    dtype: str
    shape: Annotated[tuple[_Size, ...], Field(max_length=8)]
    data_offsets: tuple[_Size, _Size]


def read_tensors(path: Path) -> dict[str, TensorRecord]:
    """The header of a safetensors file. Raises `AdapterError` for a broken or truncated one.

    Format: 8 bytes little-endian length, then JSON, then the data, one tensor after the other without a gap
    (github.com/huggingface/safetensors, README).
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MOST_HEADER_BYTES, size - 8):
                raise AdapterError(f"{path.name} is no safetensors file, or truncated in its header")
            header = json.loads(file.read(length).decode())
        if not isinstance(header, dict):
            raise AdapterError(f"{path.name} is no safetensors file: its header is no JSON object")
        header.pop("__metadata__", None)
        tensors = {name: TensorRecord.model_validate(record) for name, record in header.items()}
    except AdapterError:
        raise
    except OSError as error:
        raise AdapterError(f"cannot read {path.name}: {error.strerror or error}") from error
    except (struct.error, ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} is no safetensors file: {str(error).splitlines()[0]}") from error
    end = 8 + length + _data_bytes(path.name, tensors)
    if size != end:
        raise AdapterError(f"{path.name} has {size} bytes where its header says {end}: truncated? copy it again")
    return tensors


def _data_bytes(file: str, tensors: Mapping[str, TensorRecord]) -> int:
    """Size of the data; raises `AdapterError` when a tensor has not the bytes that its type and shape ask for."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        if tensor.dtype not in _BYTES:
            raise AdapterError(f"{file} holds {name[:120]!r} of a type that is not known: {tensor.dtype[:20]!r}")
        begin, after = tensor.data_offsets
        if begin != end or after - begin != math.prod(tensor.shape) * _BYTES[tensor.dtype]:
            raise AdapterError(f"{file} holds {name[:120]!r} in the wrong place: written by a broken program?")
        end = after
    return end
