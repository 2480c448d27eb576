"""Formulas as MathML, made by docutils: every browser shows them, with no script from elsewhere."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx


def mathml(tex: str, *, as_block: bool = False) -> str:
    """Return a formula as an element; norms and brackets keep the height of a letter."""
    return re.sub(
        "<mo([^>]*)>([‖⟨⟩])", r'<mo\1 stretchy="false">\2', tex2mathml(tex, as_block=as_block)
    )


def inline(writer: Any, node: nodes.math) -> NoReturn:
    """Write a formula within a line."""
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> NoReturn:
    """Write a formula on a line of its own."""
    writer.body.append(f'<div class="math">{mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
