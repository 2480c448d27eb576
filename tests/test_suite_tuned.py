"""What tuning chooses and what a comparison says, from records that are made up."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from helpers.suite import TUNED, decaying, grid, record

from nullport.lab.suite import tuning
from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.statistics import interval
from nullport.lab.suite.tuned import Comparison, _relative, comparisons, name_of

METHODS = (BASELINE, "nullport", "paper", "random")


def chosen(grid: Grid, losses: Any) -> dict[str, tuning.Choice]:
    """Return the choices by method, with trials of the losses that a function gives."""
    records = {job.key: record(job, losses(job)) for job in tuning.trials(grid)}
    return {c.method: c for c in tuning.choices(grid, records)}


def test_trials_are_on_seeds_of_their_own(tmp_path: Path) -> None:
    declared = grid(tmp_path, TUNED.replace("[tune]\nseeds = 1", "[tune]\nseeds = 2"))
    tried = list(tuning.trials(declared))
    assert {job.seed for job in tried} == {1000, 1001}
    found = chosen(declared, lambda _: 1.0)
    assert tuple(found) == METHODS
    for choice in found.values():
        assert [job.seed for job in choice.jobs()] == [0, 1, 2]
        assert not {job.key for job in choice.jobs()} & {job.key for job in tried}


def test_lists_of_options_and_teleports_are_tuned_with_the_rate(tmp_path: Path) -> None:
    declared = grid(tmp_path)
    tried = {m: [j.settings for j in tuning.trials(declared) if j.method == m] for m in METHODS}
    assert {m: len(found) for m, found in tried.items()} == {
        BASELINE: 3, "nullport": 3, "paper": 6, "random": 9,
    }  # fmt: skip
    assert {(s.lr, s.teleport.radius) for s in tried["paper"]} == {
        (lr, radius) for lr in (0.01, 0.1, 1.0) for radius in (0.1, 0.3)
    }
    assert {(s.lr, *s.options) for s in tried["random"]} == {
        (lr, ("rate", rate), ("steps", 2)) for lr in (0.01, 0.1, 1.0) for rate in (0.1, 0.2, 0.5)
    }
    assert all(s.at == (3,) for s in tried["random"])

    best = {BASELINE: 1.0, "nullport": 0.01, "paper": 0.3, "random": 0.2}

    def losses(job: Job) -> float:
        s = job.settings
        own = {"paper": s.teleport.radius, "random": dict(s.options).get("rate")}
        return abs(float(own.get(job.method, s.lr)) - best[job.method]) + 0.01 * s.lr

    found = chosen(declared, losses)
    assert (found[BASELINE].settings.lr, found["nullport"].settings.lr) == (1.0, 0.01)
    assert (found["paper"].settings.lr, found["paper"].settings.teleport.radius) == (0.01, 0.3)
    assert found["random"].settings.options == (("rate", 0.2), ("steps", 2))


def test_the_median_over_trials_decides_and_divergence_is_infinite(tmp_path: Path) -> None:
    declared = grid(tmp_path, TUNED.replace("[tune]\nseeds = 1", "[tune]\nseeds = 3"))
    losses = {  # by rate: the first has the lowest mean and minimum of what is finite
        0.01: [0.1, None, None],
        0.1: [2.0, 2.0, 2.0],
        1.0: [1.0, 1.9, 50.0],
    }
    found = chosen(declared, lambda job: losses[job.settings.lr][job.seed - 1000])
    assert {m: c.settings.lr for m, c in found.items()} == dict.fromkeys(METHODS, 1.0)
    assert all(c.edge for c in found.values())
    losses[1.0] = [1.0, 3.0, 3.0]
    found = chosen(declared, lambda job: losses[job.settings.lr][job.seed - 1000])
    assert {(c.settings.lr, c.edge) for c in found.values()} == {(0.1, False)}
    assert tuning.loss({"final_loss": None}) == math.inf


def test_nothing_is_chosen_before_all_trials_are_there(tmp_path: Path) -> None:
    declared = grid(tmp_path)
    records = {job.key: record(job, 1.0) for job in tuning.trials(declared)}
    last = next(job for job in tuning.trials(declared) if job.method == "paper")
    del records[last.key]
    assert [c.method for c in tuning.choices(declared, records)] == [BASELINE, "nullport", "random"]


def compared(folder: Path, **makers: Any) -> dict[str, Comparison]:
    """Return the comparisons by method; every maker takes a job and returns its record."""
    declared = grid(folder)
    records = {job.key: record(job, job.settings.lr) for job in tuning.trials(declared)}
    for choice in tuning.choices(declared, records):
        if choice.method in makers:
            records |= {job.key: makers[choice.method](job) for job in choice.jobs()}
    return {c.method: c for c in comparisons(declared, records)}


def test_changes_at_equal_compute_steps_and_seconds(tmp_path: Path) -> None:
    """Losses are exponentials of the steps, so interpolation of logarithms is exact."""
    base_seconds, seconds = (1.0, 1.1, 5.0), (2.2, 2.0, 9.0)
    found = compared(
        tmp_path,
        baseline=lambda job: decaying(job, 0.02, 100, base_seconds[job.seed]),
        nullport=lambda job: decaying(job, 0.03, 80, seconds[job.seed]),
        random=lambda job: decaying(job, 0.03, 100, 0.5),
    )
    assert list(found) == ["nullport", "random"]
    mine = found["nullport"].changes
    # 80 steps against 100; then 80 against 80; then half the steps, in the median 1.1 of 2.2 s.
    assert mine["spent"] == pytest.approx([math.expm1(-0.03 * 80 + 0.02 * 100)] * 3)
    assert mine["step"] == pytest.approx([math.expm1(-0.03 * 80 + 0.02 * 80)] * 3)
    assert mine["seconds"] == pytest.approx([math.expm1(-0.03 * 40 + 0.02 * 100)] * 3)
    # Here the baseline is the slower one, and is read at 0.5 of its 1.1 seconds.
    other = found["random"].changes["seconds"]
    assert other == pytest.approx([math.expm1(-0.03 * 100 + 0.02 * 100 * 0.5 / 1.1)] * 3)
    assert found["nullport"].share == pytest.approx(0.2)
    assert found["nullport"].slower == pytest.approx(1.0)
    assert name_of(found["nullport"].choice) == ("digits, mlp", "sgd", "cosine")


def test_a_run_that_diverged_is_infinitely_worse(tmp_path: Path) -> None:
    losses = (0.5, None, 0.5)
    found = compared(
        tmp_path,
        baseline=lambda job: record(job, 1.0 if job.seed else None),
        nullport=lambda job: record(job, losses[job.seed]),
    )["nullport"]
    # The first seed diverges without teleports and is left out.
    assert all(changes == (math.inf, -0.5) for changes in found.changes.values())
    assert found.valid == (math.inf, -0.5)
    assert [run["seed"] for run in found.runs] == [1, 2]


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [((0.5, 0.9, 0.8), -1), ((0.5, 1.1, 0.8), 0), ((1.2, 1.1, 1.3), 1), ((1.2, None, 1.3), 1)],
)
def test_verdicts(tmp_path: Path, losses: Any, verdict: int) -> None:
    found = compared(
        tmp_path,
        baseline=lambda job: record(job, 1.0),
        paper=lambda job: record(job, losses[job.seed], drift=[0.1 * job.seed, None]),
    )["paper"]
    assert found.verdict == verdict
    assert found.change == pytest.approx(median(math.inf if x is None else x - 1 for x in losses))
    assert found.drifts == pytest.approx([0.0, math.inf, 0.1, math.inf, 0.2, math.inf])


def test_the_interval_is_that_of_the_exact_bootstrap() -> None:
    """With n = 9, P(median <= k-th value) = P(Binomial(n, k / n) >= 5)."""
    n = 9

    def below(k: int) -> float:
        return sum(math.comb(n, j) * (k / n) ** j * (1 - k / n) ** (n - j) for j in range(5, n + 1))

    ends = tuple(next(k for k in range(n + 1) if below(k) >= p) for p in (0.025, 0.975))
    assert interval([float(k) for k in range(n, 0, -1)]) == ends
    assert min(abs(below(k) - p) for k in range(n) for p in (0.025, 0.975)) > 0.005


@pytest.mark.parametrize("values", [[-1.0, 1.0], [1.0, 2.0, 3.0, 4.0], [0.0, 1.0, math.inf]])
def test_the_interval_holds_the_median(values: list[float]) -> None:
    low, high = interval(values)
    assert low <= median(values) <= high


def test_an_even_number_of_values_is_not_biased() -> None:
    """The upper of the two in the middle would be 1 more often than not."""
    assert interval([0.0, 1.0] * 10, level=0.1) == (0.5, 0.5)
    assert interval([math.inf] * 4) == (math.inf, math.inf)


def test_a_comparison_keeps_the_methods_own_rate(tmp_path: Path) -> None:
    def best(job: Job) -> float:
        return abs(job.settings.lr - {BASELINE: 0.1, "nullport": 1.0}.get(job.method, 0.01))

    choices = chosen(grid(tmp_path), best)
    assert {m: c.settings.lr for m, c in choices.items()} == {
        BASELINE: 0.1, "nullport": 1.0, "paper": 0.01, "random": 0.01,
    }  # fmt: skip
    same = replace(choices["nullport"].settings, lr=0.1, at=())
    assert same == choices[BASELINE].settings


@pytest.mark.parametrize(
    ("mine", "base", "change"),
    [
        (3.0, 2.0, 0.5),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, math.inf),
        (None, 2.0, math.inf),
        (2.0, None, math.inf),
        (None, None, math.inf),
    ],
)
def test_changes_of_losses_that_are_none_or_zero(
    mine: float | None, base: float | None, change: float
) -> None:
    assert _relative({"valid_loss": mine}, {"valid_loss": base}, "valid_loss") == change
