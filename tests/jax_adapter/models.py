"""Functions of parameters to test on, tiny, in every way in which JAX programs are written."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax


class Built(NamedTuple):
    """A loss, its parameters, and the rest of its arguments."""

    loss: Callable[..., Any]
    params: Any
    batch: tuple[Any, ...]


@dataclass(frozen=True)
class Model:
    """A network to test on.

    Attributes:
        name: For the test's id.
        make: Makes the loss, the parameters and the batch.
        sites: Number of linear uses of a weight.
        moving: Names of the weights of linear maps that may move.
        still: Those of them whose inputs depend on no weight.
        reasons: Names and reasons of weights that must not move.
    """

    name: str
    make: Callable[[], Built]
    sites: int
    moving: frozenset[str]
    still: frozenset[str] = frozenset()
    tolerance: float = 1e-9

    def __repr__(self) -> str:
        return self.name


MODELS: list[Model] = []


def model(
    name: str, sites: int, moving: str, still: str = "", tolerance: float = 1e-9, needs: str = ""
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Put a function that makes a network on the list; names are separated by spaces."""

    def register(make: Callable[[], Built]) -> Callable[[], Built]:
        def checked() -> Built:
            if needs:
                pytest.importorskip(needs)
            return make()

        MODELS.append(
            Model(
                name, checked, sites, frozenset(moving.split()), frozenset(still.split()), tolerance
            )
        )
        return make

    return register


