"""The capture rule: which weights may be teleported, and which inputs each must respect.

A weight is cut into *blocks*: sets of elements used as one matrix (out, in), or a stack of them.
A block may move only if every use of its elements in the loss is a recognised linear map; it must
be null for the union of the inputs of all those uses. Uses of its transpose, and rows that are
looked up, pin some of its outputs. Any other use excludes it, with a reason.
A :class:`Layer` is a block with what is measured of it before anything moves: above all whether
the uses that were seen account for its whole gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, reduce
from math import prod
from operator import or_

from nullport import _arrays as ar
from nullport._arrays import Array, Collective, LowRank
from nullport._config import TeleportConfig
from nullport._nullspace import is_tight
from nullport._sites import DenseSite, Layout
from nullport.network import MISMATCH, LayerGraph, Linearization, Parameter, Use, factored

Norms = Callable[[int], Array]
"""The norm of each parameter, 0-d, computed when it is first asked for."""


@dataclass(frozen=True)
class Block:
    """A matrix, or stack of matrices, of weights that share their inputs.

    Attributes:
        name: Name for the report.
        parameter: Index of the weight.
        layout: Where its elements live.
        sites: Indices of the sites that use it.
        bias: Index and layout of the bias that moves with it, or None.
        transposed: Indices of the sites that use its transpose.
        held: Which of its rows are looked up and stay, 0-d bool each (out,), or None.
    """

    name: str
    parameter: int
    layout: Layout
    sites: tuple[int, ...]
    bias: tuple[int, Layout] | None = None
    transposed: tuple[int, ...] = ()
    held: Array | None = field(default=None, compare=False)

    @property
    def every(self) -> tuple[int, ...]:
        """Indices of all sites that use it or its transpose."""
        return tuple(sorted({*self.sites, *self.transposed}))

    @property
    def pinned(self) -> bool:
        """Whether some of its outputs have to stay, whatever its inputs are."""
        return bool(self.transposed) or self.held is not None

    @property
    def features(self) -> int:
        """Inputs of the matrix, the constant input of a bias included."""
        return prod(size for size, _ in self.layout.inp) + (self.bias is not None)

    @property
    def parts(self) -> list[tuple[int, Layout]]:
        """Index and layout of the weight, then of the bias that moves with it."""
        weight = (self.parameter, self.layout)
        return [weight] if self.bias is None else [weight, self.bias]


def capture(
    parameters: Sequence[Parameter], uses: Sequence[Use], config: TeleportConfig
) -> tuple[list[Block], dict[str, str]]:
    """Apply the capture rule to every use of every parameter.

    Returns:
        The blocks that may move; and by name, the weights that must not, and why. Parameters that
        are no weight of any linear map are listed too, biases of linear maps excepted.
    """
    own: dict[int, list[Use]] = defaultdict(list)
    for use in uses:
        own[use.parameter].append(use)
    blocks: list[Block] = []
    excluded: dict[str, str] = {}
    for index, parameter in enumerate(parameters):
        reason = _why_not(parameter, own[index], config)
        if reason is None:
            groups = _matrices(own[index])
            for i, (layout, sites, transposed) in enumerate(groups):
                part = f"[part {i + 1}/{len(groups)}]" if len(groups) > 1 else ""
                held = _held(own[index], layout)
                name = parameter.name + part
                blocks.append(Block(name, index, layout, sites, None, transposed, held))
        elif reason:
            excluded[parameter.name] = reason
    if config.bias:
        movable = {i: parameter.name for i, parameter in enumerate(parameters) if parameter.movable}
        free = {i: own[i] for i, name in movable.items() if not _matches(name, config.exclude)}
        blocks = [_with_bias(block, free) for block in blocks]
    return blocks, excluded


def _why_not(parameter: Parameter, uses: Sequence[Use], config: TeleportConfig) -> str | None:
    """Return why no part of this parameter may move; empty for a bias, None if it may."""
    if not parameter.movable:
        return parameter.reason
    if not uses:
        return "its use is not visible (none, or only in code that hides it)"
    if all(use.role == "bias" for use in uses):
        return ""
    others = sorted({use.reason for use in uses if use.layout is None})
    if others:
        linear = any(use.layout is not None and use.role == "weight" for use in uses)
        return ("also used by " if linear else "used by ") + ", ".join(others)
    if any(use.role == "bias" for use in uses):
        return "used as a weight and as a bias"
    if not _matches(parameter.name, config.include):
        return "not in include"
    if _matches(parameter.name, config.exclude):
        return "in exclude"
    layouts = [layout for layout, *_ in _matrices(uses)]
    if any(a.overlaps(b) for i, a in enumerate(layouts) for b in layouts[i + 1 :]):
        return "the same elements are used in different layouts"
    for use in uses:
        if use.role == "lookup" and (use.held is None or not _names(use, layouts)):
            return f"also used by {use.reason}" if layouts else f"used by {use.reason}"
    return None


def _names(use: Use, layouts: Sequence[Layout]) -> bool:
    """Tell whether a use is of one of these matrices."""
    layout = use.layout
    return layout is not None and any(layout.canonical == x.canonical for x in layouts)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _by_layout(uses: Sequence[Use]) -> list[tuple[Layout, tuple[int, ...]]]:
    """Return the layouts of linear uses, and the sites of each."""
    groups: dict[object, tuple[Layout, set[int]]] = {}
    for use in uses:
        if use.layout is not None and use.site is not None:
            groups.setdefault(use.layout.canonical, (use.layout, set()))[1].add(use.site)
    return [(layout, tuple(sorted(sites))) for layout, sites in groups.values()]


def _matrices(uses: Sequence[Use]) -> list[tuple[Layout, tuple[int, ...], tuple[int, ...]]]:
    """Return the matrices of linear uses, the sites of each, and the sites of its transpose."""
    found: dict[object, tuple[Layout, tuple[int, ...], tuple[int, ...]]] = {}
    for layout, sites in _by_layout(uses):
        other = layout.mT.canonical
        if other in found:
            found[other] = (*found[other][:2], sites)
        else:
            found[layout.canonical] = (layout, sites, ())
    return [*found.values()]


def _held(uses: Sequence[Use], layout: Layout) -> Array | None:
    """Return which rows (out,) of a matrix are looked up by any use, or None if it is no table."""
    looks = [use for use in uses if use.role == "lookup" and _names(use, [layout])]
    return reduce(or_, [use.held for use in looks]) if looks else None


def _with_bias(block: Block, uses: Mapping[int, Sequence[Use]]) -> Block:
    """Attach the bias if it is used by exactly this block's sites, once each, and nowhere else."""
    for index, own in uses.items():
        mine = [u for u in own if u.role == "bias" and u.site in block.sites]
        rest = [u for u in own if u not in mine]
        groups = _by_layout(mine)
        if len(mine) != len(block.sites) or [sites for _, sites in groups] != [block.sites]:
            continue
        layout = groups[0][0]
        if all(u.layout is not None and not u.layout.overlaps(layout) for u in rest):
            return replace(block, bias=(index, layout))
    return block


