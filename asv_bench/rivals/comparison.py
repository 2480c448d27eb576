"""All methods on one problem: what each costs and what it does.

The problem is a bias-free LeakyReLU MLP (slope 0.1), the class that every method can handle, on
real data after some steps of SGD. Every repeat starts from the same weights; repeats are
interleaved, so that what disturbs one method disturbs all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from peaks import peak

from nullport.lab.compare import Task
from nullport_torch.lab.baselines.chains import mlp
from nullport_torch.lab.baselines.controls import matched_rate
from nullport_torch.lab.baselines.problem import Problem
from rivals.measure import outcome, state
from rivals.settings import RIVALS, Samples, choose, run

NOTHING = "no teleport"
MATCHED = "matched learning rate"
OURS = "nullport, exact, 1 step"
FOLLOWS = "random null-space move"
"""The control that takes its radius from ``OURS``."""

PILOTS = (1, 2, 3)
"""Seeds of the problems that settings are chosen on; the one that is measured has seed 0."""


@dataclass(frozen=True)
class Row:
    """A method's line; numbers that make no sense for it are None.

    Attributes:
        name: Of the method.
        framework: What it is written in.
        setting: The options that were chosen for it.
        seconds: Median time of one teleport.
        gradients: The same in training gradients.
        memory: Most MiB held beyond what was held before.
        change: Relative change of the loss on the batch.
        other_change: The same on other samples.
        gain: Gradient norm after over before.
        step: Relative decrease of the loss on the batch by the next step of SGD.
        rate: ``log(gain) / seconds``.
    """

    name: str
    setting: str
    seconds: float | None = None
    gradients: float | None = None
    memory: float | None = None
    change: float | None = None
    other_change: float | None = None
    gain: float | None = None
    step: float | None = None
    rate: float | None = None
    framework: str = "torch"


@dataclass(frozen=True)
class Plan:
    """Sizes of a comparison.

    Attributes:
        width: Of the hidden layers.
        depth: Number of hidden layers.
        samples: In the batch.
        steps: Of the methods that take steps.
        lr: Learning rate before the teleport, and of the step after it.
        train: Steps of SGD before the teleport.
        repeats: Timed teleports per method.
    """

    width: int = 512
    depth: int = 4
    samples: int = 64
    steps: int = 10
    lr: float = 0.03
    train: int = 100
    repeats: int = 5


def make_problem(task: Task, plan: Plan, seed: int = 0) -> tuple[Problem, Samples]:
    """Return a partly trained network with its batch, and up to 1,024 other training samples."""
    x = torch.from_numpy(task.inputs.reshape(len(task.inputs), -1))
    y = torch.from_numpy(task.targets)
    model = mlp([x.shape[1], *[plan.width] * plan.depth, task.outputs], seed=seed)
    order = torch.randperm(len(x))
    batch, others = order[: plan.samples], order[plan.samples :]
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.lr)
    for _ in range(plan.train):
        some = torch.randint(0, len(x), (plan.samples,))
        optimizer.zero_grad()
        Problem(model, x[some], y[some]).loss().backward()
        optimizer.step()
    optimizer.zero_grad()
    others = others[:1024]
    return Problem(model, x[batch], y[batch]), (x[others], y[others])


def timed(
    problem: Problem | None, functions: Sequence[Callable[[], object]], repeats: int
) -> list[float]:
    """Return the median seconds of each function, in turns after a warm-up, from equal weights.

    Without a problem nothing is put back, as for functions that move nothing.
    """
    start = problem.values() if problem else []
    taken: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, record in zip(functions, taken, strict=True):
            begin = time.perf_counter()
            function()
            if turn:
                record.append(time.perf_counter() - begin)
            if problem:
                problem.assign(start)
    return [median(record) for record in taken]


@dataclass(frozen=True)
class Prepared:
    """A problem, and the settings that were chosen for it.

    Attributes:
        problem: Where teleports are measured.
        others: Other inputs and labels.
        plan: Sizes.
        chosen: Options by method.
    """

    problem: Problem
    others: Samples
    plan: Plan
    chosen: dict[str, dict[str, Any]]


def prepared(task: Task, plan: Plan, names: Sequence[str] = tuple(RIVALS)) -> Prepared:
    """Choose every method's setting on pilot problems, and make another.

    Args:
        task: Real data.
        plan: Sizes.
        names: Methods to compare, of ``RIVALS``.
    """
    pilots = [make_problem(task, plan, seed) for seed in PILOTS]
    chosen = {name: choose(RIVALS[name], pilots, steps=plan.steps, lr=plan.lr) for name in names}
    if OURS in chosen and FOLLOWS in chosen:
        chosen[FOLLOWS] = {"rate": chosen[OURS]["rate"]}
    return Prepared(*make_problem(task, plan), plan, chosen)


def compare(given: Prepared) -> list[Row]:
    """Measure every method, by its setting."""
    problem, others, plan, chosen = given.problem, given.others, given.plan, given.chosen
    calls = [
        run(RIVALS[name], problem, options, steps=plan.steps, lr=plan.lr)
        for name, options in chosen.items()
    ]
    unit, *seconds = timed(problem, [problem.gradient, *calls], plan.repeats)
    rows = [_nothing(problem, others, plan, unit)]
    for (name, options), call, spent in zip(chosen.items(), calls, seconds, strict=True):
        rows.append(_row(name, options, problem, others, plan, call, spent, unit))
    if OURS in chosen:
        rows.append(_matched(problem, others, plan, chosen[OURS]))
    return rows


def _nothing(problem: Problem, others: Samples, plan: Plan, unit: float) -> Row:
    """The line of the training gradient, which moves nothing."""
    step = 1 - (here := state(problem, others, plan.lr)).stepped / here.loss
    return Row(NOTHING, "", unit, 1.0, peak(problem.gradient), 0.0, 0.0, 1.0, step)


def _row(
    name: str,
    options: dict[str, Any],
    problem: Problem,
    others: Samples,
    plan: Plan,
    call: Callable[[], object],
    spent: float,
    unit: float,
) -> Row:
    start, before = problem.values(), state(problem, others, plan.lr)
    memory = peak(call)
    found = outcome(before, state(problem, others, plan.lr))
    problem.assign(start)
    rate = math.log(found.gain) / spent if found.gain > 0 else None
    return Row(
        name,
        ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in options.items()),
        spent,
        spent / unit,
        memory,
        found.change,
        found.other_change,
        found.gain,
        found.step,
        rate,
    )


def _matched(problem: Problem, others: Samples, plan: Plan, options: dict[str, Any]) -> Row:
    """The line of a learning rate that grows as much as nullport's teleport lets the gradient."""
    fixed = {**RIVALS[OURS].fixed, **options}
    lr = matched_rate(problem, lr=plan.lr, **fixed)
    here = state(problem, others, lr)
    return Row(
        MATCHED,
        f"lr {lr:.3g} for {plan.lr:g}",
        change=0.0,
        other_change=0.0,
        gain=1.0,
        step=1 - here.stepped / here.loss,
    )
