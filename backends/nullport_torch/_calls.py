"""Recognising torch functions that apply a weight linearly: products, einsum, convolutions.

Each parser turns ``(args, kwargs)`` into a :class:`Call`, or returns None if these arguments are no
linear map of ``x``. Products are all written as one labelled contraction ``x, w -> y``, as in
einsum, so that a single place decides which axes are samples, inputs, outputs and stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nullport_torch._conv import Geometry, geometry


@dataclass(frozen=True)
class Contraction:
    """A labelled contraction: one letter per axis of ``x``, ``w`` and ``y``."""

    x: str
    w: str
    y: str

    @property
    def roles(self) -> tuple[str, str, str, str] | None:
        """Letters of the stack, sample, output and input axes, or None if it is no linear map."""
        return _roles(self.x, self.w, self.y)


@cache
def _roles(x: str, w: str, y: str) -> tuple[str, str, str, str] | None:
    distinct = all(len(set(letters)) == len(letters) for letters in (x, w, y))
    if not distinct or set(w) - {*x, *y} or set(x) - {*w, *y} or set(y) - {*x, *w}:
        return None
    stack = "".join(a for a in w if a in x and a in y)
    samples = "".join(a for a in y if a in x and a not in w)
    out = "".join(a for a in w if a in y and a not in x)
    inp = "".join(a for a in w if a in x and a not in y)
    return (stack, samples, out, inp) if inp else None


@dataclass(frozen=True)
class Call:
    """A linear map ``y = scale w(x) + b`` found in a function call.

    Attributes:
        kind: Name of the function.
        x: The input.
        w: The weight.
        b: What is added to the output, or None.
        how: Which axes are what.
        scale: What the product is multiplied by.
        rows: Where the rows of ``x`` and of the output are sorted by the matrix they belong to:
            per matrix its rows, padded by their number; shape (stack, samples).
    """

    kind: str
    x: Tensor
    w: Tensor
    b: Tensor | None
    how: Contraction | Geometry
    scale: float = 1.0
    rows: Tensor | None = None


Parser = Callable[[Sequence[Any], Mapping[str, Any]], "list[Call]"]
"""Returns every reading of the call: a product ``a @ b`` may have its weight on either side."""


def _get(args: Sequence[Any], kwargs: Mapping[str, Any], i: int, name: str, default: Any) -> Any:
    return args[i] if len(args) > i else kwargs.get(name, default)


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    x, w, b = (_get(args, kwargs, i, n, None) for i, n in enumerate(("input", "weight", "bias")))
    if w.ndim != 2:
        return []
    batch = "abcdefgh"[: x.ndim - 1]
    return [Call("linear", x, w, b, Contraction(f"{batch}i", "oi", f"{batch}o"))]


def _product(kind: str, a: Tensor, b: Tensor, bias: Tensor | None = None) -> list[Call]:
    """Both readings of ``a @ b`` with torch's broadcasting of leading axes."""
    rows = "" if a.ndim == 1 else "m"
    columns = "" if b.ndim == 1 else "n"
    lead_a, lead_b = a.shape[:-2], b.shape[:-2]
    letters = "abcdefgh"[: max(len(lead_a), len(lead_b))]
    names_a = _lead(lead_a, lead_b, letters)
    names_b = _lead(lead_b, lead_a, letters)
    if names_a is None or names_b is None:
        return []
    how = (f"{names_a}{rows}k", f"{names_b}k{columns}", f"{letters}{rows}{columns}")
    return [
        Call(kind, a, b, bias, Contraction(how[0], how[1], how[2])),
        Call(kind, b, a, None, Contraction(how[1], how[0], how[2])),
    ]


def _lead(mine: Sequence[int], other: Sequence[int], letters: str) -> str | None:
    """Letters of one operand's leading axes; None where it is stretched from size 1."""
    names = letters[len(letters) - len(mine) :]
    for i in range(1, min(len(mine), len(other)) + 1):
        if mine[-i] == 1 and other[-i] != 1:
            return None
    return names


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    a = _get(args, kwargs, 0, "input", None)
    b = (
        args[1]
        if len(args) > 1
        else next(kwargs[k] for k in ("other", "mat2", "vec") if k in kwargs)
    )
    return _product("matmul", a, b)


def _addmm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    c, a, b = (_get(args, kwargs, i, n, None) for i, n in enumerate(("input", "mat1", "mat2")))
    if kwargs.get("alpha", 1) != 1 or len(args) > 3:
        return []
    bias = c if kwargs.get("beta", 1) == 1 and c.ndim == 1 and c.shape[0] == b.shape[-1] else None
    return _product("addmm", a, b, bias)


def _einsum(args: Sequence[Any], _: Mapping[str, Any]) -> list[Call]:
    equation, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return []
    labels = _expand(equation.replace(" ", ""), operands[0].ndim, operands[1].ndim)
    if labels is None:
        return []
    (a, b, y), (first, second) = labels, operands
    if any(first.shape[a.index(c)] != second.shape[b.index(c)] for c in set(a) & set(b)):
        return []
    return [
        Call("einsum", first, second, None, Contraction(a, b, y)),
        Call("einsum", second, first, None, Contraction(b, a, y)),
    ]


def _expand(equation: str, ndim_a: int, ndim_b: int) -> tuple[str, str, str] | None:
    """Split an einsum equation of two operands, with ``...`` written out in capitals."""
    inputs, arrow, y = equation.partition("->")
    a, comma, b = inputs.partition(",")
    if not arrow or not comma:
        return None
    extra = max(ndim_a - len(a.replace("...", "")), ndim_b - len(b.replace("...", "")))
    spare = (
        [c for c in "ABCDEFGHIJKLMNOP" if c not in equation][:extra] if "..." in equation else []
    )
    parts = []
    for term, ndim in ((a, ndim_a), (b, ndim_b), (y, None)):
        width = extra if ndim is None else ndim - len(term.replace("...", ""))
        parts.append(term.replace("...", "".join(spare[len(spare) - width :]) if width else ""))
    return parts[0], parts[1], parts[2]


def _conv(dims: int, *, transposed: bool) -> Parser:
    names: tuple[str, ...] = ("stride", "padding", "dilation", "groups")
    if transposed:
        names = ("stride", "padding", "output_padding", "groups", "dilation")
    kind = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}

    def parse(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
        x, w, b = (
            _get(args, kwargs, i, n, None) for i, n in enumerate(("input", "weight", "bias"))
        )
        options = {n: _get(args, kwargs, i + 3, n, defaults[n]) for i, n in enumerate(names)}
        return [Call(kind, x, w, b, geometry(dims, w, transposed=transposed, **options))]

    return parse


PARSERS: dict[Any, Parser] = {
    torch.nn.functional.linear: _linear,
    torch.einsum: _einsum,
    torch.functional.einsum: _einsum,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.conv1d: _conv(1, transposed=False),
    torch.conv2d: _conv(2, transposed=False),
    torch.conv3d: _conv(3, transposed=False),
    torch.conv_transpose1d: _conv(1, transposed=True),
    torch.conv_transpose2d: _conv(2, transposed=True),
    torch.conv_transpose3d: _conv(3, transposed=True),
}
for _function in ("matmul", "mm", "bmm", "mv"):
    PARSERS[getattr(torch, _function)] = _matmul
    PARSERS[getattr(Tensor, _function)] = _matmul
PARSERS[Tensor.__matmul__] = _matmul
