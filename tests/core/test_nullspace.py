"""Null spaces against a singular value decomposition; the certificate against long doubles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy
from helpers.mlp_graph import MLPGraph
from hypothesis import given, settings
from hypothesis import strategies as st

from nullport import TeleportConfig, teleport
from nullport._arrays import Collective
from nullport._nullspace import NullSpace, budget_gain, null_space
from nullport.network import DenseSite

EXACT = TeleportConfig(projection="threshold")


def space(xp: Any, x: Any, config: TeleportConfig = EXACT, *, bias: bool = False) -> NullSpace:
    rows = xp.asarray(x)
    one = xp.asarray(1.0, dtype=rows.dtype)
    site = DenseSite("dense", rows, None, one)
    features = x.shape[-1] + bias
    return null_space(
        [site],
        features,
        config,
        bias=bias,
        samples=x.shape[-2],
        output_norm=one,
        length=one,
        together=Collective(),
    )


def projector(x: Any, tolerance: float = 1e-12) -> tuple[Any, int]:
    """Return the projector on the null space of the rows, and their rank."""
    _, values, right = np.linalg.svd(x, full_matrices=True)
    rank = int((values > tolerance * max(values[0], 1e-300)).sum()) if values.size else 0
    free = right[rank:]
    return free.T @ free, rank


RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((6, 20))
ROWS = {
    "few": BASE,
    "repeated": np.concatenate([BASE, BASE, BASE[:2]]),
    "zero": np.concatenate([BASE, np.zeros((3, 20))]),
    "all zero": np.zeros((4, 20)),
    "centred": BASE - BASE.mean(axis=0),
    "nearly dependent": np.concatenate([BASE, BASE + 1e-7 * RNG.standard_normal((6, 20))]),
    "very nearly dependent": np.concatenate([BASE, BASE + 1e-10 * RNG.standard_normal((6, 20))]),
    "as many": RNG.standard_normal((20, 20)),
    "many, of low rank": RNG.standard_normal((60, 5)) @ RNG.standard_normal((5, 20)),
    "many, near a plane": RNG.standard_normal((60, 2)) @ RNG.standard_normal((2, 20)) * 1e-4 + 1,
    "many, full": RNG.standard_normal((60, 20)),
    "a dead unit": RNG.standard_normal((60, 20)) * (np.arange(20) != 3),
}


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
@pytest.mark.parametrize("name", ROWS)
def test_rank_and_direction_are_those_of_the_svd(xp: Any, name: str, scale: float) -> None:
    x = ROWS[name]
    expected, rank = projector(x)
    found = space(xp, x * scale)
    assert int(found.free) == 20 - rank
    assert bool(found.empty) == (rank == 20)
    d = RNG.standard_normal((7, 20))
    n, size, total = found.project(xp.asarray(d))
    assert n.dtype == xp.float64
    assert type(n) is type(xp.asarray(d))
    tolerance = 2e-4 if name.startswith("very") else 1e-7 if name.startswith("nearly") else 1e-8
    assert np.linalg.norm(to_numpy(n) - d @ expected) <= tolerance * np.linalg.norm(d)
    assert float(size) == pytest.approx(np.linalg.norm(to_numpy(n)), abs=1e-12)
    assert float(total) == pytest.approx(np.linalg.norm(d))
    assert float(found.size) == pytest.approx(np.linalg.norm(x) * scale, rel=1e-6, abs=0)


def test_a_bias_is_a_constant_input(xp: Any) -> None:
    found = space(xp, BASE, bias=True)
    whole = np.concatenate([BASE, np.ones((6, 1))], axis=1)
    d = RNG.standard_normal((3, 21))
    assert np.allclose(to_numpy(found.project(xp.asarray(d))[0]), d @ projector(whole)[0])


def test_a_stack_of_matrices(xp: Any) -> None:
    x = RNG.standard_normal((3, 4, 9))
    found = space(xp, x)
    assert int(found.free) == 3 * 5
    d = RNG.standard_normal((3, 2, 9))
    n = to_numpy(found.project(xp.asarray(d))[0])
    for i in range(3):
        assert np.allclose(n[i], d[i] @ projector(x[i])[0])


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    d=st.integers(1, 15),
    decay=st.floats(0.3, 1.0),
)
def test_threshold_one_frees_everything(seed: int, n: int, d: int, decay: float) -> None:
    x = np.random.default_rng(seed).standard_normal((n, d)) * decay ** np.arange(d)
    config = TeleportConfig(projection="threshold", threshold=1.0)
    assert int(space(np, x, config).free) == d


@pytest.mark.parametrize("n", [8, 60])
@pytest.mark.parametrize("tau", [1e-3, 0.1, 0.5])
def test_threshold_gives_up_at_most_its_share_and_no_less_than_it_may(n: int, tau: float) -> None:
    x = RNG.standard_normal((n, 12)) * 0.6 ** np.arange(12)
    found = space(np, x, TeleportConfig(projection="threshold", threshold=tau))
    energies = np.sort(np.linalg.eigvalsh(x.T @ x))
    held = np.cumsum(energies) / energies.sum()
    assert int(found.free) == int((held <= tau).sum())
    p = found.project(np.eye(12))[0]
    assert np.linalg.norm(x @ p) ** 2 <= tau * energies.sum() * (1 + 1e-9)


@pytest.mark.parametrize("n", [8, 60])
def test_a_gain_of_the_users_own(xp: Any, n: int) -> None:
    x = RNG.standard_normal((n, 12))
    asked = []

    def gain(shares: Any) -> Any:
        asked.append(shares)
        return 1 / (1 + 50 * shares)

    found = space(xp, x, TeleportConfig(projection=gain))
    energies, u = np.linalg.eigh(x.T @ x)
    energies = np.clip(energies, 0, None) / np.trace(x.T @ x)
    d = RNG.standard_normal((3, 12))
    expected = (d @ u / (1 + 50 * energies)) @ u.T
    assert np.allclose(to_numpy(found.project(xp.asarray(d))[0]), expected, atol=1e-10)
    assert float(xp.sum(asked[0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (lambda e: 0.5, "the projection returned float; allowed: gains of shape"),
        (lambda e: e[:-1], r"the projection returned shape \(8,\); allowed"),
        (lambda e: e + 2, "the projection returned gains from 2 to .*; allowed: numbers in"),
        (lambda e: e * np.nan, "the projection returned gains from nan"),
    ],
)
def test_bad_gains(gain: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        space(np, RNG.standard_normal((8, 12)), TeleportConfig(projection=gain))


@given(seed=st.integers(0, 10**6), ratio=st.floats(1e-3, 2.0))
def test_the_budget_is_met_exactly_where_it_binds(seed: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    energies, squares = np.sort(rng.exponential(size=9)), rng.exponential(size=9)
    gains = budget_gain(energies, squares, np.asarray(0.0), np.asarray(ratio))
    assert ((gains > 0) & (gains <= 1)).all()
    kept = gains**2 * squares
    found = (kept @ energies / kept.sum()) ** 0.5
    if squares @ energies / squares.sum() <= ratio**2:
        assert (gains == 1).all()
    elif (squares / energies).sum() / (squares / energies**2).sum() < 0.9 * ratio**2:
        assert found == pytest.approx(ratio, rel=1e-4)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        space(np, np.zeros((0, 4)))


CONFIGS = {
    "exact": {"projection": "threshold"},
    "threshold": {"projection": "threshold", "threshold": 0.1},
    "whole": {"projection": "threshold", "threshold": 1.0},
    "budget": {},
    "gain": {"projection": lambda shares: 1 / (1 + 30 * shares)},
}


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(list(CONFIGS)),
    samples=st.sampled_from([2, 5, 13, 40]),
    single=st.booleans(),
    shape=st.sampled_from(["normal", "line", "offset", "twice", "large", "small"]),
)
def test_the_certificate_holds(
    seed: int, name: str, samples: int, single: bool, shape: str
) -> None:
    graph = MLPGraph(
        np, (7, 15, 12, 2), samples=samples, seed=seed, dtype="float32" if single else "float64"
    )
    x, y = graph.data["batch"]
    x = {
        "normal": x,
        "line": x[:, :1] * x[:1],
        "offset": 5 + x / 100,
        "twice": np.concatenate([x[: samples - samples // 2], x[: samples // 2]]),
        "large": x * x.dtype.type(1e20),
        "small": x * x.dtype.type(1e-20),
    }[shape]
    graph.data["batch"] = x, y
    old, inputs = graph.weights(), graph.inputs(graph.weights())
    config = TeleportConfig(max_loss_change=1e9, max_gain=1e30, radius=0.2, **CONFIGS[name])
    report = teleport(graph, config)
    for layer in report.layers:
        if layer.moved > 0:
            k = int(layer.name[5])
            step, shift = (
                graph.values[2 * k + i].astype(np.longdouble) - old[2 * k + i] for i in (0, 1)
            )
            rows = inputs[k].astype(np.longdouble)
            found = np.linalg.norm((rows @ step.T + shift).astype(np.float64))
            whole = np.linalg.norm((rows @ old[2 * k].astype(np.longdouble).T).astype(np.float64))
            assert found / whole <= layer.output_change_bound * (1 + 1e-6)
            assert layer.output_change <= layer.output_change_bound * (1 + 1e-6)
