"""The command line: ``compare``, ``suite``, ``inspect``, ``diagnose``, ``data``, ``doctor``.

One module per command, each with ``add`` (its options) and ``run`` (what it does, and with
``--json`` the record to print). Options that mirror a record of settings are made from the record
(:mod:`nullport.lab.cli.options`). ``docs/command-line.md`` tells users of all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from nullport.lab.cli import compare, data, diagnose, doctor, inspect, suite
from nullport.lab.cli.errors import UsageError, told
from nullport.lab.compare.extras import MissingExtra, require
from nullport.lab.compare.results import plain

USAGE, INTERRUPTED, CLOSED, TERMINATED = 2, 130, 141, 143
"""Exit codes besides 0: what one line on stderr explains; Ctrl-C; output that nobody reads; a
signal to terminate, of which every process dies so. An error of nullport's own has a traceback,
and 1."""

CODES = """\
exit codes: 0 done; 1 an error of nullport's own, with a traceback; 2 something that you can put
right, in one line on stderr (an argument, a file, data, your own code); 130 interrupted; 141 the
output was closed, as by "| head"; 143 terminated."""


class _Parser(argparse.ArgumentParser):
    """A parser that leaves it to ``main`` to report an error, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code: 0, 2 after an error that one line on stderr explains, 130 after Ctrl-C, 141
        if the output was closed. Errors of nullport's own are raised.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    _escape()
    try:
        if not given:
            parser().print_help()
            return 0
        _run(parser().parse_args(given))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("nullport: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # nothing is left to be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except (Exception, SystemExit) as error:
        return _report(error, whole="--traceback" in given)
    return 0


def _run(arguments: argparse.Namespace) -> None:
    """Run a command; with ``--json`` its record is all that stdout gets."""
    if not getattr(arguments, "json", False):
        arguments.run(arguments)
        return
    with contextlib.redirect_stdout(sys.stderr):  # what the user's own code prints
        record = arguments.run(arguments)
    print(json.dumps(plain(record), indent=1, allow_nan=False))


def _report(error: BaseException, *, whole: bool) -> int:
    """Print an error of the user's in one line, after its traceback if asked; raise any other."""
    line = str(error) if isinstance(error, MissingExtra) else told(error)
    if line is None:
        if isinstance(error, SystemExit):  # --help and --version
            return int(error.code or 0)
        raise error
    if whole:
        traceback.print_exception(error)
    print(f"nullport: error: {line}", file=sys.stderr)
    return USAGE


def _escape() -> None:
    """Write what the encoding of a stream lacks, such as ± in ASCII, as an escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = _Parser(
        prog="nullport",
        description="Teleport the weights of neural networks.",
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"nullport {version('nullport')}")
    with contextlib.suppress(MissingExtra):
        text = "print a script that completes commands and options, and exit"
        require("shtab").add_argument_to(root, ["--print-completion"], help=text)
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (compare, suite, inspect, diagnose, data, doctor):
        name = command.__name__.rpartition(".")[2]
        summary = (command.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument(
            "--traceback", action="store_true", help="after an error, show where it came from"
        )
        command.add(sub)
        sub.set_defaults(run=command.run)
    return root
