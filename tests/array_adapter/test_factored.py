"""Moves along gradients that are not formed, against the same with formed gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from array_adapter.graphs import Problem
from array_adapter.layer_reference import PLACES, error, place

from nullport import TeleportConfig, _factored
from nullport._objective import scaled
from nullport_arrays import teleport
from nullport_arrays._network import NetworkGraph, NetworkProgram
from nullport_arrays.layers import (
    SILENT,
    Attention,
    CrossEntropy,
    Dense,
    Embedding,
    Flatten,
    Layer,
    Mean,
    Params,
    Residual,
    Sequential,
    Tanh,
    Watch,
    flatten,
)

WIDTH, SAMPLES = 32, 3
RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((SAMPLES, WIDTH)), np.arange(SAMPLES) % 4


@dataclass(frozen=True, init=False)
class Own(Dense):
    """A product as users wrote it before layers could ask anything of a watch."""

    def forward(self, params: Params, x: Any, watch: Watch = SILENT) -> tuple[Any, Any]:
        watch(self, x)
        y = self._product(x, params["weight"])
        watch.product(self, y)
        return y + params["bias"], x

    def pullback(
        self, params: Params, cache: Any, dy: Any, watch: Watch = SILENT
    ) -> tuple[Any, Params]:
        watch(self, dy)
        return dy @ params["weight"], {"weight": dy.T @ cache, "bias": dy.sum(axis=0)}


def dense(outputs: int = WIDTH) -> Dense:
    return Dense(WIDTH, outputs)


def problem(network: Layer, x: Any = X) -> Problem:
    return Problem(network, CrossEntropy(), x, Y[: len(x)])


CHAIN = problem(Sequential(dense(), Tanh(), dense(), Tanh(), dense(4)))
PROBLEMS = {
    "chain": CHAIN,
    "no bias": problem(Sequential(Dense(WIDTH, WIDTH, bias=False), Tanh(), dense(), dense(4))),
    "flat batch, residual": problem(
        Sequential(Flatten(), Residual(Sequential(dense(), Tanh(), dense())), dense(4)),
        X.reshape(SAMPLES, 4, 8),
    ),
    "rows in two axes": problem(
        Sequential(Embedding(9, WIDTH), dense(), Attention(WIDTH, 2), Mean(), dense(4)),
        RNG.integers(0, 9, (1, 3)),
    ),
    "one of the user's own": problem(
        Sequential(dense(), Tanh(), Own(WIDTH, WIDTH), Tanh(), dense(), dense(4))
    ),
}
every_problem = pytest.mark.parametrize("one", PROBLEMS.values(), ids=PROBLEMS)


def names(graph: NetworkGraph, parameters: Any) -> list[str]:
    return [graph.parameters[i].name for i in parameters]


def replayed(graph: NetworkGraph, v: Any, along: Any = None) -> dict[int, Any]:
    found: dict[int, Any] = {}
    graph.replay(v, np.asarray(0.5), found.__setitem__, along)
    return found


@every_problem
def test_inputs_are_those_of_weights_moved_along_the_formed_gradient(one: Problem) -> None:
    with place("numpy") as here:
        graph = one.graph(here)
    lin = graph.linearize()
    sites = {u.site: u.parameter for u in lin.uses if u.role == "weight" and u.site is not None}
    sites = {site: sites[site] for site in lin.factored}
    assert len(sites) >= 3
    rest = [None if i in sites.values() else g for i, g in enumerate(lin.gradients)]
    along = {site: lin.sites[site] for site in sites}
    got, expected = replayed(graph, rest, along), replayed(graph, lin.gradients)
    assert along == {}, "factors of sites that have been passed are let go of"
    assert list(got) == list(expected)
    assert len(got) >= 2
    for i, theirs in expected.items():
        assert np.allclose(got[i], theirs, rtol=1e-12, atol=1e-13)
        assert not np.allclose(theirs, lin.sites[i].inputs)


def moved(one: Problem, config: TeleportConfig, name: str = "numpy") -> tuple[Any, Any]:
    with place(name) as here:
        graph = one.graph(here)
        report = teleport(graph, config)
        return here.back(graph.params), report


@pytest.mark.parametrize("steps", [1, 3])
@every_problem
def test_a_teleport_is_the_same_without_factors(
    one: Problem, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TeleportConfig(tangent="fd", steps=steps, radius=0.1, objective="grad_norm")
    mine, report = moved(one, config)
    assert report.accepted, report.reason
    monkeypatch.setattr(_factored, "FEWER", 10**9)
    theirs, plain = moved(one, config)
    # A difference has eight digits, of which the two ways round differently.
    assert error(mine, theirs) <= 1e-7
    assert error(one.params(), theirs) >= 1e-3
    assert report.grad_norm_after == pytest.approx(plain.grad_norm_after, rel=1e-7)


@pytest.mark.parametrize("name", [p for p in PLACES if p not in ("numpy", "jax-jit")])
def test_every_namespace_moves_along(name: str) -> None:
    config = TeleportConfig(tangent="fd", steps=2, radius=0.1, objective="grad_norm")
    expected, _ = moved(CHAIN, config)
    found, report = moved(CHAIN, config, name)
    assert report.accepted
    assert error(found, expected) <= 1e-7


def test_gradients_that_are_omitted_are_not_formed_and_change_nothing_else() -> None:
    with place("numpy") as here:
        graph = CHAIN.graph(here)
    whole = graph.linearize(again=True)
    omit = [i for i, p in enumerate(graph.parameters) if p.name in ("0.weight", "2.weight")]
    part = graph.linearize(unchanged=True, omit=omit)
    assert part.reused
    gone = [i for i, g in enumerate(part.gradients) if g is None]
    assert names(graph, gone) == ["0.weight", "2.weight"]
    for mine, theirs in zip(part.gradients, whole.gradients, strict=True):
        assert mine is None or np.array_equal(mine, theirs)
    for one, other in zip(part.sites, whole.sites, strict=True):
        assert np.array_equal(one.cotangent, other.cotangent)
    asked = Watch(lambda *_: None, wanted=lambda path: path != "2")
    _, cache = CHAIN.network.forward(CHAIN.params(), X)
    _, grads = CHAIN.network.pullback(CHAIN.params(), cache, np.ones((SAMPLES, 4)), asked)
    assert [name for name, g in flatten(grads).items() if g is None] == ["2.weight"]


@pytest.mark.parametrize(
    ("objective", "tangent", "few"),
    [
        ("grad_norm", "fd", True),
        ("grad_norm", "jvp", False),
        (lambda g: [2 * a for a in g], "fd", False),
    ],
    ids=["differences of the gradient", "forward mode", "another objective"],
)
def test_later_steps_form_no_gradient_that_sites_know(
    objective: Any, tangent: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    plain = NetworkProgram.linearize

    def watched(self: NetworkProgram, weights: Any, **options: Any) -> Any:
        lin = plain(self, weights, **options)
        seen.append([self.names[i] for i, g in enumerate(lin.gradients) if g is None])
        return lin

    monkeypatch.setattr(NetworkProgram, "linearize", watched)
    config = TeleportConfig(objective=objective, tangent=tangent, steps=3, radius=1e-3)
    _, report = moved(CHAIN, config)
    assert report.accepted
    omitted = ["0.weight", "2.weight"] if few else []
    assert seen == [[], omitted, omitted]


def test_layers_that_never_ask_are_not_moved_along() -> None:
    one = PROBLEMS["one of the user's own"]
    with place("numpy") as here:
        graph = one.graph(here)
    lin = graph.linearize()
    assert list(lin.factored) == [0, 2, 3]
    own = next(i for i, p in enumerate(graph.parameters) if p.name == "2.weight")
    config = TeleportConfig(tangent="fd", steps=3, radius=0.1, objective="grad_norm")
    assert lin.gradients[own] is not None
    assert teleport(graph, config).accepted


def test_a_layer_on_the_batch_itself_is_handed_no_difference() -> None:
    with place("numpy") as here:
        graphs = {name: one.graph(here) for name, one in PROBLEMS.items()}
    for name, graph in graphs.items():
        lin = graph.linearize()
        first = 0 if name == "rows in two axes" else 1  # there the table is before it
        assert min(replayed(graph, lin.gradients)) == first, name
    config = TeleportConfig(tangent="fd", radius=0.1, objective="grad_norm")
    graph = graphs["chain"]
    before = graph.params
    assert teleport(graph, config).accepted
    assert graph.params["0"]["weight"] is before["0"]["weight"]
    assert not np.array_equal(graph.params["2"]["weight"], before["2"]["weight"])


@pytest.mark.parametrize("shape", [(SAMPLES, WIDTH), (1, SAMPLES, WIDTH), (WIDTH,)])
def test_a_dense_layer_adds_what_it_is_told(shape: tuple[int, ...]) -> None:
    layer, x = dense(5), RNG.standard_normal(shape)
    params = layer.init(np.random.default_rng(0))
    change = RNG.standard_normal((5, WIDTH))
    seen: list[str] = []

    def added(path: str, asking: Any, rows: Any) -> Any:
        assert asking is layer
        seen.append(path)
        return rows @ change.T

    watch = Watch(lambda *_: None, "here", added=added)
    found, _ = layer.forward(params, x, watch)
    expected, _ = layer.forward({**params, "weight": params["weight"] + change}, x)
    assert found.shape == expected.shape
    assert error(found, expected) <= 1e-6
    assert error(layer.forward(params, x)[0], expected) >= 1e-2
    assert seen == ["here"]


def test_factors_keep_the_dtype_of_the_network() -> None:
    with place("numpy") as here:
        graph = CHAIN.graph(here, "float32")
    lin = graph.linearize()
    step = np.asarray(0.5)  # float64
    found: dict[int, Any] = {}
    weights = [u.parameter for u in lin.uses if u.role == "weight"]
    rest = [None if i in weights else g for i, g in enumerate(lin.gradients)]
    graph.replay(rest, step, found.__setitem__, {i: lin.sites[i] for i in lin.factored})
    assert {x.dtype for x in found.values()} == {np.dtype("float32")}
    assert scaled(step, lin.sites[1].along(found[1])).dtype == np.float32
