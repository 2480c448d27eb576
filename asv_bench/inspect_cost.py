"""Print what ``inspect`` costs in gradients, measured side by side in one process.

    python asv_bench/inspect_cost.py                  # about a minute on one core
    python asv_bench/inspect_cost.py --only mlp_512 --repeats 9

The unit is one gradient (forward and backward) of the same network on the same batch. A ratio is
the median over interleaved repeats, after one of each that is not counted. In JAX both are jitted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def _torch(model: Any, x: Any) -> Pair:
    """Return a gradient and a look of a torch model on inputs; the loss is a mean square."""
    import nullport_torch

    def closure() -> Any:
        return model(x).square().mean()

    def gradient() -> None:
        model.zero_grad()
        closure().backward()

    return gradient, lambda: nullport_torch.inspect(model, closure)


def mlp(width: int, samples: int) -> Pair:
    """Return those of an MLP of 4 square layers."""
    import torch
    from torch import nn

    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())]
    return _torch(nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(samples, width))


def cnn() -> Pair:
    """Return those of six convolutions on images of 32 x 32."""
    import torch
    from torch import nn

    sizes = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(sizes):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] * (k % 2))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))
    return _torch(model, torch.randn(32, 3, 32, 32))


def transformer() -> Pair:
    """Return those of 4 encoder layers of width 128 on 512 tokens."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    return _torch(nn.TransformerEncoder(layer, 4), torch.randn(8, 64, 128))


def jax_mlp(width: int, samples: int) -> Pair:
    """Return those of the MLP in JAX."""
    import jax
    import jax.numpy as jnp

    import nullport_jax

    keys = jax.random.split(jax.random.key(0), 5)
    params = [jax.random.normal(k, (width, width)) / width**0.5 for k in keys]
    x = jax.random.normal(keys[0], (samples, width))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for w in params:
            x = jax.nn.gelu(x @ w)
        return jnp.mean(x**2)

    gradient = jax.jit(jax.grad(loss))
    # The numbers of a report alone: words cannot leave a compiled function.
    look = jax.jit(lambda p, x: [r.null_dim for r in nullport_jax.inspect(loss, p, x)])
    ready = jax.block_until_ready
    return lambda: ready(gradient(params, x)), lambda: ready(look(params, x))


NETWORKS: dict[str, Callable[[], Pair]] = {
    "mlp_128": lambda: mlp(128, 64),
    "mlp_512": lambda: mlp(512, 256),
    "mlp_1024": lambda: mlp(1024, 128),
    "cnn": cnn,
    "transformer": transformer,
    "jax_mlp_512": lambda: jax_mlp(512, 256),
}


def ratio(pair: Pair, repeats: int) -> tuple[float, float]:
    """Return the seconds of a gradient, and those of a look per gradient."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(repeats + 1):
        for own, function in zip(seconds, pair, strict=True):
            start = time.perf_counter()
            function()
            own.extend([time.perf_counter() - start] if k else [])
    return median(seconds[0]), median(b / a for a, b in zip(*seconds, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What inspect costs in gradients.")
    parser.add_argument("--only", action="append", choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("| network | gradient | inspect |\n| --- | --- | --- |")
    for name in args.only or NETWORKS:
        gradient, look = ratio(NETWORKS[name](), args.repeats)
        print(f"| {name} | {1e3 * gradient:.2f} ms | {look:.1f} gradients |", flush=True)


if __name__ == "__main__":
    main()
