"""Options made from a record of settings, so that a new field is an option at once.

The type hint of a field says how its text is read, the docstring of the record what it means.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nullport.lab.named import GROUPS, BadTarget, Named, known_as, registered

FUNCTION = "FILE.py:FUNCTION"
"""How a function is given."""

NUMBERS: dict[type, str] = {int: "an integer", float: "a number"}
"""Types that a text is converted to, narrowest first, and how they are named in messages."""


def add_options(
    parser: argparse.ArgumentParser,
    record: type,
    title: str,
    prefix: str = "",
    skip: Sequence[str] = (),
) -> None:
    """Add an option for every field of a dataclass.

    An option that is not given leaves no trace in the result of the parser.

    Args:
        parser: Where to add them.
        record: The dataclass.
        title: Heading of these options in the help text.
        prefix: Precedes every field's name in the option's name and in the parser's result.
        skip: Names of fields without an option.
    """
    hints, texts = get_type_hints(record), descriptions(record)
    group = parser.add_argument_group(title)
    for field in fields(record):
        if field.name in skip:
            continue
        name = prefix + field.name
        text = texts.get(field.name, "") + _default(field)
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            **_reading(hints[field.name], field.name),
        )


def given(arguments: argparse.Namespace, record: type, prefix: str = "") -> dict[str, Any]:
    """Return the values that were given for the fields of a record, by field name."""
    values = vars(arguments)
    return {f.name: values[prefix + f.name] for f in fields(record) if prefix + f.name in values}


def descriptions(record: type) -> dict[str, str]:
    """Return what the section ``Attributes`` of a docstring says of each field, on one line."""
    section = (inspect.getdoc(record) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "") for name, text in entries}


def converter(hint: Any, setting: str = "") -> tuple[Callable[[str], Any], str]:
    """Return a function that reads a text as the hint says, and the allowed values in words.

    Args:
        hint: The type.
        setting: Its name, under which packages may have registered functions.

    >>> from typing import Literal
    >>> read, allowed = converter(Literal["auto"] | float)
    >>> read("auto"), read("0.5"), allowed
    ('auto', 0.5, "'auto', a number")
    """
    members = _members(hint)
    words = {str(m).lower() if m is None else str(m): m for m in members if not isinstance(m, type)}
    numbers = [kind for kind in NUMBERS if kind in members]
    named = [*(registered(setting) if setting in GROUPS else []), FUNCTION]
    named = named if Named in members else []
    others = [*(NUMBERS[kind] for kind in numbers), *(["a text"] if str in members else []), *named]
    allowed = ", ".join([*map(repr, words), *others])

    def read(text: str) -> Any:
        if text in words:
            return words[text]
        for kind in numbers:
            with contextlib.suppress(ValueError):
                return kind(text)
        if named:
            with contextlib.suppress(BadTarget):
                if (own := known_as(setting, text)) is not None:
                    return own
        if str in members:
            return text
        msg = f"invalid value: {text!r}; allowed: {allowed}"
        raise argparse.ArgumentTypeError(msg)

    return read, allowed


def _members(hint: Any) -> list[Any]:
    """Return the literal values and the types that a hint allows; None stands for itself.

    A function is given by its name.
    """
    if hint is NoneType:
        return [None]
    if isinstance(hint, type):
        return [hint]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if _is_callable(hint):
        return [Named]
    return [member for part in get_args(hint) for member in _members(part)]


def _is_callable(hint: Any) -> bool:
    return get_origin(hint) is get_origin(Callable[[], None])


def _reading(hint: Any, setting: str = "") -> dict[str, Any]:
    """Return the arguments of ``add_argument`` that depend on the type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        read, _ = converter(get_args(hint)[0])
        return {"type": read, "nargs": "*", "metavar": "VALUE"}
    read, allowed = converter(hint, setting)
    names = allowed.replace("an integer", "INT").replace("a number", "NUMBER")
    return {
        "type": read,
        "metavar": names.replace("a text", "NAME").replace("'", "").replace(", ", "|"),
    }


def _default(field: Field[Any]) -> str:
    """Return what to add to a help text about the default, if there is a simple one."""
    if field.default is MISSING:
        return ""
    value = field.default
    shown = " ".join(value) or "none" if isinstance(value, tuple) else value
    return f" [default: {shown}]"
