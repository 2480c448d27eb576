"""Watching a forward pass: every use of every parameter, by the parameter's identity.

A ``TorchFunctionMode`` sees each torch function a closure calls, whoever calls it: modules,
functional code, attention internals. Module hooks miss attention and functional calls; graph
walks miss what was computed without gradient. Parameters are recognised by identity, views of them
by ``_base``: a view's strides say which elements it names.

The same watch runs in two ways: recording (sites and uses), and replaying, where each parameter is
replaced on the fly by a moved or dual one and site inputs are handed over as they appear. The
user's parameters are never touched for it.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from nullport.network import LowRank, Use
from nullport_torch._calls import PARSERS, Call
from nullport_torch._conv import Geometry
from nullport_torch._seen import (
    Seen,
    bias_layout,
    linear_part,
    permuted,
    site_inputs,
    weight_layout,
)
from nullport_torch._watch import Watch, add_data, tensors_in, writes

_COPIES = {
    getattr(Tensor, name)
    for name in ("to", "contiguous", "clone", "float", "half", "double", "bfloat16", "type_as")
}
"""Functions whose result has the elements of the parameter in the same order."""

_DIRECT = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d}
"""Functions whose result holds on to no argument, called with parameters as they are."""

_METADATA = {
    "size", "dim", "ndimension", "stride", "numel", "nelement", "storage_offset", "data_ptr",
    "element_size", "get_device", "type", "is_contiguous", "is_floating_point", "is_complex",
    "is_signed", "is_pinned", "is_inference", "is_conj", "is_neg", "is_same_size", "len", "hash",
    "dim_order", "register_hook", "retain_grad", "is_tensor", "can_cast",
}  # fmt: skip
"""Functions that return no tensor and tell nothing of the elements."""

_GLOBALS = dict(vars(F)) | {
    name: (lambda *_: False) for name in vars(F) if name.startswith("has_torch_function")
}
_REBOUND: dict[Any, Any] = {}


def _see_through(function: Any) -> Any:
    """Return a copy of a composite of ``torch.nn.functional`` that does not hand itself over.

    Under a function mode such composites (multi-head attention) are opaque: they hand themselves
    over whole. Rebound to globals in which nothing is overridden, their body runs and every
    function inside is seen. The module itself is not patched, so other threads are not affected.
    """
    if function not in _REBOUND:
        rebound = types.FunctionType(
            function.__code__,
            _GLOBALS,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        rebound.__kwdefaults__ = function.__kwdefaults__
        _REBOUND[function] = rebound
    return _REBOUND[function]


@dataclass
class _Origin:
    """Where a tracked tensor comes from: the parameter, and the offset of its first element."""

    ref: weakref.ref[Tensor]
    parameter: int
    offset: int


Receive = Callable[[int, Tensor], None]
Added: TypeAlias = tuple[Mapping[int, LowRank], float]
"""By parameter, a move in factors that is added to outputs instead of the weight; and how far."""
Replacement = Callable[[int, Tensor, "int | None"], Tensor]
"""Index, parameter, and the argument slot if nothing but the call at hand will hold the result."""


class Recorder(TorchFunctionMode):
    """Watches one forward pass.

    Attributes:
        seen: Sites, in the order of the forward pass (recording only).
        uses: Uses of parameters (recording only).
        sites: Number of sites so far.
        data: What tells the batch from another, if a list is put here.
        unseen_gradients: Whether a parameter was used where no gradient is taken.
        differentiated: Whether the pass itself takes a gradient by a parameter.
    """

    def __init__(
        self,
        tracked: Sequence[tuple[int, Tensor]],
        watch: Watch,
        replace: Replacement | None = None,
        receive: Receive | None = None,
        added: Added | None = None,
    ) -> None:
        """Watch the ``tracked`` parameters, given with their indices.

        With ``replace`` (what stands in for a parameter) and ``receive`` (called with a site's
        index and input) the pass is a replay, else a recording. Outputs of maps whose weights move
        in factors get what the move adds to them.
        """
        super().__init__()
        self.data: list[Any] | None = None
        self.unseen_gradients = self.differentiated = False
        self._watch = watch
        self.seen: list[Seen] = []
        self.uses: list[Use] = []
        self.sites = 0
        self._replace, self._receive, self._added = replace, receive, added
        self._parameters = dict(tracked)
        self._copies: list[Tensor] = []
        self._origins: dict[int, _Origin] = {}
        self._recent: dict[int, Tensor] = {}
        for index, p in tracked:
            self._track(p, index, _offset(p))

    def _track(self, tensor: Tensor, parameter: int, offset: int) -> None:
        self._origins[id(tensor)] = _Origin(weakref.ref(tensor), parameter, offset)

    def origin(self, value: object) -> _Origin | None:
        """Return where a tensor comes from if it is a parameter, a view or a copy of one."""
        if not isinstance(value, Tensor):
            return None
        found = self._origins.get(id(value))
        if found is not None and found.ref() is value:
            return found
        base = value._base if value._is_view() else None
        found = None if base is None else self._origins.get(id(base))
        if found is None or base is None or found.ref() is not base:
            return None
        return found if value.dtype == base.dtype else None  # a view may read the bits otherwise

    def __torch_function__(
        self,
        func: Any,
        kinds: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self._watch.before(func, args, kwargs)
        if self.data is not None:
            add_data(self.data, args, kwargs)
        if not any(self.origin(a) is not None for a in tensors_in((args, kwargs))):
            return self._untouched(func, args, kwargs)
        if self._replace is not None:
            if getattr(func, "__name__", "") == "__get__" and not isinstance(
                func(*args, **kwargs), Tensor
            ):
                return func(*args, **kwargs)
            if func in _DIRECT:
                args = [self._direct(a, slot) for slot, a in enumerate(args)]
            args, kwargs = self._replaced(args), self._replaced(kwargs)
        self.differentiated = self.differentiated or func is torch.autograd.grad
        self.unseen_gradients = self.unseen_gradients or not torch.is_grad_enabled()
        parser = PARSERS.get(func)
        call = None if parser is None else self._linear(parser(args, kwargs))
        if call is None and parser is None and _composite(func):
            with self:
                return _see_through(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        if call is not None:
            self._site(call, out, args, kwargs)
        else:
            self._other(func, out, args, kwargs)
        return out

    def _untouched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is F.multi_head_attention_forward:
            with self:
                return _see_through(func)(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, readings: list[Call]) -> Call | None:
        """Return the reading whose weight, and only whose weight, is a parameter."""
        for call in readings:
            if self.origin(call.w) is None or self.origin(call.x) is not None:
                continue
            if not (_plain(call.x) and _plain(call.w)):
                continue
            if any(s == 0 and n > 1 for s, n in zip(call.w.stride(), call.w.shape, strict=True)):
                continue  # an expanded weight: its elements are not independent
            if isinstance(call.how, Geometry) or call.how.roles is not None:
                return call
        return None

    def _site(self, call: Call, out: Tensor, args: Any, kwargs: Any) -> None:
        """Record a site, or hand over its input."""
        inputs = site_inputs(call)
        index, self.sites = self.sites, self.sites + 1
        if self._receive is not None:
            self._receive(index, inputs)  # first: it tells another pass from the recorded one
            self._add(call, inputs, out)
            return
        edge = get_gradient_edge(out) if out.requires_grad else None
        size = torch.linalg.vector_norm(linear_part(call, out.detach()))
        # A cast of the weight is kept by the autograd graph, which then misses a move.
        same = out.dtype == call.w.dtype and not self._copies
        half = min(out.dtype.itemsize, inputs.dtype.itemsize) < 4
        self.seen.append(Seen(call, inputs.detach(), edge, size, out.shape, same, half))
        weight, bias = self.origin(call.w), self.origin(call.b)
        if weight is not None:
            layout = weight_layout(call, _offset(call.w) - weight.offset)
            self.uses.append(Use(weight.parameter, index, "weight", layout))
        if bias is not None and call.b is not None:
            layout = bias_layout(call, call.b, _offset(call.b) - bias.offset)
            self.uses.append(Use(bias.parameter, index, "bias", layout))
        for value in tensors_in((args, kwargs)):
            if value is not call.w and value is not call.b:
                self._other_use(value, call.kind)

    def _add(self, call: Call, inputs: Tensor, out: Tensor) -> None:
        """Add what a move of the weight in factors changes in the output."""
        origin = self.origin(call.w)
        if self._added is None or origin is None or isinstance(call.how, Geometry):
            return
        moves, step = self._added
        move, roles = moves.get(origin.parameter), call.how.roles
        if move is None or roles is None:
            return
        layout = weight_layout(call, _offset(call.w) - origin.offset)
        rows = inputs.to(move.right.dtype)  # autocast casts the arguments of the call, not these
        found = (move.mT if layout.transposed else move).outputs(rows)
        if found.numel() != out.numel():
            return  # another pass than the recorded one, as the next site will tell
        target = permuted(call.how.y, roles[0] + roles[1] + roles[2], out)
        target.add_(found.reshape(target.shape), alpha=step)

    def _other(self, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        """Record a use that is no linear map, unless it only changes the layout."""
        outputs = list(tensors_in(out))
        name = _name(func)
        if not outputs and (name in _METADATA or getattr(func, "__name__", "") == "__get__"):
            return
        written = writes(func, args, kwargs)
        for value in tensors_in((args, kwargs)):
            origin = self.origin(value)
            if origin is None:
                continue
            if torch._C._functorch.is_functorch_wrapped_tensor(outputs[0] if outputs else value):
                name += " under vmap or torch.func"
            if written or not outputs or not all(self._same(func, value, o) for o in outputs):
                self._other_use(value, name)

    def _same(self, func: Any, value: Tensor, out: Tensor) -> bool:
        """Tell whether ``out`` is a view or an ordered copy of ``value``; track copies."""
        if out is value or (out._is_view() and self.origin(out) is not None):
            return True
        origin = self.origin(value)
        if func in _COPIES and origin is not None and out.stride() == value.stride():
            self._track(out, origin.parameter, origin.offset - _offset(value))
            self._copies.append(out)  # kept alive, so that its id is not used again
            return True
        return False

    def _other_use(self, value: object, reason: str) -> None:
        origin = self.origin(value)
        if origin is not None and self._receive is None:
            self.uses.append(Use(origin.parameter, reason=reason))

    def _direct(self, value: Any, slot: int) -> Any:
        """Replace a parameter that is itself an argument of a linear map, in that map's slot."""
        origin = self.origin(value)
        if (
            origin is None
            or self._replace is None
            or value is not self._parameters[origin.parameter]
        ):
            return value
        stand_in = self._replace(origin.parameter, value, slot)
        self._follow(stand_in, origin.parameter)
        return stand_in

    def _follow(self, stand_in: Tensor, parameter: int) -> None:
        base = stand_in if stand_in._base is None else stand_in._base
        self._track(stand_in, parameter, _offset(stand_in))
        self._track(base, parameter, _offset(base))

    def _replaced(self, value: Any) -> Any:
        """Return ``value`` with every parameter in it replaced."""
        if isinstance(value, Tensor):
            return self._stand_in(value)
        if isinstance(value, list | tuple):
            return (
                type(value)(*map(self._replaced, value))
                if hasattr(value, "_fields")
                else type(value)(map(self._replaced, value))
            )
        if isinstance(value, dict):
            return {key: self._replaced(item) for key, item in value.items()}
        return value

    def _stand_in(self, value: Tensor) -> Tensor:
        """Return what replaces a parameter, or a view of one made before this pass."""
        origin = self.origin(value)
        if origin is None or self._replace is None:
            return value
        original = self._parameters[origin.parameter]
        if value is not original and value._base is not original:
            return value  # it already descends from a replacement
        stand_in = self._recent.get(origin.parameter)
        if stand_in is None:
            stand_in = self._replace(origin.parameter, original, None)
            self._follow(stand_in, origin.parameter)
            while len(self._recent) >= 2:  # a weight and its bias; more would hold memory
                self._recent.pop(next(iter(self._recent)))
            self._recent[origin.parameter] = stand_in
        if value is original:
            return stand_in
        shift = value.storage_offset() - original.storage_offset()
        return stand_in.as_strided(value.shape, value.stride(), stand_in.storage_offset() + shift)


def _plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is a real, dense one, and no stand-in inside ``torch.func``."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    strided = tensor.layout == torch.strided and not tensor.is_nested
    return strided and tensor.dtype.is_floating_point and not wrapped


def _offset(tensor: Tensor) -> int:
    return int(tensor.storage_offset())


def _composite(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and func.__module__ == F.__name__


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if func is torch.autograd.grad:
        return "a gradient that the loss takes by it"
    return "gather (embedding)" if name == "embedding" else name.strip("_")
