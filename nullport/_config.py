"""What a teleport may do: one frozen record, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Array: TypeAlias = Any

Objective = Callable[[Sequence[Array]], Sequence[Array]]
"""A custom objective: takes the gradient, one array per parameter, and returns ``v = dphi/dg``."""

Gain = Callable[[Array], Array]
"""A custom projection: takes the energies of a layer's inputs along orthonormal directions, as
shares of their sum, shape (..., k), and returns what is kept of a move along each, in [0, 1]."""

PROJECTIONS = ("budget", "threshold", "none")
TANGENTS = ("auto", "jvp", "fd")
OBJECTIVES = (
    "auto",
    "grad_norm",
    "decrease",
    "look_ahead",
    "others",
    "sharpness",
    "weight_norm",
)


def _choice(name: str, value: object, allowed: Sequence[str], other: str = "") -> None:
    if value not in allowed:
        msg = f"invalid {name}: {value!r}; allowed: {', '.join(map(repr, allowed))}{other}"
        raise ValueError(msg)


def _number(
    name: str, value: object, low: float, high: float, *, open_low: bool = False, other: str = ""
) -> None:
    inside = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (low < value if open_low else low <= value)
        and value <= high
    )
    if not inside:
        left = "(" if open_low else "["
        msg = f"invalid {name}: {value!r}; allowed: {other}"
        msg += f"a finite number in {left}{low:g}, {high:g}]"
        raise ValueError(msg)


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        msg = f"invalid {name}: {value!r}; allowed: True or False"
        raise ValueError(msg)


@dataclass(frozen=True)
class TeleportConfig:
    """Settings of a teleport.

    Attributes:
        objective: What to improve along the level set: ``"grad_norm"`` (the paper, half the
            squared norm of the gradient over all parameters), ``"decrease"`` (what the optimizer's
            own step gains), ``"look_ahead"`` (other samples' loss after that step), or a function
            from the gradient (one array per parameter) to ``v = dphi/dg`` of the same structure.
            ``"sharpness"`` lowers the curvature of the loss along the optimizer's step,
            ``"weight_norm"`` the norm of the weights.
            ``"others"`` is a control for experiments: other samples' loss after a step that is
            held still, so that nothing is gained through the gradient.
            ``"auto"`` looks ahead where the optimizer and other samples are known, and else takes
            ``"grad_norm"``.
        projection: How the null space is enforced. ``"budget"``: exact where there are clearly
            fewer samples than inputs, else the smooth gain that gains most while a layer's
            output changes by at most ``budget``. ``"threshold"`` (the paper): drops the leading
            eigen-directions of the layer's inputs that hold all but ``threshold`` of the energy.
            ``"none"`` is a control for experiments: the same move without any projection.
            Or a function from relative energies (..., k) to gains in [0, 1] of the same shape.
        threshold: For ``"threshold"``, the share of the input energy, in [0, 1], that may be given
            up. 0 is the exact null space, 1 the whole space.
        budget: For ``"budget"``, the change of a layer's output that is allowed on the captured
            samples, relative to its norm, in (0, 1].
        radius: Length of the move relative to each weight's norm, or ``"auto"``: 1.3 divided by
            the number of weights that may move, at most 0.3, for gains multiply with depth. It is
            the same in ``teleport()`` and in ``Teleporter``.
        max_gain: Largest accepted growth of the gradient norm, as a factor. It bounds moves that
            the optimizer's own step does not judge. A move that goes too far is tried once more,
            shorter, and undone if that fails too.
        steps: Number of ascent steps; the radius is shared between them.
        tangent: How tangents of layer inputs are computed: ``"jvp"`` (forward-mode
            differentiation), ``"fd"`` (one more plain forward), or ``"auto"``.
        max_loss_change: Largest accepted rise of the loss on the captured batch (and on the
            guard batch), relative to its value; a larger one is undone.
        bias: Whether biases move with their weights, as the weight of a constant input.
        include: Shell-style name patterns; only weights that match one of them may move.
        exclude: Shell-style name patterns of weights that must not move.

    Raises:
        ValueError: If a value is outside what is allowed; the message names both.
    """

    objective: (
        Literal["auto", "grad_norm", "decrease", "look_ahead", "others", "sharpness", "weight_norm"]
        | Objective
    ) = "auto"
    projection: Literal["budget", "threshold", "none"] | Gain = "budget"
    threshold: float = 0.0
    budget: float = 0.2
    radius: Literal["auto"] | float = "auto"
    max_gain: float = 4.0
    steps: int = 1
    tangent: Literal["auto", "jvp", "fd"] = "auto"
    max_loss_change: float = 0.05
    bias: bool = True
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        if not callable(self.objective):
            _choice("objective", self.objective, OBJECTIVES, ", or a function of the gradient")
        if not callable(self.projection):
            _choice("projection", self.projection, PROJECTIONS, ", or a function of the energies")
        _choice("tangent", self.tangent, TANGENTS)
        _number("threshold", self.threshold, 0.0, 1.0)
        _number("budget", self.budget, 0.0, 1.0, open_low=True)
        if self.threshold and self.projection != "threshold":
            msg = f"invalid threshold: {self.threshold!r} with projection {self.projection!r}; "
            msg += "allowed: 0, or projection='threshold'"
            raise ValueError(msg)
        if self.radius != "auto":
            _number("radius", self.radius, 0.0, 100.0, open_low=True, other="'auto' or ")
        _number("max_gain", self.max_gain, 1.0, math.inf, open_low=True)
        _number("max_loss_change", self.max_loss_change, 0.0, math.inf)
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            msg = f"invalid steps: {self.steps!r}; allowed: an integer of at least 1"
            raise ValueError(msg)
        _flag("bias", self.bias)
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            sequence = isinstance(patterns, list | tuple)
            if not sequence or not all(isinstance(p, str) for p in patterns):
                msg = f"invalid {name}: {patterns!r}; allowed: a sequence of name patterns"
                raise ValueError(msg)
            object.__setattr__(self, name, tuple(patterns))

    @staticmethod
    def checked(config: object) -> TeleportConfig:
        """Return a configuration as it was given to a function; the defaults for None.

        Raises:
            TypeError: If it is anything but a ``TeleportConfig`` or None.
        """
        if config is None:
            return TeleportConfig()
        if not isinstance(config, TeleportConfig):
            msg = f"invalid config: {config!r}; allowed: a TeleportConfig, or None for the defaults"
            raise TypeError(msg)
        return config
