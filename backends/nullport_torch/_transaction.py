"""All or nothing: a teleport settles as its very last act, or everything is as before.

Everything that is written is copied first, and the copies are kept until the end. An exception or
an interrupt that arrives anywhere, also while something is being put back, ends here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

TRIES = 3
"""How often putting back is begun anew when it is interrupted itself."""


class Transaction:
    """The context in which a teleport runs."""

    def __init__(
        self,
        begin: Callable[[], object],
        undo: Sequence[Callable[[], object]],
        restore: Sequence[Callable[[], object]],
        commit: Callable[[], object],
    ) -> None:
        """Say what is done when; each may be done more than once.

        Args:
            begin: At the start; returns nothing.
            undo: After a failure: puts back what was to be changed.
            restore: At the end in any case: puts back what was not.
            commit: After a success, last.
        """
        self._begin, self._commit = begin, commit
        self._undo, self._restore = undo, restore
        self._open = False

    def __enter__(self) -> None:
        """Begin."""
        self._open = True
        try:
            self._begin()
        except BaseException:
            self._end(failed=True)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle."""
        self._end(failed=error is not None)

    def _end(self, *, failed: bool) -> None:
        late: BaseException | None = None
        for _ in range(TRIES):
            error = self._settled(failed=failed)
            if error is None:
                break
            late, failed = error, True
        self._open = False
        if late is not None:
            raise late

    def abandon(self) -> None:
        """Undo everything, unless this has come to its end."""
        if self._open:
            self._end(failed=True)

    def _settled(self, *, failed: bool) -> BaseException | None:
        """Put back or settle; return what interrupted it."""
        try:
            for act in (*(self._undo if failed else ()), *self._restore):
                act()
            if not failed:
                self._commit()
        except BaseException as error:
            return error
        return None
