"""The page on extending: every piece of code is a file, at most 30 lines, and its commands run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.installed import installed

from nullport import Rule, State, TeleportConfig
from nullport.lab.cli import main
from nullport.lab.compare import Results, Settings, load_task, run
from nullport.lab.named import Named, known_as

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
SECTION = re.compile(r"^## (?P<title>[^\n]+)\n(?P<text>.*?)(?=^## |\Z)", re.M | re.S)
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S)
SMALL = "--seeds 1 --budget 12 --batch 16 --width 8 --quiet --no-neighbours"
LINES = 30

SECTIONS = {m["title"]: m["text"] for m in SECTION.finditer(PAGE.read_text("utf-8"))}
KINDS = [title for title in SECTIONS if title.startswith("A")]


def blocks(title: str, kind: str) -> list[str]:
    return [m["text"] for m in BLOCK.finditer(SECTIONS[title]) if m["kind"] == kind]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files of the page, where commands run."""
    for package in ("torch", "sklearn", "rich", "matplotlib"):
        if not installed(package):
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for title in KINDS:
        for text in blocks(title, "python") + blocks(title, "toml"):
            name = re.match(r"# (\S+)\n", text)
            assert name is not None
            (tmp_path / name[1]).write_text(text, "utf-8")
    return tmp_path


def test_there_are_eight() -> None:
    assert KINDS == [
        "An objective",
        "A projection",
        "A schedule",
        "A method",
        "A task",
        "A network",
        "A kind of site",
        "An adapter",
    ]


@pytest.mark.parametrize("title", KINDS)
def test_the_code_is_short_and_its_commands_run(
    title: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in blocks(title, "python"):
        assert len(text.splitlines()) - 1 <= LINES  # the first names the file
    commands = [line for text in blocks(title, "bash") for line in text.splitlines()]
    assert commands
    for command in commands:
        program, *argv = shlex.split(command)
        assert program == "nullport"
        argv += shlex.split(SMALL) if argv[0] == "compare" else []
        assert main(argv) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    if title in ("A kind of site", "An adapter"):
        assert "move it" in out


def written() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path("nullport-compare.json").read_text())
    assert Results.from_dict(record).as_dict() == record
    return record


def test_what_is_given_is_what_is_run(folder: Path) -> None:
    """Each leaves its trace in the results, and its name in the settings."""
    small = shlex.split(SMALL)
    assert main(["compare", *small, "--every", "own_schedule.py:early"]) == 0
    record = written()
    assert record["settings"]["every"] == "own_schedule.py:early"
    assert [t["step"] for t in record["runs"][1]["teleports"]] == [4]
    argv = ["compare", *small, "--method", "own_method.py:balance", "--at", "5"]
    assert main(argv) == 0
    (teleport,) = written()["runs"][1]["teleports"]
    assert teleport["step"] == 5
    report = teleport["report"]
    assert report["loss_before"] is None or report["accepted"]
    assert 0 < teleport["cost"] < 1  # the loss after it, and a little linear algebra
    usual = written()["runs"][0]["curve"]["loss"][0]
    argv = ["compare", *small, "--model", "own_network.py:residual", "--depth", "2"]
    assert main(argv) == 0
    record = written()
    assert record["settings"]["model"] == "own_network.py:residual"
    assert record["runs"][0]["curve"]["loss"][0] != usual  # another network


def test_balancing_keeps_the_loss(folder: Path) -> None:
    """The example itself is a teleport: rescaled units of a ReLU network compute the same."""
    import torch

    from nullport_torch.lab.baselines.methods import apply

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3)
    ).double()
    x, y = torch.randn(7, 5).double(), torch.randint(3, (7,))
    before = torch.nn.functional.cross_entropy(model(x), y)
    weight = model[0].weight.detach().clone()
    method = Named("own_method.py:balance")
    apply(method, model, torch.nn.functional.cross_entropy, x, y, {"rate": 1.0})
    after = torch.nn.functional.cross_entropy(model(x), y)
    assert not torch.equal(weight, model[0].weight)
    assert after.item() == pytest.approx(before.item(), rel=1e-12)


