"""The capture rule on hand-written uses, and the check that no use was missed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.mlp_graph import MLPGraph

from nullport import TeleportConfig
from nullport._capture import capture, explained
from nullport._sites import Layout, matrix
from nullport.network import DenseSite, Linearization, Parameter, Use

W = matrix((), 4, 6)
W_T = Layout(0, (), W.inp, W.out)
B = matrix((), 4, None)
DEFAULT = TeleportConfig()


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
        ([Use(0, 0, "weight", W), Use(0, 1, "weight", W_T)], "different layouts"),
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
        assert float(explained(block, gradient, lin)) <= 1e-14
        missed = xp.zeros_like(gradient)
        other = gradient + (missed + 1e-3 * float(xp.max(xp.abs(gradient))))
        assert float(explained(block, other, lin)) >= 1e-5
        assert float(explained(block, 2 * gradient, lin)) == pytest.approx(0.5)
        assert float(explained(block, missed, lin)) == pytest.approx(1.0)


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
        assert float(explained(block, wrong, lin)) >= 1e-4


def test_explained_without_any_gradient_is_clean() -> None:
    x = np.ones((3, 6))
    site = DenseSite("dense", x, None, np.asarray(1.0))
    lin = Linearization(np.asarray(0.0), [None], [site])
    (block,), _ = capture([Parameter("w")], [Use(0, 0, "weight", matrix((), 4, 6))], DEFAULT)
    assert float(explained(block, np.zeros((4, 6)), lin)) == 0.0
    assert float(explained(block, np.ones((4, 6)), lin)) == pytest.approx(1.0)


def test_a_site_without_cotangent_has_no_weight_gradient() -> None:
    site = DenseSite("dense", np.ones((3, 6)), None, np.asarray(1.0))
    with pytest.raises(ValueError, match="no cotangent"):
        site.weight_gradient(np.ones((3, 6)))
