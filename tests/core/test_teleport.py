"""The whole core on a network written by hand, in NumPy and in the strict namespace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import device
from helpers.dense import null_projector, relative, to_numpy, with_ones
from helpers.mlp_graph import ForwardMLPGraph, MLPGraph, numbers, unmoved

from nullport import Engine, LayerGraph, TeleportConfig, inspect, run, teleport
from nullport._arrays import dense
from nullport._teleport import _Run
from nullport.network import Linearization, TangentUnavailable, namespace

SIZES = (6, 20, 15, 3)
EXACT = {"projection": "threshold", "threshold": 0.0}


def _config(**kwargs: Any) -> TeleportConfig:
    return TeleportConfig(**{**EXACT, **kwargs})


def _flat(arrays: list[Any]) -> Any:
    return np.concatenate([to_numpy(a).reshape(-1) for a in arrays])


def _grad_norm(graph: MLPGraph) -> float:
    return float(np.linalg.norm(_flat(graph.differentiate(graph.values)[1])))


def _hessian_times_gradient(graph: MLPGraph, step: float = 1e-5) -> list[Any]:
    """Return ``d(||g||^2 / 2)/dw`` by a central difference of two gradients, per parameter."""
    v = graph.differentiate(graph.values)[1]
    ends = [
        graph.differentiate([w + sign * step * a for w, a in zip(graph.values, v, strict=True)])[1]
        for sign in (1.0, -1.0)
    ]
    return [(to_numpy(a) - to_numpy(b)) / (2 * step) for a, b in zip(ends[0], ends[1], strict=True)]


def test_the_hand_written_gradient_is_right() -> None:
    graph = MLPGraph(np, (3, 4, 2))
    gradient = _flat(graph.differentiate(graph.values)[1])
    found = []
    for k, w in enumerate(graph.values):
        for index in np.ndindex(w.shape):
            ends = []
            for sign in (1.0, -1.0):
                values = [v.copy() for v in graph.values]
                values[k][index] += sign * 1e-6
                ends.append(float(graph.evaluate(values, "batch")))
            found.append((ends[0] - ends[1]) / 2e-6)
    assert gradient == pytest.approx(np.asarray(found), abs=1e-9)


def test_the_network_is_a_layer_graph(xp: Any) -> None:
    graph: LayerGraph = MLPGraph(xp, SIZES)
    assert graph.parameters[0].name == "layer0.weight"


@pytest.mark.parametrize("samples", [4, 60], ids=["few samples", "many samples"])
@pytest.mark.parametrize("steps", [1, 3])
def test_loss_stays_and_gradient_grows(xp: Any, samples: int, steps: int) -> None:
    graph = MLPGraph(xp, SIZES, samples=samples, guard_samples=5)
    before, norm = float(graph.loss()), _grad_norm(graph)
    report = teleport(graph, _config(radius=0.3, steps=steps, max_loss_change=10.0))
    assert report.tangent == "fd"
    if samples > 20:  # every null space is empty
        assert {layer.reason for layer in report.layers} == {"its null space is empty"}
        assert all((a == b) is not False for a, b in zip(graph.values, graph.start, strict=True))
        assert float(graph.loss()) == before
        return
    assert report.accepted, report.reason
    assert graph.kept[-1] == 1
    assert float(graph.loss()) == pytest.approx(before, rel=1e-12)
    assert _grad_norm(graph) > 1.05 * norm
    assert report.loss_before == pytest.approx(before, rel=1e-14)
    assert report.loss_after == pytest.approx(float(graph.loss()), rel=1e-14)
    assert report.grad_norm_before == pytest.approx(norm)
    assert report.grad_norm_after == pytest.approx(_grad_norm(graph))
    assert report.guard_after == pytest.approx(float(graph.loss("guard")))
    layers = {layer.name: layer for layer in report.layers}
    assert "as in a first layer" in layers["layer0.weight"].reason
    assert layers["layer0.weight"].moved == 0.0
    for name, features in (("layer1.weight", 21), ("layer2.weight", 16)):
        layer = layers[name]
        assert (layer.in_features, layer.samples, layer.rank) == (features, 4, 4)
        assert layer.null_dim == features - 4
        assert layer.output_change <= layer.output_change_bound <= 1e-13
        if steps == 1:
            assert layer.moved == pytest.approx(0.3)


def test_the_move_has_the_length_that_is_reported(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES)
    report = teleport(graph, _config(radius=0.25))
    layers = {layer.name: layer for layer in report.layers}
    for k in (1, 2):
        pairs = [(to_numpy(graph.start[i]), to_numpy(graph.values[i])) for i in (2 * k, 2 * k + 1)]
        moved = np.sqrt(sum(np.sum((b - a) ** 2) for a, b in pairs))
        weight = np.sqrt(sum(np.sum(a**2) for a, _ in pairs))
        assert moved / weight == pytest.approx(0.25)
        assert layers[f"layer{k}.weight"].moved == pytest.approx(0.25)


@pytest.mark.parametrize("samples", [4, 10])
def test_direction_is_the_projected_difference_of_gradients(xp: Any, samples: int) -> None:
    graph = MLPGraph(xp, SIZES, samples=samples)
    config = _config(objective="grad_norm")
    one = _Run(graph, config, Engine(config.tangent), None)
    lin = graph.linearize()
    one.prepare(lin)
    one.lent = [lin]
    one.directions(last=True)
    scale = float(one.scale) / _grad_norm(graph)
    objective = _hessian_times_gradient(graph)
    for b, layer in enumerate(one.layers):
        k, found = layer.block.parameter, one.found[b]
        rows = with_ones(to_numpy(lin.sites[k // 2].inputs))
        if k == 0:
            assert float(found.size) == 0.0
            continue
        full = np.concatenate([objective[k], objective[k + 1][:, None]], axis=1)
        expected = full @ null_projector(rows)
        assert relative(to_numpy(dense(found.delta)) / scale, expected) <= 1e-6


def test_custom_objective(xp: Any) -> None:
    """The gradient of one layer only: v is zero elsewhere, None counts as zero."""
    seen: list[int] = []

    def last_layer(gradients: Any) -> Any:
        seen.append(len(gradients))
        return [None] * (len(gradients) - 2) + list(gradients[-2:])

    graph = MLPGraph(xp, SIZES)
    before = float(graph.loss())
    report = teleport(graph, _config(objective=last_layer))
    assert seen == [6]
    assert float(graph.loss()) == pytest.approx(before, rel=1e-12)
    # Moving along the last layer changes no layer's input.
    assert all("do not depend on the weights" in layer.reason for layer in report.layers)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            lambda g: g[:-1],
            r"^the objective returned 5 arrays; allowed: 6 finite arrays, one per parameter",
        ),
        (lambda g: [g[1], *g[1:]], r"returned shape \(20,\) for parameter 0 of shape \(20, 6\)"),
    ],
)
def test_bad_custom_objective(objective: Any, message: str) -> None:
    graph = MLPGraph(np, SIZES)
    with pytest.raises(ValueError, match=message):
        teleport(graph, _config(objective=objective))
    assert graph.kept == [0.0]
    assert all(a is b for a, b in zip(graph.values, graph.start, strict=True))


def test_forward_mode_that_is_not_there(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES)
    with pytest.raises(TangentUnavailable, match="no forward mode"):
        teleport(graph, _config(tangent="jvp"))
    assert graph.kept == [0.0]


def test_a_rising_guard_refuses(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES, guard_samples=30, seed=3)
    values = [to_numpy(v).copy() for v in graph.values]
    report = teleport(graph, _config(radius=30.0, max_gain=1e9))
    assert not report.accepted
    assert report.reason.startswith("the guard loss would be")
    assert report.guard_after is not None
    assert report.guard_after > report.guard_before
    assert graph.kept[-1] == 0
    assert all((to_numpy(a) == b).all() for a, b in zip(graph.values, values, strict=True))


def test_float32(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES, dtype="float32")
    before, norm = float(graph.loss()), _grad_norm(graph)
    report = teleport(graph, _config(radius=0.3))
    assert report.accepted
    assert all(v.dtype == xp.float32 for v in graph.values)
    assert float(graph.loss()) == pytest.approx(before, rel=1e-5)
    assert _grad_norm(graph) > norm


def test_an_error_half_way_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = MLPGraph(np, SIZES)

    def fail(*_: Any) -> None:
        msg = "mine"
        raise KeyError(msg)

    monkeypatch.setattr(graph, "replay", fail)
    with pytest.raises(KeyError, match="mine"):
        teleport(graph)
    assert graph.kept == [0.0]


def test_inspect_moves_nothing(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES)
    listed = {layer.name: layer for layer in inspect(graph, _config(exclude=("layer2*",)))}
    assert set(listed) == {"layer0.weight", "layer1.weight", "layer2.weight"}
    assert "as in a first layer" in listed["layer0.weight"].reason
    assert listed["layer1.weight"].reason == ""
    assert listed["layer1.weight"].null_dim == 17
    assert listed["layer2.weight"].reason == "in exclude"
    assert all(a is b for a, b in zip(graph.values, graph.start, strict=True))
    assert graph.kept == []


def test_no_linear_map_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = MLPGraph(np, SIZES)
    lin = graph.linearize()
    lin = Linearization(lin.loss, lin.gradients, [], [])
    monkeypatch.setattr(graph, "linearize", lambda **_: lin)
    with pytest.raises(ValueError, match=r"no weight of the model is used by a recognised linear"):
        teleport(graph)


def test_cost_counts_what_was_done() -> None:
    few = teleport(MLPGraph(np, (6, 400, 400, 3)), _config()).cost
    more = teleport(MLPGraph(np, (6, 400, 400, 3)), _config(steps=2)).cost
    assert 2.5 <= few <= 3.5  # two gradients, a forward, a kernel, and a small null space
    assert more - few == pytest.approx(1 + 1 / 3 + 1 / 3)


def test_a_gradient_of_zero_moves_nothing(xp: Any) -> None:
    graph = MLPGraph(xp, SIZES)
    x, _ = graph.data["batch"]
    graph.data["batch"] = x, graph.forward(graph.values, x)[1]
    report = teleport(graph, _config())
    assert report.loss_before == report.loss_after == 0.0
    assert report.grad_norm_before == 0.0
    assert all(layer.moved == 0.0 and layer.reason for layer in report.layers)


SCALES = [2.0**k for k in (-100, -66, 66, 83)]  # 1e-30, 1e-20, 1e20 and 1e25
PROJECTIONS: dict[str, dict[str, Any]] = {
    "exact": {"projection": "threshold"},
    "threshold": {"projection": "threshold", "threshold": 0.1},
    "budget": {"budget": 0.1},
    "gain": {"projection": lambda shares: 1 / (1 + 30 * shares)},
}


def _numbers_of(report: Any) -> list[Any]:
    layers = [
        (a.name, a.rank, a.null_dim, a.moved, a.output_change_bound, a.hold) for a in report.layers
    ]
    return [report.cause, report.radius, *layers]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("samples", [4, 60], ids=["few samples", "many samples"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_the_units_of_inputs_do_not_matter(
    name: str, scale: float, samples: int, dtype: str
) -> None:
    """All inputs of all layers, times a power of two: the same move, to rounding."""

    def of_weights(gradients: Any) -> Any:  # next to them biases, of another unit, weigh otherwise
        return [None if g.ndim == 1 else g for g in gradients]

    limits = {"max_loss_change": 1e9, "max_gain": 1e9, "objective": of_weights}
    config = _config(tangent="jvp", bias=False, radius=0.1, **limits, **PROJECTIONS[name])
    ends = []
    for units in (1.0, scale):
        graph = ForwardMLPGraph(np, SIZES, samples=samples, dtype=dtype, units=units)
        graph._weights = [
            w * w.dtype.type(0 if k % 2 else 1) for k, w in enumerate(graph.weights())
        ]
        graph._start = graph.weights()
        ends.append((teleport(graph, config), graph.values))
    _alike(ends, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("objective", ["grad_norm", "weight_norm", "custom"])
def test_the_units_of_the_loss_do_not_matter(objective: str, scale: float, dtype: str) -> None:
    mine: Any = (lambda g: g) if objective == "custom" else objective
    config = _config(objective=mine, tangent="jvp", radius=0.1)
    ends = []
    for price in (1.0, scale):
        graph = ForwardMLPGraph(np, SIZES, dtype=dtype, price=price)
        ends.append((teleport(graph, config), graph.values))
    assert float(ends[1][0].loss_before) == pytest.approx(scale * float(ends[0][0].loss_before))
    _alike(ends, dtype)


def _alike(ends: Any, dtype: str) -> None:
    (first, before), (second, after) = ends
    rounding = {"float64": 1e-9, "float32": 1e-3}[dtype]
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype == np.dtype(dtype)
        assert np.abs(a - b).max() <= rounding * np.abs(a).max()
    for a, b in zip(_numbers_of(first), _numbers_of(second), strict=True):
        assert b == (pytest.approx(a, rel=2e-2) if isinstance(a, float) else a) or (
            isinstance(a, tuple)
            and (a[:3], a[5]) == (b[:3], b[5])
            and b[3:5] == pytest.approx(a[3:5], rel=5e-2)
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("samples", [3, 40])
def test_half_precision(dtype: str, samples: int) -> None:
    xp = pytest.importorskip("array_api_compat.torch")
    graph = ForwardMLPGraph(xp, SIZES, samples=samples, dtype=dtype)
    before = numbers(graph.values)
    report = teleport(graph, _config(projection="budget", radius=0.1, max_loss_change=0.5))
    assert report.accepted, report.reason
    assert not unmoved(graph, before)
    for w in graph.values:
        assert w.dtype == getattr(xp, dtype)
        assert type(w) is type(graph.start[0])
        assert str(w.device) == "cpu"
    for layer in report.layers:
        if layer.moved:
            k = 2 * int(layer.name[5])
            moved = [to_numpy(graph.values[i]).astype(float) - before[i] for i in (k, k + 1)]
            whole = np.linalg.norm(np.concatenate([before[k].ravel(), before[k + 1]]))
            length = np.linalg.norm(np.concatenate([a.ravel() for a in moved])) / whole
            assert length == pytest.approx(layer.moved, rel=0.05)
            assert 0 < layer.output_change <= layer.output_change_bound


def test_results_keep_namespace_dtype_and_device(xp: Any) -> None:
    for dtype in ("float32", "float64"):
        graph = MLPGraph(xp, SIZES, dtype=dtype)
        graph.repeatable = True
        report, handed = run(graph, _config(radius=0.1))
        assert report.accepted
        assert handed is not None
        loss, gradients = handed
        for a in [*graph.values, loss, *gradients]:
            assert a.dtype == getattr(xp, dtype)
            assert namespace(a) is namespace(graph.start[0])
            assert device(a) == device(graph.start[0])
        assert [type(a) for a in graph.values] == [type(a) for a in graph.start]
        for value in report.as_dict().values():
            assert isinstance(value, float | int | bool | str | type(None))


@pytest.mark.parametrize("accepted", [True, False])
def test_the_gradient_that_is_handed_over_is_that_of_the_weights_that_stay(accepted: bool) -> None:
    graph = MLPGraph(np, SIZES)
    limit = {} if accepted else {"max_gain": 1 + 1e-12}
    assert run(MLPGraph(np, SIZES), _config()).gradient is None
    graph.repeatable = True
    report, handed = run(graph, _config(radius=0.1, **limit))
    assert report.accepted == accepted
    loss, gradients = graph.differentiate(graph.values)[:2]
    assert handed is not None
    assert handed[0] == loss
    assert all(map(np.array_equal, handed[1], gradients))


@pytest.mark.parametrize("config", ["fast", {"radius": 1}, 3])
def test_settings_of_a_wrong_type(config: Any) -> None:
    for function in (teleport, run, inspect):
        with pytest.raises(TypeError, match=r"invalid config: .*; allowed: a TeleportConfig"):
            function(MLPGraph(np, SIZES), config)


def test_what_was_recorded_is_freed_before_the_move_is_judged() -> None:
    class Order(MLPGraph):
        def release(self) -> None:
            super().release()
            assert self.counts["gradient"] == 0

    graph = Order(np, SIZES)
    teleport(graph, _config())
    assert graph.counts["release"] == 1


class Breaks(MLPGraph):
    """Its weights are no numbers after the first step."""

    def move(self, changes: Any) -> None:
        super().move(changes)
        self._weights = [w * np.nan for w in self._weights]


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("samples", [4, 60])
def test_what_breaks_between_steps_is_refused_and_undone(samples: int, threshold: float) -> None:
    for projection in ("threshold",) if threshold else ("threshold", "budget"):
        graph = Breaks(np, (6, 30, 30, 3), samples=samples)
        start = graph.weights()
        config = TeleportConfig(projection=projection, threshold=threshold, steps=2)
        report = teleport(graph, config)
        assert not report.accepted
        assert all(a is b for a, b in zip(graph.weights(), start, strict=True))


class Infinite(MLPGraph):
    """One unit of the second layer's input is infinite, and multiplied by weights of 0."""

    def differentiate(self, *args: Any) -> Any:
        loss, gradients, inputs, deltas = super().differentiate(*args)
        inputs[1] = inputs[1].copy()
        inputs[1][0, 0] = np.inf
        return loss, gradients, inputs, deltas


@pytest.mark.parametrize("samples", [4, 60])
@pytest.mark.parametrize("projection", ["threshold", "budget"])
def test_a_layer_with_infinite_inputs_stays(samples: int, projection: Any) -> None:
    graph = Infinite(np, (6, 40, 30, 3), samples=samples)
    start = graph.weights()
    report = teleport(graph, TeleportConfig(projection=projection, objective="weight_norm"))
    assert "layer1.weight" in {layer.name for layer in report.layers if layer.reason}
    assert graph.weights()[2] is start[2] or np.array_equal(graph.weights()[2], start[2])
    assert all(np.isfinite(w).all() for w in graph.weights())
