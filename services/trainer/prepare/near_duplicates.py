"""Groups of texts that are the same or nearly: exact Jaccard similarity of character n-grams, without comparing all pairs.

Two sets with similarity t or more share one of the rarest few elements of each (the prefix filter of Bayardo, Ma and Srikant,
"Scaling Up All Pairs Similarity Search", 2007). Unlike MinHash this misses nothing and has no seed.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from services.trainer.prepare.texts import comparable

# Characters of an n-gram. Two where a character is a syllable with a meaning: with three, a question of 20 characters in which
# one word is another would share but 64 % of them.
_WIDTH, _CJK_WIDTH = 3, 2
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
Progress = Callable[[Sequence[int]], Iterable[int]]
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


def join_similar(
    texts: Mapping[int, str], threshold: float, groups: Groups, progress: Progress = lambda indices: indices
) -> None:
    """Joins the indices whose texts are equal or reach the similarity `threshold`, in (0, 1].

    Compares letters, digits and ideographs alone, case and width ignored. Groups are closed: like of a like belongs too.
    """
    first_with: dict[str, int] = {}
    for index, text in texts.items():
        groups.join(index, first_with.setdefault(comparable(text), index))
    sets = {index: character_ngrams(text) for text, index in first_with.items()}
    for one, other in _similar_pairs(sets, threshold, groups, progress):
        groups.join(one, other)


def find_similar(texts: Sequence[str], references: Sequence[str], threshold: float) -> dict[int, int]:
    """For each text that is like a reference, the index of the text and of the reference it is most like."""
    sets = [character_ngrams(comparable(reference)) for reference in references]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index, elements in enumerate(sets):
        for element in elements:
            holders[element].append(index)
    found: dict[int, int] = {}
    for number, text in enumerate(texts):
        elements = character_ngrams(comparable(text))
        candidates = {index for element in elements for index in holders.get(element, ())}
        best = max(candidates, key=lambda index: (jaccard(elements, sets[index]), -index), default=None)
        if best is not None and jaccard(elements, sets[best]) >= threshold - _SLACK:
            found[number] = best
    return found


def character_ngrams(text: str) -> frozenset[str]:
    """Every run of three characters of a comparable text, of two in Chinese; a shorter text whole."""
    width = _CJK_WIDTH if _CJK.search(text) else _WIDTH
    if len(text) <= width:
        return frozenset([text])
    return frozenset(text[i : i + width] for i in range(len(text) - width + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _similar_pairs(
    sets: Mapping[int, frozenset[str]], threshold: float, groups: Groups, progress: Progress
) -> Iterable[tuple[int, int]]:
    """Pairs that reach the threshold, but for those which the caller has joined by then through others."""
    frequency = Counter(element for elements in sets.values() for element in elements)
    holders: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # set, and the element's place in it
    for index in progress(sorted(sets, key=lambda i: (len(sets[i]), i))):
        rarest = sorted(sets[index], key=lambda element: (frequency[element], element))
        size = len(rarest)
        rarest = rarest[: size - math.ceil(threshold * size - _SLACK) + 1]
        for other in _candidates(rarest, size, sets, holders, threshold):
            if groups.root(index) != groups.root(other) and jaccard(sets[index], sets[other]) >= threshold - _SLACK:
                yield index, other
        for place, element in enumerate(rarest):
            holders[element].append((index, place))


def _candidates(
    rarest: Sequence[str],
    size: int,
    sets: Mapping[int, frozenset[str]],
    holders: Mapping[str, list[tuple[int, int]]],
    threshold: float,
) -> list[int]:
    """Smaller sets that may reach the threshold: sets are ordered, so what follows two shared elements bounds the rest.

    The positional filter of Xiao, Wang, Lin and Yu, "Efficient Similarity Joins for Near Duplicate Detection", 2008.
    """
    shared: dict[int, int] = {}
    for place, element in enumerate(rarest):
        for other, other_place in holders.get(element, ()):
            other_size, before = len(sets[other]), shared.get(other, 0)
            needed = threshold / (1 + threshold) * (size + other_size) - _SLACK
            most = before + 1 + min(size - place, other_size - other_place) - 1
            ruled_out = before < 0 or most < needed or other_size < threshold * size - _SLACK
            shared[other] = -1 if ruled_out else before + 1
    return sorted(other for other, count in shared.items() if count > 0)
