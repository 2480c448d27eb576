"""The object to drop into a training loop."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import nullport
from nullport import TeleportConfig
from nullport_torch._distributed import Group, Watch
from nullport_torch._freeze import bind, data_of, freeze, keeps_its_batch
from nullport_torch._graph import Closure, TorchGraph


class Teleporter(nullport.Teleporter):
    """Teleports a model every so often during training.

    Call ``maybe_step`` before the forward pass of every training step, on that step's batch,
    given as a closure that runs the forward pass and returns the loss. With the optimizer given,
    the two batches before it serve as other samples: one to look ahead with, one to have the last
    word. For them to be among ``state_dict``, closures must be plain functions of their batch:
    ``lambda: loss_fn(model(x), y)``. Whatever data a closure names is saved, all of it: name the
    batch, not the dataset.

    Attributes:
        history: Reports of all teleports so far, oldest first.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        every: int | str = "auto",
        horizon: int = 1000,
        config: TeleportConfig | None = None,
        group: Group = "auto",
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
            group: The process group whose ranks train this model together, each on batches of its
                own, or None if this process trains it alone. ``"auto"`` finds the group of its
                ``DistributedDataParallel``; without one, no teleport is made before training has
                shown that the weights are kept equal on all ranks.

        Raises:
            TypeError: If ``config`` is no ``TeleportConfig``.
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer, or ``horizon``
                is no positive integer.
        """
        judged = optimizer is not None
        super().__init__(every=every, horizon=horizon, config=config, judged=judged)
        self._model, self._optimizer = model, optimizer
        self._warned = False
        self._watch = Watch(model, group)

    def _obstacle(self) -> str:
        return self._watch.obstacle()

    def _graph(
        self, batch: Closure, guard: Closure | None, others: Closure | None
    ) -> nullport.LayerGraph:
        return TorchGraph(
            self._model,
            batch,
            guard,
            others=others,
            optimizer=self._optimizer,
            keep=True,
            replicas=self._watch.replicas(),
        )

    def _keep(self, batch: Closure, *, judges: bool) -> Closure:
        if judges and not self._warned and not keeps_its_batch(batch):
            self._warned = True
            msg = (
                f"a kept {type(batch).__name__} sees the batch of the present step, so no other "
                f"samples judge the move: pass a function, or guard= and others="
            )
            warnings.warn(msg, stacklevel=3)
        return freeze(batch)

    def _save(self, kept: Closure) -> dict[str, Any] | None:
        return data_of(kept)

    def _load(self, data: dict[str, Any], batch: Closure) -> Closure | None:
        # Anything but a function would judge by the present batch.
        return None if data_of(batch) is None else bind(batch, data)

    def backward(self, closure: Closure) -> Tensor:
        """Do what ``closure().backward()`` does, without the work if a teleport has just done it.

        Call it after ``maybe_step`` with the same closure. The gradient at the weights that a
        teleport settles on is that of the training step, so it is handed over; unless the forward
        pass draws random numbers or updates buffers, the model is wrapped, the optimizer is not
        known or trains other parameters too. Hooks on gradients do not see a gradient that is
        handed over.

        Returns:
            The loss, without a graph if the gradient was handed over.
        """
        handed = self.hand_over()
        if handed is None:
            loss = closure()
            loss.backward()
            return loss
        found: Tensor = handed[0]
        for p, gradient in zip(self._model.parameters(), handed[1], strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient
        return found
