"""Tensors whose elements are elements of parameters: moved about, scaled, and added to.

Numbers ride along: every element of a parameter has one, and a function that only moves elements is
run on the numbers as on the tensor itself. What it leaves empty has the number 0. A function that
scales elements is run on their factors. A sum has one *term* per summand that is followed; other
summands do not matter, for a move of the weight leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nullport_torch._watch import tensors_in

_MOVES = (
    "cat concat concatenate stack hstack vstack dstack column_stack row_stack __getitem__ "
    "index_select gather take take_along_dim flip fliplr flipud roll rot90 repeat tile "
    "repeat_interleave expand expand_as broadcast_to t transpose swapaxes swapdims permute "
    "movedim moveaxis reshape view flatten unflatten ravel squeeze unsqueeze narrow select chunk "
    "split tensor_split split_with_sizes hsplit vsplit dsplit unbind unfold diagonal block_diag "
    "diag_embed view_as reshape_as adjoint slice_scatter select_scatter index_copy unsafe_chunk "
    "unsafe_split pad atleast_2d atleast_3d as_strided_copy narrow_copy"
)
_SAME = "to float double half bfloat16 type_as contiguous clone detach cpu cuda type"
_SCALES = (
    "mul multiply __mul__ __rmul__ div divide true_divide __truediv__ neg negative __neg__ "
    "tril triu masked_fill where"
)
_SUMS = "add __add__ __radd__ sub subtract __sub__ __rsub__ rsub"
_ATTRIBUTES = ("T", "mT", "H", "mH")


def _named(names: str) -> set[Any]:
    homes = (torch, Tensor, torch._C._nn)
    return {getattr(home, name) for name in names.split() for home in homes if hasattr(home, name)}


MOVES, SAME, SCALES, SUMS = (_named(names) for names in (_MOVES, _SAME, _SCALES, _SUMS))
MOVES |= {getattr(Tensor, name).__get__ for name in _ATTRIBUTES}


@dataclass(frozen=True)
class Term:
    """A summand whose elements are elements of parameters.

    Attributes:
        numbers: The number of every element, 0 where there is none; shaped like the tensor.
        factor: What every element is multiplied by, likewise, or None.
    """

    numbers: Tensor
    factor: Tensor | None = None

    def scaled(self, factor: float) -> Term:
        """Return the term times a number."""
        if factor == 1:
            return self
        old = self.factor
        if old is None:
            old = torch.ones((), dtype=torch.float64, device=self.numbers.device)
            old = old.expand(self.numbers.shape)
        return Term(self.numbers, old * factor)


Terms: TypeAlias = "list[Term]"
TermsOf: TypeAlias = "Callable[[Tensor], Terms | None]"


def numbered(view: Tensor, offset: int, start: int) -> Term:
    """Return the numbers of a parameter's view that begins at ``offset`` in its storage."""
    numbers = torch.full((), start + offset + 1, dtype=torch.int64, device=view.device)
    numbers = numbers.expand(view.shape)
    for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        along = torch.arange(size, device=view.device) * stride
        numbers = numbers + along.reshape([-1 if k == axis else 1 for k in range(view.ndim)])
    return Term(numbers)


def follows(func: Any) -> bool:
    """Tell whether results of a function may be followed."""
    return func in MOVES or func in SAME or func in SCALES or func in SUMS


def scales_by_activations(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, terms_of: TermsOf
) -> bool:
    """Tell whether a function that is followed scales by something computed from weights."""
    rest = [t for t in tensors_in((args, kwargs)) if not _weight(t, out, terms_of)]
    return func in SCALES and any(t.requires_grad for t in rest)


def followed(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, terms_of: TermsOf
) -> tuple[list[Terms], list[Tensor]] | None:
    """Return the terms of every output of a function, and the operands that are not followed.

    None if the function does something else with these arguments.
    """
    outputs = _outputs(out)
    floating = [isinstance(t, Tensor) and t.dtype.is_floating_point for t in outputs]
    if not outputs or not all(floating) or kwargs.get("out") is not None:
        return None
    if func in SAME:
        terms = terms_of(args[0])
        return None if terms is None else ([terms], [])
    if func in SCALES:
        return _scaled(func, args, kwargs, outputs[0], terms_of)
    if func in SUMS:
        return _summed(func, args, kwargs, outputs[0], terms_of)
    if func in MOVES:
        return _moved(func, args, kwargs, len(outputs), terms_of), []
    return None


