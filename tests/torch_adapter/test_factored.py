"""Moves along gradients that are not formed, against the same with formed gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullport import TeleportConfig, network
from nullport._capture import factors
from nullport.network import DenseSite, LowRank
from nullport_torch import teleport
from nullport_torch._graph import TorchGraph

WIDTH, SAMPLES = 32, 3
Forward = Callable[[Any, Tensor], Tensor]


class Chain(nn.Module):
    """Two weights (32, 32) and a head, in one of the ways to write a product."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(2))
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.head = nn.Linear(WIDTH, 4)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self._forward(self, x)))


def grouped(model: Chain, x: Tensor) -> Tensor:
    """Return the output of a product with a stack of two matrices (8, 16) cut from one weight."""
    x = torch.tanh(F.linear(x, model.a))
    stack = model.b[:16].view(2, 8, 32)[..., :16]
    return torch.einsum("sgi,goi->sgo", x.view(-1, 2, 16), stack).reshape(-1, 16).repeat(1, 2)


WAYS: dict[str, Forward] = {
    "linear": lambda m, x: F.linear(torch.tanh(F.linear(x, m.a, m.shift)), m.b),
    "matmul": lambda m, x: torch.tanh(x @ m.a) @ m.b,
    "addmm": lambda m, x: torch.addmm(m.shift, torch.tanh(x @ m.a), m.b),
    "rows in two axes": lambda m, x: F.linear(torch.tanh(F.linear(x[:, None], m.a)), m.b)[:, 0],
    "outputs in front": lambda m, x: torch.einsum(
        "os,po->sp", torch.tanh(torch.einsum("si,oi->os", x, m.a)), m.b
    ),
    "a stack": grouped,
}


def made(way: str) -> tuple[Chain, Callable[[], Tensor]]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model, x = Chain(WAYS[way]), torch.randn(SAMPLES, WIDTH)
    finally:
        torch.set_default_dtype(torch.float32)
    y = torch.arange(SAMPLES) % 4
    return model, lambda: F.cross_entropy(model(x), y)


def replayed(graph: TorchGraph, v: list[Any]) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    step = torch.tensor(0.5, dtype=torch.float64)
    graph.replay(v, step, lambda i, x: found.__setitem__(i, x.clone()))
    return [found[i] for i in sorted(found)]


@pytest.mark.parametrize("way", list(WAYS))
def test_inputs_are_those_of_weights_moved_along_the_formed_gradient(way: str) -> None:
    model, closure = made(way)
    graph = TorchGraph(model, closure)
    lin = graph.linearize()
    samples = {i: s.samples for i, s in enumerate(lin.sites) if isinstance(s, DenseSite)}
    few = {i: min(n, 1) for i, n in samples.items()}  # all that could be, whatever they cost
    uses = network.factored([w.shape for w in graph.weights()], lin.uses, few)
    assert 0 in uses
    assert (1 in uses) == (way != "a stack")
    sparse: list[Any] = list(lin.gradients)
    for index, use in uses.items():
        site = lin.sites[use.site]
        assert site.cotangent is not None
        gradient = LowRank(site.cotangent, site.inputs)
        sparse[index] = gradient.mT if use.layout.transposed else gradient
        assert torch.allclose(sparse[index].dense(), lin.gradients[index], rtol=1e-10, atol=1e-14)
    before = [site.inputs for site in lin.sites]
    expected, got = replayed(graph, list(lin.gradients)), replayed(graph, sparse)
    assert len(got) == len(expected) >= 2
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-13)
        assert not any(b.shape == mine.shape and torch.allclose(mine, b) for b in before)


