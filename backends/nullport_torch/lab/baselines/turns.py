"""When a rival teleports during training: by the same policy as nullport."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from nullport import Rule, TeleportReport
from nullport_torch.lab.baselines.methods import Criterion, apply, check


class Turns:
    """A method at work in a training loop.

    Attributes:
        factor: What the learning rate of the next training step is multiplied by.
    """

    def __init__(
        self,
        method: str | Callable[..., Any],
        options: Mapping[str, Any],
        rule: Rule,
        seed: int = 0,
    ) -> None:
        """Choose the method.

        Args:
            method: Its name, or a function.
            options: Its options.
            rule: Says when a teleport is due.
            seed: Of what it draws; each teleport draws anew.

        Raises:
            ValueError: If method or option is unknown.
        """
        check(method, options)
        self._method, self._options, self._seed = method, options, seed
        self._rule, self._state = rule, rule.start(np.float64(0.0))
        self.factor = 1.0
        self._made = 0

    @property
    def due(self) -> bool:
        """Whether a teleport is due before the next step."""
        return bool(self._rule.due(self._state))

    def teleport(
        self, model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor, *, now: bool | None
    ) -> TeleportReport | None:
        """Teleport if one is due, counting a training step, or now."""
        due = self.due if now is None else now
        report = self._now(model, criterion, x, y) if due else None
        if now is None:
            self._state = self._rule.tick(self._state)
        return report

    def _now(self, model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor) -> TeleportReport:
        seed = 1000 * self._seed + self._made
        self._made += 1
        report, self.factor = apply(self._method, model, criterion, x, y, self._options, seed)
        self._state = self._rule.update(self._state, np.bool_(report.accepted), report.cost)
        return report

    @contextmanager
    def scaled(self, optimizer: Optimizer) -> Iterator[None]:
        """Multiply the learning rates by the factor inside, once."""
        factor, self.factor = self.factor, 1.0
        before = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        try:
            yield
        finally:
            for group, lr in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = lr