@dataclass(frozen=True)
class Layer:
    """A block that may move, and what is known of it beforehand.

    Attributes:
        block: The weights.
        kind: The operation they are used in.
        samples: Rows of input, over all replicas.
        hidden: Whether a use of the weights was missed (0-d bool).
        weight_norm: ``||W||``, bias included, 0-d.
        output_norm: ``||X W^T||``, without the bias, 0-d.
        tight: Whether so few inputs are free that it keeps to a budget.
        exact: Whether its outputs stay as they are.
        narrow: Relative spacing of numbers in the dtype of the weights, if that is wider than the
            one directions are computed in, so that rounding a move is part of it; else 0.
    """

    block: Block
    kind: str
    samples: int
    hidden: Array
    weight_norm: Array
    output_norm: Array
    tight: bool
    exact: bool
    narrow: float


def lazy_norms(weights: Sequence[Array] | Callable[[], Sequence[Array]]) -> Norms:
    """Return a function from an index to the norm of that array, as it is when first asked for.

    Arrays that are held share the memory of the weights, which then cannot be exchanged.
    """
    return cache(lambda i: ar.norm(ar.widen((weights() if callable(weights) else weights)[i])))


def find_layers(
    graph: LayerGraph, lin: Linearization, config: TeleportConfig, norms: Norms
) -> tuple[list[Layer], dict[str, str]]:
    """Find the weights that may move, and say why the others may not.

    The linearization has the gradient of the joint loss, and the sites of this replica.

    Raises:
        ValueError: If no weight is used by a linear map, or there are no samples.
    """
    blocks, excluded = capture(graph.parameters, lin.uses, config)
    if graph.collective.size > 1:
        blocks, unlike = _alike(blocks, lin, graph.collective)
        excluded |= unlike
    if not lin.sites:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*excluded.items()][:5])
        msg = f"no weight of the model is used by a recognised linear map ({reasons})"
        raise ValueError(msg)
    counts = [sum(lin.sites[i].samples for i in block.sites) for block in blocks]
    counts = [int(graph.collective.sum(count)) for count in counts]
    if blocks and not any(counts):
        msg = "the captured batch has 0 samples; a teleport needs at least 1 sample"
        raise ValueError(msg)
    pairs = list(zip(blocks, counts, strict=True))
    excluded |= {block.name: "no sample reaches it" for block, n in pairs if not n}
    return [_layer(block, n, graph, lin, config, norms) for block, n in pairs if n], excluded