def moved(way: str, config: TeleportConfig) -> tuple[dict[str, Tensor], Any]:
    model, closure = made(way)
    report = teleport(model, closure, config=config)
    return {name: p.detach() for name, p in model.named_parameters()}, report


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("way", list(WAYS))
def test_a_teleport_is_the_same_without_factors(
    way: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TeleportConfig(tangent="fd", steps=steps, radius=0.1, objective="grad_norm")
    mine, report = moved(way, config)
    assert report.accepted
    monkeypatch.setattr(network, "FEWER", 10**9)
    theirs, plain = moved(way, config)
    start = {name: p.detach() for name, p in made(way)[0].named_parameters()}
    for name, p in theirs.items():
        assert torch.allclose(mine[name], p, rtol=1e-6, atol=1e-7), name
    assert any(not torch.allclose(start[name], p, atol=1e-4) for name, p in theirs.items())
    assert report.grad_norm_after == pytest.approx(plain.grad_norm_after, rel=1e-6)


def test_gradients_that_sites_know_are_not_formed_and_change_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, closure = made("linear")
    graph = TorchGraph(model, closure)
    asked: list[set[int]] = []
    plain = torch.autograd.grad

    def watched(outputs: Any, inputs: Any, **options: Any) -> Any:
        asked.append({id(x) for x in inputs})
        return plain(outputs, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    whole = graph.linearize(again=True)
    part = graph.linearize(unchanged=True, checked=True)
    assert part.reused
    own = [{i for i, p in enumerate(model.parameters()) if id(p) in ids} for ids in asked]
    assert own == [{0, 1, 2, 3, 4}, {2, 3, 4}]
    assert [isinstance(g, LowRank) for g in part.gradients] == [True, True, False, False, False]
    for mine, theirs in zip(part.gradients, whole.gradients, strict=True):
        assert torch.allclose(network.dense(mine), theirs, rtol=1e-10, atol=1e-14)
    for one, other in zip(part.sites, whole.sites, strict=True):
        assert torch.equal(one.cotangent, other.cotangent)


def test_later_steps_form_no_gradient_that_sites_know(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    plain = TorchGraph.linearize

    def watched(self: TorchGraph, **options: Any) -> Any:
        seen.append(options.get("checked", False))
        return plain(self, **options)

    monkeypatch.setattr(TorchGraph, "linearize", watched)
    model, closure = made("linear")
    for tangent in ("fd", "jvp"):
        seen.clear()
        config = TeleportConfig(objective="grad_norm", tangent=tangent, steps=3, radius=1e-3)
        assert teleport(model, closure, config=config).accepted
        assert seen == [False, True, True]


@pytest.mark.parametrize("tangent", ["fd", "jvp"])
def test_a_custom_objective_gets_every_gradient_formed(tangent: str) -> None:
    model, closure = made("linear")
    shapes = [tuple(p.shape) for p in model.parameters()]
    seen: list[list[Any]] = []

    def double(gradients: Any) -> list[Tensor]:
        seen.append(list(gradients))
        return [2 * g for g in gradients]

    config = TeleportConfig(objective=double, tangent=tangent, steps=3, radius=1e-3)
    assert teleport(model, closure, config=config).accepted
    assert len(seen) == 3
    for gradients in seen:
        assert [type(g) for g in gradients] == [Tensor] * len(shapes)
        assert [tuple(g.shape) for g in gradients] == shapes


def doubled(gradients: Any) -> list[Tensor]:
    return [2 * g for g in gradients]


def test_factors_of_weights_that_are_cast_by_hand() -> None:
    """Rows are in half precision, the weight and what it moves by are not."""

    def forward(model: Chain, x: Tensor) -> Tensor:
        hidden = F.linear(x.bfloat16(), model.a.to(torch.bfloat16))
        return F.linear(torch.tanh(hidden), model.b.to(torch.bfloat16)).float()

    torch.manual_seed(0)
    model, x, y = Chain(forward), torch.randn(SAMPLES, WIDTH), torch.arange(SAMPLES)
    graph = TorchGraph(model, lambda: F.cross_entropy(model(x), y))
    formed = list(graph.linearize(again=True).gradients)
    known = list(graph.linearize(checked=True).gradients)
    assert [isinstance(g, LowRank) for g in known[:2]] == [True, True]
    for mine, theirs in zip(known, formed, strict=True):
        if theirs is not None:
            assert network.dense(mine).dtype == theirs.dtype
            assert torch.allclose(network.dense(mine), theirs, rtol=0.02, atol=0.02 * theirs.max())
    before = [site.inputs for site in graph.linearize().sites]
    expected, got = replayed(graph, formed), replayed(graph, known)
    assert len(got) == len(expected) == len(before) == 3
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=0.02)
    for mine, start in zip(got[1:], before[1:], strict=True):  # the batch itself stays
        assert not torch.allclose(mine.float(), start.float(), atol=0.02)


@pytest.mark.parametrize("objective", ["grad_norm", doubled], ids=["grad_norm", "custom"])
@pytest.mark.parametrize("tangent", ["fd", "jvp"])
def test_factors_under_autocast(
    tangent: str, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer has inputs in float32 and a cotangent in bfloat16, the second has one dtype.

    Without another direction to go by, the moves are those of gradients that are formed.
    """

    def moved() -> tuple[list[Tensor], Any]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
        )
        start = [p.detach().clone() for p in model.parameters()]
        x, y = torch.randn(SAMPLES, 64), torch.arange(SAMPLES)
        config = TeleportConfig(
            objective=objective, tangent=tangent, steps=3, radius=0.05, max_loss_change=0.5
        )
        with torch.autocast("cpu", torch.bfloat16):
            report = teleport(model, lambda: F.cross_entropy(model(x).float(), y), config=config)
        ends = zip(model.parameters(), start, strict=True)
        return [p.detach() - before for p, before in ends], report

    mine, report = moved()
    assert report.accepted, report.reason
    monkeypatch.setattr(network, "FEWER", 10**9)
    theirs, plain = moved()
    assert plain.accepted, plain.reason
    a, b = (torch.cat([m.reshape(-1) for m in moves]) for moves in (mine, theirs))
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.9
    assert float(a.norm()) == pytest.approx(float(b.norm()), rel=0.01)


def test_a_weight_that_was_not_compared_is_never_trusted() -> None:
    model, closure = made("linear")
    graph = TorchGraph(model, closure)
    assert not factors([], graph.linearize(), graph.weights())
