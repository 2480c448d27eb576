"""Everything around a forward pass that must not notice a teleport.

Forward passes draw random numbers, update BatchNorm statistics and metrics, write to attributes,
and read global switches. All of them see the same random numbers and buffers, and at the end both
are as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nullport_torch._random import RandomStates
from nullport_torch._reads import Reads
from nullport_torch._settings import EAGER, FULL_PRECISION, Wish
from nullport_torch._stacks import Stacks
from nullport_torch._watch import BackwardCalled


class Ambient:
    """A snapshot of random states, modules, gradients and switches, and how to return to it.

    Attributes:
        stacks: What contexts push on stacks of this thread.
    """

    def __init__(
        self, model: nn.Module, reads: Reads, *, passed_by: Sequence[nn.Module] = ()
    ) -> None:
        """Take the snapshot of the network, and of what closures read besides.

        Wrappers that are ``passed_by`` are changed for the time of a teleport.
        """
        roots, others = [model, *reads.modules], {id(m) for m in passed_by}
        found = {id(m): m for root in roots for m in root.modules()}
        modules = [m for m in found.values() if id(m) not in others]
        self._modules = [_Module(m) for m in modules]
        self._modules += [_Module(value, names) for value, names in reads.objects]
        parameters = {id(p): p for root in roots for p in root.parameters()}
        self._parameters = list(parameters.values())
        self._gradients = [p.grad for p in self._parameters]
        tensors = [*self._parameters, *(t for m in self._modules for t in m.tensors)]
        devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        # The device of passes: that of tensors with values, which autocast knows.
        self._device = next((t.device.type for t in tensors if not t.is_meta), "cpu")
        self._random = RandomStates(devices, reads.generators)
        self.stacks = Stacks(self._device)
        self._autocast = torch.is_autocast_enabled(self._device)
        self._autocast_dtype = torch.get_autocast_dtype(self._device)
        self._precise, self._eager = Wish(FULL_PRECISION), Wish(EAGER)

    def tensors(self) -> list[Tensor]:
        """Return every tensor that a pass may write to and nothing else puts back."""
        return [*self._parameters, *(t for m in self._modules for t in m.attributes())]

    def untouched(self) -> bool:
        """Tell whether the forward pass that was just made left random states and modules alone."""
        return self._random.untouched and all(module.unchanged() for module in self._modules)

    @contextlib.contextmanager
    def forward(self, *, grad: bool, everything: bool = False) -> Iterator[None]:
        """Run the closure in: the user's own switches, the snapshot's random states and buffers.

        ``everything`` says that the pass may use what the captured batch leaves alone.
        """
        for module in self._modules:
            module.restore()
        self._random.begin(everything=everything)
        torch.clear_autocast_cache()  # casts of weights made before a move
        for p in self._parameters:
            p.grad = None
        try:
            with (
                self._precise(False),
                self._eager(True),
                torch.autocast(self._device, self._autocast_dtype, enabled=self._autocast),
                torch.set_grad_enabled(grad),
            ):
                yield
            self._random.end(everything=everything)
            if any(p.grad is not None for p in self._parameters):
                raise BackwardCalled
        finally:
            self._return_gradients()

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute with the full precision of the dtypes, and without a graph.

        Autocast and TF32 would leave a part of every direction in the row space.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._precise(True))
            stack.enter_context(torch.no_grad())
            if torch.is_autocast_enabled(self._device):
                stack.enter_context(torch.autocast(self._device, enabled=False))
            yield

    def restore(self) -> None:
        """Return to the snapshot for good; may be called again."""
        self._precise.set(False)
        self._eager.set(False)
        torch.clear_autocast_cache()
        self._return_gradients()
        for module in self._modules:
            module.restore()
        self._random.restore()

    def _return_gradients(self) -> None:
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient


class _Module:
    """Attributes and buffers of a module, or some attributes of another object, as they were."""

    def __init__(self, module: object, names: Sequence[str] | None = None) -> None:
        self._live, self._all = vars(module), names is None
        self._attributes = {n: self._live[n] for n in (self._live if names is None else names)}
        self._lists = [(a, list(a)) for a in self._attributes.values() if type(a) is list]
        self._bound = getattr(module, "_buffers", {}) if names is None else {}
        self._buffers = {name: b for name, b in self._bound.items() if b is not None}
        copied = list(self._buffers.values())
        self._copies = [(t, t.detach().clone()) for t in copied if not t.is_meta]

    @property
    def tensors(self) -> list[Tensor]:
        """Its buffers."""
        return list(self._buffers.values())

    def attributes(self) -> list[Tensor]:
        """Return tensors that are plain attributes."""
        return [a for a in self._attributes.values() if isinstance(a, Tensor)]

    def restore(self) -> None:
        """Put everything back."""
        for name in [n for n in self._live if self._all and n not in self._attributes]:
            del self._live[name]
        for name, value in self._attributes.items():
            if self._live.get(name, self) is not value:
                self._live[name] = value
        for live, copy in self._lists:
            if not _identical(live, copy):
                live[:] = copy
        for name, buffer in self._buffers.items():
            if self._bound.get(name) is not buffer:
                self._bound[name] = buffer
        for buffer, copy in self._copies:
            buffer.data.copy_(copy)  # not in place: a graph that saved the buffer stays valid

    def unchanged(self) -> bool:
        """Tell whether nothing has changed."""
        return (
            (not self._all or self._live.keys() == self._attributes.keys())
            and all(self._live.get(name, self) is value for name, value in self._attributes.items())
            and all(_identical(live, copy) for live, copy in self._lists)
            and all(self._bound.get(name) is b for name, b in self._buffers.items())
            and all(torch.equal(buffer, copy) for buffer, copy in self._copies)
        )


def _identical(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def dense(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` with the strides of ``like``, copied only if they differ."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_strided(
        like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
