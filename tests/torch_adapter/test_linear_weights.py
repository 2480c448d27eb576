"""Weights that are linear functions of parameters: moved as parameters are, and their neighbours.

The oracle knows nothing of layouts and rows: the Jacobian of the layer's output by all elements of
the parameter, and a dense projector on its null space.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.torch_oracle import double_backward, parameter_directions, projected_by_probing
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from nullport import TeleportConfig
from nullport_torch import inspect, teleport

TOLERANCE = 1e-9
Use = Callable[[Tensor, "Net"], Tensor]


class Net(nn.Module):
    """Stem, any use of weights ``w``, ``u``, ``v`` (and a bias ``b``), head."""

    w: Tensor
    u: Tensor
    v: Tensor
    layer: Any

    def __init__(self, use: Use, *shapes: tuple[int, ...], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.use = nn.Linear(5, 9), use
        for name, shape in zip("wuv", shapes or ((9, 7),), strict=False):
            setattr(self, name, nn.Parameter(torch.randn(shape) * 0.3))
        self.b = nn.Parameter(torch.randn(7) * 0.3)
        self.c = torch.randn(7)
        self.layer = layer
        self.double()
        self.c = self.c.double()
        width = use(torch.zeros(3, 9).double(), self).shape[-1]
        self.head = nn.Linear(width, 3).double()

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.use(self.hidden(x), self)))
        return out


@dataclass(frozen=True)
class Case:
    """A use of weights.

    Attributes:
        name: For the test's id.
        use: From the hidden layer and the network to the layer's output.
        shapes: Shapes of ``w``, ``u`` and ``v``.
        moving: Groups of parameters that move together: a weight, perhaps with its bias.
        layer: Makes a module for ``layer``.
    """

    name: str
    use: Use
    shapes: tuple[tuple[int, ...], ...] = ((9, 7),)
    moving: tuple[tuple[str, ...], ...] = (("w",),)
    layer: Callable[[], nn.Module] = nn.Identity

    def __repr__(self) -> str:
        return self.name

    def net(self) -> Net:
        return Net(self.use, *self.shapes, layer=self.layer())


MASK = (torch.arange(63).reshape(9, 7) % 3 != 0).double()
ROTATED = (torch.arange(9)[:, None] + torch.arange(7)) % 5
ANY = torch.tensor([3, 1, 4, 1, 5, 8, 2, 6, 5, 3, 5])[torch.arange(63).reshape(9, 7) % 11]
EXPERT = torch.tensor([2, 0, 2])
WU: tuple[tuple[int, ...], ...] = ((9, 7), (9, 7))
BOTH = (("w",), ("u",))


def _pruned() -> nn.Module:
    layer: nn.Module = prune.l1_unstructured(nn.Linear(9, 7), "weight", 0.4)
    return layer


TWO = (("layer.weight", "layer.bias"),)
OFFSETS = torch.tensor([1, 1, 3], dtype=torch.int32)
PRUNED = (("layer.weight_orig", "layer.bias"),)


WB = (("w", "b"),)


def _cut(h: Tensor) -> Tensor:
    return h.view(3, 3, 3)


def _wide(h: Tensor) -> Tensor:
    return torch.cat([h, h[:, :3].sin()], 1)


def _two(h: Tensor) -> Tensor:
    return torch.cat([h, h.sin()], 1)


CASES = [
    Case("scaled", lambda h, m: h @ (m.w * 0.5)),
    Case("negated", lambda h, m: h @ -m.w),
    Case("divided", lambda h, m: h @ (m.w / 7**0.5)),
    Case("scaled by outputs", lambda h, m: h @ (m.w * m.c)),
    Case("scaled by inputs", lambda h, m: h @ (m.w * torch.arange(1.0, 10).double()[:, None])),
    Case("scaled by both", lambda h, m: h @ (m.w * m.c / torch.arange(1.0, 10).double()[:, None])),
    Case("one row gathered", lambda h, m: h @ torch.gather(m.w, 0, torch.zeros(9, 7).long())),
    Case("rotated columns", lambda h, m: h @ torch.gather(m.w, 0, ROTATED)),
    Case("scaled by activations", lambda h, m: h @ (m.w * (1 + h.sum(0)[:, None]))),
    Case("masked", lambda h, m: h @ (m.w * MASK)),
    Case("masked fill", lambda h, m: h @ m.w.masked_fill(MASK == 0, 0.3)),
    Case("where", lambda h, m: h @ torch.where(MASK > 0, m.w, 2.0)),
    Case("triangle", lambda h, m: F.linear(h[:, :7], m.w.tril(), m.b), ((7, 7),), (("w", "b"),)),
    Case("scaled, bias", lambda h, m: F.linear(h, 2 * m.w, m.b), ((7, 9),)),
    Case("transposed copy", lambda h, m: F.linear(h, m.w.t().contiguous())),
    Case("flipped", lambda h, m: h @ m.w.flip(0)),
    Case("rolled", lambda h, m: h @ m.w.roll(2, 1)),
    Case("gathered rows", lambda h, m: h @ m.w[[2, 0, 1, 4, 3, 5, 6, 7, 8]]),
    Case("repeated outputs", lambda h, m: h @ m.w[:, [0, 1, 1, 2, 2, 2]]),
    Case("repeated inputs", lambda h, m: torch.cat([h, h[:, :2]], 1) @ m.w[[*range(9), 4, 4]]),
    Case("repeat_interleave", lambda h, m: h @ m.w.repeat_interleave(2, 1)),
    Case("expanded", lambda h, m: torch.bmm(h.unsqueeze(1), m.w.expand(3, 9, 7))[:, 0]),
    Case("concatenated outputs", lambda h, m: h @ torch.cat([m.w, m.u], 1), WU, BOTH),
    Case("concatenated inputs", lambda h, m: _two(h) @ torch.cat([m.w, m.u]), WU, BOTH),
    Case("concatenated with data", lambda h, m: h @ torch.cat([m.w, MASK[:, :2]], 1)),
    Case("stacked", lambda h, m: (h @ torch.stack([m.w, m.u])).movedim(0, 1).flatten(1), WU, BOTH),
    Case("padded", lambda h, m: F.pad(h, (1, 0)) @ F.pad(m.w, (0, 0, 1, 0))),
    Case("experts by index", lambda h, m: torch.bmm(h[:, None], m.w[EXPERT])[:, 0], ((4, 9, 7),)),
    Case("merged", lambda h, m: h @ (m.w + m.u @ m.v), ((9, 7), (9, 2), (2, 7))),
    Case("sum of two", lambda h, m: h @ (m.w - 2 * m.u), WU, BOTH),
    Case("twice itself", lambda h, m: h @ (m.w + 2 * m.w)),
    Case("a step ahead", lambda h, m: h @ (m.w - 0.1 * h.T @ h.sin()[:, :7])),
    Case("block diagonal", lambda h, m: _two(h) @ torch.block_diag(m.w, m.u), WU, BOTH),
    Case(
        "scaled kernel",
        lambda h, m: F.conv1d(h[:2, None], m.w * 2).flatten(1).repeat(2, 1)[:3],
        ((2, 1, 7),),
    ),
    Case(
        "masked kernel",
        lambda h, m: F.conv1d(h.reshape(-1, 3, 3), m.w * torch.tensor([1.0, 1.0, 0.0])).flatten(1),
        ((4, 3, 3),),
    ),
    Case(
        "concatenated kernels",
        lambda h, m: F.conv1d(h[:2, None], torch.cat([m.w, m.u])).flatten(1).repeat(2, 1)[:3],
        ((2, 1, 7), (3, 1, 7)),
        BOTH,
    ),
    Case("addmm", lambda h, m: torch.addmm(m.b, h, m.w, alpha=0.5), moving=(("w",),)),
    Case("addmm of weights left", lambda h, m: torch.addmm(m.b, h[:, :7], m.w), ((7, 7),), WB),
    Case("addmv", lambda h, m: torch.addmv(m.b, m.w, h[0]).expand(3, 7), ((7, 9),), WB),
    Case(
        "baddbmm",
        lambda h, m: torch.baddbmm(m.u, h.expand(2, 3, 9), m.w).movedim(0, 1).flatten(1),
        ((2, 9, 7), (2, 1, 7)),
        (("w", "u"),),
    ),
    Case("addbmm", lambda h, m: torch.addbmm(m.b, h[None], m.w), ((1, 9, 7),), WB),
    Case("tensordot", lambda h, m: torch.tensordot(_cut(h), m.w, 2), ((3, 3, 7),)),
    Case(
        "tensordot, axes",
        lambda h, m: torch.tensordot(m.w, _cut(h), ((2, 0), (1, 2))).T,
        ((3, 7, 3),),
    ),
    Case("inner", lambda h, m: torch.inner(h, m.w), ((7, 9),)),
    Case(
        "bilinear",
        lambda h, m: m.layer(h[:, :4], h[:, 4:].sin()),
        ((1, 1),),
        TWO,
        lambda: nn.Bilinear(4, 5, 7),
    ),
    Case("einsum, implicit", lambda h, m: torch.einsum("bhi,ihz", _cut(h), m.w), ((3, 3, 7),)),
    Case(
        "einsum, three",
        lambda h, m: torch.einsum("bi,oij,bj->bo", h[:, :4], m.w, h[:, 4:].sin()),
        ((7, 4, 5),),
    ),
    Case("einsum, summed alone", lambda h, m: torch.einsum("bi,oij->bo", h, m.w), ((7, 9, 2),)),
    Case("einsum, diagonal", lambda h, m: torch.einsum("bii,io->bo", _cut(h), m.w), ((3, 7),)),
    Case(
        "einsum, two weights",
        lambda h, m: torch.einsum("bi,ij,jo->bo", h, m.w, m.u),
        ((9, 7), (7, 8)),
    ),
    Case("multi_dot", lambda h, m: torch.linalg.multi_dot([h, m.w, m.u]), ((9, 7), (7, 8))),
    Case("broadcast", lambda h, m: (h[None] @ m.w).movedim(0, 1).flatten(1), ((2, 9, 7),)),
    Case("broadcast weight", lambda h, m: (h.view(3, 1, 9) @ m.w)[:, 0], ((1, 9, 7),)),
    Case("exported call", lambda h, m: torch.ops.aten.addmm.default(m.b, h, m.w), moving=WB),
    Case("pruned", lambda h, m: m.layer(h), ((1, 1),), PRUNED, _pruned),
]  # fmt: skip


def _data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 5).double(), torch.randn(3, 3).double()


def _closure(model: Net) -> Callable[[], Tensor]:
    x, y = _data()
    return lambda: (model(x) - y).square().mean()


def _named(model: nn.Module, name: str) -> Tensor:
    return dict(model.named_parameters())[name]


@pytest.mark.parametrize("tangent", ["jvp", "fd"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_direction_is_that_of_the_parameters(case: Case, tangent: str) -> None:
    torch.manual_seed(0)
    model = case.net()
    closure, (x, _) = _closure(model), _data()
    got, excluded = parameter_directions(model, closure, tangent=tangent)
    objective, h = double_backward(model, closure), model.hidden(x).detach()

    for names in case.moving:

        def outputs(weights: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = torch.func.functional_call(_Layer(model), _prefixed(weights), (h,))
            return found

        assert not {*names} & {*excluded}, excluded
        weights = {name: _named(model, name).detach() for name in names}
        expected = projected_by_probing(outputs, weights, objective)
        for name in names:
            size = expected[name].norm()
            error = (got[name] - expected[name]).norm() / (size if size > 1e-12 else 1.0)
            assert float(error) <= (TOLERANCE if tangent == "jvp" else 1e-5)


class _Layer(nn.Module):
    """The layer alone."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor) -> Tensor:
        return self.net.use(h, self.net)


