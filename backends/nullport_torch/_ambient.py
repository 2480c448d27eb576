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

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class BackwardCalled(RuntimeError):  # noqa: N818
    """The closure called ``backward``."""

    def __init__(self) -> None:
        """Say what the closure must do instead."""
        super().__init__(
            "the closure called backward(); it must only return the loss: nullport takes the "
            "gradient itself"
        )


class NoBackward(TorchFunctionMode):
    """Refuses ``Tensor.backward`` before it does anything."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            raise BackwardCalled
        return func(*args, **(kwargs or {}))


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
        self._first = True
        self._autocast = torch.is_autocast_enabled(self._device)
        self._autocast_dtype = torch.get_autocast_dtype(self._device)
        self._precision = torch.get_float32_matmul_precision()

    def rewind(self) -> None:
        """Set random states, buffers and training flags back to the snapshot."""
        for state in self._random:
            state.restore()
        self._rewind_model()

    def _rewind_model(self) -> None:
        for module, name, buffer, copy in self._buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(copy)  # not in place: a graph that saved the buffer stays valid
        for module, training in self._modules:
            module.training = training

    def _rewind_used(self) -> None:
        """Rewind what forward passes use: random states that the first one left alone stay."""
        for state in self._random:
            if self._first or state.used:
                state.restore()
        self._rewind_model()

    def _note_used(self) -> None:
        if self._first:
            for state in self._random:
                state.used = state.changed()
            self._first = False

    def untouched(self) -> bool:
        """Tell whether the forward pass that was just made left random states and buffers alone."""
        return not any(state.used for state in self._random) and all(
            module._buffers[name] is buffer and torch.equal(buffer, copy)
            for module, name, buffer, copy in self._buffers
        )

    @contextlib.contextmanager
    def forward(self, *, grad: bool, everything: bool = False) -> Iterator[None]:
        """Run the closure in: the user's own switches, the snapshot's random states and buffers.

        ``everything`` rewinds also the random states that the captured batch leaves alone.
        """
        if everything:
            self.rewind()
        else:
            self._rewind_used()
        torch.clear_autocast_cache()  # casts of weights made before a move
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
            if not everything:
                self._note_used()
            if any(p.grad is not None for p in self._parameters):
                raise BackwardCalled
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for p, gradient in zip(self._parameters, gradients, strict=True):
                p.grad = gradient

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute with the full precision of the dtypes, and without a graph.

        Autocast and TF32 would leave a part of every direction in the row space.
        """
        precision = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if torch.is_autocast_enabled(self._device):
                    stack.enter_context(torch.autocast(self._device, enabled=False))
                yield
        finally:
            torch.set_float32_matmul_precision(precision)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Run the core in, and rewind at the end."""
        try:
            with self.arithmetic():
                yield
        finally:
            torch.clear_autocast_cache()
            self.rewind()


class _RandomState:
    """The state of one random number generator, and whether forward passes use it."""

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self._get, self._put, self._saved = get, put, get()
        self.used = True

    def restore(self) -> None:
        self._put(self._saved)

    def changed(self) -> bool:
        return not _same(self._get(), self._saved)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, tuple) and any(isinstance(part, np.ndarray | tuple) for part in a):
        return all(map(_same, a, b))
    return bool(a == b)  # Python's own state is a tuple of hundreds of integers


def _random_states(devices: Sequence[int]) -> list[_RandomState]:
    """Return every random state that a forward pass may use."""
    states = [
        _RandomState(torch.get_rng_state, torch.set_rng_state),
        _RandomState(random.getstate, random.setstate),
        _RandomState(np.random.get_state, np.random.set_state),
    ]
    return states + [_cuda_state(index) for index in devices]


def _cuda_state(index: int) -> _RandomState:
    return _RandomState(
        lambda: torch.cuda.get_rng_state(index),
        lambda state: torch.cuda.set_rng_state(state, index),
    )


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
