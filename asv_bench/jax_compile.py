"""Print where the compile time of a jitted JAX teleport goes, beside that of its gradient.

    python asv_bench/jax_compile.py                      # about ten minutes
    python asv_bench/jax_compile.py --only products tied --where
    python asv_bench/jax_compile.py --losses FILE        # another file with a dictionary JAX

Losses are an MLP of ``jax_ratio.py`` and those of ``tests/jax_adapter/models.py``, in float64.
Columns are seconds of processor time to trace, to lower and to compile (XLA), equations of the
jaxpr with all jaxprs in it, instructions of the program before and after XLA has worked on it, and
its different kernels, which take most of the time. A ratio is that of the three times together.
``--where`` adds the functions of nullport that most equations come from.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax_ratio import loss_fn, network

from nullport import TeleportConfig
from nullport_jax import teleport

ROOT = Path(__file__).resolve().parents[1]
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "dot", "convolution", "custom-call", "call", "copy", "reduce")  # fmt: skip
CONFIGS = {
    "default": TeleportConfig(),
    "exact": TeleportConfig(projection="threshold", threshold=0.0, radius=0.1),
}


class Loss(NamedTuple):
    """A loss, its parameters and its other arguments."""

    function: Callable[..., Any]
    params: Any
    batch: tuple[Any, ...]


class Compiled(NamedTuple):
    """Seconds of processor time, and sizes of the program."""

    trace: float
    lower: float
    xla: float
    equations: int
    lowered: int
    compiled: int
    kernels: int

    @property
    def seconds(self) -> float:
        """The whole time."""
        return self.trace + self.lower + self.xla


def loaded(path: Path) -> Any:
    """Return a module from a file."""
    sys.path[:0] = [str(path.parent), str(path.parents[1])]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def losses(path: Path | None) -> dict[str, Callable[[], Loss]]:
    """Return functions that make a loss, by name."""

    def made(build: Callable[..., Any]) -> Callable[[], Loss]:
        def make() -> Loss:
            function, params, *batch = build(np.random.default_rng(0))
            return Loss(function, params, tuple(batch))

        return make

    if path is not None:
        return {name: made(build) for name, build in loaded(path).JAX.items()}

    def mlp() -> Loss:
        return Loss(loss_fn, *network(512, 4, 64))

    models = loaded(ROOT / "tests" / "jax_adapter" / "models.py").MODELS
    return {"mlp": mlp} | {model.name: lambda m=model: Loss(*m.make()) for model in models}


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of those inside."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def kernels(text: str) -> int:
    """Count the different kernels of a compiled program, as XLA prints it.

    Kernels that differ in names alone are compiled once; products, factorisations, copies of whole
    arrays and plain reductions are library calls.
    """
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        name = head[1] if head else name
        bodies.setdefault(name, []).append("" if head else re.sub(r", metadata=.*", "", line))
    inside = set(re.findall(r"(?:to_apply|calls|comparator)=%?([\w.\-]+)", text))
    found = set()
    for line in (line for name, own in bodies.items() if name not in inside for line in own):
        kind = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (\([^=]*?\)|\S+) ([\w\-]+)\(", line)
        if kind and kind[2] not in FREE and "ynn" not in line:
            calls = re.search(r"calls=%?([\w.\-]+)", line)
            found.add(_anonymous(bodies[calls[1]] if calls else [line]))
    return len(found)


def _anonymous(lines: list[str]) -> str:
    """Return lines with the names in them numbered."""
    names: dict[str, str] = {}
    return re.sub(
        r"%[\w.\-]+", lambda m: names.setdefault(m[0], f"%{len(names)}"), "\n".join(lines)
    )


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Compiled, Any]:
    """Trace, lower and compile a function; also return its jaxpr."""
    marks = [time.process_time()]
    traced = jax.jit(function).trace(*args)
    marks.append(time.process_time())
    lowered = traced.lower()
    marks.append(time.process_time())
    made = lowered.compile()
    marks.append(time.process_time())
    spent = [b - a for a, b in itertools.pairwise(marks)]
    jaxpr = traced.jaxpr.jaxpr
    count = kernels(made.as_text())
    sizes = [text.count(" = ") for text in (lowered.as_text(), made.as_text())]
    return Compiled(*spent, sum(1 for _ in equations(jaxpr)), *sizes, count), jaxpr


def pair(loss: Loss, config: TeleportConfig) -> tuple[Compiled, Compiled, Any]:
    """Return what the gradient and the teleport take to compile, and the teleport's jaxpr."""

    def gradient(params: Any, *batch: Any) -> Any:
        return jax.value_and_grad(loss.function, allow_int=True)(params, *batch)

    def jump(params: Any, *batch: Any) -> Any:
        return teleport(loss.function, params, *batch, config=config)

    unit, _ = compiled(gradient, loss.params, *loss.batch)
    whole, jaxpr = compiled(jump, loss.params, *loss.batch)
    return unit, whole, jaxpr


def where(jaxpr: Any) -> Counter[str]:
    """Count equations by the function of this project that they come from."""
    found: Counter[str] = Counter()
    for eqn in equations(jaxpr):
        traceback = eqn.source_info.traceback
        frames = [] if traceback is None else traceback.frames
        own = [f for f in frames if "/nullport" in f.file_name]
        outer = [f for f in own if not f.file_name.endswith("_arrays.py")] or own
        name = f"{Path(outer[0].file_name).name} {outer[0].function_name}" if outer else "the loss"
        found[name] += 1
    return found


def main() -> None:
    """Print one line per loss, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--losses", type=Path, help="a file with a dictionary JAX of losses")
    parser.add_argument("--config", choices=CONFIGS, default="exact")
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"jax {jax.__version__}, {os.cpu_count()} processors, {jax.devices()[0].platform}")
    print(f"{'loss':<22}{'':>9}{'trace':>7}{'lower':>7}{'XLA':>7}{'equations':>10}"
          f"{'lowered':>8}{'compiled':>9}{'kernels':>8}")  # fmt: skip
    everything = losses(given.losses)
    pair(Loss(lambda p, x: jnp.sum(jnp.tanh(x @ p) ** 2), jnp.ones((3, 4)), (jnp.ones((2, 3)),)),
         CONFIGS[given.config])  # imports, and functions of JAX itself  # fmt: skip
    found: dict[str, tuple[Compiled, Compiled]] = {}
    for name in given.only or everything:
        try:
            unit, whole, jaxpr = pair(everything[name](), CONFIGS[given.config])
        except Exception as error:
            print(f"{name:<22} {type(error).__name__}: {str(error)[:80]}", flush=True)
            continue
        found[name] = unit, whole
        for label, one in (("gradient", unit), ("teleport", whole)):
            times = f"{one.trace:7.2f}{one.lower:7.2f}{one.xla:7.2f}"
            ratio = f"  x {whole.seconds / unit.seconds:.2f}" if one is whole else ""
            print(
                f"{name if one is unit else '':<22}{label:>9}{times}{one.equations:10d}"
                f"{one.lowered:8d}{one.compiled:9d}{one.kernels:8d}{ratio}",
                flush=True,
            )
        if given.where:
            for function, count in where(jaxpr).most_common(20):
                print(f"    {count:5d} {function}")
        jax.clear_caches()
    if found:
        for what in ("seconds", *Compiled._fields):
            ratios = [getattr(b, what) / max(getattr(a, what), 1e-3) for a, b in found.values()]
            print(f"{what}: median ratio {median(ratios):.2f} of {len(ratios)} losses")
    if given.json:
        rows = {k: [one._asdict() for one in v] for k, v in found.items()}
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
