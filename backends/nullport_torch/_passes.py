"""Running the closures: every pass sees the same surroundings, and what it writes is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

from nullport_torch._ambient import Ambient
from nullport_torch._checks import checked_loss, scalar
from nullport_torch._watch import NoBackward, Watch

T = TypeVar("T")

Closure = Callable[[], Tensor]
"""Runs the forward pass and returns the loss; calls no backward."""


class SameSamples(ValueError):  # noqa: N818
    """What should be other samples is the captured batch."""

    def __init__(self, name: str) -> None:
        """Say which, and what to do."""
        super().__init__(
            f"the {name} batch is the batch of the present step, so no other samples judge the "
            f"move: the closure does not keep its batch. Give the batch apart, "
            f"maybe_step(loss_fn, batch), or pass guard= and others="
        )


class Passes:
    """The closures over a network, and how they are run.

    Attributes:
        ambient: What passes must not notice, and leave as it was.
        watch: What passes write to.
    """

    def __init__(
        self,
        closures: Mapping[str, Closure],
        ambient: Ambient,
        *,
        distinct: bool = False,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Hold closures by name; with ``distinct`` each has to see another batch.

        ``before`` is called ahead of every forward pass.
        """
        self._closures, self.ambient, self._before = dict(closures), ambient, before
        self.watch = Watch(ambient.tensors())
        self._distinct, self._data = distinct, dict[str, list[Any]]()
        self._takes_gradients = False

    @contextlib.contextmanager
    def written_back(self) -> Iterator[None]:
        """Put back what a pass writes, after its backward pass too."""
        try:
            yield
        finally:
            self.watch.put_back()

    @contextlib.contextmanager
    def _forward(self, *, grad: bool, everything: bool = False) -> Iterator[None]:
        self._before()
        with self.ambient.forward(grad=grad, everything=everything):
            yield

    def recorded(self, mode: Any) -> Tensor:
        """Run the captured batch under a mode that watches it; return its loss, with its graph."""
        with self._forward(grad=True), mode:
            return checked_loss(self._closures["batch"]())

    def replayed(self, mode: Any, *, grad: bool) -> None:
        """Run the captured batch under a mode that changes its weights."""
        with self.written_back(), self._forward(grad=grad), mode:
            self._closures["batch"]()

    def watched(self, name: str, mode: Any) -> None:
        """Run a batch under a mode that only looks on."""
        everything, watch = name != "batch", NoBackward(self.watch)
        with self.written_back(), self._forward(grad=True, everything=everything), watch, mode:
            self._closures[name]()

    def tell(self, data: list[Any]) -> None:
        """Learn what data the captured batch is, as it was recorded."""
        self._data.setdefault("batch", data)

    @property
    def asks_for_data(self) -> bool:
        """Whether :meth:`tell` is needed."""
        return self._distinct and "batch" not in self._data

    def loss(self, name: str) -> Tensor:
        """Return the loss of a batch, with its graph."""
        return self._plain(name, checked_loss, grad=True)

    def value(self, name: str) -> Tensor:
        """Return the loss of a batch, 0-d, without a graph."""

        def run(*, grad: bool) -> Tensor:
            with self.written_back():
                return self._plain(name, scalar, grad=grad).detach()

        # Data is known by meeting what requires a gradient.
        return run(grad=True) if self._new(name) else self.without_graph(run)

    def without_graph(self, run: Callable[..., T]) -> T:
        """Run a pass without gradients, unless the closure itself takes some (a penalty)."""
        if not self._takes_gradients:
            try:
                return run(grad=False)
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                self._takes_gradients = True
        return run(grad=True)

    def _new(self, name: str) -> bool:
        return self._distinct and name != "batch" and name not in self._data

    def _plain(self, name: str, check: Callable[[object], Tensor], *, grad: bool) -> Tensor:
        data: list[Any] | None = [] if self._new(name) else None
        with (
            self._forward(grad=grad, everything=name != "batch"),
            NoBackward(self.watch, data),
        ):
            value = check(self._closures[name]())
        if data is not None:
            self._data[name] = data
            if data and data == self._data.get("batch"):
                raise SameSamples(name)
        return value
