"""Teleports of parameters that are spread over four devices; run by ``test_sharding.py``.

JAX fixes the number of devices when it starts: this is a program of its own.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nullport import TeleportConfig
from nullport_jax import teleport

SIZES = (8, 40, 32, 4)
WHOLE, ROWS, COLUMNS = PartitionSpec(), PartitionSpec("d", None), PartitionSpec(None, "d")
BATCH = PartitionSpec("d")
LAYOUTS = {
    "replicated": [{"w": WHOLE, "b": WHOLE}] * 3,
    "tensor parallel": [
        {"w": COLUMNS, "b": BATCH},
        {"w": ROWS, "b": WHOLE},
        {"w": COLUMNS, "b": BATCH},
    ],
    "FSDP": [{"w": ROWS, "b": BATCH}] * 3,
}
CONFIG = TeleportConfig(radius=0.2, max_loss_change=10.0)  # a budget may cost some loss


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2)


def network() -> Any:
    draw = np.random.default_rng(0).standard_normal
    return [
        {"w": jnp.asarray(draw((a, b)) / a**0.5), "b": jnp.asarray(draw(b) * 0.1)}
        for a, b in itertools.pairwise(SIZES)
    ]


def batch(samples: int) -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(1).standard_normal
    return jnp.asarray(draw((samples, SIZES[0]))), jnp.asarray(draw((samples, SIZES[-1])))


def one(params: Any, *data: jax.Array) -> Any:
    return teleport(loss_fn, params, *data, config=CONFIG)


def main() -> None:
    """Print a list: how far each sharded teleport is from the one on one device."""
    jax.config.update("jax_enable_x64", True)
    # Four devices share the threads of few processors: programs in flight at the same time may
    # each hold some of them and wait for the rest.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    params, found = network(), []
    jitted = jax.jit(one)
    for samples in (16, 120):  # a null space, and a budget
        data = batch(samples)
        expected, report = jitted(params, *data)
        assert report.accepted, report.reason
        for name, specs in LAYOUTS.items():
            shardings = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec),
                specs,
                is_leaf=lambda spec: isinstance(spec, PartitionSpec),
            )
            spread = jax.device_put(params, shardings)
            rows = jax.device_put(data, NamedSharding(mesh, BATCH))
            ways = {"jit": jitted, "eager": one} if samples == 16 else {"jit": jitted}
            for way, run in ways.items():
                moved, mine = run(spread, *rows)
                found.append({"name": f"{name}, {samples} samples, {way}"})
                found[-1] |= compared(moved, mine, expected, report, shardings)
    print(json.dumps(found), flush=True)


def compared(moved: Any, mine: Any, expected: Any, report: Any, shardings: Any) -> dict[str, Any]:
    pairs = list(zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True))
    kept = [
        leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        for (leaf, _), sharding in zip(pairs, jax.tree.leaves(shardings), strict=True)
    ]
    return {
        "devices": min(len(leaf.sharding.device_set) for leaf, _ in pairs),
        "accepted": bool(mine.accepted),
        "error": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "moved": [float(row.moved) for row in mine.layers],
        "expected": [float(row.moved) for row in report.layers],
        "kept": all(kept),
        "rise": float(mine.loss_after / mine.loss_before) - 1,
    }


if __name__ == "__main__":
    main()
