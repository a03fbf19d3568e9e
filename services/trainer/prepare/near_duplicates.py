"""Groups of texts that are the same or nearly: exact Jaccard similarity of character 3-grams, without comparing all pairs.

Two sets with similarity t or more share one of the rarest few elements of each (the prefix filter of Bayardo, Ma and Srikant,
"Scaling Up All Pairs Similarity Search", 2007). Unlike MinHash this misses nothing and has no seed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from services.trainer.prepare.texts import comparable

_WIDTH = 3
_SLACK = 1e-9  # t * n in floating point may lie just above a whole number


class Groups:
    """Union-find over indices; a group is named by its smallest."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def root(self, index: int) -> int:
        """The smallest index of the group that `index` is in."""
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parents[high] = low


def join_similar(texts: Mapping[int, str], threshold: float, groups: Groups) -> None:
    """Joins the indices whose texts are equal or reach the similarity `threshold`, in (0, 1].

    Compares letters, digits and ideographs alone, case and width ignored. Groups are closed: like of a like belongs too.
    """
    first_with: dict[str, int] = {}
    for index, text in texts.items():
        groups.join(index, first_with.setdefault(comparable(text), index))
    sets = {index: character_ngrams(text) for text, index in first_with.items()}
    for one, other in _similar_pairs(sets, threshold, groups):
        groups.join(one, other)


def character_ngrams(text: str) -> frozenset[str]:
    """Every run of three characters of a comparable text; a shorter text whole."""
    if len(text) <= _WIDTH:
        return frozenset([text])
    return frozenset(text[i : i + _WIDTH] for i in range(len(text) - _WIDTH + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _similar_pairs(sets: dict[int, frozenset[str]], threshold: float, groups: Groups) -> Iterable[tuple[int, int]]:
    """Pairs that reach the threshold, but for those which the caller has joined by then through others."""
    frequency = Counter(element for elements in sets.values() for element in elements)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index in sorted(sets, key=lambda i: (len(sets[i]), i)):
        elements = sets[index]
        size = len(elements)
        rarest = sorted(elements, key=lambda e: (frequency[e], e))[: size - math.ceil(threshold * size - _SLACK) + 1]
        candidates = {holder for element in rarest for holder in holders[element]}
        for other in sorted(candidates):
            if len(sets[other]) < threshold * size - _SLACK or groups.root(index) == groups.root(other):
                continue
            if jaccard(elements, sets[other]) >= threshold - _SLACK:
                yield index, other
        for element in rarest:
            holders[element].append(index)
