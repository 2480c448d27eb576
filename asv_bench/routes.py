"""What the filter of a budget costs and gains when it is made from a part of the rows.

    python asv_bench/routes.py --data DIR [--widths 512 1024 2048]

The inputs are a random ReLU layer on CIFAR-10. Gains are to first order, at equal length and equal
output change on all rows, relative to the eigendecomposition of the Gram matrix of all rows.
Seconds are medians of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nullport._nullspace import _coordinates
from nullport.lab.compare import load_task
from nullport.network import Collective

OUT = 128


def problem(width: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs (n, width) and a direction (OUT, width)."""
    torch.manual_seed(0)
    x = torch.relu(images @ torch.randn(images.shape[1], width) / images.shape[1] ** 0.5)
    tangent = torch.relu(images @ torch.randn(images.shape[1], width) / images.shape[1] ** 0.5)
    return x, (0.01 * torch.randn(len(x), OUT)).T @ (tangent - 0.3 * x)


def by_rows(x: Tensor, d: Tensor, change: Tensor, rows: int) -> Tensor:
    every = max(1, len(x) // rows)
    space = _coordinates(iter([x[::every]]), len(x), every, False, Collective())
    found: Tensor = replace(space, ratio=change).project(d)[0]
    return found


def by_cholesky(x: Tensor, d: Tensor, change: Tensor, rounds: int = 8) -> Tensor:
    """Bisect on s, one factorisation of ``I + s G`` each, in float64."""
    wide = x.double()
    gram, identity = wide.T @ wide, torch.eye(x.shape[1], dtype=torch.float64)
    low, high, scale = -14.0, 16.0, float(gram.trace()) / len(gram)
    for _ in range(rounds):
        middle = (low + high) / 2
        factor = torch.linalg.cholesky(identity + torch.tensor(middle).exp() / scale * gram)
        n = torch.cholesky_solve(d.double().T, factor).T
        fits = ((n @ gram) * n).sum().sqrt() / torch.linalg.vector_norm(n) <= change
        low, high = (low, middle) if fits else (middle, high)
    return n.float()


def gain(x: Tensor, d: Tensor, n: Tensor, change: Tensor) -> float:
    reach = min(change / torch.linalg.vector_norm(x @ n.T), 1 / torch.linalg.vector_norm(n))
    return float(reach * (d * n).sum())


def timed(function: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor, float]:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = function(*arguments)
        times.append(time.perf_counter() - start)
    return result, median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048])
    arguments = parser.parse_args()
    task = load_task("cifar10", arguments.data)
    images = torch.from_numpy(task.inputs.reshape(len(task.inputs), -1))
    torch.set_num_threads(1)
    print(
        "| width | rows | budget | route | seconds | gain |\n| --- | --- | --- | --- | --- | --- |"
    )
    for width in arguments.widths:
        x, d = problem(width, images[: min(4 * width, len(images))])
        whole = torch.linalg.vector_norm(x @ d.T) / torch.linalg.vector_norm(d)
        for budget in (0.02, 0.2):
            change = budget * whole
            routes = {"all rows, eigendecomposition": (by_rows, len(x))}
            routes |= {
                f"{rows} rows": (by_rows, rows) for rows in (2 * width, width // 2, width // 4)
            }
            routes |= {"all rows, Cholesky": (by_cholesky,)}
            best = 0.0
            for name, (function, *rest) in routes.items():
                n, seconds = timed(function, x, d, change, *rest)
                best = best or gain(x, d, n, change)
                share = gain(x, d, n, change) / best
                print(
                    f"| {width} | {len(x)} | {budget} | {name} | {seconds:.3f} | {share:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
