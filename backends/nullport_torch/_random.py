"""Random states that passes draw from: every pass sees the same numbers, the end is the start.

Generators belong to the process. One that no pass uses is never touched; where another thread draws
from one that the passes use too, that is noticed, and nothing is rewound any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Disturbed(ValueError):  # noqa: N818
    """Another thread draws random numbers while a teleport needs the same ones again."""

    def __init__(self) -> None:
        """Say what happened."""
        super().__init__(
            "another thread draws from the random generator that the closure uses: passes cannot "
            "be repeated, so the weights stay (allowed: a generator for each thread)"
        )


class RandomState:
    """One random generator: its state at the start, and as the last pass left it."""

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        """Take the state."""
        self._get, self._put = get, put
        self._saved = self._left = get()
        self.used = self.foreign = self._within = False

    def begin(self) -> None:
        """Return to the start, if passes use this generator.

        Raises:
            Disturbed: If somebody else has used it since the last pass.
        """
        now = self._get()
        self._know(now)
        if not same(now, self._left):
            if self.used:
                self.foreign = True
                raise Disturbed
            self._saved = self._left = now  # of no interest so far
        elif self.used:
            self._put(self._saved)
        self._within = True

    def end(self) -> None:
        """Note what a pass has used."""
        self._left = self._get()
        self.used = self.used or not same(self._left, self._saved)
        self._within = False

    def _know(self, now: Any) -> None:
        """Take the present state for what a pass has left, if one was interrupted."""
        if self._within:
            self.used = self.used or not same(now, self._saved)
            self._left, self._within = now, False

    def restore(self) -> None:
        """Return to the start for good, unless somebody else has used it; may be called again."""
        now = self._get()
        self._know(now)
        if self.used and not self.foreign and same(now, self._left):
            self._put(self._saved)
            self._left = self._saved


class RandomStates:
    """All random generators that passes may use."""

    def __init__(self, devices: Sequence[int], others: Iterable[object] = ()) -> None:
        """Take the states of the process, of CUDA ``devices``, and of ``others`` by object."""
        self._states = [
            RandomState(torch.get_rng_state, torch.set_rng_state),
            RandomState(random.getstate, random.setstate),
            RandomState(np.random.get_state, np.random.set_state),
            *(_cuda(index) for index in devices),
            *(state for state in map(_own, others) if state is not None),
        ]
        self._batch: list[RandomState] | None = None

    def begin(self, *, everything: bool) -> None:
        """Start a pass: of the captured batch, or one that may draw from ``everything``."""
        for state in self._concerned(everything=everything):
            state.begin()

    def end(self, *, everything: bool) -> None:
        """End a pass."""
        concerned = self._concerned(everything=everything)
        for state in concerned:
            state.end()
        if self._batch is None and not everything:
            self._batch = [state for state in concerned if state.used]

    def _concerned(self, *, everything: bool) -> list[RandomState]:
        return self._states if everything or self._batch is None else self._batch

    @property
    def untouched(self) -> bool:
        """Whether passes of the captured batch draw no numbers."""
        return not self._batch

    def restore(self) -> None:
        """Return to the start for good."""
        for state in self._states:
            state.restore()


def same(a: Any, b: Any) -> bool:
    """Compare two random states."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and any(isinstance(part, np.ndarray) for part in a):
        return all(map(same, a, b))
    return bool(a == b)  # Python's own state has a tuple of hundreds of integers


def _cuda(index: int) -> RandomState:
    return RandomState(
        lambda: torch.cuda.get_rng_state(index),
        lambda state: torch.cuda.set_rng_state(state, index),
    )


def _own(value: Any) -> RandomState | None:
    """Return the state of a generator that a closure has of its own."""
    if isinstance(value, torch.Generator):
        return RandomState(value.get_state, value.set_state)
    if isinstance(value, random.Random):
        return RandomState(value.getstate, value.setstate)
    if isinstance(value, np.random.RandomState):
        return RandomState(value.get_state, value.set_state)
    if isinstance(value, np.random.Generator):
        source = value.bit_generator
        return RandomState(lambda: source.state, lambda state: setattr(source, "state", state))
    return None
