"""One training run on real data: what is equal with and without teleports, and what is watched."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.suite import OneWeight, backend, task

from nullport.lab.backends import Backend, load_backend
from nullport.lab.compare import Run, Settings, Task, Trainer, check, load_task
from nullport.lab.compare.training import EVALUATED, Training

NEVER = (10**6,)


@pytest.fixture(scope="module")
def digits() -> Task:
    pytest.importorskip("sklearn")
    return load_task("digits")


@pytest.fixture
def torch() -> Backend:
    pytest.importorskip("torch")
    return load_backend("torch")


def small(task: str = "digits", **given: Any) -> Settings:
    return Settings.make(task, **{"budget": 12, "batch": 8, "width": 8, "depth": 1, **given})


def trained(backend: Backend, task: Task, settings: Settings, **given: Any) -> Run:
    assert backend.trainer is not None
    trainer = backend.trainer(task, settings, 0)
    return Training(given.pop("arm", "teleport"), 0, trainer, task, settings, None, **given).run()


def losses(one: Run) -> list[tuple[float, int, float]]:
    return [(point.spent, point.step, point.loss) for point in one.curve]


@pytest.mark.parametrize(
    "method", ["nullport", "none", "symmetry", "level_set", "random", "matched_rate", "literal"]
)
def test_a_method_that_never_teleports_is_the_baseline(
    digits: Task, torch: Backend, method: str
) -> None:
    """Same initial weights, batches, budget and learning rates: same losses, to the last bit."""
    at = (2, 4) if method == "none" else NEVER
    settings = small(method=method, at=at, activation="leaky_relu", bias=False)
    check(settings, digits, torch)
    one, other = (trained(torch, digits, settings, arm=arm) for arm in ("baseline", "teleport"))
    assert losses(one) == losses(other)
    assert (one.steps, one.spent, one.valid_loss) == (other.steps, other.spent, other.valid_loss)
    assert losses(one)[0][2] > losses(one)[-1][2]
    assert not other.teleports


@pytest.mark.parametrize("method", ["nullport", "random"])
def test_until_the_first_teleport_nothing_differs(
    digits: Task, torch: Backend, method: str
) -> None:
    settings = small(method=method, at=(6,))
    one, other = (trained(torch, digits, settings, arm=arm) for arm in ("baseline", "teleport"))
    assert len(other.teleports) == 1
    count = sum(point.step <= 6 for point in one.curve)
    assert losses(one)[:count] == losses(other)[:count]
    assert losses(one)[count:] != losses(other)[count:]
    assert max(one.spent, other.spent) <= 12


def test_points_count_the_steps(digits: Task, torch: Backend) -> None:
    one = trained(torch, digits, small(at=(6,), budget=30))
    steps = [point.step for point in one.curve]
    assert steps[0] == 0
    assert steps[-1] == one.steps < 30
    assert steps == sorted(set(steps))
    # Up to the teleport a step costs 1; from there on the teleport's compute is in between.
    charged = one.teleports[0].cost - 1  # its gradient is that of the step after it
    for point in one.curve:
        assert point.spent == pytest.approx(point.step + charged * (point.step > 6))


def test_drift_is_the_change_of_the_validation_loss(digits: Task, torch: Backend) -> None:
    """Checked with evaluations of one's own, on all validation samples, around every teleport."""
    assert torch.trainer is not None
    settings = small(at=(2, 5), method="random", options={"rate": 0.5}, width=32)
    trainer = torch.trainer(digits, settings, 0)
    seen = []
    teleport = trainer.teleport

    def watching(*given: Any, now: bool | None = None) -> Any:
        before = trainer.evaluate(digits.valid_inputs, digits.valid_targets)[0]
        made = teleport(*given, now=now)
        if made[0] is not None:
            after = trainer.evaluate(digits.valid_inputs, digits.valid_targets)[0]
            seen.append(after / before - 1)
        return made

    trainer.teleport = watching
    found = Training("teleport", 0, trainer, digits, settings, None, watch=True).run()
    drifts = [t.drift for t in found.teleports]
    assert len(drifts) == 2
    assert drifts == pytest.approx(seen)
    assert any(abs(drift or 0) > 1e-4 for drift in drifts)
    # Watching changes nothing but that; without it there is no drift.
    unwatched = trained(torch, digits, settings)
    assert losses(unwatched) == losses(found)
    assert [t.drift for t in unwatched.teleports] == [None, None]


