"""Other samples are other samples, whatever way a closure reads its batch; and in a resumed run."""

from __future__ import annotations

import functools
import io
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import Teleporter
from nullport_torch._batches import Unsaved, check, decoded, encoded


@dataclass
class Record:
    x: Tensor
    name: str = "record"


@dataclass(frozen=True)
class Frozen:
    x: Tensor


class Named(NamedTuple):
    x: Tensor
    y: int = 0


class Graph:
    """As the data of a graph library: made of parts, and from them."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to_dict(self) -> dict[str, Tensor]:
        return {"x": self.x}

    @classmethod
    def from_dict(cls, parts: dict[str, Tensor]) -> Graph:
        return cls(parts["x"])


def encoding(x: Tensor) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BatchEncoding({"x": x})


KINDS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda x: x, lambda b: b),
    "tuple": (lambda x: (x, 1), lambda b: b[0]),
    "list": (lambda x: [[x], "text", None], lambda b: b[0][0]),
    "dict": (lambda x: {"x": x, 3: 2.5}, lambda b: b["x"]),
    "ordered": (lambda x: OrderedDict(x=x), lambda b: b["x"]),
    "array": (lambda x: {"x": x.numpy()}, lambda b: torch.as_tensor(b["x"])),
    "UserDict": (lambda x: UserDict(x=x), lambda b: b["x"]),
    "BatchEncoding": (encoding, lambda b: b["x"]),
    "dataclass": (Record, lambda b: b.x),
    "frozen": (Frozen, lambda b: b.x),
    "NamedTuple": (Named, lambda b: b.x),
    "graph": (Graph, lambda b: b.x),
    "nested": (lambda x: {"in": Named(x), "out": [Record(x)]}, lambda b: b["out"][0].x),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@EVERY_KIND
def test_a_batch_comes_back_from_a_checkpoint(kind: str) -> None:
    make, read = KINDS[kind]
    batch, present = make(torch.randn(3, 2)), make(torch.randn(3, 2))
    torch.save(encoded(batch), file := io.BytesIO())
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    check(saved)
    found = decoded(saved, present)
    assert type(found) is type(batch)
    assert torch.equal(read(found), read(batch))
    assert not torch.equal(read(present), read(batch))


def test_what_is_not_known_is_not_saved() -> None:
    for value in (object(), {"a": [nn.Linear(1, 1)]}, nn.Parameter(torch.ones(2)), {1, 2}):
        with pytest.raises(Unsaved):
            encoded(value)
    with pytest.raises(Unsaved, match="Record, where this run has a Named"):
        decoded(encoded(Record(torch.ones(1))), Named(torch.ones(1)))


class Loop:
    """A network in training that notes which batches a teleport sees."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1))
        self.seen: set[float] = set()
        self.model.register_forward_pre_hook(lambda _, args: self.seen.add(args[0].sum().item()))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        config = TeleportConfig(objective="look_ahead")  # it reads all three batches
        self.teleporter = Teleporter(
            self.model, self.optimizer, config=config, **{"every": 2, **options}
        )


@EVERY_KIND
@pytest.mark.parametrize("way", ["batch", "closure", "partial"])
def test_kept_batches_survive_a_checkpoint(kind: str, way: str) -> None:
    """The resumed run is judged by the batches before, not by its own."""
    make, read = KINDS[kind]
    xs = torch.randn(3, 4, 8)
    state: Any = None
    for step, x in enumerate(xs):
        loop = Loop() if step != 1 else loop  # noqa: F821 - from the step before
        if state is not None:
            loop.teleporter.load_state_dict(state)
        batch = make(x)
        loss = functools.partial(_loss, loop.model, read)
        loop.seen.clear()
        if way == "batch":
            loop.teleporter.maybe_step(loss, batch)
        elif way == "closure":
            loop.teleporter.maybe_step(lambda: loss(batch))  # noqa: B023
        else:
            loop.teleporter.maybe_step(functools.partial(loss, batch))
        torch.save(loop.teleporter.state_dict(), file := io.BytesIO())
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert loop.teleporter.history
    assert {x.sum().item() for x in xs} <= loop.seen


def _loss(model: nn.Module, read: Callable[[Any], Tensor], batch: Any) -> Tensor:
    loss: Tensor = model(read(batch)).square().mean()
    return loss


def test_a_batch_that_cannot_be_saved_is_told_of() -> None:
    class Handle:
        __slots__ = ("x",)

    loop = Loop()

    def batch() -> Handle:
        made = Handle()
        made.x = torch.randn(4, 8)
        return made

    loss = lambda b: loop.model(b.x).square().mean()  # noqa: E731
    loop.teleporter.maybe_step(loss, batch())
    with pytest.warns(UserWarning, match="kept batches are not saved: a Handle in a batch"):
        assert loop.teleporter.state_dict()["recent"] == []
    for _ in range(3):
        loop.teleporter.maybe_step(loss, batch())
    assert loop.teleporter.history


@pytest.mark.parametrize("bad", [object(), {"x": 1}, {"nullport": "dict", "parts": [object()]}])
def test_a_bad_batch_in_a_state_is_refused_whole(bad: Any) -> None:
    loop = Loop()
    state = loop.teleporter.state_dict()
    with pytest.raises(TypeError, match="invalid batch"):
        loop.teleporter.load_state_dict({**state, "recent": [bad]})
    assert loop.teleporter.state_dict() == state