def test_a_grid_takes_all_of_them(folder: Path) -> None:
    Path("all.toml").write_text(
        "[defaults]\nseeds = 1\nbudget = 12\nbatch = 16\nwidth = 8\ndepth = 1\n"
        '[[cells]]\ntask = "own_task.py:waves"\nmodel = ["mlp", "own_network.py:residual"]\n'
        '[methods.own]\nevery = "own_schedule.py:early"\n'
        "[methods.own.teleport]\n"
        'objective = "own_objective.py:tail"\nprojection = "own_projection.py:soft"\n'
        '[methods.balance]\nmethod = "own_method.py:balance"\nat = [3]\noptions = { rate = 0.5 }\n'
    )
    assert main(["suite", "all.toml", "--quiet", "--report", "all.md"]) == 0
    page = Path("all.md").read_text("utf-8")
    for name in ("own_task.py:waves", "own_network.py:residual", "balance"):
        assert name in page


def test_python_objects_are_taken(folder: Path) -> None:
    from own_method import balance
    from own_network import residual
    from own_objective import tail
    from own_schedule import early

    from nullport.lab import load_backend

    config = TeleportConfig(objective=tail)
    given = {"seeds": 1, "budget": 10, "batch": 16, "width": 8, "depth": 1}
    backend = load_backend("torch")
    for own in ({"model": residual, "every": early}, {"method": balance, "at": (3,)}):
        settings = Settings.make("digits", **given, **own, teleport=config)
        results = run(settings, load_task("digits"), backend)
        assert results.of("teleport")[0].teleports
        for name, function in own.items():
            if callable(function):
                assert results.as_dict()["settings"][name] == function.__qualname__


def register(folder: Path, text: str) -> None:
    info = folder / "mine-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(text)


def test_entry_points_are_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register(
        folder,
        "[nullport.objectives]\ntail = own_objective:tail\n"
        "[nullport.schedules]\nearly = own_schedule:early\n"
        "[nullport.tasks]\nwaves = own_task:waves\n"
        "[nullport.networks]\nresidual = own_network:residual\n"
        "[nullport.methods]\nbalance = own_method:balance\n"
        "[nullport.backends]\nchain = own_backend:BACKEND\n",
    )
    small = shlex.split(SMALL)
    argv = ["--task", "waves", "--model", "residual", "--every", "early", "--depth", "1"]
    assert main(["compare", *small, *argv, "--teleport-objective", "tail"]) == 0
    settings = written()["settings"]
    assert settings["model"] == "own_network:residual"
    assert settings["teleport"]["objective"] == "own_objective:tail"
    assert main(["compare", *small, "--method", "balance", "--at", "3"]) == 0
    assert written()["settings"]["method"] == "own_method:balance"
    assert main(["inspect", "own_backend.py:make", "--backend", "chain"]) == 0
    capsys.readouterr()
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "registered for objective: tail" in out
    assert "backend chain: numpy" in out
    Path("names.toml").write_text(
        '[defaults]\nseeds = 1\nbudget = 8\nbatch = 16\nwidth = 8\n[[cells]]\ntask = "waves"\n'
        '[methods.own]\nevery = "early"\nteleport = { objective = "tail" }\n'
        '[methods.balance]\nmethod = "balance"\nat = [3]\n'
    )
    assert main(["suite", "names.toml", "--quiet", "--report", "names.md"]) == 0


def test_a_name_claimed_twice_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register(folder, "[nullport.tasks]\nwaves = own_task:waves\n")
    other = folder / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[nullport.tasks]\nwaves = elsewhere:waves\n")
    assert main(["compare", *shlex.split(SMALL), "--task", "waves"]) == 2
    said = capsys.readouterr().err
    assert "'waves' is claimed by elsewhere:waves and own_task:waves" in said


