"""The policy as data: a folder of YAML files, read, checked against its own cases and compiled; and its digest.

`policy.yaml` has the version and the sentences that readers get; the other files have `words` (lists that patterns name as
`{list}`), `cues` (what gives a scope) and `terms`. Every term has texts that it must find (`match`) and texts that it must
not (`no_match`); they are run whenever the policy is read, so that a file that no longer does what it says is refused.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from services.api.safety.drugs import DrugTable, DrugTableError
from services.api.safety.normalise import normalise
from services.api.safety.terms import CLAUSE_MARKS, SENTENCE_MARKS, Cue, Term, TermError, TermMatcher

FOLDER = Path(__file__).parent / "policy"
MAIN = "policy.yaml"
_MOST_PROBLEMS = 20

Schema = TypeVar("Schema", bound=BaseModel)


class PolicyError(ValueError):
    """A policy that must not be used; the message lists what is wrong, one line each."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[list[str], BeforeValidator(_as_list)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sentences(_Strict):
    """What a reader gets, by language."""

    zh: str = Field(min_length=1)
    en: str = Field(min_length=1)

    def of(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


class MainFile(_Strict):
    """`policy.yaml`."""

    version: str = Field(min_length=1)
    fallback: Sentences
    urgent: Sentences
    crisis: Sentences


class TermEntry(_Strict):
    """One term as written. `any`: patterns or lists of patterns that must occur together."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    group: str | None = None
    any: list[Patterns] = Field(min_length=1)
    within: int = Field(60, ge=1, le=1000)
    unless: Patterns = []
    passes: list[str] | None = None
    needs: Patterns = []
    data: dict[str, Any] | None = None
    match: Patterns = Field(min_length=1)
    no_match: Patterns = Field(min_length=1)


class CueEntry(_Strict):
    """One cue as written. `across: sentence` lets it reach over commas."""

    before: Patterns = []
    after: Patterns = []
    anywhere: Patterns = []
    unless: Patterns = []
    reach: int = Field(8, ge=1, le=400)
    across: str = Field("clause", pattern="^(clause|sentence|text)$")


class RuleFile(_Strict):
    """Any other file. `group` and `passes` are what its terms have unless they say otherwise."""

    group: str | None = None
    passes: list[str] = []
    words: dict[str, Patterns] = {}
    cues: dict[str, CueEntry] = {}
    terms: list[TermEntry] = []


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy in force: immutable, so that a reply is judged by one from beginning to end. Equal to itself alone."""

    version: str
    digest: str
    fallback: Sentences
    urgent: Sentences
    crisis: Sentences
    matcher: TermMatcher
    drugs: DrugTable
    terms: Mapping[str, Term]
    cases: int
    scopes: frozenset[str]

    @property
    def label(self) -> str:
        """Version and the beginning of the digest, as responses and records carry it."""
        return f"{self.version}+{self.digest[:12]}"


def read_policy(folder: Path = FOLDER) -> Policy:
    """Reads, checks and compiles a policy. Raises `PolicyError` naming every problem, with its file."""
    texts = _read_files(folder)
    return _build(tuple(texts.items()), _digest(texts))


@functools.lru_cache(maxsize=4)  # policies are immutable, and compiling one takes longer than reading its files
def _build(files_read: tuple[tuple[str, str], ...], digest: str) -> Policy:
    texts = dict(files_read)
    problems: list[str] = []
    main = _parse(MAIN, texts[MAIN], MainFile, problems)
    files = {
        name: parsed
        for name, text in texts.items()
        if name.endswith(".yaml") and name != MAIN and (parsed := _parse(name, text, RuleFile, problems))
    }
    try:
        drugs = DrugTable.load()
    except DrugTableError as error:
        problems.append(str(error))
    words, cues, entries = _merge(files, problems)
    scopes = frozenset({cue.name for cue in cues} | {"quoted"})
    for name, entry, term in entries:
        unknown = term.passes - scopes
        if unknown:
            problems.append(f"{name}: term {entry.id} passes {sorted(unknown)}, which no cue gives")
    if problems:
        raise PolicyError(_listed(problems))
    try:
        matcher = TermMatcher([term for _, _, term in entries], cues, words)
    except TermError as error:
        raise PolicyError(str(error)) from error
    problems = run_cases(matcher, entries)
    if problems:
        raise PolicyError(_listed(problems))
    assert main is not None
    return Policy(
        version=main.version,
        digest=digest,
        fallback=main.fallback,
        urgent=main.urgent,
        crisis=main.crisis,
        matcher=matcher,
        drugs=drugs,
        terms={term.id: term for _, _, term in entries},
        cases=sum(len(entry.match) + len(entry.no_match) for _, entry, _ in entries),
        scopes=scopes,
    )


def run_cases(matcher: TermMatcher, entries: Sequence[tuple[str, TermEntry, Term]]) -> list[str]:
    """A line for every `match` text in which its term is not active, and every `no_match` text in which it is."""
    problems = []
    for name, entry, term in entries:
        for wanted, texts in ((True, entry.match), (False, entry.no_match)):
            for text in texts:
                finds = matcher.find(normalise(text).text, term.needs)
                active = any(find.term.id == term.id and find.is_active for find in finds)
                if active != wanted:
                    scopes = sorted({s for f in finds if f.term.id == term.id for s in f.scopes})
                    problems.append(
                        f"{name}: term {entry.id} {'misses' if wanted else 'must not find'} {text!r} (scopes {scopes})"
                    )
    return problems


def _read_files(folder: Path) -> dict[str, str]:
    try:
        texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{folder} cannot be read: {error}") from error
    if MAIN not in texts:
        raise PolicyError(f"{folder} holds no {MAIN}: name a folder with a policy")
    return texts


def _digest(texts: Mapping[str, str]) -> str:
    """Over the names and the contents of all files, and of the drug table that rules read."""
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(f"{name}\0{len(texts[name])}\0{texts[name]}".encode())
    digest.update(DrugTable.source_digest().encode())
    return digest.hexdigest()


def _parse(name: str, text: str, schema: type[Schema], problems: list[str]) -> Schema | None:
    try:
        return schema.model_validate(yaml.load(text, Loader=_loader()) or {})
    except yaml.YAMLError as error:
        problems.append(f"{name}: not YAML: {' '.join(str(error).split())[:200]}")
    except ValidationError as error:
        for detail in error.errors()[:_MOST_PROBLEMS]:
            problems.append(f"{name}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}")
    return None


def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _merge(
    files: Mapping[str, RuleFile], problems: list[str]
) -> tuple[dict[str, list[str]], list[Cue], list[tuple[str, TermEntry, Term]]]:
    words: dict[str, list[str]] = {}
    cues: dict[str, Cue] = {}
    entries: dict[str, tuple[str, TermEntry, Term]] = {}
    for name, file in files.items():
        for word, patterns in file.words.items():
            if word in words:
                problems.append(f"{name}: the word list {word!r} is in another file too")
            words[word] = patterns
        for cue, written in file.cues.items():
            if cue in cues:
                problems.append(f"{name}: the cue {cue!r} is in another file too")
            cues[cue] = _cue(cue, written)
        for entry in file.terms:
            if entry.id in entries:
                problems.append(f"{name}: the term {entry.id!r} is there twice")
            group = entry.group or file.group
            if group is None:
                problems.append(f"{name}: term {entry.id} has no group, and the file names none")
            entries[entry.id] = (name, entry, _term(entry, group or "", file.passes))
    return words, list(cues.values()), list(entries.values())


def _cue(name: str, written: CueEntry) -> Cue:
    stops = {"clause": CLAUSE_MARKS, "sentence": SENTENCE_MARKS, "text": ""}[written.across]
    return Cue(
        name,
        tuple(written.before),
        tuple(written.after),
        tuple(written.anywhere),
        written.reach,
        stops,
        tuple(written.unless),
    )


def _term(entry: TermEntry, group: str, passes: Sequence[str]) -> Term:
    return Term(
        id=entry.id,
        group=group,
        any_of=tuple(tuple(combination) for combination in entry.any),
        within=entry.within,
        unless=tuple(entry.unless),
        passes=frozenset(passes if entry.passes is None else entry.passes),
        needs=frozenset(entry.needs),
        data=entry.data,
    )


def _listed(problems: Sequence[str]) -> str:
    shown = list(problems[:_MOST_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return "\n".join(shown)
