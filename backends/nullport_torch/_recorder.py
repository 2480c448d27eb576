"""Watching a forward pass: every use of every parameter, by the parameter's identity.

A ``TorchFunctionMode`` sees each torch function a closure calls, whoever calls it: modules,
functional code, attention internals. Module hooks miss attention and functional calls; graph
walks miss what was computed without gradient. Parameters are recognised by identity, views of them
by ``_base``: a view's strides say which elements it names. What is no view but still made of their
elements is followed by their numbers (``_copies.py``).

The same watch runs in two ways: recording (sites and uses), and replaying, where each parameter is
replaced on the fly by a moved or dual one and site inputs are handed over as they appear. The
user's parameters are never touched for it. A replay follows what the recording has followed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from nullport.network import LowRank, NotSeparable, Part, Use
from nullport_torch._calls import PARSERS, Call
from nullport_torch._conv import Geometry
from nullport_torch._copies import (
    Terms,
    followed,
    follows,
    numbered,
    scales_by_activations,
)
from nullport_torch._derivatives import Differentiated
from nullport_torch._functions import (
    METADATA,
    composite,
    in_turn,
    name_of,
    offset,
    plain,
    see_through,
    standard,
)
from nullport_torch._lengths import REASON, Length, ratio
from nullport_torch._parts import bias_of, parts_of
from nullport_torch._products import pairwise
from nullport_torch._recurrent import CELLS, KERNELS, alike, draws, written_out
from nullport_torch._seen import (
    Seen,
    along_outputs,
    bias_layout,
    output_rows,
    permuted,
    site_inputs,
    weight_layout,
)
from nullport_torch._sharded import is_spread, whole
from nullport_torch._watch import Watch, add_data, tensors_in, writes
from nullport_torch._weights import span

_COPIES = {
    getattr(Tensor, name)
    for name in ("to", "contiguous", "clone", "float", "half", "double", "bfloat16", "type_as")
}
"""Functions whose result has the elements of the parameter in the same order."""

_DIRECT = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d}
"""Functions whose result holds on to no argument, called with parameters as they are."""


@dataclass
class _Origin:
    """Where a tracked tensor comes from: the parameter, and the offset of its first element."""

    ref: weakref.ref[Tensor]
    parameter: int
    offset: int


@dataclass
class _Copy:
    """A tensor made of elements of parameters: its terms, in a recording, and the parameters."""

    ref: weakref.ref[Tensor]
    terms: Terms
    parameters: frozenset[int]


@dataclass
class Route:
    """What a recording has followed, for replays to follow again.

    Attributes:
        parts: By linear map, the parts of its weight; None where that is a parameter as it is.
        copies: By function that might be followed, the parameters of its outputs, or None.
        scaled: Whether a weight is scaled by something computed from weights, which has a tangent.
        written: By recurrent kernel, whether it was run step by step.
        lengths: Weights given by direction and length.
    """

    parts: list[list[Part] | None] = field(default_factory=list)
    copies: list[frozenset[int] | None] = field(default_factory=list)
    scaled: bool = False
    written: list[bool] = field(default_factory=list)
    lengths: list[Length] = field(default_factory=list)

    @property
    def parted(self) -> set[int]:
        """The parameters that are a part of some weight."""
        return {part.parameter for found in self.parts for part in found or []}


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
        inputs: Inputs of the sites, with their graph (recording only).
        lookups: Rows that are looked up, by parameter (recording only).
        data: What tells the batch from another, if a list is put here.
        unseen_gradients: Whether a parameter was used where no gradient is taken.
        differentiated: What the closure differentiates by.
        route: What was followed (recording), or is to be followed again.
    """

    def __init__(
        self,
        tracked: Sequence[tuple[int, Tensor]],
        watch: Watch,
        replace: Replacement | None = None,
        receive: Receive | None = None,
        added: Added | None = None,
        route: Route | None = None,
        gathered: Callable[[Tensor], int | None] | None = None,
    ) -> None:
        """Watch the ``tracked`` parameters, given with their indices.

        ``gathered`` tells of a parameter that is not tracked which one it stands for.

        With ``replace`` (what stands in for a parameter), ``receive`` (called with a site's
        index and input) and the ``route`` of the recording the pass is a replay, else a recording.
        Outputs of maps whose weights move in factors get what the move adds to them.
        """
        super().__init__()
        self.data: list[Any] | None = None
        self.unseen_gradients = False
        self._watch = watch
        self.seen: list[Seen] = []
        self.uses: list[Use] = []
        self.sites = 0
        self.differentiated = Differentiated()
        self.inputs: list[Tensor] = []
        self.lookups: dict[int, list[Tensor]] = {}
        self.route = route or Route()
        self._replace, self._receive, self._added = replace, receive, added
        self._gathered = gathered
        self._parameters = dict(tracked)
        self._calls, self._followed, self._kernels, self._copied = 0, 0, 0, False
        self._origins: dict[int, _Origin] = {}
        self._copies: dict[int, _Copy] = {}
        self._recent: dict[int, Tensor] = {}
        self._starts, start = [0] * (1 + max(self._parameters, default=0)), 0
        for index in range(len(self._starts)):
            self._starts[index] = start
            start += span(self._parameters[index]) if index in self._parameters else 0
        for index, p in tracked:
            self._track(p, index, offset(p))

    def _track(self, tensor: Tensor, parameter: int, offset: int) -> None:
        self._origins[id(tensor)] = _Origin(weakref.ref(tensor), parameter, offset)

    def _copy(self, value: object) -> _Copy | None:
        found = self._copies.get(id(value))
        return found if found is not None and found.ref() is value else None

    def _parameters_of(self, value: object) -> frozenset[int]:
        """Return the parameters whose elements a tensor is made of."""
        copy, origin = self._copy(value), self.origin(value)
        if copy is not None:
            return copy.parameters
        return frozenset() if origin is None else frozenset({origin.parameter})

    def _terms_of(self, value: Tensor) -> Terms | None:
        copy, origin = self._copy(value), self.origin(value)
        if copy is not None:
            return copy.terms
        if origin is None:
            return None
        first = offset(value) - origin.offset
        return [numbered(value.detach(), first, self._starts[origin.parameter])]

    def origin(self, value: object) -> _Origin | None:
        """Return where a tensor comes from if it is a parameter, a view or a copy of one."""
        if not isinstance(value, Tensor):
            return None
        found = self._origins.get(id(value))
        if found is not None and found.ref() is value:
            return found
        if self._gathered is not None:
            for one in (value, value._base):
                self._find(one)
            found = self._origins.get(id(value))
            if found is not None and found.ref() is value:
                return found
        base = value._base if value._is_view() else None
        found = None if base is None else self._origins.get(id(base))
        if found is None or base is None or found.ref() is not base:
            return None
        return found if value.dtype == base.dtype else None  # a view may read the bits otherwise

    def _find(self, value: Tensor | None) -> None:
        """Track a parameter that is there only for the call of a module."""
        if not isinstance(value, Parameter) or self._gathered is None:
            return
        index = self._gathered(value)
        if index is not None and index in self._parameters:
            self._parameters[index] = value
            self._track(value, index, offset(value))

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
        if not any(self._parameters_of(a) for a in tensors_in((args, kwargs))):
            return self._untouched(func, args, kwargs)
        self.unseen_gradients = self.unseen_gradients or not torch.is_grad_enabled()
        if func is torch._weight_norm and self._has_length(*args[:2]):
            return self._normed(*args)
        if func in KERNELS or func in CELLS:
            found = self._written_out(func, args, kwargs)
            if found is not None:
                return found
        if self._replace is not None:
            if getattr(func, "__name__", "") == "__get__" and not isinstance(
                func(*args, **kwargs), Tensor
            ):
                return func(*args, **kwargs)
            if func in _DIRECT:
                args = [self._direct(a, slot) for slot, a in enumerate(args)]
            args, kwargs = self._replaced(args), self._replaced(kwargs)
        parser = PARSERS.get(standard(func))
        call = None if parser is None else self._linear(parser(args, kwargs))
        if call is None and parser is None and composite(func):
            with self:
                return see_through(func)(*args, **kwargs)
        steps = None if call is not None else pairwise(func, args)
        if steps is not None:  # a product of several weights: each is a site of its own
            with self:
                return in_turn(steps)
        out = func(*args, **kwargs)
        if func is torch.autograd.grad:
            self.differentiated.note(args, kwargs, out)
        if call is not None:
            self._site(call, out, args, kwargs)
        else:
            self._other(func, out, args, kwargs)
        return out

    def _untouched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is F.multi_head_attention_forward:
            with self:
                return see_through(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        if func is torch.autograd.grad:
            self.differentiated.note(args, kwargs, out)
        return out

    def _written_out(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a recurrent kernel step by step; None if its numbers are not those of the kernel."""
        index, self._kernels = self._kernels, self._kernels + 1
        if kwargs or (self._receive is not None and not any(self.route.written[index : index + 1])):
            return None
        if self._receive is not None:
            with self:
                return written_out(func, self._apart(func, args))
        if draws(func, args):  # a device of its own draws other numbers
            self.route.written.append(False)
            return None
        states = torch.get_rng_state()
        with torch.no_grad():
            native = func(*args)
        after = torch.get_rng_state()
        torch.set_rng_state(states)
        marks = len(self.seen), len(self.uses), self.sites, self._calls
        with self:
            found = written_out(func, self._apart(func, args))
        if alike(found, native) and torch.equal(torch.get_rng_state(), after):
            self.route.written.append(True)
            return found
        torch.set_rng_state(states)
        self.route.written.append(False)
        seen, uses, self.sites, self._calls = marks
        del self.seen[seen:], self.uses[uses:], self.route.parts[self._calls :]
        return None

    def _apart(self, func: Any, args: Sequence[Any]) -> list[Any]:
        """Return arguments in which inputs and states are no parameters; note those that were."""
        weights = (
            2 if func in CELLS else next(k for k in (3, 2) if isinstance(args[k], list | tuple))
        )

        def apart(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return tuple(map(apart, value))
            if not self._parameters_of(value):
                return value
            self._other_use(value, name_of(func))
            stand_in = self._replaced(value)
            return stand_in.clone()

        return [apart(a) if k < weights else a for k, a in enumerate(args)]

    def _has_length(self, direction: Tensor, length: Tensor) -> bool:
        """Tell whether both are parameters as they are, so that the length can follow."""
        mine = self._parameters.values()
        own = (direction, length)
        return all(any(t is p for p in mine) and not is_spread(t) for t in own)

    def _normed(self, direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
        """Return ``direction * length / |direction|`` with the ratio of the lengths held.

        The parameters are those at which the pass was recorded, whatever replaces them. When the
        direction has moved, its length is adapted, so that the ratio is what it was.
        """
        held = ratio(direction, length, dim)
        v, g = (self.origin(t) for t in (direction, length))
        assert v is not None  # has been asked
        assert g is not None
        if self._receive is None:
            self.route.lengths.append(Length(v.parameter, g.parameter, dim))
            self.uses.append(Use(g.parameter, reason=REASON))
        with self:
            return torch.mul(direction, held)

    def _linear(self, readings: list[Call]) -> Call | None:
        """Return the reading whose weight, and only whose weight, is a parameter."""
        for call in readings:
            if not self._parameters_of(call.w) or any(self.origin(x) for x in call.given()):
                continue
            call = call.complete()
            if not (plain(call.x) and plain(call.w)):
                continue
            repeated = any(
                s == 0 and n > 1 for s, n in zip(call.w.stride(), call.w.shape, strict=True)
            )
            if repeated and self._copy(call.w) is None and isinstance(call.how, Geometry):
                continue  # an expanded kernel: its elements are not independent
            if isinstance(call.how, Geometry) or call.how.roles is not None:
                return call
        return None

    def _parts(self, call: Call, inputs: Tensor) -> list[Part] | None:
        """Return the parts of the weight of a call, or None if it is a parameter as it is."""
        index, self._calls = self._calls, self._calls + 1
        if self._receive is not None and not self.route.scaled:
            return self.route.parts[index] if index < len(self.route.parts) else None
        found: list[Part] | None = []
        if self._as_it_is(call):
            found = None
        else:
            terms = self._terms_of(call.w) or []
            try:
                found = parts_of(call, terms, self._starts, inputs.shape[-2])
            except NotSeparable as reason:
                self._other_use(call.w, str(reason))
        if self._receive is None:
            self.route.parts.append(found)
        return found

    def _as_it_is(self, call: Call) -> bool:
        """Tell whether the weight of a call is a view of a parameter that strides describe."""
        sizes = zip(call.w.stride(), call.w.shape, strict=True)
        repeated = any(s == 0 and n > 1 for s, n in sizes)
        plain = self._copy(call.w) is None and not repeated
        return plain and call.scale == 1 and call.rows is None

    def _site(self, call: Call, out: Tensor, args: Any, kwargs: Any) -> None:
        """Record the sites of a call, one for every part of its weight, or hand over inputs."""
        call = replace(call, x=whole(call.x)) if is_spread(call.x) else call
        inputs, dense = site_inputs(call), not isinstance(call.how, Geometry)
        parts = self._parts(call, inputs)
        for part in [None] if parts is None else parts:
            held = inputs if part is None or part.plain else part.held(inputs, dense=dense)
            index, self.sites = self.sites, self.sites + 1
            if self._receive is not None:
                self._receive(index, held)  # first: it tells another pass from the recorded one
                if part is None:
                    self._add(call, inputs, out)
                continue
            self.inputs.append(held)
            self._see(call, part, held.detach(), out)
            self._use(call, part, index)
        if self._receive is None:
            for value in tensors_in((args, kwargs)):
                if value is not call.w and value is not call.b:
                    self._other_use(value, call.kind)

    def _see(self, call: Call, part: Part | None, inputs: Tensor, out: Tensor) -> None:
        """Record one site."""
        edge = get_gradient_edge(out) if out.requires_grad else None
        # Autograd refuses inputs that are written to later; where it is off, they are kept apart.
        inputs = inputs.clone() if edge is None else inputs
        size = whole(torch.linalg.vector_norm(output_rows(call, part, out.detach())))
        # A copy of the weight is kept by the autograd graph, which then misses a move.
        same = out.dtype == call.w.dtype and not self._copied
        half = min(out.dtype.itemsize, inputs.dtype.itemsize) < 4
        self.seen.append(Seen(call, inputs, edge, size, out.shape, same, half, part))

    def _use(self, call: Call, part: Part | None, index: int) -> None:
        """Record which parameters a site uses."""
        weight, bias = self.origin(call.w), self.origin(call.b)
        if part is None and weight is not None:
            layout = weight_layout(call, offset(call.w) - weight.offset)
            self.uses.append(Use(weight.parameter, index, "weight", layout))
            if bias is not None and call.b is not None and along_outputs(call):
                layout = bias_layout(call, call.b, offset(call.b) - bias.offset)
                self.uses.append(Use(bias.parameter, index, "bias", layout))
                return
            part = Part.whole(weight.parameter, layout) if call.b is not None else None
        elif part is not None:
            self.uses.append(Use(part.parameter, index, "weight", part.layout))
        if call.b is None or part is None or not self._parameters_of(call.b):
            return
        found = bias_of(call, part, self._terms_of(call.b) or [], self._starts)
        if found is None:
            self._other_use(call.b, f"added to {call.kind}")
        else:
            self.uses.append(Use(found[0], index, "bias", found[1]))

    def _add(self, call: Call, inputs: Tensor, out: Tensor) -> None:
        """Add what a move of the weight in factors changes in the output."""
        origin = self.origin(call.w)
        if self._added is None or origin is None or isinstance(call.how, Geometry):
            return
        moves, step = self._added
        move, roles = moves.get(origin.parameter), call.how.roles
        if move is None or roles is None:
            return
        layout = weight_layout(call, offset(call.w) - origin.offset)
        rows = inputs.to(move.right.dtype)  # autocast casts the arguments of the call, not these
        found = (move.mT if layout.transposed else move).outputs(rows)
        if found.numel() != out.numel():
            return  # another pass than the recorded one, as the next site will tell
        target = permuted(call.how.y, roles[0] + roles[1] + roles[2], out)
        target.add_(found.reshape(target.shape), alpha=step)

    def _other(self, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        """Record a use that is no linear map, unless its outputs can be followed."""
        outputs = list(tensors_in(out))
        name = name_of(func)
        if not outputs and (name in METADATA or getattr(func, "__name__", "") == "__get__"):
            return
        values = [v for v in tensors_in((args, kwargs)) if self._parameters_of(v)]
        written = writes(func, args, kwargs) or not outputs
        if not written and all(self._same(func, v, o) for v in values for o in outputs):
            return
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor((outputs or values)[0])
        if wrapped:
            name += " under vmap or torch.func"
        elif any(t.is_nested for t in tensors_in((args, kwargs))):
            name += " on a nested tensor"
        if not written and not wrapped and follows(func) and self._follows(func, args, kwargs, out):
            return
        if func is torch.embedding and self._receive is None and args[4:5] != (True,):
            self._look_up(args[0], args[1])
        for value in values:
            self._other_use(value, name)

    def _look_up(self, table: Tensor, indices: Tensor) -> None:
        """Note the rows of a parameter that are looked up."""
        origin = self.origin(table)
        if origin is not None and table is self._parameters[origin.parameter]:
            self.lookups.setdefault(origin.parameter, []).append(indices.unique())

    def _same(self, func: Any, value: Tensor, out: Tensor) -> bool:
        """Tell whether ``out`` is a view or an ordered copy of ``value``; track copies."""
        if out is value or (out._is_view() and self.origin(out) is not None):
            return True
        origin = self.origin(value)
        if func in _COPIES and origin is not None and out.stride() == value.stride():
            self._track(out, origin.parameter, origin.offset - offset(value))
            self._copied = True
            return True
        return False

    def _follows(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Track the outputs of a function that moves, scales or adds up elements of parameters."""
        index, self._followed = self._followed, self._followed + 1
        if self._receive is not None and not self.route.scaled:
            known = self.route.copies[index] if index < len(self.route.copies) else None
            for o in tensors_in(out) if known is not None else ():
                self._copies[id(o)] = _Copy(weakref.ref(o), [], known or frozenset())
            return known is not None
        try:
            with torch.set_grad_enabled(False):
                found = followed(func, args, kwargs, out, self._terms_of)
        except (RuntimeError, TypeError, ValueError, IndexError):
            found = None  # the function takes no numbers
        if found is None:
            if self._receive is None:
                self.route.copies.append(None)
            return False
        if self._receive is None:
            self.route.scaled |= scales_by_activations(func, args, kwargs, out, self._terms_of)
        terms, left = found
        for value in left:
            self._other_use(value, name_of(func))
        used = [
            self._parameters_of(v)
            for v in tensors_in((args, kwargs))
            if not any(v is x for x in left)
        ]
        parameters = frozenset().union(*used)
        if self._receive is None:
            self.route.copies.append(parameters)
        for o, own in zip(tensors_in(out), terms, strict=True):
            self._copies[id(o)] = _Copy(weakref.ref(o), own, parameters)
        self._copied = True
        return True

    def _other_use(self, value: object, reason: str) -> None:
        if self._receive is None:
            for parameter in sorted(self._parameters_of(value)):
                self.uses.append(Use(parameter, reason=reason))

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
        self._track(stand_in, parameter, offset(stand_in))
        self._track(base, parameter, offset(base))

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
