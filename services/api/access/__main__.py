"""`python -m services.api.access create|list|revoke`: makes, shows and ends API keys. A running server takes changes up.

A key is shown once, when it is made; the file has its hash alone.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.api.access.file import locked, read_keys, write_keys
from services.api.access.keys import SCOPES, SHORTEST_ADOPTED, KeyEntry, KeysFile, KeysFileError, describe, new_key
from services.api.memory.tenancy import tenant_of

FILE_VARIABLE = "MEDTHINK_KEYS_FILE"


class Refused(Exception):
    """The command cannot be done; the message names the next step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when done, 2 when refused; the reason is one line on standard error and nothing is changed."""
    options = _parser().parse_args(arguments)
    try:
        if not options.file:
            raise Refused(f"name the keys file with --file, or set {FILE_VARIABLE}")
        path = Path(options.file)
        if options.command == "list":
            _list(read_keys(path), options.json)
        else:
            with locked(path):
                (_create if options.command == "create" else _revoke)(path, options)
    except (Refused, KeysFileError) as error:
        print(f"access: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"access: {options.file}: {error.strerror}: name a file that you may write", file=sys.stderr)
        return 2
    return 0


def _create(path: Path, options: argparse.Namespace) -> None:
    file = read_keys(path) if path.exists() else KeysFile.new()
    if any(k.tenant == options.tenant and k.name == options.name and k.revoked is None for k in file.keys):
        raise Refused(
            f"{options.tenant} has a key named {options.name!r}: choose another name, or revoke that one first"
        )
    key = _adopted() if options.adopt else new_key()
    owner = tenant_of(key) if options.adopt else file.owner_of(options.tenant)
    others = {k.owner for k in file.keys if k.tenant == options.tenant}
    if others - {owner}:
        raise Refused(
            f"{options.tenant} has keys already, and the adopted key has sessions of its own: name a new tenant"
        )
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        entry = KeyEntry(
            id=secrets.token_hex(6),
            name=options.name,
            tenant=options.tenant,
            owner=owner,
            hash=file.hash_of(key),
            scopes=options.scopes,
            created=now,
            expires=now + options.expires if options.expires else None,
            requests_per_minute=options.requests_per_minute,
            concurrency=options.concurrency,
        )
        changed = KeysFile(salt=file.salt, keys=(*file.keys, entry))
    except ValueError as error:
        raise Refused(_first_problem(error)) from None
    write_keys(path, changed)
    if options.json:
        print(json.dumps(describe(entry, now) | {"key": None if options.adopt else key}))
        return
    print(f"made {entry.id} for {entry.tenant}: {entry.name} ({', '.join(entry.scopes)})", file=sys.stderr)
    if not options.adopt:
        print("this is the only time that the key is shown:", file=sys.stderr)
        print(key)


def _adopted() -> str:
    """A key that people already use, from standard input: a command line is seen by the machine's other users."""
    key = sys.stdin.readline().strip()
    if len(key) < SHORTEST_ADOPTED:
        raise Refused(
            f"the key on standard input is shorter than {SHORTEST_ADOPTED} characters: make a new one instead"
        )
    return key


def _revoke(path: Path, options: argparse.Namespace) -> None:
    file = read_keys(path)
    found = next((k for k in file.keys if k.id == options.id), None)
    if found is None:
        raise Refused(f"there is no key with the id {options.id!r}: 'list' shows the ids")
    if found.revoked is not None:
        print(f"{found.id} was revoked before", file=sys.stderr)
        return
    ended = found.model_copy(update={"revoked": datetime.now(UTC).replace(microsecond=0)})
    write_keys(path, KeysFile(salt=file.salt, keys=tuple(ended if k is found else k for k in file.keys)))
    print(
        f"revoked {found.id} of {found.tenant}: {found.name}; a running server refuses it within seconds",
        file=sys.stderr,
    )


def _list(file: KeysFile, as_json: bool) -> None:
    now = datetime.now(UTC)
    rows = [describe(entry, now) for entry in file.keys]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    head = ("id", "tenant", "name", "state", "scopes", "per minute", "at a time", "created", "expires")
    table = [head, *(_row(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    colours = {"active": "32", "expired": "33", "revoked": "31"} if sys.stdout.isatty() else {}
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if line[3] in colours:
            cells[3] = f"\x1b[{colours[line[3]]}m{cells[3]}\x1b[0m"
        print("  ".join(cells).rstrip())


def _row(row: dict[str, object]) -> tuple[str, ...]:
    def shown(name: str) -> str:
        return "-" if row[name] is None else str(row[name])

    scopes = row["scopes"]
    assert isinstance(scopes, list)
    limits = (shown("requests_per_minute"), shown("concurrency"))
    return (shown("id"), shown("tenant"), shown("name"), shown("state"), ",".join(scopes), *limits,
            shown("created")[:10], shown("expires")[:10])  # fmt: skip


def _first_problem(error: ValueError) -> str:
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    first = problems(include_url=False, include_input=False, include_context=False)[0]
    return f"{first['loc'][0] if first['loc'] else 'the key'}: {first['msg']}"


def _scopes(text: str) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not given or not SCOPES.issuperset(given):
        raise argparse.ArgumentTypeError(f"scopes are {', '.join(sorted(SCOPES))}, with commas between them")
    return given


def _days(text: str) -> timedelta:
    number = text.removesuffix("d")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 3650):
        raise argparse.ArgumentTypeError("write a number of days from 1 to 3650, like 90d")
    return timedelta(days=int(number))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.api.access", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and show it once")
    create.add_argument("--tenant", required=True, help="whose sessions it opens; keys of one tenant share them")
    create.add_argument("--name", required=True, help="what the key is for: a program, a ward")
    create.add_argument("--scopes", type=_scopes, default=("chat", "sessions"), help="default: chat,sessions")
    create.add_argument("--expires", type=_days, metavar="DAYS", help="like 90d; default: never")
    create.add_argument(
        "--requests-per-minute", type=int, metavar="N", help="0: no limit; default: the server's setting"
    )
    create.add_argument(
        "--concurrency", type=int, metavar="N", help="requests at a time; 0: no limit; default: the setting"
    )
    create.add_argument("--adopt", action="store_true", help="take a key in use from standard input; its sessions stay")
    revoke = commands.add_parser("revoke", help="end a key; its sessions stay")
    revoke.add_argument("id", help="as 'list' shows it")
    shown = commands.add_parser("list", help="show all keys")
    for command in (create, revoke, shown):
        command.add_argument("--file", default=os.environ.get(FILE_VARIABLE, ""), help=f"default: ${FILE_VARIABLE}")
    for command in (create, shown):
        command.add_argument("--json", action="store_true", help="for machines")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
