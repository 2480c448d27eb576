"""The certificate on networks drawn at random, measured independently from the stored weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from fuzz_certificate import DTYPES, PROJECTIONS, ROWS, UNITS, Case, draw, graph_of, measured
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = 200
"""In the profile of continuous integration; hypothesis multiplies them in the profile ``fuzz``."""


@st.composite
def cases(draw_: Any) -> Case:
    dtype = draw_(st.sampled_from(sorted(DTYPES)))
    pick = {
        "sizes": st.lists(st.integers(1, 24), min_size=3, max_size=5).map(tuple),
        "samples": st.sampled_from([1, 2, 4, 8, 12, 20, 50, 200]),
        "rows": st.sampled_from(ROWS),
        "units": st.sampled_from(UNITS[dtype]),
        "price": st.sampled_from((0,) if dtype == "float16" else (-40, 0, 40)),
        "projection": st.sampled_from(PROJECTIONS),
        "threshold": st.sampled_from([0.0, 0.1, 1.0]),
        "budget": st.sampled_from([1e-6, 1e-3, 0.05, 0.2, 1.0]),
        "radius": st.sampled_from([1e-4, 0.05, 0.3, 2.0]),
        "bias": st.booleans(),
        "shorter": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
    return Case(dtype=dtype, **{name: draw_(how) for name, how in pick.items()})


def check(case: Case) -> int:
    """Compare measured changes with the report; return how many layers had moved."""
    pytest.importorskip(DTYPES[case.dtype].rpartition(".")[2])
    report, layers = measured(case)
    for name, (change, bound) in layers.items():
        assert np.isfinite(bound), name
        assert change <= bound * (1 + 1e-6), name
    for layer in report.layers:
        assert layer.output_change <= layer.output_change_bound * (1 + 1e-6)
    return len(layers)


@settings(max_examples=settings().max_examples * CASES // 100)
@given(case=cases())
def test_no_output_changes_by_more_than_its_certificate(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_do_move_in_what_is_drawn(dtype: str) -> None:
    """Else there would be nothing to certify."""
    pytest.importorskip(DTYPES[dtype].rpartition(".")[2])
    rng = np.random.default_rng(0)
    drawn = [case for case in (draw(rng) for _ in range(150)) if case.dtype == dtype]
    assert sum(map(check, drawn)) >= len(drawn)


# Found by the script: each was a certificate that was too small, or an error.
FOUND = {
    "the norm of X was taken of a part of its rows": [
        Case(616542648, (2, 1, 1, 2), 200, "bfloat16", "collinear", -66, 40, budget=0.05,
             radius=0.05, bias=False),
        Case(1280277166, (2, 5, 4), 200, "float32", "scaled apart", 66, -40, budget=0.001,
             radius=2.0, shorter=True),
    ],
    "a share of a move is rounded again": [
        Case(1984543918, (3, 2, 3, 1), 2, "bfloat16", projection="cut", budget=1.0, radius=0.05,
             bias=False, shorter=True),
    ],
    "a change that is measured in subnormal numbers": [
        Case(1090092842, (2, 4, 5, 1, 2), 50, "float32", "zero", -66, -40, budget=0.001,
             radius=2.0, bias=False, shorter=True),
    ],
    "a single pass of projection, scaled up": [
        Case(950032951, (2, 2, 3, 4), 1, "float64", "collinear", 66, 40, budget=1e-06,
             radius=2.0),
    ],
    "small inputs next to the constant one of a bias": [
        Case(2033680261, (8, 5, 9, 5, 28), 2, "float32", "centred", -66, 40, projection="cut",
             radius=0.05),
        Case(2894982, (30, 8, 14), 8, "bfloat16", "near", -66, projection="half", budget=1.0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_once_went_wrong(name: str) -> None:
    for case in FOUND[name]:
        check(case)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("projection", ["budget", "threshold", "soft"])
@pytest.mark.parametrize("samples", [3, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_several_steps_it_is_the_sum(
    steps: int, projection: str, samples: int, dtype: str
) -> None:
    """Each at its own inputs."""
    case = Case(1, (5, 12, 10, 3), samples, dtype, projection=projection, threshold=0.1,
                budget=0.1, radius=0.05, steps=steps)  # fmt: skip
    assert check(case)


def test_the_measurement_would_see_a_change() -> None:
    case = Case(projection="none")
    graph = graph_of(case)
    assert type(graph.values[0]) is type(import_module(DTYPES[case.dtype]).asarray(0.0)[None])
    report, layers = measured(case)
    assert report.accepted
    for change, bound in layers.values():
        assert bound == pytest.approx(change, rel=1e-6)
        assert change > 1e-3
