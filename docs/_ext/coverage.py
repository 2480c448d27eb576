"""The table of what moves, made of the tables by which the adapters recognise it.

``python docs/_ext/coverage.py`` writes it into ``docs/coverage.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "coverage.md"
BEGIN, END = "<!-- begin: docs/_ext/coverage.py -->\n", "<!-- end -->\n"


def _names(functions: Iterable[Any]) -> str:
    found = {getattr(f, "__name__", str(f)).strip("_") for f in functions} - {"get"}
    return ", ".join(f"`{name}`" for name in sorted(found))


def rows() -> list[tuple[str, str, str]]:
    """Return what moves: the kind, and the functions of torch and of JAX that are recognised."""
    from nullport_jax import _copies as jax_copies
    from nullport_jax import _rules, _trace
    from nullport_torch import _calls, _copies, _products, _recurrent

    del _products  # registers its parsers
    products = [
        f for f in _calls.PARSERS if not hasattr(f, "__wrapped__")
    ]  # none that users declare
    moves = {*jax_copies.MOVES, *_trace.LAYOUT, *_trace.PASS}
    inside = [*_trace.INLINE, *_trace.REMAT, "scan", "cond"]
    return [
        ("products and convolutions", _names(products), _names(_trace.SITES)),
        (
            "weights whose elements are moved about",
            _names(_copies.MOVES | _copies.SAME),
            _names(moves),
        ),
        ("scaled by what no weight determines", _names(_copies.SCALES), _names(_trace.SCALES)),
        ("added to anything", _names(_copies.SUMS), _names(_trace.SUMS)),
        (
            "recurrent networks",
            _names([*_recurrent.KERNELS.values(), *_recurrent.CELLS]),
            "the products inside `scan`",
        ),
        ("weight norm", "`_weight_norm` (`parametrizations.weight_norm`)", "stays"),
        ("used with its transpose", "every product", "every product"),
        (
            "tied embeddings",
            "`embedding`: rows that no batch looks up",
            "`gather`: rows that no batch looks up",
        ),
        (
            "losses with derivatives by inputs",
            "`torch.autograd.grad`",
            "`jvp`: more rows; `vjp`: uses of the transpose",
        ),
        (
            "derivative rules of one's own",
            "autograd functions: `register_linear`",
            _names(_rules.RULES) + " where the rule is the derivative; `register_linear`",
        ),
        ("inside", "everything that calls torch functions", _names(inside)),
    ]


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| | torch | JAX |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {a} | {b} | {c} |" for a, b, c in rows())]) + "\n"


def page() -> str:
    """Return the page with the table as the code has it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
