"""The setting of every method, chosen on pilot problems by one rule for all.

Of a small grid, two rates per decade, the setting with the largest gain of the gradient norm is
taken among those whose loss on the batch rises by at most ``RISE`` and after which the next step of
SGD still behaves (see :mod:`rivals.measure`); if there is none, the one whose loss changes least.
Then the best rate is refined (``FINER``). nullport's radius is chosen by the same rule. Pilots have
the size of the problem, and other weights and samples; the worst of them counts, since a fixed rate
that just behaves on one network may break another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nullport import TeleportConfig
from nullport_torch import teleport
from nullport_torch.lab.baselines import controls, level_set, literal, rescaling, symmetry
from nullport_torch.lab.baselines.problem import Problem
from rivals.measure import Outcome, outcome, state

RISE = 0.01

FINER = (1.3, 1.7, 2.2)
"""Factors of the best rate that are tried after the grid."""

Options = Mapping[str, Any]
Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rival:
    """A method in the comparison.

    Attributes:
        move: ``move(problem, **options)``, in place.
        grid: Values to choose from, by option; their product is tried.
        fixed: Options that are not chosen.
        steps: Whether ``move`` takes the number of steps of the comparison.
        lr: Whether it takes the learning rate.
    """

    move: Callable[..., object]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fixed: Options = field(default_factory=dict)
    steps: bool = True
    lr: bool = False

    def settings(self) -> list[dict[str, Any]]:
        """Return every combination of the grid."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]


def nullport_move(problem: Problem, *, rate: float | str = "auto", **options: Any) -> None:
    """Teleport with nullport; ``rate`` is its radius."""
    config = TeleportConfig(radius=rate, **options)  # type: ignore[arg-type]
    teleport(problem.model, problem.loss, config=config)


def halves(low: int, high: int) -> list[float]:
    """Return two numbers per decade, from ``10^low`` to ``10^high``.

    >>> halves(-1, 0)
    [0.1, 0.3, 1.0]
    """
    decades = [10.0**k for k in range(low, high)]
    return [float(f"{c * d:g}") for d in decades for c in (1, 3)] + [10.0**high]


EXACT = {"objective": "grad_norm", "projection": "threshold"}

RIVALS: dict[str, Rival] = {
    "nullport, exact, 1 step": Rival(
        nullport_move, {"rate": halves(-2, 0)}, {**EXACT, "steps": 1}, steps=False
    ),
    "nullport, exact": Rival(nullport_move, {"rate": halves(-2, 0)}, EXACT),
    "nullport, defaults": Rival(nullport_move, steps=False),
    "literal": Rival(literal.teleport, {"rate": halves(-2, 2), "tau": (0.0, 1e-2)}),
    "symmetry 2022": Rival(
        symmetry.teleport, {"rate": halves(-5, 0), "exact": (False, True)}, {"action": "2022"}
    ),
    "symmetry 2024": Rival(symmetry.teleport, {"rate": halves(-5, 0)}, {"action": "2024"}),
    "level set": Rival(level_set.teleport, {"rate": (1e-2, 1e-1, 1.0)}),
    "rescaling": Rival(
        rescaling.teleport,
        {"rate": (0.01, 0.03, 0.1), "objective": ("virtual_loss", "grad_norm")},
        {"restarts": 1},
        lr=True,
    ),
    "random null-space move": Rival(controls.random_move, fixed={"steps": 1}, steps=False),
    "random, own radius": Rival(
        controls.random_move, {"rate": halves(-2, 0)}, {"steps": 1}, steps=False
    ),
}
"""The methods, in the order of the table."""


def run(
    rival: Rival, problem: Problem, options: Options, *, steps: int, lr: float
) -> Callable[[], object]:
    """Return a call that teleports ``problem`` with these options."""
    options = {**rival.fixed, **options}
    if rival.steps:
        options["steps"] = steps
    if rival.lr:
        options["lr"] = lr
    return lambda: rival.move(problem, **options)


def choose(
    rival: Rival, pilots: Sequence[tuple[Problem, Samples]], *, steps: int, lr: float
) -> dict[str, Any]:
    """Return the setting that the rule of this module takes from the grid.

    Args:
        rival: The method.
        pilots: Problems to try on, with other inputs and labels; they are left as they were.
        steps: Steps per teleport.
        lr: Learning rate of the step that has to behave.
    """
    starts = [state(pilot, others, lr) for pilot, others in pilots]

    def worst(options: dict[str, Any]) -> tuple[bool, float]:
        return min(
            _merit(outcome(before, state(_tried(rival, pilot, options, steps, lr), others, lr)))
            for before, (pilot, others) in zip(starts, pilots, strict=True)
        )

    best = max(rival.settings(), key=worst)
    if "rate" not in rival.grid:
        return best
    return max([best, *({**best, "rate": best["rate"] * f} for f in FINER)], key=worst)


def _tried(rival: Rival, pilot: Problem, options: Options, steps: int, lr: float) -> Problem:
    """Return a copy of the pilot after a teleport; of weights that are no numbers if it failed."""
    trial = pilot.copy()
    try:
        run(rival, trial, options, steps=steps, lr=lr)()
    except torch.linalg.LinAlgError:  # the numbers left the finite ones on the way
        trial.assign([torch.full_like(p, torch.nan) for p in trial.parameters])
    return trial


def admissible(found: Outcome) -> bool:
    """Whether the loss stayed and the next step behaves; false for what is not a number."""
    return found.change <= RISE and found.behaves


def _merit(found: Outcome) -> tuple[bool, float]:
    """Order the admissible by gain, and before them the rest by how little the loss changes."""
    if admissible(found):
        return True, found.gain
    return False, -abs(found.change) if math.isfinite(found.change) else -math.inf
