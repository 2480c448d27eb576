"""Watching a loss through its jaxpr; everything that touches the inside of a jaxpr is here.

First the jaxpr is read: parameters are followed through operations that only change layout, and
into the jaxprs of jit, remat and scan. Every product or convolution with exactly one parameter is a
site; any other use of a parameter is noted with its reason. Then it is evaluated with a zero
``eps`` added to every site's output: the cotangent of a site is the gradient with respect to its
``eps``, and its input is handed out beside the loss. Only jaxprs that hold a site are opened, and
functions with a rule of their own only where the rule is the derivative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from nullport.network import Layout, NotSeparable, Part, Use, matrix, norm, parts, widen
from nullport_jax import _known
from nullport_jax._bias import bias_layout
from nullport_jax._conv import conv_spec
from nullport_jax._copies import MOVES, Copy, Term, Tracked, copied, moved, scaled, summed
from nullport_jax._known import Value
from nullport_jax._ragged import ragged_spec
from nullport_jax._register import REGISTERED
from nullport_jax._rules import RULES, is_derivative
from nullport_jax._sites import DenseSpec, NotLinear, Spec, dense_spec
from nullport_jax._view import View, whole

Views: TypeAlias = "list[Tracked | None]"
Tapped: TypeAlias = "dict[int, tuple[Any, ...]]"
"""Per product its output, its input, the norm of its output, the sizes of groups of its rows or
None, and its weight where its factors are needed or None; each with an axis per scan in front.
Under ``-1 - product`` its output with the bias added."""
Added: TypeAlias = "jax.Array | Callable[[jax.Array], jax.Array]"
"""What is added to the output of a site: an array, or a function of its input."""

INLINE = {"pjit": "jaxpr", "jit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
"""Calls that are evaluated in place, and the parameter that holds their jaxpr."""

REMAT = ("checkpoint", "remat", "remat2")

LOOKUPS = -(1 << 30)
"""Keys of tapped indices of lookups, from here downwards."""

REASONS = {
    "ragged_dot_general": "a product of two parameters (ragged_dot)",
    "gather": "gather, as in an embedding",
    "mul": "multiplied by a mask or a factor (mul)",
    "concatenate": "concatenated",
    "while": "used inside while",
    "shard_map": "used inside shard_map",
    "dynamic_slice": "indexed by a computed value (dynamic_slice)",
    "rev": "reversed (rev)",
    "dot_general": "a product of two parameters (dot_general)",
    "conv_general_dilated": "a convolution of two parameters (conv_general_dilated)",
}
CUSTOM_VJP = ("custom_vjp_call", "custom_vjp_call_jaxpr")
REASONS |= dict.fromkeys(CUSTOM_VJP, "custom_vjp, whose rule is another than the derivative")
REASONS["custom_jvp_call"] = "custom_jvp, whose rule is another than the derivative"

STOPS_JVP = ("custom_lin",)
"""What forward mode leaves behind where a custom reverse rule stops it."""

SITES: dict[str, Callable[..., Spec]] = {
    "dot_general": dense_spec,
    "ragged_dot_general": ragged_spec,
    "conv_general_dilated": conv_spec,
}


SUMS, SCALES = ("add", "add_any", "sub"), ("mul", "div", "select_n")
"""Operations that add to a weight, and that scale it by something that no weight determines."""


@dataclass(frozen=True)
class Tap:
    """What is tapped at an equation.

    Attributes:
        product: Index of the product.
        x: Operand that is its input.
        sizes: Operand that holds the sizes of groups of rows, or None.
        weight: Operand that is its weight, where the factors of that are needed, or None.
    """

    product: int
    x: int
    sizes: int | None = None
    weight: int | None = None


@dataclass
class Plan:
    """What to do at the equations of one jaxpr.

    Attributes:
        taps: What is tapped, by equation.
        adds: Site whose bias is added, by equation.
        lookups: Key of the indices of a lookup, by equation.
        inner: Plan of the jaxpr inside, or plans of several branches, by equation.
    """

    taps: dict[int, Tap] = field(default_factory=dict)
    adds: dict[int, int] = field(default_factory=dict)
    lookups: dict[int, int] = field(default_factory=dict)
    inner: dict[int, Any] = field(default_factory=dict)

    @property
    def plans(self) -> list[Plan]:
        """All plans of jaxprs inside."""
        found = []
        for plan in self.inner.values():
            found += plan if isinstance(plan, list) else [plan]
        return found

    @property
    def keys(self) -> list[int]:
        """All keys of what is tapped inside."""
        own = [tap.product for tap in self.taps.values()]
        inside = [key for plan in self.plans for key in plan.keys]
        own += [-1 - product for product in self.adds.values()]
        return [*own, *self.lookups.values(), *inside]

    @property
    def sites(self) -> list[int]:
        """All products inside."""
        return sorted(key for key in self.keys if key >= 0)


@dataclass(frozen=True)
class Share:
    """What a product is to one parameter: a site.

    Attributes:
        product: Index of the product.
        part: Which part of its weight the parameter is; None if it is the weight as it is.
        scaled: The parameter by which the weight's derivative gives the factors, or None.
        layout: How the weight is read as matrices.
        levels: The scans along which the weight is.
    """

    product: int
    part: Part | None = None
    scaled: int | None = None
    layout: Layout | None = None
    levels: tuple[int, ...] = ()


@dataclass
class Reading:
    """What was found in a jaxpr.

    Attributes:
        specs: Every product with a weight, in the order of the forward pass.
        shares: The sites: one per parameter of every product.
        lengths: Per product, the lengths of the scans around it.
        uses: Every use of every parameter.
        plan: Where the products are.
        lookups: By key, the table whose rows are looked up.
        opened: Whether a function with a rule of its own was opened.
    """

    specs: list[Spec] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    lengths: list[tuple[int, ...]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    lookups: dict[int, int] = field(default_factory=dict)
    opened: bool = False

    @property
    def tables(self) -> dict[int, list[int]]:
        """By table that is the weight of a product too, the keys of its lookups."""
        linear = {use.parameter for use in self.uses if use.site is not None}
        found: dict[int, list[int]] = {}
        for key, parameter in self.lookups.items():
            if parameter in linear:
                found.setdefault(parameter, []).append(key)
        return found

    @property
    def products(self) -> dict[int, tuple[int, Layout]]:
        """By weight, a product with it as it is, outside of scans, and where its elements live."""
        found = {}
        for use in self.uses:
            if use.role != "weight" or use.site is None or use.layout is None:
                continue
            share = self.shares[use.site]
            plain = share.part is None and isinstance(self.specs[share.product], DenseSpec)
            if plain and not self.lengths[share.product]:
                found[use.parameter] = (share.product, use.layout)
        return found

    def zeros(self) -> list[jax.Array]:
        """Return the perturbation of every site's output, an axis per scan in front."""
        return [
            jnp.zeros((*lengths, *spec.shape), spec.dtype)
            for spec, lengths in zip(self.specs, self.lengths, strict=True)
        ]


