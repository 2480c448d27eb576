"""Sensitivity: one field of the default ``TeleportConfig`` at a time, a factor of 10 either way.

A number ``x`` becomes ``10 x`` and ``x / 10``, as far as the field allows; ``"auto"`` stands for
a number (``RADIUS``), and a threshold of 0 for ``THRESHOLD``. A choice becomes every other
choice, a switch its opposite. Patterns have no factor: what to include and exclude is declared in
the section ``[sensitivity]`` (``include = [["1.*"]]``), else a weight is left out by its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nullport import TeleportConfig
from nullport.lab.suite.grid import Entry, Job, applies
from nullport.lab.suite.tuning import Choice

THRESHOLD = 1e-2
"""What stands for a threshold of 0, which has no factor: the paper's value."""

RADIUS = 0.3
"""What stands for a radius of ``"auto"``: its largest value, that of up to four moving weights."""


def variants(config: TeleportConfig, declared: Entry) -> dict[str, TeleportConfig]:
    """Return the configurations to try, by a name that says what differs.

    >>> variants(TeleportConfig(), {})["budget = 0.02"].budget
    0.02
    """
    found = {}
    for field, changed in _changes(config, declared):
        value = changed[field]
        shown = (
            " ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        )
        found[f"{field} = {shown}"] = replace(config, **changed)
    return found


def jobs(found: Sequence[Choice], section: Mapping[str, Any], method: str) -> Iterator[Job]:
    """Yield the runs: those of the method at its tuned rate, with every variant of its teleports.

    Args:
        found: What tuning chose.
        section: The section ``[sensitivity]``; ``seeds`` of it are run.
        method: Name of the method with the default configuration.
    """
    for choice in found:
        if choice.method != method or not applies(section, choice.cell):
            continue
        for name, config in variants(choice.settings.teleport, section).items():
            settings = replace(choice.settings, teleport=config)
            seeds = min(int(section.get("seeds", 3)), settings.seeds)
            yield from (Job(name, settings, seed) for seed in range(seeds))


def _changes(config: TeleportConfig, declared: Entry) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of a field and what changes with it."""
    for field in ("objective", "projection", "tangent"):
        for value in _choices(field):
            if value != getattr(config, field):
                # Only the projection by threshold has one.
                dropped = {"threshold": 0.0} if field == "projection" else {}
                yield field, {field: value, **dropped}
    threshold = config.threshold or THRESHOLD
    for factor in (0.1, 1.0, 10.0):
        share = float(f"{min(threshold * factor, 1.0):g}")
        if share != config.threshold:
            yield "threshold", {"threshold": share, "projection": "threshold"}
    for field, number, most in (
        ("budget", config.budget, 1.0),
        ("radius", RADIUS if config.radius == "auto" else config.radius, 100.0),
        ("max_loss_change", config.max_loss_change, float("inf")),
    ):
        for factor in (0.1, 10.0):
            yield field, {field: float(f"{min(number * factor, most):g}")}
    yield "max_gain", {"max_gain": 10 * config.max_gain}  # a tenth is less than no growth
    yield from (("steps", {"steps": n}) for n in (config.steps // 10, 10 * config.steps) if n)
    yield "bias", {"bias": not config.bias}
    for field in ("include", "exclude"):
        yield from ((field, {field: tuple(patterns)}) for patterns in declared.get(field, []))


def _choices(field: str) -> tuple[str, ...]:
    """Return what a field may be by name; it may be a function besides."""
    hint = get_type_hints(TeleportConfig)[field]
    members = (hint, *get_args(hint))
    return next(get_args(member) for member in members if get_origin(member) is Literal)
