"""One layer in the middle of a small network: its inputs and weight as matrices, by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from helpers.torch_oracle import conv_matrices, probed_patches
from torch import Tensor, nn

Arrays = Mapping[str, Tensor]
Rows = Callable[[nn.Module, Tensor], Tensor]
Matrices = Callable[[nn.Module, Arrays], Tensor]


@dataclass(frozen=True)
class Target:
    """A block of the layer: how its inputs and its weight look as matrices.

    Attributes:
        rows: From the layer and its input ``h`` to the rows ``X``, (..., n, in).
        matrix: From the layer and arrays shaped like its parameters, by name, to (..., out, in),
            with the bias as last column if it has one.
        bias: Whether there is one.
    """

    rows: Rows
    matrix: Matrices
    bias: bool = False


@dataclass(frozen=True)
class LayerCase:
    """A layer to put in the middle.

    Attributes:
        name: For the test's id.
        make: Makes the layer.
        shape: Shape of one sample of its input.
        targets: Its blocks, by name.
        batch: Number of samples.
        full_rank: Whether its inputs have full row rank where there are fewer rows than inputs.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    targets: Mapping[str, Target]
    batch: int = 2
    full_rank: bool = True

    def __repr__(self) -> str:
        return self.name


class Middle(nn.Module):
    """Stem, layer, head: the stem makes the layer's input depend on weights."""

    def __init__(self, case: LayerCase) -> None:
        super().__init__()
        self.shape = case.shape
        self.stem = nn.Linear(5, torch.Size(case.shape).numel())
        self.layer = case.make()
        width = self.layer(torch.randn(case.batch, *case.shape)).flatten(1).shape[1]
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x)).unflatten(1, self.shape)
        out: Tensor = self.head(torch.tanh(self.layer(h)).flatten(1))
        return out