def read(closed: ClosedJaxpr, parameters: Sequence[int | None]) -> Reading:
    """Find the sites and uses in a jaxpr; ``parameters`` says which parameter an input is."""
    sizes = [prod(_aval(v).shape) for v in closed.jaxpr.invars]
    reader = _Reader(sizes)
    views: Views = [
        None if index is None else whole(index, _aval(v).shape, is_weight=True)
        for index, v in zip(parameters, closed.jaxpr.invars, strict=True)
    ]
    fixed = [index is None for index in parameters]
    plan, out = reader.walk(closed.jaxpr, views, Frame(fixed, consts=closed.consts))
    reader.other(out, "returned as the loss")
    reader.found.plan = plan
    reader.found.uses += _frozen(reader.found)
    return reader.found


def _frozen(found: Reading) -> list[Use]:
    """Return a use with a reason for every parameter that no gradient reaches."""
    reach: dict[int, bool] = {}
    for use in found.uses:
        stopped = use.site is not None and found.specs[found.shares[use.site].product].stopped
        reach[use.parameter] = reach.get(use.parameter, False) or not stopped
    return [
        Use(i, reason="stop_gradient alone, which freezes it") for i, on in reach.items() if not on
    ]


def without_dead_code(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Return a jaxpr without what its outputs do not depend on, also in jaxprs inside of it."""
    jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return ClosedJaxpr(jaxpr, closed.consts)


def _aval(v: Any) -> Any:
    """Return the shape and dtype of a variable."""
    return v.aval


def _same(eqn: JaxprEqn, view: View) -> Views:
    """Follow a conversion between floating-point types."""
    dtypes = (_aval(eqn.invars[0]).dtype, _aval(eqn.outvars[0]).dtype)
    return [view if all(jnp.issubdtype(d, jnp.floating) for d in dtypes) else None]


def _stopped(_: JaxprEqn, view: View) -> Views:
    return [replace(view, stopped=True) if view.is_weight else None]


def _reshape(eqn: JaxprEqn, view: View) -> Views:
    return [None if eqn.params["dimensions"] else view.reshaped(_aval(eqn.outvars[0]).shape)]


def _slice(eqn: JaxprEqn, view: View) -> Views:
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or [1] * len(starts)
    return [view.sliced(starts, _aval(eqn.outvars[0]).shape, steps)] if len(ends) else [view]


def _dynamic_slice(eqn: JaxprEqn, view: View) -> Views:
    """Follow a slice at known indices, which are clamped to the array."""
    at = [v for v in eqn.invars[1:] if isinstance(v, Literal)]
    if len(at) < len(eqn.invars) - 1:
        return [None]
    shape, sizes = _aval(eqn.invars[0]).shape, eqn.params["slice_sizes"]
    starts = [
        min(max(int(v.val), 0), n - size) for v, n, size in zip(at, shape, sizes, strict=True)
    ]
    return [view.sliced(starts, sizes, [1] * len(sizes))]


def _split(eqn: JaxprEqn, view: View) -> Views:
    axis, start = eqn.params["axis"], 0
    out: Views = []
    for part in eqn.outvars:
        shape = _aval(part).shape
        starts = [start if i == axis else 0 for i in range(len(shape))]
        out.append(view.sliced(starts, shape, [1] * len(shape)))
        start += shape[axis]
    return out


UNSEEN = ("debug_callback", "debug_print")
"""Operations that only show their operands."""

PASS = ("copy", "copy_p", "name", "optimization_barrier", "sharding_constraint", "device_put")
"""Operations that hand on their operands as they are."""

LAYOUT: dict[str, Callable[[JaxprEqn, View], Views]] = {
    "convert_element_type": _same,
    "stop_gradient": _stopped,
    "transpose": lambda eqn, view: [view.transposed(eqn.params["permutation"])],
    "reshape": _reshape,
    "squeeze": lambda eqn, view: [view.squeezed(eqn.params["dimensions"])],
    "broadcast_in_dim": lambda eqn, view: [
        view.broadcast(_aval(eqn.outvars[0]).shape, eqn.params["broadcast_dimensions"])
    ],
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
}
"""Operations whose outputs hold elements of their first operand."""


@dataclass
class Frame:
    """What is known of the inputs of a jaxpr besides the parameters among them.

    Attributes:
        fixed: Whether each depends neither on parameters nor on iterations.
        known: Their values, where they are known.
        consts: The constants of the jaxpr.
    """

    fixed: Sequence[bool]
    known: Sequence[Value | None] = ()
    consts: Sequence[Any] = ()


class _Reader:
    """Walks through jaxprs and follows parameters and outputs of sites."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Begin; elements are numbered through all parameters, which have these sizes."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._sizes = sizes
        self.found = Reading()
        self._lengths: list[int] = []
        self._starts = starts
        self._values: dict[Any, Value] = {}
        self._fixed: set[Any] = set()

    def walk(self, jaxpr: Jaxpr, views: Views, frame: Frame) -> tuple[Plan, Views]:
        """Return the plan of a jaxpr and the views of its outputs, given those of its inputs."""
        plan, live = Plan(), _live(jaxpr)
        reads = Counter(v for i in live for v in jaxpr.eqns[i].invars if not _literal(v))
        reads.update(v for v in jaxpr.outvars if not _literal(v))
        seen: dict[Any, Tracked] = {}
        self._enter(jaxpr, frame)

        def note(variables: Sequence[Any], views: Views) -> None:
            # A site's output that is used twice is not the output of one layer with a bias.
            seen.update(
                (variable, view)
                for variable, view in zip(variables, views, strict=True)
                if view is not None and (view.is_weight or reads[variable] == 1)
            )

        def look(variables: Sequence[Any]) -> Views:
            return [None if _literal(v) else seen.get(v) for v in variables]

        note(jaxpr.invars, views)
        for i in sorted(live):
            eqn = jaxpr.eqns[i]
            views = look(eqn.invars)
            if eqn.primitive.name in SITES or any(view is not None for view in views):
                note(eqn.outvars, self._equation(plan, i, eqn, views))
            self._learn(eqn)
        return plan, look(jaxpr.outvars)

    def _enter(self, jaxpr: Jaxpr, frame: Frame) -> None:
        """Begin a jaxpr, which may have been read before with other inputs."""
        known = [*frame.known, *([None] * len(jaxpr.invars))]
        pairs = list(zip(jaxpr.invars, frame.fixed, known, strict=False))
        pairs += [
            (v, True, _known.of(c)) for v, c in zip(jaxpr.constvars, frame.consts, strict=False)
        ]
        for v, fixed, value in pairs:
            self._fixed.discard(v)
            self._values.pop(v, None)
            if fixed:
                self._fixed.add(v)
            if value is not None:
                self._values[v] = value

    def _learn(self, eqn: JaxprEqn) -> None:
        """Note whether outputs of an equation are fixed, and their values where they are known."""
        fixed = all(map(self._is_fixed, eqn.invars)) and not eqn.effects
        values = _known.folded(eqn, list(map(self._value, eqn.invars)), _bind)
        for v, value in zip(eqn.outvars, values, strict=True):
            self._fixed.discard(v)
            self._values.pop(v, None)
            if fixed:
                self._fixed.add(v)
            if value is not None:
                self._values[v] = value

    def _is_fixed(self, v: Any) -> bool:
        return _literal(v) or v in self._fixed

    def _value(self, v: Any) -> Value | None:
        if _literal(v):
            return (None, [v.val])
        return self._values.get(v)

    def other(self, views: Views, reason: str) -> None:
        """Note that the parameters among ``views`` are used in a way that is no linear map."""
        for view in views:
            self.found.uses += [Use(index, reason=reason) for index in sorted(_parameters(view))]

    def _equation(self, plan: Plan, i: int, eqn: JaxprEqn, views: Views) -> Views:
        """Read one equation; return the views of its outputs."""
        name = eqn.primitive.name
        if eqn.params.get("name") in REGISTERED:
            return self._declared(plan, i, eqn, views)
        inner, out = self._call(eqn, views)
        if inner is not None:
            if any(p.keys for p in (inner if isinstance(inner, list) else [inner])):
                plan.inner[i] = inner
            return out
        if name in SITES:
            side = _weight_side(views)
            if side is not None:
                return self._site(plan, i, eqn, views, side)
        if name == "add" and self._bias(plan, i, views):
            return [None]
        if name in PASS:
            return views
        if name in UNSEEN:
            return [None] * len(eqn.outvars)
        if name in LAYOUT and isinstance(views[0], View):
            out = LAYOUT[name](eqn, views[0])
            if None not in out:
                return out
        followed = self._follow(eqn, views)
        if followed is not None:
            return followed
        if name == "gather" and self._lookup(plan, i, eqn, views[0]):
            return [None]
        self.other(views, REASONS.get(name, name))
        return [None] * len(eqn.outvars)

    def _lookup(self, plan: Plan, i: int, eqn: JaxprEqn, table: Tracked | None) -> bool:
        """Note rows that are taken from a table; return False if it is something else."""
        numbers, aval = eqn.params["dimension_numbers"], _aval(eqn.invars[0])
        rows = (
            len(aval.shape) == 2
            and tuple(numbers.start_index_map) == (0,)
            and tuple(numbers.collapsed_slice_dims) == (0,)
            and not getattr(numbers, "operand_batching_dims", ())
            and tuple(eqn.params["slice_sizes"]) == (1, aval.shape[1])
        )
        if not rows or not isinstance(table, View) or table.outer:
            return False
        own = whole(table.source, aval.shape, is_weight=True)
        if replace(table, stopped=False) != own or self._sizes[table.source] != prod(aval.shape):
            return False
        key = LOOKUPS - len(self.found.lookups)
        plan.lookups[i], self.found.lookups[key] = key, table.source
        layout, reason = matrix((), *aval.shape), REASONS["gather"]
        self.found.uses.append(Use(table.source, None, "lookup", layout, reason))
        return True

    def _follow(self, eqn: JaxprEqn, views: Views) -> Views | None:
        """Follow what only moves, scales or adds up elements of parameters."""
        name = eqn.primitive.name
        if name == "dynamic_slice" and isinstance(views[0], View):
            found = self._sliced(eqn, views[0])
            if found is not None:
                return [found]
        copies = [self._copy(view) for view in views]
        if not any(copies):
            return None
        if name in ("convert_element_type", "copy", "neg", "stop_gradient"):
            copy = copies[0]
            assert copy is not None  # it is the only operand
            if name == "stop_gradient":
                return [replace(copy, stopped=True)]
            floats = jnp.issubdtype(_aval(eqn.outvars[0]).dtype, jnp.floating)
            still = (False,) * len(_aval(eqn.invars[0]).shape)
            return [scaled(copy, still) if name == "neg" else copy] if floats else None
        if name in MOVES:
            values = [self._value(v) for v in eqn.invars]
            known = [None if v is None or v[0] is not None else v[1][0] for v in values]
            return moved(eqn, copies, known, _bind)  # type: ignore[return-value]
        return self._combined(eqn, views, copies)

    def _copy(self, view: Tracked | None) -> Copy | None:
        if view is None or not view.is_weight:
            return None
        return view if isinstance(view, Copy) else copied(view, self._starts[view.source])

    def _sliced(self, eqn: JaxprEqn, view: View) -> View | None:
        """Follow a slice whose start is known in every iteration of the innermost scan."""
        values = [self._value(v) for v in eqn.invars[1:]]
        given = [value for value in values if value is not None]
        levels = {level for level, _ in given if level is not None}
        if len(given) < len(values) or levels != {len(self._lengths) - 1}:
            return None
        sizes, length = eqn.params["slice_sizes"], self._lengths[-1]
        shape = _aval(eqn.invars[0]).shape
        cuts: list[View] = []
        for t in range(length):
            at = [int(value[t if len(value) > 1 else 0]) for _, value in given]
            starts = [min(max(a, 0), n - m) for a, n, m in zip(at, shape, sizes, strict=True)]
            cut = view.sliced(starts, sizes, [1] * len(sizes))
            if cut is None or (cuts and cut.axes != cuts[0].axes):
                return None
            cuts.append(cut)
        steps = {b.offset - a.offset for a, b in pairwise(cuts)}
        if len(steps) > 1 or min(steps, default=1) < 0:
            return None
        step = min(steps, default=0)
        level = len(self._lengths) - 1
        outer = ((level, ((length, step),)),) if step else ()
        return replace(cuts[0], outer=(*view.outer, *outer))

    def _combined(self, eqn: JaxprEqn, views: Views, copies: Sequence[Copy | None]) -> Views | None:
        """Follow products with something fixed, and sums with anything."""
        name, shape = eqn.primitive.name, _aval(eqn.outvars[0]).shape
        repeated = [isinstance(v, View) and _repeats(v) for v in views]
        whole_ones = [
            k
            for k, copy in enumerate(copies)
            if copy is not None and not repeated[k] and _aval(eqn.invars[k]).shape == shape
        ]
        if len(shape) < 2 or not whole_ones:
            return None
        rest = [k for k in range(len(eqn.invars)) if k not in whole_ones]
        first = copies[whole_ones[0]]
        assert first is not None  # it is one of the copies
        still = (False,) * len(shape)
        if name in SUMS:
            own = [(k, copy) for k in whole_ones if (copy := copies[k]) is not None]
            total = summed([scaled(c, still) if name == "sub" and k else c for k, c in own])
            if total is not None:
                self.other([views[k] for k in rest], name)
            return None if total is None else [total]
        scales = name in SCALES and (name != "div" or whole_ones == [0])
        if name == "select_n":
            scales, rest = 0 not in whole_ones, [0]
        if len(whole_ones) > 1 or not scales or any(views[k] is not None for k in rest):
            return None
        if not all(self._is_fixed(eqn.invars[k]) for k in rest):
            return None
        along = [False] * len(shape)
        for k in rest:
            own = _aval(eqn.invars[k]).shape
            along = [a or (bool(own) and own[d] > 1) for d, a in enumerate(along)]
        return [scaled(first, along)]

    def _call(self, eqn: JaxprEqn, views: Views) -> tuple[Any, Views]:
        """Walk through the jaxpr of a call that can be opened."""
        name = eqn.primitive.name
        if name in INLINE or name in REMAT:
            jaxpr, consts = _opened(eqn.params[INLINE.get(name, "jaxpr")])
            return self.walk(jaxpr, views, self._frame(eqn.invars, consts))
        if name in RULES and any(view is not None and view.is_weight for view in views):
            return self._ruled(eqn, views)
        if name == "cond":
            return self._branches(eqn, views)
        return self._scan(eqn, views) if name == "scan" else (None, [])

    def _ruled(self, eqn: JaxprEqn, views: Views) -> tuple[Any, Views]:
        """Walk through a function with a rule of its own, if that is its derivative."""
        values = list(map(self._value, eqn.invars))
        known = [None if v is None or v[0] is not None else v[1][0] for v in values]
        if not is_derivative(eqn, _bind, known):
            return None, []
        self.found.opened = True
        jaxpr, consts = _opened(eqn.params[RULES[eqn.primitive.name]])
        return self.walk(jaxpr, views, self._frame(eqn.invars, consts))

    def _frame(self, operands: Sequence[Any], consts: Sequence[Any]) -> Frame:
        fixed = list(map(self._is_fixed, operands))
        return Frame(fixed, list(map(self._value, operands)), consts)

    def _branches(self, eqn: JaxprEqn, views: Views) -> tuple[list[Plan], Views]:
        """Walk through all branches: what is not taken gets no inputs."""
        self.other(views[:1], "chooses a branch of cond")
        views = [v if v is not None and v.is_weight else None for v in views]
        plans = []
        for branch in eqn.params["branches"]:
            jaxpr, consts = _opened(branch)
            plan, out = self.walk(jaxpr, views[1:], self._frame(eqn.invars[1:], consts))
            self.other(out, "returned from a branch of cond")
            plans.append(plan)
        return plans, [None] * len(eqn.outvars)

    def _scan(self, eqn: JaxprEqn, views: Views) -> tuple[Plan, Views]:
        """Walk through the body of a scan: one level deeper."""
        start, stop = _scan_parts(eqn)
        self.other(views[start:stop], "carried through a scan")
        level, length = len(self._lengths), int(eqn.params["length"])
        views = [v if v is not None and v.is_weight else None for v in views]
        views = [
            *views[:start],
            *([None] * (stop - start)),
            *(None if v is None else v.taken(level) for v in views[stop:]),
        ]
        jaxpr, consts = _opened(eqn.params["jaxpr"])
        outside = self._frame(eqn.invars, consts)
        fixed = [k < start and f for k, f in enumerate(outside.fixed)]
        carries: list[Value | None] = [None] * (stop - start)
        if not eqn.params["reverse"]:
            given = list(outside.known[start:stop])
            carries = _known.counters(jaxpr, start, stop - start, length, given, level)
        scanned = [
            None if value is None or value[0] is not None else (level, list(value[1][0]))
            for value in outside.known[stop:]
        ]
        known = [*outside.known[:start], *carries, *scanned]
        self._lengths.append(length)
        plan, out = self.walk(jaxpr, views, Frame(fixed, known, consts))
        self._lengths.pop()
        self.other(out, "returned from a scan")
        return plan, [None] * len(out)

    def _site(self, plan: Plan, i: int, eqn: JaxprEqn, views: Views, side: int) -> Views:
        """Note a product with one weight."""
        name, weight, x = eqn.primitive.name, views[side], _aval(eqn.invars[1 - side])
        assert weight is not None  # it has been chosen
        self.other([v for k, v in enumerate(views) if k != side], REASONS.get(name, name))
        out = _aval(eqn.outvars[0])
        try:
            own = weight.view() if isinstance(weight, Copy) else weight
            if isinstance(own, View) and _repeats(own) and isinstance(weight, View):
                weight = copied(weight, self._starts[weight.source]) or weight
                own = weight.view() if isinstance(weight, Copy) else weight
            spec = SITES[name](own, side, eqn.params, len(x.shape), out, self._lengths)
            product = len(self.found.specs)
            shares, uses = self._shares(product, spec, weight, prod(out.shape))
        except (NotLinear, NotSeparable) as reason:
            self.other([weight], str(reason))
            return [None]
        needed = side if any(share.scaled is not None for share in shares) else None
        sizes = 2 if name == "ragged_dot_general" else None
        plan.taps[i] = Tap(product, 1 - side, sizes, needed)
        self.found.specs.append(spec)
        self.found.lengths.append(tuple(self._lengths))
        for share, (parameter, layout) in zip(shares, uses, strict=True):
            self.found.uses.append(Use(parameter, len(self.found.shares), "weight", layout))
            self.found.shares.append(share)
        return [whole(product, out.shape, is_weight=False)]

    def _declared(self, plan: Plan, i: int, eqn: JaxprEqn, views: Views) -> Views:
        """Note a registered function."""
        said, out = REGISTERED[eqn.params["name"]], _aval(eqn.outvars[0])
        weight, bias = views[said.weight], None if said.bias is None else views[said.bias]
        self.other([v for v in views if v is not weight and v is not bias], "a registered function")
        try:
            if not isinstance(weight, View) or len(eqn.outvars) != 1:
                msg = "a registered function, with a weight that is made of others"
                raise NotLinear(msg)
            x = _aval(eqn.invars[said.input])
            spec = said.spec(weight, len(x.shape), out, self._lengths)
        except NotLinear as reason:
            self.other([weight, bias], str(reason))
            return [None] * len(eqn.outvars)
        product, site = len(self.found.specs), len(self.found.shares)
        plan.taps[i] = Tap(product, said.input)
        self.found.specs.append(spec)
        self.found.lengths.append(tuple(self._lengths))
        self.found.shares.append(Share(product))
        self.found.uses.append(Use(weight.source, site, "weight", spec.layout))
        output = whole(product, out.shape, is_weight=False)
        if bias is None:
            return [output]
        layout = None
        if isinstance(bias, View):
            ends = range(len(out.shape) - len(bias.axes), len(out.shape))
            layout = bias_layout(spec, output, bias.broadcast(out.shape, ends))
        if isinstance(bias, View) and layout is not None:
            self.found.uses.append(Use(bias.source, site, "bias", layout))
        else:
            self.other([bias], "added in a registered function")
        return [None]

    def _shares(
        self, product: int, spec: Spec, weight: Tracked, rows: int
    ) -> tuple[list[Share], list[tuple[int, Layout]]]:
        """Return the sites of a product, and parameter and layout of each."""
        if isinstance(weight, View):
            return [Share(product)], [(weight.source, spec.layout)]
        shares: list[Share] = []
        where, shape = spec.layout.elements(), spec.layout.shape
        cut = (-1, *shape[-2:])
        for term in weight.terms:
            factors = [] if term.varies is None else [self._pattern(term, where, cut, weight)]
            numbers = term.numbers.ravel()[where].reshape(cut)
            for part in parts(numbers - 1, self._starts, factors, rows):
                owner = None if term.varies is None else part.parameter
                shares.append(Share(product, part, owner, spec.layout, weight.levels))
        owners = [s.scaled for s in shares if s.scaled is not None]
        if len({s.part.parameter for s in shares if s.part}) < len(shares) and owners:
            msg = "scaled and added to itself"  # the derivative gives the sum of both factors
            raise NotSeparable(msg)
        return shares, [(s.part.parameter, s.part.layout) for s in shares if s.part is not None]

    @staticmethod
    def _pattern(term: Term, where: Any, cut: tuple[int, ...], weight: Copy) -> Any:
        """Return ones, with an axis of length 1 wherever a factor does not vary."""
        shape = term.numbers.shape
        lead = len(weight.levels)
        varies = (*((True,) * lead), *(term.varies or ()))
        index = np.zeros(shape, np.int64)
        for axis, (n, own) in enumerate(zip(shape, varies, strict=True)):
            along = np.arange(n) if own else np.zeros(n, np.int64)
            index = index * n + along.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        pattern = index.ravel()[where].reshape(cut)
        sizes = [
            1 if (pattern == pattern.take([0], axis)).all() else pattern.shape[axis]
            for axis in range(3)
        ]
        return np.ones(sizes)

    def _bias(self, plan: Plan, i: int, views: Views) -> bool:
        """Note a parameter added to the output of a site; return False if that is not it."""
        a, b = views
        if a is None or b is None or a.is_weight == b.is_weight:
            return False
        output, bias = (b, a) if a.is_weight else (a, b)
        assert isinstance(output, View)  # copies are weights
        if isinstance(bias, Copy) and (bias.scaled or len(bias.terms) > 1):
            return False
        spec = self.found.specs[output.source]
        own = bias.view() if isinstance(bias, Copy) else bias
        layout = None if own.stopped or spec.stopped else bias_layout(spec, output, own)
        if layout is None:
            return False
        sites = [k for k, s in enumerate(self.found.shares) if s.product == output.source]
        found = [self._bias_of(self.found.shares[k], bias, layout) for k in sites]
        if not any(found):
            return False
        plan.adds[i] = output.source
        for k, pair in zip(sites, found, strict=True):
            if pair is not None:
                self.found.uses.append(Use(pair[0], k, "bias", pair[1]))
        left = _parameters(bias) - {pair[0] for pair in found if pair is not None}
        self.found.uses += [Use(p, reason="added to a product") for p in sorted(left)]
        return True

    def _bias_of(self, share: Share, bias: Tracked, layout: Layout) -> tuple[int, Layout] | None:
        """Return parameter and layout of the bias that belongs to a site."""
        if share.part is None and isinstance(bias, View):
            return bias.source, layout
        if isinstance(bias, View):
            numbers = layout.elements() + self._starts[bias.source]
        else:
            numbers = bias.terms[0].numbers.ravel()[layout.elements()] - 1
        part = share.part or Part.whole(0, self.found.specs[share.product].layout)
        return part.bias(numbers.reshape(-1, layout.shape[-1]), self._starts)


def _parameters(view: Tracked | None) -> frozenset[int]:
    """Return the parameters that an array is made of."""
    if view is None or not view.is_weight:
        return frozenset()
    return view.parameters if isinstance(view, Copy) else frozenset({view.source})


def _repeats(view: View) -> bool:
    """Tell whether an array repeats elements along an axis."""
    return any(stride == 0 for axis in view.axes for _, stride in axis)


def _weight_side(views: Views) -> int | None:
    """Return which operand of a product is the weight: a parameter rather than a copy."""
    weights = [k for k, v in enumerate(views[:2]) if v is not None and v.is_weight]
    plain = [k for k in weights if isinstance(views[k], View)]
    for some in (weights, plain):
        if len(some) == 1:
            return some[0]
    return None


def _literal(v: Any) -> bool:
    return isinstance(v, Literal)


def _live(jaxpr: Jaxpr) -> set[int]:
    """Return the equations that the outputs depend on, or that have effects."""
    needed = {v for v in jaxpr.outvars if not _literal(v)}
    live = set()
    for i in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[i]
        if eqn.effects or any(v in needed for v in eqn.outvars):
            live.add(i)
            needed.update(v for v in eqn.invars if not _literal(v))
    return live


def _opened(inner: Any) -> tuple[Jaxpr, list[Any]]:
    """Return a jaxpr that may be closed, and its constants."""
    return (inner.jaxpr, list(inner.consts)) if isinstance(inner, ClosedJaxpr) else (inner, [])


def holds(jaxpr: Jaxpr, names: Sequence[str]) -> bool:
    """Tell whether a jaxpr, or one inside it, has a primitive of these names."""
    for eqn in jaxpr.eqns:
        inner = jax.tree_util.tree_leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
        if eqn.primitive.name in names or any(
            holds(_opened(value)[0], names) for value in inner if _is_jaxpr(value)
        ):
            return True
    return False


def reached(closed: ClosedJaxpr) -> list[int]:
    """Return the outputs of a jaxpr that depend on any of its inputs."""
    count = len(closed.jaxpr.outvars)
    wanted = [[i == k for i in range(count)] for k in range(count)]
    return [k for k, one in enumerate(wanted) if any(dce_jaxpr(closed.jaxpr, one)[1])]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _scan_parts(eqn: JaxprEqn) -> tuple[int, int]:
    """Return where the carry of a scan and what it scans along begin."""
    consts = int(eqn.params["num_consts"])
    return consts, consts + int(eqn.params["num_carry"])


def evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    plan: Plan,
    args: Sequence[Any],
    eps: Mapping[int, Added],
    known: Mapping[int, jax.Array] | None = None,
) -> tuple[list[Any], Tapped]:
    """Evaluate a jaxpr with ``eps`` added to the output of every site.

    Args:
        jaxpr: The jaxpr.
        consts: Its constants.
        plan: Where its sites are.
        args: Its inputs.
        eps: What is added, by site; a function only outside of scans.
        known: Outputs of all sites, with and without bias, where they are known, which saves the
            products; derivatives are those of the products. Without the bias they are of no
            account where one is added: a move in the null space changes weight and bias together.

    Returns:
        The outputs, and what was tapped at every site.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    tapped: Tapped = {}

    def get(v: Any) -> Any:
        return v.val if _literal(v) else values[v]

    for i in sorted(_live(jaxpr)):
        eqn = jaxpr.eqns[i]
        operands = [get(v) for v in eqn.invars]
        if i in plan.inner:
            inner = plan.inner[i]
            plans = inner if isinstance(inner, list) else [inner]
            keys = [key for p in plans for key in p.keys]
            some = None if known is None else {key: known[key] for key in keys}
            of = {key: eps[key] for key in keys if key >= 0}
            out, more = _evaluate_call(eqn, inner, operands, of, some)
            tapped |= more
        elif i in plan.lookups:
            out, tapped[plan.lookups[i]] = _bind(eqn, operands), (operands[1],)
        elif i in plan.adds:
            key = -1 - plan.adds[i]
            y = _bind(eqn, operands)[0] if known is None else _with(eqn, known[key], operands)
            out, tapped[key] = [y], (y,)
        elif i in plan.taps:
            tap = plan.taps[i]
            site, x = tap.product, operands[tap.x]
            y = _bind(eqn, operands)[0] if known is None else _with(eqn, known[site], operands)
            added = eps[site]
            out = [y + (added(x) if callable(added) else added)]
            extra = [None if k is None else operands[k] for k in (tap.sizes, tap.weight)]
            tapped[site] = (y, x, norm(widen(y)), *extra)
        else:
            out = _bind(eqn, operands)
        values |= dict(zip(eqn.outvars, out, strict=True))
    return [get(v) for v in jaxpr.outvars], tapped


def _with(eqn: JaxprEqn, output: jax.Array, operands: Sequence[Any]) -> jax.Array:
    """Return the known output of an equation, with the derivatives of the equation."""

    @jax.custom_jvp
    def product(output: jax.Array, *_: Any) -> jax.Array:
        return output

    def rule(primals: Any, tangents: Any) -> Any:
        output, *operands = primals
        moving = [i for i, t in enumerate(tangents[1:]) if not isinstance(t, SymbolicZero)]

        def of(*some: Any) -> Any:
            given = dict(zip(moving, some, strict=True))
            return _bind(eqn, [given.get(i, a) for i, a in enumerate(operands)])[0]

        _, tangent = jax.jvp(of, [operands[i] for i in moving], [tangents[1 + i] for i in moving])
        return product(output, *operands), tangent

    product.defjvp(rule, symbolic_zeros=True)
    found: jax.Array = product(output, *operands)
    return found


def _evaluate_call(
    eqn: JaxprEqn,
    plan: Any,
    operands: Sequence[Any],
    eps: Mapping[int, Added],
    known: Mapping[int, jax.Array] | None,
) -> tuple[list[Any], Tapped]:
    """Evaluate a call that holds a site."""
    name = eqn.primitive.name
    if name == "scan":
        return _evaluate_scan(eqn, plan, operands, eps, known)
    if name == "cond":
        return _evaluate_branches(eqn, plan, operands, eps, known)
    jaxpr, consts = _opened(eqn.params[(INLINE | RULES).get(name, "jaxpr")])

    functions = {site: added for site, added in eps.items() if callable(added)}
    eps = {site: added for site, added in eps.items() if not callable(added)}

    def run(operands: Sequence[Any], eps: Any, known: Any) -> tuple[list[Any], Tapped]:
        return evaluate(jaxpr, consts, plan, operands, eps | functions, known)

    if name in REMAT:
        options = {"prevent_cse": eqn.params["prevent_cse"], "policy": eqn.params["policy"]}
        found: tuple[list[Any], Tapped] = jax.checkpoint(run, **options)(operands, eps, known)
        return found
    return run(operands, eps, known)


def _evaluate_scan(
    eqn: JaxprEqn,
    plan: Plan,
    operands: Sequence[Any],
    eps: Mapping[int, Added],
    known: Mapping[int, jax.Array] | None,
) -> tuple[list[Any], Tapped]:
    """Evaluate a scan: ``eps`` and ``known`` are scanned along, what is tapped is stacked."""
    jaxpr, consts = _opened(eqn.params["jaxpr"])
    start, stop = _scan_parts(eqn)
    fixed, carries = list(operands[:start]), stop - start

    def body(carry: list[Any], scanned: Any) -> tuple[list[Any], Any]:
        xs, eps, known = scanned
        out, tapped = evaluate(jaxpr, consts, plan, [*fixed, *carry, *xs], eps, known)
        return out[:carries], (out[carries:], tapped)

    names = ("length", "reverse", "unroll", "_split_transpose")
    options = {name: eqn.params[name] for name in names if name in eqn.params}
    init, xs = list(operands[start:stop]), list(operands[stop:])
    carry, (ys, tapped) = jax.lax.scan(body, init, (xs, eps, known), **options)
    return [*carry, *ys], tapped


def _evaluate_branches(
    eqn: JaxprEqn,
    plans: Sequence[Plan],
    operands: Sequence[Any],
    eps: Mapping[int, Added],
    known: Mapping[int, jax.Array] | None,
) -> tuple[list[Any], Tapped]:
    """Evaluate a cond: what is tapped in branches that are not taken is 0."""

    def branch(closed: ClosedJaxpr, plan: Plan) -> Callable[..., tuple[list[Any], Tapped]]:
        def run(operands: Sequence[Any]) -> tuple[list[Any], Tapped]:
            own = {k: e for k, e in eps.items() if k in plan.keys}
            return evaluate(closed.jaxpr, closed.consts, plan, operands, own, known)

        return run

    index, *rest = operands
    runs = [branch(*pair) for pair in zip(eqn.params["branches"], plans, strict=True)]
    shapes: dict[int, Any] = {}
    for run in runs:
        shapes |= jax.eval_shape(run, rest)[1]

    def padded(run: Callable[..., tuple[list[Any], Tapped]]) -> Callable[..., Any]:
        def full(operands: Sequence[Any]) -> tuple[list[Any], Tapped]:
            out, tapped = run(operands)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return out, zeros | tapped

        return full

    found: tuple[list[Any], Tapped] = jax.lax.switch(index, [padded(run) for run in runs], rest)
    return found


def _bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation as it is."""
    primitive: Any = eqn.primitive
    found = primitive.get_bind_params(eqn.params)
    # Older versions of JAX return the functions apart from the parameters.
    functions, params = found if isinstance(found, tuple) else ((), found)
    with eqn.ctx.manager:
        out = primitive.bind(*functions, *operands, **params)
    return list(out) if primitive.multiple_results else [out]
