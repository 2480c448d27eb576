"""The two tangent engines against each other, and what happens where forward mode is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.dense import relative
from helpers.networks import NETWORKS, Network, build, seeded
from helpers.state import Snapshot
from helpers.torch_oracle import finite_difference, teleport_directions
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport.network import TangentUnavailable
from nullport_torch import Teleporter, teleport
from nullport_torch._graph import TorchGraph


class Wave(torch.autograd.Function):
    """A sine with a right backward and a wrong forward-mode rule."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.cos(x)

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return -2 * t * torch.sin(x)


class Silent(torch.autograd.Function):
    """A sine without a forward-mode rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.cos(x)


Activation = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Three layers with an activation of choice."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def _net(
    activation: Activation, dtype: torch.dtype = torch.float64
) -> tuple[Net, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = Net(activation).to(dtype)
    x, y = torch.randn(6, 5, dtype=dtype), torch.arange(6) % 3
    return model, lambda: F.cross_entropy(model(x), y)


@pytest.mark.parametrize("activation", [Wave.apply, Silent.apply], ids=["wrong", "missing"])
def test_auto_falls_back_to_differences(activation: Activation) -> None:
    model, closure = _net(activation)
    report = teleport(model, closure, config=TeleportConfig(radius=0.3))
    assert report.tangent == "fd"
    assert report.accepted
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-12)
    right, right_closure = _net(torch.sin)
    expected = teleport(right, right_closure, config=TeleportConfig(radius=0.3))
    assert expected.tangent == "jvp"
    for mine, theirs in zip(model.parameters(), right.parameters(), strict=True):
        assert relative(mine.detach().numpy(), theirs.detach().numpy()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_wrong_forward_rule_is_an_error_if_it_was_asked_for(dtype: torch.dtype) -> None:
    model, closure = _net(Wave.apply, dtype)
    before = Snapshot(model)
    with pytest.raises(ValueError, match=r"wrong derivative rule; allowed here: tangent='fd'"):
        teleport(model, closure, config=TeleportConfig(tangent="jvp"))
    before.assert_unchanged()


def test_a_missing_forward_rule_is_an_error_if_it_was_asked_for() -> None:
    model, closure = _net(Silent.apply)
    before = Snapshot(model)
    with pytest.raises(TangentUnavailable, match="jvp"):
        teleport(model, closure, config=TeleportConfig(tangent="jvp"))
    before.assert_unchanged()


def test_auto_falls_back_also_when_forward_mode_stops_working_later() -> None:
    """A teleporter remembers that forward mode worked; another closure may not support it."""
    model, closure = _net(torch.sin)
    teleporter = Teleporter(model)
    assert teleporter.step(closure).tangent == "jvp"
    model.activation = Silent.apply
    assert teleporter.step(closure).tangent == "fd"


def test_forward_mode_of_a_network_with_float32_inside() -> None:
    """Norms and rotary embeddings often compute in float32 whatever the dtype outside."""
    model, closure = _net(lambda h: torch.sin(h.float()).to(h.dtype))
    got = teleport_directions(model, closure, tangent="jvp")
    reference, exact_closure = _net(torch.sin)
    for name, direction in teleport_directions(reference, exact_closure).items():
        assert relative(got[name], direction) <= 1e-4


def test_engines_agree_in_float64() -> None:
    model, closure = _net(torch.sin)
    exact = teleport_directions(model, closure, tangent="jvp")
    approximate = teleport_directions(model, closure, tangent="fd")
    for name, direction in exact.items():
        assert relative(approximate[name], direction) <= 1e-5


@pytest.mark.parametrize("network", NETWORKS[:3], ids=repr)
def test_direction_agrees_with_differences_of_gradients(network: Network) -> None:
    """A third oracle without any double backward, at the accuracy of a central difference."""
    from helpers.gather import expected_directions, gather

    model, closure = build(network)
    torch.manual_seed(5)
    got = teleport_directions(model, closure)
    step = 1e-9 if network.name == "ResNet" else 1e-5  # stays on one side of every kink
    objective = finite_difference(model, closure, seed=5, step=step)
    expected = expected_directions(gather(model, seeded(closure, 5)), objective)
    for name in set(got) - network.spanned:
        wanted = expected[name]
        assert relative(got[name].reshape(wanted.shape), wanted) <= 1e-4, name


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_reused_activations_are_those_of_a_fresh_pass(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TeleportConfig(projection="threshold", radius=0.2, steps=4)
    model, closure = build(network)
    torch.manual_seed(5)
    report = teleport(model, closure, config=config)
    original = TorchGraph.linearize
    passes = []

    def fresh(self: TorchGraph, *, unchanged: bool = False, **how: bool) -> Any:
        passes.append(unchanged)
        return original(self, unchanged=False, **how)

    monkeypatch.setattr(TorchGraph, "linearize", fresh)
    other, other_closure = build(network)
    torch.manual_seed(5)
    expected = teleport(other, other_closure, config=config)
    assert passes == [False, True, True, True]
    assert report.accepted
    assert expected.accepted
    assert report.cost < expected.cost
    assert report.grad_norm_after == pytest.approx(expected.grad_norm_after, rel=1e-9)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda w: w.clone(),
    "float32": lambda w: w.float().double(),
    "contiguous": lambda w: w.contiguous(),
    "to": lambda w: w.to(torch.float32).to(torch.float64),
}


@pytest.mark.parametrize("name", COPIES)
def test_reused_activations_with_copied_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph holds a copy of the weight: its backward must not use the old one."""
    copy = COPIES[name]

    class Copied(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, copy(self.weight), self.bias)

    def run(*, fresh: bool) -> tuple[Tensor, float]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 12), nn.Tanh(), Copied(12, 12), nn.Tanh(), Copied(12, 3)
        ).double()
        x, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
        if fresh:
            original = TorchGraph.linearize
            monkeypatch.setattr(
                TorchGraph,
                "linearize",
                lambda self, *, unchanged=False, **how: original(self, **how),
            )
        config = TeleportConfig(radius=0.3, steps=4, tangent="jvp")
        report = teleport(model, lambda: F.cross_entropy(model(x), y), config=config)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), report.grad_norm_after

    (mine, norm), (theirs, expected) = run(fresh=False), run(fresh=True)
    assert norm == pytest.approx(expected, rel=1e-4)
    assert relative(mine.numpy(), theirs.numpy()) <= 1e-5


