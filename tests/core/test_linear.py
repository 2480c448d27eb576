"""Parts of matrices that are made of parameters, against the matrix itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nullport._linear import LARGEST, layout_of, separated, strides
from nullport.network import DenseSite, NotSeparable, Part, parts

Matrix = npt.NDArray[Any]
RNG = np.random.default_rng(0)
W, U = RNG.standard_normal((6, 5)), RNG.standard_normal((4, 5))
STARTS = [0, W.size]
PW, PU = np.arange(W.size).reshape(W.shape), W.size + np.arange(U.size).reshape(U.shape)
ALL = np.concatenate([W.ravel(), U.ravel()])

CASES: dict[str, tuple[Matrix, list[Matrix]]] = {
    "whole": (PW[None], []),
    "permuted": (PW[[3, 0, 5, 1, 2, 4]][:, ::-1][None], []),
    "transposed": (PW.T[None], []),
    "rows together": (np.concatenate([PU, PW])[None], []),
    "columns together": (np.concatenate([PW[:4], PU], axis=1)[None], []),
    "with gaps": (np.concatenate([PU, np.full((2, 5), -1)])[None], []),
    "repeated rows": (PW[[0, 1, 1, 3, 0]][None], [RNG.standard_normal((1, 5, 1))]),
    "repeated columns": (PW[:, [0, 4, 4, 1]][None], [RNG.standard_normal((1, 1, 4))]),
    "matrices by index": (np.stack([PW, PW, PW]), []),
    "stacked": (np.stack([PW[:4], PU]), [RNG.standard_normal((2, 1, 1))]),
    "scaled": (PW[None], [np.full((1, 1, 1), -2.0), RNG.standard_normal((1, 6, 1))]),
    "masked": (PW[None], [RNG.standard_normal((1, 6, 5)) * (PW % 3 > 0)]),
    "masked stack": (np.stack([PW[:4], PU]), [RNG.standard_normal((2, 4, 5))]),
}


def _matrix(positions: Matrix, factors: list[Matrix], values: Matrix) -> Matrix:
    m = np.where(positions >= 0, values[np.maximum(positions, 0)], 0.0)
    for factor in factors:
        m = m * factor
    return m


def _value(part: Part, values: Matrix) -> Matrix:
    own = values[: W.size] if part.parameter == 0 else values[W.size :]
    found: Matrix = part.layout.read(own)
    return found


@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_matrix(name: str) -> None:
    positions, factors = CASES[name]
    found = parts(positions, STARTS, factors)
    total = sum(p.spread(_value(p, ALL)).reshape(positions.shape) for p in found)
    assert np.allclose(total, _matrix(positions, factors, ALL))


@pytest.mark.parametrize("name", CASES)
def test_a_site_of_a_part_has_its_gradient_and_its_null_space(name: str) -> None:
    positions, factors = CASES[name]
    stack, out, inp = positions.shape
    x, delta = RNG.standard_normal((stack, 3, inp)), RNG.standard_normal((stack, 3, out))
    whole = DenseSite("product", x, delta, np.asarray(1.0))
    gradient = (delta.swapaxes(1, 2) @ x) * np.prod(np.broadcast_arrays(*factors, 1.0), axis=0)
    for part in parts(positions, STARTS, factors):
        expected = np.zeros(ALL.size)
        own = positions >= 0
        np.add.at(expected, positions[own], np.broadcast_to(gradient, positions.shape)[own])
        held = DenseSite("product", part.held(x, dense=True), delta, whole.output_norm)
        site = part.site(held)
        found = site.weight_gradient(site.inputs)
        assert np.allclose(found, _value(part, expected))
        z = RNG.standard_normal(found.shape[-2])
        probed = site.weight_gradient(site.inputs, z)
        assert np.allclose(probed[..., 0, :], np.einsum("...oi,o->...i", found, z))
        rows = np.concatenate(list(site.rows()), axis=-2)
        moved = RNG.standard_normal(found.shape)
        moved = moved - moved @ np.linalg.pinv(rows) @ rows
        m = part.spread(moved).reshape(positions.shape)
        assert np.abs(x @ m.swapaxes(1, 2)).max() <= 1e-12 * (1 + np.abs(m).max())


@pytest.mark.parametrize("name", ["masked", "masked stack"])
def test_a_masked_site_applies_other_weights(name: str) -> None:
    positions, factors = CASES[name]
    x = RNG.standard_normal((positions.shape[0], 3, positions.shape[2]))
    x = x[0] if len(x) == 1 else x
    for part in parts(positions, STARTS, factors):
        site = part.site(DenseSite("product", x, None, np.asarray(1.0)))
        weight = RNG.standard_normal(part.layout.shape)
        expected = x @ np.swapaxes(part.spread(weight), -1, -2)
        assert np.allclose(site.apply(weight), expected)


REFUSED = {
    "no rectangle": np.tril(PW[:5] + 1)[None] - 1,
    "twice on the diagonal": np.where(np.eye(5, 5, dtype=bool), PW[0, 0], PW[:5])[None],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_patterns_are_refused(name: str) -> None:
    with pytest.raises(NotSeparable):
        parts(REFUSED[name], STARTS)


def test_a_mask_that_costs_too_much_is_refused() -> None:
    mask = RNG.standard_normal((1, 6, 5))
    assert parts(PW[None], STARTS, [mask], rows=3)
    with pytest.raises(NotSeparable, match="masked, with too many inputs"):
        parts(np.broadcast_to(np.arange(1 << 20).reshape(1, 1024, 1024), (1, 1024, 1024)),
              [0], [np.ones((1, 1024, 1024))], rows=LARGEST)  # fmt: skip


def test_strides_are_found_wherever_there_are_some() -> None:
    assert layout_of(PW[None]).index is None
    assert layout_of(PW.T[None]).canonical == layout_of(PW[None]).mT.canonical
    assert layout_of(PW[:, [0, 1, 2, 4]][None]).index is not None
    assert strides(np.asarray([0, 1, 5])) is None
    assert strides(np.asarray([0, 0])) is None


def test_factors_come_apart_where_they_can() -> None:
    r, c = RNG.standard_normal((1, 6, 1)), RNG.standard_normal((1, 1, 5))
    for factor, kinds in ((0 * r * c + 2, [(1, 6, 1)]), (r + 0 * c, [(1, 6, 1)])):
        found = separated(factor)
        assert [f.shape for f in found] == kinds
        assert np.allclose(found[0] + 0 * c, factor)
    assert [f.shape for f in separated(0 * r + c)] == [(1, 1, 5)]
    both = separated(r * c)
    assert [f.shape for f in both] == [(1, 6, 1), (1, 1, 5)]
    assert np.allclose(both[0] * both[1], r * c)
    full = RNG.standard_normal((1, 6, 5))
    assert separated(full)[0] is full
