"""Products and convolutions in every axis order: rows, cotangents, gradients, tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax_adapter.models import Draw
from jax_adapter.oracle import elements

from nullport_jax._graph import JaxGraph

Op = Callable[[jax.Array, jax.Array], jax.Array]


def check(op: Op, x: jax.Array, w: jax.Array, kind: str) -> None:
    """Check the one site of ``op(x + s, w)``, ``s`` a parameter too, against plain JAX."""
    draw = Draw(1)
    shape = jax.eval_shape(op, x, w).shape
    factor, v = draw(*shape), draw(*x.shape)

    def loss(p: Any) -> jax.Array:
        return jnp.sum(jnp.sin(factor * op(x + p["s"], p["w"])))

    params = {"s": draw(*x.shape), "w": w}
    h = x + params["s"]
    delta = jax.grad(lambda y: jnp.sum(jnp.sin(factor * y)))(op(h, w))
    other = draw(*w.shape)

    @jax.jit
    def found(params: Any) -> Any:
        graph = JaxGraph(loss, params, ())
        lin = graph.linearize()
        (site,) = lin.sites
        (layout,) = [u.layout for u in lin.uses if u.layout is not None]
        tangents: dict[int, jax.Array] = {}
        graph.jvp([v, None], tangents.__setitem__)
        matrix = graph.read(1, other, layout)
        rows = jnp.concatenate(list(site.rows()), axis=-2)
        few = jnp.concatenate(list(site.rows(3)), axis=-2)
        assert (site.kind, site.samples) == (kind, rows.shape[-2])
        layouts.append(layout)
        return {
            "weight": graph.read(1, w, layout),
            "gradient": site.weight_gradient(site.inputs),
            "at tangent": site.weight_gradient(tangents[0]),
            "probed": site.weight_gradient(site.inputs, jnp.arange(1.0, matrix.shape[-2] + 1)),
            "bias": site.bias_gradient(),
            "norm": site.output_norm,
            "other norm": jnp.linalg.norm(jnp.ravel(site.apply(matrix))),
            "rows": rows,
            "few": few,
        }

    layouts: list[Any] = []
    got = jax.tree_util.tree_map(np.asarray, found(params))
    (layout,) = layouts

    def gradient_at(h: jax.Array) -> Any:
        whole = jax.grad(lambda w: jnp.sum(delta * op(h, w)))(w)
        return elements(np.asarray(whole), layout)

    gradient = gradient_at(h)
    probe = np.arange(1.0, gradient.shape[-2] + 1)
    y, other_y = op(h, w), op(h, other)
    close = {"rtol": 1e-10, "atol": 1e-11}
    np.testing.assert_array_equal(got["weight"], elements(np.asarray(w), layout))
    np.testing.assert_allclose(got["gradient"], gradient, **close)
    np.testing.assert_allclose(got["at tangent"], gradient_at(v), **close)
    probed = (gradient.swapaxes(-1, -2) @ probe)[..., None, :]
    np.testing.assert_allclose(got["probed"], probed, **close)
    np.testing.assert_allclose(got["bias"].sum(), jnp.sum(delta), **close)
    np.testing.assert_allclose(got["norm"], jnp.linalg.norm(y.ravel()), **close)
    np.testing.assert_allclose(got["other norm"], jnp.linalg.norm(other_y.ravel()), **close)
    output = got["rows"] @ got["weight"].swapaxes(-1, -2)
    np.testing.assert_allclose(np.sort(output.ravel()), np.sort(np.asarray(y).ravel()), **close)
    assert got["few"].shape[-2] <= got["rows"].shape[-2]
    assert 3 * got["few"].shape[-2] >= got["rows"].shape[-2]


@st.composite
def products(draw: st.DrawFn) -> tuple[Op, tuple[int, ...], tuple[int, ...]]:
    """Draw a ``dot_general`` and the shapes of its operands."""
    counts = [draw(st.integers(low, 2)) for low in (0, 0, 0, 1)]
    names = "bx wc".replace(" ", "")
    letters = [f"{name}{i}" for name, n in zip(names, counts, strict=True) for i in range(n)]
    sizes = {letter: draw(st.integers(1, 3)) for letter in letters}
    x = draw(st.permutations([a for a in letters if a[0] in "bxc"]))
    w = draw(st.permutations([a for a in letters if a[0] in "bwc"]))
    contracted = draw(st.permutations([a for a in letters if a[0] == "c"]))
    batch = draw(st.permutations([a for a in letters if a[0] == "b"]))
    dims = [[[side.index(a) for a in part] for side in (x, w)] for part in (contracted, batch)]
    weight_first = draw(st.booleans())

    def op(x: jax.Array, w: jax.Array) -> jax.Array:
        if weight_first:
            return lax.dot_general(w, x, [part[::-1] for part in dims])
        return lax.dot_general(x, w, dims)

    return op, tuple(sizes[a] for a in x), tuple(sizes[a] for a in w)


@settings(max_examples=25)
@given(products())
def test_dot_general(case: tuple[Op, tuple[int, ...], tuple[int, ...]]) -> None:
    op, x, w = case
    draw = Draw()
    check(op, draw(*x), draw(*w), "dot_general")


def per_axis(draw: st.DrawFn, dims: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(dims))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Op, tuple[int, ...], tuple[int, ...]]:
    """Draw a convolution and the shapes of its operands."""
    dims, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    of_samples = draw(st.booleans())
    space = "HW"[:dims]
    specs = tuple("".join(draw(st.permutations(a + space))) for a in ("NC", "IO", "NC"))
    kernel, extra = per_axis(draw, dims, 1, 3), per_axis(draw, dims, 0, 2)
    dilation, lhs = per_axis(draw, dims, 1, 2), per_axis(draw, dims, 1, 2)
    size = tuple(d * (k - 1) + 1 + e for d, k, e in zip(dilation, kernel, extra, strict=True))
    options = {
        "window_strides": per_axis(draw, dims, 1, 2),
        "padding": [
            (draw(st.integers(-1 if e > 1 else 0, 2)), draw(st.integers(0, 2))) for e in extra
        ],
        "lhs_dilation": lhs,
        "rhs_dilation": dilation,
        "dimension_numbers": specs,
        "batch_group_count" if of_samples else "feature_group_count": groups,
    }
    inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    samples, channels = (groups, 1) if of_samples else (1, groups)
    sizes = {"N": draw(st.integers(1, 3)) * samples, "C": inputs * channels}
    sizes |= dict(zip(space, size, strict=True))
    weights = {"I": inputs, "O": outputs * groups} | dict(zip(space, kernel, strict=True))

    def op(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, **options)

    return op, tuple(sizes[a] for a in specs[0]), tuple(weights[a] for a in specs[1])


@settings(max_examples=25)
@given(convolutions())
def test_conv_general_dilated(case: tuple[Op, tuple[int, ...], tuple[int, ...]]) -> None:
    op, x, w = case
    draw = Draw()
    check(op, draw(*x), draw(*w), "conv_general_dilated")


def _conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2)


def test_a_stack_of_convolutions_by_vmap() -> None:
    """Every entry of the stack has its own kernel: more groups of one convolution."""
    draw = Draw()
    check(jax.vmap(_conv), draw(3, 2, 4, 5), draw(3, 6, 2, 3), "conv_general_dilated")


def test_kernels_for_one_input_by_vmap() -> None:
    op = jax.vmap(lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME"), (None, 0))
    draw = Draw()
    check(op, draw(2, 4, 5), draw(3, 6, 4, 3), "conv_general_dilated")


def test_groups_of_samples_in_a_scan() -> None:
    def one(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1,), "SAME", batch_group_count=2)

    def op(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda _, x: (None, one(x, w)), None, x)[1]

    draw = Draw()
    check(op, draw(3, 4, 2, 5), draw(6, 2, 3), "conv_general_dilated")


def test_a_stack_of_convolutions_by_scan() -> None:
    def op(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda _, xw: (None, _conv(*xw)), None, (x, w))[1]

    draw = Draw()
    check(op, draw(3, 2, 4, 5), draw(3, 6, 2, 3), "conv_general_dilated")


def test_one_convolution_in_every_step_of_a_scan() -> None:
    def op(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda _, x: (None, _conv(x, w)), None, x)[1]

    draw = Draw()
    check(op, draw(3, 2, 4, 5), draw(6, 2, 3), "conv_general_dilated")


def test_nested_scans_over_stacks_and_time() -> None:
    """The outer scan is over layers of which each has its weight, the inner over time."""

    def op(x: jax.Array, w: jax.Array) -> jax.Array:
        def layer(_: None, xw: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            x, w = xw
            return None, lax.scan(lambda _, x: (None, x @ w), None, x)[1]

        return lax.scan(layer, None, (x, w))[1]

    draw = Draw()
    check(op, draw(2, 3, 2, 4), draw(2, 4, 3), "dot_general")


def test_patches_are_made_in_chunks(monkeypatch: Any) -> None:
    from nullport_jax import _conv as module

    monkeypatch.setattr(module, "CHUNK", 50)
    draw = Draw()
    check(_conv, draw(5, 4, 5), draw(6, 2, 3), "conv_general_dilated")
