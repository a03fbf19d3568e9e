"""A publisher that dies, or whose disk fails, where a test wants it: a program of the tests alone.

    python -m tests.trainer.publish_child die VOLUME FOLDER           killed before the step in PUBLISH_STOP_AT
    python -m tests.trainer.publish_child publish VOLUME FOLDER...    publishes each once, one after the other
    python -m tests.trainer.publish_child sweep kill|fail TEMPLATE FOLDER SCRATCH
        for each change to the file system that publishing makes: a copy of the volume TEMPLATE, and a publisher that is
        killed before that change (or for which it fails); prints what it found as JSON
    python -m tests.trainer.publish_child as-user UID VOLUME FOLDER   publishes with another user's rights
    python -m tests.trainer.publish_child file-limit BYTES VOLUME FOLDER

The volume's name is always `kids`. An `AdapterError` is printed, and the exit status is then 1.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.contract.adapter_manifest import (
    AdapterError,
    BaseRecord,
    Details,
    publish,
    read_current,
    read_manifest,
    verify,
    versions,
)
from tests.trainer.adapters import visible_tree

NAME = "kids"
DETAILS = Details(base=BaseRecord(id="demo", config_sha256="a" * 64, chat_format_sha256="b" * 64))
# What Python reports before it changes a file system, by its first argument; see its table of audit events.
CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod")
GROWING = ("open", "os.mkdir")  # what a full disk refuses


def main(command: str, *arguments: str) -> int:
    try:
        COMMANDS[command](*arguments)
    except AdapterError as error:
        print(error)
        return 1
    return 0


def die(volume: str, folder: str) -> None:
    def stop(step: str) -> None:
        if step == os.environ["PUBLISH_STOP_AT"]:
            os.kill(os.getpid(), signal.SIGKILL)

    publish(Path(volume), NAME, Path(folder), DETAILS, on_step=stop)


def publish_each(volume: str, *folders: str) -> None:
    for folder in folders:
        publish(Path(volume), NAME, Path(folder), DETAILS)


def as_user(uid: str, volume: str, folder: str) -> None:
    os.setuid(int(uid))
    publish_each(volume, folder)


def file_limit(size: str, volume: str, folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    publish_each(volume, folder)


def sweep(fault: str, template: str, folder: str, scratch: str) -> None:
    """One publisher for each change that a whole publication makes, until one gets through unharmed."""
    before = visible_tree(Path(template))
    found: list[dict[str, Any]] = []
    for at in range(1, 1000):
        volume = Path(scratch) / str(at)
        shutil.copytree(template, volume)
        status = in_child(lambda volume=volume, at=at: suffer(fault, volume, Path(folder), at))
        found.append({"at": at, "status": status, **describe(volume, before)})
        publish(volume, NAME, Path(folder), DETAILS)
        found[-1]["after"] = describe(volume, before)
        if status == 0:
            break
    json.dump(found, sys.stdout)


def in_child(work: Callable[[], int]) -> int:
    """Exit status of `work` in a process of its own; the negative signal when it was killed."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def suffer(fault: str, volume: Path, folder: Path, at: int) -> int:
    """0: no fault came; 2: one came and the publication succeeded all the same; 1: it failed."""
    changes = 0

    def strike(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event not in CHANGES or not str(arguments[0]).startswith(str(volume)) or changes < 0:
            return
        if (
            event == "open"
            and isinstance(arguments[2], int)
            and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        changes += 1
        if changes == at and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if (changes == at and fault == "fail") or (changes >= at and fault == "fill" and event in GROWING):
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    sys.addaudithook(strike)
    try:
        publish(volume, NAME, folder, DETAILS)
        reached = changes >= at
    except AdapterError:
        return 1
    return 2 if reached else 0


def describe(volume: Path, before: dict[str, Any]) -> dict[str, Any]:
    """What a reader finds."""
    bad = []
    known = versions(volume, NAME)
    for version in known:
        try:
            verify(volume / NAME / version, read_manifest(volume / NAME / version))
        except AdapterError as error:
            bad.append(f"{version}: {error}")
    tree = visible_tree(volume)
    allowed = {
        NAME,
        f"{NAME}/CURRENT",
        *(path for path in tree for version in known if path.startswith(f"{NAME}/{version}")),
    }
    return {
        "current": read_current(volume, NAME),
        "versions": known,
        "bad": bad,
        "strange": sorted(set(tree) - allowed),
        "unchanged": tree == before,
        "staging": sorted(os.listdir(volume / ".staging")) if (volume / ".staging").is_dir() else [],
    }


COMMANDS: dict[str, Callable[..., None]] = {
    "die": die, "publish": publish_each, "sweep": sweep, "as-user": as_user, "file-limit": file_limit,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
