"""A teleport never stops a run, and changes nothing that it was not asked to change."""

from __future__ import annotations

import copy
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import fault_injection
import numpy as np
import pytest
import torch
from helpers.state import Snapshot
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

from nullport import TeleportConfig
from nullport_torch import Teleporter, inspect, teleport
from nullport_torch._random import Disturbed, RandomStates

Closure = Callable[[], Tensor]


def network(*first: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *first, nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )


def refusing() -> Closure:
    levels = iter(2.0**i for i in range(100))
    return lambda: torch.tensor(next(levels))


def train(
    teleporter: Teleporter, model: nn.Module, optimizer: Any, loss: Callable[[Any], Tensor]
) -> None:
    for _ in range(9):
        batch = torch.randn(6, 8), torch.randint(3, (6,))
        teleporter.maybe_step(loss, batch)
        optimizer.zero_grad()
        teleporter.backward(loss, batch)
        optimizer.step()


def test_where_nothing_can_move_one_warning_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3))
    for layer in (model[0], model[2]):  # a weight that is no parameter as it is
        register_parametrization(layer, "weight", nn.Softplus())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    teleporter = Teleporter(model, optimizer, every=2)
    with pytest.warns(UserWarning, match="no teleport: no weight of the model") as told:
        train(teleporter, model, optimizer, lambda b: cross_entropy(model(b[0]), b[1]))
    assert len(told) == 1


@pytest.mark.parametrize("factor", [1.0, 1024.0, 0.25])
def test_backward_gives_the_gradient_of_its_own_closure(factor: float) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    teleporter = Teleporter(model, optimizer, every=2)
    handed = 0
    for step in range(6):
        x, y = torch.randn(4, 8), torch.randint(3, (4,))

        def plain() -> Tensor:
            return cross_entropy(model(x), y)  # noqa: B023

        teleporter.maybe_step(plain)
        handed += teleporter.gradient_ready
        optimizer.zero_grad()
        expected = torch.autograd.grad(factor * plain(), list(model.parameters()))
        loss = teleporter.backward(plain if factor == 1 else lambda: factor * plain())
        assert loss.requires_grad == (factor != 1 or step not in (2, 4))
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)
        optimizer.step()
    assert handed == 2


