"""The figures of the design on a device, and how the cost of a teleport grows with width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import figures as design
import numpy as np
from benchmarks.common import Size, medians
from benchmarks.networks import network

from .timing import Row, Rows, Setting, peak

WIDTHS = (256, 1024, 4096, 8192, 16384)
GROWTH = 1.25


def ratios(backend: str, setting: Setting) -> Rows:
    """Yield ascent steps, whole teleports, and how their ratios grow."""
    place = setting.place(backend)
    widths = (32,) if setting.small else (1024, 2048)
    for width in widths:
        for share in (4,) if setting.small else (16, 4):
            size = Size(width, 1 if setting.small else 4, width // share)
            value = design.step_ratio(place, size)
            name = f"a step after the first, width {width}, {size.samples} samples"
            yield Row(name, value, "gradients", 1.4 if share == 16 else 1.75)
    narrow, wide, deep = (32, 48, 4) if setting.small else (256, 4096, 64)
    small = Size(narrow, 1 if setting.small else 4, narrow // 4)
    for what, sizes in (
        (f"width {wide} over {narrow}", (small, replace(small, width=wide))),
        (f"depth {deep} over {small.depth}", (small, replace(small, depth=deep))),
    ):
        first, last = design.ratios(place, *sizes)
        yield Row(f"whole teleport, {what}: the first", first, "gradients")
        yield Row(f"whole teleport, {what}: growth", last / first, "times", GROWTH)


def whole(backend: str, setting: Setting) -> Rows:
    """Yield whole teleports: in torch as training makes them, in JAX jitted; the literal recipe."""
    place = setting.place(backend)
    limits = LIMITS[backend]
    for width, limit in list(limits.items())[: 1 if setting.small else len(limits)]:
        size = Size(32 if setting.small else width, 1 if setting.small else 4, min(width // 2, 256))
        gradient, teleport = medians(*PAIRS[backend](place, size), seconds=3.0, repeats=(3, 60))
        name = f"{KINDS[backend]}, width {size.width}, {size.samples} samples"
        yield Row(name, teleport / gradient, "gradients", limit)
    if backend == "torch":
        yield from _literal(place, 32 if setting.small else 2048)


def _looking(place: str, size: Size) -> Any:
    from history.look_ahead import looking

    return looking(place, size)


def _plain(place: str, size: Size) -> Any:
    made = network(place, size)
    return made.gradient, made.teleport


LIMITS = {"torch": {128: 12, 256: 8, 512: 6, 1024: 6}, "jax": {512: 3.5, 1024: 3.5}}
KINDS = {"torch": "look-ahead teleport", "jax": "jitted one-step teleport"}
PAIRS = {"torch": _looking, "jax": _plain}


def _literal(place: str, width: int) -> Rows:
    """Yield how many times as long the paper's recipe, taken literally, takes for ten steps."""
    from nullport_torch.lab.baselines import literal
    from nullport_torch.lab.baselines.problem import Problem

    made: Any = network(place, Size(width))
    problem = Problem(made.model, made.x, made.y)

    def recipe() -> None:
        literal.teleport(problem, steps=10, rate=1e-9)
        made.place.wait(None)

    ours, theirs = medians(lambda: made.teleport(10), recipe, seconds=6.0, repeats=(2, 9))
    yield Row(f"ours over the literal recipe, 10 steps, width {width}", ours / theirs, "", 1 / 8)


def widths(backend: str, setting: Setting) -> Rows:
    """Yield a whole teleport in gradients and in milliseconds, width by width."""
    place = setting.place(backend)
    for width in (32,) if setting.small else WIDTHS:
        made = network.__wrapped__(
            place, Size(width, 1 if setting.small else 4, min(width // 2, 256))
        )
        allowed = setting.seconds / len(WIDTHS) / 2
        gradient, teleport = medians(made.gradient, made.teleport, seconds=allowed, repeats=(3, 25))
        yield Row(f"width {width}: gradient", 1e3 * gradient, "ms")
        yield Row(f"width {width}: teleport", teleport / gradient, "gradients")
        del made


def memory(backend: str, setting: Setting) -> Rows:
    """Yield how much more memory a teleport holds than a training step, weights and state too."""
    width, depth, samples = (32, 1, 64) if setting.small else (1024, 8, 4096)
    for rows, limit in ((samples, 0.30), (width, 0.35))[setting.small :]:
        made: Any = network.__wrapped__(setting.place(backend), Size(width, depth, rows))
        step, jump = MEMORY[backend](made, setting)
        name = f"extra peak memory, width {width}, batch {rows}"
        yield Row(name, jump / step - 1, "of a training step", None if setting.small else limit)


def _torch(made: Any, setting: Setting) -> tuple[float, float]:
    import torch

    parameters = list(made.model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    # On a processor only what comes on top is known, so weights and momentum are added.
    kept = 0.0 if setting.device == "cuda" else 2 * sum(p.nbytes for p in parameters) / 2**20

    def step() -> None:
        optimizer.zero_grad()
        made.loss().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    train = peak(step, setting.device)
    optimizer.zero_grad()
    return kept + train, kept + peak(made.teleport, setting.device)


def _jax(made: Any, _: Setting) -> tuple[float, float]:
    from peaks import MIB, PEAKS

    weights = sum(np.asarray(a).nbytes for pair in made.params for a in pair) / MIB
    step, jump = PEAKS["jax"](made, weights, 1)
    return 2 * weights + step, 2 * weights + jump


MEMORY = {"torch": _torch, "jax": _jax}
