"""Teleports inside pmap and shard_map, and on explicit meshes; run by ``test_replicated.py``.

JAX fixes the number of devices when it starts: this is a program of its own. Every case is compared
with the same teleport of the whole batch on one device.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nullport import TeleportConfig
from nullport_jax import teleport, teleporting

DEVICES = int(sys.argv[1]) if __name__ == "__main__" else 4
SIZES = (6, 20 if DEVICES == 4 else 24, 16, 3)  # hidden rows are divided among all devices
FEW, MANY = 2 * DEVICES, 8 * DEVICES
FREE: dict[str, Any] = {"max_gain": 1e9, "max_loss_change": 1e9}
CONFIGS = {
    "exact": TeleportConfig(projection="threshold", **FREE),
    "budget": TeleportConfig(radius=0.05, **FREE),
    "look_ahead": TeleportConfig(radius=0.05, **FREE),
    "steps": TeleportConfig(projection="threshold", steps=2, **FREE),
}


def network() -> Any:
    draw = np.random.default_rng(0).standard_normal
    return [
        {"w": jnp.asarray(draw((a, b)) / a**0.5), "b": jnp.asarray(draw(b) * 0.1)}
        for a, b in itertools.pairwise(SIZES)
    ]


def batch(samples: int, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(seed).standard_normal
    return jnp.asarray(draw((samples, SIZES[0]))), jnp.asarray(draw((samples, SIZES[-1])))


def local(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2)


def averaged(params: Any, x: jax.Array, y: jax.Array, *, over: Any = "d") -> jax.Array:
    return jax.lax.pmean(local(params, x, y), over)


def normalised(params: Any, x: jax.Array, y: jax.Array, *, over: Any = "d") -> jax.Array:
    """Normalise over the samples of all replicas, as synchronised batch normalisation does."""

    def mean(a: jax.Array) -> jax.Array:
        found = jnp.mean(a, 0)
        return found if over is None else jax.lax.pmean(found, over)

    for layer in params[:-1]:
        x = x @ layer["w"] + layer["b"]
        x = jnp.tanh((x - mean(x)) / jnp.sqrt(mean(x**2) - mean(x) ** 2 + 1e-3))
    return jnp.mean((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2)


LOSSES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "local": (local, local),
    "averaged": (averaged, local),
    "normalised": (normalised, partial(normalised, over=None)),
}


def cut(a: jax.Array) -> jax.Array:
    return a.reshape(DEVICES, -1, *a.shape[1:])


def stacked(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.stack([a] * DEVICES), tree)


def one(loss: Any, config: str, params: Any, data: Any, given: Any = None, **more: Any) -> Any:
    tx = optax.sgd(0.05, momentum=0.9)
    extra: dict[str, Any] = {}
    if given is not None:
        guard, others, state = given
        extra = {"tx": tx, "opt_state": state, "guard": guard, "others": others}
    return teleport(loss, params, *data, config=CONFIGS[config], **extra, **more)


def numbers(report: Any) -> list[float]:
    found = [report.loss_before, report.loss_after, report.grad_norm_before]
    found += [report.grad_norm_after, report.radius, report.cause, report.guard_after]
    found += [row.moved for row in report.layers]
    return [0.0 if a is None else float(np.asarray(a).ravel()[0]) for a in found]


def compared(moved: Any, report: Any, expected: Any, wanted: Any) -> dict[str, Any]:
    pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)
    rows = zip(numbers(report), numbers(wanted), strict=True)
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in rows]
    return {
        "error": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "report": max(apart),
        "accepted": bool(np.all(np.asarray(report.accepted))),
        "moved": sum(float(np.asarray(row.moved).ravel()[0]) > 1e-3 for row in wanted.layers),
    }


def replicas(way: str, loss_name: str, config: str, samples: int) -> dict[str, Any]:
    """Teleport inside pmap or shard_map."""
    loss, whole = LOSSES[loss_name]
    params, data = network(), batch(samples)
    given = None
    if config == "look_ahead":
        state = optax.sgd(0.05, momentum=0.9).init(params)
        given = (batch(samples, 2), batch(samples, 3), state)
    expected, wanted = jax.jit(partial(one, whole, config))(params, data, given)
    if way == "pmap":
        mapped = jax.tree.map(cut, data)
        each = given and (*jax.tree.map(cut, given[:2]), stacked(given[2]))
        run = jax.pmap(partial(one, loss, config, axis_name="d"), axis_name="d")
        moved, report = run(stacked(params), mapped, each)
        apart = max(float(jnp.abs(a - a[:1]).max()) for a in jax.tree.leaves(moved))
        moved = jax.tree.map(lambda a: a[0], moved)
        return compared(moved, report, expected, wanted) | {"apart": apart}
    mesh, axes = jax.make_mesh((DEVICES,), ("d",), (AxisType.Auto,)), "d"
    if way == "two axes":
        mesh = jax.make_mesh((2, DEVICES // 2), ("a", "b"), (AxisType.Auto,) * 2)
        axes = ("a", "b")
        loss = partial(loss, over=axes) if loss is not local else loss
    specs = (P(), P(axes), None if given is None else (P(axes), P(axes), P()))
    run = jax.shard_map(
        partial(one, loss, config, axis_name=axes),
        mesh=mesh,
        in_specs=specs,
        out_specs=P(),
        check_vma=way != "unchecked",
    )
    moved, report = jax.jit(run)(params, data, given)
    return compared(moved, report, expected, wanted)


def explicit(way: str, config: str, samples: int, layout: str) -> dict[str, Any]:
    """Teleport on a mesh with explicit axes, with and without jit."""
    specs = {
        "replicated": [{"w": P(), "b": P()}] * 3,
        "rows": [{"w": P("d", None), "b": P("d")}] * 2 + [{"w": P("d", None), "b": P()}],
        "two": [
            {"w": P(None, "m"), "b": P("m")},
            {"w": P("m", None), "b": P()},
            {"w": P(), "b": P()},
        ],
    }[layout]
    shape, names = ((DEVICES,), ("d",)) if layout != "two" else ((DEVICES // 2, 2), ("d", "m"))
    params, data = network(), batch(samples)
    if layout == "rows":  # divisible by the number of devices
        params[0]["w"] = jnp.concatenate([params[0]["w"], params[0]["w"][:2]])
        data = (jnp.concatenate([data[0], data[0][:, :2]], 1), data[1])
    expected, wanted = jax.jit(partial(one, local, config))(params, data)
    mesh = jax.make_mesh(shape, names, (AxisType.Explicit,) * len(names))
    with jax.set_mesh(mesh):
        is_spec = lambda s: isinstance(s, P)  # noqa: E731
        shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_spec)
        spread = jax.device_put(params, shardings)
        rows = jax.device_put(data, NamedSharding(mesh, P("d")))
        run = partial(one, local, config)
        moved, report = (jax.jit(run) if way == "jit" else run)(spread, rows)
        kept = [
            a.sharding.is_equivalent_to(s, a.ndim)
            for a, s in zip(jax.tree.leaves(moved), jax.tree.leaves(shardings), strict=True)
        ]
        return compared(moved, report, expected, wanted) | {"kept": all(kept)}


def said(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Say how results are spread, which is an error where axes are left to the compiler."""

    def product(a: jax.Array, b: jax.Array, spec: P) -> jax.Array:
        return jnp.einsum("ij,jk->ik", a, b, out_sharding=spec)

    def step(h: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jax.reshard(jnp.sin(h), P("d", None)), None

    @jax.checkpoint
    def inner(h: jax.Array, layer: Any) -> jax.Array:
        return jax.nn.silu(product(h, layer["w"], P("d", None)) + layer["b"])

    first, second, last = params
    x = jnp.tanh(product(x, first["w"], P("d", "m")) + first["b"])
    x, _ = jax.lax.scan(step, jax.reshard(x, P("d", None)), None, length=2)
    return jnp.mean((product(inner(x, second), last["w"], P("d", None)) + last["b"] - y) ** 2)


def unsaid(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    first, second, last = params
    x = jnp.sin(jnp.sin(jnp.tanh(x @ first["w"] + first["b"])))
    x = jax.nn.silu(x @ second["w"] + second["b"])
    return jnp.mean((x @ last["w"] + last["b"] - y) ** 2)


def saying(way: str) -> dict[str, Any]:
    """Teleport and train with a loss that says how its results are spread."""
    mesh = jax.make_mesh((2, 2), ("d", "m"), (AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    params, data = network(), batch(FEW)
    specs = [{"w": P(None, "m"), "b": P("m")}, {"w": P("m", None), "b": P()}, {"w": P(), "b": P()}]
    tx = optax.sgd(0.02)

    def run(loss: Any, params: Any, data: Any) -> Any:
        if way == "jit":
            return one(loss, "exact", params, data)
        both = teleporting(tx, loss, every=1, config=CONFIGS["exact"])
        state = both.init(params)
        policy = state.policy._replace(step=jnp.ones((), jnp.float32))  # due at once
        state = state._replace(policy=policy)
        gradient = jax.grad(loss)(params, *data)
        updates, state = both.update(gradient, state, params, batch=data)
        return optax.apply_updates(params, updates), state

    expected, wanted = jax.jit(partial(run, unsaid))(params, data)
    with jax.set_mesh(mesh):
        is_spec = lambda s: isinstance(s, P)  # noqa: E731
        shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_spec)
        spread = jax.device_put(params, shardings)
        rows = jax.device_put(data, NamedSharding(mesh, P("d")))
        moved, report = jax.jit(partial(run, said))(spread, rows)
        kept = [
            a.sharding.is_equivalent_to(s, a.ndim)
            for a, s in zip(jax.tree.leaves(moved), jax.tree.leaves(shardings), strict=True)
        ]
        if way == "jit":
            return compared(moved, report, expected, wanted) | {"kept": all(kept)}
        pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)
        error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
        counts = int(report.accepted), int(wanted.accepted)
        return {"error": error, "accepted": counts == (1, 1), "moved": 1, "report": 0.0}


def training(way: str, steps: int = 50) -> dict[str, Any]:
    """Train with teleports, against the same run on one device."""
    config = TeleportConfig(projection="threshold", radius=0.05, **FREE)
    samples = 2 * DEVICES

    def make(axis: str | None) -> Any:
        return teleporting(
            optax.sgd(0.02, momentum=0.9), local, every=5, config=config,
            example=batch(samples // (DEVICES if axis else 1)), axis_name=axis,
        )  # fmt: skip

    def step(tx: Any, axis: str | None, params: Any, state: Any, data: Any) -> Any:
        gradient = jax.grad(local)(params, *data)
        if axis:
            gradient = jax.lax.pmean(gradient, axis)
        updates, state = tx.update(gradient, state, params, batch=data)
        return optax.apply_updates(params, updates), state

    def loop(run: Any, params: Any, state: Any, put: Any) -> Any:
        for i in range(steps):
            params, state = run(params, state, put(batch(samples, 100 + i)))
        return params, state

    alone = make(None)
    start = network()
    expected, last = loop(
        jax.jit(partial(step, alone, None)), start, alone.init(start), lambda d: d
    )
    if way == "pmap":
        tx = make("d")
        run = jax.pmap(partial(step, tx, "d"), axis_name="d")
        state = stacked(tx.init(start))
        params, state = loop(run, stacked(start), state, lambda d: jax.tree.map(cut, d))
        apart = max(float(jnp.abs(a - a[:1]).max()) for a in jax.tree.leaves(params))
        params, state = (jax.tree.map(lambda a: a[0], t) for t in (params, state))
    elif way == "unchecked":
        tx, apart = make("d"), 0.0
        mesh = jax.make_mesh((DEVICES,), ("d",), (AxisType.Auto,))
        inner = jax.shard_map(
            partial(step, tx, "d"), mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=P(),
            check_vma=False,
        )  # fmt: skip
        params, state = loop(
            jax.jit(inner, donate_argnums=(0, 1)),
            jax.tree.map(jnp.copy, start),
            tx.init(start),
            lambda d: d,
        )
    else:  # fully sharded, on an explicit or an automatic mesh, everything donated
        kind, apart = AxisType.Explicit if way == "explicit" else AxisType.Auto, 0.0
        mesh = jax.make_mesh((2,), ("d",), (kind,), devices=jax.devices()[:2])
        with jax.set_mesh(mesh):
            put = lambda d: jax.device_put(d, NamedSharding(mesh, P("d")))  # noqa: E731
            tx = make(None)
            rows = lambda a: P("d") if a.ndim and a.shape[0] % 2 == 0 else P()  # noqa: E731
            if way == "explicit":  # where this loss does not say how its results are spread
                rows = lambda a: P()  # noqa: E731
            spread = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, rows(a))), start)
            state = tx.init(spread)
            run = jax.jit(partial(step, tx, None), donate_argnums=(0, 1))
            params, state = loop(run, spread, state, put)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True)
    return {
        "apart": apart,
        "error": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "accepted": int(state.accepted),
        "expected": int(last.accepted),
    }


