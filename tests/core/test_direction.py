"""Projected directions: the order in which tangents arrive, and every route to the same one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, relative, to_numpy, with_ones
from helpers.mlp_graph import MLPGraph
from hypothesis import given
from hypothesis import strategies as st

from nullport import TeleportConfig
from nullport._arrays import LowRank, dense
from nullport._capture import Block, Layer
from nullport._direction import Directions
from nullport.network import DenseSite, Linearization, Parameter, Site, matrix

EXACT = TeleportConfig(projection="threshold")
GAIN = TeleportConfig(projection=lambda shares: 1 / (1 + 20 * shares))


def draw(xp: Any, seed: int, *shape: int) -> Any:
    return xp.asarray(np.random.default_rng(seed).standard_normal(shape))


def site(xp: Any, seed: int, n: int, out: int, inp: int, stack: tuple[int, ...] = ()) -> DenseSite:
    x, delta = draw(xp, seed, *stack, n, inp), draw(xp, seed + 1, *stack, n, out)
    return DenseSite("dense", x, delta, xp.linalg.vector_norm(x))


class KnownByGradient:
    """A use of which the gradient of the weight is known, in the place of the inputs."""

    def __init__(self, plain: DenseSite) -> None:
        self.plain, self.inputs = plain, plain.weight_gradient(plain.inputs)
        self.kind, self.output_norm, self.cotangent = plain.kind, plain.output_norm, self.inputs
        self.samples, self.rows, self.apply = plain.samples, plain.rows, plain.apply

    def weight_gradient(self, inputs: Any, probe: Any = None) -> Any:
        return inputs


def layer(
    index: int, sites: list[Site], users: tuple[int, ...], config: TeleportConfig, *, bias: bool
) -> Layer:
    """Return a layer whose weight is parameter ``2 * index``, its bias the one after."""
    first = sites[users[0]]
    inp = first.inputs.shape[-1]
    out = first.weight_gradient(first.inputs).shape[-2]
    stack = tuple(first.inputs.shape[:-2])
    attached = (2 * index + 1, matrix(stack, out, None)) if bias else None
    block = Block(str(index), 2 * index, matrix(stack, out, inp), users, attached)
    one = first.output_norm
    samples = sum(sites[i].samples for i in users)
    exact = config.projection == "threshold"
    return Layer(block, "dense", samples, one < 0, one, one, False, exact, 0.0)


def collect(
    xp: Any,
    sites: list[Site],
    *users: tuple[int, ...],
    config: TeleportConfig = EXACT,
    bias: bool = False,
    **options: Any,
) -> Directions:
    graph = MLPGraph(xp, (3, 4, 2))
    graph._parameters = [Parameter(str(i)) for i in range(2 * len(users))]
    layers = [layer(b, sites, own, config, bias=bias) for b, own in enumerate(users)]
    how = {"length": 1.0, "scale": 1.0, "direct": None, "spaces": {}, "keep": False}
    lin = Linearization(xp.asarray(1.0), [], sites)
    return Directions(graph, layers, lin, config, **{**how, **options})


def receive(found: Directions, tangents: list[Any]) -> list[Any]:
    for i, tangent in enumerate(tangents):
        found.receive(i, tangent)
    found.finish()
    deltas = [found.found[b].delta for b in sorted(found.found)]
    return [None if d is None else to_numpy(dense(d)) for d in deltas]


def test_a_layer_is_finished_with_its_last_site() -> None:
    sites = [site(np, 10 * i, 3, 4, 6) for i in range(4)]
    tangents = [draw(np, 100 + i, 3, 6) for i in range(4)]
    one = collect(np, sites, (0,), (1, 3), (2,))
    seen = []
    for i, tangent in enumerate(tangents):
        one.receive(i, tangent)
        seen.append(sorted(one.found))
    assert seen == [[0], [0], [0, 2], [0, 1, 2]]
    expected = sum(sites[i].cotangent.T @ tangents[i] for i in (1, 3))
    expected = expected @ null_projector(np.concatenate([sites[i].inputs for i in (1, 3)]))
    scale = np.linalg.norm(sum(sites[i].cotangent.T @ tangents[i] for i in (1, 3)))
    assert np.linalg.norm(dense(one.found[1].delta) - expected) <= 1e-13 * scale


def test_a_site_that_is_passed_over_has_no_tangent() -> None:
    sites = [site(np, 10 * i, 3, 4, 6) for i in range(3)]
    one = collect(np, sites, (0,), (1,), (2,))
    one.receive(1, draw(np, 1, 3, 6))
    assert one.found[0].delta is None
    assert int(one.found[0].free) == 3, "the report tells of its null space all the same"
    assert sorted(one.found) == [0, 1]
    one.finish()
    assert one.found[2].delta is None


def test_the_order_is_that_of_the_sites() -> None:
    one = collect(np, [site(np, 10 * i, 3, 4, 6) for i in range(2)], (0,), (1,))
    one.receive(1, draw(np, 1, 3, 6))
    with pytest.raises(RuntimeError, match="site 0 arrived after that of a later site"):
        one.receive(0, draw(np, 1, 3, 6))


def test_nothing_is_held_longer_than_it_is_needed() -> None:
    sites = [site(np, 10 * i, 3, 4, 6) for i in range(3)]
    one = collect(np, sites, (0,), (2,))
    assert one.inputs(1) is None, "nobody asks for its tangent"
    assert one.inputs(0) is sites[0].inputs
    one.receive(0, draw(np, 1, 3, 6))
    assert one.inputs(0) is None
    assert one.inputs(2) is sites[2].inputs
    assert one.spaces == {}
    kept = collect(np, sites, (0,), (2,), keep=True)
    receive(kept, [draw(np, i, 3, 6) for i in range(3)])
    assert sorted(kept.spaces) == [0, 1]
    again = collect(np, sites, (0,), (2,), spaces=kept.spaces)
    receive(again, [draw(np, i, 3, 6) for i in range(3)])
    assert again.work == 0.0
    assert kept.work > 0.0


# Samples, outputs and inputs: projected rows left in factors, rows, or the formed product.
SHAPES = {"factors": (3, 12, 16), "rows": (3, 5, 9), "direction": (6, 4, 9)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stack", [(), (2,)], ids=["matrix", "stack"])
@pytest.mark.parametrize("config", [EXACT, GAIN], ids=["exact", "gain"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("route", SHAPES)
def test_every_route_leads_to_the_same_direction(
    xp: Any, route: str, direct: bool, config: TeleportConfig, stack: tuple[int, ...], bias: bool
) -> None:
    """``(delta^T Xdot / scale - direct) G`` for the gains ``G``, whichever product comes first."""
    n, out, inp = SHAPES[route]
    one, tangent = site(xp, 0, n, out, inp, stack), draw(xp, 5, *stack, n, inp)
    given = [draw(xp, 6, *stack, out, inp), draw(xp, 7, *stack, out)] if direct else None
    scale = xp.asarray(0.25)
    found = collect(xp, [one], (0,), config=config, bias=bias, direct=given, scale=scale)
    (delta,) = receive(found, [tangent])
    raw = found.found[0].delta
    assert isinstance(raw, LowRank) == (route == "factors" and not direct)
    assert (raw.right if isinstance(raw, LowRank) else raw).dtype == xp.float64
    x = to_numpy(one.inputs)
    product = np.swapaxes(to_numpy(one.cotangent), -1, -2) @ to_numpy(tangent)
    if bias:
        x = with_ones(x)
        product = np.concatenate([product, np.zeros((*product.shape[:-1], 1))], axis=-1)
    if direct:
        product = product / 0.25 - (
            np.concatenate([to_numpy(given[0]), to_numpy(given[1])[..., None]], axis=-1)
            if bias
            else to_numpy(given[0])
        )
    gains = null_projector(x)
    if config is GAIN:
        energies, u = np.linalg.eigh(np.swapaxes(x, -1, -2) @ x)
        shares = np.clip(energies, 0, None) / energies.sum(axis=-1, keepdims=True)
        gains = (u / (1 + 20 * shares)[..., None, :]) @ np.swapaxes(u, -1, -2)
    assert relative(delta, product @ gains) <= 1e-11
    assert float(found.found[0].size) == pytest.approx(np.linalg.norm(product @ gains))
    change = np.linalg.norm(x @ np.swapaxes(product @ gains, -1, -2))
    assert change <= float(found.found[0].bound) * (1 + 1e-9)
    if config is GAIN:
        assert float(found.found[0].change) == pytest.approx(change)


@given(n=st.integers(1, 6), out=st.integers(1, 5), inp=st.integers(7, 9))
def test_the_projection_removes_the_other_term_of_a_gradient(
    xp: Any, n: int, out: int, inp: int
) -> None:
    """(deltadot^T X + delta^T Xdot) P = (delta^T Xdot) P, whatever deltadot is."""
    plain = site(xp, 0, n, out, inp)
    whole = KnownByGradient(plain)
    tangent, other = draw(xp, 2, n, inp), draw(xp, 3, n, out)
    both = xp.matrix_transpose(other) @ plain.inputs
    both = both + xp.matrix_transpose(plain.cotangent) @ tangent
    (a,) = receive(collect(xp, [plain], (0,)), [tangent])
    (b,) = receive(collect(xp, [whole], (0,)), [both])
    expected = to_numpy(plain.cotangent).T @ to_numpy(tangent)
    expected = expected @ null_projector(to_numpy(plain.inputs))
    size = np.linalg.norm(to_numpy(both)) + 1.0
    assert np.linalg.norm(a - expected) <= 1e-12 * size
    assert np.linalg.norm(b - expected) <= 1e-12 * size


def test_a_site_without_cotangent_constrains_and_adds_nothing() -> None:
    first, second = (site(np, 10 * i, 3, 4, 9) for i in range(2))
    sites = [first, replace(second, cotangent=None)]
    tangents = [draw(np, 100 + i, 3, 9) for i in range(2)]
    (delta,) = receive(collect(np, sites, (0, 1)), tangents)
    both = np.concatenate([first.inputs, second.inputs])
    assert relative(delta, first.cotangent.T @ tangents[0] @ null_projector(both)) <= 1e-11


def test_a_direction_in_the_row_space_is_said_to_be() -> None:
    one = site(np, 0, 3, 4, 9)
    found = collect(np, [one], (0,))
    receive(found, [draw(np, 1, 3, 3) @ one.inputs])
    obstacles = found.found[0].obstacles(found._layers[0])
    assert {k.name for k, v in obstacles.items() if v} == {"SPANNED"}
