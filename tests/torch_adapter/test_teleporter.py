"""The object for training loops: when it teleports, what it remembers, how it resumes."""

from __future__ import annotations

import copy
import json
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.state import Snapshot
from torch import Tensor, nn

from nullport import TeleportConfig, TeleportReport
from nullport.lab.backends import load_backend
from nullport_torch import Teleporter, __all__
from nullport_torch.lab.backend import BACKEND

CONFIG = TeleportConfig(radius=0.05)
AHEAD = TeleportConfig(objective="look_ahead", radius=0.05)


def _made() -> tuple[nn.Sequential, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    ).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
    return model, lambda: F.cross_entropy(model(x), y)


def _refusing() -> Tensor:
    """A guard whose loss rises every time it is asked."""
    _refusing.level *= 2  # type: ignore[attr-defined]
    return torch.tensor(_refusing.level)  # type: ignore[attr-defined]


def _run(teleporter: Teleporter, closure: Callable[[], Tensor], steps: int, **kwargs: Any) -> Any:
    return [i for i in range(steps) if teleporter.maybe_step(closure, **kwargs) is not None]


def test_a_closure_that_does_not_keep_its_batch_is_told_of_once() -> None:
    """At the line that called ``maybe_step``; there is no teleport then."""
    model, closure = _made()

    class Step:
        def __call__(self) -> Tensor:
            return closure()

    teleporter = Teleporter(model, torch.optim.SGD(model.parameters(), 0.01), every=1)
    teleporter.maybe_step(Step())
    teleporter.maybe_step(Step())
    with pytest.warns(UserWarning, match="batch of the present step.*loss_fn, batch") as warned:
        teleporter.maybe_step(Step())
    (one,) = warned
    assert Path(one.filename).name == Path(__file__).name
    assert "maybe_step" in linecache.getline(one.filename, one.lineno)
    for _ in range(3):  # warnings are errors
        teleporter.maybe_step(Step())
    assert teleporter.history == []


@pytest.mark.parametrize("given", ["a function", "a guard", "no optimizer"])
def test_a_batch_that_judges_nothing_is_not_told_of(given: str) -> None:
    model, closure = _made()

    class Step:
        def __call__(self) -> Tensor:
            return closure()

    optimizer = None if given == "no optimizer" else torch.optim.SGD(model.parameters(), 0.01)
    teleporter = Teleporter(model, optimizer, every=2)
    guard = closure if given == "a guard" else None
    for _ in range(4):  # warnings are errors
        teleporter.maybe_step(closure if given == "a function" else Step(), guard)


@pytest.mark.parametrize("every", [1, 3])
def test_a_fixed_interval(every: int) -> None:
    model, closure = _made()
    teleporter = Teleporter(model, every=every, config=CONFIG)
    assert _run(teleporter, closure, 7) == list(range(every, 7, every))
    assert len(teleporter.history) == len(range(every, 7, every))
    assert teleporter.last is teleporter.history[-1]
    assert all(isinstance(report, TeleportReport) for report in teleporter.history)


def test_auto_waits_longer_after_refusals() -> None:
    counts = []
    for guard in (None, _refusing):
        _refusing.level = 1.0  # type: ignore[attr-defined]
        model, closure = _made()
        for weight in (p for p in model.parameters() if p.ndim == 2):
            nn.init.orthogonal_(weight)  # a network that is stuck would be asked again and again
        teleporter = Teleporter(model, config=CONFIG)
        due = _run(teleporter, closure, 60, guard=guard)
        assert due[0] == 2
        assert all(report.accepted == (guard is None) for report in teleporter.history)
        counts.append(len(due))
    assert counts[1] < counts[0]


def test_nothing_yet() -> None:
    model, _ = _made()
    teleporter = Teleporter(model)
    assert teleporter.last is None
    assert teleporter.history == []
    assert teleporter.summary() == "0 teleports, 0 accepted; phase: unknown"


def test_summary_has_a_line_per_teleport() -> None:
    model, closure = _made()
    _refusing.level = 1.0  # type: ignore[attr-defined]
    teleporter = Teleporter(model, config=CONFIG)
    first, second = teleporter.step(closure), teleporter.step(closure, _refusing)
    lines = teleporter.summary().splitlines()
    assert lines[0] == "2 teleports, 1 accepted; phase: training"
    assert lines[1].endswith(": accepted")
    assert f"{first.loss_before:.4g}" in lines[1]
    assert lines[2].endswith(f"refused: {second.reason}")


def test_step_teleports_now_and_plans_the_next() -> None:
    model, closure = _made()
    teleporter = Teleporter(model, every=4, config=CONFIG)
    _run(teleporter, closure, 3)
    assert teleporter.step(closure).accepted
    assert _run(teleporter, closure, 9) == [4, 8]  # four steps after the one just taken


