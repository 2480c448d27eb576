"""The command line: ``compare``, ``suite``, ``inspect``, ``diagnose``, ``data``, ``doctor``.

One module per command, each with ``add`` (its options) and ``run`` (what it does). Options that
mirror a record of settings are made from the record (:mod:`nullport.lab.cli.options`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from nullport.lab.cli import compare, data, diagnose, doctor, inspect, suite
from nullport.lab.cli.errors import UsageError
from nullport.lab.compare.extras import MissingExtra, require


class _Parser(argparse.ArgumentParser):
    """A parser that leaves it to ``main`` to report an error, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code: 0, or 2 after an error that one line on stderr explains.
    """
    try:
        arguments = parser().parse_args(argv)
        arguments.run(arguments)
    except (UsageError, MissingExtra) as error:
        print(f"nullport: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nullport: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = _Parser(prog="nullport", description="Teleport the weights of neural networks.")
    root.add_argument("--version", action="version", version=f"nullport {version('nullport')}")
    with contextlib.suppress(MissingExtra):
        text = "print a script that completes commands and options, and exit"
        require("shtab").add_argument_to(root, ["--print-completion"], help=text)
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (compare, suite, inspect, diagnose, data, doctor):
        name = command.__name__.rpartition(".")[2]
        summary = (command.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add(sub)
        sub.set_defaults(run=command.run)
    return root
