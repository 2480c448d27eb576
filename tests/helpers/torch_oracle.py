"""Independent oracles of the projected teleport gradient, by double backward and by differences.

Nothing of nullport's capture or null spaces is used: inputs are gathered by patching
``F.linear`` or by hooks, patches by probing a layer with unit weights, projectors by NumPy's SVD.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from helpers.dense import null_projector, with_ones
from torch import Tensor, nn

from nullport import Engine, TeleportConfig
from nullport._arrays import dense
from nullport._step import _parts
from nullport._teleport import _Run
from nullport.network import Change
from nullport_torch._graph import TorchGraph
from nullport_torch._optimizer import Optimizers
from nullport_torch._weights import _add

Closure = Callable[[], Tensor]
Gradients = Mapping[str, Tensor]


def double_backward(model: nn.Module, closure: Closure) -> dict[str, Tensor]:
    """Return ``d(||g||^2 / 2)/dp`` for every parameter, by differentiating the gradient."""
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first = torch.autograd.grad(
        closure(), list(live.values()), create_graph=True, allow_unused=True
    )
    half = 0.5 * sum((g.square().sum() for g in first if g is not None), start=torch.zeros(()))
    second = torch.autograd.grad(half, list(live.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(live.items(), second, strict=True)
    }


def gradient(model: nn.Module, closure: Closure, seed: int = 0) -> dict[str, Tensor]:
    """Return the gradient of the loss for every parameter, zero where it does not depend."""
    torch.manual_seed(seed)
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(closure(), list(live.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(live.items(), found, strict=True)
    }


def finite_difference(
    model: nn.Module, closure: Closure, *, seed: int = 0, step: float = 1e-6
) -> dict[str, Tensor]:
    """Return ``d(||g||^2 / 2)/dp = H g`` by a central difference of two gradients."""
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    v = gradient(model, closure, seed)
    saved = {name: p.detach().clone() for name, p in live.items()}
    ends = []
    try:
        for sign in (1.0, -1.0):
            for name, p in live.items():
                p.data.copy_(saved[name] + sign * step * v[name])
            ends.append(gradient(model, closure, seed))
    finally:
        for name, p in live.items():
            p.data.copy_(saved[name])
    return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in live}


def gradient_norm(model: nn.Module, closure: Closure, seed: int = 0) -> float:
    """Return the norm of the gradient over all parameters."""
    squares = sum(float(g.double().square().sum()) for g in gradient(model, closure, seed).values())
    return squares**0.5


def project(
    objective: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], *, bias: bool
) -> npt.NDArray[np.float64]:
    """Project matrices (..., out, features) onto the null space of rows (..., n, in)."""
    return objective @ null_projector(with_ones(rows) if bias else rows)


def probed_patches(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the rows that a convolution multiplies with its weight, (groups, n, in).

    The output for the weight that is 1 at one input of every group, and 0 elsewhere, is that
    column of the patch matrix. One convolution per column: slow and beyond doubt.
    """
    probe = copy.deepcopy(layer)
    assert isinstance(probe.weight, Tensor)
    assert isinstance(probe.groups, int)
    groups, transposed = probe.groups, "Transpose" in type(probe).__name__
    probe.bias = None
    columns = []
    shape = probe.weight.shape
    inputs = shape[0] // groups if transposed else shape[1]
    outputs = shape[1] if transposed else shape[0] // groups
    with torch.no_grad():
        for channel in range(inputs):
            for position in np.ndindex(*shape[2:]):
                unit = torch.zeros_like(probe.weight)
                if transposed:
                    unit[(slice(channel, None, inputs), slice(None), *position)] = 1.0
                else:
                    unit[(slice(None), channel, *position)] = 1.0
                probe.weight = nn.Parameter(unit)
                out = probe(x)
                firsts = out.unflatten(1, (groups, outputs))[:, :, 0]
                columns.append(firsts.transpose(0, 1).flatten(1))
    return torch.stack(columns, dim=-1)


