"""Watching a loss through its jaxpr; everything that touches the inside of a jaxpr is here.

First the jaxpr is read: parameters are followed through operations that only change layout, and
into the jaxprs of jit, remat and scan. Every product or convolution with exactly one parameter is a
site; any other use of a parameter is noted with its reason. Then it is evaluated with a zero
``eps`` added to every site's output: the cotangent of a site is the gradient with respect to its
``eps``, and its input is handed out beside the loss. Only jaxprs that hold a site are opened, so
custom derivative rules stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from nullport.network import Layout, Use, norm, widen
from nullport_jax._bias import bias_layout
from nullport_jax._conv import conv_spec
from nullport_jax._sites import DenseSpec, NotLinear, Spec, dense_spec
from nullport_jax._view import View, whole

Views: TypeAlias = "list[View | None]"
Tapped: TypeAlias = "dict[int, tuple[jax.Array, ...]]"
"""Per site its output, its input and the norm of its output, each with an axis per scan in front;
under ``-1 - site`` its output with the bias added."""
Added: TypeAlias = "jax.Array | Callable[[jax.Array], jax.Array]"
"""What is added to the output of a site: an array, or a function of its input."""

INLINE = {"pjit": "jaxpr", "jit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
"""Calls that are evaluated in place, and the parameter that holds their jaxpr."""

REMAT = ("checkpoint", "remat", "remat2")

REASONS = {
    "gather": "gather, as in an embedding",
    "mul": "multiplied by a mask or a factor (mul)",
    "concatenate": "concatenated",
    "cond": "used inside cond",
    "while": "used inside while",
    "shard_map": "used inside shard_map",
    "dynamic_slice": "indexed by a computed value (dynamic_slice)",
    "rev": "reversed (rev)",
    "dot_general": "a product of two parameters (dot_general)",
    "conv_general_dilated": "a convolution of two parameters (conv_general_dilated)",
}
CUSTOM_VJP = ("custom_vjp_call", "custom_vjp_call_jaxpr")
REASONS |= dict.fromkeys(CUSTOM_VJP, "used inside custom_vjp, whose rule is kept")
REASONS["custom_jvp_call"] = "used inside custom_jvp, whose rule is kept"

STOPS_JVP = ("custom_lin",)
"""What forward mode leaves behind where a custom reverse rule stops it."""

SITES: dict[str, Callable[..., Spec]] = {
    "dot_general": dense_spec,
    "conv_general_dilated": conv_spec,
}


@dataclass
class Plan:
    """What to do at the equations of one jaxpr.

    Attributes:
        taps: Site and operand that is its input, by equation.
        adds: Site whose bias is added, by equation.
        inner: Plans of the jaxprs inside, by equation.
    """

    taps: dict[int, tuple[int, int]] = field(default_factory=dict)
    adds: dict[int, int] = field(default_factory=dict)
    inner: dict[int, Plan] = field(default_factory=dict)

    @property
    def sites_here(self) -> list[int]:
        """The sites in this jaxpr itself."""
        return [site for site, _ in self.taps.values()]

    @property
    def keys(self) -> list[int]:
        """All keys of what is tapped inside."""
        inside = [key for plan in self.inner.values() for key in plan.keys]
        return [*self.sites_here, *(-1 - site for site in self.adds.values()), *inside]

    @property
    def sites(self) -> list[int]:
        """All sites inside."""
        inside = [site for plan in self.inner.values() for site in plan.sites]
        return sorted(self.sites_here + inside)


@dataclass
class Reading:
    """What was found in a jaxpr.

    Attributes:
        specs: Every site, in the order of the forward pass.
        lengths: Per site, the lengths of the scans around it.
        uses: Every use of every parameter.
        plan: Where the sites are.
    """

    specs: list[Spec] = field(default_factory=list)
    lengths: list[tuple[int, ...]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)

    @property
    def products(self) -> dict[int, tuple[int, Layout]]:
        """By weight, a plain product with it outside of scans, and where its elements live."""
        return {
            use.parameter: (use.site, use.layout)
            for use in self.uses
            if use.role == "weight" and use.site is not None and use.layout is not None
            if isinstance(self.specs[use.site], DenseSpec) and not self.lengths[use.site]
        }

    def zeros(self) -> list[jax.Array]:
        """Return the perturbation of every site's output, an axis per scan in front."""
        return [
            jnp.zeros((*lengths, *spec.shape), spec.dtype)
            for spec, lengths in zip(self.specs, self.lengths, strict=True)
        ]


def read(closed: ClosedJaxpr, parameters: Sequence[int | None]) -> Reading:
    """Find the sites and uses in a jaxpr; ``parameters`` says which parameter an input is."""
    reader = _Reader()
    views: Views = [
        None if index is None else whole(index, _aval(v).shape, is_weight=True)
        for index, v in zip(parameters, closed.jaxpr.invars, strict=True)
    ]
    plan, out = reader.walk(closed.jaxpr, views)
    reader.other(out, "returned as the loss")
    reader.found.plan = plan
    return reader.found


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
    axis, start, out = eqn.params["axis"], 0, []
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


