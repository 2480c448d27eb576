"""The documentation: its settings catch what they should, and its front page runs as it stands."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.installed import installed

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def conf() -> dict[str, Any]:
    pytest.importorskip("sphinx")
    return runpy.run_path(str(DOCS / "conf.py"))


def test_the_front_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    if not installed("torch"):
        pytest.skip("torch is not installed")
    text = (DOCS / "index.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(block, "index.md", "exec"), names)
    assert names["teleporter"].history
    assert "teleports" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "fails"), [(29.0, False), (31.0, True)])
def test_a_slow_example_fails(
    conf: dict[str, Any], tmp_path: Path, seconds: float, fails: bool
) -> None:
    case = f'<testcase name="Slow" time="{seconds}"/>'
    (tmp_path / "examples.xml").write_text(f"<testsuite>{case}</testsuite>", "utf-8")
    app = SimpleNamespace(outdir=tmp_path)
    if not fails:
        conf["_in_time"](app, None)
        return
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match="more than 30 s: Slow"):
        conf["_in_time"](app, None)


def test_a_missing_page_is_named(conf: dict[str, Any], tmp_path: Path) -> None:
    from sphinx.errors import ConfigError

    conf["setup"].__globals__["HERE"] = tmp_path
    with pytest.raises(ConfigError, match=r"docs/generated/quick\.md is missing: `make docs`"):
        conf["setup"](SimpleNamespace(connect=lambda *_, **__: None))


def test_norms_keep_their_height(conf: dict[str, Any]) -> None:
    assert conf  # has put the extension on the path
    mathml = importlib.import_module("mathml").mathml
    assert mathml(r"\lVert g\rVert^2").count('stretchy="false">‖') == 2
    assert "<mover" in mathml(r"\dot X")


def test_every_public_name_has_a_place() -> None:
    text = "\n".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    whole = set(re.findall(r"automodule:: (\S+)", text))
    assert {"nullport_torch", "nullport_jax", "nullport_arrays", "nullport.network"} <= whole
    assert {"nullport.lab.backends", "nullport.lab.compare"} <= whole
    single = set(re.findall(r"auto(?:function|class):: (\S+)", text))
    import nullport
    import nullport.network

    for name in nullport.__all__:
        assert f"nullport.{name}" in single or name in nullport.network.__all__, name


def test_every_module_has_a_page_with_an_example_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pages = sorted(set((DOCS / "api").glob("*.md")) - {DOCS / "api" / "index.md"})
    assert len(pages) == 10
    index = (DOCS / "api" / "index.md").read_text("utf-8")
    for page in pages:
        assert f"({page.name})" in index
        text = page.read_text("utf-8")
        (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        needs = [
            n for n in ("torch", "jax", "accelerate", "sklearn") if n in code or n in text[:300]
        ]
        if all(map(installed, needs)):
            exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_broken_links_and_anchors_are_found(conf: dict[str, Any], tmp_path: Path) -> None:
    assert conf
    links = importlib.import_module("links")
    (tmp_path / "sub").mkdir()
    page = '<h1 id="top"></h1><a href="{}"></a>'
    good = ["#top", "sub/b.html", "sub/b.html#top", "https://elsewhere.org/#x", "a%20b.html"]
    for name, targets in (
        ("a.html", good),
        ("a b.html", []),
        ("sub/b.html", ["../a.html#gone", "c.html", "../a.html"]),
    ):
        (tmp_path / name).write_text("".join(map(page.format, targets)) or page)
    assert links.broken(tmp_path) == [
        "a b.html: {}",
        "sub/b.html: ../a.html#gone",
        "sub/b.html: c.html",
    ]


def test_what_the_search_lacks_is_named(conf: dict[str, Any], tmp_path: Path) -> None:
    assert conf
    links = importlib.import_module("links")
    index = 'Search.setIndex({terms:{checkpoint:1,"mix":2,precis:3,lightn:4,tensorboard:5}})'
    (tmp_path / "searchindex.js").write_text(index)
    assert links.unfound(tmp_path) == ["ddp"]


def test_pages_are_of_a_version_of_the_changelog(conf: dict[str, Any]) -> None:
    assert conf["_release"]("1.2.0", "## [Unreleased]\n## [1.2.0] - 2030-01-01") == "1.2.0"
    assert conf["_release"]("1.2.0", "## [Unreleased]") == "1.2.0, not released yet"
    assert conf["release"].startswith(conf["version"])


def test_the_first_screen_says_who_gains_and_who_does_not() -> None:
    first = (DOCS / "index.md").read_text("utf-8").partition("## Install")[0]
    words = ("Who gains", "Who does not", "make demo", "make test", "a tenth", "63 cells")
    assert all(word in first for word in words)
    assert len(first.split()) < 320