def _alike(
    blocks: Sequence[Block], lin: Linearization, together: Collective
) -> tuple[list[Block], dict[str, str]]:
    """Return the blocks that all replicas use alike, and why the others stay.

    Replicas add over blocks one after another, so all must come to them in the same order.

    Raises:
        ValueError: If replicas run their layers in different orders.
    """

    def key(block: Block) -> str:
        differentiable = any(lin.sites[i].cotangent is not None for i in block.every)
        bias = None if block.bias is None else (block.bias[0], block.bias[1].canonical)
        pinned = (len(block.transposed), block.held is not None)
        return repr((block.name, block.layout.canonical, bias, differentiable, pinned))

    own = {key(block): block for block in blocks}
    every = together.gather([*own])
    common = [k for k in every[0] if all(k in keys for keys in every)]
    # Null spaces are made at a layer's first tangent, directions finished at its last.
    orders = [sorted(common, key=lambda k: end(own[k].every)) for end in (min, max)]
    if any(found != orders for found in together.gather(orders)):
        msg = "the replicas run their layers in different orders"
        raise ValueError(msg)
    rest = [block for k, block in own.items() if k not in common]
    reason = "not every replica uses it, or not in the same way"
    return [own[k] for k in common], {block.name: reason for block in rest}


def _layer(
    block: Block,
    samples: int,
    graph: LayerGraph,
    lin: Linearization,
    config: TeleportConfig,
    norms: Norms,
) -> Layer:
    """Check that a block's uses were all seen, and measure its weights and outputs."""
    tolerance, together, weights = MISMATCH[lin.bits], graph.collective, graph.weights()
    block = _without_hidden_bias(block, graph, lin, tolerance)
    sites, gradient = [lin.sites[i] for i in block.sites], lin.gradients[block.parameter]
    outputs = [lin.sites[i].output_norm for i in block.every]
    output_norm = together.norm(ar.joint_norm(outputs))
    mismatch = output_norm * 0
    if gradient is not None:
        formed = graph.read(block.parameter, ar.dense(gradient), block.layout)
        mismatch = explained(block, formed, lin, together)
    sizes = [
        norms(i)
        if layout.size == prod(weights[i].shape)
        else ar.norm(ar.widen(graph.read(i, weights[i], layout)))
        for i, layout in block.parts
    ]
    dtype = ar.namespace(output_norm).finfo(weights[block.parameter].dtype)
    tight = is_tight(block.features, samples, config)
    return Layer(
        block=block,
        kind=sites[0].kind,
        samples=samples,
        hidden=together.agree(mismatch > tolerance),
        weight_norm=ar.joined(sizes),
        output_norm=output_norm,
        tight=tight,
        exact=not tight and config.projection in ("budget", "threshold") and not config.threshold,
        narrow=float(dtype.eps) if int(dtype.bits) < 32 else 0.0,
    )


