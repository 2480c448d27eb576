"""Null spaces against a singular value decomposition; the certificate against long doubles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, to_numpy
from helpers.mlp_graph import MLPGraph
from hypothesis import given, settings
from hypothesis import strategies as st

from nullport import TeleportConfig, teleport
from nullport._arrays import Collective
from nullport._nullspace import NullSpace, budget_gain, gram_matrix, null_space, pinned
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


@pytest.mark.parametrize("many", [False, True], ids=["fewer rows than inputs", "more rows"])
@pytest.mark.parametrize("gap", [10.0**-k for k in range(3, 14)])
def test_nearly_dependent_rows_are_seen_down_to_rounding(gap: float, many: bool) -> None:
    """The projector itself is known to ``eps / gap``; what it lets through, to ``eps``."""
    rng = np.random.default_rng(7)
    near = gap * rng.standard_normal((6, 20))
    x = np.concatenate([BASE, BASE + near])
    if many:  # six strong directions, six at the gap, eight that no row has
        x = rng.standard_normal((50, 12)) @ np.concatenate([BASE, near])
    expected, rank = projector(x, 4e-15)
    assert rank == 12
    found = space(np, x)
    assert int(found.free) == 8
    d = rng.standard_normal((7, 20))
    n, size, _ = found.project(d)
    assert np.linalg.norm(n - d @ expected) <= max(1e-8, 2e-14 / gap) * np.linalg.norm(d)
    change = np.linalg.norm(x.astype(np.longdouble) @ n.T)
    assert change <= 1e-14 * np.linalg.norm(x) * size
    assert change <= (float(found.leak) + float(found.rounding)) * size


@given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    rank=st.integers(1, 12),
    decay=st.sampled_from([1e-3, 0.1, 0.7, 1.0]),
    exponent=st.sampled_from([-30, -20, 0, 20, 25]),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_what_is_left_is_null_and_all_that_is_null_is_left(
    n: int, d: int, rank: int, decay: float, exponent: int, bias: bool, seed: int
) -> None:
    rng, k = np.random.default_rng(seed), min(n, d, rank)
    x = rng.standard_normal((n, k)) * decay ** np.arange(k) @ rng.standard_normal((k, d))
    x = x * (10.0**exponent if not bias else 1.0)
    whole = np.concatenate([x, np.ones((n, 1))], axis=1) if bias else x
    found = space(np, x, bias=bias)
    p, size, _ = found.project(np.eye(d + bias))
    values = np.linalg.svd(whole, compute_uv=False)
    least, most = (int((values > t * values[0]).sum()) for t in (1e-12, 1e-17))
    assert d + bias - most <= int(found.free) <= d + bias - least
    assert np.linalg.norm(p @ p - p) <= 1e-12
    assert np.trace(p) == pytest.approx(int(found.free))
    change = np.linalg.norm((whole @ p.T) / np.linalg.norm(whole))
    assert change * np.linalg.norm(whole) <= (float(found.leak) + float(found.rounding)) * size


@pytest.mark.parametrize("n", [5, 40], ids=["rows", "Gram matrix"])
@pytest.mark.parametrize("share", [1e-1, 1e-2, 2e-3])
def test_a_direction_mostly_in_the_row_space_stays_null(xp: Any, n: int, share: float) -> None:
    """The move is scaled up to the radius: what rounding left in the row space is scaled too."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((n, 5)) @ rng.standard_normal((5, 40))
    raw = rng.standard_normal((7, n)) @ exact
    free = rng.standard_normal((7, 40)) @ projector(exact)[0]
    raw = raw / np.linalg.norm(raw) + share * free / np.linalg.norm(free)
    x = xp.asarray(exact.astype(np.float32))
    found = space(xp, x)
    n_, size, _ = found.project(xp.asarray(raw.astype(np.float32)))
    assert n_.dtype == xp.float32
    change = np.linalg.norm(to_numpy(n_).astype(np.float64) @ to_numpy(x).astype(np.float64).T)
    assert change <= float(found.leak + found.rounding) * float(size)
    assert change <= 1e-5 * float(size) * np.linalg.norm(exact)


