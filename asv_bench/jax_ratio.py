"""Print the cost of a jitted JAX teleport in gradients, measured side by side in one process.

    python asv_bench/jax_ratio.py               # about five minutes on 2 cores
    python asv_bench/jax_ratio.py --widths 1024 --count

The unit is one jitted ``value_and_grad`` of the same network on the same batch. A ratio is the
median over interleaved repeats. An ascent step after the first is (T(6) - T(1)) / 5, of whole
teleports of 6 steps and of 1, each one jitted function. ``--count`` adds what the compiler counts:
operations in gradients, and bytes read or written in units of all weights (*passes*).
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

# The threads of LAPACK's own pool wait in loops, and take the processors from XLA's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

from nullport import TeleportConfig
from nullport_jax import teleport

STEPS = 6
SAMPLES = {64: (32,), 256: (32, 128)}
"""Samples by width: few enough for every layer to have an exact null space."""
FIGURES = {64: 2.0, 256: 2.0}
WHOLE = 4.0

Function = Callable[[], Any]
Counts = dict[str, float]


def network(width: int, depth: int, samples: int) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Return the parameters of a GELU MLP of ``depth`` square layers, and random data."""
    draw = np.random.default_rng(0)
    sizes = [*[width] * (depth + 1), 10]
    params = [
        {"w": draw.uniform(-1, 1, (a, b)) / a**0.5, "b": draw.uniform(-1, 1, b) / a**0.5}
        for a, b in itertools.pairwise(sizes)
    ]
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = jnp.asarray(draw.standard_normal((samples, width)), jnp.float32)
    return params, (x, jnp.asarray(draw.integers(0, 10, samples)))


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    for layer in params[:-1]:
        x = jax.nn.gelu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Function, Counts, float]:
    """Return the compiled call, what the compiler counts, the time to compile."""
    start = time.perf_counter()
    made = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(made(*args)), made.cost_analysis(), seconds


def times(repeats: int, functions: list[Function]) -> list[list[float]]:
    """Return the seconds of each function, called in turns after two rounds of warm-up."""
    taken: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 2):
        for function, record in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            if turn > 1:
                record.append(time.perf_counter() - start)
    return taken


def jump(steps: int, **options: Any) -> Callable[..., Any]:
    """Return a teleport of so many steps."""
    config = TeleportConfig(radius=1e-3, steps=steps, **options)
    return lambda params, x, y: teleport(loss_fn, params, x, y, config=config)


def show(what: str, value: float, target: float) -> None:
    """Print one row."""
    verdict = "ok" if value <= target else "MISSED"
    print(f"{what:<72} {value:8.3g} gradients  (figure: <= {target:g})  {verdict}", flush=True)


def measure(width: int, depth: int, samples: int, repeats: int, tangent: str, count: bool) -> None:
    """Print the ratios of one network."""
    params, data = network(width, depth, samples)
    functions = [
        compiled(jax.value_and_grad(loss_fn), params, *data),
        compiled(jump(1, tangent=tangent), params, *data),
        compiled(jump(STEPS, tangent=tangent), params, *data),
    ]
    unit, one, many = times(repeats, [f for f, _, _ in functions])
    pairs = zip(many, one, strict=True)
    step = median((b - a) / (STEPS - 1) for b, a in pairs) / median(unit)
    name = f"width {width}, depth {depth}, {samples} samples"
    show(f"ascent step, {name}", step, FIGURES.get(width, 1.4))
    show(f"whole one-step teleport, {name}", median(one) / median(unit), WHOLE)
    print(
        f"    gradient {1e3 * median(unit):.3g} ms; compiling: gradient {functions[0][2]:.2f} s, "
        f"teleport {functions[1][2]:.2f} s"
    )
    if count:
        counted = [c for _, c, _ in functions]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        for name, key, one in (
            ("operations, in gradients", "flops", counted[0]["flops"]),
            ("passes over all weights", "bytes accessed", size),
        ):
            gradient, whole, many = (c[key] / one for c in counted)
            step = (many - whole) / (STEPS - 1)
            print(f"    {name}: gradient {gradient:.3g}, step {step:.3g}, teleport {whole:.3g}")


def main() -> None:
    """Print the chosen widths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--widths", default="64,256,1024,2048")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=0, help="0: by width")
    parser.add_argument("--tangent", default="auto")
    parser.add_argument("--count", action="store_true")
    given = parser.parse_args()
    print(f"jax {jax.__version__}, {os.cpu_count()} processors, {jax.devices()[0].platform}")
    for width in map(int, given.widths.split(",")):
        repeats = given.repeats or (300 if width < 200 else 40 if width < 1000 else 9)
        for samples in SAMPLES.get(width, (64, 256)):
            measure(width, given.depth, samples, repeats, given.tangent, given.count)


if __name__ == "__main__":
    main()
