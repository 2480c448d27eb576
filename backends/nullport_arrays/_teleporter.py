"""The object to drop into a training loop on arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from nullport import TeleportConfig, TeleportReport
from nullport._cost import GRADIENT
from nullport._policy import HORIZON, RADIUS, Policy, Rule
from nullport._tangent import Engine
from nullport_arrays._api import teleport
from nullport_arrays._graph import ArrayGraph

KEPT = 2
"""Recent batches kept: the older is the guard, the newer is looked ahead with."""

Graph = TypeVar("Graph", bound=ArrayGraph)


class Teleporter(Generic[Graph]):
    """Teleports a network every so often during training.

    Call :meth:`maybe_step` before every training step, on that step's batch. The two batches
    before it serve as other samples: one to look ahead with, one to have the last word.

    Attributes:
        graph: The graph of the last teleport, with the weights it settled on; None before one.
        history: Reports of all teleports so far, oldest first.
    """

    def __init__(
        self,
        make: Callable[[Any, Any, Any], Graph],
        *,
        every: int | str = "auto",
        horizon: int = HORIZON,
        config: TeleportConfig | None = None,
    ) -> None:
        """Watch a network.

        Args:
            make: ``make(batch, guard, others)`` returns the network at its present weights, by one
                of the ``from_`` functions; guard and others are None where there are none.
            every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
                refused, and never more than a small share of the compute.
            horizon: Training steps the run is expected to take.
            config: Settings of each teleport; the defaults if None.

        Raises:
            ValueError: If ``every`` or ``horizon`` is not allowed.
        """
        self._make, self._config = make, config or TeleportConfig()
        self._policy = Policy(Rule.parse(every, horizon))
        self._engine = Engine(self._config.tangent)
        self._recent: list[Any] = []
        self.graph: Graph | None = None
        self.history: list[TeleportReport] = []

    @property
    def last(self) -> TeleportReport | None:
        """Report of the last teleport, or None."""
        return self.history[-1] if self.history else None

    @property
    def due(self) -> bool:
        """Whether the policy would teleport before the next step."""
        return self._policy.due

    def maybe_step(self, batch: Any, guard: Any = None, others: Any = None) -> bool:
        """Count a training step, and teleport if one is due.

        Args:
            batch: The batch of this step.
            guard: Other samples, which have the last word; by default a recent batch.
            others: Yet other samples, for the objective ``"look_ahead"``; by default another.

        Returns:
            Whether weights were moved; they are those of :attr:`graph`.
        """
        ready = guard is not None or len(self._recent) == KEPT
        due = ready and self.due
        moved = bool(self.step(batch, guard, others).accepted) if due else False
        if self._policy.near(KEPT):
            self._recent = [*self._recent, batch][-KEPT:]
        self._policy.tick()
        return moved

    def step(self, batch: Any, guard: Any = None, others: Any = None) -> TeleportReport:
        """Teleport now; arguments as for :meth:`maybe_step`."""
        if others is None and len(self._recent) == KEPT:
            guard = self._recent[0] if guard is None else guard
            others = self._recent[1]
        self.graph = self._make(batch, guard, others)
        report = teleport(self.graph, self._config, engine=self._engine, radius=RADIUS)
        self._policy.update(report)
        self.history.append(report)
        return report

    def spared(self) -> None:
        """Note that the training step uses the gradient that the teleport has computed."""
        self._policy.refund(GRADIENT)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume: plain numbers, and the recent batches."""
        return {"policy": self._policy.state_dict(), "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            ValueError: If the state is not one of a teleporter.
        """
        if set(state) != {"policy", "recent"}:
            msg = f"state has keys {sorted(state)}, expected ['policy', 'recent']"
            raise ValueError(msg)
        self._policy.load_state_dict(state["policy"])
        self._recent = list(state["recent"])
