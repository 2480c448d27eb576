"""The object to drop into a training loop."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nullport import TeleportConfig, TeleportReport
from nullport import _driver as core
from nullport._cost import GRADIENT
from nullport._freeze import bind, data_of, freeze, keeps_its_batch
from nullport._policy import HORIZON, RADIUS, Policy, Rule
from nullport._tangent import Engine
from nullport_torch._graph import Closure, TorchGraph

KEPT = 2
"""Recent batches kept: the older is the guard, the newer is looked ahead with."""


class Teleporter:
    """Teleports a model every so often during training.

    Call :meth:`maybe_step` before the forward pass of every training step, on that step's batch.
    With the optimizer given, the two batches before it serve as other samples: one to look ahead
    with, one to have the last word.

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
        horizon: int = HORIZON,
        config: TeleportConfig | None = None,
    ) -> None:
        """Watch a model.

        Args:
            model: The network that is trained.
            optimizer: The optimizer that trains it. Without it nothing is known of the next step,
                and moves are judged by the loss alone.
            every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
                refused, and none that, at the cost of the last one, would take teleports beyond
                3 % of the compute of ``horizon`` steps or more.
            horizon: Training steps the run is expected to take.
            config: Settings of each teleport; the defaults if None.

        Raises:
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer, or ``horizon``
                is no positive integer.
        """
        self._model, self._optimizer = model, optimizer
        self._config = config or TeleportConfig()
        self._policy = Policy(Rule.parse(every, horizon))
        self._recent: list[Closure] = []
        self._resumed: list[dict[str, Any]] = []
        self._handed: tuple[Tensor, list[Tensor | None]] | None = None
        self._warned = False
        self._engine = Engine(self._config.tangent)
        self.history: list[TeleportReport] = []

    @property
    def last(self) -> TeleportReport | None:
        """Report of the last teleport, or None."""
        return self.history[-1] if self.history else None

    @property
    def due(self) -> bool:
        """Whether the policy would teleport before the next step."""
        return self._policy.due

    def maybe_step(
        self, closure: Closure, guard: Closure | None = None, others: Closure | None = None
    ) -> TeleportReport | None:
        """Count a training step, and teleport if one is due.

        Args:
            closure: Runs the forward pass on the batch of this step and returns the loss.
            guard: A closure over other samples, which have the last word. By default, with an
                optimizer and where ``others`` is left open too, a recent batch.
            others: A closure over yet other samples, for the objective ``"look_ahead"``. By
                default another recent batch.

        Returns:
            The report, or None if no teleport was due.
        """
        if data_of(closure) is not None:  # anything else would judge by the present batch
            self._recent += [bind(closure, data) for data in self._resumed]
        self._resumed = []
        ready = self._optimizer is None or guard is not None or len(self._recent) == KEPT
        due = ready and self.due
        self._handed = None
        report = self.step(closure, guard, others) if due else None
        if self._optimizer is not None and self._policy.near(KEPT):
            self._keep(closure, warn=guard is None)
        self._policy.tick()
        return report

    @property
    def gradient_ready(self) -> bool:
        """Whether a teleport has just computed the gradient that :meth:`backward` needs."""
        return self._handed is not None

    def backward(self, closure: Closure) -> Tensor:
        """Do what ``closure().backward()`` does, without the work if a teleport has just done it.

        Call it after :meth:`maybe_step` with the same closure. The gradient at the weights that a
        teleport settles on is that of the training step, so it is handed over; unless the forward
        pass draws random numbers or updates buffers, the model is wrapped, the optimizer is not
        known or trains other parameters too. Hooks on gradients do not see a gradient that is
        handed over.

        Returns:
            The loss, without a graph if the gradient was handed over.
        """
        handed, self._handed = self._handed, None
        if handed is None:
            loss = closure()
            loss.backward()
            return loss
        loss, gradients = handed
        for p, gradient in zip(self._model.parameters(), gradients, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient
        self._policy.refund(GRADIENT)
        return loss

    def _keep(self, closure: Closure, *, warn: bool) -> None:
        if warn and not self._warned and not keeps_its_batch(closure):
            self._warned = True
            msg = (
                f"a kept {type(closure).__name__} sees the batch of the present step, so no other "
                f"samples judge the move: pass a function, or guard= and others="
            )
            warnings.warn(msg, stacklevel=3)
        self._recent = [*self._recent, freeze(closure)][-KEPT:]

    def step(
        self, closure: Closure, guard: Closure | None = None, others: Closure | None = None
    ) -> TeleportReport:
        """Teleport now; arguments as for :meth:`maybe_step`."""
        if others is None and len(self._recent) == KEPT:
            guard, others = guard or self._recent[0], self._recent[1]
        graph = TorchGraph(
            self._model, closure, guard, others=others, optimizer=self._optimizer, keep=True
        )
        with graph.exact():
            report = core.teleport(graph, self._config, engine=self._engine, radius=RADIUS)
        self._handed = graph.kept
        self._policy.update(report)
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
        """Return everything needed to resume: plain numbers, and recent batches where kept.

        Save it between training steps. A run that is resumed from it, with the model, the
        optimizer and the data where they were, goes on bit for bit. For batches to be among it,
        the closures must be plain functions of them: ``lambda: loss_fn(model(x), y)``. Whatever
        data a closure names is saved, all of it: name the batch, not the dataset.
        """
        recent = [data_of(closure) for closure in self._recent]
        kept = self._resumed or [data for data in recent if data is not None]
        return {"policy": self._policy.state_dict(), "recent": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            ValueError: If the state is not one of a teleporter.
        """
        if set(state) != {"policy", "recent"}:
            msg = f"state has keys {sorted(state)}, expected ['policy', 'recent']"
            raise ValueError(msg)
        self._policy.load_state_dict(state["policy"])
        self._recent, self._resumed, self._handed = [], list(state["recent"]), None
