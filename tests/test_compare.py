"""The comparison: fair accounts, equal batches, and results that can be read again."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from nullport import TeleportConfig, TeleportReport
from nullport._report import Cause
from nullport.lab.backends import Backend, load_backend
from nullport.lab.compare import Results, Run, Settings, Task, check, load_task, run
from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.plot import curves, plot
from nullport.lab.compare.records import Point, Teleport
from nullport.lab.compare.table import table
from nullport.lab.compare.training import EVALUATED, POINTS, learning_rate

COST = 2.5


class Recorder:
    """A trainer without a network: it records what it is asked, and its loss halves per step."""

    made: ClassVar[list[Recorder]] = []

    def __init__(self, task: Task, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.calls: list[tuple[Any, ...]] = []
        self.rates: list[float] = []
        self.loss = 8.0
        self.made.append(self)

    def set_lr(self, lr: float) -> None:
        self.rates.append(lr)

    def teleport(
        self, batch: Any, guard: Any, others: Any, *, now: bool | None = None
    ) -> tuple[TeleportReport | None, float]:
        steps = sum(call[0] == "step" for call in self.calls)
        if (not steps or steps % 5) if now is None else not now:
            return None, 0.0
        seen = [given and given[0].tobytes() for given in (batch, guard, others)]
        self.calls.append(("teleport", *seen))
        cause = Cause.NONE if steps % 10 else Cause.GUARD
        return TeleportReport(1.0, 1.0, 1.0, math.inf, 0.1, cause, cost=COST), COST

    def step(self, batch: Any) -> tuple[float, float]:
        self.calls.append(("step", batch[0].tobytes()))
        self.loss *= 0.5 if self.settings.lr < 100 else math.inf
        return self.loss, 1.0

    def evaluate(self, inputs: Any, targets: Any) -> tuple[float, float | None]:
        return self.loss + self.seed, 0.5


@pytest.fixture
def toy() -> Task:
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    return Task("toy", "classification", 2, x, np.arange(40) % 2, x, np.arange(40) % 2)


@pytest.fixture
def recorder() -> Backend:
    Recorder.made = []
    return Backend("toy", lambda: {"toy": "1"}, lambda: ["cpu"], list, Recorder)


@pytest.fixture
def backend() -> Backend:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    return load_backend("torch")


@pytest.fixture(scope="module")
def digits() -> Task:
    pytest.importorskip("sklearn")
    return load_task("digits")


def small(**given: Any) -> Settings:
    return Settings.make(**{"seeds": 2, "budget": 20, "batch": 8, "every": 5, **given})


def test_both_arms_spend_the_same_budget(toy: Task, recorder: Backend) -> None:
    results = run(small(budget=50), toy, recorder)
    assert [(r.arm, r.seed) for r in results.runs] == [
        (arm, seed) for seed in range(2) for arm in ARMS
    ]
    for one in results.runs:
        assert one.spent == one.steps + COST * len(one.teleports)
        assert 49 < one.spent <= 50
        assert one.curve[0].spent == 0
        assert one.curve[-1].spent == one.spent
    assert {one.steps for one in results.of("baseline")} == {50}
    assert not any(one.teleports for one in results.of("baseline"))
    assert [t.step for t in results.of("teleport")[0].teleports] == [5, 10, 15, 20, 25, 30]
    assert (results.of("teleport")[0].accepted, results.of("teleport")[0].refused) == (3, 3)


@pytest.mark.parametrize("budget", range(1, 30))
def test_no_step_is_made_that_the_budget_does_not_cover(
    toy: Task, recorder: Backend, budget: int
) -> None:
    for one in run(small(budget=budget, seeds=1), toy, recorder).runs:
        # Only a first teleport, whose cost nobody knows before, can reach over the budget.
        assert one.spent <= budget + COST * (len(one.teleports) == 1)
        assert one.spent > budget - 1 - COST
        assert one.steps + COST * max(0, len(one.teleports) - 1) <= budget


def test_both_arms_see_the_same_batches_and_teleports_two_earlier_ones(
    toy: Task, recorder: Backend
) -> None:
    run(small(budget=40, seeds=1), toy, recorder)
    _, baseline, teleporting = Recorder.made  # the first only warms up
    plain = [call[1] for call in baseline.calls]
    steps = [call[1] for call in teleporting.calls if call[0] == "step"]
    assert steps == plain[: len(steps)]
    teleports = [i for i, call in enumerate(teleporting.calls) if call[0] == "teleport"]
    assert len(teleports) > 3
    for i in teleports:
        own, guard, others = teleporting.calls[i][1:]
        steps_around = [teleporting.calls[j][1] for j in (i + 1, i - 1, i - 2)]
        assert [own, guard, others] == steps_around


def test_without_guard_no_other_batch_is_shown(toy: Task, recorder: Backend) -> None:
    run(small(budget=40, guard=False), toy, recorder)
    calls = [call for trainer in Recorder.made for call in trainer.calls if call[0] == "teleport"]
    assert calls
    assert all(call[2] is None for call in calls)


def test_an_epoch_sees_every_sample_once_and_seeds_differ(toy: Task, recorder: Backend) -> None:
    run(small(budget=10), toy, recorder)
    orders = [
        [call[1] for call in trainer.calls] for trainer in (Recorder.made[1], Recorder.made[3])
    ]
    for order in orders:
        for epoch in (order[:5], order[5:]):
            rows = np.frombuffer(b"".join(epoch), np.float32)
            np.testing.assert_array_equal(np.sort(rows), np.arange(80))
    assert orders[0] != orders[1]


def test_the_learning_rate_follows_the_compute_spent(toy: Task, recorder: Backend) -> None:
    run(small(budget=40, lr=0.4, seeds=1), toy, recorder)
    _, baseline, teleporting = Recorder.made
    spent = np.arange(len(baseline.rates))
    np.testing.assert_allclose(baseline.rates[:40], 0.2 * (1 + np.cos(np.pi * spent[:40] / 40)))
    assert len(teleporting.rates) < len(baseline.rates)
    assert teleporting.rates[-1] < 0.05 * 0.4
    assert learning_rate(small(lr=0.4, schedule="constant"), 13) == 0.4


def test_curves_hold_about_thirty_points_of_rising_compute(toy: Task, recorder: Backend) -> None:
    for one in run(small(budget=120), toy, recorder).runs:
        assert abs(len(one.curve) - 1 - POINTS) <= 1
        spent = [point.spent for point in one.curve]
        assert spent == sorted(set(spent))


def test_a_diverged_run_ends_early_and_is_infinite(toy: Task, recorder: Backend) -> None:
    results = run(small(lr=1000.0), toy, recorder)
    for one in results.runs:
        assert one.steps == 1
        assert one.final_loss == one.valid_loss == one.area == math.inf
    assert math.isnan(results.summary()["baseline"]["final_loss"].mean)
    record = json.loads(json.dumps(results.as_dict(), allow_nan=False))
    assert Results.from_dict(record) == results


def test_progress_is_told_and_nothing_is_printed(
    toy: Task, recorder: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[tuple[str, int, float]] = []
    results = run(small(), toy, recorder, lambda *news: heard.append(news))
    for one in results.runs:
        own = [spent for arm, seed, spent in heard if (arm, seed) == (one.arm, one.seed)]
        assert own == sorted(own)
        assert len(own) == one.steps
    assert capfd.readouterr() == ("", "")


def test_area_is_the_mean_loss_over_compute() -> None:
    curve = (Point(0, 0, 4.0), Point(1, 0, 2.0), Point(4, 0, 0.0))
    one = Run("baseline", 0, 4, 4.0, 0.0, 1.0, None, curve)
    assert one.area == pytest.approx((3.0 * 1 + 1.0 * 3) / 4)
    assert replace(one, curve=curve[:1]).area == 4.0


def test_summary_pairs_the_arms_by_seed() -> None:
    losses = {"baseline": [1.0, 2.0, 4.0], "teleport": [0.5, 1.5, 3.5]}
    runs = tuple(
        Run(arm, seed, 1, 1.0, 0.0, loss, None, (Point(0, 0, 9.0), Point(1, 0, loss)))
        for arm, values in losses.items()
        for seed, loss in enumerate(values)
    )
    summary = Results(small(), {}, runs).summary()
    assert summary["baseline"]["final_loss"] == pytest.approx(
        (np.mean(losses["baseline"]), np.std(losses["baseline"], ddof=1))
    )
    assert summary["difference"]["final_loss"] == pytest.approx((-0.5, 0.0))
    assert "accuracy" not in summary["baseline"]


def test_results_survive_json(toy: Task, recorder: Backend) -> None:
    settings = small(teleport=TeleportConfig(radius=0.2, exclude=("*.bias",)))
    results = run(settings, toy, recorder)
    text = json.dumps(results.as_dict(), allow_nan=False)
    again = Results.from_dict(json.loads(text))
    assert again == results
    assert again.settings.teleport.exclude == ("*.bias",)
    assert results.versions["toy"] == "1"
    # What every teleport reported is there, and what is no finite number is null.
    teleports = json.loads(text)["runs"][1]["teleports"]
    expected = set(TeleportReport(1, 1, 1, 1, 1, True).as_dict())
    assert teleports
    assert all(set(t["report"]) == expected for t in teleports)
    assert teleports[0]["report"]["grad_norm_after"] is None


def test_a_custom_objective_is_written_by_name(toy: Task, recorder: Backend) -> None:
    settings = small(teleport=TeleportConfig(objective=np.negative))
    record = run(settings, toy, recorder).as_dict()
    assert record["settings"]["teleport"]["objective"] == "negative"
    with pytest.raises(ValueError, match="invalid objective: 'negative'"):
        Results.from_dict(record)


def test_settings_and_results_pickle(toy: Task, recorder: Backend) -> None:
    results = run(small(), toy, recorder)
    assert pickle.loads(pickle.dumps(results)) == results


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "rnn"}, "invalid model: 'rnn'; allowed: 'mlp', 'cnn', 'vgg', 'auto"),
        ({"optimizer": "lion"}, "invalid optimizer: 'lion'; allowed: 'sgd', 'momentum'"),
        ({"schedule": "linear"}, "invalid schedule: 'linear'; allowed: 'constant', 'cosine'"),
        ({"init": "glorot"}, "invalid init: 'glorot'; allowed: 'default', 'he'"),
        ({"activation": "elu"}, "invalid activation: 'elu'; allowed: 'relu', 'gelu'"),
        ({"seeds": 0}, "invalid seeds: 0; allowed: an integer of at least 1"),
        ({"budget": 2.5}, "invalid budget: 2.5; allowed: an integer"),
        ({"threads": 0}, "invalid threads: 0; allowed: an integer of at least 1"),
        ({"batch": True}, "invalid batch: True; allowed: an integer"),
        ({"lr": 0.0}, "invalid lr: 0.0; allowed: a finite number above 0"),
        ({"lr": math.inf}, "invalid lr: inf; allowed: a finite number above 0"),
        ({"every": "often"}, "invalid every: 'often'; allowed: 'auto'"),
    ],
)
def test_settings_name_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.make(**given)


def test_settings_must_fit_task_and_backend(toy: Task, recorder: Backend) -> None:
    for given, message in (
        ({"model": "cnn"}, "invalid model for toy: 'cnn'; allowed: 'mlp', 'autoencoder', 't"),
        ({"batch": 41}, "invalid batch: 41; allowed: at most the 40 training samples of toy"),
        ({"device": "tpu"}, "invalid device: 'tpu'; allowed: 'cpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(small(**given), toy, recorder)
    with pytest.raises(ValueError, match="invalid backend: 'toy'"):
        check(small(), toy, replace(recorder, trainer=None))


def test_the_picture_is_one(toy: Task, recorder: Backend, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "a.png"
    plot(run(small(), toy, recorder), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert pixels.shape[1] > pixels.shape[0] > 300
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 20
    plot(run(small(lr=1000.0), toy, recorder), path)  # diverged: still no error


def test_curves_are_interpolated_as_far_as_all_runs_go() -> None:
    first = (Point(0, 0, 4.0), Point(4, 8.0, 0.0))
    second = (Point(0, 0, 2.0), Point(1, 1.0, 1.0), Point(2, 2.0, math.inf))
    runs = [Run("baseline", 0, 4, 4.0, 0.0, 1.0, None, curve) for curve in (first, second)]
    spent, losses = curves(runs, "spent", points=5)
    np.testing.assert_allclose(spent, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(losses[0], 4 - spent)
    np.testing.assert_allclose(losses[1], [2, 1.5, 1, np.nan, np.nan])
    seconds, same = curves(runs, "seconds", points=5)
    np.testing.assert_allclose(seconds, 1.5 * spent)
    np.testing.assert_array_equal(same, losses)


def test_the_table_shows_mean_and_deviation(toy: Task, recorder: Backend) -> None:
    console = pytest.importorskip("rich.console").Console(width=100)
    with console.capture() as captured:
        console.print(table(run(small(), toy, recorder)))
    text = captured.get()
    for words in (
        "baseline",
        "teleport",
        "difference",
        "final train loss",
        "0.50 ± 0.71",
        "accepted",
    ):
        assert words in text
    with console.capture() as captured:
        console.print(table(run(small(lr=1000.0), toy, recorder)))
    assert "diverged" in captured.get()


# The torch trainer -------------------------------------------------------------------------------


def test_two_runs_give_the_same_results(digits: Task, backend: Backend) -> None:
    settings = small(budget=40, every=10, batch=32, seeds=1, width=32)
    first, second = (run(settings, digits, backend).as_dict() for _ in range(2))
    assert without_seconds(first) == without_seconds(second)
    assert first["runs"][1]["teleports"]


def test_both_arms_start_from_the_same_weights(digits: Task, backend: Backend) -> None:
    results = run(small(width=16), digits, backend)
    losses = [one.curve[0].loss for one in results.runs]
    assert losses[0] == losses[1] != losses[2] == losses[3]
    # Until the first teleport nothing differs; it is due after five steps.
    head = [[point.loss for point in one.curve if point.spent <= 5] for one in results.runs]
    assert head[0] == head[1]
    assert len(head[0]) > 3


def test_the_charge_is_what_the_reports_say(digits: Task, backend: Backend) -> None:
    one = run(small(budget=60, seeds=1, width=16), digits, backend).of("teleport")[0]
    assert one.teleports
    # The training step after a teleport is spared its gradient.
    assert all(t.cost == pytest.approx(t.report["cost"]) for t in one.teleports)
    assert one.spent == pytest.approx(one.steps + sum(t.cost - 1 for t in one.teleports))
    assert 59 < one.spent <= 60 + 1e-6


@pytest.mark.parametrize("objective", ["decrease", "look_ahead"])
def test_other_objectives_get_what_they_read(
    digits: Task, backend: Backend, objective: Any
) -> None:
    teleport = TeleportConfig(objective=objective)
    settings = small(every=1, seeds=1, width=16, optimizer="adam", teleport=teleport)
    assert run(settings, digits, backend).of("teleport")[0].teleports


def test_nothing_global_stays_changed(digits: Task, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    seen = []
    run(
        small(seeds=1, width=16, budget=6, threads=threads + 1),
        digits,
        backend,
        lambda *_: seen.append(torch.get_num_threads()),
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert set(seen) == {torch.get_num_threads()} == {threads}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adagrad", "adam", "adamw"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_every_model_learns_under_every_optimizer(
    digits: Task, backend: Backend, model: Any, optimizer: Any
) -> None:
    sizes = {"mlp": 64, "cnn": 8, "transformer": 16}
    settings = Settings.make(
        model=model, optimizer=optimizer, width=sizes[model], depth=1, seeds=1, budget=40, every=8
    )
    for one in run(settings, digits, backend).runs:
        assert one.final_loss < one.curve[0].loss
        assert 0 <= (one.accuracy or 0) <= 1
        assert bool(one.teleports) == (one.arm == "teleport")


@pytest.mark.parametrize(
    ("kind", "shape", "models"),
    [
        ("regression", (5,), ["mlp", "transformer"]),
        ("regression", (12, 3), ["mlp", "transformer"]),
        ("classification", (6, 9, 2), ["mlp", "cnn", "transformer"]),
        ("language", (10,), ["transformer"]),
    ],
)
def test_every_model_takes_every_form_it_is_allowed(
    backend: Backend, kind: Any, shape: tuple[int, ...], models: list[Any]
) -> None:
    task = synthetic(kind, shape)
    for model in models:
        settings = Settings.make(
            model=model, width=8, depth=4, seeds=1, budget=12, batch=16, every=4,
            init="he", activation="gelu", optimizer="adam",
        )  # fmt: skip
        results = run(settings, task, backend)
        assert all(math.isfinite(one.final_loss) for one in results.runs)
        assert all((one.accuracy is None) == (kind == "regression") for one in results.runs)
        assert results.of("teleport")[0].teleports


def test_evaluation_is_the_mean_over_samples(backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    task = synthetic("language", (10,), count=1100)  # more than two chunks
    assert backend.trainer is not None
    trainer = backend.trainer(task, Settings.make("shakespeare", width=8, depth=1), 0)
    loss, accuracy = trainer.evaluate(task.inputs, task.targets)
    with torch.no_grad():
        logits = trainer.model(torch.from_numpy(task.inputs)).numpy().astype(np.float64)
    picked = np.take_along_axis(logits, task.targets[..., None], axis=-1)[..., 0]
    expected = np.log(np.exp(logits).sum(-1)) - picked
    assert loss == pytest.approx(expected.mean(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(-1) == task.targets).mean())


def test_the_language_model_sees_only_the_past(backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    task = synthetic("language", (10,))
    assert backend.trainer is not None
    model = backend.trainer(task, Settings.make("shakespeare", width=16), 0).model
    x = torch.from_numpy(task.inputs[:2])
    changed = x.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 7
    with torch.no_grad():
        first, second = model(x), model(changed)
    torch.testing.assert_close(first[:, :6], second[:, :6])
    assert not torch.allclose(first[:, 6:], second[:, 6:])


def test_he_initialisation_has_its_scale_and_no_bias(digits: Task, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    assert backend.trainer is not None
    model = backend.trainer(digits, Settings.make(init="he"), 0).model
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 4
    for layer in layers[:-1]:
        assert float(layer.weight.detach().std()) == pytest.approx(
            (2 / layer.in_features) ** 0.5, rel=0.05
        )
        assert not layer.bias.any()


def test_a_run_that_diverges_does_not_stop_the_comparison(digits: Task, backend: Backend) -> None:
    for lr in (50.0, 1e6, 1e30):
        settings = small(lr=lr, seeds=1, width=16, every=1, schedule="constant")
        results = run(settings, digits, backend)
        assert results.of("baseline")[0].final_loss > 2 or lr == 50.0
        json.dumps(results.as_dict(), allow_nan=False)


def test_evaluations_take_a_fixed_part(backend: Backend) -> None:
    task = synthetic("regression", (5,), count=EVALUATED["vector"] + 500)
    seen: list[Any] = []

    class Counting(Recorder):
        def evaluate(self, inputs: Any, targets: Any) -> tuple[float, float | None]:
            seen.append(inputs)
            return 1.0, None

    run(small(seeds=1), task, replace(backend, trainer=Counting))
    assert {len(x) for x in seen} == {EVALUATED["vector"]}
    assert all(np.array_equal(x, seen[0]) for x in seen)


def synthetic(kind: Any, shape: tuple[int, ...], count: int = 64) -> Task:
    """Random data of a kind, with seven classes, letters or outputs."""
    generator = np.random.default_rng(0)
    x: Any = generator.normal(size=(count, *shape)).astype(np.float32)
    y: Any = generator.normal(size=(count, 7)).astype(np.float32)
    if kind == "language":
        x, y = generator.integers(0, 7, (2, count, *shape))
    if kind == "classification":
        y = generator.integers(0, 7, count)
    return Task("toy", kind, 7, x, y, x, y)


def without_seconds(value: Any) -> Any:
    """Drop every entry of that name."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def test_teleport_record_counts_by_verdict() -> None:
    teleports = tuple(Teleport(0, 0.0, 1.0, {"accepted": ok}) for ok in (True, False, True))
    one = Run("teleport", 0, 1, 1.0, 0.0, 1.0, None, (Point(0, 0, 1.0),), teleports)
    assert (one.accepted, one.refused) == (2, 1)


