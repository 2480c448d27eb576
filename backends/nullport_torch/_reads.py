"""What a closure reads beside the network: other modules, random generators, objects with a state.

A closure is followed as far as names in its code lead: cells, globals, defaults, the attributes of
objects, and the functions and methods of the user's own that it calls.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
LIBRARIES = {"torch", "numpy", "nullport", "nullport_torch", *sys.stdlib_module_names}
MOST = 10_000
"""Objects beyond which nothing more is looked for."""


class Reads:
    """What closures read.

    Attributes:
        modules: Networks and metrics.
        generators: Random generators.
        objects: Other objects, each with the names of its attributes that the code mentions.
    """

    def __init__(self, closures: Iterable[object]) -> None:
        """Follow the closures."""
        self.modules: list[nn.Module] = []
        self.generators: list[Any] = []
        self._instances: list[Any] = []
        self._names: set[str] = set()
        roots = list(closures)
        count = -1
        while count < len(self._names):  # names that were met late may lead further
            count = len(self._names)
            self.modules, self.generators, self._instances = [], [], []
            self._follow(roots)

    @property
    def objects(self) -> list[tuple[Any, list[str]]]:
        """Objects of the user's own classes, with the attributes that are mentioned."""
        return [(o, [n for n in vars(o) if n in self._names]) for o in self._instances]

    def _follow(self, roots: list[object]) -> None:
        queue, seen = list(roots), dict[int, object]()
        while queue and len(seen) < MOST:
            value = queue.pop()
            if id(value) in seen or isinstance(
                value, Tensor | Optimizer | ModuleType | str | bytes
            ):
                continue
            seen[id(value)] = value
            queue.extend(self._inside(value))

    def _inside(self, value: Any) -> Iterator[object]:
        if isinstance(value, FunctionType):
            if of_library(value):
                return
            self._names |= names_of(value.__code__)
            yield from bindings(value).values()
        elif isinstance(value, MethodType):
            yield from (value.__self__, value.__func__)
        elif isinstance(value, partial):
            yield from (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, GENERATORS):
            self.generators.append(value)
        elif isinstance(value, list | tuple | set):
            yield from value
        elif isinstance(value, Mapping):
            with contextlib.suppress(Exception):
                yield from value.values()
        elif isinstance(value, nn.Module):
            self.modules.append(value)
            yield from self._members(value)
        elif _has_state(value):
            self._instances.append(value)
            yield from self._members(value)

    def _members(self, value: Any) -> Iterator[object]:
        """Yield attributes and methods that are mentioned, and ``__call__``."""
        yield from (held for name, held in list(vars(value).items()) if name in self._names)
        for kind in type(value).__mro__:
            if not foreign(kind.__module__):
                for name, held in vars(kind).items():
                    if name in self._names or name in ("__call__", "forward"):
                        yield held.fget if isinstance(held, property) else held


def bindings(function: FunctionType) -> dict[str, Any]:
    """Return what the names in a function mean now: globals, cells, defaults."""
    home, code = function.__globals__, function.__code__
    found = {name: home[name] for name in names_of(code) & {*home}}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    given = function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    found |= dict(zip(arguments[len(arguments) - len(given) :], given, strict=True))
    return found | (function.__kwdefaults__ or {})


def names_of(code: CodeType) -> set[str]:
    """Return the global names and attributes that code, and code inside it, mentions."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_of(constant)
    return names


def _has_state(value: object) -> bool:
    """Tell whether a value is an object of a class of the user's own."""
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return False
    return not foreign(type(value).__module__)


def of_library(function: FunctionType) -> bool:
    """Tell whether a function is no code of the user's own."""
    home = function.__globals__.get("__name__", "")
    return foreign(home) or _installed(function.__code__.co_filename)


@cache
def foreign(module: str | None) -> bool:
    """Tell whether a module, by its name, belongs to a library."""
    root = "" if module is None else module.partition(".")[0]
    if root in LIBRARIES:
        return root != "__main__"
    return _installed(getattr(sys.modules.get(root), "__file__", None) or "")


def _installed(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path
