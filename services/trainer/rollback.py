"""`rollback`: points an adapter's name back to a version that was published before. Running servers follow by themselves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from services.contract.adapter_manifest import AdapterError, check_name, read_current, rollback, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="the adapter's name")
    parser.add_argument("--volume", type=Path, required=True, help="folder that trainer and servers share")
    parser.add_argument("--version", help="version to go back to (default: the one published before the current)")


def run(options: argparse.Namespace) -> int:
    """0 and the version that is current now; or 1, why not, and what versions there are."""
    try:
        version = rollback(options.volume, check_name(options.name), options.version)
    except (AdapterError, OSError) as error:
        print(f"rollback: {error}; {_known(options.volume, options.name)}", file=sys.stderr)
        return 1
    print(f"{options.name}@{version} is current")
    return 0


def _known(volume: Path, name: str) -> str:
    """The versions of a name in one line, oldest first, the current one marked."""
    if not volume.is_dir():
        return f"there is no folder {volume}: give --volume the folder that the servers read"
    try:
        known = versions(volume, name)
    except AdapterError as error:
        return str(error)
    if not known:
        return f"there are no versions of {name[:80]!r} in {volume}"
    try:
        current = read_current(volume, name)
    except AdapterError:
        current = None
    listed = (f"{version} (current)" if version == current else version for version in known)
    return f"versions, oldest first: {', '.join(listed)}"
