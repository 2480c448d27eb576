"""Networks of nullport's own layers: direction, invariance, and agreement of all namespaces."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from array_adapter.graphs import Problem, oracle, problems
from array_adapter.layer_reference import PLACES, error, place
from helpers.installed import installed
from helpers.slow import slow

from nullport import TeleportConfig, TeleportReport, run
from nullport_arrays import SGD, Adam, inspect, teleport
from nullport_arrays.layers import flatten

PROBLEMS = problems()
EXACT = TeleportConfig(projection="threshold", radius=0.3)
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
every_place = pytest.mark.parametrize("name", [p for p in PLACES if p != "jax-jit"])
quick_place = pytest.mark.parametrize("name", [p for p in PLACES if not p.startswith("jax")])


def moves(problem: Problem, config: TeleportConfig) -> dict[str, Any]:
    """Return the change of every weight, bias as last column, by path."""
    with place("numpy") as here:
        graph = problem.graph(here)
        report = teleport(graph, config)
        assert report.accepted, report.reason
    old, new = flatten(problem.params()), flatten(graph.params)
    found = {}
    for path, layer in linear_layers(problem).items():
        change = layer.matrix(new[f"{path}.weight"] - old[f"{path}.weight"])
        if f"{path}.bias" in new:
            bias = new[f"{path}.bias"] - old[f"{path}.bias"]
            change = np.concatenate([change, bias.reshape(*change.shape[:-1], 1)], axis=-1)
        found[path] = change
    return found


def linear_layers(problem: Problem) -> dict[str, Any]:
    from nullport_arrays.layers import Watch

    seen: dict[str, Any] = {}
    watch = Watch(lambda path, layer, _: seen.__setitem__(path, layer))
    problem.network.forward(problem.params(), problem.x, watch)
    return seen


@pytest.mark.skipif(not installed("torch"), reason="the oracle needs torch")
@pytest.mark.parametrize("tangent", ["jvp", "fd"])
@every_problem
def test_direction(problem: Problem, tangent: str) -> None:
    config = TeleportConfig(
        projection="threshold", radius=1e-3, tangent=tangent, max_loss_change=1.0
    )
    found, expected = moves(problem, config), oracle(problem)
    moved = 0
    for path, direction in expected.items():
        size = np.linalg.norm(direction)
        if size < 1e-10:
            assert np.linalg.norm(found[path]) == 0.0, path
            continue
        unit = found[path] / np.linalg.norm(found[path])
        # A weight of size 1 moved by 1e-3 keeps 13 digits of the move.
        tolerance = 1e-9 if tangent == "jvp" else 1e-4
        assert np.linalg.norm(unit - direction / size) <= tolerance, path
        moved += 1
    assert moved >= 2


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
@quick_place
@every_problem
def test_loss_stays_and_gradient_grows(
    problem: Problem, name: str, dtype: str, limit: float
) -> None:
    with place(name) as here:
        graph = problem.graph(here, dtype)
        before = float(graph.loss())
        report = teleport(graph, EXACT)
        assert report.accepted, report.reason
        changed = float(graph.loss())
        params = here.back(graph.params)  # checks namespace and device
    assert abs(changed - before) <= limit * before
    assert report.grad_norm_after > 1.01 * report.grad_norm_before
    assert all(a.dtype == np.dtype(dtype) for a in flatten(params).values())


def test_a_device_that_refuses_conversion_does_so() -> None:
    """What the teleports on it prove: nothing of them passes through the host."""
    with place("array_api_strict-device1") as here:
        array = next(iter(flatten(here.put(PROBLEMS["mlp"].params())).values()))
        with pytest.raises(RuntimeError, match="device1"):
            np.asarray(array)


@every_place
@every_problem
def test_namespaces_agree(problem: Problem, name: str) -> None:
    """Directions and reports, field by field, are those of NumPy."""
    slow(name == "jax", "a minute, operation by operation")
    if name == "jax" and problem is not PROBLEMS["mlp"]:
        pytest.skip("JAX compiles every operation by itself here, which takes a minute")
    config = TeleportConfig(objective="look_ahead", radius=0.2, budget=0.1, steps=2)
    results = []
    for where in ("numpy", name):
        with place(where) as here:
            graph = problem.graph(
                here,
                guard=tuple(problem.batch(here, seed=1)),
                others=tuple(problem.batch(here, seed=2)),
                optimizer=Adam(1e-3),
                state=Adam(1e-3).init(here.put(problem.params(), "float64")),
            )
            report = teleport(graph, config)
            results.append((here.back(graph.params), report))
    (expected, first), (found, second) = results
    assert error(found, expected) <= 1e-10
    same_report(second, first)


def same_report(found: TeleportReport, expected: TeleportReport) -> None:
    """Check every field but the time to 1e-10."""
    for field in fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "layers":
            assert len(a) == len(b)
            for mine, theirs in zip(a, b, strict=True):
                for key, value in theirs.as_dict().items():
                    same(mine.as_dict()[key], value, f"{theirs.name}.{key}")
        elif field.name != "seconds":
            same(a, b, field.name)


def same(a: Any, b: Any, what: str) -> None:
    if b is None or isinstance(b, str):
        assert a == b, what
    else:
        # Bounds and measured changes of an exact projection are rounding: absolute.
        assert float(a) == pytest.approx(float(b), rel=1e-10, abs=1e-12), what


@every_problem
def test_reused_activations_change_nothing(problem: Problem) -> None:
    config = TeleportConfig(projection="threshold", radius=0.2, steps=3)
    with place("numpy") as here:
        reused = problem.graph(here)
        calls: list[bool] = []
        linearize = reused.program.linearize

        def counted(weights: Any, **options: Any) -> Any:
            lin = linearize(weights, **options)
            calls.append(lin.reused)
            return lin

        reused.program.linearize = counted  # type: ignore[method-assign]
        teleport(reused, config)
        assert calls == [False, True, True]
        fresh = problem.graph(here)
        again = fresh.program.linearize
        fresh.program.linearize = (  # type: ignore[method-assign]
            lambda weights, *, unchanged=False, **how: again(weights, **how)
        )
        teleport(fresh, config)
    assert error(reused.params, fresh.params) <= 1e-12


@every_problem
def test_refused_is_bit_identical(problem: Problem) -> None:
    with place("numpy") as here:
        graph = problem.graph(here, optimizer=SGD(1e6), state=SGD(1e6).init(problem.params()))
        before = graph.weights()
        report = teleport(graph, TeleportConfig(objective="grad_norm", radius=0.3))
    assert not report.accepted
    assert all(a is b for a, b in zip(graph.weights(), before, strict=True))


@every_problem
def test_settled_gradient_is_that_of_the_next_step(problem: Problem) -> None:
    with place("numpy") as here:
        graph = problem.graph(here)
        report, handed = run(graph, EXACT)
        assert report.accepted
        assert handed is not None
        loss, gradient = handed
        fresh = problem.graph(here)
        value, expected = fresh.program.gradient(graph.weights(), "batch")
    assert float(loss) == float(value)
    assert all(np.array_equal(a, b) for a, b in zip(gradient, expected, strict=True))  # type: ignore[arg-type]


def test_inspect_lists_every_weight() -> None:
    with place("numpy") as here:
        layers = inspect(PROBLEMS["transformer"].graph(here))
    reasons = {layer.name: layer.reason for layer in layers}
    assert reasons["0.table"] == "used by a layer that is no product"
    assert reasons["6.weight"] == ""
    assert {"2.0.1.query.weight", "3.1.3.weight"} <= set(reasons)


def test_no_floats() -> None:
    problem = PROBLEMS["mlp"]
    with place("numpy") as here, pytest.raises(ValueError, match="none of the 6 weights can move"):
        problem.graph(here, "int64")


@every_problem
def test_output_norms_are_those_of_the_products(problem: Problem) -> None:
    """They are taken from the forward pass; a bias has no part in them."""
    with place("numpy") as here:
        graph = problem.graph(here)
        for unchanged in (False, True):
            lin = graph.linearize(unchanged=unchanged, again=True)
            weights = [use for use in lin.uses if use.site is not None and use.role == "weight"]
            assert len(weights) == len(lin.sites)
            for use in weights:
                site = lin.sites[use.site]  # type: ignore[index]
                matrix = graph.read(0, graph.weights()[use.parameter], use.layout)  # type: ignore[arg-type]
                rows = np.concatenate(list(site.rows()), axis=-2)
                expected = np.linalg.norm(rows @ np.swapaxes(matrix, -1, -2))
                assert float(site.output_norm) == pytest.approx(expected, rel=1e-12)