@pytest.mark.parametrize("config", [EXACT, TeleportConfig()], ids=["exact", "budget"])
@pytest.mark.parametrize("n", [6, 40])
def test_rows_in_pieces_are_the_same_as_in_one(xp: Any, n: int, config: TeleportConfig) -> None:
    class Pieces(DenseSite):
        def rows(self, every: int = 1) -> Any:
            for start in range(0, self.samples, 7):
                yield self.inputs[start : min(start + 7, self.samples), :]

    x, one = xp.asarray(RNG.standard_normal((n, 9))), xp.asarray(1.0)
    how = {"bias": True, "samples": n, "output_norm": one, "length": one}
    made = [
        null_space([kind("dense", x, None, one)], 10, config, together=Collective(), **how)
        for kind in (DenseSite, Pieces)
    ]
    assert int(made[0].free) == int(made[1].free)
    assert float(made[0].size) == pytest.approx(float(made[1].size), rel=1e-14)
    d = xp.asarray(RNG.standard_normal((3, 10)))
    a, b = (to_numpy(s.project(d)[0]) for s in made)
    assert a == pytest.approx(b, abs=1e-10)


def test_an_empty_piece_is_no_rows() -> None:
    """As in a mixture of experts: a weight used twice, once by no sample."""
    one, x = np.asarray(1.0), RNG.standard_normal((4, 9))
    sites = [DenseSite("dense", a, None, one) for a in (np.zeros((0, 9)), x)]
    how = {"bias": False, "samples": 4, "output_norm": one, "length": one}
    found = null_space(sites, 9, EXACT, together=Collective(), **how)
    d = RNG.standard_normal((3, 9))
    assert found.project(d)[0] == pytest.approx(d @ projector(x)[0], abs=1e-12)


def test_the_gram_matrix_of_float32_is_float64(xp: Any) -> None:
    x = xp.asarray(RNG.standard_normal((2000, 4)).astype(np.float32))
    gram = gram_matrix(x)
    assert gram.dtype == xp.float64
    exact = to_numpy(x).astype(np.float64)
    assert to_numpy(gram) == pytest.approx(exact.T @ exact, rel=1e-13)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("n", [4, 30])
def test_half_precision_is_widened(xp: Any, name: str, n: int) -> None:
    if not hasattr(xp, name):
        pytest.skip(f"no {name}")
    x = RNG.standard_normal((n, 3)) @ RNG.standard_normal((3, 9)) if n > 9 else BASE[:n, :9]
    half = xp.astype(xp.asarray(x), getattr(xp, name))
    found = space(xp, half)
    assert found.basis.dtype == xp.float32
    exact = to_numpy(half).astype(np.float64)
    assert int(found.free) == 9 - projector(exact, 1e-6)[1]
    n_, size, _ = found.project(xp.asarray(RNG.standard_normal((3, 9)).astype(np.float32)))
    assert n_.dtype == xp.float32
    change = np.linalg.norm(to_numpy(n_).astype(np.float64) @ exact.T)
    assert change <= float(found.leak + found.rounding) * float(size)


def _rank(x: Any) -> int:
    return x.shape[-1] - int(space(np, x).free)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 5, 7])
def test_a_null_direction_is_never_lost(rank: int, dtype: str) -> None:
    rng = np.random.default_rng(rank)
    x = rng.standard_normal((1000, rank)) @ rng.standard_normal((rank, 8))
    assert _rank(x) == rank
    x[:, :] = x[:, :1]  # exactly dependent in float32 too
    assert _rank(x.astype(dtype)) == 1


def test_a_direction_that_one_row_has_is_constrained() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 8))
    x[:, 3] = 0.0
    x[1, 3] = 1.0
    assert _rank(x) == 8


@pytest.mark.parametrize("scale", [1e-5, 1e-7, 1e-9, 1e-13])
def test_weak_directions_of_many_rows_are_no_rounding(scale: float) -> None:
    x = np.random.default_rng(0).standard_normal((4000, 8))
    x[:, 3] *= scale
    assert _rank(x) == 8


@pytest.mark.parametrize("stack", [(), (3,)])
def test_without_a_projection_everything_is_free(xp: Any, stack: tuple[int, ...]) -> None:
    x, d = RNG.standard_normal((*stack, 30, 9)), RNG.standard_normal((*stack, 2, 9))
    found = space(xp, x, TeleportConfig(projection="none"))
    assert int(found.free) == 9 * (3 if stack else 1)
    assert not bool(found.empty)
    n, _, _ = found.project(xp.asarray(d))
    assert (to_numpy(n) == d).all()