def test_routing_that_flips_between_passes_is_no_changed_closure() -> None:
    """A mixture of experts on the edge: the shapes of a finite difference's pass differ."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(5, 12)
            self.experts = nn.ModuleList([nn.Linear(12, 3), nn.Linear(12, 3)])

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.stem(x))
            score = h.detach().sum(-1)
            left = score > score.median()  # the middle sample sits on the edge
            out = h.new_zeros(len(h), 3)
            for expert, chosen in zip(self.experts, (left, ~left), strict=True):
                out = out.index_put((chosen,), expert(h[chosen]))
            return out

    class Edge(Routed):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.stem(x))
            if not hasattr(self, "at"):
                self.at = float(h.detach().sum(-1).median())
            left = h.detach().sum(-1) > self.at
            out = h.new_zeros(len(h), 3)
            for expert, chosen in zip(self.experts, (left, ~left), strict=True):
                out = out.index_put((chosen,), expert(h[chosen]))
            return out

    flips = 0
    for seed in range(4):
        torch.manual_seed(seed)
        model = Edge()
        x, y = torch.randn(7, 5), torch.arange(7) % 3
        model(x)
        report = teleport(model, lambda: F.cross_entropy(model(x), y))  # noqa: B023
        flips += report.tangent == "jvp"
        assert report.loss_after == pytest.approx(report.loss_before, rel=1e-5)
    assert flips > 0, "the pass of the finite difference was never another one"


class Rerouted(nn.Module):
    """Skips its third layer wherever its second does not give exactly what it gave first."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(20, 30), (30, 30), (30, 30), (30, 3)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        self.first: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two, three, last = self.layers
        x = torch.tanh(two(torch.tanh(one(x))))
        total = x.detach().sum()
        first = self.first.setdefault("total", total.clone())
        return last(torch.tanh(three(x)) if bool(total == first) else x)


def test_forward_mode_takes_over_after_layers_have_been_let_go_of() -> None:
    """A difference fails half-way, when the first layers' inputs are gone already."""
    torch.manual_seed(0)
    model, x, y = Rerouted(), torch.randn(5, 20), torch.randint(0, 3, (5,))
    report = teleport(
        model,
        lambda: nn.functional.cross_entropy(model(x), y),
        config=TeleportConfig(radius=0.1, max_loss_change=10.0),
    )
    assert report.tangent == "jvp"
    assert [layer.moved > 0 for layer in report.layers] == [False, True, True, True]
    assert all(layer.output_change <= layer.output_change_bound for layer in report.layers)
