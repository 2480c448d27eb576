"""Following elements through changes of layout, against NumPy doing the same to their positions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_adapter.oracle import elements

from nullport.network import Change, Layout, LowRank
from nullport_jax._graph import JaxGraph
from nullport_jax._view import View, flat, refine, regroup, whole

Positions = npt.NDArray[np.int64]


def positions(view: View) -> Positions:
    """Return the flat position of every element of a view, in the view's shape."""
    layout = Layout(view.offset, (), flat(view.axes), ())
    return layout.elements().reshape([int(np.prod([n for n, _ in a])) for a in view.axes])


def factored(draw: st.DrawFn, size: int) -> list[int]:
    """Draw a shape with ``size`` elements."""
    shape = []
    while size > 1:
        divisors = [n for n in range(2, size + 1) if size % n == 0]
        shape.append(draw(st.sampled_from(divisors)))
        size //= shape[-1]
    shape += [1] * draw(st.integers(0, 1))
    return draw(st.permutations(shape))


def step(draw: st.DrawFn, view: View, array: Positions) -> tuple[View | None, Positions]:
    """Change the layout of both in the same way."""
    kind = draw(st.sampled_from(["reshape", "transpose", "slice", "broadcast"]))
    if kind == "reshape":
        shape = factored(draw, array.size)
        return view.reshaped(shape), array.reshape(shape)
    if kind == "transpose":
        order = draw(st.permutations(range(array.ndim)))
        return view.transposed(order), array.transpose(order)
    if kind == "broadcast":
        return view.broadcast((2, *array.shape), range(1, array.ndim + 1)), np.broadcast_to(
            array, (2, *array.shape)
        )
    cuts = []
    for n in array.shape:
        start = draw(st.integers(0, n - 1))
        cuts.append(slice(start, draw(st.integers(start + 1, n)), draw(st.integers(1, 2))))
    cut = array[tuple(cuts)]
    return view.sliced([c.start for c in cuts], cut.shape, [c.step for c in cuts]), cut


@settings(max_examples=300)
@given(st.data())
def test_a_view_says_where_elements_are(data: st.DataObject) -> None:
    draw: Any = data.draw
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    view: View | None = whole(0, shape, is_weight=True)
    array = np.arange(int(np.prod(shape))).reshape(shape)
    for _ in range(draw(st.integers(1, 4))):
        assert view is not None
        view, array = step(draw, view, array)
        if view is None:  # it may give up, but not be wrong
            return
        np.testing.assert_array_equal(positions(view), array)


@pytest.mark.parametrize(
    ("axes", "shape", "groups"),
    [
        (((6, 4), (4, 1)), (4, 6), (((4, 6),), ((6, 1),))),
        (((6, 4), (4, 1)), (2, 12), (((2, 12),), ((3, 4), (4, 1)))),
        (((6, 1), (4, 6)), (4, 6), None),
        (((6, 1),), (5,), None),
        (((6, 1),), (3,), None),
    ],
)
def test_regroup(axes: Any, shape: Any, groups: Any) -> None:
    assert regroup(axes, shape) == groups


def test_refine() -> None:
    assert refine(((6, 1),), ((2, 3), (3, 5))) == [(2, 3, 3), (3, 1, 5)]
    assert refine(((6, 1),), ((4, 1),)) is None
    assert refine(((2, 1),), ((2, 1), (2, 7))) is None


def holding(array: jax.Array) -> JaxGraph:
    return JaxGraph(lambda w: jnp.sum(w), array, ())


LAYOUTS = {
    "whole": Layout(0, (), ((6, 8),), ((8, 1),)),
    "transposed": Layout(0, (), ((8, 1),), ((6, 8),)),
    "stack": Layout(0, ((2, 24),), ((3, 8),), ((8, 1),)),
    "inner stack": Layout(0, ((2, 4),), ((6, 8),), ((4, 1),)),
    "columns": Layout(2, (), ((3, 1),), ((6, 8),)),
    "rows and columns": Layout(17, (), ((2, 8),), ((4, 1),)),
    "every other": Layout(1, (), ((3, 16),), ((4, 2),)),
    "split axes": Layout(0, (), ((2, 4), (2, 1)), ((6, 8), (2, 2))),
    "not nested": Layout(3, (), ((4, 8),), ((4, 2),)),
    "across rows": Layout(5, (), ((3, 11),), ((4, 2),)),
    "bias": Layout(4, (), ((4, 1),), ()),
    "one element": Layout(9, (), ((1, 1),), ((1, 1),)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_reading_and_moving(layout: Layout) -> None:
    array = np.random.default_rng(0).standard_normal((6, 8))
    inside = elements(array, layout)
    graph = holding(jnp.asarray(array))
    np.testing.assert_array_equal(graph.read(0, graph.params, layout), inside)
    change = np.random.default_rng(1).standard_normal(inside.shape)
    expected = array.copy().reshape(-1)
    expected[layout.elements()] += change.reshape(-1)
    graph.move([Change(0, layout, jnp.asarray(change))])
    np.testing.assert_array_equal(graph.params, expected.reshape(6, 8))


def test_moving_in_factors_and_in_low_precision() -> None:
    layout = LAYOUTS["transposed"]
    graph = holding(jnp.ones((6, 8), jnp.bfloat16))
    left, right = jnp.ones((3, 8)), jnp.full((3, 6), 0.5)
    graph.move([Change(0, layout, LowRank(left, right))])
    assert graph.params.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(graph.params, np.float64), np.full((6, 8), 2.5))