WRONG = """
import numpy as np

def none(state): return None
def word(state): return "yes"
def several(state): return np.array([True, False])
def fails(state): return 1 / 0
def number(task, settings): return 3
def raises(task, settings): raise KeyError("no such layer")
def narrow(task, settings):
    import torch
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 10))
def two(problem, rate): pass
def anything(problem, **options): pass
def moves(problem, *, rate=1.0): pass
def breaks(problem): problem.model.nothing()
def lost(gradient): return gradient[0].nothing
def few(gradient): return gradient[:1]
BACKEND = 3
"""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--every wrong.py:none", "invalid every: the schedule returned None; allowed: True or"),
        ("--every wrong.py:word", "invalid every: the schedule returned 'yes'; allowed: True or"),
        ("--every wrong.py:several", "invalid every: the schedule returned array([ True, False])"),
        ("--every wrong.py:fails", "wrong.py:7: ZeroDivisionError: division by zero"),
        ("--every wrong.py:gone", "invalid every: no such function in wrong.py: 'gone'"),
        ("--every often", "--every: invalid value: 'often'; allowed: 'auto', an integer, FILE.py"),
        ("--model wrong.py:number", "build returned a int; allowed: a torch.nn.Module"),
        ("--model wrong.py:raises", "wrong.py:9: "),
        ("--model wrong.py:narrow", "narrow: RuntimeError: mat1 and mat2 shapes cannot be"),
        ("--model none.py:net", "invalid model: no such file: 'none.py'; allowed: an existing"),
        ("--method wrong.py:two", "invalid method: 'wrong.py:two'(problem, rate); allowed: a func"),
        ("--method wrong.py:anything", "invalid method: 'wrong.py:anything'(problem, **options)"),
        ("--method wrong.py:breaks --at 2", "wrong.py:16: "),
        ("--method wrong.py:moves --backend numpy", "invalid method for numpy: 'wrong.py:moves'"),
        ("--teleport-objective wrong.py:lost --at 3", "wrong.py:17: "),
        ("--teleport-objective wrong.py:few --at 3", "the objective returned 1 arrays; allowed: 8"),
        ("--backend wrong.py:BACKEND", "backend wrong.py:BACKEND is a int, not a Backend"),
        ("--backend wrong.py:GONE", "no such function in wrong.py: 'GONE'"),
    ],
)
def test_wrong_ones_are_errors_in_one_line(
    folder: Path, argv: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.py").write_text(WRONG)
    assert main(["compare", *shlex.split(SMALL), *shlex.split(argv)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_options_of_a_method_are_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_text(
        "[defaults]\nseeds = 1\nbudget = 8\nbatch = 16\nwidth = 8\n[[cells]]\n"
        '[methods.own]\nmethod = "own_method.py:balance"\noptions = { speed = 3 }\n'
    )
    assert main(["suite", "bad.toml", "--quiet"]) == 2
    assert (
        "invalid option of own_method.py:balance: 'speed'; allowed: rate" in capsys.readouterr().err
    )


# Schedules ---------------------------------------------------------------------------------------


def fifth(state: State) -> Any:
    return (state.step > 0) & (state.step % 5 == 0)


def test_a_custom_schedule_is_a_rule() -> None:
    rule = Rule.parse(fifth, 20)
    state, due = rule.start(np.float64(0.0)), []
    for step in range(16):
        assert rule.near(state, 2)
        if rule.due(state):
            due.append(step)
            state = rule.update(state, np.bool_(False), 3.0)
        state = rule.tick(state)
    assert due == [5, 10, 15]
    assert float(state.spent) == float(state.wasted) == 9.0


def test_a_custom_schedule_is_given_again_at_resume(folder: Path) -> None:
    import torch

    from nullport_torch import Teleporter

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = Teleporter(model, optimizer, every=fifth).state_dict()
    assert state["policy"]["every"] == "own"
    Teleporter(model, optimizer, every=fifth).load_state_dict(state)
    Teleporter(model, optimizer, every=7).load_state_dict(state)
    with pytest.raises(ValueError, match="invalid every: None; allowed: the custom schedule"):
        Teleporter(model, optimizer).load_state_dict(state)
    with pytest.raises(ValueError, match=r"invalid every: the schedule returned 3; allowed: True"):
        Teleporter(model, optimizer, every=lambda state: 3)


def test_names_that_are_none_are_none() -> None:
    assert known_as("task", "digits") is None
    assert str(known_as("task", "a.py:b")) == "a.py:b"
    assert sys.modules  # nothing was imported for it
    assert "a" not in sys.modules
