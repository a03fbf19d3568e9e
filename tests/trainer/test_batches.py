"""Batches ask for the tokens that rows label, each once and at the place before it, in few shapes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.demo.batches import WIDTHS, Batch, make_batches
from services.trainer.demo.recipe import Recipe
from services.trainer.encode import IGNORED, Row

RECIPE = replace(Recipe(), batch_tokens=512, beginning=3, beginning_weight=4.0)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    prompt, reply = draw(st.integers(1, 200)), draw(st.integers(1, 60))
    ids = [draw(st.integers(1, 9)) for _ in range(3)] * (prompt + reply)
    ids = ids[: prompt + reply]
    return Row(ids, [IGNORED] * prompt + ids[prompt:])


def asked(batch: Batch, i: int) -> list[tuple[int, int, float]]:
    """Of row `i`: (place, wanted token, weight) of what counts."""
    row = zip(batch.labels[i].tolist(), batch.weights[i].tolist(), strict=True)
    return [(place, label, weight) for place, (label, weight) in enumerate(row) if weight]


def wanted(row: Row) -> list[tuple[int, int, float]]:
    places = [i for i, label in enumerate(row.labels) if label != IGNORED]
    return [(i - 1, row.labels[i], 4.0 if n < 3 else 1.0) for n, i in enumerate(places)]


@given(some=st.lists(rows(), max_size=12), seed=st.integers(0, 9))
def test_every_labelled_token_is_asked_for_once_at_the_place_before_it(some: list[Row], seed: int) -> None:
    batches = make_batches(some, RECIPE, random.Random(seed))
    found = sorted(a for b in batches for i in range(len(b.ids)) if (a := asked(b, i)))
    assert found == sorted(wanted(row) for row in some)


@given(some=st.lists(rows(), max_size=12))
def test_ids_are_the_rows_and_zeros(some: list[Row]) -> None:
    batches = make_batches(some, RECIPE, random.Random(0))
    kept = sorted(tuple(i for i in line if i) for b in batches for line in b.ids.tolist() if any(line))
    assert kept == sorted(tuple(row.ids) for row in some)


def test_shapes_are_few() -> None:
    rng = random.Random(1)
    some = [Row([1] * n, [IGNORED] * (n - 1) + [1]) for n in (rng.randint(2, 400) for _ in range(300))]
    batches = make_batches(some, RECIPE, rng)
    shapes = {b.ids.shape for b in batches}
    assert {width for _, width in shapes} <= set(WIDTHS)
    assert all(height == max(1, 512 // width) for height, width in shapes)
    assert sum(b.ids.size for b in batches) < 1.5 * sum(len(row.ids) for row in some)


def test_a_row_too_long_for_any_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the longest may have"):
        make_batches([Row([1] * 5000, [1] * 5000)], RECIPE, random.Random(0))
