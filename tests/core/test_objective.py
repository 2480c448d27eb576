"""What each objective pulls towards: against central differences, and in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.dense import null_projector, to_numpy, with_ones
from helpers.mlp_graph import MLPGraph, flat, gradient_of, numbers, unmoved

from nullport import TeleportConfig, teleport
from nullport._objective import JUDGED, PROBE, pull

FD = {"projection": "threshold", "tangent": "fd", "max_loss_change": 1e9}
SIZES = (5, 9, 8, 2)


class Curved(MLPGraph):
    """Its optimizer is not linear in the gradient: ``u = rate tanh(3 g / rate) + decay w``."""

    def step_at(self, g: Any, w: Any) -> Any:
        return self.rate * self.xp.tanh(3 * g / self.rate) + self.decay * w

    def optimizer_step(self, gradients: Any) -> list[Any]:
        pairs = zip(gradients, self.values, strict=True)
        return [None if g is None else self.step_at(g, w) for g, w in pairs]


def phi(graph: MLPGraph, objective: str) -> Any:
    """Return the objective as a function of the weights; what the optimizer reads of them is held.

    The step is held still too, but for ``look_ahead``, which is all about its change.
    """
    start, held = graph.values, graph.optimizer_step(graph.differentiate(graph.values)[1])

    def at(w: list[Any]) -> float:
        loss, g = graph.differentiate(w)[:2]
        pairs = list(zip(g, held, strict=True))
        if objective == "decrease":  # with the preconditioner held still: half of <g, D g>
            return 0.5 * graph.rate * sum(float(np.sum(a * a)) for a in g)
        if objective == "weight_norm":
            return -0.5 * sum(float(np.sum(a * a)) for a in w)
        if objective == "grad_norm":
            return 0.5 * sum(float(np.sum(a * a)) for a in g)
        step = [u for _, u in pairs]
        if objective == "look_ahead":
            step = [graph.step_at(a, b) for a, b in zip(g, start, strict=True)]
        moved = [a - u for a, u in zip(w, step, strict=True)]
        if objective == "sharpness":
            slope = sum(float(np.sum(a * u)) for a, u in pairs)
            return -(float(graph.differentiate(moved)[0]) - float(loss) + slope)
        return -float(graph.differentiate(moved, "others")[0])

    return at


def whole(arrays: list[Any], k: int) -> Any:
    """Return a weight with its bias as last column."""
    return np.concatenate([to_numpy(arrays[2 * k]), to_numpy(arrays[2 * k + 1])[:, None]], axis=1)


OBJECTIVES = ("grad_norm", "decrease", "look_ahead", "others", "sharpness", "weight_norm")


@pytest.mark.parametrize("samples", [3, 12], ids=["few samples", "many samples"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_move_is_along_the_projected_gradient(objective: str, samples: int) -> None:
    """Where fewer samples than inputs leave a null space, and where a smooth gain is kept to."""
    kind = MLPGraph if objective == "decrease" else Curved
    given = {"rate": 0.05, "decay": 0.02, "other_samples": 6, "seed": 2}
    graph = kind(np, SIZES, samples=samples, **given)
    start = numbers(graph.values)
    expected = gradient_of(phi(graph, objective), start, 1e-5)
    rows = [with_ones(x) for x in graph.forward(start, graph.data["batch"][0])[0]]
    projection = {"projection": "threshold"} if samples == 3 else {"projection": soft}
    config = TeleportConfig(objective=objective, radius=1e-5, **{**FD, **projection})
    report = teleport(graph, config)
    assert report.accepted, report.reason
    moved = [b - a for a, b in zip(start, graph.values, strict=True)]
    for k in (1, 2):
        if samples == 3:
            gains = null_projector(rows[k])
        else:
            energies, u = np.linalg.eigh(rows[k].T @ rows[k])
            gains = (u * soft(np.clip(energies, 0, None) / energies.sum())) @ u.T
            if objective in ("grad_norm", "decrease", "look_ahead", "sharpness"):
                continue  # part of their gradient lies in the row space, and is not computed
        found, wanted = whole(moved, k), whole(expected, k) @ gains
        cosine = np.sum(found * wanted) / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine >= 1 - (1e-4 if objective == "look_ahead" else 1e-7)


def soft(shares: Any) -> Any:
    return 1 / (1 + 30 * shares)


def test_look_ahead_differentiates_the_step_of_the_optimizer(xp: Any) -> None:
    """``v = (du/dg)^T grad L2(w - u)``, by a difference of relative length ``PROBE``."""
    graph = Curved(xp, SIZES, rate=0.05, decay=0.02, other_samples=6, guard_samples=3)
    _, g = graph.gradient()
    wish = pull("look_ahead", graph, g)
    u = graph.optimizer_step(g)
    moved = [w - a for w, a in zip(graph.values, u, strict=True)]
    direct = graph.differentiate(moved, "others")[1]
    assert flat(wish.direct) == pytest.approx(flat(direct), rel=1e-12)
    slope = 3 / np.cosh(3 * flat(g) / 0.05) ** 2
    exact = slope * flat(direct)
    assert np.linalg.norm(flat(wish.v) - exact) <= 10 * PROBE * np.linalg.norm(exact)
    assert all(a.dtype == xp.float64 for a in wish.v)
    assert wish.cost == 1.0
    assert not wish.whole
    alone = pull("others", graph, g)
    assert alone.v is None
    assert flat(alone.direct) == pytest.approx(flat(direct), rel=1e-12)


def test_decrease_leaves_out_what_the_optimizer_does_without_a_gradient(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES, rate=0.3, decay=0.5)
    _, g = graph.gradient()
    wish = pull("decrease", graph, g)
    assert flat(wish.v) == pytest.approx(0.3 * flat(g), rel=1e-12, abs=1e-14)
    assert wish.direct is None
    assert wish.cost == 0.0


def test_sharpness_holds_the_step_still(xp: Any) -> None:
    graph = Curved(xp, SIZES, rate=0.05, decay=0.02)
    _, g = graph.gradient()
    wish = pull("sharpness", graph, g)
    u = graph.optimizer_step(g)
    moved = [w - a for w, a in zip(graph.values, u, strict=True)]
    assert flat(wish.v) == pytest.approx(-flat(u))
    after = flat(graph.differentiate(moved)[1])
    assert flat(wish.direct) == pytest.approx(after - flat(g), rel=1e-9, abs=1e-14)


def test_sharpness_goes_down() -> None:
    """The curvature of the loss along the step, measured, before and after."""
    graph = MLPGraph(np, (5, 30, 30, 2), samples=3, rate=0.05, seed=1)
    at, before = phi(graph, "sharpness"), numbers(graph.values)
    report = teleport(graph, TeleportConfig(objective="sharpness", radius=0.02, **FD))
    assert report.accepted, report.reason
    assert at(graph.values) > at(before)


@pytest.mark.parametrize("radius", [0.01, 0.2, 50.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_weight_norm_never_goes_too_far(xp: Any, radius: float, steps: int) -> None:
    """What the data does not see of a weight is ``W P``: as far as the radius, or all of it."""
    graph = MLPGraph(xp, (6, 40, 40, 3), samples=4)
    start = numbers(graph.values)
    inputs = graph.forward(graph.values, graph.data["batch"][0])[0]
    config = TeleportConfig(objective="weight_norm", radius=radius, steps=steps, **FD)
    report = teleport(graph, config)
    assert report.accepted, report.reason
    assert report.tangent == ""
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-12)
    for k in range(3):
        p = null_projector(with_ones(to_numpy(inputs[k])))
        old, new = whole(start, k), whole(graph.values, k)
        free = np.linalg.norm(old @ p)
        gone = np.linalg.norm(old - new)
        assert gone == pytest.approx(min(free, radius * np.linalg.norm(old)), rel=1e-9)
        left = 1 - gone / free
        assert np.linalg.norm(new - (old - (1 - left) * old @ p)) <= 1e-12 * np.linalg.norm(old)
        assert np.linalg.norm(new) <= np.linalg.norm(old) * (1 + 1e-14)


@pytest.mark.parametrize("objective", ["look_ahead", "others", "sharpness", "decrease"])
def test_what_an_objective_lacks_is_said(objective: str) -> None:
    config = TeleportConfig(objective=objective, **FD)
    for given in ({}, {"guard_samples": 3}, {"other_samples": 3}):
        graph = MLPGraph(np, SIZES, **given)
        before = numbers(graph.values)
        with pytest.raises(ValueError, match="give the optimizer that trains the model"):
            teleport(graph, config)
        assert unmoved(graph, before)
    if objective in JUDGED:
        words = f"the objective '{objective}' needs a batch of other samples"
        with pytest.raises(ValueError, match=words):
            teleport(MLPGraph(np, SIZES, rate=0.1), config)


@pytest.mark.parametrize(
    ("given", "judged"),
    [
        ({}, False),
        ({"rate": 0.01}, False),
        ({"other_samples": 5}, False),
        ({"rate": 0.01, "other_samples": 5}, True),
    ],
)
def test_auto_looks_ahead_where_it_can(given: dict[str, Any], judged: bool) -> None:
    ends = []
    for objective in ("auto", "look_ahead" if judged else "grad_norm"):
        graph = MLPGraph(np, SIZES, **given)
        teleport(graph, TeleportConfig(objective=objective, radius=0.05, **FD))
        ends.append(graph.values)
    assert all(map(np.array_equal, *ends))


class Shaped:
    """Has a shape and no numbers."""

    shape = ()


SHAPES = [(9, 5), (9,), (8, 9), (8,), (2, 8), (2,)]
WRONG: list[tuple[str, Any, str]] = [
    ("a number", 3.0, "float"),
    ("a NumPy number", np.float64(3.0), r"float64 of shape \(\)"),
    ("an array", np.zeros(3), r"ndarray of shape \(3,\)"),
    ("None", None, "NoneType"),
    ("a dict", {"a": 1}, "dict"),
    ("a generator", (x for x in [1]), "generator"),
    ("text", "g", "str"),
    ("too few", [np.zeros(s) for s in SHAPES[1:]], "5 arrays"),
    ("nothing", [], "0 arrays"),
    ("only None", [None] * 6, "None for every parameter"),
    ("nested lists", [np.zeros(s).tolist() for s in SHAPES], "a list for parameter 0"),
    ("numbers", [1.0] * 6, "a float for parameter 0"),
    ("an object", [None, Shaped(), *[None] * 4], "a Shaped for parameter 1"),
    (
        "a shape",
        [np.zeros((5, 9)), *[None] * 5],
        r"shape \(5, 9\) for parameter 0 of shape \(9, 5\)",
    ),
    (
        "NaN",
        [None, np.full(9, np.nan), *[None] * 4],
        "an array that is not finite .* for parameter 1",
    ),
    (
        "infinity",
        [None] * 5 + [np.full(2, np.inf)],
        "an array that is not finite .* for parameter 5",
    ),
]


@pytest.mark.parametrize(("value", "what"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_objective_is_named_in_one_line(value: Any, what: str) -> None:
    graph = MLPGraph(np, SIZES)
    before = numbers(graph.values)
    with pytest.raises(ValueError, match=f"^the objective returned {what}; allowed: 6 finite") as e:
        teleport(graph, TeleportConfig(objective=lambda _: value, **FD))
    assert "\n" not in str(e.value)
    assert unmoved(graph, before)


def test_an_objective_sees_formed_gradients_and_may_return_a_tuple(xp: Any) -> None:
    seen: list[Any] = []

    def mine(gradients: Any) -> Any:
        seen.extend(gradients)
        return tuple(gradients)

    ends = []
    for objective in (mine, "grad_norm"):
        graph = MLPGraph(xp, (6, 40, 40, 3), samples=2)
        ends.append((teleport(graph, TeleportConfig(objective=objective, **FD)), graph.values))
    assert [tuple(g.shape) for g in seen] == [tuple(w.shape) for w in ends[0][1]]
    assert all(g.dtype == xp.float64 for g in seen)
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert to_numpy(a) == pytest.approx(to_numpy(b), rel=1e-5, abs=1e-8)
    assert ends[0][0].accepted


def test_an_error_of_the_objective_is_the_users_own() -> None:
    graph = MLPGraph(np, SIZES)

    def fails(_: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        teleport(graph, TeleportConfig(objective=fails))
    assert graph.kept == [0.0]
