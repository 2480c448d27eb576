"""What the user names to be looked at, ``FILE.py:FUNCTION``: its options, and the call."""

from __future__ import annotations

import argparse
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from nullport.lab.cli.errors import UsageError, place
from nullport.lab.named import BadTarget, named


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the function, the backend, and whether to print JSON."""
    parser.add_argument(
        "target",
        metavar="FILE.py:FUNCTION",
        help="a function without arguments that returns (model, closure), or (model, closure, "
        "optimizer); for JAX (loss_fn, params, *batch), for NumPy and CuPy a graph",
    )
    parser.add_argument(
        "--backend", metavar="NAME", default="torch", help="or FILE.py:NAME [default: torch]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


@contextlib.contextmanager
def called(target: str) -> Iterator[Any]:
    """Call the user's function; inside, what it returned is judged.

    Args:
        target: ``FILE.py:FUNCTION``.

    Yields:
        What the function returned. Its own errors pass through, for ``main`` to place.

    Raises:
        UsageError: If there is no such function, it asks for arguments, or the body raises a
            TypeError or ValueError, which is about what was returned.
    """
    with contextlib.ExitStack() as stack:
        try:
            function = stack.enter_context(named(target))
        except BadTarget as error:
            raise UsageError(str(error)) from error
        _check_arguments(target, function)
        returned = function()
        try:
            yield returned
        except (TypeError, ValueError) as error:
            msg = str(error) if place(error) else f"{target}: {error}"
            raise UsageError(msg) from error


def _check_arguments(target: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
        signature.bind()
    except TypeError as error:
        msg = f"{target}: {error} in {signature}; allowed: a function without arguments"
        raise UsageError(msg) from error
    except ValueError:  # of a builtin, whose signature is not known
        return
