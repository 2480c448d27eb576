"""Functions with a rule of their own, and functions that are declared to be linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_adapter.models import Built, Draw, mean_square
from jax_adapter.oracle import find, gradients, move_at_random, projected

from nullport import TeleportConfig
from nullport_jax import register_linear, teleport
from nullport_jax._register import REGISTERED

Use = Callable[[jax.Array, Any], jax.Array]


def _net(use: Use) -> Built:
    """A stem, any use of a weight ``w`` and a bias ``b``, and a head."""
    draw = Draw()
    params = {
        "stem": draw(5, 9, scale=0.4), "w": draw(9, 7, scale=0.3), "b": draw(7),
        "head": draw(7, 3),
    }  # fmt: skip

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(jnp.tanh(use(jnp.tanh(x @ p["stem"]), p)) @ p["head"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 3)))


def _product(h: jax.Array, w: jax.Array) -> jax.Array:
    return h @ w


def _vjp(backward: Any) -> Any:
    function = jax.custom_vjp(_product)
    function.defvjp(lambda h, w: (h @ w, (h, w)), backward)
    return function


TRUE = _vjp(lambda kept, d: (d @ kept[1].T, kept[0].T @ d))


@jax.custom_vjp
def _fused(h: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tanh(h @ w + b)


def _fused_backward(kept: Any, d: jax.Array) -> Any:
    h, w, y = kept
    d = d * (1 - y**2)
    return d @ w.T, h.T @ d, d.sum(0)


_fused.defvjp(lambda h, w, b: ((y := jnp.tanh(h @ w + b)), (h, w, y)), _fused_backward)


@jax.custom_jvp
def _forward(h: jax.Array, w: jax.Array) -> jax.Array:
    return h @ w


_forward.defjvp(lambda p, t: (p[0] @ p[1], t[0] @ p[1] + p[0] @ t[1]))

OPENED: dict[str, Use] = {
    "custom_vjp": lambda h, p: TRUE(h, p["w"]) + p["b"],
    "custom_vjp with more than a product inside": lambda h, p: _fused(h, p["w"], p["b"]),
    "custom_vjp under vmap": lambda h, p: (
        jax.vmap(TRUE, (0, None))(h[:, None], p["w"])[:, 0] + p["b"]
    ),
    "custom_jvp": lambda h, p: _forward(h, p["w"]) + p["b"],
}


def check(built: Built, tolerance: float = 1e-11) -> None:
    """Compare the direction of the weight with double backward, and move."""
    found = find(built)
    assert max(found.unexplained) <= 1e-12
    names = [found.parameters[block.parameter].name for block in found.blocks]
    block, got = next(
        (b, d) for b, d, n in zip(found.blocks, found.directions, names, strict=True) if n == "w"
    )
    assert block.bias is not None
    h = np.asarray(jnp.tanh(built.batch[0] @ built.params["stem"]))
    rows = np.concatenate([h, np.ones((4, 1))], axis=1)
    _, objective = gradients(built)
    expected = projected(found.matrix(block, objective), rows)
    assert np.linalg.norm(got - expected) <= 1e-9 * np.linalg.norm(expected)
    graph, _ = move_at_random(built, found)
    assert not np.array_equal(graph.params["w"], built.params["w"])
    assert float(built.loss(graph.params, *built.batch)) == pytest.approx(found.loss, rel=tolerance)


@pytest.mark.parametrize("name", OPENED)
def test_a_rule_that_is_the_derivative_is_opened(name: str) -> None:
    check(_net(OPENED[name]))


KEPT: dict[str, Use] = {
    "weight gradient scaled": lambda h, p: _vjp(lambda k, d: (d @ k[1].T, 2 * k[0].T @ d))(
        h, p["w"]
    ),
    "input gradient scaled": lambda h, p: _vjp(lambda k, d: (2 * d @ k[1].T, k[0].T @ d))(
        h, p["w"]
    ),
    "clipped": lambda h, p: _vjp(lambda k, d: (d @ k[1].T, jnp.clip(k[0].T @ d, -30.0, 30.0)))(
        h, p["w"]
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_rule_that_is_something_else_is_kept(name: str) -> None:
    built = _net(KEPT[name])
    found = find(built)
    assert "used by custom_vjp, whose rule is another" in found.reasons["w"]
    expected = jax.grad(built.loss)(built.params, *built.batch)
    for parameter, g in zip(found.parameters, found.gradient, strict=True):
        np.testing.assert_allclose(g, expected[parameter.name], rtol=1e-12, atol=1e-15)


def test_a_rule_that_is_the_derivative_at_small_values_only_hides_its_weight() -> None:
    """The gradient is taken by the rule itself: what is missed at random points shows there."""
    late = _vjp(
        lambda k, d: (d @ k[1].T, jnp.where(jnp.abs(k[0]).max() == 0.625, 2.0, 1.0) * k[0].T @ d)
    )
    built = _net(lambda h, p: late(jnp.clip(h, -0.625, 0.625), p["w"]))
    _, report = teleport(built.loss, built.params, *built.batch, config=TeleportConfig(radius=0.1))
    reasons = {row.name: row.reason for row in report.layers}
    assert "not visible" in reasons["w"]


@register_linear
def _plain(h: jax.Array, w: jax.Array) -> jax.Array:
    return _product(h, w)


_hidden = register_linear(_fused_off := jax.custom_vjp(lambda h, w, b: h @ w + b), bias=2)
_fused_off.defvjp(
    lambda h, w, b: (h @ w + b, (h, w)), lambda k, d: (d @ k[1].T, k[0].T @ d, d.sum(0))
)
_out_first = register_linear(lambda w, h: (w.T @ h.T).T, "bi,io->bo", input=1, weight=0)
_wrong = register_linear(lambda h, w: jnp.sin(h) @ w)

DECLARED: dict[str, Use] = {
    "plain": lambda h, p: _plain(h, p["w"]) + p["b"],
    "with a rule and a bias": lambda h, p: _hidden(h, p["w"], p["b"]),
    "weight first": lambda h, p: _out_first(p["w"], h) + p["b"],
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_registered_function_is_seen(name: str) -> None:
    check(_net(DECLARED[name]))


def test_a_function_that_is_not_what_was_declared_keeps_its_weight() -> None:
    built = _net(lambda h, p: _wrong(h, p["w"]))
    _, report = teleport(built.loss, built.params, *built.batch, config=TeleportConfig(radius=0.1))
    assert "not visible" in {row.name: row.reason for row in report.layers}["w"]


def test_a_registered_function_with_other_axes_stays() -> None:
    built = _net(lambda h, p: jax.vmap(_out_first, (None, 0))(p["w"], h[:, None])[:, 0])
    assert "other axes than its equation" in find(built).reasons["w"]


@pytest.mark.parametrize("equation", ["bi", "bi,io->b", "bi,iio->bo", "bz,io->bo", "b i,i o"])
def test_equations_that_are_no_product_are_refused(equation: str) -> None:
    count = len(REGISTERED)
    with pytest.raises(ValueError, match="must be a product"):
        register_linear(_product, equation)
    assert len(REGISTERED) == count
