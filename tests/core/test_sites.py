"""Layouts against NumPy's own ``as_strided``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from nullport._sites import DenseSite, Layout, matrix

MEMORY = np.arange(400)

axes = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), max_size=2).map(tuple)
layouts = st.builds(Layout, st.integers(0, 40), axes, axes, axes)


def _view(layout: Layout) -> Any:
    """The elements a layout names, as NumPy sees them, in the layout's order."""
    sizes = [size for size, _ in layout.axes]
    strides = [stride * MEMORY.itemsize for _, stride in layout.axes]
    return as_strided(MEMORY[layout.offset :], sizes, strides).reshape(-1)


@given(layout=layouts)
def test_elements(layout: Layout) -> None:
    assert layout.elements().tolist() == _view(layout).tolist()
    assert layout.size == len(_view(layout))
    assert layout.span() == (_view(layout).min(), _view(layout).max())


@given(a=layouts, b=layouts)
def test_overlaps(a: Layout, b: Layout) -> None:
    expected = bool(set(_view(a).tolist()) & set(_view(b).tolist()))
    assert a.overlaps(b) == b.overlaps(a) == expected


@given(a=layouts, b=layouts)
def test_equal_canonical_forms_name_the_same_matrix(a: Layout, b: Layout) -> None:
    if a.canonical == b.canonical:
        assert a.elements().tolist() == b.elements().tolist()
        for name in ("stack", "out", "inp"):
            sizes = [np.prod([s for s, _ in getattr(x, name)], dtype=int) for x in (a, b)]
            assert sizes[0] == sizes[1]


@given(layout=layouts, cut=st.sampled_from(["out", "inp"]), factor=st.integers(1, 3))
def test_canonical_does_not_depend_on_how_an_axis_is_split(
    layout: Layout, cut: str, factor: int
) -> None:
    old = getattr(layout, cut)
    inner = old[-1][0] * old[-1][1] if old else 1
    whole = (*old, (4 * factor, max(inner, 1)))
    size, stride = whole[-1]
    split = (*whole[:-1], (1, 77), (size // factor, stride * factor), (factor, stride))
    one = Layout(layout.offset, layout.stack, **_pair(layout, cut, whole))
    two = Layout(layout.offset, layout.stack, **_pair(layout, cut, split))
    assert one.canonical == two.canonical
    assert one.elements().tolist() == two.elements().tolist()


def _pair(layout: Layout, cut: str, axes: Any) -> dict[str, Any]:
    return {"out": layout.out, "inp": layout.inp, cut: axes}


def test_a_matrix_and_its_transpose_differ_but_share_all_elements() -> None:
    w = matrix((), 3, 4)
    t = Layout(0, (), w.inp, w.out)
    assert w.canonical != t.canonical
    assert w.overlaps(t)
    assert sorted(w.elements()) == sorted(t.elements())


def test_slices_of_a_packed_projection_are_apart() -> None:
    parts = [matrix((), 4, 6, offset=24 * i) for i in range(3)]
    whole = matrix((), 12, 6)
    for i, part in enumerate(parts):
        assert part.overlaps(whole)
        assert not any(part.overlaps(other) for other in parts[:i] + parts[i + 1 :])


def test_interleaved_columns_are_apart_though_their_spans_cross() -> None:
    even = Layout(0, (), ((3, 8),), ((4, 2),))
    odd = Layout(1, (), ((3, 8),), ((4, 2),))
    assert not even.overlaps(odd)
    assert even.overlaps(matrix((), 3, 8))


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
@pytest.mark.parametrize("inp", [5, None])
def test_matrix_is_row_major(stack: tuple[int, ...], inp: int | None) -> None:
    layout = matrix(stack, 4, inp, offset=7)
    assert layout.elements().tolist() == list(range(7, 7 + layout.size))
    assert tuple(size for size, _ in layout.stack) == stack
    assert layout.out[0][0] == 4
    assert (layout.inp == ()) == (inp is None)


@given(layout=layouts)
def test_elements_are_read_and_written_where_they_are(layout: Layout) -> None:
    found = layout.read(MEMORY)
    sizes = [int(np.prod([n for n, _ in part])) for part in (layout.out, layout.inp)]
    shape = tuple(n for n, _ in layout.stack) + tuple(sizes if layout.inp else sizes[:1])
    assert layout.shape == found.shape == shape
    assert found.reshape(-1).tolist() == _view(layout).tolist()
    if len({*layout.elements().tolist()}) == layout.size:  # no element twice
        written = layout.written(found + 1, MEMORY)
        expected = np.zeros_like(MEMORY)
        expected[layout.elements()] = layout.elements() + 1
        assert (written == expected).all()
        assert (layout.read(written) == found + 1).all()


@pytest.mark.parametrize(
    "layout",
    [
        matrix((), 3, 4),
        matrix((), 3, 4).mT,
        matrix((2,), 3, 2),
        matrix((), 2, 4, offset=4),
        Layout(1, (), ((3, 8),), ((4, 2),)),
        Layout(2, ((2, 12),), ((3, 4),), ((2, 1),)),
    ],
    ids=["whole", "transpose", "stack", "slice", "columns", "blocks"],
)
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4)])
def test_reading_and_writing_in_every_namespace(
    xp: Any, layout: Layout, shape: tuple[int, ...]
) -> None:
    array = xp.reshape(xp.arange(24, dtype=xp.float32), shape)
    found = layout.read(array)
    assert found.dtype == xp.float32
    assert type(found) is type(array)
    assert to_numpy(found).reshape(-1).tolist() == layout.elements().tolist()
    written = layout.written(found, array)
    assert written.shape == array.shape
    expected = np.zeros(24)
    expected[layout.elements()] = layout.elements()
    assert to_numpy(written).reshape(-1).tolist() == expected.tolist()
    assert layout.transposed == (layout.canonical == matrix((), 3, 4).mT.canonical)


def test_a_plain_product(xp: Any) -> None:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return xp.asarray(rng.standard_normal(shape))

    x, delta, weight, bias, probe = draw(4, 5), draw(4, 3), draw(3, 5), draw(3), draw(3)
    site = DenseSite("product", x, delta, xp.linalg.vector_norm(x))
    gradient = to_numpy(delta).T @ to_numpy(x)
    assert site.samples == 4
    assert np.allclose(to_numpy(site.weight_gradient(x)), gradient)
    contracted = to_numpy(site.weight_gradient(x, probe))
    assert contracted.shape == (1, 5)
    assert np.allclose(contracted, to_numpy(probe) @ gradient)
    assert np.allclose(to_numpy(site.bias_gradient()), to_numpy(delta).sum(axis=0))
    assert next(iter(site.rows())) is x
    assert (to_numpy(next(iter(site.rows(2)))) == to_numpy(x)[::2]).all()
    expected = to_numpy(x) @ to_numpy(weight).T
    assert np.allclose(to_numpy(site.apply(weight)), expected)
    assert np.allclose(to_numpy(site.apply(weight, bias)), expected + to_numpy(bias))
    with pytest.raises(ValueError, match="no cotangent: the loss does not depend on it"):
        DenseSite("product", x, None, site.output_norm).weight_gradient(x)


def test_a_move_in_a_wider_dtype_than_the_inputs() -> None:
    site = DenseSite("dense", np.ones((2, 3), np.float16), np.ones((2, 4), np.float16), np.ones(()))
    assert site.apply(np.ones((4, 3), np.float32)).dtype == np.float32
    assert site.weight_gradient(np.ones((2, 3), np.float32)).dtype == np.float32
