"""What a task is: data to learn from, as arrays with the samples first.

Inputs are float32 with the features last, in one of four forms:

    vector (n, features)     sequence (n, steps, channels)     image (n, height, width, channels)
    tokens (n, steps), integers

Targets are (n,) classes, (n, outputs) numbers, or (n, steps) next tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Batch: TypeAlias = tuple[Array, Array]
Kind = Literal["classification", "regression", "language"]
Form = Literal["vector", "sequence", "image", "tokens"]


@dataclass(frozen=True, eq=False)
class Task:
    """Data to learn from.

    Attributes:
        name: Name of the dataset.
        kind: ``"classification"`` (cross-entropy), ``"regression"`` (mean squared error) or
            ``"language"`` (cross-entropy of the next token at every step).
        outputs: Numbers the network returns per sample (per step for language).
        inputs: Training inputs.
        targets: Training targets.
        valid_inputs: Validation inputs.
        valid_targets: Validation targets.
        build: Makes a network of the task's own, instead of the one that the settings name, from
            the settings: for torch an ``nn.Module``, for JAX ``(init, apply)`` with ``init(key)``
            and ``apply(params, inputs)``, for arrays a layer of ``nullport_arrays.layers``.
        criterion: The loss of outputs and targets, a scalar, instead of the one that ``kind``
            names; for arrays a ``nullport_arrays.layers.Loss``.

    Raises:
        ValueError: If inputs and targets differ in length or a part is empty.
    """

    name: str
    kind: Kind
    outputs: int
    inputs: Array
    targets: Array
    valid_inputs: Array
    valid_targets: Array
    build: Callable[[Any], Any] | None = None
    criterion: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        """Check the lengths."""
        for part, x, y in (
            ("training", self.inputs, self.targets),
            ("validation", self.valid_inputs, self.valid_targets),
        ):
            if len(x) != len(y) or not len(x):
                msg = f"{self.name}: {len(x)} {part} inputs for {len(y)} targets; allowed: as many"
                raise ValueError(msg)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.inputs.shape[1:]

    @property
    def form(self) -> Form:
        """Form of one input."""
        if self.kind == "language":
            return "tokens"
        forms: tuple[Form, ...] = ("vector", "sequence", "image")
        return forms[len(self.shape) - 1]


def builder(task: Task, settings: Any) -> Callable[[Any], Any] | None:
    """Return what makes the network from the settings, None if it is one of the backend's.

    A function in the settings comes before the one of the task.
    """
    if callable(settings.model):
        return partial(settings.model, task)
    return task.build