def conv_matrices(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a weight-shaped array as (groups, out, in * kernel), the bias as last column."""
    assert isinstance(layer.groups, int)
    split = weight.unflatten(0, (layer.groups, -1))
    if "Transpose" in type(layer).__name__:
        split = split.transpose(1, 2)
    matrices = split.flatten(2)
    if bias is None:
        return matrices
    return torch.cat([matrices, bias.reshape(layer.groups, -1, 1)], dim=-1)


def teleport_directions(
    model: nn.Module,
    closure: Closure,
    *,
    tangent: str = "jvp",
    config: TeleportConfig | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    others: Closure | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return nullport's projected direction of every block, (..., out, features), by name."""
    config = config or TeleportConfig(projection="threshold", tangent=tangent)  # type: ignore[arg-type]
    trained = None if optimizer is None else Optimizers(optimizer, model)
    graph = TorchGraph(model, closure, others=others, optimizer=trained)
    engine = _Spy(config.tangent)
    with graph.exact():
        run = _Run(graph, config, engine, None)
        lin = graph.linearize()
        run.prepare(lin)
        run.lent = [lin]
        del lin
        run.directions(last=True)
    assert not any(bool(layer.hidden) for layer in run.layers)
    # Without other terms a direction is left at the scale of tangents per relative length.
    whole = run.objective in ("look_ahead", "others", "sharpness", "weight_norm")
    scale = 1.0 if whole else float(engine.step)
    return {
        layer.block.name: dense(run.found[b].delta).double().numpy() / scale
        for b, layer in enumerate(run.layers)
        if run.found[b].delta is not None
    }


class _Spy(Engine):
    """An engine that remembers the scale of its tangents."""

    step: Tensor = torch.ones(())

    def __call__(self, graph: object, v: object, step: Tensor, *rest: object) -> float:
        self.step = step
        return super().__call__(graph, v, step, *rest)  # type: ignore[arg-type]


def parameter_directions(
    model: nn.Module, closure: Closure, *, tangent: str = "jvp"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return nullport's projected direction of every parameter, and why the others stay.

    Directions are shaped like the parameters, 0 where no block lies; blocks that share a site or
    are cut out of one parameter are put together.
    """
    config = TeleportConfig(projection="threshold", tangent=tangent)  # type: ignore[arg-type]
    graph, engine = TorchGraph(model, closure), _Spy(tangent)
    with graph.exact():
        run = _Run(graph, config, engine, None)
        lin = graph.linearize()
        run.prepare(lin)
        run.lent = [lin]
        del lin
        run.directions(last=True)
    assert not any(bool(layer.hidden) for layer in run.layers)
    scale, found = float(engine.step), {}
    names = [parameter.name for parameter in graph.parameters]
    empty = [torch.zeros_like(p) for p in graph.weights()]
    for b, layer in enumerate(run.layers):
        delta = run.found[b].delta
        if delta is None:
            continue
        for index, layout, part in _parts(layer, dense(delta)):
            _add(empty[index], Change(index, layout, dense(part) / scale))
            found[names[index]] = empty[index]
    return found, dict(run.excluded)


def projected_by_probing(
    outputs: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    objective: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Project an objective's gradient onto the null space of a map's Jacobian, densely.

    Args:
        outputs: The map, linear in all weights together, as a function of them.
        weights: Those that move together: one, or a weight with its bias.
        objective: Gradients by name.
    """
    names = list(weights)

    def stacked(*values: Tensor) -> Tensor:
        return outputs(dict(zip(names, values, strict=True))).reshape(-1)

    found = torch.autograd.functional.jacobian(stacked, tuple(weights.values()))
    jacobian = torch.cat([part.flatten(1) for part in found], dim=1)
    whole = torch.cat([objective[name].flatten() for name in names])
    _, s, vt = torch.linalg.svd(jacobian, full_matrices=False)
    rows = vt[s > 1e-10 * s.max()]
    left = whole - rows.T @ (rows @ whole)
    sizes = [weights[name].numel() for name in names]
    parts = left.split(sizes)
    return {n: part.reshape(weights[n].shape) for n, part in zip(names, parts, strict=True)}
