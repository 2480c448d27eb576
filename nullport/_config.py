"""What a teleport may do: one frozen record, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Array: TypeAlias = Any

Objective = Callable[[Sequence[Array]], Sequence[Array]]
"""A custom objective: takes the gradient, one array per parameter, and returns ``v = dphi/dg``."""

Gain = Callable[[Array], Array]
"""A custom projection: takes the energies of a layer's inputs along orthonormal directions, as
shares of their sum, shape (..., k), and returns what is kept of a move along each, in [0, 1]."""

ObjectiveName = Literal[
    "auto",
    "grad_norm",
    "decrease",
    "look_ahead",
    "others",
    "sharpness",
    "weight_norm",
    "amplify",
    "renew",
]
ProjectionName = Literal["budget", "threshold", "none"]
TangentName = Literal["auto", "jvp", "fd"]

RANGES = {
    "threshold": ("[", 0.0, 1.0),
    "budget": ("(", 0.0, 1.0),
    "radius": ("(", 0.0, 100.0),
    "max_gain": ("(", 1.0, math.inf),
    "max_loss_change": ("[", 0.0, math.inf),
}
"""Allowed numbers: whether the lower end belongs to them, and both ends."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names a value and what is allowed, unless ``condition`` holds."""
    if not condition:
        msg = f"invalid {name}: {value!r}; allowed: {allowed}"
        raise ValueError(msg)


def is_number(value: object) -> bool:
    """Tell whether a value is a finite Python number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Tell whether a value is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
            ``"amplify"`` gives what the data does not see of each weight the scale that its layer
            lacks, read from the cotangents; ``"renew"`` puts fresh entries of that scale there.
            Both need no tangent, take one step of a length of their own, and are judged by the
            loss alone; with ``"budget"`` their null space is that of the threshold 0.01.
            ``"auto"`` is ``"grad_norm"`` where no optimizer or no other samples are known. In a
            training loop that knows both, it amplifies where gradients vanish on their way down,
            and else looks ahead, unless the optimizer divides by the size of the gradient. Under
            ``jax.jit``, where nothing can be asked, it never amplifies.
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
            the same in ``teleport()`` and in ``Teleporter``. ``"amplify"`` and ``"renew"`` have
            lengths of their own, which a number bounds.
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

    objective: ObjectiveName | Objective = "auto"
    projection: ProjectionName | Gain = "budget"
    threshold: float = 0.0
    budget: float = 0.2
    radius: Literal["auto"] | float = "auto"
    max_gain: float = 4.0
    steps: int = 1
    tangent: TangentName = "auto"
    max_loss_change: float = 0.05
    bias: bool = True
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        for name, names, function in (
            ("objective", get_args(ObjectiveName), ", or a function of the gradient"),
            ("projection", get_args(ProjectionName), ", or a function of the energies"),
            ("tangent", get_args(TangentName), ""),
        ):
            value = getattr(self, name)
            fits = (function != "" and callable(value)) or value in names
            require(fits, name, value, ", ".join(map(repr, names)) + function)
        for name, (left, low, high) in RANGES.items():
            value, words = getattr(self, name), f"a finite number in {left}{low:g}, {high:g}]"
            fits = is_number(value) and low <= value <= high and (value > low or left == "[")
            if name == "radius":
                fits, words = fits or value == "auto", f"'auto' or {words}"
            require(fits, name, value, words)
        if self.threshold and self.projection != "threshold":
            value = f"{self.threshold!r} with projection {self.projection!r}"
            msg = f"invalid threshold: {value}; allowed: 0, or projection='threshold'"
            raise ValueError(msg)
        require(is_count(self.steps), "steps", self.steps, "an integer of at least 1")
        require(isinstance(self.bias, bool), "bias", self.bias, "True or False")
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            fits = isinstance(patterns, list | tuple) and all(isinstance(p, str) for p in patterns)
            require(fits, name, patterns, "a sequence of name patterns")
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