@pytest.mark.parametrize("every", ["auto", 3])
def test_state_round_trip(every: int | str) -> None:
    model, closure = _made()
    one = Teleporter(model, every=every, config=CONFIG)
    _run(one, closure, 12)
    state = json.loads(json.dumps(one.state_dict()))
    two = Teleporter(model, config=CONFIG)
    two.load_state_dict(state)
    assert two.state_dict() == one.state_dict()
    assert _run(two, closure, 12) == _run(one, closure, 12)


@pytest.mark.parametrize("state", [{}, {"policy": {}, "model": 1}, {"policy": {}}], ids=str)
def test_state_of_something_else(state: dict[str, Any]) -> None:
    model, _ = _made()
    with pytest.raises(ValueError, match=r"state has keys .* expected \['policy', 'recent'\]"):
        Teleporter(model).load_state_dict(state)


def test_state_is_kept_apart_from_the_model() -> None:
    model, closure = _made()
    keys = list(model.state_dict())
    teleporter = Teleporter(model, every=1, config=CONFIG)
    _run(teleporter, closure, 3)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("every", [0, -3, 2.5, "never", True])
def test_bad_every(every: Any) -> None:
    with pytest.raises(ValueError, match=r"invalid every: .*; allowed: 'auto' or an integer"):
        Teleporter(_made()[0], every=every)


def test_an_error_is_told_of_once_and_training_goes_on() -> None:
    """By hand it is raised. The next try is as far away as after a refusal."""
    model, closure = _made()
    teleporter = Teleporter(model, every=2, config=CONFIG)
    teleporter.maybe_step(closure)
    teleporter.maybe_step(closure)
    before = Snapshot(model)

    def broken() -> Tensor:
        return closure() / (1 // 0)

    with pytest.warns(UserWarning, match="no teleport: integer division") as warned:
        assert teleporter.maybe_step(broken) is None
    assert Path(warned[0].filename).name == Path(__file__).name
    with pytest.raises(ZeroDivisionError):
        teleporter.step(broken)
    before.assert_unchanged()
    assert teleporter.history == []
    assert [teleporter.maybe_step(closure) is not None for _ in range(2)] == [False, True]
    for _ in range(4):  # warnings are errors
        teleporter.maybe_step(broken)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_any_optimizer(name: str) -> None:
    """The two batches before serve as other samples: the closures of then, not of now."""
    model, _ = _made()
    batches = [(torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3) for _ in range(3)]
    optimizer = OPTIMIZERS[name](model.parameters())
    teleporter = Teleporter(model, optimizer, every=4, config=AHEAD)

    def losses(model: nn.Module) -> list[float]:
        with torch.no_grad():
            return [F.cross_entropy(model(x), y).item() for x, y in batches]

    def stepped(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
        model_, optimizer_ = copy.deepcopy((model, optimizer))
        optimizer_.zero_grad()
        F.cross_entropy(model_(x), y).backward()
        optimizer_.step()
        return model_

    start = sum(losses(model))
    for step in range(20):
        x, y = batches[step % 3]
        before, after = losses(model), losses(stepped(x, y))
        report = teleporter.maybe_step(lambda: F.cross_entropy(model(x), y))  # noqa: B023
        if report is not None:
            assert report.loss_before == pytest.approx(before[step % 3], rel=1e-12)
            assert report.guard_before == pytest.approx(after[(step - 2) % 3], rel=1e-12)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert sum(losses(model)) < start
    assert len(teleporter.history) == 4


def test_public_names() -> None:
    assert __all__ == ["Teleporter", "inspect", "register_linear", "teleport"]
    assert load_backend("torch") is BACKEND
    assert BACKEND.name == "torch"
    assert BACKEND.versions()["torch"] == torch.__version__
    assert "cpu" in BACKEND.devices()


class Net(nn.Module):
    """A network that draws no random numbers, or one that does."""

    def __init__(self, *, dropout: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 40), nn.Linear(40, 3)
        self.drop, self.norm = nn.Dropout(0.5 * dropout), nn.BatchNorm1d(40)
        self.dropout, self.normalise = dropout, norm

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x))
        x = self.norm(x) if self.normalise else x
        out: Tensor = self.head(self.drop(x) if self.dropout else x)
        return out


