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


def test_gradients_that_sites_know_are_not_formed_and_change_nothing_else() -> None:
    model, closure = made("linear")
    graph = TorchGraph(model, closure)
    whole = graph.linearize(again=True)
    part = graph.linearize(unchanged=True, checked=True)
    assert part.reused
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


def test_a_weight_that_was_not_compared_is_never_trusted() -> None:
    model, closure = made("linear")
    graph = TorchGraph(model, closure)
    assert not factors([], graph.linearize(), graph.weights())
