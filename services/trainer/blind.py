"""`blind`: makes a packet for each rater out of the answers of a run, and a key that stays closed until all sheets are in."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.trainer.evaluate.answers import read_run
from services.trainer.evaluate.collect import SEAL
from services.trainer.evaluate.form import form_html
from services.trainer.evaluate.packets import check_raters, make_packets
from services.trainer.evaluate.sheet_csv import csv_sheet
from services.trainer.evaluate.sheets import Key, Packet, Seal, SheetError, content_sha256

FORM, TABLE = "form.html", "sheet.csv"


class PacketsExist(SheetError):
    """The folder for the packets holds something already."""


class KeyMisplaced(SheetError):
    """The key would lie where raters get it, or over another one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", dest="answers", type=Path, required=True, metavar="RUN", help="folder of `answer`")
    parser.add_argument("--out", type=Path, required=True, metavar="PACKETS", help="folder to make: a packet per rater")
    parser.add_argument("--key", type=Path, required=True, metavar="KEY.json", help="file to make; not inside PACKETS")
    parser.add_argument(
        "--raters", type=_raters, default=_raters("5"), metavar="N|NAME,NAME,...", help="number or names (default: 5)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same ids, order and sides again; tells the arms as the key does"
    )


def run(options: argparse.Namespace) -> int:
    """0 and what to do next. Errors are raised, and then nothing is left behind."""
    check_raters(options.raters)
    _check_places(options.out, options.key)
    dice = random.SystemRandom() if options.seed is None else random.Random(options.seed)
    packets, key = make_packets(read_run(options.answers), options.raters, dice)
    seal = Seal(
        study=key.study,
        key_sha256=content_sha256(key),
        raters={rater: part.packet_sha256 for rater, part in key.raters.items()},
        created=int(time.time()),
    )
    _write_all(options.out, options.key, packets, key, seal)
    repeats = sum(item.repeat_of is not None for item in key.raters[packets[0].rater].items)
    print(
        f"{len(packets)} packets in {options.out}, each with {len(packets[0].items)} items ({repeats} repeats) and "
        f"{len(packets[0].practice)} for practice\n"
        f"key: {options.key} (keep it, and any --seed, from everybody who talks to raters)\n"
        f"seal: {seal.key_sha256} (write it down before the first rating)\n"
        f"next: give each rater the folder with the rater's name, {FORM} or {TABLE}, and nothing else; "
        "then score, docs/evaluation.md"
    )
    return 0


def _raters(text: str) -> tuple[str, ...]:
    if text.strip().isdecimal():
        if int(text) > 99:
            raise argparse.ArgumentTypeError("at most 99 raters")
        return tuple(f"r{n + 1}" for n in range(int(text)))
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_places(out: Path, key: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PacketsExist(f"{out} is there and not an empty folder: give --out another, packets are never made over")
    if key.resolve().is_relative_to(out.resolve()):
        raise KeyMisplaced(f"{key} would lie inside {out}, which raters get: give --key another place")
    if os.path.lexists(key):
        raise KeyMisplaced(f"{key} is there already, and may be the key of another study: give --key another name")
    if not key.parent.is_dir():
        raise KeyMisplaced(f"there is no folder {key.parent} for the key: make it, readable for you alone")


# Writing


def _write_all(out: Path, key_path: Path, packets: Sequence[Packet], key: Key, seal: Seal) -> None:
    """All or nothing: the key comes first, and the packets appear by one rename."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(out) as folder, _new_key(key_path, key):
        for packet in packets:
            _write(folder / packet.rater / FORM, form_html(packet))
            _write(folder / packet.rater / TABLE, csv_sheet(packet))
            _write(folder / f"{packet.rater}.json", _json(packet))
        _write(folder / SEAL, _json(seal))
        _set_times(folder, seal.created)
        os.rename(folder, out)


def _json(model: Packet | Seal | Key) -> bytes:
    return model.model_dump_json(indent=1).encode() + b"\n"


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _new_key(path: Path, key: Key) -> Iterator[None]:
    """A new file for its owner alone; gone again when what follows fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise KeyMisplaced(f"cannot write {path} ({error.strerror}): give --key another place") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_json(key))
            file.flush()
            os.fsync(descriptor)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _set_times(folder: Path, moment: float) -> None:
    """One time for all: who was written first would say something."""
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (moment, moment))
