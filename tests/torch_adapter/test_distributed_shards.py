"""Weights that are spread over ranks move as on one device, each rank moving its part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from helpers.ranks import on_ranks
from torch_adapter import shards

from nullport import TeleportConfig

FREE: dict[str, Any] = {"max_gain": 1e9, "max_loss_change": 1e9}
EXACT = TeleportConfig(projection="threshold", **FREE)
BUDGET = TeleportConfig(radius=0.02, **FREE)
CASES: dict[str, Callable[..., Any]] = {
    "sharded": partial(shards.joint, way="sharded", kind="plain", config=EXACT, how={}),
    "sharded late": partial(shards.joint, way="sharded late", kind="plain", config=EXACT, how={}),
    "root only": partial(shards.joint, way="root only", kind="plain", config=EXACT, how={}),
    "sharded, many": partial(
        shards.joint, way="sharded", kind="plain", config=BUDGET, how={"samples": 30}
    ),
    "sharded, convolution": partial(
        shards.joint, way="sharded", kind="convolution", config=EXACT, how={"samples": 2}
    ),
    "sharded, difference": partial(
        shards.joint,
        way="sharded",
        kind="norm",
        config=TeleportConfig(projection="threshold", tangent="fd", **FREE),
        how={},
    ),
    "sharded, steps": partial(
        shards.joint,
        way="sharded",
        kind="plain",
        config=TeleportConfig(projection="threshold", steps=2, **FREE),
        how={},
    ),
    "parallel": partial(shards.joint, way="columns and rows", kind="plain", config=EXACT, how={}),
    "parallel, many": partial(
        shards.joint, way="columns and rows", kind="plain", config=BUDGET, how={"samples": 60}
    ),
    "parallel, sequence": partial(
        shards.joint, way="sequence", kind="sequence", config=EXACT, how={}
    ),
}
for _objective in ("look_ahead", "sharpness", "decrease", "weight_norm"):
    for _way in ("sharded", "columns and rows"):
        CASES[f"{_way}, {_objective}"] = partial(
            shards.joint,
            way=_way,
            kind="plain",
            config=TeleportConfig(objective=_objective, radius=0.02, **FREE),
            how={"optimizer": "adam" if _objective == "look_ahead" else "sgd", "samples": 8},
        )
FOUR: dict[str, Callable[..., Any]] = {
    "sharded": CASES["sharded"],
    "both": partial(shards.joint, way="both", kind="plain", config=EXACT, how={"samples": 5}),
    "both, look_ahead": partial(
        shards.joint,
        way="both",
        kind="plain",
        config=TeleportConfig(objective="look_ahead", radius=0.02, **FREE),
        how={"optimizer": "adam"},
    ),
    "hybrid": partial(shards.joint, way="hybrid", kind="plain", config=EXACT, how={}),
}
TRAINING = ("sharded", "columns and rows", "zero")


def _all(rank: int, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: work(rank) for name, work in CASES.items()}
    found |= {f"training {way}": shards.training(rank, way) for way in TRAINING}
    found["checkpoint"] = shards.checkpoint(rank, folder)
    found["refused"] = shards.refused(rank)
    found["seen"] = shards.seen(rank)
    return found


def _four(rank: int) -> dict[str, Any]:
    return {name: work(rank) for name, work in FOUR.items()}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return on_ranks(2, _all, folder)


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return on_ranks(4, _four)


def _check(row: Any, tolerance: float) -> None:
    mine, alone = row["mine"], row["alone"]
    assert row["apart"] == 0
    assert row["error"] <= tolerance
    assert row["moved"] > 1e-4
    assert row["clean"], "gradients are left"
    assert mine["cause"] == alone["cause"] == 0
    assert (mine["ranks"], mine["notes"]) == (alone["ranks"], alone["notes"])
    numbers, others = ([*found["numbers"]] for found in (mine, alone))
    numbers[7] = others[7] = 0.0  # another way of taking tangents costs otherwise
    assert numbers == pytest.approx(others, rel=100 * tolerance)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_make_the_teleport_of_one_device(name: str, found: Any) -> None:
    # Forward mode does not pass through tensors that are spread.
    exact = name.startswith("sharded") and "difference" not in name
    for rank in found:
        _check(rank[name], 1e-10 if exact else 1e-6)


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_make_the_teleport_of_one_device(name: str, four: Any) -> None:
    for rank in four:
        _check(rank[name], 1e-6 if "both" in name else 1e-10)


@pytest.mark.parametrize("way", TRAINING)
def test_training_is_that_of_one_device(way: str, found: Any) -> None:
    for rank in found:
        row = rank[f"training {way}"]
        assert row["apart"] == 0
        assert row["causes"] == row["wanted"]
        assert row["accepted"] >= 1
        assert row["error"] <= 1e-5


def test_a_run_goes_on_from_a_checkpoint_in_parts(found: Any) -> None:
    for rank in found:
        assert rank["checkpoint"]["same"]
        assert rank["checkpoint"]["reports"]
        assert rank["checkpoint"]["teleports"] >= 2


def test_the_older_fsdp_is_refused(found: Any) -> None:
    for rank in found:
        said = rank["refused"]
        assert "FullyShardedDataParallel" in said["error"]
        assert "allowed: fully_shard" in said["error"]
        [warning] = said["said"]
        assert "FullyShardedDataParallel" in warning


def test_inspect_sees_the_samples_of_all_ranks(found: Any) -> None:
    for rank in found:
        assert [row[2] for row in rank["seen"]] == [8, 8, 8]
        assert rank["seen"] == found[0]["seen"]


@pytest.mark.parametrize(("way", "ranks"), [("sharded", 4), ("columns and rows", 2), ("both", 4)])
def test_the_real_optimizer_is_asked_and_put_back(way: str, ranks: int) -> None:
    """Bit for bit, parts of states included; copies of weights are known by their parts."""
    for row in on_ranks(ranks, partial(shards.foreseen, way=way)):
        assert row["same"]
        assert row["error"] == 0
        assert row["copies"]
        assert all(found == [True] for found in row["copies"])
