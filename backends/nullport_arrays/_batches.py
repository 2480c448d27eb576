"""What programs over somebody else's code have in common: batches, and one kind of pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nullport.network import Array, Dense, Receive, TangentUnavailable
from nullport_arrays._sites import Sites, layer_input

Batch = tuple[Any, Any]
LossPair = Callable[[Any, Any], tuple[Any, Any]]
"""Takes outputs and targets; returns the loss and its derivative by the outputs."""


@dataclass
class Pass:
    """What a pass left behind; nothing of it belongs to the user's objects.

    Attributes:
        gradients: One per weight, None where there is none.
        loss: The loss, 0-d.
        seen: What passed through the layers, as the program likes it.
    """

    gradients: list[Array | None]
    loss: Array = None
    seen: dict[int, Any] = field(default_factory=dict)


class NoForwardMode:
    """A network whose tangents come from differences alone."""

    def tangents(self, weights: Sequence[Array], v: Dense, receive: Receive) -> None:
        """Not available.

        Raises:
            TangentUnavailable: Always.
        """
        del weights, v, receive
        msg = "a network written by hand has no forward mode; allowed: tangent='fd' or 'auto'"
        raise TangentUnavailable(msg)

    def release(self) -> None:
        """Nothing is held."""


class BatchProgram(NoForwardMode, ABC):
    """A :class:`nullport_arrays._graph.Program` of passes over batches of inputs and targets."""

    def __init__(self, batch: Batch, guard: Batch | None, others: Batch | None) -> None:
        """Take the captured batch, the guard and other samples."""
        data = {"batch": batch, "guard": guard, "others": others}
        self._data: dict[str, Batch] = {name: b for name, b in data.items() if b is not None}
        self.batches = frozenset({*self._data} - {"batch"})

    @abstractmethod
    def run(self, weights: Sequence[Array], batch: Batch, *, backward: bool) -> Pass:
        """Run the network forward, and backward if asked, and leave it as it was."""

    @abstractmethod
    def sites(self, weights: Sequence[Array], done: Pass) -> Sites:
        """Return the sites of a pass that went backward; may complete its gradients."""

    def gradient(self, weights: Sequence[Array], batch: str) -> tuple[Array, Dense]:
        """Return loss and gradients of a batch."""
        done = self.run(weights, self._data[batch], backward=True)
        self.sites(weights, done)
        return done.loss, done.gradients

    def inputs(self, weights: Sequence[Array]) -> Sequence[tuple[Array, Array]]:
        """Return the inputs of every site at other weights, and what stands in for them."""
        found = self.sites(weights, self.run(weights, self._data["batch"], backward=True))
        return [(layer_input(site), site.inputs) for site in found.sites]

    def loss(self, weights: Sequence[Array], batch: str) -> Array:
        """Return the loss of a batch."""
        return self.run(weights, self._data[batch], backward=False).loss