def _made(recorder: Backend, toy: Task, **given: Any) -> tuple[Run, list[tuple[Any, ...]]]:
    found = run(small(seeds=1, **given), toy, recorder).of("teleport")[0]
    return found, Recorder.made[-1].calls


def test_teleports_at_given_steps(toy: Task, recorder: Backend) -> None:
    found, _ = _made(recorder, toy, at=(3, 4, 9))
    assert [t.step for t in found.teleports] == [3, 4, 9]


@pytest.mark.parametrize("judge", ["another", "same", "several"])
def test_who_judges(toy: Task, recorder: Backend, judge: Any) -> None:
    found, calls = _made(recorder, toy, at=(5,), judge=judge)
    index = next(i for i, call in enumerate(calls) if call[0] == "teleport")
    _, _, guard, others = calls[index]
    before = [call[1] for call in calls[:index]][::-1]  # the last batch first
    assert others == before[1]
    expected = {"another": before[0], "same": before[1], "several": b"".join(before[:4])}
    assert guard == expected[judge]
    assert found.teleports


@pytest.mark.parametrize(
    ("given", "charge"),
    [
        ({}, COST),
        # others 1, guard two forwards of one batch; the rest is of half a batch
        ({"captured": 4}, (COST - 1) / 2 + 1),
        ({"captured": 4, "teleport": TeleportConfig(objective="grad_norm")}, COST / 2),
    ],
)
def test_what_parts_of_batches_are_charged(
    toy: Task, recorder: Backend, given: dict[str, Any], charge: float
) -> None:
    """The recorder's reports have no guard loss, so none was paid for."""
    found, calls = _made(recorder, toy, at=(5,), **given)
    assert found.teleports[0].cost == pytest.approx(charge)
    rows = len(next(call for call in calls if call[0] == "teleport")[1]) // 8
    assert rows == given.get("captured", 8)
