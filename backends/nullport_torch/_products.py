"""Recognising contractions of any number of operands: einsum, tensordot, bilinear and others.

Each operand may be the weight. All others together are then its input: their own contraction, over
all axes that neither the weight nor the output has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nullport_torch._calls import PARSERS, Call, Contraction

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def contraction(
    kind: str, terms: Sequence[str], y: str, operands: Sequence[Tensor], bias: Tensor | None = None
) -> list[Call]:
    """Return every reading of a contraction: one per operand that may be the weight."""
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, n in zip(term, operand.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                return []  # an axis of size 1 that is stretched
    calls = []
    for k, (term, weight) in enumerate(zip(terms, operands, strict=True)):
        others = [(t, o) for i, (t, o) in enumerate(zip(terms, operands, strict=True)) if i != k]
        if others and len(set(term)) == len(term):
            calls.append(_reading(kind, (term, weight), others, y, sizes, bias))
    return calls


def _reading(
    kind: str,
    weight: tuple[str, Tensor],
    others: list[tuple[str, Tensor]],
    y: str,
    sizes: Mapping[str, int],
    bias: Tensor | None,
) -> Call:
    """Return the reading in which one operand is the weight."""
    term, w = weight
    known = "".join(t for t, _ in others)
    alone = "".join(c for c in term if c not in known and c not in y)  # summed over by itself
    if alone:
        others = [*others, (alone, w.new_ones([sizes[c] for c in alone]))]
        known += alone
    x = "".join(dict.fromkeys(c for c in known if c in term or c in y))
    how = Contraction(x, term, y)
    if len(others) == 1 and others[0][0] == x:
        return Call(kind, others[0][1], w, bias, how)
    equation = ",".join(t for t, _ in others) + "->" + x
    joined = equation, tuple(o for _, o in others)
    return Call(kind, others[0][1], w, bias, how, joined=joined)


def _einsum(args: Sequence[Any], _: Mapping[str, Any]) -> list[Call]:
    read = spelled_out(args)
    return [] if read is None else contraction("einsum", *read)


def spelled_out(args: Sequence[Any]) -> tuple[list[str], str, tuple[Tensor, ...]] | None:
    """Return terms, output and operands of an einsum, with ``...`` and outputs written out."""
    equation, operands = args[0], tuple(args[1:])
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or not operands:
        return None
    left, arrow, y = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    bare = [term.replace("...", "") for term in terms]
    widths = [o.ndim - len(b) for o, b in zip(operands, bare, strict=True)]
    if not arrow:  # letters that occur once, in their order, behind the axes of the ellipsis
        text = "".join(bare)
        y = "..." * ("..." in left) + "".join(sorted(c for c in set(text) if text.count(c) == 1))
    widest = max((n for n, t in zip(widths, terms, strict=True) if "..." in t), default=0)
    spare = [c for c in _LETTERS if c not in equation][:widest]

    def written(term: str, width: int) -> str:
        return term.replace("...", "".join(spare[len(spare) - width :]) if width else "")

    return [*map(written, terms, widths)], written(y, widest), operands


def _tensordot(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    a, b = (_at(args, kwargs, i, name) for i, name in enumerate(("a", "b")))
    dims = _at(args, kwargs, 2, "dims", 2)
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = [range(a.ndim - dims, a.ndim), range(dims)]
    first, second = ([d % t.ndim for d in given] for given, t in zip(dims, (a, b), strict=True))
    names_a, names_b = list(_LETTERS[: a.ndim]), list(_LETTERS[a.ndim : a.ndim + b.ndim])
    for i, j in zip(first, second, strict=True):
        names_b[j] = names_a[i]
    y = [c for i, c in enumerate(names_a) if i not in first]
    y += [c for j, c in enumerate(names_b) if j not in second]
    return contraction("tensordot", ["".join(names_a), "".join(names_b)], "".join(y), (a, b))


def _inner(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    a, b = _at(args, kwargs, 0, "input"), _at(args, kwargs, 1, "other")
    if not (a.ndim and b.ndim):
        return []
    names_a, names_b = _LETTERS[: a.ndim - 1], _LETTERS[26 : 25 + b.ndim]
    return contraction("inner", [names_a + "z", names_b + "z"], names_a + names_b, (a, b))


def _bilinear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    names = ("input1", "input2", "weight", "bias")
    a, b, w, bias = (_at(args, kwargs, i, name) for i, name in enumerate(names))
    lead = _LETTERS[: a.ndim - 1]
    return contraction("bilinear", [lead + "x", lead + "y", "zxy"], lead + "z", (a, b, w), bias)


def _addbmm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    names = ("input", "batch1", "batch2")
    c, a, b = (_at(args, kwargs, i, name) for i, name in enumerate(names))
    if len(args) > 3 or kwargs.get("alpha", 1) != 1:
        return []
    bias = c if kwargs.get("beta", 1) == 1 else None
    return contraction("addbmm", ["bnm", "bmp"], "np", (a, b), bias)


def _grouped(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    """Rows of ``a`` (rows, in), up to the next offset, times one matrix of ``b`` (stack, in, out).

    Rows behind the last offset belong to no matrix.
    """
    names = ("mat_a", "mat_b", "offs", "bias", "out_dtype")
    a, b, ends, bias, _ = (_at(args, kwargs, i, name) for i, name in enumerate(names))
    if a is None or b is None:
        a, b = kwargs.get("input", a), kwargs.get("mat2", b)
    if a.ndim != 2 or b.ndim != 3 or ends is None or bias is not None:
        return []
    ends = ends.long()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    most = max(1, int((ends - starts).max()))
    rows = starts[:, None] + torch.arange(most, device=ends.device)
    rows = torch.where(rows < ends[:, None], rows, a.shape[0])
    return [Call("grouped_mm", a, b, None, Contraction("ern", "enm", "erm"), rows=rows)]


def _at(args: Sequence[Any], kwargs: Mapping[str, Any], i: int, name: str, or_: Any = None) -> Any:
    return args[i] if len(args) > i else kwargs.get(name, or_)


def pairwise(func: Any, args: Sequence[Any]) -> list[tuple[Any, tuple[Any, ...]]] | None:
    """Return a product of several matrices as products of two, left to right; None for others.

    Each step is a function and its arguments, of which the first tensor is the result before.
    """
    if func in _CHAINS:
        matrices = args[0] if len(args) == 1 and not isinstance(args[0], Tensor) else args
        return [(torch.matmul, (m,)) for m in matrices]
    read = spelled_out(args) if func in _EINSUM else None
    if read is None or len(read[2]) < 3:
        return None
    terms, y, operands = read
    steps: list[tuple[Any, tuple[Any, ...]]] = [(None, (operands[0],))]
    done = terms[0]
    for k in range(1, len(terms)):
        rest = "".join(terms[k + 1 :]) + y
        out = "".join(dict.fromkeys(c for c in done + terms[k] if c in rest))
        out = y if k == len(terms) - 1 else out
        steps.append((torch.einsum, (f"{done},{terms[k]}->{out}", operands[k])))
        done = out
    return steps


_CHAINS = {torch.linalg.multi_dot, torch.chain_matmul, torch.functional.chain_matmul}
_EINSUM = {torch.einsum, torch.functional.einsum}
_NAMED = {
    "einsum": _einsum,
    "tensordot": _tensordot,
    "inner": _inner,
    "bilinear": _bilinear,
    "addbmm": _addbmm,
    "grouped_mm": _grouped,
    "_grouped_mm": _grouped,
}
for _name, _parser in _NAMED.items():
    for _home in (torch, torch.functional, torch.nn.functional, Tensor):
        if hasattr(_home, _name):
            PARSERS[getattr(_home, _name)] = _parser
