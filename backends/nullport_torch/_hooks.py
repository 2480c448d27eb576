"""Step hooks that are registered for all optimizers, silent while a step is only foreseen.

They belong to the whole process: for the time of a foreseen step each is wrapped in one that is
silent in this thread alone, and calls it as ever in all others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import optimizer as torch_optimizer


class _Looking(threading.local):
    """Whether this thread is foreseeing a step now."""

    now = False


LOOKING = _Looking()
_LOCK = threading.Lock()
_users = 0


class _Quiet:
    """A hook that is called unless this thread is foreseeing a step."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if LOOKING.now else self.hook(*args, **kwargs)


def speak() -> None:
    """Let hooks be heard in this thread, whatever was interrupted."""
    LOOKING.now = False


@contextlib.contextmanager
def quiet_hooks() -> Iterator[None]:
    """Silence the hooks of all optimizers, for this thread."""
    global _users
    hooks = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    outer, counted = LOOKING.now, False
    try:
        with _LOCK:
            _users, counted = _users + 1, True
            for registered in hooks:
                for key, hook in list(registered.items()):
                    if not isinstance(hook, _Quiet):
                        registered[key] = _Quiet(hook)
        LOOKING.now = True
        yield
    finally:
        LOOKING.now = outer
        with _LOCK:
            _users -= counted
            for registered in hooks if _users == 0 else ():
                for key, hook in list(registered.items()):
                    if isinstance(hook, _Quiet):
                        registered[key] = hook.hook
