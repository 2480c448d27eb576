"""The certificate against an independent measurement, on networks drawn at random.

    python tests/fuzz_certificate.py --cases 10000

Of every layer that moves, ``||dW X^T|| / ||X W^T||`` is computed in the longest float of NumPy
from the weights as they are stored and the inputs as they were captured; the certificate in the
report must not be less. Prints how many layers were measured, and the largest ratio of the two.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from helpers.mlp_graph import ForwardMLPGraph, numbers

from nullport import TeleportConfig, TeleportReport, teleport
from nullport._report import Cause

DTYPES = {
    "float64": "array_api_compat.numpy",
    "float32": "array_api_compat.numpy",
    "float16": "array_api_compat.torch",
    "bfloat16": "array_api_compat.torch",
}
ROWS = ("free", "repeated", "collinear", "zero", "near", "scaled apart", "centred")
UNITS = {
    "float64": (-66, 0, 66),
    "float32": (-66, 0, 66),
    "float16": (0,),
    "bfloat16": (-66, 0, 66),
}
GAINS = {
    "soft": lambda e: 1 / (1 + 100 * e),
    "half": lambda e: 0 * e + 0.5,
    "cut": lambda e: (e < 1e-3) + 0 * e,
}
PROJECTIONS = ("budget", "threshold", "none", *GAINS)


@dataclass(frozen=True)
class Case:
    """A network, a batch and settings."""

    seed: int = 0
    sizes: tuple[int, ...] = (5, 12, 10, 3)
    samples: int = 4
    dtype: str = "float64"
    rows: str = "free"
    units: int = 0
    price: int = 0
    projection: str = "budget"
    threshold: float = 0.0
    budget: float = 0.2
    radius: float = 0.3
    bias: bool = True
    steps: int = 1
    shorter: bool = False

    def config(self) -> TeleportConfig:
        """Return the settings; only a growing gradient norm may refuse a move."""
        projection: Any = GAINS.get(self.projection, self.projection)
        return TeleportConfig(
            objective="grad_norm",
            projection=projection,
            threshold=self.threshold if projection == "threshold" else 0.0,
            budget=self.budget,
            radius=self.radius,
            max_gain=1.02 if self.shorter else 1e30,
            max_loss_change=1e30,
            bias=self.bias,
            steps=self.steps,
        )


def changed(x: Any, rows: str, generator: np.random.Generator) -> Any:
    """Return inputs of which rows depend on each other in the way that ``rows`` names."""
    x, n = x.copy(), len(x)
    if rows == "repeated":
        return x[generator.integers(0, max(1, n // 2), n)]
    if rows == "collinear":
        return x[:1] * generator.standard_normal((n, 1))
    if rows == "zero":
        x[generator.random(n) < 0.5] = 0.0
    if rows == "near" and n > 1:
        x[1:] = x[:1] + 10.0 ** generator.uniform(-13, -1, (n - 1, 1)) * x[1:]
    if rows == "scaled apart":
        x *= 10.0 ** generator.uniform(-8, 0, (n, 1))
    return x - x.mean(axis=0) if rows == "centred" else x


class Recorded(ForwardMLPGraph):
    """Remembers weights and inputs at every linearization."""

    def linearize(self, **how: bool) -> Any:
        lin = super().linearize(**how)
        if not self.kept:
            here = numbers(self.values), numbers([site.inputs for site in lin.sites])
            if self.seen and all(
                (a == b).all() for a, b in zip(self.seen[-1][0], here[0], strict=True)
            ):
                self.seen.pop()
            self.seen.append(here)
        return lin

    def gradient(self, *args: Any, **kwargs: Any) -> Any:
        """Not a linearization."""
        return super().gradient(*args, **kwargs)


def graph_of(case: Case) -> Recorded:
    """Return the network of a case."""
    graph = Recorded(
        importlib.import_module(DTYPES[case.dtype]),
        case.sizes,
        samples=case.samples,
        seed=case.seed,
        dtype=case.dtype,
        units=2.0**case.units,
        price=2.0**case.price,
    )
    graph.seen = []
    x, y = graph.data["batch"]
    made = changed(numbers([x])[0].astype(np.float64), case.rows, np.random.default_rng(case.seed))
    graph.data["batch"] = graph.xp.astype(graph.xp.asarray(made), graph.dtype), y
    return graph


def measured(case: Case) -> tuple[TeleportReport, dict[str, tuple[float, float]]]:
    """Teleport; return the report and, by layer that moved, what is measured and the bound."""
    graph = graph_of(case)
    report = teleport(graph, case.config())
    found = {}
    wide = np.longdouble
    ends = [values for values, _ in graph.seen[1:]] + [numbers(graph.values)]
    for layer in report.layers:
        if not report.accepted or not layer.moved:
            continue
        k, change = 2 * int(layer.name[5:].partition(".")[0]), wide(0)
        for (values, inputs), after in zip(graph.seen, ends, strict=True):
            x = inputs[k // 2].astype(wide)
            w, b = (after[i].astype(wide) - values[i].astype(wide) for i in (k, k + 1))
            change += np.linalg.norm((x @ w.T + b).astype(wide).reshape(-1) / wide(2.0**case.units))
        x, w = graph.seen[0][1][k // 2].astype(wide), graph.seen[0][0][k].astype(wide)
        output = np.sqrt(np.sum((x @ w.T / wide(2.0**case.units)) ** 2))
        output = output or wide(2.0**-case.units)  # the report divides by 1 then
        found[layer.name] = float(change / output), float(layer.output_change_bound)
    return report, found


def draw(generator: np.random.Generator) -> Case:
    """Draw a case."""
    choice = generator.choice
    depth = int(generator.integers(1, 4))
    width = (1, 6) if generator.random() < 0.2 else (4, 32)
    dtype = str(choice([*DTYPES], p=[0.35, 0.35, 0.15, 0.15]))
    return Case(
        seed=int(generator.integers(0, 2**31)),
        sizes=tuple(int(n) for n in generator.integers(*width, depth + 2)),
        samples=int(choice([1, 2, 4, 8, 12, 20, 50, 200])),
        dtype=dtype,
        rows=str(choice(ROWS)),
        units=int(choice(UNITS[dtype])),
        price=int(choice((0,) if dtype == "float16" else (-40, 0, 40))),
        projection=str(choice(PROJECTIONS)),
        threshold=float(choice([0.0, 0.0, 1e-6, 0.1, 1.0])),
        budget=float(choice([1e-6, 1e-3, 0.05, 0.2, 1.0])),
        radius=float(choice([1e-4, 0.05, 0.3, 2.0])),
        bias=bool(generator.random() < 0.7),
        steps=1,
        shorter=bool(generator.random() < 0.3),
    )


def main() -> int:
    """Run as many cases as asked for; return whether any certificate was too small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else np.random.SeedSequence().entropy
    generator, start = np.random.default_rng(seed), time.perf_counter()
    counts: Counter[str] = Counter()
    worst: tuple[float, Case | None] = 0.0, None
    bad: list[tuple[float, Case]] = []
    print(f"seed {seed}")
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for _ in range(given.cases):
            if time.perf_counter() - start > given.seconds:
                break
            case = draw(generator)
            counts["cases"] += 1
            try:
                report, layers = measured(case)
            except Exception as error:  # what a teleport raises is a finding too
                name = f"{type(error).__name__}: {str(error)[:90]}"
                counts[name] += 1
                if counts[name] == 1:
                    print(f"{error!r}\n  {case}")
                continue
            counts["accepted" if report.accepted else f"refused: {Cause(report.cause).name}"] += 1
            counts["shorter"] += report.radius < case.radius
            for change, bound in layers.values():
                counts["layers"] += 1
                counts[f"layers in {case.dtype}"] += 1
                ratio = change / bound if bound else (0.0 if not change else float("inf"))
                worst = max(worst, (ratio, case), key=lambda pair: pair[0])
                if not ratio <= 1 + 1e-6:
                    bad.append((ratio, case))
    for name, count in sorted(counts.items()):
        print(f"{count:8d}  {name}")
    print(f"worst ratio of measured change to certificate: {worst[0]:.9f}\n  {worst[1]}")
    print(f"{len(bad)} certificates too small")
    for ratio, case in sorted(bad, key=lambda pair: -pair[0])[:10]:
        print(f"  {ratio:.9f}  {case}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
