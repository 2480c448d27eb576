"""Whether training clips gradients before the optimizer's step, told from what ``step`` is given.

Clipping leaves a mark: over several steps with different gradients, the norm (or, clipping by
value, the largest entry, in several parameters at once) never exceeds a bound that it keeps
attaining. No gradient has to be computed for it, so accumulation, scaling, dropout and the
averaging of replicas do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.linalg import vector_norm

TIMES, LOOKS = 3, 8
"""Steps that have to attain the bound, and steps that are looked at whatever they show."""

SAME, OTHER = 1e-4, 1e-3
"""Relative difference of norms that are the same, and of gradients that are different ones."""

FEW = 8
"""Entries of each gradient that tell it from another."""


@dataclass
class Clipping:
    """What the gradients of some steps show.

    Attributes:
        open: Whether it is not known yet.
        norms: Norm over all parameters at each step.
        tops: Largest entry at each step; 0 where no two parameters have it.
        marks: Some entries of the normalised gradient at each step.
    """

    open: bool = True
    norms: list[float] = field(default_factory=list)
    tops: list[float] = field(default_factory=list)
    marks: list[Tensor] = field(default_factory=list)

    def looks(self, *, due: bool) -> bool:
        """Return whether to look at the next step, before which a teleport may be ``due``."""
        return self.open and (due or len(self.norms) < LOOKS)

    def look(self, parameters: Iterable[Tensor]) -> None:
        """Note the gradients that a real step is about to use."""
        held = [(p, p.grad) for p in parameters if self.open and p.grad is not None and p.numel()]
        # A hook of a gradient clips within the backward pass: that is foreseen.
        if not held or any(p._backward_hooks or g.layout != torch.strided for p, g in held):
            return
        gradients = [g.detach().reshape(-1) for _, g in held]  # views: no copy of all of them
        norms, tops = (torch.stack([_norm(g, kind) for g in gradients]) for kind in (2, torch.inf))
        norm, top, every = float(norms.norm()), float(tops.max()), tops.tolist()
        if not 0 < norm < float("inf"):
            return
        some = [g[:: max(1, len(g) // FEW)].double() for g in gradients]
        self.norms.append(norm)
        self.tops.append(top if every.count(top) > 1 else 0.0)
        self.marks.append(torch.cat([part.cpu() for part in some]) / norm)

    @property
    def found(self) -> str:
        """Return the ``clip=`` that describes what training does, or an empty string."""
        norm, top = (self._bound(values) for values in (self.norms, self.tops))
        if top:
            return f'clip=("value", {top:.3g})'
        return f"clip={norm:.3g}" if norm else ""

    def _bound(self, values: Sequence[float]) -> float:
        """Return the bound that values keep attaining while gradients differ, or 0."""
        most = max(values, default=0.0)
        at = [i for i, value in enumerate(values) if value >= most * (1 - SAME)]
        if most == 0 or len(at) < TIMES:
            return 0.0
        marks = [self.marks[i] for i in at]
        differ = all(
            a.shape != b.shape or (a - b).norm() > OTHER * a.norm() for a, b in pairwise(marks)
        )
        return most if differ else 0.0


def _norm(gradient: Tensor, kind: float) -> Tensor:
    """Return a norm in float64, summed in float32 at least."""
    narrow = gradient.dtype.itemsize < 4
    found: Tensor = vector_norm(gradient, kind, dtype=torch.float32 if narrow else None)
    return found.double().cpu()
