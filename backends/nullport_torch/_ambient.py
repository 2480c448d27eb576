"""Everything around a forward pass that must not notice a teleport.

Forward passes draw random numbers, update BatchNorm statistics and read global switches. All of
them see the same random numbers and buffers, and at the end both are as before.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BackwardCalled(RuntimeError):
    """The closure called ``backward``."""

    def __init__(self) -> None:
        """Say what the closure must do instead."""
        super().__init__(
            "the closure called backward(); it must only return the loss: nullport takes the "
            "gradient itself"
        )


class Ambient:
    """A snapshot of random states, buffers, gradients and switches, and how to return to it."""

    def __init__(self, model: nn.Module) -> None:
        """Take the snapshot."""
        parameters = list(model.parameters())
        tensors = [*parameters, *model.buffers()]
        self._devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        self._device = next((t.device.type for t in tensors), "cpu")
        self._parameters = parameters
        self._modules = [(m, m.training) for m in model.modules()]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._random = _random_states(self._devices)
        self._autocast = torch.is_autocast_enabled(self._device)
        self._autocast_dtype = torch.get_autocast_dtype(self._device)
        self._precision = torch.get_float32_matmul_precision()

    def rewind(self) -> None:
        """Set random states, buffers and training flags back to the snapshot."""
        for restore in self._random:
            restore()
        for module, name, buffer, copy in self._buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(copy)  # not in place: a graph that saved the buffer stays valid
        for module, training in self._modules:
            module.training = training

    @contextlib.contextmanager
    def forward(self, *, grad: bool) -> Iterator[None]:
        """Run the closure in: the user's own switches, the snapshot's random states and buffers."""
        self.rewind()
        gradients = [p.grad for p in self._parameters]
        fast_path = torch.backends.mha.get_fastpath_enabled()
        precision = torch.get_float32_matmul_precision()
        for p in self._parameters:
            p.grad = None
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            torch.set_float32_matmul_precision(self._precision)
            with (
                torch.autocast(self._device, self._autocast_dtype, enabled=self._autocast),
                torch.set_grad_enabled(grad),
                _eager(),
            ):
                yield
            if any(p.grad is not None for p in self._parameters):
                raise BackwardCalled
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for p, gradient in zip(self._parameters, gradients, strict=True):
                p.grad = gradient

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Run the core in: no autocast, no TF32, no graph; rewind at the end."""
        precision = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            with torch.autocast(self._device, enabled=False), torch.no_grad():
                yield
        finally:
            torch.set_float32_matmul_precision(precision)
            self.rewind()


def _random_states(devices: Sequence[int]) -> list[Callable[[], Any]]:
    """Return functions that set every random state back to what it is now."""
    states: list[Callable[[], Any]] = []

    def add(setter: Callable[..., Any], *state: Any) -> None:
        states.append(lambda: setter(*state))

    add(torch.set_rng_state, torch.get_rng_state())
    for index in devices:
        add(torch.cuda.set_rng_state, torch.cuda.get_rng_state(index), index)
    add(random.setstate, random.getstate())
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        add(numpy.random.set_state, numpy.random.get_state())
    return states


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Make compiled modules run eagerly, if anything was ever compiled."""
    if "torch._dynamo" in sys.modules:
        stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return contextlib.nullcontext()


def dense(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` with the strides of ``like``, copied only if they differ."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_strided(
        like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
