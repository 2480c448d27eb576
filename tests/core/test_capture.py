"""The capture rule on hand-written uses, and the check that no use was missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.dense import to_numpy
from helpers.mlp_graph import MLPGraph, numbers

from nullport import TeleportConfig, teleport
from nullport._capture import capture, explained, factors, find_layers, lazy_norms
from nullport._sites import Layout, matrix
from nullport.network import FEWER, Collective, DenseSite, Linearization, LowRank, Parameter, Use

W = matrix((), 4, 6)
W_T = Layout(0, (), W.inp, W.out)
B = matrix((), 4, None)
LOOKUP = Use(0, None, "lookup", W, "an embedding", np.asarray([True, False, False, True]))
DEFAULT = TeleportConfig()
ONE = Collective()


def _capture(
    uses: list[Use], names: tuple[str, ...] = ("w", "b", "v"), config: TeleportConfig = DEFAULT
) -> tuple[dict[str, Any], dict[str, str]]:
    blocks, excluded = capture([Parameter(name) for name in names], uses, config)
    return {b.name: b for b in blocks}, excluded


def test_a_clean_layer() -> None:
    blocks, excluded = _capture([Use(0, 0, "weight", W), Use(1, 0, "bias", B)])
    assert set(blocks) == {"w"}
    assert blocks["w"].sites == (0,)
    assert blocks["w"].bias == (1, B)
    assert blocks["w"].features == 7
    assert "b" not in excluded  # it moves with the weight of its layer
    assert excluded["v"].startswith("its use is not visible")


def test_without_biases() -> None:
    uses = [Use(0, 0, "weight", W), Use(1, 0, "bias", B)]
    blocks, _ = _capture(uses, config=TeleportConfig(bias=False))
    assert blocks["w"].bias is None
    assert blocks["w"].features == 6


def test_a_weight_used_twice_is_one_block() -> None:
    same = Layout(0, (), ((2, 12), (2, 6)), ((6, 1),))  # the same matrix, its axis cut in two
    uses = [Use(0, i, "weight", layout) for i, layout in enumerate((W, same, W))]
    blocks, _ = _capture([*uses, *(Use(1, i, "bias", B) for i in range(3))])
    assert blocks["w"].sites == (0, 1, 2)
    assert blocks["w"].bias is not None


def test_uses_of_the_transpose_belong_to_the_same_block() -> None:
    uses = [Use(0, 1, "weight", W_T), Use(0, 0, "weight", W), Use(0, 2, "weight", W)]
    blocks, excluded = _capture([*uses, Use(1, 1, "bias", matrix((), 6, None))])
    assert "w" not in excluded
    assert (blocks["w"].sites, blocks["w"].transposed) == ((1,), (0, 2))
    assert blocks["w"].every == (0, 1, 2)
    assert blocks["w"].bias is not None  # the transpose has none


def test_rows_that_are_looked_up_are_held_by_the_block() -> None:
    more = replace(LOOKUP, held=np.asarray([False, True, False, True]))
    blocks, _ = _capture([LOOKUP, Use(0, 0, "weight", W), more])
    assert blocks["w"].held.tolist() == [True, True, False, True]
    assert not blocks["w"].transposed


def test_slices_are_blocks_of_their_own() -> None:
    uses = [Use(0, i, "weight", matrix((), 2, 6, offset=12 * i)) for i in range(2)]
    halves = [Use(1, i, "bias", matrix((), 2, None, offset=2 * i)) for i in range(2)]
    blocks, _ = _capture(uses + halves)
    assert set(blocks) == {"w[part 1/2]", "w[part 2/2]"}
    assert [b.sites for b in blocks.values()] == [(0,), (1,)]
    assert [b.bias[1].offset for b in blocks.values()] == [0, 2]


@pytest.mark.parametrize(
    ("uses", "reason"),
    [
        (
            [Use(0, 0, "weight", W), Use(0, 1, "weight", replace(W_T, offset=1))],
            "different layouts",
        ),
        ([LOOKUP], "^used by an embedding$"),
        ([LOOKUP, Use(0, 0, "weight", W_T)], "^also used by an embedding$"),
        ([replace(LOOKUP, held=None), Use(0, 0, "weight", W)], "^also used by an embedding$"),
        ([LOOKUP, Use(0, 0, "weight", W), Use(0, reason="mul")], "^also used by mul$"),
        (
            [Use(0, 0, "weight", W), Use(0, 1, "weight", matrix((), 2, 6, offset=6))],
            "different layouts",
        ),
        ([Use(0, 0, "weight", W), Use(0, reason="mul")], "^also used by mul$"),
        (
            [Use(0, 0, "weight", W), Use(0, reason="pow"), Use(0, reason="cat")],
            "^also used by cat, pow$",
        ),
        ([Use(0, reason="gather (embedding)")], r"^used by gather \(embedding\)$"),
        ([Use(0, 0, "weight", W), Use(0, 1, "bias", B)], "as a weight and as a bias"),
        ([], "^its use is not visible"),
    ],
)
def test_exclusions(uses: list[Use], reason: str) -> None:
    blocks, excluded = _capture(uses)
    assert "w" not in blocks
    assert not any(name.startswith("w[") for name in blocks)
    import re

    assert re.search(reason, excluded["w"])


def test_an_immovable_parameter_keeps_its_reason() -> None:
    blocks, excluded = capture(
        [Parameter("w", movable=False, reason="frozen")], [Use(0, 0, "weight", W)], DEFAULT
    )
    assert not blocks
    assert excluded == {"w": "frozen"}


@pytest.mark.parametrize(
    ("include", "exclude", "moving"),
    [
        (("*",), (), {"net.w", "net.v"}),
        (("*.w",), (), {"net.w"}),
        (("*",), ("net.*",), set()),
        (("net.?",), ("*.v",), {"net.w"}),
        ((), (), set()),
        (("NET.*",), (), set()),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], moving: set[str]) -> None:
    uses = [Use(0, 0, "weight", W), Use(2, 1, "weight", W)]
    config = TeleportConfig(include=include, exclude=exclude)
    blocks, excluded = _capture(uses, ("net.w", "net.b", "net.v"), config)
    assert set(blocks) == moving
    for name in {"net.w", "net.v"} - moving:
        assert excluded[name] in ("not in include", "in exclude")


@pytest.mark.parametrize(
    "extra",
    [
        [Use(1, reason="pow")],
        [Use(1, 5, "bias", B)],
        [Use(1, 0, "bias", matrix((), 2, None))],
    ],
    ids=["another use", "another layer", "another layout"],
)
def test_a_bias_with_other_uses_is_left_alone(extra: list[Use]) -> None:
    uses = [Use(0, 0, "weight", W), Use(1, 0, "bias", B)]
    blocks, _ = _capture(uses + extra)
    assert blocks["w"].bias is None


def test_a_bias_of_only_some_uses_is_left_alone() -> None:
    """A layer used with and without its bias: one constant column cannot serve both."""
    uses = [Use(0, 0, "weight", W), Use(1, 0, "bias", B), Use(0, 1, "weight", W)]
    blocks, _ = _capture(uses)
    assert blocks["w"].sites == (0, 1)
    assert blocks["w"].bias is None


def test_an_immovable_bias_is_left_alone() -> None:
    uses = [Use(0, 0, "weight", W), Use(1, 0, "bias", B)]
    parameters = [Parameter("w"), Parameter("b", movable=False, reason="frozen")]
    blocks, excluded = capture(parameters, uses, DEFAULT)
    assert blocks[0].bias is None
    assert excluded == {"b": "frozen"}


def test_an_excluded_bias_is_left_alone() -> None:
    uses = [Use(0, 0, "weight", W), Use(1, 0, "bias", B)]
    blocks, _ = _capture(uses, config=TeleportConfig(exclude=("b",)))
    assert blocks["w"].bias is None


def test_explained_finds_a_missed_use(xp: Any) -> None:
    graph = MLPGraph(xp, (5, 8, 3))
    lin = graph.linearize()
    blocks, _ = capture(graph.parameters, lin.uses, DEFAULT)
    for block in blocks:
        gradient = lin.gradients[block.parameter]
        assert float(explained(block, gradient, lin, ONE)) <= 1e-14
        missed = xp.zeros_like(gradient)
        other = gradient + (missed + 1e-3 * float(xp.max(xp.abs(gradient))))
        assert float(explained(block, other, lin, ONE)) >= 1e-5
        assert float(explained(block, 2 * gradient, lin, ONE)) == pytest.approx(0.5)
        assert float(explained(block, missed, lin, ONE)) == pytest.approx(1.0)


def test_explained_sees_any_single_output() -> None:
    """The fixed probe must not be blind to any output unit."""
    generator = np.random.default_rng(0)
    x, delta = generator.standard_normal((5, 6)), generator.standard_normal((5, 64))
    site = DenseSite("dense", x, delta, np.asarray(1.0))
    lin = Linearization(np.asarray(0.0), [None], [site])
    layout = matrix((), 64, 6)
    (block,), _ = capture([Parameter("w")], [Use(0, 0, "weight", layout)], DEFAULT)
    gradient = delta.T @ x
    for unit in range(64):
        wrong = gradient.copy()
        wrong[unit] *= 1.5
        assert float(explained(block, wrong, lin, ONE)) >= 1e-4


def test_explained_without_any_gradient_is_clean() -> None:
    x = np.ones((3, 6))
    site = DenseSite("dense", x, None, np.asarray(1.0))
    lin = Linearization(np.asarray(0.0), [None], [site])
    (block,), _ = capture([Parameter("w")], [Use(0, 0, "weight", matrix((), 4, 6))], DEFAULT)
    assert float(explained(block, np.zeros((4, 6)), lin, ONE)) == 0.0
    assert float(explained(block, np.ones((4, 6)), lin, ONE)) == pytest.approx(1.0)


def test_a_site_without_cotangent_has_no_weight_gradient() -> None:
    site = DenseSite("dense", np.ones((3, 6)), None, np.asarray(1.0))
    with pytest.raises(ValueError, match="no cotangent"):
        site.weight_gradient(np.ones((3, 6)))


N, OUT, INP = 2, 3 * FEWER, 2 * FEWER


def _site(seed: int = 0, n: int = N, stack: tuple[int, ...] = ()) -> DenseSite:
    rng = np.random.default_rng(seed)
    x, delta = (rng.standard_normal((*stack, n, size)) for size in (INP, OUT))
    return DenseSite("dense", x, delta, np.asarray(1.0))


class Still(MLPGraph):
    """Holds one weight, and no network."""

    def __init__(self, weight: Any) -> None:
        super().__init__(np, (1, 1))
        self._weights, self._parameters = [weight], [Parameter("w")]


def _factors(*sites: DenseSite, error: float = 0.0, layout: Any = None) -> dict[int, Any]:
    layout = layout or matrix(sites[0].inputs.shape[:-2], OUT, INP)
    total = sum(np.swapaxes(s.cotangent, -1, -2) @ s.inputs for s in sites) + error
    total = total.T if layout.transposed else total
    uses = [Use(0, i, "weight", layout) for i in range(len(sites))]
    lin = Linearization(np.asarray(1.0), [total], list(sites), uses)
    graph = Still(np.ones(total.shape))
    layers, _ = find_layers(graph, lin, DEFAULT, lazy_norms(graph.weights()))
    assert [bool(layer.hidden) for layer in layers] == [error > 0]
    return factors(layers, lin, graph.weights())


@pytest.mark.parametrize("layout", [matrix((), OUT, INP), matrix((), INP, OUT).mT])
def test_a_weight_with_one_small_site_is_known_by_its_factors(layout: Layout) -> None:
    one = _site()
    (found,) = _factors(one, layout=layout).values()
    assert isinstance(found, LowRank)
    gradient = one.cotangent.T @ one.inputs
    assert np.allclose(found.dense(), gradient.T if layout.transposed else gradient)
    assert float(found.norm()) == pytest.approx(np.linalg.norm(gradient), rel=1e-12)


def test_others_are_not_known_by_factors() -> None:
    assert _factors(_site(n=3)) == {}, "more samples than inputs / FEWER"
    assert _factors(_site(), _site(1)) == {}, "two sites"
    assert _factors(_site(), error=1.0) == {}, "another use was missed"
    assert _factors(_site(stack=(3,))) == {}, "a stack"
    mixed = replace(one := _site(), cotangent=one.cotangent.astype(np.float32))
    assert _factors(mixed) == {}, "a cotangent in another precision"
    assert _factors(replace(one, cotangent=np.zeros((N, OUT)))) != {}


@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_in_factors_give_the_same_move(xp: Any, steps: int) -> None:
    config = TeleportConfig(projection="threshold", radius=0.1, tangent="fd", steps=steps)
    # A custom objective is handed formed gradients.
    formed = replace(config, objective=lambda g: g)
    graphs = [MLPGraph(xp, (17, 40, 40, 3), samples=2) for _ in range(2)]
    for graph, settings in zip(
        graphs, (replace(config, objective="grad_norm"), formed), strict=True
    ):
        assert teleport(graph, settings).accepted
    for a, b in zip(graphs[0].values, graphs[1].values, strict=True):
        assert to_numpy(a) == pytest.approx(to_numpy(b), abs=1e-7)


def test_what_is_known_of_a_layer(xp: Any) -> None:
    graph = MLPGraph(xp, (6, 20, 15, 3), samples=4)
    lin = graph.linearize()
    layers, excluded = find_layers(graph, lin, DEFAULT, lazy_norms(graph.weights()))
    values = numbers(graph.values)
    for k, layer in enumerate(layers):
        x, w, b = to_numpy(lin.sites[k].inputs), values[2 * k], values[2 * k + 1]
        assert float(layer.weight_norm) == pytest.approx(np.linalg.norm(np.c_[w, b]))
        assert float(layer.output_norm) == pytest.approx(np.linalg.norm(x @ w.T))
        assert (layer.samples, layer.kind) == (4, "dense")
        assert not bool(layer.hidden)
        assert layer.exact
        assert not layer.tight
        assert layer.narrow == 0.0
    assert excluded == {}
    many = MLPGraph(xp, (6, 20, 15, 3), samples=18)
    layers, _ = find_layers(many, many.linearize(), DEFAULT, lazy_norms(many.weights()))
    # 7 and 16 inputs are too few for 18 samples, and so are 21: an eighth must be left.
    assert [layer.tight for layer in layers] == [True, False, True]
    assert [layer.exact for layer in layers] == [False, True, False]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights_are_known_to_be(dtype: str) -> None:
    xp = pytest.importorskip("array_api_compat.torch")
    graph = MLPGraph(xp, (6, 20, 3), dtype=dtype)
    layers, _ = find_layers(graph, graph.linearize(), DEFAULT, lazy_norms(graph.weights()))
    assert {layer.narrow for layer in layers} == {2.0**-7 if dtype == "bfloat16" else 2.0**-10}


def test_a_hidden_use_of_a_bias_leaves_the_bias_behind() -> None:
    class Hidden(MLPGraph):
        """The second bias is used once more, where nobody looks."""

        def linearize(self, **how: bool) -> Linearization:
            lin = super().linearize(**how)
            gradients = [g + 0.1 * (i == 3) for i, g in enumerate(lin.gradients)]
            return replace(lin, gradients=gradients)

    graph = Hidden(np, (6, 20, 15, 3))
    layers, _ = find_layers(graph, graph.linearize(), DEFAULT, lazy_norms(graph.weights()))
    assert [layer.block.bias is None for layer in layers] == [False, True, False]
    assert [layer.block.features for layer in layers] == [7, 20, 16]
    before = numbers(graph.values)
    assert teleport(graph, TeleportConfig(projection="threshold", radius=0.1)).accepted
    assert (graph.values[3] == before[3]).all()
    assert (graph.values[2] != before[2]).any()


def test_a_hidden_use_of_a_weight_holds_it() -> None:
    class Hidden(MLPGraph):
        def linearize(self, **how: bool) -> Linearization:
            lin = super().linearize(**how)
            return replace(lin, gradients=[g + 0.1 * (i == 2) for i, g in enumerate(lin.gradients)])

    graph = Hidden(np, (6, 20, 15, 3))
    before = numbers(graph.values)
    report = teleport(graph, TeleportConfig(projection="threshold", radius=0.1))
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["layer1.weight"] == "part of its gradient comes from a use that is not visible"
    assert reasons["layer2.weight"] == ""
    assert (graph.values[2] == before[2]).all()


def test_no_samples() -> None:
    graph = MLPGraph(np, (6, 20, 3))
    lin = graph.linearize()
    none = [replace(s, inputs=s.inputs[:0], cotangent=s.cotangent[:0]) for s in lin.sites]
    with pytest.raises(
        ValueError, match="captured batch has 0 samples; a teleport needs at least 1"
    ):
        find_layers(graph, replace(lin, sites=none), DEFAULT, lazy_norms(graph.weights()))
    some = replace(lin, sites=[none[0], lin.sites[1]])
    layers, excluded = find_layers(graph, some, DEFAULT, lazy_norms(graph.weights()))
    assert [layer.block.name for layer in layers] == ["layer1.weight"]
    assert excluded == {"layer0.weight": "no sample reaches it"}
