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
    text = (DOCS / "api.md").read_text("utf-8")
    whole = set(re.findall(r"automodule:: (\S+)", text))
    assert {"nullport_torch", "nullport_jax", "nullport_arrays", "nullport.network"} <= whole
    assert {"nullport.lab.backends", "nullport.lab.compare"} <= whole
    single = set(re.findall(r"auto(?:function|class):: (\S+)", text))
    import nullport
    import nullport.network

    for name in nullport.__all__:
        assert f"nullport.{name}" in single or name in nullport.network.__all__, name
