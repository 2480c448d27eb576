"""Everything a teleport must leave alone, as a snapshot that can be compared bit for bit."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _bits(t: Tensor) -> bytes:
    return bytes(t.detach().reshape(-1).view(torch.uint8).numpy()) if t.numel() else b""


class Snapshot:
    """State of a model, its optimizer, the random number generators and torch's switches."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights = self._weights()
        self.rest = self._rest()

    def _weights(self) -> dict[str, bytes]:
        return {name: _bits(p) for name, p in self.model.named_parameters()}

    def _rest(self) -> dict[str, Any]:
        parameters = dict(self.model.named_parameters())
        return {
            "buffers": {name: _bits(b) for name, b in self.model.named_buffers()},
            "buffer identity": {name: id(b) for name, b in self.model.named_buffers()},
            "identity": {name: (id(p), p.data_ptr()) for name, p in parameters.items()},
            "layout": {name: (p.shape, p.stride(), p.dtype) for name, p in parameters.items()},
            "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
            "leaf": {name: p.is_leaf for name, p in parameters.items()},
            "grad": {
                name: None if p.grad is None else (id(p.grad), _bits(p.grad))
                for name, p in parameters.items()
            },
            "training": {name: m.training for name, m in self.model.named_modules()},
            "keys": list(self.model.state_dict()),
            "hooks": [len(m._forward_pre_hooks) for m in self.model.modules()],
            "torch rng": bytes(torch.get_rng_state().numpy()),
            "numpy rng": repr(np.random.get_state()),  # noqa: NPY002
            "python rng": random.getstate(),
            "grad mode": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "precision": torch.get_float32_matmul_precision(),
            "optimizer": None
            if self.optimizer is None
            else repr(copy.deepcopy(self.optimizer.state_dict())),
        }

    def assert_rest_unchanged(self) -> None:
        """Everything but the weights is bit for bit as it was."""
        now = self._rest()
        for name, value in self.rest.items():
            assert now[name] == value, name

    def assert_unchanged(self) -> None:
        """Weights included."""
        self.assert_rest_unchanged()
        assert self._weights() == self.weights

    def moved(self) -> set[str]:
        """Return the names of the parameters that changed."""
        now = self._weights()
        return {name for name in now if now[name] != self.weights[name]}