class _Reader:
    """Walks through jaxprs and follows parameters and outputs of sites."""

    def __init__(self) -> None:
        self.found = Reading()
        self._lengths: list[int] = []

    def walk(self, jaxpr: Jaxpr, views: Views) -> tuple[Plan, Views]:
        """Return the plan of a jaxpr and the views of its outputs, given those of its inputs."""
        plan, live = Plan(), _live(jaxpr)
        reads = Counter(v for i in live for v in jaxpr.eqns[i].invars if not _literal(v))
        reads.update(v for v in jaxpr.outvars if not _literal(v))
        seen: dict[Any, View] = {}

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
        return plan, look(jaxpr.outvars)

    def other(self, views: Views, reason: str) -> None:
        """Note that the parameters among ``views`` are used in a way that is no linear map."""
        self.found.uses += [
            Use(view.source, reason=reason) for view in views if view is not None and view.is_weight
        ]

    def _equation(self, plan: Plan, i: int, eqn: JaxprEqn, views: Views) -> Views:
        """Read one equation; return the views of its outputs."""
        name = eqn.primitive.name
        inner, out = self._call(eqn, views)
        if inner is not None:
            if inner.keys:
                plan.inner[i] = inner
            return out
        if name in SITES and sum(v is not None and v.is_weight for v in views) == 1:
            return self._site(plan, i, eqn, views)
        if name == "add" and self._bias(plan, i, views):
            return [None]
        if name in PASS:
            return views
        if name in UNSEEN:
            return [None] * len(eqn.outvars)
        if name in LAYOUT and views[0] is not None:
            out = LAYOUT[name](eqn, views[0])
            if None not in out:
                return out
        self.other(views, REASONS.get(name, name))
        return [None] * len(eqn.outvars)

    def _call(self, eqn: JaxprEqn, views: Views) -> tuple[Plan | None, Views]:
        """Walk through the jaxpr of a call that can be opened."""
        name = eqn.primitive.name
        if name in INLINE or name in REMAT:
            jaxpr, _ = _opened(eqn.params[INLINE.get(name, "jaxpr")])
            return self.walk(jaxpr, views)
        return self._scan(eqn, views) if name == "scan" else (None, [])

    def _scan(self, eqn: JaxprEqn, views: Views) -> tuple[Plan, Views]:
        """Walk through the body of a scan: one level deeper."""
        consts, carry = _scan_parts(eqn)
        self.other(views[consts:carry], "carried through a scan")
        level = len(self._lengths)
        views = [v if v is not None and v.is_weight else None for v in views]
        views = [
            *views[:consts],
            *([None] * (carry - consts)),
            *(None if v is None else v.taken(level) for v in views[carry:]),
        ]
        self._lengths.append(int(eqn.params["length"]))
        plan, out = self.walk(_opened(eqn.params["jaxpr"])[0], views)
        self._lengths.pop()
        self.other(out, "returned from a scan")
        return plan, [None] * len(out)

    def _site(self, plan: Plan, i: int, eqn: JaxprEqn, views: Views) -> Views:
        """Note a product with one parameter."""
        side = next(k for k, v in enumerate(views) if v is not None and v.is_weight)
        weight, x, out = views[side], _aval(eqn.invars[1 - side]), _aval(eqn.outvars[0])
        assert weight is not None
        try:
            make = SITES[eqn.primitive.name]
            spec = make(weight, side, eqn.params, len(x.shape), out, self._lengths)
        except NotLinear as reason:
            self.other([weight], str(reason))
            return [None]
        index = len(self.found.specs)
        plan.taps[i] = (index, 1 - side)
        self.found.specs.append(spec)
        self.found.lengths.append(tuple(self._lengths))
        self.found.uses.append(Use(weight.source, index, "weight", spec.layout))
        return [whole(index, out.shape, is_weight=False)]

    def _bias(self, plan: Plan, i: int, views: Views) -> bool:
        """Note a parameter added to the output of a site; return False if that is not it."""
        a, b = views
        if a is None or b is None or a.is_weight == b.is_weight:
            return False
        output, bias = (b, a) if a.is_weight else (a, b)
        spec = self.found.specs[output.source]
        layout = None if bias.stopped or spec.stopped else bias_layout(spec, output, bias)
        if layout is None:
            return False
        plan.adds[i] = output.source
        self.found.uses.append(Use(bias.source, output.source, "bias", layout))
        return True


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
            some = None if known is None else {key: known[key] for key in inner.keys}
            of = {site: eps[site] for site in inner.sites}
            out, more = _evaluate_call(eqn, inner, operands, of, some)
            tapped |= more
        elif i in plan.adds:
            key = -1 - plan.adds[i]
            y = _bind(eqn, operands)[0] if known is None else _known(eqn, known[key], operands)
            out, tapped[key] = [y], (y,)
        elif i in plan.taps:
            site, x = plan.taps[i]
            y = _bind(eqn, operands)[0] if known is None else _known(eqn, known[site], operands)
            added = eps[site]
            out = [y + (added(operands[x]) if callable(added) else added)]
            tapped[site] = (y, operands[x], norm(widen(y)))
        else:
            out = _bind(eqn, operands)
        values |= dict(zip(eqn.outvars, out, strict=True))
    return [get(v) for v in jaxpr.outvars], tapped


def _known(eqn: JaxprEqn, output: jax.Array, operands: Sequence[Any]) -> jax.Array:
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
    plan: Plan,
    operands: Sequence[Any],
    eps: Mapping[int, Added],
    known: Mapping[int, jax.Array] | None,
) -> tuple[list[Any], Tapped]:
    """Evaluate a call that holds a site."""
    name = eqn.primitive.name
    if name == "scan":
        return _evaluate_scan(eqn, plan, operands, eps, known)
    jaxpr, consts = _opened(eqn.params[INLINE.get(name, "jaxpr")])

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


def _bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation as it is."""
    primitive: Any = eqn.primitive
    found = primitive.get_bind_params(eqn.params)
    # Older versions of JAX return the functions apart from the parameters.
    functions, params = found if isinstance(found, tuple) else ((), found)
    with eqn.ctx.manager:
        out = primitive.bind(*functions, *operands, **params)
    return list(out) if primitive.multiple_results else [out]
