"""Moves along gradients that are not formed, against the same with formed gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullport import TeleportConfig, _factored
from nullport._site import DenseSite
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


def replayed(graph: TorchGraph, v: list[Any], along: dict[int, DenseSite] | None) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    step = torch.tensor(0.5, dtype=torch.float64)
    graph.replay(v, step, lambda i, x: found.__setitem__(i, x.clone()), along)
    return [found[i] for i in sorted(found)]


@pytest.mark.parametrize("way", list(WAYS))
def test_inputs_are_those_of_weights_moved_along_the_formed_gradient(way: str) -> None:
    model, closure = made(way)
    graph = TorchGraph(model, closure)
    lin = graph.linearize()
    sites = {u.site: u.parameter for u in lin.uses if u.role == "weight" and u.site is not None}
    assert set(lin.factored) == set(sites)
    assert len(sites) == 3
    before = [site.inputs for site in lin.sites]
    expected = replayed(graph, list(lin.gradients), None)
    rest = [None if i in sites.values() else g for i, g in enumerate(lin.gradients)]
    got = replayed(graph, rest, {s: lin.sites[s] for s in sites})
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
    monkeypatch.setattr(_factored, "FEWER", 10**9)
    theirs, plain = moved(way, config)
    start = {name: p.detach() for name, p in made(way)[0].named_parameters()}
    for name, p in theirs.items():
        assert torch.allclose(mine[name], p, rtol=1e-6, atol=1e-7), name
    assert any(not torch.allclose(start[name], p, atol=1e-4) for name, p in theirs.items())
    assert report.grad_norm_after == pytest.approx(plain.grad_norm_after, rel=1e-6)


def test_gradients_that_are_omitted_are_not_formed_and_change_nothing_else() -> None:
    model, closure = made("linear")
    graph = TorchGraph(model, closure)
    whole = graph.linearize(again=True)
    part = graph.linearize(unchanged=True, omit={0, 1})
    assert part.reused
    assert [g is None for g in part.gradients] == [True, True, False, False, False]
    for mine, theirs in zip(part.gradients[2:], whole.gradients[2:], strict=True):
        assert mine is not None
        assert torch.equal(mine, theirs)
    for one, other in zip(part.sites, whole.sites, strict=True):
        assert torch.equal(one.cotangent, other.cotangent)


def test_later_steps_form_no_gradient_that_sites_know(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    plain = TorchGraph.linearize

    def watched(self: TorchGraph, **options: Any) -> Any:
        seen.append(set(options.get("omit", ())))
        return plain(self, **options)

    monkeypatch.setattr(TorchGraph, "linearize", watched)
    model, closure = made("linear")
    for objective, tangent, omitted in (
        ("grad_norm", "fd", {0, 1}),
        ("grad_norm", "jvp", set()),
        (lambda g: [2 * a for a in g], "fd", set()),
    ):
        seen.clear()
        config = TeleportConfig(objective=objective, tangent=tangent, steps=3, radius=1e-3)
        assert teleport(model, closure, config=config).accepted
        assert seen == [set(), omitted, omitted]
