"""Checks of the built site: links and anchors lead somewhere, and the search finds what it should.

Everything is read from the built pages; nothing is asked of the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SOUGHT = ("checkpoint", "mixed", "precision", "lightning", "tensorboard", "ddp")
"""Words that readers look for; the index of the search has their stems."""

ASV = "history"
"""Folder of the pages that asv writes: links to its files are checked, its own links are not."""


class _Page(HTMLParser):
    """The anchors of a page, and where its links and pictures lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Take in an element."""
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.targets += [given[name] for name in ("href", "src") if name in given]


def broken(folder: Path) -> list[str]:
    """Return every link of the pages in a folder that leads to no file or anchor in it."""
    root = folder.resolve()
    own = (path for path in root.rglob("*.html") if path.relative_to(root).parts[0] != ASV)
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(own)}
    return [f"{path.relative_to(root)}: {to}" for path in pages for to in _lost(path, pages)]


def _lost(path: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    for target in dict.fromkeys(pages[path].targets):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue  # of another site
        file = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
        page, anchor = pages.get(file), unquote(parts.fragment)
        if not file.exists() or (anchor and page is not None and anchor not in page.anchors):
            yield target


def unfound(folder: Path) -> list[str]:
    """Return the words of ``SOUGHT`` that the index of the search does not have."""
    index = (folder / "searchindex.js").read_text("utf-8")
    terms = set(re.findall(r'"?(\w+)"?:', index))
    stems = {word: [t for t in terms if len(t) >= max(3, len(word) - 4)] for word in SOUGHT}
    return [word for word in SOUGHT if not any(word.startswith(t) for t in stems[word])]


def check(app: Sphinx, exception: Exception | None) -> None:
    """Fail if a link is broken or a word is not found."""
    if exception is not None or app.builder.name != "html":
        return
    if lost := broken(Path(app.outdir)):
        msg = "links that lead nowhere:\n" + "\n".join(lost)
        raise ExtensionError(msg)
    if words := unfound(Path(app.outdir)):
        msg = f"the search does not find: {', '.join(words)}"
        raise ExtensionError(msg)


def setup(app: Sphinx) -> None:
    """Check when the pages are there."""
    app.connect("build-finished", check, priority=950)
