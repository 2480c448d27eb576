"""What the user names to be looked at, ``FILE.py:FUNCTION``: its options, and the call."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from nullport.lab.cli.errors import UsageError
from nullport.lab.compare.named import BadTarget, named


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the function, the backend, and whether to print JSON."""
    parser.add_argument(
        "target",
        metavar="FILE.py:FUNCTION",
        help="a function without arguments that returns (model, closure), or (model, closure, "
        "optimizer); for JAX (loss_fn, params, *batch), for NumPy and CuPy a graph",
    )
    parser.add_argument("--backend", metavar="NAME", default="torch", help="[default: torch]")
    parser.add_argument("--json", action="store_true", help="print JSON")


@contextlib.contextmanager
def called(target: str) -> Iterator[Any]:
    """Call the user's function; inside, what it returned is judged.

    Args:
        target: ``FILE.py:FUNCTION``.

    Yields:
        What the function returned. Its own errors pass through.

    Raises:
        UsageError: If there is no such function, or the body raises a TypeError or ValueError,
            which is about what was returned.
    """
    with contextlib.ExitStack() as stack:
        try:
            function = stack.enter_context(named(target))
        except BadTarget as error:
            raise UsageError(str(error)) from error
        returned = function()
        try:
            yield returned
        except (TypeError, ValueError) as error:
            msg = f"{target}: {error}"
            raise UsageError(msg) from error
