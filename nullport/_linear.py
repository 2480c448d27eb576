"""Weights that are linear functions of parameters, and what that makes of a site.

A product may apply a matrix ``M`` (stack, out, in) that is no parameter, but whose elements each
are an element of one, times a factor, plus something that does not depend on it:

    M[s, o, i] = f[s, o, i] w[position[s, o, i]] + ...

Scaled, permuted, concatenated, stacked, gathered and masked weights are. :func:`parts` cuts ``M``
into one :class:`Part` per parameter and says how the site looks to that parameter alone. Where
``f`` is an outer product ``r c^T``, what was done to the weight is done to the rows instead:

    X M^T = ((X c) W^T) r,        so inputs  X c  and cotangents  delta r.

A row that is used several times adds up its cotangents, a column its inputs, a matrix of a stack
joins its samples. A mask with any other pattern gives every output its own inputs: one matrix
(1, in) each, null on its own support.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from nullport._sites import Array, Axes, DenseSite, Index, Layout, Site

Positions = npt.NDArray[np.int64]
"""Numbers of elements; every parameter has a range of its own, -1 stands for no parameter."""

LARGEST = 1 << 26
"""Elements of all inputs, or Gram matrices, of a masked weight beyond which it stays."""

REPEATED = "repeated in another way than by rows, columns or matrices"


class NotSeparable(ValueError):  # noqa: N818
    """A parameter cannot be moved apart from the rest of the matrix; the message says why."""


@dataclass(frozen=True)
class Pick:
    """How one axis of ``M`` follows from the same axis of a weight.

    Attributes:
        chosen: The entries of ``M`` that belong to the weight, ascending.
        group: For each of them, its entry of the weight.
        size: Length of the weight's axis.
        total: Length of the axis of ``M``.
    """

    chosen: Positions
    group: Positions
    size: int
    total: int

    @property
    def whole(self) -> bool:
        """Whether the axes are the same."""
        return self.size == self.total and self.ordered

    @property
    def ordered(self) -> bool:
        """Whether every chosen entry is the next one of the weight."""
        return bool(np.array_equal(self.group, np.arange(self.size)))

    @property
    def table(self) -> Positions:
        """Per entry of the weight, the chosen ones that it stands for, padded by their number."""
        order = np.argsort(self.group, kind="stable")
        counts = np.bincount(self.group, minlength=self.size)
        table = np.full((self.size, int(counts.max(initial=1))), len(order))
        table[np.arange(table.shape[1]) < counts[:, None]] = order
        return table

    def take(self, x: Array, axis: int) -> Array:
        """Return the chosen entries along an axis; one of length 1 is the same for all."""
        if x.shape[axis] == 1 or len(self.chosen) == self.total:
            return x
        first, last = int(self.chosen[0]), int(self.chosen[-1]) + 1
        if last - first == len(self.chosen):
            return x[(slice(None),) * (axis % x.ndim) + (slice(first, last),)]
        return _take(x, self.chosen, axis)

    def apart(self, x: Array, axis: int) -> Array:
        """Return chosen entries by the entry of the weight, which has a new axis behind it."""
        table, axis = self.table, axis % x.ndim
        x = _take(_and_zero(x, axis), table.ravel(), axis)
        return array_namespace(x).reshape(x, (*x.shape[:axis], *table.shape, *x.shape[axis + 1 :]))

    def merged(self, x: Array, axis: int) -> Array:
        """Return sums of chosen entries, one per entry of the weight."""
        if self.ordered:
            return x
        return array_namespace(x).sum(self.apart(x, axis), axis=axis % x.ndim + 1)

    def repeated(self, x: Array, axis: int) -> Array:
        """Return the entry of the weight for every chosen one."""
        return x if self.ordered else _take(x, self.group, axis)

    def placed(self, x: Array, axis: int) -> Array:
        """Return chosen entries in their places of ``M``, 0 elsewhere."""
        if len(self.chosen) == self.total:
            return x
        where = np.full(self.total, len(self.chosen))
        where[self.chosen] = np.arange(len(self.chosen))
        return _take(_and_zero(x, axis % x.ndim), where, axis)


def _take(x: Array, where: Positions, axis: int) -> Array:
    xp = array_namespace(x)
    return xp.take(x, xp.asarray(where, device=device(x)), axis=axis % x.ndim)


def _and_zero(x: Array, axis: int) -> Array:
    """Return ``x`` with one entry of zeros more."""
    xp = array_namespace(x)
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return xp.concat([x, xp.zeros(shape, dtype=x.dtype, device=device(x))], axis=axis)


@dataclass(frozen=True)
class Part:
    """What a site is to one parameter.

    Attributes:
        parameter: Index of the parameter.
        layout: Where the elements of its matrices live.
        stack: The stack axis of ``M``.
        out: Its output axis.
        inp: Its input axis.
        row: Factors (stack or 1, out, 1) of chosen entries, or None.
        column: Factors (stack or 1, 1, in), or None.
        mask: Factors (stack or 1, out, in) that are no product of the two, or None.
    """

    parameter: int
    layout: Layout
    stack: Pick
    out: Pick
    inp: Pick
    row: Array | None = None
    column: Array | None = None
    mask: Array | None = None

    @classmethod
    def whole(cls, parameter: int, layout: Layout) -> Part:
        """Return the part of a parameter that is the whole matrix."""
        sizes = (prod(n for n, _ in axes) for axes in (layout.stack, layout.out, layout.inp))
        picks = (Pick(np.arange(n), np.arange(n), n, n) for n in sizes)
        return cls(parameter, layout, *picks)

    @property
    def plain(self) -> bool:
        """Whether ``M`` is the weight itself."""
        own = self.stack.whole and self.out.whole and self.inp.whole
        return own and self.row is None and self.column is None and self.mask is None

    def rescaled(self, factor: Array) -> Part:
        """Return the part with other factors of the kind it has, given those of all of ``M``."""
        for axis, pick in enumerate(self._picks):
            factor = pick.take(factor, axis)
        if self.mask is not None:
            return replace(self, mask=factor)
        if self.column is not None:
            return replace(self, column=factor[:, :1, :])
        return replace(self, row=factor[..., :1])

    def held(self, inputs: Array, *, dense: bool) -> Array:
        """Return what the site holds as inputs, and as tangents, given those of the product.

        Args:
            inputs: Rows (..., samples, in) of a dense site, or what another one holds.
            dense: Whether it is a dense one, which is adapted itself instead of wrapped.
        """
        return self.inputs(inputs) if dense and self.mask is None else inputs

    def site(self, site: Site) -> Site:
        """Return the site as the parameter sees it, given one whose inputs are :meth:`held`."""
        if not isinstance(site, DenseSite) or self.mask is not None:
            return PartSite(site, self)
        delta = None if site.cotangent is None else self.outputs(site.cotangent)
        return DenseSite(site.kind, site.inputs, delta, site.output_norm)

    def inputs(self, x: Array) -> Array:
        """Return rows (..., samples, in) of ``M`` as rows of the weight's matrices."""
        x = self.inp.take(self.stack.take(_stacked(x), 0), -1)
        x = x if self.column is None else x * _cast(self.column, x)
        x = self.inp.merged(x, -1)
        if self.mask is None:
            return self._joined(x)
        x = x[:, None, :, :] * _cast(self.mask, x)[:, :, None, :]
        return array_namespace(x).reshape(x, (-1, *x.shape[2:]))

    def outputs(self, delta: Array) -> Array:
        """Return cotangents (..., samples, out) of ``M`` as those of the weight's matrices."""
        delta = self.out.take(self.stack.take(_stacked(delta), 0), -1)
        if self.row is not None:
            xp = array_namespace(delta)
            delta = delta * _cast(xp.matrix_transpose(self.row), delta)
        return self._joined(self.out.merged(delta, -1))

    def shown(self, y: Array) -> Array:
        """Return the outputs (..., samples, out) of ``M`` that the weight takes part in.

        Each once, and before it is scaled: as large as what ``PartSite.apply`` returns.
        """
        xp = array_namespace(y)
        y = self.out.take(self.stack.take(_stacked(y), 0), -1)
        if self.row is not None:
            row = _cast(xp.matrix_transpose(self.row), y)
            y = xp.where(row == 0, xp.zeros_like(y), y / xp.where(row == 0, 1 + 0 * row, row))
        return y if self.out.ordered else _take(y, self.out.table[:, 0], -1)

    def _joined(self, x: Array) -> Array:
        """Join the samples of all matrices of ``M`` that are one matrix of the weight."""
        xp = array_namespace(x)
        if not self.stack.ordered:
            x = self.stack.apart(x, 0)
            x = xp.reshape(x, (x.shape[0], -1, x.shape[-1]))
        return x if self.layout.stack else xp.reshape(x, x.shape[1:])

    def spread(self, weight: Array, *, scaled: bool = True) -> Array:
        """Return ``M`` (stack, out, in) for matrices (..., out, in) of the weight.

        Without the factors of its outputs, if it is not to be ``scaled``.
        """
        m = array_namespace(weight).reshape(weight, tuple(pick.size for pick in self._picks))
        for axis, pick in enumerate(self._picks):
            m = pick.repeated(m, axis)
        m = self._scaled(m) if scaled else replace(self, row=None)._scaled(m)
        for axis, pick in enumerate(self._picks):
            m = pick.placed(m, axis)
        return m if self.stack.total > 1 else m[0, ...]

    @property
    def _picks(self) -> tuple[Pick, Pick, Pick]:
        return self.stack, self.out, self.inp

    def _scaled(self, chosen: Array) -> Array:
        for factor in (self.row, self.column, self.mask):
            chosen = chosen if factor is None else chosen * _cast(factor, chosen)
        return chosen

    def collect(self, gradient: Array) -> Array:
        """Return the gradient of the weight, given that of ``M``: the adjoint of :meth:`spread`."""
        g = _stacked(gradient)
        for axis, pick in enumerate(self._picks):
            g = pick.take(g, axis)
        g = self._scaled(g)
        for axis, pick in enumerate(self._picks):
            g = pick.merged(g, axis)
        return array_namespace(g).reshape(g, self.layout.shape)

    def bias(self, positions: Positions, starts: Sequence[int]) -> tuple[int, Layout] | None:
        """Return parameter and layout of a bias of the outputs, or None if it cannot move along.

        Args:
            positions: Numbers of its elements, shape (stack, out).
            starts: First number of every parameter.
        """
        picks = (self.stack, self.out)
        if self.row is not None or any(len(pick.chosen) != pick.size for pick in picks):
            return None
        entries = [pick.chosen[np.argsort(pick.group)] for pick in picks]
        found = positions[np.ix_(*entries)]
        owners = _owners(found, starts)
        if len(owners) != 1 or owners[0] < 0 or _repeats(found):
            return None
        own = found - starts[owners[0]]
        own = own[..., None] if self.mask is None else own.reshape(-1, 1, 1)
        return owners[0], layout_of(own, stacked=self.mask is not None, bias=True)


