"""Moves along gradients that are not formed, against the same with formed gradients."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from array_adapter.graphs import Problem
from array_adapter.layer_reference import PLACES, error, place
from helpers.slow import slow

from nullport import TeleportConfig, network
from nullport.network import DenseSite, LowRank
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
    Shifted,
    Tanh,
    Watch,
)

WIDTH, SAMPLES = 32, 3
RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((SAMPLES, WIDTH)), np.arange(SAMPLES) % 4


@dataclass(frozen=True, init=False)
class Own(Dense):
    """A product as users write it, that knows nothing of factors."""

    def forward(self, params: Params, x: Any, watch: Watch = SILENT) -> tuple[Any, Any]:
        watch(self, x)
        y = x @ params["weight"].T
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


def replayed(graph: NetworkGraph, v: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    graph.replay(v, np.asarray(0.5), found.__setitem__)
    return found


@every_problem
def test_inputs_are_those_of_weights_moved_along_the_formed_gradient(one: Problem) -> None:
    with place("numpy") as here:
        graph = one.graph(here)
    lin = graph.linearize()
    samples = {i: 1 for i, s in enumerate(lin.sites) if isinstance(s, DenseSite)}
    uses = network.factored([w.shape for w in graph.weights()], lin.uses, samples)
    assert len(uses) >= 2
    sparse = list(lin.gradients)
    for index, use in uses.items():
        assert use.site is not None
        site, formed = lin.sites[use.site], lin.gradients[index]
        assert isinstance(formed, np.ndarray)
        sparse[index] = gradient = LowRank(site.cotangent, site.inputs)
        assert np.allclose(gradient.dense(), formed, rtol=1e-10, atol=1e-14)
    got, expected = replayed(graph, sparse), replayed(graph, lin.gradients)
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
    monkeypatch.setattr(network, "FEWER", 10**9)
    theirs, plain = moved(one, config)
    # A difference has eight digits, of which the two ways round differently.
    assert error(mine, theirs) <= 1e-7
    assert error(one.params(), theirs) >= 1e-3
    assert report.grad_norm_after == pytest.approx(plain.grad_norm_after, rel=1e-7)


@pytest.mark.parametrize("name", [p for p in PLACES if p not in ("numpy", "jax-jit")])
def test_every_namespace_moves_along(name: str) -> None:
    slow(name == "jax", "a minute, operation by operation")
    config = TeleportConfig(tangent="fd", steps=2, radius=0.1, objective="grad_norm")
    expected, _ = moved(CHAIN, config)
    found, report = moved(CHAIN, config, name)
    assert report.accepted
    assert error(found, expected) <= 1e-7


def test_gradients_that_sites_know_are_not_formed_and_change_nothing_else() -> None:
    with place("numpy") as here:
        graph = CHAIN.graph(here)
    whole = graph.linearize(again=True)
    part = graph.linearize(unchanged=True, checked=True)
    assert part.reused
    sparse = [i for i, g in enumerate(part.gradients) if isinstance(g, LowRank)]
    assert [graph.parameters[i].name for i in sparse] == ["0.weight", "2.weight"]
    pairs = zip(map(network.dense, part.gradients), whole.gradients, strict=True)
    assert all(np.allclose(mine, theirs, rtol=1e-12, atol=1e-15) for mine, theirs in pairs)  # type: ignore[arg-type]
    for one, other in zip(part.sites, whole.sites, strict=True):
        assert np.array_equal(one.cotangent, other.cotangent)  # type: ignore[arg-type]


@pytest.mark.parametrize("tangent", ["fd", "jvp"])
@pytest.mark.parametrize("custom", [False, True], ids=["grad_norm", "custom"])
def test_later_steps_form_no_gradient_that_sites_know(
    custom: bool, tangent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    given: list[list[Any]] = []
    plain = NetworkProgram.linearize

    def watched(self: NetworkProgram, weights: Any, **options: Any) -> Any:
        lin = plain(self, weights, **options)
        sparse = [isinstance(g, LowRank) for g in lin.gradients]
        seen.append([name for name, is_sparse in zip(self.names, sparse, strict=True) if is_sparse])
        return lin

    def double(gradients: Any) -> Any:
        given.append(list(gradients))
        return [2 * g for g in gradients]

    monkeypatch.setattr(NetworkProgram, "linearize", watched)
    objective: Any = double if custom else "grad_norm"
    config = TeleportConfig(objective=objective, tangent=tangent, steps=3, radius=1e-3)
    _, report = moved(CHAIN, config)
    assert report.accepted
    known = ["0.weight", "2.weight"]
    assert seen == [[], known, known]
    assert len(given) == (3 if custom else 0)
    assert all(isinstance(g, np.ndarray) for gradients in given for g in gradients)


def test_layers_of_the_users_own_are_not_asked_to_take_factors() -> None:
    one = PROBLEMS["one of the user's own"]
    with place("numpy") as here:
        graph = one.graph(here)
    graph.linearize(again=True)
    lin = graph.linearize(unchanged=True, checked=True)
    names = [graph.parameters[i].name for i in sorted(graph.program.dense)]
    assert names == ["0.weight", "4.weight", "5.weight"]
    own = [isinstance(g, np.ndarray) for g in lin.gradients]
    assert own[[p.name for p in graph.parameters].index("2.weight")]
    config = TeleportConfig(tangent="fd", steps=3, radius=0.1, objective="grad_norm")
    assert teleport(graph, config).accepted


def test_no_array_of_the_size_of_a_weight_is_made() -> None:
    width = 512
    layers = Dense(width, width), Tanh(), Dense(width, width), Tanh(), Dense(width, 4)
    big = Problem(Sequential(*layers), CrossEntropy(), RNG.standard_normal((3, width)), Y)
    with place("numpy") as here:
        graph = big.graph(here)
    formed = graph.linearize(again=True).gradients

    def peak(work: Any) -> tuple[float, Any]:
        """Return the most memory that was held at a time, in weights, and what was made."""
        tracemalloc.start()
        made = work()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / graph.params["0"]["weight"].nbytes, made

    def linearized(*, checked: bool) -> Any:
        return graph.linearize(unchanged=True, again=True, checked=checked).gradients

    def replay(v: Any) -> None:
        graph.replay(v, np.asarray(0.1), lambda *_: None)

    most, factors = peak(lambda: linearized(checked=True))
    assert most < 0.2
    assert peak(lambda: linearized(checked=False))[0] > 1
    assert peak(lambda: replay(factors))[0] < 0.2
    assert peak(lambda: replay(formed))[0] > 1


def test_factors_keep_the_dtype_of_the_network() -> None:
    with place("numpy") as here:
        graph = CHAIN.graph(here, "float32")
    graph.linearize(again=True)
    lin = graph.linearize(unchanged=True, checked=True)
    sparse = [g for g in lin.gradients if isinstance(g, LowRank)]
    assert {a.dtype for g in sparse for a in (g.left, g.right)} == {np.dtype("float32")}
    found = replayed(graph, lin.gradients)  # the step is float64
    assert len(found) == 2
    assert {x.dtype for x in found.values()} == {np.dtype("float32")}


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
def test_a_dense_layer_takes_a_weight_that_is_not_formed(shape: tuple[int, ...]) -> None:
    layer, x = dense(5), RNG.standard_normal(shape)
    params = layer.init(np.random.default_rng(0))
    move = LowRank(RNG.standard_normal((2, 5)), RNG.standard_normal((2, WIDTH)))
    shifted = {**params, "weight": Shifted(params["weight"], move)}
    formed = {**params, "weight": params["weight"] + move.dense()}
    expected = layer.forward(formed, x)[0]
    assert np.allclose(layer.forward(shifted, x)[0], expected, rtol=1e-12, atol=1e-12)
