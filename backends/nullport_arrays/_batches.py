"""What programs over somebody else's code have in common: batches, and one kind of pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nullport._arrays import Array
from nullport._gradient_site import layer_input
from nullport._graph import Receive, TangentUnavailable
from nullport_arrays._graph import Vector
from nullport_arrays._sites import Sites

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

    def tangents(self, weights: Sequence[Array], v: Vector, receive: Receive) -> None:
        """Not to be had.

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
        self._batch, self._guard, self._others = batch, guard, others

    @abstractmethod
    def run(self, weights: Sequence[Array], batch: Batch, *, backward: bool) -> Pass:
        """Run the network forward, and backward if asked, and leave it as it was."""

    @abstractmethod
    def sites(self, weights: Sequence[Array], done: Pass) -> Sites:
        """Return the sites of a pass that went backward; may complete its gradients."""

    def gradient(self, weights: Sequence[Array]) -> tuple[Array, Vector]:
        """Return loss and gradients."""
        return self._gradient(weights, self._batch)

    def _gradient(self, weights: Sequence[Array], batch: Batch) -> tuple[Array, Vector]:
        done = self.run(weights, batch, backward=True)
        self.sites(weights, done)
        return done.loss, done.gradients

    def inputs(self, weights: Sequence[Array]) -> Sequence[tuple[Array, Array]]:
        """Return the inputs of every site at other weights, and what stands in for them."""
        found = self.sites(weights, self.run(weights, self._batch, backward=True))
        return [(layer_input(site), site.inputs) for site in found.sites]

    def loss(self, weights: Sequence[Array]) -> Array:
        """Return the loss."""
        return self.run(weights, self._batch, backward=False).loss

    def guard(self, weights: Sequence[Array]) -> Array | None:
        """Return the loss of the guard samples, or None."""
        if self._guard is None:
            return None
        return self.run(weights, self._guard, backward=False).loss

    @property
    def has_others(self) -> bool:
        """Whether other samples are known."""
        return self._others is not None

    def elsewhere(self, weights: Sequence[Array]) -> Vector:
        """Return the gradients of the other samples' loss."""
        assert self._others is not None  # the graph asks first
        return self._gradient(weights, self._others)[1]