@pytest.mark.parametrize("change", ["batch", "weights", "hook", "global"])
def test_a_gradient_that_is_no_longer_that_of_the_closure_is_not_handed_over(change: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    teleporter = Teleporter(model, optimizer, every=1)
    x, y, scale = torch.randn(4, 8), torch.randint(3, (4,)), 1.0

    def loss() -> Tensor:
        return scale * cross_entropy(model(x), y)

    teleporter.step(loss)
    assert teleporter.gradient_ready
    heard: list[Tensor] = []
    if change == "batch":
        x = torch.randn(4, 8)
    elif change == "weights":
        with torch.no_grad():
            model[0].weight.mul_(0.9)
    elif change == "hook":
        model[0].weight.register_hook(heard.append)
    else:
        scale = 3.0
    found = teleporter.backward(loss)
    assert found.requires_grad
    assert len(heard) == (change == "hook")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("tangent", ["auto", "fd"])
def test_reentrant_checkpointing(whole: bool, tangent: Any) -> None:
    """Every parameter has its gradient; what is recomputed out of sight stays where it is."""
    model = network()
    x, y = torch.randn(8, 8), torch.randint(3, (8,))

    def loss() -> Tensor:
        inputs = x.clone().requires_grad_()
        first, rest = (model, nn.Identity()) if whole else (model[:3], model[3:])
        return cross_entropy(rest(checkpoint(first, inputs, use_reentrant=True)), y)

    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    teleporter = Teleporter(model, optimizer, config=TeleportConfig(tangent=tangent))
    before = Snapshot(model)
    report = teleporter.step(loss)
    norm = torch.stack([g.square().sum() for g in expected]).sum().sqrt()
    assert report.grad_norm_before == pytest.approx(norm.item(), rel=1e-5)
    assert before.moved() <= {"4.weight", "4.bias"}
    before.assert_rest_unchanged()
    teleporter.backward(loss)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("some", [False, True])
def test_a_loss_that_takes_gradients_by_weights(some: bool) -> None:
    model = network().double()
    x, y = torch.randn(5, 8).double(), torch.randint(3, (5,))

    def loss() -> Tensor:
        value = cross_entropy(model(x), y)
        by = list(model[4].parameters()) if some else list(model.parameters())
        gradients = torch.autograd.grad(value, by, create_graph=True)
        return value + 0.1 * torch.stack([g.square().sum() for g in gradients]).sum()

    before, snapshot = loss().item(), Snapshot(model)
    report = teleport(model, loss)
    assert loss().item() == pytest.approx(before, rel=0.06)
    held = {layer.name: layer.reason for layer in report.layers}
    assert "a gradient that the loss takes by it" in held["4.weight"]
    assert snapshot.moved() <= {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert report.accepted == (snapshot.moved() != set())


class Clamped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class Averaged(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.twin = nn.Parameter(torch.zeros(sizes[1], sizes[0]), requires_grad=False)
        self.replaced = nn.Parameter(torch.zeros(sizes[1], sizes[0]), requires_grad=False)
        self.total, self.calls, self.seen = torch.zeros(()), 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.twin.data.lerp_(self.weight.detach(), 0.1)
        self.replaced.data = self.replaced.data + 1
        self.total += 1
        self.calls += 1
        self.seen.append(self.calls)
        return super().forward(x)


@pytest.mark.parametrize("kind", ["max_norm", "clamp", "average"])
@pytest.mark.parametrize("guarded", [False, True])
def test_what_a_forward_pass_writes_is_written_back(kind: str, guarded: bool) -> None:
    torch.manual_seed(0)
    hidden = {"clamp": Clamped, "average": Averaged}.get(kind, nn.Linear)(32, 32)
    model = nn.Sequential(
        nn.Embedding(20, 32, max_norm=1.0 if kind == "max_norm" else None),
        hidden,
        nn.Tanh(),
        nn.Linear(32, 3),
    )
    tokens, y = torch.randint(0, 20, (8,)), torch.randint(0, 3, (8,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = Snapshot(model, optimizer)
    closure = lambda: cross_entropy(model(tokens), y)  # noqa: E731
    inspect(model, closure)
    before.assert_unchanged()
    report = teleport(model, closure, optimizer=optimizer, guard=refusing() if guarded else None)
    assert not (guarded and report.accepted)
    before.assert_rest_unchanged()
    assert not {name for name in before.moved() if "0." in name or "twin" in name}
    if not report.accepted:
        before.assert_unchanged()
    if kind == "average":
        assert (hidden.calls, hidden.total.item(), hidden.seen) == (0, 0.0, [0])


class Metric:
    """An object of the user's own that counts."""

    def __init__(self) -> None:
        self.count, self.values = 0, list[float]()

    def update(self, value: Tensor) -> None:
        self.count += 1
        self.values.append(value.item())


class Trainer:
    """Reads everything from attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.metric = model, Metric()
        self.critic = nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.Linear(9, 1))
        self.noise, self.dice = torch.Generator().manual_seed(1), np.random.default_rng(2)
        self.cards = random.Random(3)
        self.x = torch.randn(5, 8)

    def loss(self) -> Tensor:
        out = self.model(self.x)
        out = out + 0.01 * torch.randn(5, 3, generator=self.noise) + 0.01 * self.dice.random()
        loss = softplus(-self.critic(out)).mean() * (1 + 0.1 * self.cards.random())
        self.metric.update(loss.detach())
        return loss

    def state(self) -> list[Any]:
        buffers = [b.clone() for b in self.critic.buffers()]
        generators = [self.noise.get_state(), self.dice.bit_generator.state, self.cards.getstate()]
        return [*buffers, *generators, self.metric.count, list(self.metric.values)]


def test_what_a_closure_uses_beside_the_model_is_as_before() -> None:
    trainer = Trainer(network())
    before = trainer.state()
    report = teleport(trainer.model, trainer.loss)
    after = trainer.state()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-4)


def test_what_is_hidden_from_sight_can_be_named() -> None:
    model, critic = network(), nn.BatchNorm1d(3)
    registry = {"critic": [critic]}
    x = torch.randn(5, 8)

    class Hidden:
        __slots__ = ("get",)

    hidden = Hidden()
    hidden.get = registry.__getitem__  # type: ignore[attr-defined]
    loss = lambda: hidden.get("critic")[0](model(x)).square().mean()  # type: ignore  # noqa: E731
    before = copy.deepcopy(critic.state_dict())
    teleport(model, loss, frozen=[critic])
    assert all(torch.equal(before[k], v) for k, v in critic.state_dict().items())
    Teleporter(model, frozen=[critic]).step(loss)
    assert all(torch.equal(before[k], v) for k, v in critic.state_dict().items())


def test_two_threads_leave_the_settings_of_the_process() -> None:
    inside, done = [threading.Event(), threading.Event()], threading.Event()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")

    def work(me: int) -> None:
        model = network()
        x = torch.randn(4, 8)

        def loss() -> Tensor:
            if not inside[me].is_set():  # the second begins within the first and outlasts it
                inside[me].set()
                if me:
                    done.wait(4)
                else:
                    inside[1].wait(2)
            return model(x).square().mean()

        if me:
            inside[0].wait(2)
        teleport(model, loss)
        done.set()

    try:
        threads = [threading.Thread(target=work, args=(me,)) for me in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.set_float32_matmul_precision(before)


def test_two_threads_that_draw_get_through() -> None:
    """Where one disturbs the other, there is no teleport, and one warning."""
    results: list[object] = []
    interval = sys.getswitchinterval()

    def work() -> None:
        model = network(nn.Dropout(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        teleporter = Teleporter(model, optimizer, every=2)
        try:
            for _ in range(3):
                train(teleporter, model, optimizer, lambda b: cross_entropy(model(b[0]), b[1]))
            results.append("through")
        except Exception as error:
            results.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.setswitchinterval(1e-4)
        try:
            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert results == ["through", "through"]


def test_a_loss_that_is_not_the_same_again_is_told_of() -> None:
    """Noise that no random state gives away, beyond what the first layer sees."""
    model = network()
    x, noise = torch.randn(4, 8), iter(torch.linspace(0, 1, 1000))

    def loss() -> Tensor:
        return model(x).square().mean() + next(noise)

    with pytest.raises(ValueError, match=r"its loss was .*, then .* at the same weights"):
        teleport(model, loss)
    teleporter = Teleporter(model, every=1)
    teleporter.maybe_step(loss)
    with pytest.warns(UserWarning, match="no teleport: .* at the same weights"):
        assert teleporter.maybe_step(loss) is None
    constant = model(x).square().mean().item()
    assert teleport(model, lambda: model(x).square().mean()).loss_before == pytest.approx(constant)


def _draw() -> None:
    """Draw in another thread."""
    thread = threading.Thread(target=lambda: (torch.rand(()), random.random()))
    thread.start()
    thread.join()


def test_what_another_thread_has_drawn_is_not_rewound() -> None:
    states = RandomStates([])
    states.begin(everything=False)
    torch.rand(())  # a pass that draws
    states.end(everything=False)
    _draw()
    after = torch.get_rng_state()
    with pytest.raises(Disturbed, match="another thread draws"):
        states.begin(everything=False)
    states.restore()
    assert torch.equal(torch.get_rng_state(), after)


def test_generators_that_no_pass_uses_are_not_touched() -> None:
    states, saved = RandomStates([]), torch.get_rng_state()
    for everything in (False, True, False):
        states.begin(everything=everything)
        states.end(everything=everything)
        _draw()
    after = torch.get_rng_state(), random.getstate()
    states.restore()
    assert torch.equal(torch.get_rng_state(), after[0])
    assert random.getstate() == after[1]
    assert not torch.equal(saved, after[0])


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(10, 40), nn.Linear(40, 3)

        def forward(self, rows: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(rows))
            return self.second(torch.stack([part.mean(0) for part in hidden.unbind()]))

    torch.manual_seed(0)
    model, y = Ragged(), torch.tensor([0, 2, 1])
    parts = [torch.randn(n, 10) for n in (3, 2, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.nested.nested_tensor(parts, layout=layout)
        before = cross_entropy(model(rows), y).item()
        closure = lambda: cross_entropy(model(rows), y)  # noqa: E731
        if layout == torch.strided:
            with pytest.raises(ValueError, match="nested tensors"):
                teleport(model, closure)
        else:
            assert teleport(model, closure).layers
        assert cross_entropy(model(rows), y).item() == pytest.approx(before, rel=0.06)


def test_faults_change_nothing() -> None:
    """A sample of what ``python tests/fault_injection.py`` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count, bad = fault_injection.examine(60, say=lambda _: None)
    assert count == 60
    assert bad == []
