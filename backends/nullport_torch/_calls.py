"""Recognising torch functions that apply a weight linearly: matrix products and convolutions.

Each parser turns ``(args, kwargs)`` into a :class:`Call`, or returns None if these arguments are no
linear map of ``x``. Products are all written as one labelled contraction ``x, w -> y``, as in
einsum, so that a single place decides which axes are samples, inputs, outputs and stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        joined: The contraction of other tensors that ``x`` is, if it has yet to be made.
    """

    kind: str
    x: Tensor
    w: Tensor
    b: Tensor | None
    how: Contraction | Geometry
    scale: float = 1.0
    rows: Tensor | None = None
    joined: tuple[str, tuple[Tensor, ...]] | None = None

    def given(self) -> tuple[Tensor, ...]:
        """Return the tensors that the input is made of."""
        return (self.x,) if self.joined is None else self.joined[1]

    def complete(self) -> Call:
        """Return the call with its input made."""
        if self.joined is None:
            return self
        equation, operands = self.joined
        return replace(self, x=torch.einsum(equation, *operands), joined=None)


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


def _product(
    kind: str, a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0
) -> list[Call]:
    """Both readings of ``a @ b`` with torch's broadcasting of leading axes."""
    rows = "" if a.ndim == 1 else "m"
    columns = "" if b.ndim == 1 else "n"
    lead_a, lead_b = a.shape[:-2], b.shape[:-2]
    letters = "abcdefgh"[: max(len(lead_a), len(lead_b))]
    how_a = letters[len(letters) - len(lead_a) :] + rows + "k"
    how_b = letters[len(letters) - len(lead_b) :] + "k" + columns
    y = letters + rows + columns
    return [
        _stretched(kind, (a, how_a), (b, how_b), y, bias, scale),
        _stretched(kind, (b, how_b), (a, how_a), y, bias, scale),
    ]


def _stretched(
    kind: str,
    x: tuple[Tensor, str],
    w: tuple[Tensor, str],
    y: str,
    bias: Tensor | None,
    scale: float,
) -> Call:
    """Return a reading in which axes of size 1 may have been stretched to those of the other.

    Such an axis of the input is left out; one of the weight is contracted with a new one.
    """
    (a, how_a), (b, how_b) = x, w
    sizes = {
        letter: n for t, how in (x, w) for letter, n in zip(how, t.shape, strict=True) if n > 1
    }
    for letter in y:
        big = sizes.get(letter, 1) > 1
        if big and letter in how_a and a.shape[how_a.index(letter)] == 1:
            a, how_a = a.squeeze(how_a.index(letter)), how_a.replace(letter, "")
        if big and letter in how_b and b.shape[how_b.index(letter)] == 1:
            a, how_a = a.unsqueeze(-1), how_a + letter.upper()
            how_b = how_b.replace(letter, letter.upper())
    return Call(kind, a, b, bias, Contraction(how_a, how_b, y), scale)


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
    a = _get(args, kwargs, 0, "input", None)
    b = (
        args[1]
        if len(args) > 1
        else next(kwargs[k] for k in ("other", "mat2", "vec") if k in kwargs)
    )
    return _product("matmul", a, b)


def _added(kind: str, first: str, second: str) -> Parser:
    """Return the parser of ``beta c + alpha a @ b``; a bias only where ``beta`` is 1."""

    def parse(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Call]:
        names = ("input", first, second)
        c, a, b = (_get(args, kwargs, i, name, None) for i, name in enumerate(names))
        if len(args) > 3:  # an older signature has beta in front
            return []
        bias = c if kwargs.get("beta", 1) == 1 else None
        return _product(kind, a, b, bias, kwargs.get("alpha", 1))

    return parse


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
    torch.conv1d: _conv(1, transposed=False),
    torch.conv2d: _conv(2, transposed=False),
    torch.conv3d: _conv(3, transposed=False),
    torch.conv_transpose1d: _conv(1, transposed=True),
    torch.conv_transpose2d: _conv(2, transposed=True),
    torch.conv_transpose3d: _conv(3, transposed=True),
}
for _function, _first, _second in (
    ("addmm", "mat1", "mat2"),
    ("addmv", "mat", "vec"),
    ("baddbmm", "batch1", "batch2"),
):
    PARSERS[getattr(torch, _function)] = _added(_function, _first, _second)
    PARSERS[getattr(Tensor, _function)] = _added(_function, _first, _second)
for _function in ("matmul", "mm", "bmm", "mv"):
    PARSERS[getattr(torch, _function)] = _matmul
    PARSERS[getattr(Tensor, _function)] = _matmul
PARSERS[Tensor.__matmul__] = _matmul
