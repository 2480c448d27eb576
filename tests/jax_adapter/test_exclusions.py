"""Weights that must not move: each with a readable reason, and the loss stays when others do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_adapter.models import Built, Draw, library, mean_square
from jax_adapter.oracle import find, floats, move_at_random

Use = Callable[[jax.Array, Any], jax.Array]


@dataclass(frozen=True)
class Case:
    """A network, the weights that must stay, and why.

    Attributes:
        name: For the test's id.
        make: Makes the network.
        still: Names of leaves and regular expressions for their reasons.
    """

    name: str
    make: Callable[[], Built]
    still: dict[str, str]

    def __repr__(self) -> str:
        return self.name


def net(use: Use, penalty: Callable[[Any], Any] = lambda _: 0.0) -> Callable[[], Built]:
    """Stem, any use of a weight ``w`` (and of ``u``, ``b``), head."""

    def make() -> Built:
        draw = Draw()
        params = {
            "stem": draw(5, 9, scale=0.4), "w": draw(9, 9, scale=0.3), "u": draw(9, 9, scale=0.3),
            "b": draw(9), "head": draw(9, 3),
        }  # fmt: skip

        def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            h = jnp.tanh(x @ p["stem"])
            return mean_square(jnp.tanh(use(h, p)) @ p["head"], y) + penalty(p)

        return Built(loss, params, (draw(4, 5), draw(4, 3)))

    return make


@jax.custom_vjp
def _scaled(h: jax.Array, w: jax.Array) -> jax.Array:
    return h @ w


_scaled.defvjp(lambda h, w: (h @ w, (h, w)), lambda r, g: (2 * (g @ r[1].T), r[0].T @ g))


@jax.custom_jvp
def _bent(h: jax.Array, w: jax.Array) -> jax.Array:
    return h @ w


@_bent.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (h, w), (dh, dw) = primals, tangents
    return h @ w, 2 * (dh @ w) + h @ dw


def _while(h: jax.Array, p: Any) -> jax.Array:
    def body(state: Any) -> Any:
        i, a = state
        return i + 1, jnp.tanh(a @ p["w"])

    state = lax.while_loop(lambda s: s[0] < 2 + 0 * s[1][0, 0].astype(int), body, (0, h))
    return h + lax.stop_gradient(state[1])


def _carried(h: jax.Array, p: Any) -> jax.Array:
    def body(carry: Any, _: None) -> Any:
        a, w = carry
        return (jnp.tanh(a @ w), w + 0.01), None

    return lax.scan(body, (h, p["w"]), None, length=2)[0][0]


def _returned(h: jax.Array, p: Any) -> jax.Array:
    _, stack = lax.scan(lambda c, _: (c, p["w"]), 0.0, None, length=2)
    return h @ stack[0]


def _shard_map(h: jax.Array, p: Any) -> jax.Array:
    spec = jax.sharding.PartitionSpec()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("i",))
    shard_map = jax.shard_map if hasattr(jax, "shard_map") else _old_shard_map()
    return shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(h, p["w"])


def _old_shard_map() -> Any:
    return library("jax.experimental.shard_map").shard_map


def _as_input(h: jax.Array, p: Any) -> jax.Array:
    return h * lax.conv_general_dilated(p["w"][None], h[:3, :, None], (1,), "VALID")[0, 0, 0]


CASES = [
    Case("square", net(lambda h, p: h @ (p["w"] * p["w"])), {"w": "multiplied by"}),
    Case("product", net(lambda h, p: h @ (p["w"] + p["u"] @ p["u"])), {"u": "two param"}),
    Case(
        "returned from a branch",
        net(lambda h, p: h @ lax.cond(h[0, 0] > 0, lambda: p["w"], lambda: 2 * p["u"])),
        {"w": "returned from a branch", "u": "returned from a branch"},
    ),
    Case("while", net(_while), {"w": "used inside while"}),
    Case("custom_vjp", net(lambda h, p: _scaled(h, p["w"])), {"w": "used by custom_vjp, whose"}),
    Case("custom_jvp", net(lambda h, p: _bent(h, p["w"])), {"w": "used by custom_jvp, whose"}),
    Case("shard_map", net(_shard_map), {"w": "used inside shard_map"}),
    Case("carried", net(_carried), {"w": "carried through a scan"}),
    Case("returned", net(_returned), {"w": "returned from a scan"}),
    Case(
        "gathered",
        net(lambda h, p: h @ p["w"] + p["w"][jnp.arange(4)]),
        {"w": "also used by (gather|add|tanh)"},
    ),
    Case(
        "weight decay",
        net(lambda h, p: h @ p["w"], lambda p: jnp.sum(p["w"] ** 2)),
        {"w": "also used by (square|integer_pow|mul)"},
    ),
    Case("W and W shifted", net(lambda h, p: h @ p["w"] + h[:, 1:] @ p["w"][:8]), {"w": "layouts"}),
    Case("rounded", net(lambda h, p: h @ p["w"].astype(jnp.int32)), {"w": "convert_element_type"}),
    Case("input of a convolution", net(_as_input), {"w": "the input of a convolution"}),
]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_reason_and_loss(case: Case) -> None:
    built = case.make()
    found = find(built)
    names = {block.name for block in found.blocks}
    uses = {found.parameters[u.parameter].name: u for u in found.uses}
    for name, reason in case.still.items():
        assert name in uses
        assert name not in names
        assert re.search(reason, found.reasons[name]), found.reasons[name]
    assert names, "nothing else moves"
    graph, _ = move_at_random(built, found)
    start, now = floats(built.params), floats(graph.params)
    for name in case.still:
        assert np.array_equal(start[name], now[name])
    assert any(not np.array_equal(start[name], now[name]) for name in names)
    assert float(built.loss(graph.params, *built.batch)) == pytest.approx(found.loss, rel=1e-11)


BIASES: dict[str, tuple[Use, bool]] = {
    "plain": (lambda h, p: h @ p["w"] + p["b"], True),
    "first": (lambda h, p: p["b"] + h @ p["w"], True),
    "after a reshape": (
        lambda h, p: ((h @ p["w"]).reshape(2, 2, 3, 3) + p["b"].reshape(3, 3)).reshape(4, 9),
        True,
    ),
    "after a transpose": (lambda h, p: ((h @ p["w"]).T + p["b"][:, None]).T, True),
    "in another dtype": (
        lambda h, p: (h @ p["w"]).astype(jnp.float32).astype(jnp.float64) + p["b"],
        True,
    ),
    "the output is used before": (lambda h, p: (y := h @ p["w"]) + p["b"] + jnp.sin(y), False),
    "after a function": (lambda h, p: jnp.sin(h @ p["w"]) + p["b"], False),
    "added to a part": (
        lambda h, p: jnp.concatenate([(y := h @ p["w"])[:, :4] + p["b"][:4], y[:, 4:]], axis=1),
        False,
    ),
    "one for all outputs": (lambda h, p: h @ p["w"] + p["b"][0], False),
    "one per sample": (lambda h, p: h @ p["w"] + p["b"][:4, None], False),
    "one per part of the samples": (
        lambda h, p: jnp.concatenate(
            [a + b for a, b in zip(jnp.split(h @ p["w"], 2), (p["b"], p["u"][0]), strict=True)]
        ),
        False,
    ),
    "of a repeated output": (
        lambda h, p: (
            jnp.broadcast_to((h @ p["w"])[None], (2, 4, 9)) + p["b"].repeat(2).reshape(2, 1, 9)
        ).sum(0),
        False,
    ),
    "one per copy of the output": (
        lambda h, p: (
            (jnp.broadcast_to(h @ p["w"][:, :3], (3, 4, 3)) + p["b"].reshape(3, 1, 3))
            .swapaxes(0, 1)
            .reshape(4, 9)
        ),
        False,
    ),
    "stopped": (lambda h, p: h @ p["w"] + lax.stop_gradient(p["b"]), False),
    "twice": (lambda h, p: h @ p["w"] + p["b"] + h @ p["u"] + p["b"], False),
    "scaled": (lambda h, p: h @ p["w"] + 2 * p["b"], False),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_moves_with_its_weight_only_if_it_is_one(name: str) -> None:
    use, is_bias = BIASES[name]
    built = net(use)()
    found = find(built)
    blocks = {block.name: block for block in found.blocks}
    assert (blocks["w"].bias is not None) == is_bias
    graph, _ = move_at_random(built, found)
    assert np.array_equal(graph.params["b"], built.params["b"]) != is_bias
    rel = 1e-5 if "dtype" in name else 1e-11
    assert float(built.loss(graph.params, *built.batch)) == pytest.approx(found.loss, rel=rel)