def test_every_and_horizon_are_changed_at_resume() -> None:
    first = Loop(every=50)
    for x in torch.randn(3, 4, 8):
        first.teleporter.maybe_step(lambda b: first.model(b).square().mean(), x)
    second = Loop(every=2, horizon=77)
    second.teleporter.load_state_dict(first.teleporter.state_dict())
    policy = second.teleporter.state_dict()["policy"]
    assert (policy["every"], policy["horizon"], policy["step"]) == (2, 77, 3.0)
    assert policy["due"] == 5.0


GLOBAL: dict[str, Any] = {}
here = None
"""Read by a closure below, as in a script at module level."""


class Trainer:
    """Reads its batch from attributes, also in methods of parts."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.part = model, Part()

    def loss(self) -> Tensor:
        loss: Tensor = (self.model(self.x) - self.part.shift()).square().mean()
        return loss

    def __call__(self) -> Tensor:
        return self.loss()


class Part:
    y = torch.zeros(())

    def shift(self) -> Tensor:
        return self.y


def _closures(model: nn.Module) -> dict[str, tuple[Callable[[Tensor], None], Callable[[], Any]]]:
    """Return ways to read a batch: how it is set, and what closure is given then."""
    trainer, held = Trainer(model), {}

    def attribute(x: Tensor) -> None:
        trainer.x = x

    def part(x: Tensor) -> None:
        trainer.x, trainer.part.y = x, x.sum()

    def inner(x: Tensor) -> None:
        held["x"] = x

    def by_global(x: Tensor) -> None:
        global here
        here = x

    def from_inner() -> Callable[[], Tensor]:
        x = held["x"]

        def compute() -> Tensor:
            return model(x).square().mean()

        return lambda: compute()

    def global_loss() -> Tensor:
        return model(here).square().mean()

    return {
        "attributes": (attribute, lambda: lambda: trainer.loss()),
        "bound method": (attribute, lambda: trainer.loss),
        "callable object": (attribute, lambda: trainer),
        "a part's attributes": (part, lambda: lambda: trainer.loss()),
        "inner function": (inner, from_inner),
        "global": (by_global, lambda: global_loss),
        "function that reads a global": (by_global, lambda: lambda: global_loss()),
        "partial of a method": (attribute, lambda: functools.partial(trainer.loss)),
    }


@pytest.mark.parametrize("way", list(_closures(nn.Identity())))
def test_other_samples_are_other_samples(way: str) -> None:
    loop = Loop(every=3)
    put, give = _closures(loop.model)[way]
    counts = []
    for x in torch.randn(8, 4, 8):
        put(x)
        loop.seen.clear()
        if loop.teleporter.maybe_step(give()) is not None:
            counts.append(len(loop.seen))
    assert counts == [3, 3]


@pytest.mark.parametrize("way", ["container", "module"])
def test_where_they_are_not_the_look_ahead_is_declined(way: str) -> None:
    loop = Loop(every=3)
    held: dict[str, Tensor] = {}
    calls: list[int] = []

    class Holder(nn.Module):
        x = torch.zeros(())

    holder = Holder()

    def read() -> Tensor:
        return held["x"] if way == "container" else holder.x

    class Opaque:
        """What a closure calls here is a class, which is not followed."""

        @staticmethod
        def read() -> Tensor:
            return read()

    def loss() -> Tensor:
        calls.append(1)
        return loop.model(Opaque.read()).square().mean()

    def train() -> None:
        for x in torch.randn(8, 4, 8):
            held["x"] = holder.x = x
            assert loop.teleporter.maybe_step(loss) is None

    with pytest.warns(UserWarning, match="is the batch of the present step") as told:
        train()
    assert len(told) == 1


def test_training_on_one_batch_is_judged_by_that_batch() -> None:
    """All the data there is: nothing is wrong, and nothing is warned of."""
    loop = Loop(every=2)
    x = torch.randn(4, 8)
    for _ in range(5):
        loop.teleporter.maybe_step(lambda: loop.model(x).square().mean())
    assert len(loop.teleporter.history) == 2


def test_guard_and_others_are_batches_where_a_batch_is_given() -> None:
    loop = Loop(every=1)
    xs = torch.randn(4, 4, 8)
    loss = lambda b: loop.model(b).square().mean()  # noqa: E731
    loop.teleporter.maybe_step(loss, xs[0])
    loop.seen.clear()
    report = loop.teleporter.maybe_step(loss, xs[1], guard=xs[2], others=xs[3])
    assert report is not None
    assert loop.seen == {x.sum().item() for x in xs[1:]}
    loop.seen.clear()
    assert loop.teleporter.maybe_step(loss, xs[0], xs[2], xs[3]) is not None
    assert loop.seen == {xs[i].sum().item() for i in (0, 2, 3)}
    with pytest.raises(TypeError, match="maybe_step takes a closure"):
        loop.teleporter.maybe_step(loss, xs[0], xs[1], xs[2], xs[3])


def test_arrays_of_numpy_are_kept_as_they_are() -> None:
    found = decoded(encoded({"x": np.arange(3.0)}), {"x": None})
    assert isinstance(found["x"], np.ndarray)
    assert found["x"].tolist() == [0.0, 1.0, 2.0]
