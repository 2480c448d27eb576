"""Checks of what layers are made with and given; messages name the value and what is allowed."""

from __future__ import annotations

from numbers import Integral

from nullport.network import Array


def at_least(least: int, **values: int) -> None:
    """Check that each value is an integer of at least ``least``.

    Raises:
        ValueError: If one is not.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            msg = f"{name} is {value!r}; allowed: an integer, at least {least}"
            raise ValueError(msg)


def pair(least: int, name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``value`` for both axes of an image.

    Raises:
        ValueError: If it is neither an integer of at least ``least`` nor two of them.
    """
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2:
        msg = f"{name} is {value!r}; allowed: one integer, or one for each of the two axes"
        raise ValueError(msg)
    at_least(least, **{name: both[0]})
    at_least(least, **{name: both[1]})
    return both


def divides(name: str, value: int, **wholes: int) -> None:
    """Check that ``value`` is a positive integer that divides every other one.

    Raises:
        ValueError: If it is not.
    """
    at_least(1, **{name: value}, **wholes)
    for whole, size in wholes.items():
        if size % value:
            msg = f"{name} is {value}; allowed: a divisor of {whole}, which is {size}"
            raise ValueError(msg)


def features(layer: str, x: Array, wanted: int) -> None:
    """Check the last axis of ``x``.

    Raises:
        ValueError: If its size is not ``wanted``.
    """
    if x.ndim == 0 or x.shape[-1] != wanted:
        shape(layer, x, f"(..., {wanted})")


def image(layer: str, x: Array, channels: int | str = "channels") -> None:
    """Check that ``x`` is (n, height, width, channels).

    Raises:
        ValueError: If it is not.
    """
    if x.ndim != 4 or channels not in ("channels", x.shape[-1]):
        shape(layer, x, f"(n, height, width, {channels})")


def shape(layer: str, x: Array, expected: str) -> None:
    """Refuse an input for its shape.

    Raises:
        ValueError: Always.
    """
    msg = f"{layer} got an input of shape {tuple(x.shape)}; expected: {expected}"
    raise ValueError(msg)
