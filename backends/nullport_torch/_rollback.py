"""Objects whose methods are run and then put back: the real thing, asked what it would do.

An optimizer may keep anything anywhere: tensors by parameter, plain attributes, an inner optimizer,
cells of a function that replaces ``step``. Whatever is reachable from it is noted, shallowly, once
each, before it runs, and put back afterwards: objects stay the same objects. A tensor is lent a
copy of its memory meanwhile, which is one pass over it instead of the two of writing it back.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nullport_torch._checks import out_of_reach
from nullport_torch._sharded import held_part, hold_part, is_spread, with_part

MOST = 200_000
"""Objects beyond which something is no optimizer, but holds a whole program."""

_ATOMS = (int, float, complex, str, bytes, bool, type(None), type, ModuleType, torch.dtype)


class _Kept(NamedTuple):
    """A tensor; aliases of what it was and of all its memory; a copy if it still has that."""

    tensor: Tensor
    own: Tensor
    all_of_it: Tensor
    copy: Tensor | None

    @property
    def held(self) -> Tensor:
        """What the tensor held."""
        return self.own if self.copy is None else self.copy


class Rollback:
    """What is reachable from some objects, and how to return to what it was.

    Attributes:
        tensors: Every tensor that was found.
        containers: Every list, tuple and dictionary that was found.
    """

    def __init__(self, roots: Iterable[object], *, apart: Iterable[object] = ()) -> None:
        """Note everything that is reachable; nothing is copied before :meth:`begin`.

        What is to be set ``apart`` is not looked into.

        Raises:
            ValueError: If too much is.
        """
        self.tensors: list[Tensor] = []
        self.containers: list[Any] = []
        self._parts: dict[int, Tensor] = {}
        self._plain: list[Tensor] = []
        self._kept: dict[int, _Kept] = {}
        self._undo: list[Callable[[], object]] = []
        self._drawn: list[Callable[[], Callable[[], object]]] = []
        self._redo: list[Callable[[], object]] = []
        # Kept alive, so that no id is used again.
        self._seen: dict[int, object] = {id(value): value for value in apart}
        queue = deque(roots)
        while queue:
            value = queue.popleft()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            if getattr(type(value), "foresees", False):  # a probe of a step leads back to it
                continue
            self._seen[id(value)] = value
            if len(self._seen) > MOST:
                msg = f"more than {MOST:,} objects are reachable from it"
                raise ValueError(msg)
            queue.extend(self._note(value))

    def begin(self, still: Container[int] = ()) -> None:
        """Take copies of everything that may change; what was noted must be as it was then.

        Tensors that are known to stay ``still``, by ``id``, are left alone.
        """
        self._redo = [take() for take in self._drawn]
        memory = [_memory(tensor) for tensor in self._plain]
        owners = Counter(memory)
        for tensor, address in zip(self._plain, memory, strict=True):
            if id(tensor) in still:
                continue
            own, all_of_it = tensor.data, _all_of(tensor)
            copy = all_of_it.clone()
            lent = type(tensor) in (Tensor, nn.Parameter) and address and owners[address] == 1
            lent = lent and own.shape == copy.shape
            self._kept[id(tensor)] = _Kept(tensor, own, all_of_it, None if lent else copy)
            if lent:  # nobody else has its memory, so that it may as well be another
                tensor.data = copy

    def before(self, tensor: Tensor) -> Tensor:
        """Return what a tensor held: not to be written to."""
        part = self._parts.get(id(tensor))
        if part is not None:
            return with_part(self._kept[id(part)].held, tensor)
        return self._kept[id(tensor)].held if id(tensor) in self._kept else tensor.detach()

    def lent(self, tensor: Tensor) -> bool:
        """Tell whether a tensor has another memory than its own for the time being."""
        return id(tensor) in self._kept and self._kept[id(tensor)].copy is None

    def restore(self) -> None:
        """Put everything back; may be called again."""
        for undo in (*self._undo, *self._redo):
            undo()
        for tensor, own, all_of_it, copy in self._kept.values():
            if tensor.data_ptr() != own.data_ptr() or tensor.shape != own.shape:
                tensor.data = own
            if copy is not None:
                all_of_it.copy_(copy)
        self._kept, self._redo = {}, []

    def _note(self, value: Any) -> Iterator[object]:
        """Note one object; yield what it refers to."""
        if is_spread(value):  # this rank's part holds the numbers
            part = self._parts[id(value)] = held_part(value)
            self.tensors.append(value)
            self._undo.append(partial(hold_part, value, part))
            yield part
            yield getattr(value, "__dict__", None)
        elif isinstance(value, Tensor):
            self._tensor(value)
            yield getattr(value, "__dict__", None)
        elif isinstance(value, dict):
            yield from self._mapping(value)
        elif isinstance(value, list | deque | set | bytearray):
            self.containers.append(value)
            yield from self._collection(value)
        elif isinstance(value, tuple | frozenset):
            self.containers.append(value)
            yield from value
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, MethodType):
            yield from (value.__self__, value.__func__)
        elif isinstance(value, partial):
            yield from (value.func, value.args, value.keywords)
        else:
            yield from self._other(value)

    def _tensor(self, tensor: Tensor) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or out_of_reach(tensor):
            return  # the tensors inside of a wrapper are among its attributes
        self.tensors.append(tensor)
        self._plain.append(tensor)

    def _mapping(self, value: dict[Any, Any]) -> Iterator[object]:
        copy = dict(value)
        self.containers.append(value)

        def undo() -> None:
            if len(value) == len(copy) and all(value.get(k, _tail) is v for k, v in copy.items()):
                return
            value.clear()
            value.update(copy)

        self._undo.append(undo)
        yield from copy
        yield from copy.values()

    def _collection(self, value: Any) -> Iterator[object]:
        copy = list(value)

        def undo() -> None:
            if len(value) == len(copy) and all(map(_is, value, copy)):
                return
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(copy)

        self._undo.append(undo)
        yield from copy

    def _function(self, value: FunctionType) -> Iterator[object]:
        """Note the cells and the globals of the user's own functions; libraries keep theirs."""
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not assigned yet
                contents = cell.cell_contents
                self._undo.append(partial(setattr, cell, "cell_contents", contents))
                yield contents
        if value.__dict__:
            yield value.__dict__
        names, home = _names(value.__code__), value.__globals__
        if home.get("__name__", "").partition(".")[0] in ("torch", "builtins"):
            return
        for name in names & {*home}:
            held = home[name]
            if held is None or isinstance(held, int | float | str):
                self._undo.append(partial(home.__setitem__, name, held))
            elif isinstance(held, list | dict | set | deque | Tensor) or (
                isinstance(held, FunctionType) and held.__globals__ is home
            ):
                yield held

    def _other(self, value: Any) -> Iterator[object]:
        """Note a random generator, an array, or the attributes of any other object."""
        if isinstance(value, torch.Generator):
            self._drawn.append(lambda: partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._drawn.append(lambda: partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            source = value.bit_generator
            self._drawn.append(lambda: partial(setattr, source, "state", source.state))
        elif isinstance(value, np.ndarray):
            self._drawn.append(lambda: partial(value.__setitem__, ..., value.copy()))
        else:
            with contextlib.suppress(TypeError):
                yield vars(value)
            for kind in type(value).__mro__:
                yield from self._slots(value, kind.__dict__.get("__slots__", ()))

    def _slots(self, value: Any, slots: str | Iterable[str]) -> Iterator[object]:
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__") or not hasattr(value, name):
                continue
            held = getattr(value, name)
            self._undo.append(partial(_assign, value, name, held))
            yield held


_tail = object()


def _is(a: object, b: object) -> bool:
    return a is b


def _assign(value: Any, name: str, held: object) -> None:
    with contextlib.suppress(AttributeError, TypeError):
        if getattr(value, name, _tail) is not held:
            setattr(value, name, held)


def _all_of(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor, each once; not what autograd counts changes of."""
    alias = tensor.data
    if tensor.layout == torch.strided and torch._debug_has_internal_overlap(tensor) == 1:
        alias = alias.as_strided(_span(alias), (1,), alias.storage_offset())
    return alias


def _memory(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, 0 if it has none to speak of."""
    if tensor.layout != torch.strided or not tensor.numel():
        return 0
    return tensor.untyped_storage().data_ptr()


def _span(tensor: Tensor) -> tuple[int]:
    """Return the number of elements of memory that an expanded tensor covers, as a shape."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((n - 1) * s for n, s in pairs) + 1,)


def _names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found
