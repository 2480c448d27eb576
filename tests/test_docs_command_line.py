"""The page on the command line: its model is looked at, its exit codes are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.installed import installed

from nullport.lab import cli

PAGE = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text("utf-8")


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "rich", "matplotlib"):
        if not installed(package):
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n# my_model.py\n(.*?)^```", PAGE, re.S | re.M)
    Path("my_model.py").write_text(code)
    (commands,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)
    for command in commands.splitlines():
        assert cli.main(shlex.split(command)[1:]) == 0
    assert Path("layers.png").stat().st_size > 5000


def test_codes_and_commands_are_those_of_the_code() -> None:
    codes = set(map(int, re.findall(r"^\| (\d+) \|", PAGE, re.M)))
    assert codes == {0, 1, cli.USAGE, cli.INTERRUPTED, cli.CLOSED, cli.TERMINATED}
    for code in codes:
        assert f" {code} " in " ".join(cli.CODES.split())
    help_of = cli.parser().format_help()
    for name in re.findall(r"^\| `nullport (\w+)", PAGE, re.M):
        assert re.search(rf"^    {name} ", help_of, re.M), name
