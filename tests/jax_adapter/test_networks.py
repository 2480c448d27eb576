"""Every way of writing a network: what is captured, the direction, and the loss after a move."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers.dense import numerical_rank, relative
from jax_adapter.models import MODELS, Built, Model
from jax_adapter.oracle import (
    Found,
    Matrix,
    elements,
    find,
    floats,
    gradients,
    move_at_random,
    projected,
)

from nullport.network import Layout
from nullport_jax._graph import JaxGraph

EVERY_MODEL = pytest.mark.parametrize("model", MODELS, ids=repr)


@cache
def _found(model: Model) -> tuple[Built, Found, dict[str, Matrix], dict[str, Matrix]]:
    built = model.make()
    return built, find(built), *gradients(built)


@EVERY_MODEL
def test_the_sites_explain_the_gradient(model: Model) -> None:
    """The sum of ``delta^T X`` over the sites of a weight is its gradient, as is a bias's."""
    built, found, expected, _ = _found(model)
    assert len({use.site for use in found.uses} - {None}) == model.sites
    assert found.loss == pytest.approx(float(built.loss(built.params, *built.batch)))
    sums: dict[tuple[str, Layout], Matrix] = {}
    for use, part in zip(found.uses, found.parts, strict=True):
        if part is not None and use.layout is not None:
            key = found.parameters[use.parameter].name, use.layout
            sums[key] = sums.get(key, 0.0) + part
    for (name, layout), total in sums.items():
        wanted = elements(expected[name], layout)
        assert total.shape == wanted.shape, name
        assert np.linalg.norm(total - wanted) <= 1e-12 * max(1.0, np.linalg.norm(wanted)), name
    for parameter, gradient in zip(found.parameters, found.gradient, strict=True):
        assert (gradient is None) == (parameter.name not in expected)
        if gradient is not None:
            assert np.allclose(gradient, expected[parameter.name], rtol=1e-10, atol=1e-14)


@EVERY_MODEL
def test_the_direction_is_the_projected_double_gradient(model: Model) -> None:
    _, found, _, objective = _found(model)
    assert {block.name.replace(" ", "_") for block in found.blocks} == model.moving
    assert max(found.unexplained) <= 1e-12
    for block, rows, got in zip(found.blocks, found.rows, found.directions, strict=True):
        n, d = rows.shape[-2:]
        matrix = found.matrix(block, objective)
        assert got.shape == matrix.shape
        if block.name in model.still:
            assert np.linalg.norm(got) <= 1e-12 * np.linalg.norm(matrix)
            continue
        ranks = {numerical_rank(one) for one in rows.reshape(-1, n, d)}
        assert max(ranks) < d, f"{block.name} has no null space: {n} rows of {d}"
        expected = projected(matrix, rows)
        if n > d or ranks == {n}:
            assert relative(got, expected) <= model.tolerance, block.name
        else:  # QR of rank-deficient rows gives up some freedom, and no more than that
            left = np.sum(got * expected) / np.sum(got * got)
            assert left == pytest.approx(1.0, abs=model.tolerance), block.name


@EVERY_MODEL
def test_the_loss_stays_and_nothing_else_moves(model: Model) -> None:
    """Random moves in the null space of the captured rows, judged by the user's own loss."""
    built, found, _, _ = _found(model)
    start = {name: np.asarray(leaf) for name, leaf in floats(built.params).items()}
    graph, changed = move_at_random(built, found)
    assert float(built.loss(graph.params, *built.batch)) == pytest.approx(found.loss, rel=1e-11)
    for name, leaf in floats(graph.params).items():
        same = np.asarray(leaf).reshape(-1) == start[name].reshape(-1)
        assert np.array_equal(~same, changed[name]), name
    graph.keep(0.0)
    for name, leaf in floats(graph.params).items():
        assert np.array_equal(leaf, start[name])


@EVERY_MODEL
def test_rows_times_weight_is_the_output(model: Model) -> None:
    built, found, _, _ = _found(model)
    start = {name: np.asarray(leaf) for name, leaf in floats(built.params).items()}
    for block, rows, norm in zip(found.blocks, found.rows, found.norms, strict=True):
        weight = elements(start[found.parameters[block.parameter].name], block.layout)
        inputs = rows[..., : weight.shape[-1]]
        assert np.linalg.norm(inputs @ weight.swapaxes(-1, -2)) == pytest.approx(norm, rel=1e-12)


REUSING = [m for m in MODELS if m.name in ("products", "layers in a scan", "remat", "equinox CNN")]


@pytest.mark.parametrize("model", REUSING, ids=repr)
def test_known_outputs_change_nothing(model: Model) -> None:
    """After a move in the null space: gradient and tangents with the products left out."""
    built, found, _, _ = _found(model)
    graph, _ = move_at_random(built, found)
    before = JaxGraph(built.loss, built.params, built.batch)
    first = before.linearize(again=True)
    before._weights = graph.weights()
    lin, expected = before.linearize(unchanged=True, again=True), graph.linearize()
    assert lin.reused
    assert not first.reused
    assert not expected.reused
    pairs = list(zip(lin.gradients, expected.gradients, strict=True))
    pairs += [(a.inputs, b.inputs) for a, b in zip(lin.sites, expected.sites, strict=True)]
    pairs += [(a.cotangent, b.cotangent) for a, b in zip(lin.sites, expected.sites, strict=True)]
    tangents: list[dict[int, Any]] = [{}, {}]
    for one, into in zip((before, graph), tangents, strict=True):
        one.jvp(expected.gradients, into.__setitem__)
    assert tangents[0].keys() == tangents[1].keys()
    assert 0 not in tangents[0], "the inputs of a first layer have no tangent"
    pairs += [(tangents[0][i], tangents[1][i]) for i in tangents[0]]
    for got, wanted in pairs:
        if wanted is not None:
            assert relative(np.asarray(got), np.asarray(wanted)) <= 1e-10