def _prefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"net." + name: w for name, w in weights.items()}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_loss_stays_and_the_weights_move(case: Case) -> None:
    torch.manual_seed(0)
    model = case.net()
    closure = _closure(model)
    before = float(closure().detach())
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = teleport(model, closure, config=TeleportConfig(radius=0.3, projection="threshold"))
    assert float(closure().detach()) == pytest.approx(before, rel=1e-12)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    stuck = {
        "masked fill",
        "where",
        "triangle",
        "one row gathered",
        "einsum, diagonal",
    }  # more rows than inputs that any output sees
    assert report.accepted, report
    for names in case.moving:
        assert names[0] in moved or case.name in stuck, report


def test_grouped_products_move_every_matrix_in_its_own_null_space() -> None:
    """``grouped_mm`` knows no float64: compared with one product per matrix."""

    def grouped(h: Tensor, m: Net) -> Tensor:
        return F.grouped_mm(_wide(h).float(), m.w.float(), offs=OFFSETS).double()

    def apart(h: Tensor, m: Net) -> Tensor:
        starts = [0, *OFFSETS.tolist()]
        return torch.cat(
            [_wide(h)[a:b] @ m.w[k] for k, (a, b) in enumerate(itertools.pairwise(starts))]
        )

    found = []
    for use in (grouped, apart):
        torch.manual_seed(0)
        model = Net(use, (3, 12, 8))
        found.append(parameter_directions(model, _closure(model), tangent="fd")[0]["w"])
    assert float((found[0] - found[1]).norm()) <= 1e-2 * float(found[1].norm())


