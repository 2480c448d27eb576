"""Every optimizer of the libraries that are installed, trained with teleports.

``python tests/helpers/optimizers.py`` writes the table of docs/optimizers.md.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Optimizer

from nullport_torch import Teleporter

LIBRARIES = {
    "torch.optim": "torch",
    "pytorch_optimizer": "pytorch_optimizer",
    "torch_optimizer": "torch_optimizer",
    "schedulefree": "schedulefree",
    "lion_pytorch": "lion_pytorch",
    "prodigyopt": "prodigyopt",
    "bitsandbytes.optim": "bitsandbytes",
    "heavyball": "heavyball",
}
PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
MARK = "<!-- the table is written by tests/helpers/optimizers.py -->"

SKIPPED = {
    "pytorch_optimizer": {"SafeFP16Optimizer", "DistributedMuon", "DeMo", "LOMO", "AdaLOMO"},
    "heavyball": {"HeavyKLSOAP", "HeavyKLShampoo", "KLSOAP", "KLShampoo"},
}
"""Those that need several processes, a GPU, or their own loop; or whose compilation fails here."""


def network() -> nn.Sequential:
    """Return a network of matrices and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
    )


def classes(library: str) -> Iterator[tuple[str, type[Optimizer]]]:
    """Yield the optimizers of a library, by name."""
    module = importlib.import_module(library)
    for name in sorted(dir(module)):
        value = getattr(module, name)
        is_one = inspect.isclass(value) and issubclass(value, Optimizer)
        if is_one and value is not Optimizer and name not in SKIPPED.get(library, ()):
            yield name, value


def make(kind: type[Optimizer], model: nn.Module) -> Any:
    """Make an optimizer, or a list of two where one takes matrices only.

    Raises:
        TypeError: If it takes arguments that are not known here.
    """
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim < 2]
    one: Any = kind
    ways = [
        lambda: one(parameters),
        lambda: one(parameters, lr=1e-3),
        lambda: one(parameters, lr=1e-3, num_iterations=100),
        lambda: one(parameters, base_optimizer=SGD, lr=1e-3),
        lambda: one(SGD(parameters, lr=1e-3)),
        lambda: [one(matrices, lr=1e-3), SGD(vectors, lr=1e-3)],
        lambda: [one(matrices), SGD(vectors, lr=1e-3)],
        lambda: one([{"params": parameters, "use_muon": False}]),
        lambda: one(model),
    ]
    for way in ways:
        try:
            made = way()
            for each in made if isinstance(made, list) else [made]:
                if callable(getattr(each, "train", None)):
                    each.train()
            _train(model, made, None, 2)
        except Exception:
            _restart(model)
            continue
        _restart(model)
        made = way()
        for each in made if isinstance(made, list) else [made]:
            if callable(getattr(each, "train", None)):
                each.train()
        return made
    msg = f"{kind.__name__} takes arguments that are not known here"
    raise TypeError(msg)


def _restart(model: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(model.parameters(), network().parameters(), strict=True):
            p.data = q.detach().clone()
            p.grad = None


@dataclass
class Outcome:
    """What came of training with teleports."""

    verdict: str
    why: str = ""


def outcome(kind: type[Optimizer], steps: int = 30) -> Outcome:
    """Train with teleports, and say whether there were any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = network()
        try:
            optimizer = make(kind, model)
        except TypeError:
            return Outcome("not made")
        teleporter = Teleporter(model, optimizer, every=4)
        _train(model, optimizer, teleporter, steps)
    told = [str(w.message) for w in caught if "no teleport" in str(w.message)]
    if told:
        return Outcome("declined", told[0].partition(": ")[2].partition(". ")[0])
    return Outcome("works" if teleporter.history else "nothing")


def _train(model: nn.Module, optimizer: Any, teleporter: Teleporter | None, steps: int) -> None:
    """Take steps, with a closure where one is asked for."""
    each = optimizer if isinstance(optimizer, list) else [optimizer]
    torch.manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(4, 8), torch.randn(4, 1)

        def loss() -> Tensor:
            return mse_loss(model(x), y)  # noqa: B023

        def closure() -> Tensor:
            model.zero_grad()
            value = loss()
            value.backward(create_graph=_wants_graph(each[0]))
            return value

        if teleporter is not None:
            teleporter.maybe_step(loss)
        closure()
        for one in each:
            _step(one, closure)


def _step(optimizer: Any, closure: Any) -> None:
    """Take a step, with the closure if it is asked for."""
    try:
        optimizer.step()
    except Exception as error:
        if "closure" not in str(error):
            raise
        optimizer.step(closure)


def _wants_graph(optimizer: Any) -> bool:
    return type(optimizer).__name__ in ("AdaHessian", "Adahessian", "SophiaH")


def table() -> str:
    """Return the table of the page."""
    lines = ["| library | version | works | declined, and why |", "| --- | --- | --- | --- |"]
    for library, package in LIBRARIES.items():
        try:
            version = importlib.import_module(package).__version__
        except ImportError:
            continue
        except AttributeError:
            version = importlib.metadata.version(package)
        works, declined = [], []
        for name, kind in classes(library):
            found = outcome(kind)
            if found.verdict == "works":
                works.append(name)
            elif found.verdict == "declined":
                declined.append(f"{name} ({_reason(found.why)})")
        cells = f"{', '.join(works)} | {', '.join(declined) or 'none'}"
        lines.append(f"| `{library}` | {version.partition('+')[0]} | {cells} |")
    return "\n".join(lines)


def _reason(why: str) -> str:
    for words, reason in REASONS.items():
        if words in why:
            return reason
    return why


REASONS = {
    "closure": "its step needs a closure",
    "grad": "its step needs the graph of the gradient",
    "undoes a move": "computes weights from a copy of its own",
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    head = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n\n{table()}\n")