class Draw:
    """Draws arrays one after the other, the same in every run; NumPy has nothing to compile."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * self.generator.standard_normal(shape))


def mean_square(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean((a - b) ** 2)


def redrawn(params: Any, scale: float = 0.5, seed: int = 7) -> Any:
    """Return arrays in float64 for parameters, or the shapes of parameters: no zeros."""
    draw = Draw(seed)
    return jax.tree_util.tree_map(lambda p: draw(*p.shape, scale=scale), params)


@model("products", 3, "a b c", still="a")
def products() -> Built:
    """Weights on either side, transposed, and in an einsum."""
    draw = Draw()
    params = {
        "a": draw(5, 8, scale=0.4), "a_bias": draw(8),
        "b": draw(9, 8, scale=0.4), "b_bias": draw(9),
        "c": draw(9, 2, 3, scale=0.4), "c_bias": draw(2, 3),
    }  # fmt: skip

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"] + p["a_bias"])
        h = jnp.tanh((p["b"] @ h.T).T + p["b_bias"])
        return mean_square(jnp.einsum("ni,iab->nab", h, p["c"]) + p["c_bias"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 2, 3)))


@model("tied", 4, "a w c", still="a")
def tied() -> Built:
    """One weight used twice."""
    draw = Draw()
    params = {"a": draw(5, 9, scale=0.4), "w": draw(9, 9, scale=0.4), "c": draw(9, 3)}

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"])
        h = jnp.tanh(h @ p["w"])
        h = jnp.tanh(jnp.einsum("ni,io->on", h, p["w"])).T
        return mean_square(h @ p["c"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 3)))


def _two_layers(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Built:
    draw = Draw()
    params = {"a": {"w": draw(5, 8), "b": draw(8)}, "c": {"w": draw(8, 3), "b": draw(3)}}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"]["w"] + p["a"]["b"])
        return h @ p["c"]["w"] + p["c"]["b"]

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(wrap(apply)(p, x), y)

    return Built(loss, params, (draw(4, 5), draw(4, 3)))


@model("jit", 2, "a.w c.w", still="a.w")
def jitted() -> Built:
    """A jit inside a jit."""
    return _two_layers(lambda f: jax.jit(jax.jit(f)))


@model("vmap", 2, "a.w c.w", still="a.w")
def vmapped() -> Built:
    """Written for one sample."""
    return _two_layers(lambda f: jax.vmap(f, in_axes=(None, 0)))


@model("remat", 2, "a.w c.w", still="a.w")
def remat() -> Built:
    """Activations are computed again in the backward pass."""
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return _two_layers(lambda f: jax.checkpoint(jax.jit(f), policy=policy))


@model("layers in a scan", 3, "stem layers.w head", still="stem")
def layers() -> Built:
    """Weights stacked along the first axis, scanned along in reverse; remat inside."""
    draw = Draw()
    params = {
        "stem": draw(5, 8, scale=0.4),
        "layers": {"w": draw(3, 8, 8, scale=0.4), "b": draw(3, 8)},
        "head": draw(8, 2),
    }

    @jax.checkpoint
    def layer(h: jax.Array, p: Any) -> tuple[jax.Array, None]:
        return h + jnp.tanh(h @ p["w"] + p["b"]), None

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h, _ = lax.scan(layer, jnp.tanh(x @ p["stem"]), p["layers"], reverse=True)
        return mean_square(h @ p["head"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 2)))


@model("layers by index", 4, "stem layers[part_1/2] layers[part_2/2] head", still="stem")
def indexed() -> Built:
    """Parts of a stacked weight, each its own layer."""
    draw = Draw()
    params = {"stem": draw(5, 8), "layers": draw(2, 8, 8, scale=0.4), "head": draw(8, 2)}

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["stem"])
        for i in range(2):
            h = jnp.tanh(h @ p["layers"][i])
        return mean_square(h @ p["head"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 2)))


@model("packed projections", 5, "stem qkv[part_1/3] qkv[part_2/3] qkv[part_3/3] head", still="stem")
def packed() -> Built:
    """Attention whose three projections are split from one weight and one bias."""
    draw = Draw()
    params = {
        "stem": draw(5, 12, scale=0.4),
        "qkv": draw(12, 36, scale=0.3), "qkv_bias": draw(36),
        "head": draw(12, 2),
    }  # fmt: skip

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["stem"])
        weights, biases = jnp.split(p["qkv"], 3, axis=1), jnp.split(p["qkv_bias"], 3)
        q, k, v = ((h @ w + b).reshape(2, 4, 3, 4) for w, b in zip(weights, biases, strict=True))
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k))
        out = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(2, 4, 12)
        return mean_square(out @ p["head"], y)

    return Built(loss, params, (draw(2, 4, 5), draw(2, 4, 2)))


@model("recurrence", 3, "inp rec out", still="inp")
def recurrence() -> Built:
    """One weight in every time step, inside two nested scans."""
    draw = Draw()
    params = {
        "inp": draw(5, 16, scale=0.4), "rec": draw(16, 16, scale=0.3), "bias": draw(16),
        "out": draw(16, 2),
    }  # fmt: skip

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ p["inp"] + (h @ p["rec"] + p["bias"])), None

        def sequence(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h, _ = lax.scan(step, h, x)
            return h, h

        _, hs = lax.scan(sequence, jnp.ones((3, 16)), x)
        return mean_square(hs @ p["out"], y)

    return Built(loss, params, (draw(2, 2, 3, 5), draw(2, 3, 2)))


@model("unused and other leaves", 1, "w", still="w")
def other_leaves() -> Built:
    """Integers, keys and Python objects among the parameters; an auxiliary output is dead code."""
    draw = Draw()
    params = {"table": jnp.arange(8), "key": jax.random.key(3), "w": draw(8, 2), "name": "relu"}

    def loss(p: Any, x: jax.Array, y: jax.Array, kind: str) -> jax.Array:
        noise = jax.random.normal(p["key"], x.shape)
        h = getattr(jax.nn, p["name"] if kind == "named" else "tanh")(x + noise)[:, p["table"]]
        return mean_square(h @ p["w"], y)

    return Built(loss, params, (draw(4, 8), draw(4, 2), "named"))


@model("stopped gradient", 4, "a w c", still="a")
def stopped() -> Built:
    """A second use of a weight through which no gradient flows: it still must not change."""
    draw = Draw()
    params = {"a": draw(5, 12, scale=0.4), "w": draw(12, 7, scale=0.4), "c": draw(7, 3)}

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"])
        target = jnp.tanh(jnp.sin(h) @ lax.stop_gradient(p["w"]))
        return mean_square(jnp.tanh(h @ p["w"]) @ p["c"], y) + mean_square(target, 0.0)

    return Built(loss, params, (draw(4, 5), draw(4, 3)))


@model("custom rules without weights", 2, "a c", still="a")
def custom_rules() -> Built:
    """Rules that plain differentiation would not give: they have to be kept."""
    draw = Draw()
    params = {"a": draw(5, 8, scale=0.4), "c": draw(8, 3)}

    @jax.custom_vjp
    def straight(x: jax.Array) -> jax.Array:
        return x + jnp.sin(x)

    straight.defvjp(lambda x: (straight(x), x), lambda x, g: (g * (1 + x**2),))

    @jax.custom_jvp
    def bent(x: jax.Array) -> jax.Array:
        return x**2

    bent.defjvps(lambda t, _, x: t * jnp.cos(x))

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(bent(straight(jax.nn.gelu(x @ p["a"]))) @ p["c"], y)

    return Built(loss, params, (draw(4, 5), draw(4, 3)))


def library(name: str) -> Any:
    """Import a library when a test runs."""
    return importlib.import_module(name)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


@model(
    "equinox CNN", 8,
    "conv.weight up.weight attention.query_proj.weight attention.key_proj.weight "
    "attention.value_proj.weight attention.output_proj.weight mlp.layers.0.weight "
    "mlp.layers.1.weight",
    still="conv.weight", needs="equinox",
)  # fmt: skip
def equinox_cnn() -> Built:
    """Convolution, transposed convolution, attention and a small network under vmap."""
    eqx = library("equinox")
    keys = jax.random.split(jax.random.key(0), 4)

    class Net(eqx.Module):  # type: ignore[name-defined,misc]
        conv: Any
        up: Any
        attention: Any
        mlp: Any

        def __call__(self, x: jax.Array) -> jax.Array:
            h = jnp.tanh(self.conv(x))
            h = jax.nn.gelu(self.up(h))  # (20, 2, 2)
            h = h.reshape(20, -1).T
            h = h + self.attention(h, h, h)
            return jax.vmap(self.mlp)(h).mean(0)

    net = eqx.filter_eval_shape(
        lambda: Net(
            eqx.nn.Conv2d(2, 24, 3, stride=2, padding=1, key=keys[0]),
            eqx.nn.ConvTranspose2d(24, 20, 2, key=keys[1]),
            eqx.nn.MultiheadAttention(2, 20, use_query_bias=True, key=keys[2]),
            eqx.nn.MLP(20, 3, 24, 1, key=keys[3]),
        )
    )
    params, static = eqx.partition(net, _is_shape)

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(jax.vmap(eqx.combine(p, static))(x), y)

    draw = Draw()
    return Built(loss, redrawn(params, 0.3), (draw(2, 2, 1, 1), draw(2, 3)))


@model("equinox GRU", 3, "cell.weight_ih cell.weight_hh head.weight", still="cell.weight_ih",
       needs="equinox")  # fmt: skip
def equinox_gru() -> Built:
    """A recurrent cell under a scan under vmap."""
    eqx = library("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    net = eqx.filter_eval_shape(
        lambda: {
            "cell": eqx.nn.GRUCell(3, 12, key=keys[0]),
            "head": eqx.nn.Linear(12, 2, key=keys[1]),
        }
    )
    params, static = eqx.partition(net, _is_shape)

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        net = eqx.combine(p, static)

        def run(x: jax.Array) -> jax.Array:
            h, _ = lax.scan(lambda h, x: (net["cell"](x, h), None), jnp.ones(12), x)
            return net["head"](h)

        return mean_square(jax.vmap(run)(x), y)

    draw = Draw()
    return Built(loss, redrawn(params), (draw(2, 4, 3), draw(2, 2)))


def _linen(net: Any, x: jax.Array, y: jax.Array, scale: float = 0.3, **options: Any) -> Built:
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(net.apply({"params": p}, x, **options), y)

    return Built(loss, redrawn(params, scale), (x, y))


def _block(nn: Any) -> Any:
    class Block(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, h: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
            options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
            a = nn.LayerNorm(**options)(h)
            a = nn.MultiHeadDotProductAttention(num_heads=2, **options)(a)
            h = h + a
            m = nn.Dense(20, **options)(nn.RMSNorm(**options)(h))
            return h + nn.Dense(16, **options)(nn.gelu(m)), None

    return Block


_ATTENTION = "MultiHeadDotProductAttention_0"
_BLOCK = (
    "Dense_0.kernel",
    "Dense_1.kernel",
    *(f"{_ATTENTION}.{part}.kernel" for part in ("query", "key", "value", "out")),
)


def _inside(prefix: str) -> str:
    return " ".join(f"{prefix}.{name}" for name in _BLOCK)


@model("linen transformer block", 7, "Dense_0.kernel " + _inside("Block_0"),
       still="Dense_0.kernel", needs="flax")  # fmt: skip
def linen_block() -> Built:
    nn = library("flax.linen")

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            h = nn.Dense(16, param_dtype=jnp.float64)(x)
            return _block(nn)(name="Block_0")(h)[0]

    draw = Draw()
    return _linen(Net(), draw(2, 3, 5), draw(2, 3, 16))


@model("linen scanned blocks", 7, "Dense_0.kernel " + _inside("blocks"),
       still="Dense_0.kernel", needs="flax")  # fmt: skip
def linen_scan() -> Built:
    nn = library("flax.linen")

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            h = nn.Dense(16, param_dtype=jnp.float64)(x)
            stack = nn.scan(
                _block(nn), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            return stack(name="blocks")(h, None)[0]

    draw = Draw()
    return _linen(Net(), draw(2, 3, 5), draw(2, 3, 16))


@model("linen remat blocks", 13, " ".join(["Dense_0.kernel", _inside("a"), _inside("b")]),
       still="Dense_0.kernel", needs="flax")  # fmt: skip
def linen_remat() -> Built:
    nn = library("flax.linen")

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            h = nn.Dense(16, param_dtype=jnp.float64)(x)
            for name in "ab":
                h = nn.remat(_block(nn))(name=name)(h)[0]
            return h

    draw = Draw()
    return _linen(Net(), draw(2, 3, 5), draw(2, 3, 16))


@model("linen experts", 3, "Dense_0.kernel experts.kernel Dense_1.kernel",
       still="Dense_0.kernel", needs="flax")  # fmt: skip
def linen_experts() -> Built:
    """Every expert has a weight of its own: a stack of matrices."""
    nn = library("flax.linen")

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            options = {"param_dtype": jnp.float64}
            h = jnp.tanh(nn.Dense(3 * 8, **options)(x)).reshape(-1, 3, 8).swapaxes(0, 1)
            experts = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
            h = jnp.tanh(experts(7, name="experts", **options)(h)).mean(0)
            return nn.Dense(2, name="Dense_1", **options)(h)

    draw = Draw()
    return _linen(Net(), draw(5, 4), draw(5, 2))


@model("linen CNN", 4, "Conv_0.kernel Conv_1.kernel ConvTranspose_0.kernel Dense_0.kernel",
       still="Conv_0.kernel", needs="flax")  # fmt: skip
def linen_cnn() -> Built:
    """Channels last, groups, dilation, batch normalisation."""
    nn = library("flax.linen")

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            options = {"param_dtype": jnp.float64}
            h = jnp.tanh(nn.Conv(24, (3, 3), **options)(x))
            h = nn.BatchNorm(use_running_average=False, **options)(h)
            h = nn.relu(nn.Conv(12, (2, 2), feature_group_count=2, kernel_dilation=2, **options)(h))
            h = jnp.tanh(nn.ConvTranspose(4, (2, 2), strides=(2, 2), **options)(h))
            return nn.Dense(3, **options)(h.reshape(x.shape[0], -1))

    net = Net()
    draw = Draw()
    x, y = draw(2, 2, 2, 2), draw(2, 3)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    statistics = redrawn(variables["batch_stats"])

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        state = {"params": p, "batch_stats": statistics}
        return mean_square(net.apply(state, x, mutable=["batch_stats"])[0], y)

    return Built(loss, redrawn(variables["params"], 0.4), (x, y))


@model("nnx", 2, "layers.0.kernel layers.4.kernel", still="layers.0.kernel", needs="flax")
def nnx_dropout() -> Built:
    """Batch normalisation and dropout: state that every evaluation leaves alone."""
    nnx = library("flax.nnx")
    options = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}
    net = nnx.Sequential(
        nnx.Linear(4, 10, **options),
        nnx.BatchNorm(10, **options),
        jnp.tanh,
        nnx.Dropout(0.3, rngs=nnx.Rngs(1)),
        nnx.Linear(10, 3, **options),
    )
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    rest = jax.tree_util.tree_map(
        lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, rest
    )

    # Newer versions of flax share the variables unless told otherwise.
    copy = {"copy": True} if "copy" in inspect.signature(nnx.merge).parameters else {}

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(nnx.merge(graph, p, rest, **copy)(x), y)

    draw = Draw()
    return Built(loss, redrawn(params), (draw(6, 4), draw(6, 3)))


@model("haiku CNN", 3, "conv2_d.w conv2_d_transpose.w linear.w", still="conv2_d.w", needs="haiku")
def haiku_cnn() -> Built:
    hk = library("haiku")

    def forward(x: jax.Array) -> jax.Array:
        h = jnp.tanh(hk.Conv2D(24, 3, stride=2)(x))
        h = jnp.tanh(hk.Conv2DTranspose(6, 2, stride=2)(h))
        return hk.Linear(2)(h.reshape(x.shape[0], -1))

    net = hk.without_apply_rng(hk.transform(forward))
    draw = Draw()
    x, y = draw(2, 3, 3, 2), draw(2, 2)

    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mean_square(net.apply(p, x), y)

    return Built(loss, redrawn(jax.eval_shape(net.init, jax.random.key(0), x), 0.4), (x, y))
