"""What a comparison shows beside its two arms, and what it says of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullport import TeleportReport
from nullport.lab.backends import Backend
from nullport.lab.compare import Results, Run, Settings, Task, neighbours, run, run_neighbours
from nullport.lab.compare.advice import advice, beats
from nullport.lab.compare.plot import plot
from nullport.lab.compare.records import Point
from nullport.lab.compare.table import table


class Still:
    """A trainer without a network, whose loss tells its settings: rate, and half of it for He."""

    def __init__(self, task: Task, settings: Settings, seed: int) -> None:
        self.loss = settings.lr * (0.5 if settings.init == "he" else 1.0) + seed

    def set_lr(self, lr: float) -> None:
        pass

    def teleport(self, *batches: Any, **given: Any) -> tuple[TeleportReport | None, float]:
        return None, 0.0

    def step(self, batch: Any) -> tuple[float, float]:
        return self.loss, 1.0

    def evaluate(self, inputs: Any, targets: Any) -> tuple[float, float | None]:
        return self.loss, None


@pytest.fixture
def toy() -> Task:
    x = np.zeros((40, 2), np.float32)
    return Task("toy", "classification", 2, x, np.arange(40) % 2, x, np.arange(40) % 2)


@pytest.fixture
def still() -> Backend:
    return Backend("toy", dict, lambda: ["cpu"], list, Still)


def small(**given: Any) -> Settings:
    return Settings.make(**{"seeds": 2, "budget": 4, "batch": 8, "lr": 0.3, **given})


def ended(**losses: list[float]) -> Results:
    """Return results of these final losses, an arm each; underscores stand for spaces."""
    runs = tuple(
        Run(
            arm.replace("_", " "),
            seed,
            1,
            1.0,
            0.0,
            loss,
            None,
            (Point(0, 0, 9), Point(1, 0, loss)),
        )
        for arm, values in losses.items()
        for seed, loss in enumerate(values)
    )
    return Results(small(), {}, runs)


def test_rates_and_a_better_initialisation_are_beside_the_arms(toy: Task, still: Backend) -> None:
    given = small()
    runs = run_neighbours(given, toy, still)
    assert [(r.arm, r.seed) for r in runs] == [
        (arm, seed) for arm in ("lr 0.1", "lr 0.9", "lr 3", "init he") for seed in range(2)
    ]
    expected = [0.1, 1.1, 0.9, 1.9, 3.0, 4.0, 0.15, 1.15]
    np.testing.assert_allclose([r.final_loss for r in runs], expected)
    assert all(r.spent == given.budget and not r.teleports for r in runs)


def test_no_initialisation_where_it_is_the_better_one_or_the_networks_own(
    toy: Task, still: Backend
) -> None:
    rates = ["lr 0.1", "lr 0.9", "lr 3"]
    assert list(neighbours(small(init="he"), toy, still)) == rates
    assert list(neighbours(small(), replace(toy, build=lambda _: None), still)) == rates
    for arm, own in neighbours(small(init="he"), toy, still).items():
        assert replace(own, lr=0.3) == small(init="he")
        assert arm == f"lr {own.lr:.3g}"
    without = replace(still, only={"init": ("default",)})
    assert list(neighbours(small(), toy, without)) == rates
    assert [*neighbours(small(activation="tanh"), toy, still)][-1] == "init xavier"


def test_a_comparison_by_program_runs_two_arms_only(toy: Task, still: Backend) -> None:
    results = run(small(), toy, still)
    assert results.arms() == ["baseline", "teleport"]
    assert advice(results) == ""


def test_results_with_neighbours_survive_json(toy: Task, still: Backend, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    both = run(small(), toy, still)
    results = replace(both, runs=(*both.runs, *run_neighbours(small(), toy, still)))
    record = json.loads(json.dumps(results.as_dict(), allow_nan=False))
    assert Results.from_dict(record) == results
    assert record["summary"]["lr 3"]["final_loss"]["mean"] == pytest.approx(3.5)
    assert (
        record["summary"]["difference"]
        == json.loads(json.dumps(both.as_dict()))["summary"]["difference"]
    )
    plot(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_table_has_a_line_for_each(toy: Task, still: Backend) -> None:
    console = pytest.importorskip("rich.console").Console(width=80)
    both = run(small(), toy, still)
    results = replace(both, runs=(*both.runs, *run_neighbours(small(), toy, still)))
    with console.capture() as captured:
        console.print(table(results))
    lines = captured.get().splitlines()
    (first, _) = (line for line in lines if "lr 3 " in line)
    assert [word for word in first.split() if word[0].isdigit()][1] == "3.50"
    assert first.rstrip(" │").endswith("better")  # percent and words, then the difference
    assert lines[lines.index(first) + 1].rstrip(" │").endswith("-2.7")
    assert "Without teleports, lr 0.1 ends lower than the teleport at lr 0.3" in " ".join(
        captured.get().split()
    )


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (
            {"lr_0.9": [3.0, 2.0], "init_he": [0.5, 1.5]},
            "Without teleports, init he ends lower than the teleport at lr 0.3: final train loss "
            "1 against 2.",
        ),
        (
            {"lr_0.9": [1.5, 1.5], "lr_3": [math.inf, 1.0], "init_he": [0.5, 1.5]},
            "Without teleports, init he ends lower than the teleport at lr 0.3: final train loss "
            "1 against 2 (lr 0.9 too).",
        ),
        (
            {"lr_0.9": [2.5, 1.0], "lr_3": [math.inf] * 2},
            "Without teleports nothing ends clearly lower: neither lr 0.3, lr 0.9 nor lr 3.",
        ),
    ],
)
def test_one_sentence_says_what_beats_the_teleport(
    losses: dict[str, list[float]], sentence: str
) -> None:
    arms = {"baseline": [4.0, 4.0], "teleport": [2.0, 2.0]}
    assert advice(ended(**arms, **losses)) == sentence


def test_the_baseline_itself_may_beat_the_teleport() -> None:
    said = advice(ended(baseline=[1.0, 1.0], teleport=[2.0, 3.0], init_he=[4.0, 4.0]))
    assert said.startswith("Without teleports, lr 0.3 ends lower than the teleport at lr 0.3: ")


def test_three_of_four_seeds_are_not_enough() -> None:
    assert not beats([1.0, 1.0, 1.0, 3.0], [2.0] * 4)
    assert beats([1.0, 1.0, 1.0, 1.0, 3.0], [2.0] * 5)
    assert beats([1.0], [math.inf])
    assert not beats([math.inf], [math.inf])
