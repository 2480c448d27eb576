"""What the adapter is judged by: differentiation of the gradient, NumPy projectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from helpers.dense import null_projector
from jax_adapter.models import Built

from nullport import TeleportConfig
from nullport._capture import Block, explained, find_layers, lazy_norms
from nullport._direction import Directions
from nullport.network import Change, Collective, Layout, Linearization, Parameter, Use, dense
from nullport_jax._graph import JaxGraph
from nullport_jax._tree import name_of

Matrix = npt.NDArray[Any]
CONFIG = TeleportConfig(projection="threshold")


def floats(params: Any) -> dict[str, jax.Array]:
    """Return the leaves that are arrays of floats, by name."""
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        name_of(path): leaf
        for path, leaf in found
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def exchanged(params: Any, values: dict[str, jax.Array]) -> Any:
    """Return ``params`` with the leaves named in ``values`` exchanged."""
    found, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves = [values.get(name_of(path), leaf) for path, leaf in found]
    return jax.tree_util.tree_unflatten(treedef, leaves)


def loss_of(built: Built) -> Callable[[dict[str, jax.Array]], jax.Array]:
    """Return the loss as a function of the named leaves."""
    return lambda values: built.loss(exchanged(built.params, values), *built.batch)


def gradients(built: Built) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    """Return the gradient of the loss, and that of half its square norm, reverse over reverse."""
    first = jax.grad(loss_of(built))

    def half(values: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        g = first(values)
        return 0.5 * sum(jnp.sum(a**2) for a in g.values()), g

    second, g = jax.jit(jax.grad(half, has_aux=True))(floats(built.params))
    return _numpy(g), _numpy(second)


def _numpy(tree: Any) -> Any:
    return jax.tree_util.tree_map(np.asarray, tree)


@dataclass
class Found:
    """What nullport found in a network, as NumPy arrays.

    Attributes:
        parameters: All parameters.
        uses: All their uses.
        blocks: What may move.
        reasons: Why weights do not move, by name.
        loss: The loss.
        gradient: Its gradient, by parameter.
        parts: Per use, ``delta^T X`` or the sum of ``delta``; None where it has none.
        norms: Per block, the norm of its sites' outputs, bias left out.
        rows: Inputs of every block, (..., n, features).
        directions: Projected direction of every block.
        unexplained: What the sites leave unexplained of the gradient of a block.
    """

    parameters: list[Parameter]
    uses: list[Use]
    blocks: list[Block]
    reasons: dict[str, str]
    loss: float
    gradient: list[Matrix | None]
    parts: list[Matrix | None]
    norms: list[float]
    rows: list[Matrix]
    directions: list[Matrix]
    unexplained: list[float]

    def matrix(self, block: Block, vector: dict[str, Matrix]) -> Matrix:
        """Return a block's part of a vector over all parameters, (..., out, features)."""
        matrix = elements(vector[self.parameters[block.parameter].name], block.layout)
        if block.bias is None:
            return matrix
        index, layout = block.bias
        bias = elements(vector[self.parameters[index].name], layout)
        return np.concatenate([matrix, bias[..., None]], axis=-1)


def find(built: Built) -> Found:
    """Capture a network and compute its directions, all in one compiled function."""
    graph: JaxGraph | None = None
    blocks: list[Block] = []
    uses: list[Use] = []
    reasons: dict[str, str] = {}
    data, treedef = jax.tree_util.tree_flatten((built.params, built.batch))
    held = [hasattr(leaf, "dtype") for leaf in data]

    def run(arrays: list[Any]) -> Any:
        nonlocal graph
        given = iter(arrays)
        leaves = [next(given) if h else leaf for h, leaf in zip(held, data, strict=True)]
        params, batch = jax.tree_util.tree_unflatten(treedef, leaves)
        graph = JaxGraph(built.loss, params, batch)
        with graph.exact():
            lin = graph.linearize()
            layers, excluded = find_layers(graph, lin, CONFIG, lazy_norms(graph.weights()))
            captured = [layer.block for layer in layers]
            collected = Directions(
                graph,
                layers,
                lin,
                CONFIG,
                length=1.0,
                scale=1.0,
                direct=None,
                spaces={},
                keep=False,
            )
            graph.jvp(lin.gradients, collected.receive)
            collected.finish()
            rows = [_rows(b, lin.sites) for b in captured]
            got = [collected.found[i].delta for i in range(len(layers))]
            directions = [
                _zero(graph, b, r) if one is None else dense(one)
                for one, b, r in zip(got, captured, rows, strict=True)
            ]
            parts = [_part(use, lin.sites) for use in lin.uses]
            outputs = [[lin.sites[i].output_norm for i in b.sites] for b in captured]
            norms = [jnp.linalg.norm(jnp.stack(norms)) for norms in outputs]
            unexplained = [_unexplained(graph, b, lin) for b in captured]
        blocks.extend(captured)
        uses.extend(lin.uses)
        reasons.update(excluded)
        return lin.loss, lin.gradients, parts, norms, rows, directions, unexplained

    out = jax.jit(run)([leaf for leaf, h in zip(data, held, strict=True) if h])
    loss, gradient, parts, norms, rows, directions, unexplained = _numpy(out)
    assert graph is not None
    left = [float(u) for u in unexplained]
    return Found(
        graph.parameters, uses, blocks, reasons, float(loss), gradient, parts, norms, rows,
        directions, left,
    )  # fmt: skip