def refused() -> dict[str, Any]:
    """Replicas that differ, and axes that are not known."""
    params, data = network(), batch(FEW)
    stack = stacked(params)
    stack[1]["w"] = stack[1]["w"].at[-1, 0, 0].add(1e-16)
    run = jax.pmap(partial(one, averaged, "exact", axis_name="d"), axis_name="d")
    moved, report = run(stack, jax.tree.map(cut, data), None)
    same = all(map(np.array_equal, jax.tree.leaves(moved), jax.tree.leaves(stack)))
    said = {"cause": [int(c) for c in report.cause], "same": same}

    def error(call: Callable[[], Any]) -> str:
        try:
            call()
        except ValueError as found:
            return str(found)
        return "none"

    pieces = jax.tree.map(cut, data)
    missing = jax.pmap(partial(one, averaged, "exact"), axis_name="d")
    said["missing"] = error(lambda: missing(stacked(params), pieces, None))
    other = jax.pmap(partial(one, averaged, "exact", axis_name="e"), axis_name="d")
    said["other"] = error(lambda: other(stacked(params), pieces, None))
    said["nowhere"] = error(lambda: one(local, "exact", params, data, axis_name="d"))
    return said


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "pmap averaged": partial(replicas, "pmap", "averaged", "exact", FEW),
    "pmap normalised": partial(replicas, "pmap", "normalised", "budget", MANY),
    "pmap look_ahead": partial(replicas, "pmap", "averaged", "look_ahead", MANY),
    "shard_map local": partial(replicas, "checked", "local", "budget", MANY),
    "shard_map averaged": partial(replicas, "checked", "averaged", "steps", FEW),
    "shard_map normalised": partial(replicas, "checked", "normalised", "exact", FEW),
    "shard_map look_ahead": partial(replicas, "checked", "local", "look_ahead", MANY),
    "unchecked averaged": partial(replicas, "unchecked", "averaged", "exact", FEW),
    "two axes averaged": partial(replicas, "two axes", "averaged", "exact", FEW),
    "explicit jit": partial(explicit, "jit", "exact", FEW, "replicated"),
    "explicit rows": partial(explicit, "jit", "exact", FEW, "rows"),
    "explicit eager": partial(explicit, "eager", "exact", FEW, "two"),
    "explicit said": partial(saying, "jit"),
    "explicit said, teleporting": partial(saying, "optax"),
    "training pmap": partial(training, "pmap"),
    "training unchecked": partial(training, "unchecked"),
    "training explicit": partial(training, "explicit"),
    "training automatic": partial(training, "automatic"),
    "refused": refused,
}
SOME = ("pmap averaged", "shard_map local", "two axes averaged", "explicit rows")


def main() -> None:
    """Print what every case found, or those of a smaller selection with more devices."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    names = CASES if DEVICES == 4 else SOME
    names = sys.argv[2:] or names
    found = {}
    for name in names:
        start = time.perf_counter()
        found[name] = CASES[name]()
        print(name, round(time.perf_counter() - start, 1), file=sys.stderr, flush=True)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
