"""Reads what a study gave out and got back: run, key, seal and sheets; checks that they belong together, and joins them.

Nothing is counted that is not whole, final and of this very study; each refusal has a name, the file and the next step.
What may be missing is said by whoever calls, and stands in the report.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from services.trainer.evaluate.answers import Arm, Run, read_run
from services.trainer.evaluate.sheets import FORMAT, Key, KeyItem, Packet, Rating, Seal, Sheet, SheetError, SideRating
from services.trainer.evaluate.sheets import content_sha256 as sha256_of

SEAL = "seal.json"
_CSV_READER = "services.trainer.evaluate.sheet_csv"
Guessed = Literal["correct", "unsure", "wrong"]
Model = TypeVar("Model", bound=BaseModel)


class SheetUnreadable(SheetError):
    """A file that is missing, torn or of another form."""


class SheetUnlocked(SheetError):
    """The rater has not said that the sheet is final."""


class SheetTampered(SheetError):
    """The hash is not that of the content."""


class SheetItemsWrong(SheetError):
    """An item that the rater never got, or one rated twice."""


class SheetDuplicate(SheetError):
    """Two files of one rater."""


class SheetIncomplete(SheetError):
    """Not every item is rated."""


class SheetMissing(SheetError):
    """A rater of the study has returned nothing."""


class SheetOfOtherStudy(SheetError):
    """Another study, or another version of the packet."""


class RaterUnknown(SheetError):
    """A rater who is not in the study, or a name that is none of its raters'."""


class KeyMismatch(SheetError):
    """The key is not the one that was sealed before the first rating."""


class RunMismatch(SheetError):
    """The answers are not those that were rated."""


class SimulatedMixed(SheetError):
    """Made-up sheets beside real ones."""


@dataclass(frozen=True)
class Rated:
    """One pair of answers that one rater has rated. `repeat_of`: the item that it repeats; then it is in no mean."""

    rater: str
    item: str
    scenario: str
    seed: int
    sides: dict[Arm, SideRating]
    guess: Guessed
    comment: str
    repeat_of: str | None


@dataclass(frozen=True)
class Collected:
    """Everything that may be counted. `unrated`: items that each rater left out; `missing`: raters without a sheet."""

    run: Run
    key: Key
    key_sha256: str
    rated: tuple[Rated, ...]
    simulated: bool
    missing: tuple[str, ...]
    unrated: dict[str, int]
    practice: int
    sheets: dict[str, str]

    @property
    def counted(self) -> tuple[Rated, ...]:
        """Without repeats."""
        return tuple(rated for rated in self.rated if rated.repeat_of is None)

    @property
    def raters(self) -> tuple[str, ...]:
        return tuple(sorted({rated.rater for rated in self.rated}))


def collect(
    run: Path,
    packets: Path,
    key: Path,
    sheets: Sequence[Path],
    *,
    allow_missing: Collection[str] = (),
    allow_partial: bool = False,
) -> Collected:
    """Raises a `SheetError` of its own kind for whatever does not fit, or an `AnswersError` of the run."""
    opened, seal = _open(key, packets)
    asked = read_run(run)
    _check_run(asked, opened, key)
    found = _read_sheets(sheets, packets, seal)
    _check_missing(found, seal, allow_missing)
    practice = _practice_items(packets, seal)
    rated: list[Rated] = []
    unrated: dict[str, int] = {}
    dropped = 0
    for rater, (path, sheet) in sorted(found.items()):
        counted = [rating for rating in sheet.ratings if rating.item not in practice]
        dropped += len(sheet.ratings) - len(counted)
        items = {item.id: item for item in opened.raters[rater].items}
        unrated |= _check_items(path, counted, items, allow_partial, rater)
        rated += [_unblind(rater, rating, items[rating.item]) for rating in counted]
    return Collected(
        run=asked,
        key=opened,
        key_sha256=seal.key_sha256,
        rated=tuple(rated),
        simulated=any(sheet.simulated for _, sheet in found.values()),
        missing=tuple(sorted(set(seal.raters) - set(found))),
        unrated=unrated,
        practice=dropped,
        sheets={rater: sheet.sha256 for rater, (_, sheet) in sorted(found.items())},
    )


# Key, seal and run


def _open(key: Path, packets: Path) -> tuple[Key, Seal]:
    opened, seal = _parse(Key, key, "the key"), _parse(Seal, packets / SEAL, "the seal")
    for path, of in ((key, opened.format), (packets / SEAL, seal.format)):
        if of != FORMAT:
            raise SheetUnreadable(
                f"{path} is of format {of}, this program knows {FORMAT}: use the version that made it"
            )
    packet_hashes = {rater: part.packet_sha256 for rater, part in opened.raters.items()}
    if sha256_of(opened) != seal.key_sha256 or opened.study != seal.study or packet_hashes != seal.raters:
        raise KeyMismatch(
            f"{key} is not the key that {packets / SEAL} was sealed with (its hash differs): give the key that `blind` "
            "wrote for these packets. If it was changed since, the study cannot be opened"
        )
    return opened, seal


def _check_run(run: Run, key: Key, path: Path) -> None:
    if run.record.answers_sha256 != key.answers_sha256:
        raise RunMismatch(f"{path} is of other answers than those in {run.folder}: give --run the run that was blinded")
    asked = {(answer.scenario, answer.seed) for answer in run.answers}
    for rater, part in key.raters.items():
        for item in part.items:
            if (item.scenario, item.seed) not in asked:
                raise RunMismatch(f"{path}: item {item.id} of {rater} is of {item.scenario}, which {run.folder} lacks")