def _unexplained(graph: JaxGraph, block: Block, lin: Linearization) -> jax.Array:
    gradient = lin.gradients[block.parameter]
    assert gradient is not None
    return explained(block, graph.read(block.parameter, gradient, block.layout), lin, Collective())


def _zero(graph: JaxGraph, block: Block, rows: jax.Array) -> jax.Array:
    """Return the direction of a block that no tangent reaches, (..., out, features)."""
    weight = graph.weights()[block.parameter]
    outputs = graph.read(block.parameter, weight, block.layout)[..., :1]
    return jnp.zeros((*outputs.shape[:-1], rows.shape[-1]))


def _rows(block: Block, sites: Any) -> jax.Array:
    rows = jnp.concatenate([c for i in block.sites for c in sites[i].rows()], axis=-2)
    if block.bias is None:
        return rows
    return jnp.concatenate([rows, jnp.ones((*rows.shape[:-1], 1), rows.dtype)], axis=-1)


def _part(use: Use, sites: Any) -> jax.Array | None:
    """Return what a use adds to the gradient of its parameter."""
    site = None if use.site is None else sites[use.site]
    if site is None or site.cotangent is None:
        return None
    return site.bias_gradient() if use.role == "bias" else site.weight_gradient(site.inputs)


def elements(array: Matrix, layout: Layout) -> Matrix:
    """Return the elements of an array that a layout names, one by one."""
    found = array.reshape(-1)[layout.elements()]
    sizes = [[size for size, _ in part] for part in (layout.stack, layout.out, layout.inp)]
    stack, out, inp = (int(np.prod(part)) for part in sizes)
    shape = (stack, out, inp) if layout.inp else (stack, out)
    return found.reshape(shape if layout.stack else shape[1:])


def projected(matrix: Matrix, rows: Matrix) -> Matrix:
    """Project matrices (..., out, features) onto the null space of rows (..., n, features)."""
    return matrix @ null_projector(rows)


def move_at_random(built: Built, found: Found, relative: float = 0.3) -> tuple[JaxGraph, Any]:
    """Move every block at random in the null space of its captured rows.

    Returns:
        The moved graph, and per leaf which elements had to change.
    """
    graph = JaxGraph(built.loss, built.params, built.batch)
    start = {name: np.asarray(leaf) for name, leaf in floats(built.params).items()}
    generator = np.random.default_rng(0)
    changed = {name: np.zeros(leaf.size, bool) for name, leaf in start.items()}
    for block, rows in zip(found.blocks, found.rows, strict=True):
        weight = found.matrix(block, start)
        change = projected(generator.standard_normal(weight.shape), rows)
        change *= relative * np.linalg.norm(weight) / max(float(np.linalg.norm(change)), 1e-9)
        parts = [(block.parameter, block.layout, change)]
        if block.bias is not None:
            parts = [(*parts[0][:2], change[..., :-1]), (*block.bias, change[..., -1])]
        for parameter, layout, part in parts:
            graph.move([Change(parameter, layout, jnp.asarray(part))])
            name = found.parameters[parameter].name
            changed[name][layout.elements()] |= bool(part.any())
    return graph, changed