def _without_hidden_bias(
    block: Block, graph: LayerGraph, lin: Linearization, tolerance: float
) -> Block:
    """Leave a bias behind if its gradient is not the sum of its layer's cotangents."""
    sites = [lin.sites[i] for i in block.sites if lin.sites[i].cotangent is not None]
    gradient = None if block.bias is None else lin.gradients[block.bias[0]]
    if block.bias is None or gradient is None or not sites:
        return block
    gradient = ar.widen(graph.read(block.bias[0], ar.dense(gradient), block.bias[1]))
    parts, together = [ar.widen(site.bias_gradient()) for site in sites], graph.collective
    # Against what was added, not the sum: attention's key bias has gradient 0 by cancellation.
    scale = sum(ar.norm(ar.widen(site.cotangent)) * site.samples**0.5 for site in sites)
    mismatch = ar.norm(gradient - together.mean(sum(parts[1:], start=parts[0])))
    hidden = together.agree(~(mismatch <= tolerance * together.mean(scale)))
    return replace(block, bias=None) if ar.known(hidden) else block


def explained(block: Block, gradient: Array, lin: Linearization, together: Collective) -> Array:
    """Return which share of a block's gradient (..., out, in) its sites do not account for, 0-d.

    The gradient is that of the joint loss, the sites are this replica's.

    ``dL/dW = sum delta^T X`` over the sites holds exactly when no use of the weight was missed.
    Both sides are contracted with one fixed vector on the output axis (Freivalds' check), which
    costs a matrix-vector product instead of a matrix product. Rounding if the capture is complete.
    """
    xp, whole = ar.namespace(gradient), ar.widen(gradient)
    z = ar.probe_vector(whole, gradient.shape[-2])
    if block.held is not None:  # what rows get from being looked up is not known
        z = xp.where(block.held, xp.zeros_like(z), z)
    if block.layout.transposed:
        left = (xp.matrix_transpose(whole) @ z)[..., None, :]
    else:  # as it is stored: its transpose a compiler would copy, or read against the grain
        left = z[None, :] @ whole
    right = xp.zeros_like(left)
    scale = 0 * ar.norm(left)
    for site in (lin.sites[i] for i in block.sites):
        if site.cotangent is not None:
            inputs = ar.widen(site.inputs)
            part = site.weight_gradient(inputs, xp.astype(z, inputs.dtype))
            right = right + part
            scale = xp.maximum(scale, ar.norm(part))
    for site in (lin.sites[i] for i in block.transposed):
        if site.cotangent is not None:
            part = z[None, :] @ xp.matrix_transpose(site.weight_gradient(ar.widen(site.inputs)))
            right = right + part
            scale = xp.maximum(scale, ar.norm(part))
    right, scale = together.mean(right), xp.maximum(ar.norm(left), together.mean(scale))
    return ar.norm(left - right) / xp.maximum(scale, xp.full_like(scale, ar.tiny(scale)))


def factors(
    layers: Sequence[Layer], lin: Linearization, weights: Sequence[Array]
) -> dict[int, LowRank]:
    """Return, by parameter, its gradient in factors where one site is known to have all of it.

    None at all where sites are known not to account for a gradient, or were not compared with it.
    """
    samples = {i: s.samples for i, s in enumerate(lin.sites) if isinstance(s, DenseSite)}
    uses = factored([w.shape for w in weights], lin.uses, samples)
    if not uses or not uses.keys() <= {layer.block.parameter for layer in layers}:
        return {}
    xp, hidden = ar.namespace(layers[0].hidden), [layer.hidden for layer in layers]
    if ar.known(xp.any(xp.stack(hidden))):
        return {}
    found = {}
    for index, use in uses.items():
        assert use.site is not None  # factored has asked
        assert use.layout is not None
        site = lin.sites[use.site]
        if site.cotangent is not None and site.cotangent.dtype == site.inputs.dtype:
            gradient = LowRank(site.cotangent, site.inputs)
            found[index] = gradient.mT if use.layout.transposed else gradient
    return found
