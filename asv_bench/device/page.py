"""The page that is written from what has been measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .journal import Entry, Journal
from .parts import Part

INTRO = """# On a GPU

Written by `make gpu` ([how to run it](../benchmarking.md)). Times are medians of calls that wait
for the device; a gradient is one forward and backward pass of the same network on the same batch.
"""


def number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def missed(row: dict[str, Any]) -> bool:
    """Whether a row is above its figure, or is no number."""
    return row["limit"] is not None and not row["value"] <= row["limit"]


def section(part: Part, entry: Entry) -> Iterator[str]:
    yield f"## {part.title}\n"
    above = "\n" if entry.rows else ""
    if entry.rows:
        yield "| what | measured | unit | figure |\n| --- | --- | --- | --- |"
    for row in entry.rows:
        figure = "" if row["limit"] is None else f"≤ {row['limit']:g}"
        if missed(row):
            figure += " **missed**"
        yield f"| {row['what']} | {number(row['value'])} | {row['unit']} | {figure} |"
    if entry.error:
        yield f"{above}Not measured to its end: {entry.error}."
    elif not entry.done:
        yield f"{above}Not measured to its end: the time was over."
    yield ""


def page(journal: Journal, parts: Sequence[Part]) -> str:
    """Return the page in Markdown."""
    about = [f"- {name}: {value}" for name, value in journal.about.items()]
    lines = [INTRO, *about, ""]
    for part in parts:
        if part.name in journal.entries:
            lines += section(part, journal.entries[part.name])
    left = journal.missing([part.name for part in parts])
    if left:
        lines.append(f"Left for another run: {', '.join(left)}.")
    return "\n".join(lines).rstrip() + "\n"