def _practice_items(packets: Path, seal: Seal) -> set[str]:
    """Of the packets that lie beside the seal as JSON. Raises `SheetTampered` for one that was changed."""
    found: set[str] = set()
    for rater, digest in seal.raters.items():
        path = packets / f"{rater}.json"
        if not path.exists():
            continue
        packet = _parse(Packet, path, "the packet")
        if sha256_of(packet) != digest:
            raise SheetTampered(f"{path} was changed after it was sealed: restore the packet that `blind` wrote")
        found |= {item.id for item in packet.practice}
    return found


# Sheets


def _read_sheets(paths: Sequence[Path], packets: Path, seal: Seal) -> dict[str, tuple[Path, Sheet]]:
    found: dict[str, tuple[Path, Sheet]] = {}
    for path in _files(paths):
        sheet = _read_sheet(path)
        _check_sheet(path, sheet, seal)
        if sheet.rater in found:
            first, other = found[sheet.rater]
            how = "are copies of one sheet" if other.sha256 == sheet.sha256 else "differ"
            raise SheetDuplicate(f"{first} and {path} are both of {sheet.rater} and {how}: keep the one that counts")
        found[sheet.rater] = path, sheet
    if not found:
        raise SheetMissing(f"there is no sheet in {', '.join(map(str, paths))}: give the raters' .json or .csv files")
    kinds = {sheet.simulated: path for path, sheet in found.values()}
    if len(kinds) == 2:
        raise SimulatedMixed(f"{kinds[True]} is simulated and {kinds[False]} is not: score them apart")
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as named, and of a folder every .json and .csv in it; the same file named twice is one."""
    seen: set[Path] = set()
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix in (".json", ".csv")) if path.is_dir() else [path]
        for file in inside:
            if file.resolve() not in seen and file.name != SEAL:
                seen.add(file.resolve())
                yield file


def _read_sheet(path: Path) -> Sheet:
    if path.suffix.lower() != ".csv":
        return _parse(Sheet, path, "a sheet")
    if importlib.util.find_spec(_CSV_READER) is None:
        raise SheetUnreadable(f"{path}: this version reads sheets as JSON alone: ask the rater for the .json file")
    sheet: Sheet = importlib.import_module(_CSV_READER).read_csv_sheet(path)
    return sheet


def _check_sheet(path: Path, sheet: Sheet, seal: Seal) -> None:
    if sheet.format != FORMAT:
        raise SheetUnreadable(f"{path} is of format {sheet.format}, this program knows {FORMAT}: export it again")
    if sha256_of(sheet, without=("sha256",)) != sheet.sha256:
        raise SheetTampered(
            f"{path} was changed after {sheet.rater} saved it (its hash differs): ask {sheet.rater} to send it again"
        )
    if sheet.study != seal.study:
        raise SheetOfOtherStudy(f"{path} is of study {sheet.study}, this is {seal.study}: leave it out")
    if sheet.rater not in seal.raters:
        known = ", ".join(sorted(seal.raters))
        raise RaterUnknown(f"{path} is of {sheet.rater}, who is not in this study ({known}): leave it out")
    if sheet.packet_sha256 != seal.raters[sheet.rater]:
        raise SheetOfOtherStudy(
            f"{path} is on another version of {sheet.rater}'s packet (its hash differs): have the sealed packet rated"
        )
    if not sheet.locked:
        raise SheetUnlocked(f"{path} is not final: ask {sheet.rater} to finish, lock and send it again")


def _check_items(
    path: Path, ratings: Sequence[Rating], items: dict[str, KeyItem], allow_partial: bool, rater: str
) -> dict[str, int]:
    """How many items the rater left out, if any."""
    rated = [rating.item for rating in ratings]
    if unknown := [item for item in rated if item not in items]:
        raise SheetItemsWrong(f"{path}: item {unknown[0]} was never given to {rater}: ask for the sheet again")
    if twice := [item for n, item in enumerate(rated) if item in rated[:n]]:
        raise SheetItemsWrong(f"{path}: item {twice[0]} is rated twice: ask {rater} for the sheet again")
    left = len(items) - len(rated)
    if left and not allow_partial:
        raise SheetIncomplete(
            f"{path}: {left} of {len(items)} items are not rated: ask {rater} to finish it, or say --allow-partial"
        )
    return {rater: left} if left else {}


def _check_missing(found: Collection[str], seal: Seal, allowed: Collection[str]) -> None:
    if unknown := sorted(set(allowed) - set(seal.raters)):
        raise RaterUnknown(f"--allow-missing {unknown[0]}: the raters are {', '.join(sorted(seal.raters))}")
    if missing := sorted(set(seal.raters) - set(found) - set(allowed)):
        raise SheetMissing(
            f"no sheet of {', '.join(missing)}: wait for it, or say --allow-missing {','.join(missing)} and why in the text"
        )


def _unblind(rater: str, rating: Rating, item: KeyItem) -> Rated:
    guess: Guessed = "unsure"
    if rating.guess != "unsure":
        guess = "correct" if item.arm(rating.guess) == "adapter" else "wrong"
    return Rated(
        rater=rater,
        item=item.id,
        scenario=item.scenario,
        seed=item.seed,
        sides={item.arm("A"): rating.A, item.arm("B"): rating.B},
        guess=guess,
        comment=rating.comment,
        repeat_of=item.repeat_of,
    )


def _parse(model: type[Model], path: Path, what: str) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SheetUnreadable(f"cannot read {path} ({error.strerror or error}): give {what}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SheetUnreadable(f"{path} is not {what}: {place}: {first['msg']}. Ask for the file again") from error
