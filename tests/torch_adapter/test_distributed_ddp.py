"""Replicas under DistributedDataParallel and its kind make the teleport of the joint batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from helpers.ranks import on_ranks
from torch_adapter import ddp

from nullport import TeleportConfig
from nullport._report import Cause

PROJECTIONS: dict[str, dict[str, Any]] = {
    "exact": {"projection": "threshold", "max_gain": 1e9},
    "threshold": {"projection": "threshold", "threshold": 0.05, "max_gain": 1e9},
    "budget": {"max_loss_change": 1e9, "max_gain": 1e9, "radius": 0.02},
}
OBJECTIVES = ("look_ahead", "others", "sharpness", "decrease", "weight_norm", "grad_norm")
CASES: dict[str, Callable[..., Any]] = {}
for _name, _settings in PROJECTIONS.items():
    for _sizes in ([5, 5], [40, 40], [7, 4]):
        CASES[f"{_name}, {_sizes}"] = partial(
            ddp.joint, name="plain", sizes=_sizes, config=TeleportConfig(**_settings), how={}
        )
for _objective in OBJECTIVES:
    for _samples in (5, 40):
        CASES[f"{_objective}, {_samples}"] = partial(
            ddp.joint,
            name="plain",
            sizes=[_samples] * 2,
            config=TeleportConfig(objective=_objective, radius=0.02, max_loss_change=1e9),
            how={"optimizer": True},
        )
FEW = TeleportConfig(**PROJECTIONS["exact"])
CASES |= {
    "inner module": partial(ddp.joint, name="plain", sizes=[5, 5], config=FEW, how={"inner": True}),
    "batch norm": partial(ddp.joint, name="batch norm", sizes=[5, 6], config=FEW, how={}),
    "convolution": partial(ddp.joint, name="convolution", sizes=[2, 2], config=FEW, how={}),
    "several steps": partial(
        ddp.joint,
        name="plain",
        sizes=[5, 3],
        config=TeleportConfig(**PROJECTIONS["exact"] | {"steps": 3}),
        how={},
    ),
    "difference": partial(
        ddp.joint,
        name="plain",
        sizes=[5, 5],
        config=TeleportConfig(**PROJECTIONS["exact"] | {"tangent": "fd"}),
        how={},
    ),
}
UNLIKE = [([1, 9], "mean"), ([0, 6], "sum"), ([6, 0], "sum"), ([3, 17], "mean")]
FAILURES = [(at, tangent) for at in (1, 2, 3, 4) for tangent in ("jvp", "fd")]
RUNS = (
    "wrapped", "inner", "handed over", "judged", "static graph", "unused", "bucket view",
    "no_sync", "batch norm", "dropout", "convolution", "replicate", "by hand", "adam",
)  # fmt: skip
ALONE = ("own start", "own batches", "untrained", "said so")
TAMPERED = ("before", "within")


def _all(rank: int) -> dict[str, Any]:
    """Do everything on one set of processes: to start them takes longest."""
    found: dict[str, Any] = {name: work(rank) for name, work in CASES.items()}
    found |= {f"unlike {given}": ddp.unlike(rank, *given) for given in UNLIKE}
    found |= {f"failure {given}": ddp.fails(rank, *given) for given in FAILURES}
    found |= {f"run {kind}": ddp.run_of(rank, kind) for kind in RUNS}
    found |= {f"alone {kind}": ddp.alone(rank, kind) for kind in ALONE}
    found |= {f"tampered {when}": ddp.tampered(rank, when) for when in TAMPERED}
    return found


def _four(rank: int) -> dict[str, Any]:
    config = TeleportConfig(**PROJECTIONS["exact"])
    return {
        "joint": ddp.joint(rank, "plain", [3, 2, 4, 1], config, {}),
        "none": ddp.unlike(rank, [2, 0, 5, 0], "sum"),
        "run": ddp.run_of(rank, "handed over"),
    }


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return on_ranks(2, _all)


@pytest.mark.parametrize("name", CASES)
def test_replicas_make_the_teleport_of_one_device(name: str, found: Any) -> None:
    rows = [rank[name] for rank in found]
    for row in rows:
        _check(row, 2e-6 if name == "difference" else 1e-10)
    assert rows[0]["apart"] == 0
    if "40" not in name:
        assert rows[0]["moved"] > 1e-3


def _check(row: Any, tolerance: float) -> None:
    mine, alone = row["mine"], row["alone"]
    assert row["error"] <= tolerance
    assert (mine["cause"], mine["ranks"], mine["notes"]) == (
        alone["cause"],
        alone["ranks"],
        alone["notes"],
    )
    assert mine["numbers"] == pytest.approx(alone["numbers"], rel=100 * tolerance)


@pytest.mark.parametrize("given", UNLIKE, ids=str)
def test_ranks_may_have_unlike_numbers_of_samples_or_none(given: Any, found: Any) -> None:
    for rank in found:
        _check(rank[f"unlike {given}"], 1e-10)
        assert rank[f"unlike {given}"]["mine"]["cause"] == Cause.NONE


@pytest.mark.parametrize("given", FAILURES, ids=str)
def test_a_rank_that_fails_stops_all_of_them_and_is_named(given: Any, found: Any) -> None:
    one, two = (rank[f"failure {given}"] for rank in found)
    reached = two["calls"] >= given[0]
    assert reached or given in ((4, "fd"), (4, "jvp"))
    assert two["error"] == ("KeyError: 'sample 17'" if reached else "none")
    failed = "ReplicaFailed: rank 1 of 2 failed: KeyError: 'sample 17'"
    assert one["error"] == (failed if reached else "none")
    assert one["same"]
    assert two["same"]
    assert one["apart"] == 0


@pytest.mark.parametrize("kind", RUNS)
def test_replicas_stay_equal_over_a_run(kind: str, found: Any) -> None:
    one, two = (rank[f"run {kind}"] for rank in found)
    assert one["apart"] == 0
    assert one["teleports"] >= 5
    assert one["accepted"] >= (0 if kind == "judged" else 1)
    for mine, theirs in zip(one["reports"], two["reports"], strict=True):
        assert (mine["cause"], mine["numbers"]) == (theirs["cause"], theirs["numbers"])
    assert one["loss"] < 1.5
    expected = kind in ("handed over", "judged", "wrapped", "inner", "bucket view", "static graph")
    assert (one["handed"] == two["handed"] == one["teleports"]) or not expected


@pytest.mark.parametrize("kind", ALONE)
def test_models_that_nothing_keeps_equal_are_left_alone(kind: str, found: Any) -> None:
    for rank in found:
        row = rank[f"alone {kind}"]
        if kind == "said so":
            assert row["teleports"] >= 2
            assert not row["said"]
        else:
            assert row["teleports"] == 0
            [said] = row["said"]
            expected = "nothing is known to keep" if kind == "untrained" else "weights differ"
            assert expected in said
            assert "2 ranks" in said


@pytest.mark.parametrize("when", TAMPERED)
def test_replicas_that_differ_are_found(when: str, found: Any) -> None:
    for rank in found:
        row = rank[f"tampered {when}"]
        assert row["report"]["cause"] == Cause.APART
        assert row["reason"] == "the replicas do not hold the same weights"
        assert row["same"]


def test_four_ranks() -> None:
    found = on_ranks(4, _four)
    for rank in found:
        _check(rank["joint"], 1e-10)
        _check(rank["none"], 1e-10)
        assert rank["joint"]["apart"] == rank["run"]["apart"] == 0
        assert rank["run"]["accepted"] >= 1


@pytest.mark.parametrize("at", [1, 3, 9])
def test_where_one_rank_fails_all_go_on_training(at: int) -> None:
    """Each says why there is no teleport; the next ones are made by all."""
    first, second = on_ranks(2, partial(ddp.interrupted, at=at))
    assert first["steps"] == second["steps"]
    assert len(first["steps"]) == 3
    assert "rank 1" in first["said"][0]
    assert "sample 17" in second["said"][0]
    assert len(first["said"]) == len(second["said"]) == 1
    assert first["apart"] == second["apart"] == 0