class Function(nn.Module):
    """A weight, perhaps a bias, and a function of (h, weight, bias)."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        weight: tuple[int, ...],
        bias: tuple[int, ...] | None = None,
        make: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(make(torch.randn(weight) * 0.4))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.function(h, self.weight, self.bias)
        return out


def flat(_: nn.Module, h: Tensor) -> Tensor:
    """All leading axes are samples."""
    return h.reshape(-1, h.shape[-1])


def as_is(_: nn.Module, arrays: Arrays) -> Tensor:
    """(out, in), with the bias if there is one."""
    w = arrays["weight"]
    return torch.cat([w, arrays["bias"][:, None]], dim=-1) if "bias" in arrays else w


def transposed(_: nn.Module, arrays: Arrays) -> Tensor:
    """(in, out), with the bias if there is one."""
    w = arrays["weight"].mT
    return torch.cat([w, arrays["bias"][:, None]], dim=-1) if "bias" in arrays else w


def weight_only(shape: Callable[[Tensor], Tensor]) -> Matrices:
    """A weight without bias, put in matrix form by ``shape``."""
    return lambda _, arrays: shape(arrays["weight"])


def _conv(
    name: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    batch: int = 2,
    *,
    full_rank: bool = True,
) -> LayerCase:
    bias = make().bias is not None
    target = Target(
        probed_patches, lambda layer, a: conv_matrices(layer, a["weight"], a.get("bias")), bias
    )
    return LayerCase(name, make, shape, {"weight": target}, batch, full_rank)


def _function(
    name: str,
    function: Callable[..., Tensor],
    weight: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    matrix: Matrices,
    rows: Rows = flat,
    bias: tuple[int, ...] | None = None,
    batch: int = 2,
    make: Callable[[Tensor], Tensor] = lambda t: t,
) -> LayerCase:
    return LayerCase(
        name,
        lambda: Function(function, weight, bias, make),
        shape,
        {"weight": Target(rows, matrix, bias is not None)},
        batch,
    )


def _chunks(h: Tensor, w: Tensor, _: object) -> Tensor:
    q, k, v = w.chunk(3)
    return F.linear(h, q) * F.linear(torch.sin(h), k) + h @ v.t()


def _chunk_target(part: int, inner: Callable[[Tensor], Tensor]) -> Target:
    return Target(lambda _, h: inner(h), lambda _, arrays: arrays["weight"].chunk(3)[part], False)


def _twice(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(h, w, b)), w, b)


def _twice_rows(layer: nn.Module, h: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([h, torch.tanh(F.linear(h, layer.weight, layer.bias))])


def _experts(_: nn.Module, h: Tensor) -> Tensor:
    return h.transpose(0, 1)


PRODUCTS = [
    LayerCase("Linear", lambda: nn.Linear(9, 7), (9,), {"weight": Target(flat, as_is, True)}, 4),
    LayerCase(
        "Linear sequence", lambda: nn.Linear(9, 7), (3, 9), {"weight": Target(flat, as_is, True)}
    ),
    LayerCase(
        "Linear no bias",
        lambda: nn.Linear(9, 2, bias=False),
        (9,),
        {"weight": Target(flat, as_is)},
        4,
    ),
    _function("F.linear", F.linear, (7, 9), (9,), matrix=as_is, bias=(7,), batch=4),
    _function("x @ W", lambda h, w, _: h @ w, (9, 7), (3, 9), matrix=transposed),
    _function("x.matmul(W)", lambda h, w, _: h.matmul(w), (9, 7), (9,), matrix=transposed, batch=4),
    _function("x.mm(W)", lambda h, w, _: h.mm(w), (9, 7), (9,), matrix=transposed, batch=4),
    _function("W @ x", lambda h, w, _: (w @ h.T).T, (7, 9), (9,), matrix=as_is, batch=4),
    _function("W @ batched x", lambda h, w, _: w @ h.mT, (7, 9), (3, 9), matrix=as_is),
    _function(
        "x @ vector",
        lambda h, w, _: (h @ w)[..., None],
        (9,),
        (3, 9),
        batch=2,
        matrix=weight_only(lambda w: w[None]),
    ),
    _function(
        "mv",
        lambda h, w, _: torch.stack([w.mv(row) for row in h]),
        (7, 9),
        (9,),
        matrix=as_is,
        batch=3,
    ),
    _function(
        "addmm",
        lambda h, w, b: torch.addmm(b, h, w),
        (9, 7),
        (9,),
        matrix=transposed,
        bias=(7,),
        batch=4,
    ),
    _function(
        "Tensor.addmm",
        lambda h, w, b: b.addmm(h, w),
        (9, 7),
        (9,),
        matrix=transposed,
        bias=(7,),
        batch=4,
    ),
    _function(
        "W.T view", lambda h, w, _: F.linear(h, w.t()), (9, 7), (9,), matrix=transposed, batch=4
    ),
    _function(
        "reshaped weight",
        lambda h, w, _: h @ w.view(9, 7),
        (3, 3, 7),
        (9,),
        matrix=weight_only(lambda w: w.reshape(9, 7).T),
        batch=4,
    ),
    _function(
        "sliced weight",
        lambda h, w, _: h @ w[2:, 1:],
        (11, 8),
        (9,),
        batch=4,
        matrix=weight_only(lambda w: w[2:, 1:].T),
    ),
    _function(
        "cloned weight", lambda h, w, _: h @ w.clone(), (9, 7), (9,), matrix=transposed, batch=4
    ),
    _function(
        "column-major weight",
        lambda h, w, b: F.linear(h, w, b),
        (7, 9),
        (9,),
        matrix=as_is,
        bias=(7,),
        batch=4,
        make=lambda t: t.t().contiguous().t(),
    ),
    _function(
        "einsum",
        lambda h, w, _: torch.einsum("bi,oi->bo", h, w),
        (7, 9),
        (9,),
        matrix=as_is,
        batch=4,
    ),
    _function(
        "einsum heads",
        lambda h, w, _: torch.einsum("bsd,dhk->bshk", h, w),
        (9, 2, 3),
        (3, 9),
        matrix=weight_only(lambda w: w.reshape(9, 6).T),
    ),
    _function(
        "einsum two inputs",
        lambda h, w, _: torch.einsum("bshk,hkd->bsd", h, w),
        (2, 4, 5),
        (2, 2, 4),
        matrix=weight_only(lambda w: w.reshape(8, 5).T),
        rows=lambda _, h: h.reshape(-1, 8),
    ),
    _function(
        "einsum weight first",
        lambda h, w, _: torch.einsum("hdk,bsd->bhsk", w, h),
        (2, 9, 3),
        (3, 9),
        matrix=weight_only(lambda w: w.transpose(1, 2).reshape(6, 9)),
    ),
    _function(
        "einsum ellipsis",
        lambda h, w, _: torch.einsum("...i,oi->...o", h, w),
        (7, 9),
        (3, 9),
        matrix=as_is,
    ),
    _function(
        "einsum stack",
        lambda h, w, _: torch.einsum("bed,edo->beo", h, w),
        (3, 6, 4),
        (3, 6),
        matrix=weight_only(lambda w: w.mT),
        rows=_experts,
        batch=4,
    ),
    _function(
        "bmm experts",
        lambda h, w, _: torch.bmm(h.transpose(0, 1), w).transpose(0, 1),
        (3, 6, 4),
        (3, 6),
        matrix=weight_only(lambda w: w.mT),
        rows=_experts,
        batch=4,
    ),
    _function(
        "broadcast experts",
        lambda h, w, _: h[:, :, None] @ w,
        (3, 6, 4),
        (3, 6),
        batch=4,
        matrix=weight_only(lambda w: w.mT),
        rows=_experts,
    ),
    _function(
        "selected experts",
        lambda h, w, _: h @ w[0] + torch.sin(h) @ w[2],
        (3, 9, 4),
        (9,),
        matrix=weight_only(lambda w: w[0].T),
        batch=4,
    ),
    LayerCase(
        "chunked weight",
        lambda: Function(_chunks, (12, 9)),
        (9,),
        {
            "weight[part 1/3]": _chunk_target(0, lambda h: h),
            "weight[part 2/3]": _chunk_target(1, torch.sin),
            "weight[part 3/3]": _chunk_target(2, lambda h: h),
        },
        4,
    ),
    LayerCase(
        "shared layer",
        lambda: Function(_twice, (9, 9), (9,)),
        (9,),
        {"weight": Target(_twice_rows, as_is, True)},
        3,
    ),
]

_selected = next(c for c in PRODUCTS if c.name == "selected experts")
PRODUCTS[PRODUCTS.index(_selected)] = LayerCase(
    _selected.name,
    _selected.make,
    _selected.shape,
    {
        "weight[part 1/2]": Target(flat, weight_only(lambda w: w[0].T)),
        "weight[part 2/2]": Target(lambda _, h: torch.sin(h), weight_only(lambda w: w[2].T)),
    },
    4,
)

_L = nn.Conv1d, nn.Conv2d, nn.Conv3d
_T = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d


def _channels_last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


CONVS = [
    _conv("Conv1d", lambda: nn.Conv1d(6, 4, 3), (6, 5)),
    _conv("Conv1d stride pad", lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1), (6, 7)),
    _conv("Conv1d no bias", lambda: nn.Conv1d(6, 4, 3, bias=False), (6, 5)),
    _conv("Conv2d", lambda: nn.Conv2d(6, 4, 3), (6, 4, 5)),
    _conv("Conv2d 1x1", lambda: nn.Conv2d(9, 4, 1), (9, 2, 2)),
    _conv(
        "Conv2d rectangular",
        lambda: nn.Conv2d(6, 3, (2, 3), stride=(1, 2), padding=(1, 0)),
        (6, 3, 5),
    ),
    _conv("Conv2d dilation", lambda: nn.Conv2d(6, 3, 3, dilation=2), (6, 6, 6)),
    _conv("Conv2d same", lambda: nn.Conv2d(8, 3, 3, padding="same"), (8, 3, 4)),
    _conv("Conv2d same even kernel", lambda: nn.Conv2d(8, 3, (2, 4), padding="same"), (8, 3, 4)),
    _conv(
        "Conv2d same dilated",
        lambda: nn.Conv2d(8, 3, (2, 3), padding="same", dilation=(3, 2)),
        (8, 3, 4),
    ),
    _conv("Conv2d valid", lambda: nn.Conv2d(6, 3, 3, padding="valid"), (6, 4, 4)),
    _conv(
        "Conv2d circular", lambda: nn.Conv2d(8, 3, 3, padding=1, padding_mode="circular"), (8, 3, 4)
    ),
    _conv(
        "Conv2d reflect", lambda: nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect"), (8, 3, 4)
    ),
    _conv(
        "Conv2d replicate",
        lambda: nn.Conv2d(8, 3, 3, padding=1, padding_mode="replicate"),
        (8, 3, 3),
    ),
    _conv(
        "Conv2d circular same",
        lambda: nn.Conv2d(8, 3, (2, 3), padding="same", padding_mode="circular"),
        (8, 3, 4),
    ),
    _conv("Conv2d groups", lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1), (8, 3, 3), 1),
    _conv("Conv2d depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 4, 4), 1),
    _conv(
        "Conv2d depthwise stride",
        lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1),
        (4, 5, 4),
        1,
    ),
    _conv("Conv2d channels_last", lambda: _channels_last(nn.Conv2d(6, 4, 3)), (6, 4, 5)),
    _conv(
        "Conv2d channels_last groups",
        lambda: _channels_last(nn.Conv2d(8, 4, 3, groups=2)),
        (8, 5, 5),
        1,
    ),
    _conv("Conv3d", lambda: nn.Conv3d(4, 3, 2), (4, 3, 3, 3)),
    _conv(
        "Conv3d all",
        lambda: nn.Conv3d(6, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 0), groups=2),
        (6, 3, 3, 3),
        1,
    ),
    _conv("ConvTranspose1d", lambda: nn.ConvTranspose1d(9, 4, 3), (9, 4)),
    _conv(
        "ConvTranspose1d stride", lambda: nn.ConvTranspose1d(9, 4, 3, stride=2, padding=1), (9, 4)
    ),
    _conv(
        "ConvTranspose1d output_padding",
        lambda: nn.ConvTranspose1d(9, 4, 4, stride=3, output_padding=1),
        (9, 3),
        full_rank=False,
    ),
    _conv("ConvTranspose2d", lambda: nn.ConvTranspose2d(9, 4, 2), (9, 2, 3)),
    _conv(
        "ConvTranspose2d stride pad",
        lambda: nn.ConvTranspose2d(9, 4, 3, stride=2, padding=1),
        (9, 2, 2),
    ),
    _conv(
        "ConvTranspose2d output_padding",
        lambda: nn.ConvTranspose2d(9, 4, 3, stride=2, padding=1, output_padding=1),
        (9, 2, 2),
    ),
    _conv(
        "ConvTranspose2d groups",
        lambda: nn.ConvTranspose2d(12, 6, 2, groups=2, stride=(1, 2)),
        (12, 2, 2),
        1,
    ),
    _conv(
        "ConvTranspose2d dilation",
        lambda: nn.ConvTranspose2d(9, 3, 2, dilation=2, padding=1),
        (9, 2, 2),
    ),
    _conv(
        "ConvTranspose2d rectangular",
        lambda: nn.ConvTranspose2d(9, 3, (1, 3), stride=(1, 2), padding=(0, 2)),
        (9, 2, 3),
    ),
    _conv("ConvTranspose3d", lambda: nn.ConvTranspose3d(9, 2, 2), (9, 2, 1, 2), 1),
    _conv(
        "ConvTranspose3d groups",
        lambda: nn.ConvTranspose3d(12, 4, 2, stride=(2, 1, 1), groups=2),
        (12, 1, 2, 2),
        1,
    ),
]