NEIGHBOURS: dict[str, Use] = {
    "by its own norm": lambda h, m: h @ (m.w / m.w.norm()),
    "standardised": lambda h, m: h @ (m.w - m.w.mean(0)),
    "squared": lambda h, m: h @ (m.w * m.w),
    "a mask of its own": lambda h, m: h @ (m.w * (m.w.abs() > 0.1)),
    "scaled and used": lambda h, m: h @ (m.w * 2) + m.w.sum(),
    "overlapping windows": lambda h, m: h[:, :3] @ m.w[:, 0].unfold(0, 3, 1).T,
    "gather of elements": lambda h, m: h @ torch.gather(m.w, 0, ANY),
    "written into": lambda h, m: h @ torch.zeros(9, 7).double().index_put_((torch.arange(9),), m.w),
    "exponential": lambda h, m: h @ (m.w.exp() - 1),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_functions_that_are_not_linear_stay(name: str) -> None:
    torch.manual_seed(0)
    model = Net(NEIGHBOURS[name])
    closure = _closure(model)
    before, w = float(closure().detach()), model.w.detach().clone()
    teleport(model, closure, config=TeleportConfig(radius=0.3, max_loss_change=1e9))
    assert float(closure().detach()) == pytest.approx(before, rel=1e-12)
    rows = {row.name: row for row in inspect(model, closure)}
    assert rows["w"].reason or rows["w"].note or torch.equal(model.w, w)
    assert torch.equal(model.w, w)


TRANSPOSED: dict[str, Use] = {
    "symmetric": lambda h, m: h[:, :7] @ (m.w[:7] + m.w[:7].T),
    "twice in one einsum": lambda h, m: torch.einsum("bi,ij,kj->bk", h, m.w, m.w),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_weight_and_its_transpose_move_where_both_uses_stay(name: str) -> None:
    torch.manual_seed(0)
    model = Net(TRANSPOSED[name])
    closure = _closure(model)
    before, w = float(closure().detach()), model.w.detach().clone()
    teleport(model, closure, config=TeleportConfig(radius=0.3, max_loss_change=1e9))
    assert not torch.equal(model.w, w)
    assert float(closure().detach()) == pytest.approx(before, rel=1e-12)


def test_one_mask_per_output_is_refused_where_it_costs_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nullport._linear.LARGEST", 10)
    torch.manual_seed(0)
    model = Net(lambda h, m: h @ (m.w * MASK))
    rows = {row.name: row for row in inspect(model, _closure(model))}
    assert "masked, with too many inputs (9)" in rows["w"].reason


def _moved(model: Net) -> bool:
    closure, name = _closure(model), "layer.parametrizations.weight.original"
    before, w = float(closure().detach()), _named(model, name).detach().clone()
    teleport(model, closure, config=TeleportConfig(radius=0.3, projection="threshold"))
    if not model.training:  # else every pass updates the vectors
        assert float(closure().detach()) == pytest.approx(before, rel=1e-12)
    return not torch.equal(_named(model, name), w)


def test_spectral_norm_moves_where_its_vectors_are_fixed() -> None:
    torch.manual_seed(0)
    model = Net(lambda h, m: m.layer(h), layer=parametrizations.spectral_norm(nn.Linear(9, 7)))
    assert _moved(model.eval())
