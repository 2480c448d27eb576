"""Recurrent networks: null for the inputs and hidden states of all steps, against the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.torch_oracle import double_backward, parameter_directions, project
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nullport import TeleportConfig
from nullport_torch import inspect, teleport

T, B, D, H = 3, 2, 11, 9


class Sequences(nn.Module):
    """Stem, recurrent layers, head on all steps."""

    def __init__(self, make: Callable[[], nn.Module], run: Any, width: int) -> None:
        super().__init__()
        self.stem, self.layer, self.run = nn.Linear(5, D), make(), run
        self.head = nn.Linear(width, 2)
        self.double()

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.run(self.layer, self.hidden(x)))
        return out


def whole(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h)[0]  # type: ignore[no-any-return]


def packed(layer: nn.Module, h: Tensor) -> Tensor:
    sequence = pack_padded_sequence(h, torch.tensor([T, T - 1]))
    return pad_packed_sequence(layer(sequence)[0])[0]


def cells(layer: nn.Module, h: Tensor) -> Tensor:
    state, out = None, []
    for step in h.unbind(0):
        state = layer(step, state)
        out.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(out)


def learnt_state(layer: Any, h: Tensor) -> Tensor:
    first = layer.bias_hh_l0.new_zeros(1, B, H)
    return layer(h, first + layer.bias_ih_l0[:H])[0]  # type: ignore[no-any-return]


KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CASES: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {
    **{name: (lambda kind=kind: kind(D, H), whole, H) for name, kind in KINDS.items()},
    "relu": (lambda: nn.RNN(D, H, nonlinearity="relu"), whole, H),
    "no bias": (lambda: nn.LSTM(D, H, bias=False), whole, H),
    "two layers": (lambda: nn.GRU(D, H, 2), whole, H),
    "both directions": (lambda: nn.LSTM(D, H, bidirectional=True), whole, 2 * H),
    "two layers, both directions": (lambda: nn.GRU(D, H, 2, bidirectional=True), whole, 2 * H),
    "batch first": (
        lambda: nn.GRU(D, H, batch_first=True),
        lambda f, h: f(h.transpose(0, 1))[0].transpose(0, 1),
        H,
    ),
    "dropout": (lambda: nn.LSTM(D, H, 2, dropout=0.4), whole, H),
    "projected": (lambda: nn.LSTM(D, H, proj_size=7), whole, 7),
    "packed lstm": (lambda: nn.LSTM(D, H), packed, H),
    "packed gru": (lambda: nn.GRU(D, H, bidirectional=True), packed, 2 * H),
    "lstm cell": (lambda: nn.LSTMCell(D, H), cells, H),
    "gru cell": (lambda: nn.GRUCell(D, H), cells, H),
    "rnn cell": (lambda: nn.RNNCell(D, H), cells, H),
    "state from a parameter": (lambda: nn.RNN(D, H), learnt_state, H),
}


def _net(name: str) -> tuple[Sequences, Callable[[], Tensor], Tensor]:
    torch.manual_seed(0)
    model = Sequences(*CASES[name])
    x, y = torch.randn(T, B, 5).double(), torch.randn(T, B, 2).double()

    def closure() -> Tensor:
        torch.manual_seed(3)  # dropout draws the same numbers again
        return (model(x) - y).square().mean()

    return model, closure, x


@pytest.mark.parametrize("name", CASES)
def test_loss_stays_and_all_kernels_move(name: str) -> None:
    model, closure, _ = _net(name)
    before = closure().item()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = teleport(model, closure, config=TeleportConfig(radius=0.3, projection="threshold"))
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    named = dict(model.named_parameters())
    kernels = [n for n in named if n.startswith("layer.weight")]
    assert kernels
    assert all(not torch.equal(named[n], start[n]) for n in kernels)
    assert float(report.grad_norm_after) > float(report.grad_norm_before)


def _states(layer: Any, h: Tensor, k: int, *, backwards: bool = False) -> Tensor:
    """Return the hidden state before every step, as the kernel gives it for parts of sequences."""
    parts = [h[t:] for t in range(T - 1, 0, -1)] if backwards else [h[:t] for t in range(1, T)]
    found = [layer(part)[1] for part in parts]
    found = [state[0] if isinstance(state, tuple) else state for state in found]
    zero = torch.zeros_like(found[0][k])
    return torch.cat([zero, *(state[k] for state in found)]).detach()


ORACLE = ["lstm", "gru", "rnn", "relu", "no bias", "two layers", "both directions"]


@pytest.mark.parametrize("name", ORACLE)
def test_direction_is_the_projected_double_backward(name: str) -> None:
    model, closure, x = _net(name)
    got, _ = parameter_directions(model, closure)
    objective = double_backward(model, closure)
    layer: Any = model.layer
    h = model.hidden(x).detach()
    for k, suffix in enumerate(("l0", "l0_reverse" if layer.bidirectional else "l1")):
        if f"layer.weight_ih_{suffix}" not in got:
            assert k
            assert name not in ("two layers", "both directions")
            continue
        second = suffix == "l1"
        inputs = torch.cat([_states(layer, h, 0)[B:], layer(h)[1][0].detach()]) if second else h
        rows = {
            "ih": inputs.reshape(-1, inputs.shape[-1]),
            "hh": _states(layer, h, k, backwards=suffix == "l0_reverse"),
        }
        for part, x_rows in rows.items():
            names = [f"layer.{kind}_{part}_{suffix}" for kind in ("weight", "bias")]
            names = names if layer.bias else names[:1]
            matrix = _joined(objective, names)
            expected = project(matrix.numpy(), x_rows.numpy(), bias=layer.bias)
            found = _joined(got, names).numpy()
            error = abs(found - expected).max() / abs(expected).max()
            assert error <= 1e-9, (part, suffix)


def _joined(arrays: Any, names: list[str]) -> Tensor:
    return torch.cat([arrays[n] if arrays[n].ndim == 2 else arrays[n][:, None] for n in names], 1)


def test_kernels_whose_numbers_cannot_be_had_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullport_torch._recorder.alike", lambda *_: False)
    model, closure, _ = _net("dropout")
    before = closure().item()
    reasons = {row.name: row.reason for row in inspect(model, closure)}
    assert "lstm" in reasons["layer.weight_hh_l1"]
    teleport(model, closure)
    assert closure().item() == pytest.approx(before, rel=1e-12)


def test_a_penalty_on_a_kernel_holds_it() -> None:
    model, closure, _ = _net("gru")
    weight: Tensor = model.layer.weight_hh_l0  # type: ignore[union-attr, assignment]
    rows = inspect(model, lambda: closure() + weight.square().sum())
    reasons = {row.name: row.reason for row in rows}
    assert "square" in reasons["layer.weight_hh_l0"]
    assert not reasons["layer.weight_ih_l0"]