def _stacked(x: Array) -> Array:
    return array_namespace(x).reshape(x, (-1, *x.shape[-2:]))


def _cast(factor: Array, like: Array) -> Array:
    return array_namespace(like).astype(factor, like.dtype, copy=False)


@dataclass(frozen=True)
class PartSite:
    """A site as one of several parameters sees it, or one whose weight is masked; see `Site`.

    Attributes:
        whole: The site of ``M``.
        part: What it is to the parameter.
    """

    whole: Site
    part: Part

    @property
    def kind(self) -> str:
        """Name of the operation."""
        return self.whole.kind

    @property
    def samples(self) -> int:
        """Number of rows of ``X``."""
        return self.whole.samples

    @property
    def inputs(self) -> Array:
        """The inputs of the site of ``M``."""
        return self.whole.inputs

    @property
    def cotangent(self) -> Array | None:
        """Its cotangent."""
        return self.whole.cotangent

    @property
    def output_norm(self) -> Array:
        """Norm of its output."""
        return self.whole.output_norm

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield rows as the parameter sees them."""
        for chunk in self.whole.rows(every):
            yield self.part.inputs(chunk)

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X M^T + bias`` for other elements of the parameter, and 0 for all others.

        Its outputs are not scaled: those of the weight, as for a :class:`DenseSite`.
        """
        part = self.part
        if bias is not None:
            bias = array_namespace(bias).reshape(bias, (part.stack.size, part.out.size))
            bias = part.out.placed(part.out.repeated(bias, 1), 1)
            bias = part.stack.placed(part.stack.repeated(bias, 0), 0)
            bias = bias if part.stack.total > 1 else bias[0, ...]
        return self.whole.apply(part.spread(weight, scaled=False), bias)

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return the gradient at ``inputs``: (..., out, in), or (..., 1, in) with ``probe``."""
        gradient = self.part.collect(self.whole.weight_gradient(inputs))
        if probe is None:
            return gradient
        xp = array_namespace(gradient)
        return (xp.matrix_transpose(gradient) @ _cast(probe, gradient))[..., None, :]

    def bias_gradient(self) -> Array:
        """Return the sum of the cotangent over rows, (..., out)."""
        part, total = self.part, self.whole.bias_gradient()
        xp = array_namespace(total)
        total = xp.reshape(total, (part.stack.total, part.out.total))
        total = part.out.merged(part.out.take(total, 1), 1)
        total = part.stack.merged(part.stack.take(total, 0), 0)
        return xp.reshape(total, part.layout.shape[:-1])


def parts(
    positions: Positions, starts: Sequence[int], factors: Sequence[Array] = (), rows: int = 1
) -> list[Part]:
    """Cut a matrix into what each parameter is to it.

    Args:
        positions: Shape (stack, out, in): the number of the element of a parameter that every
            entry holds, -1 for none.
        starts: First number of every parameter, ascending.
        factors: What entries are multiplied by: arrays (stack or 1, out or 1, in or 1).
        rows: Number of rows of the site.

    Raises:
        NotSeparable: If a parameter does not fill a rectangle of the matrix, or its elements repeat
            in another way than by whole rows, columns or matrices.
    """
    return [
        _part(positions, starts, owner, factors, rows)
        for owner in _owners(positions, starts)
        if owner >= 0
    ]


def _owners(positions: Positions, starts: Sequence[int]) -> list[int]:
    """Return the parameters that elements belong to; -1 for those that belong to none."""
    if not positions.size:
        return []
    edges = np.asarray(starts)
    ends = (positions.min(), positions.max())
    low, high = (int(np.searchsorted(edges, end, "right")) - 1 for end in ends)
    if low == high:
        return [low]
    return [int(k) for k in np.unique(np.searchsorted(edges, positions, "right") - 1)]


def _part(
    positions: Positions, starts: Sequence[int], owner: int, factors: Sequence[Array], rows: int
) -> Part:
    own = positions >= starts[owner]
    own &= positions < (starts[owner + 1] if owner + 1 < len(starts) else np.inf)
    chosen = [np.flatnonzero(own.any(axis=tuple({0, 1, 2} - {k}))) for k in range(3)]
    if not own[np.ix_(*chosen)].all():
        msg = "part of a matrix in which it fills no rectangle"
        raise NotSeparable(msg)
    local, picks = positions[np.ix_(*chosen)] - starts[owner], []
    for axis, entries in enumerate(chosen):
        line = np.moveaxis(local, axis, 0)[:, 0, 0]
        _, first, group = np.unique(line, return_index=True, return_inverse=True)
        picks.append(Pick(entries, group, len(first), positions.shape[axis]))
        kept = np.take(local, first, axis)
        if not np.array_equal(np.take(kept, group, axis), local):
            raise NotSeparable(REPEATED)
        local = kept
    if _repeats(local):
        raise NotSeparable(REPEATED)
    return _with_factors(owner, local, picks, factors, rows)


def _repeats(positions: Positions) -> bool:
    low, high = int(positions.min()), int(positions.max())
    if high - low + 1 > 8 * positions.size:
        return len(np.unique(positions)) < positions.size
    return bool(np.bincount(positions.ravel() - low).max() > 1)


def _with_factors(
    owner: int, local: Positions, picks: Sequence[Pick], factors: Sequence[Array], rows: int
) -> Part:
    """Return the part of a parameter, its factors sorted by what they depend on."""
    row = column = mask = None
    for factor in factors:
        for axis, pick in enumerate(picks):
            factor = pick.take(factor, axis)
        if factor.shape[2] == 1:
            row = factor if row is None else row * factor
        elif factor.shape[1] == 1:
            column = factor if column is None else column * factor
        else:
            mask = factor if mask is None else mask * factor
    stack, out, inp = picks
    if mask is None:
        return Part(owner, layout_of(local), stack, out, inp, row, column)
    if not all(pick.ordered for pick in picks):
        msg = "both masked and repeated"
        raise NotSeparable(msg)
    for factor in (row, column):
        mask = mask if factor is None else mask * factor
    inputs = local.shape[-1]
    if local.size * max(min(rows, inputs), 1) > LARGEST:
        msg = f"masked, with too many inputs ({inputs}) for a null space of every output"
        raise NotSeparable(msg)
    apart = local.reshape(-1, 1, inputs)
    return Part(owner, layout_of(apart, stacked=True), stack, out, inp, mask=mask)


def layout_of(positions: Positions, *, stacked: bool = False, bias: bool = False) -> Layout:
    """Return the layout of elements given one by one, by strides wherever there are some.

    Args:
        positions: Shape (stack, out, in), or (stack, out, 1) for a bias.
        stacked: Whether a stack of one matrix is a stack all the same.
        bias: Whether it is that of a bias.
    """
    tables = [positions[:, 0, 0], positions[0, :, 0], positions[0, 0, :]]
    offset = int(positions[0, 0, 0])
    axes = [strides(table - offset) for table in tables]
    along = tables[0][:, None, None] + tables[1][:, None] + tables[2] - 2 * offset
    strided = all(a is not None for a in axes) and np.array_equal(along, positions)
    index = None
    if not strided:
        index, offset = Index(positions.ravel()), 0
        sizes = positions.shape
        axes = [((n, prod(sizes[k + 1 :])),) for k, n in enumerate(sizes)]
    stack, out, inp = (a or () for a in axes)
    if len(tables[0]) == 1 and not stacked:
        stack = ()
    elif not stack:
        stack = ((1, 1),)
    return Layout(offset, stack, out or ((1, 1),), () if bias else inp or ((1, 1),), index)


def strides(table: Positions) -> Axes | None:
    """Return (size, stride) pairs, outermost first, that give offsets from 0, or None.

    >>> strides(np.asarray([0, 2, 4, 100, 102, 104]))
    ((2, 100), (3, 2))
    """
    if len(table) == 1:
        return ()
    stride = int(table[1] - table[0])
    breaks = np.flatnonzero(np.diff(table) != stride)
    run = len(table) if not len(breaks) else int(breaks[0]) + 1
    if stride <= 0 or len(table) % run:
        return None
    inner = np.arange(run) * stride
    outer = table[::run]
    if not np.array_equal((outer[:, None] + inner).ravel(), table):
        return None
    rest = strides(outer)
    return None if rest is None else (*rest, (run, stride))


def separated(factor: Array) -> list[Array]:
    """Return factors that are each constant along outputs or along inputs, where there are such.

    Args:
        factor: Shape (stack or 1, out, in), with values that can be looked at.
    """
    xp = array_namespace(factor)
    s, o, i = factor.shape
    if min(o, i) == 1:
        return [factor]
    flat = xp.reshape(xp.abs(factor), (s, -1))
    at = xp.argmax(flat, axis=1)
    rows, columns, pivots = [], [], []
    for k in range(s):
        r, c = divmod(int(at[k]), i)
        pivots.append(factor[k, r, c])
        rows.append(factor[k, :, c : c + 1])
        columns.append(factor[k, r : r + 1, :])
    pivot = xp.reshape(xp.stack(pivots), (s, 1, 1))
    row, column = xp.stack(rows) / pivot, xp.stack(columns)
    close = xp.abs(row * column - factor) <= 4 * float(xp.finfo(factor.dtype).eps) * xp.abs(factor)
    if not bool(xp.all(close)):
        return [factor]
    if bool(xp.all(column == column[..., :1])):
        return [row * column[..., :1]]
    return [column] if bool(xp.all(row == 1)) else [row, column]
