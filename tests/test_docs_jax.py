"""The page on JAX says what works: its blocks are run, each section after the first block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.installed import installed

PAGE = Path(__file__).parent.parent / "docs" / "jax.md"
NEEDS = {"flax.linen": "flax", "flax.nnx": "flax", "equinox": "equinox", "haiku": "haiku"}


def _sections() -> dict[str, list[str]]:
    """Return the blocks of Python on the page, by the heading they are under."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)
        if blocks:
            found[part.splitlines()[0]] = blocks
    return found


SECTIONS = _sections()
SETUP, *NAMES = SECTIONS


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    """Run in JAX's own default, whatever another test has set."""
    for package in ("jax", "sklearn"):
        if not installed(package):
            pytest.skip(f"{package} is not installed")
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


def test_the_page_has_a_section_for_every_way() -> None:
    assert NAMES == [
        "A pure function", "Training with optax", "flax.linen", "flax.nnx", "equinox", "haiku",
        "Networks that are stuck",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_run(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    # The loop trains the network of the section before it.
    follows = name in ("Training with optax", "Networks that are stuck")
    before = ["A pure function"] if follows else []
    space: dict[str, Any] = {"__name__": "docs_jax"}
    for block in [*SECTIONS[SETUP], *(b for s in before for b in SECTIONS[s]), *SECTIONS[name]]:
        exec(compile(block, f"{PAGE.name}: {name}", "exec"), space)