def _train(
    steps: range, state: dict[str, Any] | None, *, reuse: bool = False, seed: int = 0
) -> tuple[dict[str, Any], list[float], Teleporter]:
    """Train from a state, or from the start; return the state, the losses, the teleporter."""
    torch.manual_seed(seed)
    model = Net().double()
    x, y = torch.randn(400, 5, dtype=torch.float64), torch.randint(3, (400,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    teleporter = Teleporter(model, optimizer, horizon=5000)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        teleporter.load_state_dict(state["teleporter"])
    losses = []
    for step in steps:
        rows = slice(8 * step % 400, 8 * step % 400 + 8)
        xb, yb = x[rows], y[rows]

        def closure() -> Tensor:
            return F.cross_entropy(model(xb), yb)  # noqa: B023

        teleporter.maybe_step(closure)
        optimizer.zero_grad()
        if reuse:
            loss = teleporter.backward(closure)
        else:
            loss = closure()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    parts = {"model": model, "optimizer": optimizer, "teleporter": teleporter}
    return (
        copy.deepcopy({key: part.state_dict() for key, part in parts.items()}),
        losses,
        teleporter,
    )


@pytest.mark.parametrize("stop", range(1, 16))
def test_a_resumed_run_goes_on_bit_for_bit(stop: int, tmp_path: Any) -> None:
    whole, losses, teleporter = _train(range(16), None)
    assert len(teleporter.history) >= 3
    part, first, _ = _train(range(stop), None)
    torch.save(part, tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    resumed, second, _ = _train(range(stop, 16), saved)
    assert first + second == losses
    for key, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][key])
    assert resumed["teleporter"]["policy"] == whole["teleporter"]["policy"]


def test_the_gradient_is_handed_over() -> None:
    plain, losses, one = _train(range(16), None)
    spared, same, two = _train(range(16), None, reuse=True)
    assert same == pytest.approx(losses, rel=1e-10)
    for key, value in plain["model"].items():
        assert torch.allclose(value, spared["model"][key], rtol=1e-10, atol=1e-12)
    spent = [t.state_dict()["policy"]["spent"] for t in (one, two)]
    assert spent[0] - spent[1] == pytest.approx(len(two.history))


@pytest.mark.parametrize("accepted", [True, False])
def test_what_is_handed_over_is_the_gradient_there(accepted: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(8, 5), torch.randint(3, (8,))
    config = TeleportConfig(objective="grad_norm", radius=0.3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    teleporter = Teleporter(model, optimizer, every=1, config=config)

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    level = iter([2.0, 1.0] if accepted else [1.0, 2.0])
    teleporter.maybe_step(closure)
    report = teleporter.maybe_step(
        closure,
        lambda: next(level) + 0 * model.head.weight.sum(),
        lambda: closure(),  # not read by this objective
    )
    assert report is not None
    assert report.accepted == accepted
    assert teleporter.gradient_ready
    loss = teleporter.backward(closure)
    assert not teleporter.gradient_ready
    expected = torch.autograd.grad(closure(), list(model.parameters()), allow_unused=True)
    assert loss.item() == pytest.approx(closure().item(), rel=1e-5)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    teleporter.backward(closure)  # nothing is ready: an ordinary backward, which accumulates
    for p, gradient in zip(
        [p for p in model.parameters() if p.grad is not None], before, strict=True
    ):
        torch.testing.assert_close(p.grad, 2 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["dropout", "norm"])
def test_a_forward_that_leaves_traces_is_not_spared(kind: str) -> None:
    torch.manual_seed(0)
    model = Net(**{kind: True})
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    teleporter = Teleporter(model, optimizer, config=CONFIG)
    teleporter.step(lambda: F.cross_entropy(model(x), y))
    assert not teleporter.gradient_ready


@pytest.mark.parametrize("case", ["no optimizer", "another parameter", "a tied one"])
def test_a_gradient_that_is_not_all_is_not_handed_over(case: str) -> None:
    """What the optimizer trains beside, in the loss or in shared memory, needs its gradient too."""
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(8, 5), torch.randint(3, (8,))
    scale = nn.Parameter(torch.ones(()))
    trained = [*model.parameters(), scale] if case == "another parameter" else model.parameters()
    optimizer = None if case == "no optimizer" else torch.optim.SGD(trained, 1e-3)
    if case == "a tied one":
        model.norm.weight = nn.Parameter(model.body.bias.data)
    teleporter = Teleporter(model, optimizer, config=CONFIG)
    teleporter.step(lambda: scale * F.cross_entropy(model(x), y))
    assert not teleporter.gradient_ready
    loss = teleporter.backward(lambda: scale * F.cross_entropy(model(x), y))
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_guard_alone_still_looks_ahead() -> None:
    """The other samples that are looked at are then a recent batch."""
    torch.manual_seed(0)
    model, y = Net(), torch.randint(3, (8,))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    teleporter = Teleporter(model, optimizer, every=2, config=AHEAD)
    seen: list[float] = []
    for step in range(3):
        x = torch.full((8, 5), float(step + 1))

        def closure() -> Tensor:
            seen.append(x[0, 0].item())  # noqa: B023
            return F.cross_entropy(model(x), y)  # noqa: B023

        seen.clear()
        teleporter.maybe_step(closure, lambda: model.head.weight.square().sum())
    assert len(teleporter.history) == 1
    assert set(seen) == {2.0, 3.0}  # the batch before, and this one
