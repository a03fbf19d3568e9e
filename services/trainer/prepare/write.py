"""Puts a data set on the disk, whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from services.trainer.dataset import CARD, DatasetError


def check_target(folder: Path, overwrite: bool) -> None:
    """Raises `DatasetError` when `folder` must not be written: another's, or a data set and not to be overwritten."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file: name another directory with --out")
    if any(folder.iterdir()) and not (folder / CARD).is_file():
        raise DatasetError(f"{folder} holds something that is no data set: name another directory with --out")
    if (folder / CARD).is_file() and not overwrite:
        raise DatasetError(f"{folder} holds a data set already: add --overwrite, or name another with --out")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes `folder` hold exactly these files, by writing beside it and renaming. Raises `DatasetError`."""
    mark = uuid.uuid4().hex
    made, old = (folder.with_name(f".{folder.name}.{kind}.{mark}") for kind in ("new", "old"))
    try:
        made.mkdir(parents=True)
        for name, content in files.items():
            with (made / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(made, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    except OSError as error:
        raise DatasetError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
