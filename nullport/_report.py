"""What a teleport did, what it did not do, and why.

Numbers are Python's own, or 0-d arrays where a teleport is traced (JAX under jit). Reasons are
kept as codes, because words cannot be traced; they are put into words when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING

from nullport._arrays import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


VANISHED = 10.0
"""Shrinkage of the gradient on its way down from which on a network counts as stuck."""


class Code(IntEnum):
    """A code, and the words for it; in braces, what a report is asked for."""

    words: str

    def __new__(cls, code: int, words: str = "") -> Code:
        """Make a member of a code and its words."""
        member = int.__new__(cls, code)
        member._value_, member.words = code, words
        return member


class Cause(Code):
    """Why a move was refused, in the order in which causes are named; 0 if it was not."""

    NONE = 0
    INFINITE = 1, "the loss is {loss_before}; a teleport needs a finite loss"
    SCREEN = 2, "the optimizer's own step already overshoots here"
    STILL = 3, "no weight can move"
    LOSS = 4, "the loss went from {loss_before} to {loss_after}, which is more than allowed"
    GRADIENT = 5, "the gradient norm would be {grad_norm_after}"
    GAIN = (
        6,
        "the gradient norm would go from {grad_norm_before} to {grad_norm_after}, "
        "which is more than max_gain allows",
    )
    ARMIJO = (
        7,
        "the optimizer's next step would not lower the loss of {loss_after} by half of "
        "what its slope promises",
    )
    GUARD = 8, "the guard loss would be {guard_after}, without the move {guard_before}"
    HEALTHY = (
        9,
        "every layer gets its gradient, and the optimizer's step does not grow with it: a better "
        "place has nothing to gain",
    )
    APART = 10, "the replicas do not hold the same weights"


class Hold(Code):
    """Why a captured weight does not move, in the order in which causes are named."""

    NONE = 0
    HIDDEN = 1, "part of its gradient comes from a use that is not visible"
    EMPTY = 2, "its null space is empty"
    STILL = 3, "its inputs do not depend on the weights, as in a first layer"
    BROKEN = 4, "its inputs or its direction are not finite"
    SPANNED = 5, "its direction lies in the row space of its inputs"
    HEALTHY = 6, "cotangents keep their norm on the way through it: it lacks no scale"
    SHORT = 7, "the radius or the budget allows no move, as where weights are zero"


@dataclass(frozen=True)
class LayerReport:
    """What happened to one weight (or to one part of it that has its own inputs).

    Attributes:
        name: Name of the parameter; ``[part i/n]`` is appended if parts have different inputs.
        kind: Operation it is the weight of, or an empty string.
        in_features: Inputs of the linear map, the constant input of a bias included.
        samples: Rows of input that the null space was built from.
        rank: Directions that are constrained (summed over a stack of matrices).
        null_dim: Directions that are free (summed over a stack of matrices).
        moved: Length of the move relative to the weight's norm, ``||dW|| / ||W||``.
        output_change_bound: Bound on ``||X dW^T|| / ||X W^T||`` on the captured samples, a moved
            bias included in ``dW`` only, of the weights as they are stored; computed before
            moving. Over several steps, the sum of the bounds of each at its own inputs.
        output_change: The same ratio, measured (on about 16 rows where the null space is exact);
            rounding as weights are stored counts in half precision.
        hold: Why it did not move, one of :class:`Hold`; 0 for an excluded weight.
        note: Why it is excluded; empty if it is not.
    """

    name: str
    kind: str = ""
    in_features: int = 0
    samples: int = 0
    rank: int | Array = 0
    null_dim: int | Array = 0
    moved: float | Array = 0.0
    output_change_bound: float | Array = 0.0
    output_change: float | Array = 0.0
    hold: int | Array = 0
    note: str = ""

    @property
    def reason(self) -> str:
        """Why it did not move, in words; empty if it did."""
        return self.note or Hold(int(self.hold)).words

    def as_dict(self) -> dict[str, float | str]:
        """Return the fields by name, the reason in words."""
        names = [f.name for f in fields(self) if f.name not in ("hold", "note")]
        return {name: getattr(self, name) for name in [*names, "reason"]}


@dataclass(frozen=True)
class TeleportReport:
    """The outcome of a teleport.

    Attributes:
        loss_before: Loss on the captured batch before.
        loss_after: Loss on the captured batch at the moved weights, also if they were refused.
        guard_before: Loss on the guard batch before, or None without a guard. With an optimizer it
            is the loss after the optimizer's next step.
        guard_after: The same at the moved weights.
        grad_norm_before: Norm of the gradient over all parameters before.
        grad_norm_after: Norm of the gradient at the moved weights.
        radius: Largest relative length allowed for each weight; that of the second, shorter try
            where the first went too far.
        cause: Why the move was refused, one of :class:`Cause`; 0 if it was accepted.
        seconds: Wall-clock time of the whole teleport; 0 where it is traced.
        cost: Compute used, in gradients (forward and backward) of the captured batch. A function
            of shapes and of what was done, the same on every machine, made to be near what the
            clock says: products by their operations, and the graph's ``toll`` for the rest.
        tangent: The engine that computed the tangents.
        shrinkage: By how much the gradient shrinks on its way down before the move: the norm of
            the last map's cotangent, relative to the largest of the lower half of all maps; nan
            where it is not known.
        layers: One entry per weight.
        step: Training steps before it; None where nobody counts them.
    """

    loss_before: float | Array
    loss_after: float | Array
    grad_norm_before: float | Array
    grad_norm_after: float | Array
    radius: float | Array
    cause: int | Array = 0
    guard_before: float | Array | None = None
    guard_after: float | Array | None = None
    seconds: float = 0.0
    cost: float = 0.0
    tangent: str = ""
    shrinkage: float | Array = math.nan
    layers: Sequence[LayerReport] = ()
    step: int | None = None

    @property
    def accepted(self) -> bool | Array:
        """Whether the moved weights were kept."""
        return self.cause == Cause.NONE

    @property
    def stuck(self) -> bool | Array:
        """Whether gradients vanish on their way down, so that the lower layers do not train."""
        return self.shrinkage > VANISHED

    @property
    def reason(self) -> str:
        """Why the move was refused, in words; empty if it was accepted."""
        measured = {k: v for k, v in vars(self).items() if k.endswith(("_before", "_after"))}
        numbers = {k: "none" if v is None else f"{v:.6g}" for k, v in measured.items()}
        return Cause(int(self.cause)).words.format(**numbers)

    def as_dict(self, prefix: str = "") -> dict[str, float | str | bool | None]:
        """Return the scalar fields for a logger, each name preceded by ``prefix``."""
        names = [f.name for f in fields(self) if f.name not in ("layers", "cause")]
        scalars = {name: getattr(self, name) for name in [*names, "accepted", "reason"]}
        scalars["layers_moved"] = sum(bool(layer.moved > 0) for layer in self.layers)
        return {prefix + name: value for name, value in scalars.items()}

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Return what a logger can plot: names without spaces, floats, no None, no words.

        A verdict is 1.0 or 0.0; ``gained`` is how much lower the loss of other samples is for the
        move, and is left out where there are none.
        """
        known = {name: value for name, value in self.as_dict().items() if value is not None}
        found = {k: float(v) for k, v in known.items() if not isinstance(v, str)}
        if self.gained is not None:
            found["gained"] = float(self.gained)
        return {prefix + name: value for name, value in found.items()}

    @property
    def gained(self) -> float | Array | None:
        """How much lower the guard's loss is for the move; None without a guard."""
        if self.guard_before is None or self.guard_after is None:
            return None
        return (self.guard_before - self.guard_after) * self.accepted

    def __str__(self) -> str:
        """Return a readable table."""
        verdict = "accepted" if self.accepted else f"refused: {self.reason}"
        head = [
            f"teleport {verdict}",
            f"loss {self.loss_before:.7g} -> {self.loss_after:.7g}, "
            f"gradient norm {self.grad_norm_before:.4g} -> {self.grad_norm_after:.4g}, "
            f"radius {self.radius:g}, {self.seconds:.3f} s, {self.cost:.2f} gradients",
        ]
        if self.guard_before is not None and self.guard_after is not None:
            head.append(f"guard loss {self.guard_before:.7g} -> {self.guard_after:.7g}")
        return "\n".join([*head, *_table(self.layers)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how far each weight moved and how large its null space is (needs matplotlib)."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(7, 1 + 0.3 * len(self.layers)))[1] if ax is None else ax
        names = [layer.name for layer in self.layers]
        free = [layer.null_dim / max(layer.null_dim + layer.rank, 1) for layer in self.layers]
        ax.barh(names, free, color="0.85", label="free share of the input space")
        ax.barh(names, [layer.moved for layer in self.layers], height=0.4, label="moved, ‖ΔW‖/‖W‖")
        ax.invert_yaxis()
        ax.legend()
        return ax


def _table(layers: Sequence[LayerReport]) -> list[str]:
    """Return one aligned line per weight, under a heading."""
    rows = [["weight", "map", "inputs", "samples", "null", "moved", "output change", "why not"]]
    for x in layers:
        numbers = [str(n) if x.kind else "" for n in (x.in_features, x.samples, x.null_dim)]
        moved = [f"{x.moved:.3g}", f"{x.output_change:.1e} <= {x.output_change_bound:.1e}"]
        rows.append([x.name, x.kind, *numbers, *(moved if x.moved else ["", ""]), x.reason])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [map(str.ljust, row, widths) for row in rows]
    return ["  ".join(line).rstrip() for line in lines]
