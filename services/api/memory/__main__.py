"""`python -m services.api.memory rotate --database URL`: puts all sessions under a new key, while the server runs.

The keys are those of the server's setting, the new one first: `MEDTHINK_MEMORY_KEYS=NEW,OLD`. Afterwards OLD can be taken
out of the setting and destroyed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from services.api.memory.crypto import KeyRing
from services.api.memory.errors import SessionError
from services.api.memory.rotate import rotate

KEYS_VARIABLE = "MEDTHINK_MEMORY_KEYS"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all sessions are under the first key; 1 when some are in use and need another run; 2 when it failed."""
    options = _parser().parse_args(arguments)
    try:
        text = options.keys_file.read_text(encoding="utf-8") if options.keys_file else os.environ.get(KEYS_VARIABLE, "")
        done = asyncio.run(rotate(options.database, KeyRing.parse(text.replace("\n", ","))))
    except SessionError as error:
        print(f"memory: {error.message}", file=sys.stderr)
        return 2
    except (OSError, UnicodeDecodeError) as error:
        print(f"memory: {options.keys_file}: {error}: name a readable file", file=sys.stderr)
        return 2
    print(f"data keys wrapped anew: {done.rewrapped}; sessions sealed that were not: {done.sealed}")
    if done.busy:
        print(f"memory: {done.busy} unsealed sessions have a running turn: run this again", file=sys.stderr)
    if not done.cleaned:
        print("memory: old data is not yet out of the database's files: run this again, or wait for the server's sweep",
              file=sys.stderr)  # fmt: skip
    return 0 if done.cleaned and not done.busy else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.api.memory", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("rotate", help="wrap all data keys with the first key")
    command.add_argument("--database", required=True, metavar="URL", help="sqlite:///FILE or postgresql://...")
    command.add_argument(
        "--keys-file", type=Path, metavar="FILE", help=f"keys, one a line, new one first (default: ${KEYS_VARIABLE})"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
