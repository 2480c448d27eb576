"""The two further questions: barriers between solutions, and sensitivity to every field."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers.suite import PARTS, TUNED, Convex, OneWeight, backend, grid, record, task

from nullport import TeleportConfig, _step
from nullport.lab.suite import barrier, sensitivity, tuning
from nullport.lab.suite.barrier import OTHER_SEED, Pairs
from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.sensitivity import RADIUS


def choices(declared: Grid) -> list[tuning.Choice]:
    """Return choices where the baseline is best at 0.1 and all others at 1."""

    def loss(job: Job) -> float:
        return abs(job.settings.lr - (0.1 if job.method == BASELINE else 1.0))

    records = {job.key: record(job, loss(job)) for job in tuning.trials(declared)}
    return tuning.choices(declared, records)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    declared = grid(tmp_path, TUNED.replace("at = [3, 6]", "at = [3]") + PARTS)
    assert declared.connectivity is not None
    return next(barrier.pairs(choices(declared), declared.connectivity))


def test_only_the_teleports_differ_within_a_pair(tmp_path: Path, pairs: Pairs) -> None:
    assert [name for name, _ in pairs.others] == ["nullport", "paper", "random", OTHER_SEED]
    jobs = [pairs.base, *(job for _, job in pairs.others)]
    assert {job.settings.lr for job in jobs} == {0.1}  # the baseline's, for all
    assert [job.seed for job in jobs] == [0, 0, 0, 0, 500]
    assert [job.arm for job in jobs] == [BASELINE, *["teleport"] * 3, BASELINE]
    declared = grid(tmp_path, TUNED + PARTS.replace("seeds = 2", "seeds = 9"))
    assert declared.connectivity is not None
    found = list(barrier.pairs(choices(declared), declared.connectivity))
    assert [p.base.seed for p in found] == [0, 1, 2]  # no more than the cell has
    assert not list(barrier.pairs(choices(declared), {"only": {"optimizer": ["adam"]}}))


def test_the_barrier_of_a_double_well_is_its_height(pairs: Pairs) -> None:
    """One teleport turns the weight from -1 to 1; (w^2 - 1)^2 + 0.5 is 1 higher in the middle."""
    found = barrier.measure(pairs, task(), backend(OneWeight))
    assert found["barrier"] == {"nullport": 1.0, "paper": 1.0, "random": 1.0, OTHER_SEED: 0.0}
    assert found["distance"] == {"nullport": 2.0, "paper": 2.0, "random": 2.0, OTHER_SEED: 0.0}
    assert found["final_loss"] == 0.5
    assert (found["key"], found["seed"]) == (pairs.key, 0)
    json.dumps(found, allow_nan=False)


def test_a_convex_loss_has_no_barrier(pairs: Pairs) -> None:
    """The loss is (w + 1/2)^2 + 1/2, higher at 1 than at -1; the line between them is above it."""
    found = barrier.measure(pairs, task(), backend(Convex))
    assert found["barrier"] == pytest.approx(dict.fromkeys(found["barrier"], 0.0), abs=1e-12)
    assert found["distance"]["nullport"] == 2.0
    assert found["final_loss"] == 0.75


def test_a_barrier_that_is_no_number_is_none(pairs: Pairs) -> None:
    class Walled(OneWeight):
        loss = staticmethod(lambda w: 0.5 if abs(w) == 1 else math.inf)

    class Lost(OneWeight):
        loss = staticmethod(lambda w: 0.5 if w < 0 else math.inf)

    for trainer in (Walled, Lost):
        found = barrier.measure(pairs, task(), backend(trainer))
        assert found["barrier"]["nullport"] is None
        assert found["barrier"][OTHER_SEED] == 0.0
        json.dumps(found, allow_nan=False)


def test_only_teleports_of_nullport_are_varied(tmp_path: Path) -> None:
    other = '[methods.other]\nmethod = "random"\nat = [3]\n'
    start = TUNED[: TUNED.index("[methods")]
    declared = grid(tmp_path, start + other + "[methods.mine]\n" + PARTS)
    assert declared.varied == "mine"
    with pytest.raises(ValueError, match=r"\[sensitivity\] with only other; allowed"):
        grid(tmp_path, start + other + PARTS)


DECLARED: dict[str, Any] = {"include": [["1.*", "3.*"]], "exclude": [["1.*"], ["3.*"]]}


def test_every_field_is_varied() -> None:
    """A new field of the configuration fails here until something varies it."""
    default = TeleportConfig()
    varied: dict[str, set[Any]] = {}
    for name, config in sensitivity.variants(default, DECLARED).items():
        field = name.partition(" = ")[0]
        varied.setdefault(field, set()).add(getattr(config, field))
        others = {f.name for f in fields(config)} - {field}
        if field == "threshold":
            others.remove("projection")  # only one of the two is of use alone
        assert all(getattr(config, other) == getattr(default, other) for other in others)
        assert config != default
    assert set(varied) == {f.name for f in fields(TeleportConfig)}
    assert varied["include"] == {("1.*", "3.*")}
    assert varied["exclude"] == {("1.*",), ("3.*",)}
    assert varied["objective"] == {
        "grad_norm",
        "decrease",
        "look_ahead",
        "others",
        "sharpness",
        "amplify",
        "renew",
        "weight_norm",
    }
    assert varied["projection"] == {"threshold", "none"}
    assert varied["tangent"] == {"jvp", "fd"}
    assert varied["bias"] == {False}


def test_numbers_change_by_a_factor_of_10_as_far_as_is_allowed() -> None:
    def numbers(config: TeleportConfig, field: str) -> list[float]:
        found = sensitivity.variants(config, {})
        return [getattr(c, field) for name, c in found.items() if name.startswith(f"{field} = ")]

    default = TeleportConfig()
    assert [_step.radius_of(default, layers) for layers in (1, 4)] == [RADIUS, RADIUS]
    assert numbers(default, "max_gain") == [40.0]
    assert numbers(default, "budget") == pytest.approx([default.budget / 10, 1.0])
    assert numbers(default, "radius") == pytest.approx([RADIUS / 10, RADIUS * 10])
    assert numbers(default, "max_loss_change") == pytest.approx([0.005, 0.5])
    assert numbers(default, "threshold") == pytest.approx([0.001, 0.01, 0.1])
    assert numbers(default, "steps") == [10]
    other = TeleportConfig(
        projection="threshold", threshold=0.5, radius=20.0, steps=30, max_loss_change=2.0
    )
    assert numbers(other, "threshold") == pytest.approx([0.05, 1.0])
    assert numbers(other, "radius") == pytest.approx([2.0, 100.0])
    assert numbers(other, "steps") == [3, 300]
    assert numbers(other, "max_loss_change") == pytest.approx([0.2, 20.0])
    without = sensitivity.variants(other, {})["projection = budget"]
    assert (without.projection, without.threshold) == ("budget", 0.0)


def test_sensitivity_is_run_at_the_tuned_rate(tmp_path: Path) -> None:
    declared = grid(tmp_path, TUNED + PARTS)
    assert declared.sensitivity is not None
    found = choices(declared)
    jobs = list(sensitivity.jobs(found, declared.sensitivity, "nullport"))
    names = list(sensitivity.variants(TeleportConfig(), declared.sensitivity))
    assert "exclude = 1.*" in names
    assert [job.method for job in jobs[::2]] == names
    assert [job.seed for job in jobs] == [0, 1] * len(names)
    assert {(job.settings.lr, job.settings.at) for job in jobs} == {(1.0, (3, 6))}
    assert len({job.key for job in jobs}) == len(jobs)
    nowhere = {**declared.sensitivity, "only": {"task": ["mnist"]}}
    assert not list(sensitivity.jobs(found, nowhere, "nullport"))
