"""Who is asking and about whom, as far as the user has said: pregnant, an infant, a clinician, an exam question, ...

Several rules need the same facts, so they are read once, from the policy's terms of the group `fact`.
"""

from __future__ import annotations

from services.api.safety.case import Case, Said

GROUP = "fact"
_READ = "facts_read"
# What is said about the message itself holds for that message alone: after an exam question a patient may speak.
OF_THE_MESSAGE = frozenset({"teaching"})


def facts_of(said: Said) -> frozenset[str]:
    """The facts that one message tells."""
    return frozenset(str((find.term.data or {}).get("fact", find.term.id)) for find in said.active(GROUP))


def assess_facts(case: Case) -> None:
    """Adds to `case.facts` what the user's messages tell; any rule may call it first, the second call does nothing."""
    if case.data.get(_READ):
        return
    case.data[_READ] = True
    for said in case.users:
        told = facts_of(said)
        case.facts |= told if said.age == 0 else told - OF_THE_MESSAGE
