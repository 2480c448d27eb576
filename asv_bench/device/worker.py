"""Runs parts and prints their rows as they are measured: a line of JSON each.

    python -m device.worker cuda full 60 gpt2

A part begins with ``{"begin": name}`` and ends with ``{"end": name, "error": message}``; the
message is empty if nothing was raised. Whoever reads has the rows of a
part that is ended from outside.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec

from .parts import Part, parts
from .timing import Setting


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def run(part: Part, setting: Setting) -> str:
    """Print the rows of a part; return what went wrong, or nothing."""
    absent = [name for name in part.needs if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed"
    try:
        for row in part.rows(setting):
            say(**asdict(row))
    except Exception as error:  # out of memory, among others: the other parts go on
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def main(device: str, size: str, seconds: str, *names: str) -> None:
    setting = Setting(device, size == "small", float(seconds))
    for part in parts(device, setting.small):
        if part.name in names:
            say(begin=part.name)
            say(end=part.name, error=run(part, setting))


if __name__ == "__main__":
    main(*sys.argv[1:])