def test_drift_where_the_policy_decides(digits: Task, torch: Backend) -> None:
    found = trained(torch, digits, small(every=4, budget=30), watch=True)
    assert [t.step for t in found.teleports][:2] == [4, 8]
    assert all(t.drift is not None and math.isfinite(t.drift) for t in found.teleports)


def test_the_drift_of_a_known_teleport() -> None:
    """From -1 to 1 under (w - 2)^2: the loss falls from 9 to 1, and rises again."""

    class Slope(OneWeight):
        loss = staticmethod(lambda w: (w - 2) ** 2)

    toy = backend(Slope)
    settings = small(at=(3, 6))
    found = trained(toy, task(), settings, watch=True)
    assert [t.drift for t in found.teleports] == pytest.approx([1 / 9 - 1, 9 - 1])


def test_evaluations_take_one_sample_in_so_many(digits: Task) -> None:
    sizes: list[tuple[int, Any]] = []

    class Counting(OneWeight):
        def evaluate(self, inputs: Any, targets: Any) -> tuple[float, float | None]:
            sizes.append((len(inputs), inputs))
            return super().evaluate(inputs, targets)

    toy, settings = backend(Counting), small(at=(3,))
    for sample, expected in ((1, {1437, 360}), (4, {500, 360}), (100, {20})):
        sizes.clear()
        found = trained(toy, digits, settings, points=3, sample=sample, watch=True)
        assert {size for size, _ in sizes} == expected
        assert EVALUATED["image"] == 2000
        # Three points and the one before the first step; validation around the teleport and last.
        assert len(found.curve) == 4
        assert len(sizes) == 4 + 2 + 1
        training = [x for _, x in sizes if x[0].tobytes() == digits.inputs[0].tobytes()]
        assert len(training) == 4
        assert all(np.array_equal(x, training[0]) for x in training)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias": False, "model": "cnn"}, "invalid bias: False for a cnn; allowed: True, or model"),
        ({"options": {"rate": 1.0}}, "invalid options: {'rate': 1.0}; allowed with method 'nul"),
        ({"activation": "elu"}, "invalid activation: 'elu'; allowed: 'relu', 'gelu', 'leaky_re"),
        ({"judge": "nobody"}, "invalid judge: 'nobody'; allowed: 'another', 'same', 'several'"),
        ({"at": (0,)}, "invalid at: 0; allowed: an integer of at least 1"),
        ({"captured": 0}, "invalid captured: 0; allowed: 'batch' or an integer of at least 1"),
    ],
)
def test_settings_name_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**given)


def test_methods_are_those_of_the_backend() -> None:
    check(small(method="random"), task(), backend())
    message = "invalid method for toy: 'symmetry'; allowed: 'nullport', 'none', 'random'"
    with pytest.raises(ValueError, match=message):
        check(small(method="symmetry"), task(), backend())


def test_options_are_pairs_however_they_are_given() -> None:
    given = {"steps": 2, "rate": 0.1}
    one = small(method="random", options=given)
    assert one.options == (("steps", 2), ("rate", 0.1))
    assert one == small(method="random", options=[["steps", 2], ["rate", 0.1]])
    assert hash(one) != hash(replace(one, options=()))


@pytest.mark.parametrize("bias", [True, False])
def test_activation_and_bias_reach_the_network(digits: Task, torch: Backend, bias: bool) -> None:
    assert torch.trainer is not None
    trainer: Trainer = torch.trainer(digits, small(activation="leaky_relu", bias=bias), 0)
    shapes = [w.shape for w in trainer.weights()]
    assert shapes == ([(8, 64), (8,), (10, 8), (10,)] if bias else [(8, 64), (10, 8)])
    names = [type(module).__name__ for module in trainer.model.modules()]  # type: ignore[attr-defined]
    assert names.count("LeakyReLU") == 1
    slope = [m.negative_slope for m in trainer.model.modules() if hasattr(m, "negative_slope")]  # type: ignore[attr-defined]
    assert slope == [0.1]


def test_every_text_has_a_transformer_by_default() -> None:
    models = {"shakespeare": "transformer", "wikitext": "transformer", "diabetes": "mlp"}
    assert {name: Settings.make(name).model for name in models} == models
