"""Faults at calls and lines of the torch adapter: whatever happens, nothing is left changed.

    python tests/fault_injection.py --points 2500

Each point raises once: an error (a bug, or memory that runs out) where the adapter enters a
function, an interrupt (Ctrl-C, a signal) also where it comes to a line. Afterwards the weights have
to be bit for bit those of before, or those of the teleport that had settled already; everything
else (buffers, gradients, random states, the optimizer's state, settings of the process) has to be
as before. An error never leaves ``maybe_step``, an interrupt always does.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from helpers.state import Snapshot

import nullport_torch
from nullport_torch import Teleporter, teleport
from nullport_torch._hooks import LOOKING

HOME = str(Path(nullport_torch.__file__).parent)
HANDLERS = {"maybe_step", "_decline", "_outside", "_steps", "_step", "_closure", "_filled"}
"""Functions of the adapter that catch errors, or check arguments before: these are not caught."""

READING = {"<genexpr>", "tensors_in"}
"""Generators that only read. One that is not used up is resumed as it is freed: Python ignores
what is raised there."""


class Fault(RuntimeError):  # noqa: N818
    """An error that is put in."""


class Injector:
    """Counts calls and lines of the adapter, and raises at one of them."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.count, self.where = at, error, 0, ""

    def __enter__(self) -> Injector:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        name = frame.f_code.co_name
        checked = name == "__init__" and frame.f_code.co_filename.endswith("_batches.py")
        if self.error is Fault and (name in HANDLERS or checked):
            return None
        if name in READING:
            return None
        if event == "call" or (event == "line" and self.error is KeyboardInterrupt):
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise self.error
        return self._trace


class Network(nn.Module):
    """Everything that a pass can change: a norm, random numbers, an embedding that is renormed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 12, max_norm=1.0)
        self.norm, self.drop = nn.BatchNorm1d(12), nn.Dropout(0.2)
        self.hidden, self.head = nn.Linear(12, 12), nn.Linear(12, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.norm(self.embedding(x))
        out: Tensor = self.head(torch.tanh(self.hidden(self.drop(h))))
        return out


class World:
    """A network in training, made anew for every point."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Network().double()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.optimizer.register_step_pre_hook(self._clip)
        ids, y = torch.randint(9, (4, 7)), torch.randint(3, (4, 7))
        self.batches = list(zip(ids, y, strict=True))
        self.teleporter = Teleporter(self.model, self.optimizer, every=2)
        for batch in self.batches[:2]:
            self.teleporter.maybe_step(self.loss, batch)
            self.optimizer.zero_grad()
            self.loss(batch).backward()
            self.optimizer.step()
        self.before = Snapshot(self.model, self.optimizer)

    @staticmethod
    def _clip(optimizer: Any, *_: object) -> None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def by_hand(self) -> None:
        one, two, three = ((lambda b=b: self.loss(b)) for b in self.batches[:3])
        teleport(self.model, one, optimizer=self.optimizer, guard=two, others=three)

    def in_training(self) -> None:
        self.teleporter.maybe_step(self.loss, self.batches[2])

    def changed(self, settled: dict[str, bytes]) -> str:
        """Return what is not as before, in words."""
        try:
            self.before.assert_rest_unchanged()
        except AssertionError as error:
            return str(error).splitlines()[0]
        if self.before._weights() not in (self.before.weights, settled):
            return "weights"
        if LOOKING.now or self.model.calls != self.calls_before:
            return "attributes"
        return ""

    @property
    def calls_before(self) -> int:
        return 2 + 0 * len(self.batches)


def faults(run: str, points: int, error: type[BaseException]) -> Iterator[tuple[str, str, str]]:
    """Yield where each fault was put, what it left changed, and what came out of the call."""
    world = World()
    with Injector(-1, error) as injector:
        getattr(world, run)()
    settled, total = world.before._weights(), injector.count
    for at in sorted({1 + i * total // points for i in range(points)}):
        world, out = World(), ""
        torch.manual_seed(1)
        world.before = Snapshot(world.model, world.optimizer)
        with Injector(at, error) as injector:
            try:
                getattr(world, run)()
            except BaseException as raised:
                out = f"{type(raised).__name__}: {raised}"
        yield injector.where, world.changed(settled), out


def examine(
    points: int, say: Callable[[str], object] = print
) -> tuple[int, list[tuple[str, str, str]]]:
    """Put in faults; return how many, and those that left something changed or came out wrong."""
    count, bad = 0, []
    for run in ("by_hand", "in_training"):
        for error in (Fault, KeyboardInterrupt):
            found = list(faults(run, points // 4, error))
            count += len(found)
            wrong = [f for f in found if f[1] or _wrong(run, error, f[2])]
            bad += wrong
            say(f"{run}, {error.__name__}: {len(found)} points, {len(wrong)} bad")
    return count, bad


def _wrong(run: str, error: type[BaseException], out: str) -> bool:
    """Tell whether something came out that should not: an error of training, another error."""
    if error is Fault and run == "in_training":
        return out != ""
    return out.partition(":")[0] not in ("", "Fault", "KeyboardInterrupt", "ValueError")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2500)
    torch.set_num_threads(1)
    import warnings

    warnings.simplefilter("ignore")
    count, bad = examine(parser.parse_args().points)
    for (where, changed, out), times in Counter(bad).most_common(30):
        print(f"  {where}: changed {changed or 'nothing'}, raised {out or 'nothing'} ({times})")
    print(f"{count} points, {len(bad)} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
