"""The object to drop into a training loop."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from nullport import TeleportConfig, TeleportReport
from nullport._policy import Schedule
from nullport._tangent import Engine
from nullport_torch._api import teleport
from nullport_torch._graph import Closure


class Teleporter:
    """Teleports a model every so often during training.

    Call :meth:`maybe_step` before the forward pass of every training step, on that step's batch.

    Attributes:
        last: Report of the last teleport, or None.
        history: Reports of all teleports so far, oldest first.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        every: int | str = "auto",
        config: TeleportConfig | None = None,
    ) -> None:
        """Watch a model.

        Args:
            model: The network that is trained.
            optimizer: The optimizer that trains it.
            every: Training steps between teleports, or ``"auto"``: early ones, and fewer when
                they are refused.
            config: Settings of each teleport; the defaults if None.

        Raises:
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer.
        """
        self._model, self._optimizer = model, optimizer
        self._config = config or TeleportConfig()
        self._schedule = Schedule.parse(every)
        self._engine = Engine(self._config.tangent)
        self.history: list[TeleportReport] = []

    @property
    def last(self) -> TeleportReport | None:
        """Report of the last teleport, or None."""
        return self.history[-1] if self.history else None

    def maybe_step(self, closure: Closure, guard: Closure | None = None) -> TeleportReport | None:
        """Count a training step, and teleport if one is due.

        Args:
            closure: Runs the forward pass on the batch of this step and returns the loss.
            guard: A closure over other samples, whose loss must not rise.

        Returns:
            The report, or None if no teleport was due.
        """
        return self.step(closure, guard) if self._schedule.tick() else None

    def step(self, closure: Closure, guard: Closure | None = None) -> TeleportReport:
        """Teleport now; arguments as for :meth:`maybe_step`."""
        report = teleport(
            self._model,
            closure,
            optimizer=self._optimizer,
            guard=guard,
            config=self._config,
            engine=self._engine,
        )
        self._schedule.update(accepted=report.accepted)
        self.history.append(report)
        return report

    def summary(self) -> str:
        """Return one line per teleport."""
        accepted = sum(report.accepted for report in self.history)
        lines = [f"{len(self.history)} teleports, {accepted} accepted"]
        for report in self.history:
            verdict = "accepted" if report.accepted else f"refused: {report.reason}"
            lines.append(
                f"  loss {report.loss_before:.4g} -> {report.loss_after:.4g}, gradient norm "
                f"{report.grad_norm_before:.3g} -> {report.grad_norm_after:.3g}: {verdict}"
            )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume, as plain numbers."""
        return {"schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            ValueError: If the state is not one of a teleporter.
        """
        if set(state) != {"schedule"}:
            msg = f"state has keys {sorted(state)}, expected ['schedule']"
            raise ValueError(msg)
        self._schedule.load_state_dict(state["schedule"])