def _gain(d: Any, n: Any, x: Any, change: float, length: float) -> float:
    """What a direction wins to first order, as far as both constraints allow to go."""
    reach = min(change / np.linalg.norm(n @ x.T), length / np.linalg.norm(n))
    return float(reach * np.sum(d * n))


def _budget(xp: Any, x: Any, change: float, length: float = 1.0) -> NullSpace:
    """Return the space of a budget of ``change`` in absolute terms."""
    rows = xp.asarray(x)
    one = xp.asarray(1.0, dtype=rows.dtype)
    site, n = DenseSite("dense", rows, None, one), x.shape[-2]
    config = TeleportConfig(budget=1.0)
    how = {"output_norm": one * change, "length": one * length, "together": Collective()}
    return null_space([site], x.shape[-1], config, bias=False, samples=n, **how)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1e-3, 0.05, 0.2, 0.5, 2.0])
@pytest.mark.parametrize("samples", [6, 20])
def test_no_other_direction_gains_more(seed: int, budget: float, samples: int) -> None:
    """Random competitors, from small perturbations on, all taken as far as allowed."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, 6)) * 0.7 ** np.arange(6)
    d = rng.standard_normal((4, 6))
    change = budget * np.linalg.norm(d @ x.T) / np.linalg.norm(d)
    best = _budget(np, x, change).project(d)[0]
    most = _gain(d, best, x, change, 1.0)
    for scale in np.geomspace(1e-4, 10, 200):
        rival = best + scale * np.linalg.norm(best) * rng.standard_normal(d.shape)
        assert _gain(d, rival, x, change, 1.0) <= most * (1 + 1e-6)


@pytest.mark.parametrize("n", [6, 20])
def test_a_budget_in_every_namespace(xp: Any, n: int) -> None:
    rng = np.random.default_rng(n)
    x, d = rng.standard_normal((2, n, 6)) * 0.3 ** np.arange(6), rng.standard_normal((2, 4, 6))
    found = _budget(xp, x, 0.5)
    assert not bool(found.empty)
    n_, size, total = found.project(xp.asarray(d))
    assert n_.dtype == xp.float64
    assert type(n_) is type(xp.asarray(d))
    assert to_numpy(n_) == pytest.approx(_budget(np, x, 0.5).project(d)[0], abs=1e-12)
    ends = np.linalg.norm(x @ np.swapaxes(to_numpy(n_), -1, -2)) / float(size)
    assert ends == pytest.approx(0.5, rel=1e-5)
    assert float(total) == pytest.approx(np.linalg.norm(d))


def test_a_budget_is_laid_out_to_a_part_of_the_rows_and_knows_the_norm_of_all() -> None:
    x = np.random.default_rng(0).standard_normal((900, 6)) * np.geomspace(1e-3, 1, 900)[:, None]
    found = _budget(np, x, 0.5)
    assert found.rows < 900
    assert float(found.size) == pytest.approx(np.linalg.norm(x), rel=1e-14)


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


@pytest.mark.parametrize("samples", [3, 6])
def test_pinned_outputs_stay_and_nothing_else_is_taken(samples: int) -> None:
    """Against the dense projector on the null space of all rows and looked-up unit vectors."""
    draw = np.random.default_rng(0)
    rows, held = draw.standard_normal((samples, 12)), np.arange(12) % 5 == 1
    site = DenseSite("product", rows, None, np.asarray(1.0))
    outer = pinned([site], held, 12, Collective(), np.asarray(1.0))
    direction = draw.standard_normal((12, 7))
    got, size = outer.project(direction)
    expected = null_projector(np.concatenate([rows, np.eye(12)[held]])) @ direction
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert float(size) == pytest.approx(np.linalg.norm(expected))
    assert not bool(outer.empty)
    assert bool(pinned([site], np.ones(12, bool), 12, Collective(), np.asarray(1.0)).empty)
    alone, _ = pinned([], held, 12, Collective(), np.asarray(1.0)).project(direction)
    np.testing.assert_array_equal(alone, np.where(held[:, None], 0.0, direction))
