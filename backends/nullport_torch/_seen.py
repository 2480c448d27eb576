"""A linear map as the core sees it: rows of inputs and outputs, and the layout of its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from nullport.network import DenseSite, Layout, Part, Site
from nullport_torch import _conv
from nullport_torch._calls import Call, Contraction
from nullport_torch._conv import ConvSite, Geometry
from nullport_torch._sharded import whole


@dataclass(frozen=True)
class Seen:
    """A site in the making: the call, its input as the core will see it, its output's edge."""

    call: Call
    inputs: Tensor
    edge: GradientEdge | None
    output_norm: Tensor
    output_shape: torch.Size
    replayable: bool
    half: bool
    part: Part | None = None


def site_of(seen: Seen, gradient: Tensor | None) -> Site:
    """Join what was seen in the forward pass with the gradient of the site's output."""
    call, part = seen.call, seen.part
    site: Site
    gradient = None if gradient is None else whole(gradient)
    if isinstance(call.how, Geometry):
        batched = len(call.how.kernel) + 2
        if gradient is not None and gradient.ndim < batched:
            gradient = gradient[None]
        positions = seen.output_shape[-len(call.how.kernel) :].numel()
        site = ConvSite(call.kind, seen.inputs, gradient, seen.output_norm, call.how, positions)
    else:
        if gradient is not None:
            gradient = _rows_of_output(call, gradient)
        site = DenseSite(call.kind, seen.inputs, gradient, seen.output_norm)
    return site if part is None or part.plain else part.site(site)


def _rows_of_output(call: Call, out: Tensor) -> Tensor:
    """Return an array shaped like the output of a call as rows, with groups as a stack."""
    if isinstance(call.how, Geometry):
        batched = out if out.ndim == len(call.how.kernel) + 2 else out[None]
        split: Tensor = batched.unflatten(1, (call.how.groups, -1)).movedim((1, 2), (0, -1))
        return split.flatten(1, -2)
    roles = call.how.roles
    assert roles is not None  # only linear readings become sites
    return as_rows(call.how, call.how.y, roles[2], _sorted(call, out))


def _sorted(call: Call, tensor: Tensor) -> Tensor:
    """Return rows by the matrix that they belong to, padded by zeros, where they are sorted so."""
    if call.rows is None:
        return tensor
    padded = torch.cat([tensor, tensor.new_zeros((1, *tensor.shape[1:]))])
    return padded[call.rows]


def output_rows(call: Call, part: Part | None, out: Tensor) -> Tensor:
    """Return what a part of the weight contributes to the output, in any shape."""
    out = linear_part(call, out)
    if part is None or part.plain:
        return out
    shown: Tensor = part.shown(_rows_of_output(call, out))
    return shown


def permuted(letters: str, order: str, tensor: Tensor) -> Tensor:
    """Return ``tensor`` with its axes, named by ``letters``, in another ``order``."""
    permutation = [letters.index(c) for c in order]
    return tensor if permutation == sorted(permutation) else tensor.permute(permutation)


def as_rows(how: Contraction, letters: str, last: str, tensor: Tensor) -> Tensor:
    """Reshape ``tensor`` with axes ``letters`` to (stack..., samples, last)."""
    roles = how.roles
    assert roles is not None  # only linear readings become sites
    stack, samples = roles[0], roles[1]
    tensor = permuted(letters, stack + samples + last, tensor)
    lead = tensor.shape[: len(stack)]
    rows = tensor.shape[len(stack) : len(stack) + len(samples)].numel()
    return tensor.reshape(*lead, rows, tensor.shape[len(stack) + len(samples) :].numel())


def site_inputs(call: Call) -> Tensor:
    """Return the input of a call as its site holds it: rows, or (batch, channels, *space)."""
    if isinstance(call.how, Geometry):
        return call.x if call.x.ndim == len(call.how.kernel) + 2 else call.x[None]
    roles = call.how.roles
    assert roles is not None  # only linear readings become sites
    return as_rows(call.how, call.how.x, roles[3], _sorted(call, call.x))


def _axes(tensor: Tensor, letters: str, which: str) -> tuple[tuple[int, int], ...]:
    return tuple((tensor.shape[letters.index(c)], tensor.stride(letters.index(c))) for c in which)


def linear_part(call: Call, out: Tensor) -> Tensor:
    """Return the output without its bias: what a change of the weight is compared with."""
    if call.b is None:
        return out
    bias = call.b.detach().to(out.dtype)
    if isinstance(call.how, Geometry):
        bias = bias.reshape(-1, *(1 for _ in call.how.kernel))
    return out - bias


def weight_layout(call: Call, offset: int) -> Layout:
    """Return where the weight of a call lies in its parameter, from ``offset`` on."""
    if isinstance(call.how, Geometry):
        return _conv.weight_layout(call.how, call.w, offset)
    roles = call.how.roles
    assert roles is not None  # only linear readings become sites
    stack, _, out, inp = (
        _axes(call.w, call.how.w, which) if i != 1 else () for i, which in enumerate(roles)
    )
    return Layout(offset, stack, out, inp)


def along_outputs(call: Call) -> bool:
    """Tell whether the bias of a call has one axis, the outputs."""
    if call.b is None or call.b.ndim != 1:
        return False
    if isinstance(call.how, Geometry):
        return True
    roles = call.how.roles
    same = (
        call.b.shape[0] == call.w.shape[call.how.w.index(call.how.y[-1])]
        if (call.how.y[-1] in call.how.w)
        else False
    )
    return roles is not None and roles[2] == call.how.y[-1] and not roles[0] and same


def bias_layout(call: Call, b: Tensor, offset: int) -> Layout:
    """Return where the bias of a call lies in its parameter, from ``offset`` on."""
    if isinstance(call.how, Geometry):
        return _conv.bias_layout(call.how, b, offset)
    return Layout(offset, (), ((b.shape[0], b.stride(0)),), ())
