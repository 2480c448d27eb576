"""Memory that is exchanged instead of copied: what a step or pass sees, and what is left of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport.network import Toll
from nullport_torch import teleport
from nullport_torch._graph import TorchGraph
from nullport_torch._optimizer import Optimizers
from nullport_torch._weights import alone


def small() -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 25), nn.Tanh(), nn.Linear(25, 3)
    )
    batches = [(torch.randn(6, 30), torch.randint(0, 3, (6,))) for _ in range(3)]

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, [partial(loss, batch) for batch in batches]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_in_a_row_are_the_real_one_and_leave_everything(name: str) -> None:
    """From the second on, gradients are not copied, nor is what is reachable looked for."""
    model, (closure, *_) = small()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    optimizer.zero_grad()
    trained = Optimizers(optimizer, model)
    graph = TorchGraph(model, closure, optimizer=trained)
    addresses = [p.data_ptr() for p in model.parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    states = [
        {key: torch.as_tensor(value).clone() for key, value in optimizer.state[p].items()}
        for p in model.parameters()
    ]
    with graph.exact():
        _, gradients = graph.gradient()
        kept = [g.clone() for g in gradients if g is not None]
        steps = [[u.clone() for u in graph.optimizer_step(gradients)] for _ in range(3)]
        assert all(map(torch.equal, [g for g in gradients if g is not None], kept))
        graph.keep(0.0)
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(map(torch.equal, model.parameters(), weights))
    for p, state in zip(model.parameters(), states, strict=True):
        assert all(
            torch.equal(torch.as_tensor(optimizer.state[p][key]), state[key]) for key in state
        )
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient
    optimizer.step()
    for p, old, *foreseen in zip(model.parameters(), weights, *steps, strict=True):
        assert all(torch.equal(old - u, p) or torch.allclose(old - p, u) for u in foreseen)


def test_the_loss_after_a_step_is_that_of_the_weights_after_it() -> None:
    model, (closure, *_) = small()
    trained = Optimizers(torch.optim.SGD(model.parameters(), lr=0.3), model)
    graph = TorchGraph(model, closure, optimizer=trained)
    with graph.exact():
        _, gradients = graph.gradient()
        step = graph.optimizer_step(gradients)
        found = float(graph.loss("batch", step))
        expected = float(graph.loss("batch", list(step)))
        graph.keep(0.0)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != pytest.approx(float(closure().detach()), rel=1e-3)


def test_a_step_that_somebody_holds_is_still_right_when_the_weights_have_moved() -> None:
    model, (closure, *_) = small()
    trained = Optimizers(torch.optim.SGD(model.parameters(), lr=0.3), model)
    graph = TorchGraph(model, closure, optimizer=trained)
    with graph.exact():
        _, gradients = graph.gradient()
        step = graph.optimizer_step(gradients)
        before = [u.clone() for u in step]
        graph.move([])
        assert all(map(torch.equal, step, before))
        graph.keep(0.0)


def test_a_view_that_the_network_keeps_of_a_weight_sees_every_shift() -> None:
    """Its memory is not the weight's alone, so it is written to."""
    model, _ = small()
    weight = model[0].weight
    assert alone(weight)
    view = weight.detach()[:]
    assert not alone(weight)
    x = torch.randn(4, 30)

    def closure() -> Tensor:
        return (x @ view.T).square().mean() + model(x).square().mean()

    graph = TorchGraph(model, closure)
    shift = [torch.ones_like(p) if p is weight else None for p in model.parameters()]
    with graph.exact():
        found = float(graph.loss("batch", shift))
        graph.keep(0.0)
    with torch.no_grad():
        weight -= 1
        assert found == pytest.approx(float(closure()), rel=1e-5)


def test_the_toll_depends_on_shapes_alone() -> None:
    assert Toll().begun(5, 1e6) == Toll().moved(5, 1e3, 1e4, 1e6) == 0.0
    toll = Toll(start=1e6, layer=1e5, element=10.0, gradient=1e4, qr=2.0, most=10.0)
    assert toll.begun(2, 1e6) == pytest.approx(1e6 / (1e6 + 2e4))
    assert toll.moved(2, 1e4, 1e5, 1e6) == pytest.approx(3e5 / (1e6 + 2e4) + 0.2)
    assert toll.begun(1, 1e3) == 5.0  # no more than half of the most
    assert toll.begun(0, 0.0) == 0.0
    none = Toll(start=1e6, layer=1e5, element=10.0, qr=2.0, least=1e6)
    assert none.begun(2, 1e6) == none.moved(2, 1e4, 1e5, 1e6) == 0.0
    costs = []
    for _ in range(2):
        model, (closure, guard, others) = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        settings = TeleportConfig(objective="look_ahead")
        costs.append(
            teleport(
                model, closure, optimizer=optimizer, guard=guard, others=others, config=settings
            ).cost
        )
    assert costs[0] == costs[1] > 4
