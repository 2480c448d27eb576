"""The object to drop into a training loop on arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import nullport
from nullport import TeleportConfig
from nullport_arrays._graph import ArrayGraph

Graph = TypeVar("Graph", bound=ArrayGraph)


class Teleporter(nullport.Teleporter, Generic[Graph]):
    """Teleports a network every so often during training.

    Call ``maybe_step`` before every training step, on that step's batch. The two batches
    before it serve as other samples: one to look ahead with, one to have the last word.

    Attributes:
        graph: The graph of the last teleport, with the weights it settled on; None before one.
        history: Reports of all teleports so far, oldest first.
    """

    def __init__(
        self,
        make: Callable[[Any, Any, Any], Graph],
        *,
        every: int | str | Callable[..., Any] | None = None,
        horizon: int | None = None,
        config: TeleportConfig | None = None,
    ) -> None:
        """Watch a network.

        Args:
            make: ``make(batch, guard, others)`` returns the network at its present weights, by one
                of the ``from_`` functions; guard and others are None where there are none.
            every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
                refused, and never more than a small share of the compute. Or a function of the
                schedule's state that returns whether one is due.
            horizon: Training steps the run is expected to take.
            config: Settings of each teleport; the defaults if None.

        Raises:
            TypeError: If ``config`` is no ``TeleportConfig``.
            ValueError: If ``every`` or ``horizon`` is not allowed.
        """
        super().__init__(every=every, horizon=horizon, config=config)
        self._make = make
        self.graph: Graph | None = None

    def _graph(self, batch: Any, guard: Any, others: Any) -> Graph:
        self.graph = self._make(batch, guard, others)
        return self.graph
