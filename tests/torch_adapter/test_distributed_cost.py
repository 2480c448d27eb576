"""What joint teleports exchange and hold, against the formulas of ``docs/scaling-out.md``."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from helpers.ranks import on_ranks
from torch_adapter import cost

NUMBER, CHECKSUM, WORDS = 8, 8, 24
"""Bytes of a weight (float64 here), of a weight's checksum, and of what a rank says of itself."""

RANKS = (2, 4, 8)


def _received(ranks: int, samples: int, others: bool) -> int:
    """Return the bytes that a rank receives."""
    joint, layers = ranks * samples, len(cost.SIZES)
    weights = sum(out * (inp + 1) for out, inp in cost.SIZES)
    numbers = (3 if others else 2) * weights + 2 * layers  # and norms of cotangents
    for index, (out, inp) in enumerate(cost.SIZES):
        numbers += inp + out  # that nothing was missed in the gradients of weight and bias
        assert joint <= inp  # else there is a Gram matrix instead of the rows
        numbers += joint * (inp + 1)
        if index == 0:  # its inputs have no tangent
            continue
        if joint > out:
            numbers += out * inp
        elif 4 * joint > min(out, inp):
            numbers += out * (inp + 1)
        else:
            numbers += joint * (out + inp + 1)
    meetings = 12 + 22 * layers + _in_factors(joint) + (2 * layers + 6 if others else 0)
    return NUMBER * numbers + CHECKSUM * 2 * ranks * 2 * layers + WORDS * ranks * meetings


def _in_factors(joint: int) -> int:
    """Return how many layers have so few samples that their direction stays in factors."""
    return sum(4 * joint <= min(out, inp) for out, inp in cost.SIZES[1:])


@pytest.fixture(scope="module", params=RANKS)
def found(request: pytest.FixtureRequest) -> Any:
    ranks: int = request.param
    return ranks, on_ranks(ranks, _both)


def _both(rank: int) -> dict[bool, Any]:
    return {others: cost.exchanged(rank, 4, others) for others in (False, True)}


@pytest.mark.parametrize("others", [False, True], ids=["grad_norm", "look_ahead"])
def test_bytes_are_those_of_the_formula(others: bool, found: Any) -> None:
    ranks, rows = found
    for row in rows:
        assert row[others]["accepted"]
        assert row[others]["received"] == _received(ranks, 4, others)


@pytest.mark.parametrize("others", [False, True], ids=["grad_norm", "look_ahead"])
def test_exchanges_are_those_of_the_formula(others: bool, found: Any) -> None:
    ranks, rows = found
    layers = len(cost.SIZES)
    expected = 21 + 30 * layers + 2 * _in_factors(4 * ranks) + (4 * layers + 7 if others else 0)
    for row in rows:
        assert row[others]["exchanges"] == expected


def test_no_rank_holds_all_weights_at_once() -> None:
    """Per layer there are parts of its gradient, of its direction and of what undoes its move."""
    ranks, depths = 4, (8, 16)
    weight = 64 * 64 * 4
    for row in on_ranks(ranks, partial(cost.peaks, depths=depths)):
        (_, few, *_), (_, many, accepted, moved) = row[8], row[16]
        assert accepted
        assert moved == depths[1]
        per_layer = (many - few) / (depths[1] - depths[0]) / weight
        assert per_layer <= 3 / ranks + 0.15  # activations, biases, and the allocator's rounding
        assert per_layer >= 2 / ranks
