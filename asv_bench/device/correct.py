"""Whether teleports on a device are what they are on a processor, for every backend.

The oracles: NumPy in float64 on the processor, from equal weights; in torch besides, the gradient
of ``||g||^2 / 2`` by double backward, projected by a dense projector from an SVD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.common import Size
from benchmarks.networks import (
    jax,
    network,
    nullport,
    nullport_arrays,
    nullport_jax,
    nullport_torch,
)

from .timing import Row, Rows, Setting

SIZE, TALL = Size(64, 3, 24), Size(32, 3, 96)
"""With an exact null space, and with more samples than inputs."""

EXACT = {"objective": "grad_norm", "projection": "threshold", "radius": 0.05}
BUDGET = {**EXACT, "projection": "budget"}
SAME = 1e-9
"""Relative difference in float64 from the same on a processor: rounding, through factorisations."""

NEAR = 1e-3
"""The same from NumPy, which takes tangents by finite differences."""

LOSS = {"float32": 1e-5, "float64": 1e-12}

Moved = tuple[list[np.ndarray], Any]
"""The weights after a teleport, in the order of the layers, and the report."""


def rows(backend: str, setting: Setting) -> Rows:
    """Yield how far a backend's teleports are off."""
    place, move = setting.place(backend), MOVES[backend]
    moved: dict[str, list[np.ndarray]] = {}
    compiled = setting.small and backend == "jax"  # once, or it takes most of the time
    for dtype, limit in list(LOSS.items())[compiled:]:
        moved[dtype], report = move(place, SIZE, dtype, EXACT)
        change = abs(float(report.loss_after) / float(report.loss_before) - 1)
        yield Row(f"{dtype}: relative change of the loss, exact null space", change, "", limit)
        growth = float(report.grad_norm_before) / float(report.grad_norm_after)
        yield Row(f"{dtype}: gradient norm before over after", growth, "", 1.0)
        yield Row(f"{dtype}: output change over its bound, worst layer", _bounded(report), "", 1.0)
    for name, size, options, ours in (
        ("exact null space", SIZE, EXACT, moved["float64"]),
        ("budget, more samples than inputs", TALL, BUDGET, None),
    )[: 1 if compiled else 2]:
        ours = move(place, size, "float64", options)[0] if ours is None else ours
        theirs = _arrays("numpy:cpu", size, "float64", options)[0]
        limit = SAME if move is _arrays else NEAR
        what = f"float64: moved weights against NumPy's, {name}"
        yield Row(what, _apart(ours, theirs), "", limit)
        if setting.device != "cpu" and move is not _arrays:
            theirs = move(f"{backend}:cpu", size, "float64", options)[0]
            what = f"float64: moved weights against those on a processor, {name}"
            yield Row(what, _apart(ours, theirs), "", SAME)
    if backend == "torch":
        yield from _torch_only(place)


def _bounded(report: Any) -> float:
    """Return the largest output change over the bound that was promised."""
    tiny = 1e-30
    pairs = [(float(r.output_change), float(r.output_change_bound)) for r in report.layers]
    return max(change / max(bound, tiny) for change, bound in pairs if change > 0 or bound > 0)


def _apart(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    gaps = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]
    return float(max(gaps))


def _torch(place: str, size: Size, dtype: str, options: dict[str, Any]) -> Moved:
    made: Any = network.__wrapped__(place, size, dtype)
    report = nullport_torch.teleport(
        made.model, made.loss, config=nullport.TeleportConfig(**options)
    )
    return [m.weight.detach().cpu().numpy() for m in made.model[::2]], report


def _jax(place: str, size: Size, dtype: str, options: dict[str, Any]) -> Moved:
    made: Any = network.__wrapped__(place, size, dtype)
    config = nullport.TeleportConfig(**options)

    @jax.jit
    def jump(params: Any, *batch: Any) -> Any:
        return nullport_jax.teleport(made.loss, params, *batch, config=config)

    moved, report = jump(made.params, *made.batch)
    found = [np.asarray(w) for w, _ in moved], report
    jax.config.update("jax_enable_x64", False)  # the network has turned it on for float64
    return found


def _arrays(place: str, size: Size, dtype: str, options: dict[str, Any]) -> Moved:
    made: Any = network.__wrapped__(place, size, dtype)
    graph = nullport_arrays.from_network(made.network, made.loss, made.params, made.batch)
    report = nullport_arrays.teleport(graph, nullport.TeleportConfig(**options))
    weights = [graph.params[key]["weight"] for key in sorted(made.params, key=int)]
    return [np.asarray(w.get() if hasattr(w, "get") else w) for w in weights], report


MOVES: dict[str, Callable[..., Moved]] = {
    "torch": _torch,
    "jax": _jax,
    "numpy": _arrays,
    "cupy": _arrays,
}


def _torch_only(place: str) -> Rows:
    made: Any = network.__wrapped__(place, SIZE, "float64")
    start = [p.detach().clone() for p in made.model.parameters()]
    oracle = _oracle(made)
    nullport_torch.teleport(
        made.model, made.loss, config=nullport.TeleportConfig(**EXACT, bias=False)
    )
    moves = [(p - s).detach() for p, s in zip(made.model.parameters(), start, strict=True)]
    pairs = [(m, o) for m, o in zip(moves[2::2], oracle[1:], strict=True)]  # the first stays
    off = max(
        float(1 - torch.nn.functional.cosine_similarity(m.ravel(), o.ravel(), 0)) for m, o in pairs
    )
    yield Row("float64: 1 - cosine of direction and double backward's, worst layer", off, "", SAME)
    yield Row("refused: weights that are not as before", _refused(place), "", 0.0)
    made = network.__wrapped__(place, SIZE, "float32")
    made.model.to(torch.bfloat16)
    made.x = made.x.to(torch.bfloat16)
    report = nullport_torch.teleport(made.model, made.loss)
    yield Row("bfloat16: output change over its bound, worst layer", _bounded(report), "", 1.0)


def _oracle(made: Any) -> list[torch.Tensor]:
    """Return, for every weight matrix, the projected gradient of half the squared gradient norm."""
    weights = [m.weight for m in made.model[::2]]
    inputs = [made.x]
    for module in made.model[:-1]:
        inputs.append(module(inputs[-1]))
    parameters = list(made.model.parameters())
    g = torch.autograd.grad(made.loss(), parameters, create_graph=True)
    full = torch.autograd.grad(sum((part**2).sum() for part in g) / 2, weights)
    found = []
    for x, d in zip(inputs[::2], full, strict=True):
        basis = torch.linalg.svd(x.detach(), full_matrices=False)[2]  # rows span those of x
        found.append(d - d @ basis.T @ basis)
    return found


def _refused(place: str) -> float:
    """Return how many weights a refused move leaves changed."""
    made: Any = network.__wrapped__(place, SIZE, "float32")
    start = [p.detach().clone() for p in made.model.parameters()]
    strict = nullport.TeleportConfig(objective="grad_norm", radius=3.0, max_gain=1.0000001)
    report = nullport_torch.teleport(made.model, made.loss, config=strict)
    changed = sum(int((p != s).sum()) for p, s in zip(made.model.parameters(), start, strict=True))
    return float(changed + bool(report.accepted))