def _mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return nested arguments with ``function`` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(item, function) for item in value])
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    return value


def _moved(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], count: int, terms_of: TermsOf
) -> list[Terms]:
    """Run a function on numbers, and on factors if there are any."""
    if getattr(func, "__name__", "") == "pad":  # what it fills in belongs to no parameter
        args, kwargs = args[:3], {k: v for k, v in kwargs.items() if k != "value"}
    found = {id(t): terms_of(t) for t in tensors_in((args, kwargs))}
    most = max(len(terms) for terms in found.values() if terms is not None)
    results: list[Terms] = [[] for _ in range(count)]
    for k in range(most):

        def own(t: Tensor, k: int = k) -> Term | None:
            terms = found[id(t)]
            return None if terms is None or k >= len(terms) else terms[k]

        def numbers(t: Tensor, own: Any = own) -> Tensor:
            term = own(t)
            if term is not None:
                given: Tensor = term.numbers
                return given
            if not t.dtype.is_floating_point:
                return t  # an index
            return torch.zeros(t.shape, dtype=torch.int64, device=t.device)

        def factors(t: Tensor, own: Any = own) -> Tensor:
            term = own(t)
            if term is not None and term.factor is not None:
                given: Tensor = term.factor.double()
                return given
            return t if not t.dtype.is_floating_point else torch.ones_like(t, dtype=torch.float64)

        scaled = any(
            term is not None and term.factor is not None
            for term in map(own, tensors_in((args, kwargs)))
        )
        moved = _outputs(func(*_mapped(args, numbers), **_mapped(kwargs, numbers)))
        scales = (
            _outputs(func(*_mapped(args, factors), **_mapped(kwargs, factors)))
            if scaled
            else [None] * count
        )
        for result, at, factor in zip(results, moved, scales, strict=True):
            result.append(Term(at, factor))
    return results


def _outputs(out: Any) -> list[Any]:
    return list(out) if isinstance(out, list | tuple) else [out]


def _scaled(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor, terms_of: TermsOf
) -> tuple[list[Terms], list[Tensor]] | None:
    """Run a function on the factors of the one operand that is followed."""
    name = getattr(func, "__name__", "").strip("_")
    operands = list(args) + list(kwargs.values())
    which = [k for k, t in enumerate(operands) if _weight(t, out, terms_of)]
    if len(which) != 1 or (name in ("div", "divide", "true_divide", "truediv") and which != [0]):
        return None
    weight = operands[which[0]]
    terms = terms_of(weight)
    rest = [t for k, t in enumerate(operands) if k not in which and isinstance(t, Tensor)]
    assert terms is not None  # it is a weight
    if name in ("where", "masked_fill"):
        args = [*operands]
        for k in range(1 if name == "where" else 2, len(args)):
            args[k] = args[k] if k in which else 0.0
        kwargs = {}
    found = []
    for term in terms:
        ones = torch.ones((), dtype=torch.float64, device=out.device).expand(out.shape)
        factor = ones if term.factor is None else term.factor

        def of(t: Tensor, factor: Tensor = factor) -> Tensor:
            return factor if t is weight else t

        scaled = func(*_mapped(list(args), of), **_mapped(kwargs, of))
        found.append(Term(term.numbers, scaled.double()))
    return [found], [t for t in rest if terms_of(t) is not None]


def _summed(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor, terms_of: TermsOf
) -> tuple[list[Terms], list[Tensor]] | None:
    """Return the terms of all summands."""
    name = getattr(func, "__name__", "").strip("_")
    pair = [*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)][:2]
    alpha = float(kwargs.get("alpha", 1))
    signs = [1.0, alpha if name in ("add", "radd") else -alpha]
    if name in ("rsub", "rsub_"):  # rsub(a, b) and b.__rsub__(a) are b - alpha a
        signs = [-alpha, 1.0]
    terms, left = [], []
    for operand, sign in zip(pair, signs, strict=True):
        if _weight(operand, out, terms_of):
            terms += [term.scaled(sign) for term in terms_of(operand) or []]
        elif isinstance(operand, Tensor) and terms_of(operand) is not None:
            left.append(operand)
    return ([terms], left) if terms else None


def _weight(operand: Any, out: Tensor, terms_of: TermsOf) -> bool:
    """Tell whether an operand is a followed matrix that is not repeated to fit another one."""
    shaped = isinstance(operand, Tensor) and operand.shape == out.shape and operand.ndim >= 2
    return shaped and terms_of(operand) is not None
