"""Recurrent networks step by step, as products that a watcher sees.

The kernels of ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells hide their products. Here they
are written out: the inputs of all steps in one product, the hidden state of every step in one of
its own. Numbers are those of the kernels to rounding, which a recording compares. Sequences are
time first, packed ones as ``PackedSequence`` holds them: the rows of a step are the first of those
of the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

State: TypeAlias = "tuple[Tensor, ...]"
Step: TypeAlias = "Callable[[Tensor, State, Weights], State]"


@dataclass(frozen=True)
class Weights:
    """The parameters of one direction of one layer.

    Attributes:
        ih: Of inputs.
        hh: Of hidden states.
        b_ih: Bias of inputs, or None.
        b_hh: Bias of hidden states, or None.
        hr: The projection of outputs, or None.
    """

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    hr: Tensor | None = None

    def inputs(self, x: Tensor) -> Tensor:
        """Return what the inputs of all steps, or of one, contribute."""
        return F.linear(x, self.ih, self.b_ih)

    def hidden(self, h: Tensor) -> Tensor:
        """Return what a hidden state contributes."""
        return F.linear(h, self.hh, self.b_hh)


def _lstm(x: Tensor, state: State, w: Weights) -> State:
    h, c = state
    i, f, g, o = (x + w.hidden(h)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.hr is None else F.linear(h, w.hr)), c


def _gru(x: Tensor, state: State, w: Weights) -> State:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = w.hidden(h).chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return ((h - n) * z + n,)


def _rnn(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda x, state, w: (function(x + w.hidden(state[0])),)


STEPS: dict[str, Step] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
}
KERNELS = {getattr(torch, name): name for name in STEPS}
CELLS = {getattr(torch, name + "_cell"): name for name in STEPS}


def written_out(func: Any, args: Sequence[Any]) -> Any:
    """Return what a recurrent kernel or cell returns, step by step."""
    if func in CELLS:
        x, hx, *parameters = args
        state = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
        weights = Weights(*parameters)
        found = STEPS[CELLS[func]](weights.inputs(x), state, weights)
        return found if len(found) > 1 else found[0]
    step, packed = STEPS[KERNELS[func]], isinstance(args[3], list | tuple)
    if packed:
        x, sizes, hx, parameters, *options = args
        return _network(step, x, sizes.tolist(), hx, parameters, options)
    x, hx, parameters, *options = args
    x = x.transpose(0, 1) if options[5] else x
    sizes = [x.shape[1]] * x.shape[0]
    out, *last = _network(step, x.flatten(0, 1), sizes, hx, parameters, options)
    out = out.unflatten(0, x.shape[:2])
    return (out.transpose(0, 1) if options[5] else out, *last)


def _network(
    step: Step,
    x: Tensor,
    sizes: Sequence[int],
    hx: Any,
    parameters: Sequence[Tensor],
    options: Sequence[Any],
) -> tuple[Tensor, ...]:
    """Run all layers and directions over rows sorted by time; ``sizes`` rows belong to a step."""
    biases, layers, dropout, training, both = options[:5]
    directions = 2 if both else 1
    each = len(parameters) // (layers * directions)
    states = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
    finals: list[State] = []
    for layer in range(layers):
        outputs = []
        for reverse in range(directions):
            k = layer * directions + reverse
            weights = _weights(parameters[k * each : (k + 1) * each], biases)
            first = tuple(part[k] for part in states)
            rows, last = _direction(step, x, sizes, first, weights, backwards=bool(reverse))
            outputs.append(rows)
            finals.append(last)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and training and layer < layers - 1:
            x = F.dropout(x, dropout, True)
    return x, *(torch.stack(part) for part in zip(*finals, strict=True))


def _weights(own: Sequence[Tensor], biases: bool) -> Weights:
    if biases:
        return Weights(*own)
    return Weights(own[0], own[1], hr=own[2] if len(own) > 2 else None)


def _direction(
    step: Step,
    x: Tensor,
    sizes: Sequence[int],
    first: State,
    weights: Weights,
    *,
    backwards: bool,
) -> tuple[Tensor, State]:
    """Run one direction of one layer; return its rows sorted by time, and the last states."""
    chunks = weights.inputs(x).split(list(sizes))
    order = range(len(sizes) - 1, -1, -1) if backwards else range(len(sizes))
    count = sizes[order[0]]
    state, ended = tuple(part[:count] for part in first), []
    rows: list[Tensor] = [x] * len(sizes)
    for t in order:
        n = sizes[t]
        if n < count:  # the shortest sequences have ended
            ended.append(tuple(part[n:] for part in state))
            state = tuple(part[:n] for part in state)
        elif n > count:  # from the end backwards, longer batches begin here
            more = tuple(part[count:n] for part in first)
            state = tuple(torch.cat(pair) for pair in zip(state, more, strict=True))
        count = n
        state = step(chunks[t], state, weights)
        rows[t] = state[0]
    for part in reversed(ended):
        state = tuple(torch.cat(pair) for pair in zip(state, part, strict=True))
    return torch.cat(rows), state


def draws(func: Any, args: Sequence[Any]) -> bool:
    """Tell whether a kernel draws random numbers on another device than the CPU."""
    if func in CELLS or args[0].device.type == "cpu":
        return False
    dropout, training = args[6:8] if isinstance(args[3], list | tuple) else args[5:7]
    return bool(dropout and training)


def alike(found: Any, native: Any) -> bool:
    """Tell whether two results have the same numbers to rounding."""
    pairs = [(found, native)] if isinstance(found, Tensor) else zip(found, native, strict=True)
    for a, b in pairs:
        size = torch.linalg.vector_norm(b.detach())
        distance = torch.linalg.vector_norm((a - b).detach())
        if a.shape != b.shape or not bool(distance <= 1e3 * torch.finfo(b.dtype).eps * size):
            return False
    return True
