"""The whole table: teleports in torch, the same in JAX, and the cost of capturing alone in both."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from peaks import peak

from rivals.capture import TORCH
from rivals.comparison import NOTHING, OURS, Prepared, Row, compare, timed
from rivals.measure import outcome, state

NAMES = {OURS: 1, "nullport, exact": 0}
"""Teleports of nullport that are shown in JAX, by their steps; 0 stands for those of the plan."""


def everything(given: Prepared) -> list[Row]:
    """Return the rows of both frameworks; those of JAX only where it is installed."""
    rows = compare(given) + captures(given)
    if find_spec("jax") is not None:
        rows += jax_rows(given)
    return rows


def captures(given: Prepared) -> list[Row]:
    """Return what capturing alone costs in torch."""
    made = {name: make(given.problem) for name, make in TORCH.items()}
    calls = {name: call for name, call in made.items() if call is not None}
    unit, *seconds = timed(
        given.problem, [given.problem.gradient, *calls.values()], given.plan.repeats
    )
    return [
        Row(name, "", spent, spent / unit, peak(call))
        for (name, call), spent in zip(calls.items(), seconds, strict=True)
    ]


def jax_rows(given: Prepared) -> list[Row]:
    """Return the teleports and captures that there are in JAX, next to its gradient."""
    from rivals.in_jax import Chain, Compiled

    chain, plan = Chain(given.problem), given.plan
    functions: dict[str, tuple[str, Callable[..., Any] | str | None]] = {
        NOTHING: ("", chain.gradient()),
        "nullport, capture alone": ("", chain.capture()),
        "kfac-jax, capture": ("", chain.kfac()),
    }
    moving = []
    for name, steps in NAMES.items():
        if name in given.chosen:
            rate = given.chosen[name]["rate"]
            functions[name] = f"rate {rate:g}", chain.nullport(rate, steps or plan.steps)
            moving.append(name)
    if "literal" in given.chosen:
        options = given.chosen["literal"]
        text = ", ".join(f"{k} {v:g}" for k, v in options.items())
        functions["literal"] = text, chain.literal(**options, steps=plan.steps)
        moving.append("literal")
    compiled = {
        name: (text, Compiled(function, chain))
        for name, (text, function) in functions.items()
        if callable(function)
    }
    seconds = timed(None, [made for _, made in compiled.values()], plan.repeats)
    unit = seconds[0]
    rows = []
    for (name, (text, made)), spent in zip(compiled.items(), seconds, strict=True):
        setting = ", ".join(filter(None, [text, f"compiled in {made.seconds:.1f} s"]))
        effect = moved(given, made(), spent) if name in moving else {}
        row = Row(name, setting, spent, spent / unit, made.memory, **effect, framework="JAX")
        rows.append(row)
    broken = {name: why for name, (_, why) in functions.items() if isinstance(why, str)}
    return rows + [Row(name, why, framework="JAX") for name, why in broken.items()]


def moved(given: Prepared, found: Any, spent: float) -> dict[str, float | None]:
    """Return what weights that a teleport in JAX returned do, measured in torch."""
    from rivals.in_jax import weights

    problem, others, lr = given.problem, given.others, given.plan.lr
    start, before = problem.values(), state(problem, others, lr)
    problem.assign(weights(found))
    effect = outcome(before, state(problem, others, lr))
    problem.assign(start)
    return {
        "change": effect.change,
        "other_change": effect.other_change,
        "gain": effect.gain,
        "step": effect.step,
        "rate": math.log(effect.gain) / spent if effect.gain > 0 else None,
    }
