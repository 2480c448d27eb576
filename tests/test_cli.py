"""The command line, called as a user calls it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import nullport
from nullport import TeleportConfig
from nullport.lab.cli import errors, main, parser
from nullport.lab.cli.options import add_options, converter, descriptions, given
from nullport.lab.compare import Results, Settings
from nullport.lab.named import Named

QUICK = [
    *("compare", "--seeds", "1", "--budget", "20", "--width", "16", "--every", "5"),
    "--no-neighbours",
]

MODEL = """
import torch
from torch import nn
from neighbour import CLASSES

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, CLASSES))
    x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    return model, lambda: nn.functional.cross_entropy(model(x), y)

def number():
    return 3

def swapped():
    model, closure = make()
    return closure, model

def lossless():
    return make()[0], lambda: "loss"

def broken():
    raise RuntimeError("the user's own error")
"""


@pytest.fixture
def torch() -> Any:
    for package in ("sklearn", "rich", "matplotlib", "torch"):
        pytest.importorskip(package)
    import torch

    return torch


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("CLASSES = 3\n")
    (tmp_path / "model.py").write_text(MODEL)
    return str(tmp_path / "model.py")


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return what a command that fails says on stderr: one line, unless it lists files to get."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("nullport: error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_compare_shows_a_table_and_writes_both_files(
    torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("matplotlib.image")
    folder = tmp_path / "new" / "folder"
    assert main([*QUICK, "--neighbours", "--seeds", "2", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    for words in ("baseline", "teleport", "difference", "validation loss", "accuracy", "seconds"):
        assert words in out
    picture, numbers = folder / "nullport-compare.png", folder / "nullport-compare.json"
    assert out.splitlines()[-2:] == [str(picture), str(numbers)]
    assert image.imread(picture).shape[0] > 300
    record = json.loads(numbers.read_text())
    assert set(record) == {"settings", "versions", "summary", "runs"}
    assert record["settings"]["task"] == "digits"
    assert record["versions"]["torch"] == torch.__version__
    arms = ["baseline", "teleport", "lr 0.0333", "lr 0.3", "lr 1", "init he"]
    assert list(dict.fromkeys(run["arm"] for run in record["runs"])) == arms
    assert len(record["runs"]) == 2 * len(arms)
    assert all(arm in record["summary"] and arm in out for arm in arms)
    assert "Without teleports" in out
    assert Results.from_dict(record).as_dict() == record


def test_the_same_command_gives_the_same_numbers(torch: Any, tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        assert main([*QUICK, "--quiet", "--out", str(tmp_path / name)]) == 0
        text = (tmp_path / name / "nullport-compare.json").read_text()
        records.append(
            json.loads(text, object_hook=lambda d: {k: d[k] for k in d if k != "seconds"})
        )
    assert records[0] == records[1]
    assert records[0]["runs"][1]["teleports"]


def test_quiet_prints_the_paths_only(
    torch: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--quiet", "--out", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert out.split() == [str(tmp_path / f"nullport-compare.{end}") for end in ("png", "json")]
    assert err == ""


def test_every_option_reaches_the_settings(torch: Any, tmp_path: Path) -> None:
    argv = (
        "compare --model cnn --optimizer adamw --lr 0.01 --schedule constant --init he --seeds 1 "
        "--budget 8 --batch 16 --width 4 --depth 1 --every 3 --no-guard --activation gelu "
        "--device cpu --threads 2 --teleport-radius 0.2 --teleport-steps 2 "
        "--teleport-exclude 1.* 9.* --no-teleport-bias --quiet --backend torch --at 2 4 "
        "--captured 8 --judge same --method random --no-neighbours"
    )
    assert main([*argv.split(), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "nullport-compare.json").read_text())
    teleport = TeleportConfig(radius=0.2, steps=2, exclude=("1.*", "9.*"), bias=False)
    assert Results.from_dict(record).settings == Settings(
        "digits", "cnn", "adamw", 0.01, 4, 1, schedule="constant", init="he", activation="gelu",
        seeds=1, budget=8, batch=16, every=3, guard=False, device="cpu", threads=2,
        at=(2, 4), captured=8, judge="same", method="random", teleport=teleport,
    )  # fmt: skip


def test_every_field_of_a_teleport_is_an_option_with_a_description() -> None:
    for command in ("compare", "inspect"):
        known = options(command)
        for field in fields(TeleportConfig):
            action = known["--teleport-" + field.name.replace("_", "-")]
            assert len(action.help or "") > 20, field.name
    for field in fields(Settings):
        if field.name not in ("teleport", "options"):  # the last are of grids only
            assert "--" + field.name.replace("_", "-") in options("compare")
            assert descriptions(Settings)[field.name]


def test_defaults_that_are_shown_can_be_given(torch: Any) -> None:
    for field in fields(TeleportConfig):
        option = "--teleport-" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            text = [option if field.default else option.replace("--", "--no-", 1)]
        else:
            many = isinstance(field.default, tuple)
            text = [option, *(field.default if many else [str(field.default)])]
        arguments = parser().parse_args(["compare", *text])
        config = TeleportConfig(**given(arguments, TeleportConfig, "teleport_"))
        assert config == TeleportConfig(), field.name


def options(command: str) -> dict[str, Any]:
    """Return the actions of a command by option."""
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    return commands[command]._option_string_actions  # type: ignore[index, call-overload, no-any-return]


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (Literal["auto"] | float, "auto", "auto"),
        (Literal["auto"] | float, "1e-3", 1e-3),
        (Literal["auto"] | int, "7", 7),
        (int | None, "none", None),
        (float, "3", 3.0),
        (str, "x y", "x y"),
        (Literal["a", "b"] | Callable[[int], int], "b", "b"),
        (Literal["a", "b"] | Callable[[int], int], "own.py:f", Named("own.py:f")),
    ],
)
def test_a_hint_says_how_text_is_read(hint: Any, text: str, value: Any) -> None:
    read = converter(hint)[0](text)
    assert read == value
    assert type(read) is type(value)


def test_a_new_field_is_an_option_at_once() -> None:
    made = argparse.ArgumentParser()
    add_options(made, Extended, "teleports", "teleport_")
    arguments = made.parse_args(["--teleport-new-field", "4", "--teleport-several", "1", "2"])
    assert given(arguments, Extended, "teleport_") == {"new_field": 4, "several": [1, 2]}
    assert "100 % of it" in " ".join(made.format_help().split())


@dataclass(frozen=True)
class Extended:
    """A record.

    Attributes:
        new_field: How much, 100 % of it
            and more.
        several: Numbers.
    """

    new_field: Literal["all"] | int = "all"
    several: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--colour", "required: COMMAND"),
        ("teach", "invalid choice: 'teach'"),
        ("compare --colour red", "unrecognized arguments: --colour red"),
        ("compare --task imagenet", "invalid task: 'imagenet'; allowed: digits, diabetes, mnist"),
        ("compare --model rnn", "--model: invalid value: 'rnn'; allowed: 'mlp', 'cnn'"),
        ("compare --seeds two", "--seeds: invalid value: 'two'; allowed: an integer"),
        ("compare --seeds 0", "invalid seeds: 0; allowed: an integer of at least 1"),
        ("compare --every 0", "invalid every: 0; allowed: 'auto' or an integer of at least 1"),
        ("compare --lr 0", "invalid lr: 0.0; allowed: a finite number above 0"),
        (
            "compare --method symmetry --quiet",
            "symmetry on digits, mlp: invalid layer: Linear(in_features=64, out_features=256, bias",
        ),
        (
            "compare --method slp",
            "invalid method for torch: 'slp'; allowed: 'nullport', 'none', 'symmetry'",
        ),
        ("compare --at 0", "invalid at: 0; allowed: an integer of at least 1"),
        ("compare --no-bias --model cnn", "invalid bias: False for a cnn; allowed: True, or"),
        ("compare --activation elu", "invalid value: 'elu'; allowed: 'relu', 'gelu', 'leaky"),
        ("compare --batch 1438", "invalid batch: 1438; allowed: at most the 1437"),
        ("compare --device tpu", "invalid device: 'tpu'; allowed: 'cpu'"),
        ("compare --backend tf", "unknown backend 'tf'; available: "),
        ("compare --teleport-radius far", "invalid value: 'far'; allowed: 'auto', a number"),
        ("compare --teleport-max-gain 1", "invalid max_gain: 1.0; allowed: a finite number in (1"),
        (
            "compare --teleport-objective flat",
            "invalid value: 'flat'; allowed: 'auto', 'grad_norm', 'decrease', 'look_ahead', "
            "'others', 'sharpness', 'weight_norm', 'amplify', 'renew', FILE.py:FUNCTION",
        ),
        ("compare --teleport-projection own.py:", "invalid value: 'own.py:'; allowed: 'budget'"),
        (
            "inspect none.py:make --teleport-projection none.py:gains",
            "invalid projection: no such file: 'none.py'; allowed: an existing Python file",
        ),
        ("compare --teleport-threshold 2", "invalid threshold: 2.0; allowed: a finite number"),
        ("compare --out /dev/null/x", "invalid out: '/dev/null/x'; allowed: a folder"),
        ("inspect model.py", "invalid target: 'model.py'; allowed: FILE.py:FUNCTION"),
        ("inspect none.py:make", "no such file: 'none.py'; allowed: an existing Python file"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(
    torch: Any, capsys: pytest.CaptureFixture[str], argv: str, message: str
) -> None:
    said = failure(capsys, *argv.split())
    assert message in said
    assert said.count("\n") == 1


def test_missing_data_is_explained(
    torch: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NULLPORT_DATA", raising=False)
    assert "nullport data fetch ett" in failure(capsys, "compare", "--task", "ett")
    said = failure(capsys, "compare", "--task", "ett", "--data", str(tmp_path))
    for words in ("ETTh1.csv.gz", str(tmp_path), "NULLPORT_DATA", "https://raw.github"):
        assert words in said


def test_a_missing_package_of_the_extra_is_named(
    torch: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    for package, module in (("rich", "rich.progress"), ("matplotlib", "matplotlib.figure")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            patch.setitem(sys.modules, package, None)
            said = failure(capsys, *QUICK)
            assert f'{package} is not installed: pip install "nullport[cli]"' in said
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", None)
        patch.delitem(sys.modules, "sklearn.datasets", raising=False)
        assert 'pip install "nullport[cli]"' in failure(capsys, *QUICK)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rich.table", None)
        patch.setitem(sys.modules, "rich", None)
        assert 'pip install "nullport[cli]"' in failure(capsys, "inspect", f"{model}:make")


def test_inspect_lists_every_weight_and_moves_none(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert main(["inspect", f"{model}:make"]) == 0
    out = capsys.readouterr().out
    assert "0.weight" in out
    assert "3.weight" in out
    assert "first layer" in " ".join(out.replace("│", " ").split())
    assert str(Path(model).parent) not in sys.path


def test_inspect_prints_json_and_takes_settings(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert main(["inspect", f"{model}:make", "--json"]) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)}
    last = layers["3.weight"]
    assert (last["in_features"], last["samples"], last["null_dim"]) == (33, 4, 29)
    assert last["moved"] == 0
    assert last["reason"] == ""
    argv = ["inspect", f"{model}:make", "--json", "--teleport-exclude", "3.*"]
    assert main(argv) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)}
    assert layers["3.weight"]["reason"] == "in exclude"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "no such function in model.py: 'nope'; its functions: make, number"),
        ("number", "returned int, expected (model, closure)"),
        ("swapped", "returned (function, Sequential), expected (model, closure)"),
        ("lossless", "the closure returned str; it must return the loss"),
    ],
)
def test_inspect_says_what_it_expects(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str, name: str, message: str
) -> None:
    said = failure(capsys, "inspect", f"{model}:{name}")
    assert message in said
    assert said.count("\n") == 1


RAISES = 1 + MODEL[: MODEL.index("raise RuntimeError")].count("\n")

USER = {
    "broken": (f"model.py:{RAISES}: RuntimeError: the user's own error", MODEL),
    "other": (
        "model.py:4: ZeroDivisionError",
        "def helper():\n    1\n\n    1 / 0\n\ndef other(): helper()",
    ),
    "syntax": ("model.py:2: SyntaxError: ", "x = 1\ndef syntax(:\n"),
    "gone": ("model.py:1: ModuleNotFoundError: No module named 'not_there'", "import not_there\n"),
    "stops": (
        "model.py:3: exits with no data",
        "import sys\ndef stops():\n    sys.exit('no data')\n",
    ),
    "asks": (
        "model.py:asks: missing a required argument: 'size' in (size); allowed",
        "def asks(size): 1",
    ),
    "long": (
        "model.py:2: ValueError: one two",
        "def long():\n    raise ValueError('one\\n  two\\n')",
    ),
}


@pytest.mark.parametrize("command", ["inspect", "diagnose"])
@pytest.mark.parametrize("name", list(USER))
def test_errors_of_the_users_own_file_are_one_line_with_their_place(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str, name: str, command: str
) -> None:
    message, text = USER[name]
    Path(model).write_text(text)
    said = failure(capsys, command, f"{model}:{name}")
    assert message in said
    assert said.count("\n") == 1


def test_errors_of_a_neighbour_have_its_place(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    Path(model).with_name("beside.py").write_text("def fails():\n    raise KeyError('lost')\n")
    Path(model).write_text("import beside\n\ndef make():\n    beside.fails()\n")
    assert "beside.py:2: KeyError: 'lost'" in failure(capsys, "inspect", f"{model}:make")


def test_errors_of_a_module_have_their_place(
    torch: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_module_of_this_test.py").write_text("def make(): return 1\n\n1 / 0\n")
    said = failure(capsys, "inspect", "own_module_of_this_test:make")
    assert "own_module_of_this_test.py:3: ZeroDivisionError: division by zero" in said


def test_errors_of_another_process_have_their_place(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    """Their traceback comes as text."""
    assert main(["inspect", f"{model}:number"]) == 2  # from now on the file is known
    capsys.readouterr()
    error, remote = errors.UsageError("own on digits: KeyError"), RuntimeError()
    lines = [(torch.__file__, 3), (model, 7), ("/elsewhere.py", 9)]
    remote.tb = "".join(f'  File "{file}", line {n}, in f\n' for file, n in lines)  # type: ignore[attr-defined]
    error.__cause__ = remote
    told = errors.told(error)
    assert told is not None
    assert told.endswith("model.py:7: own on digits: KeyError")


def test_a_closure_that_fails_has_its_place(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    text = f"{MODEL}\ndef wrong():\n    net = make()[0]\n"
    text += "    return net, lambda: net(torch.ones(2, 3)).sum()\n"
    Path(model).write_text(text)
    said = failure(capsys, "inspect", f"{model}:wrong")
    assert f"model.py:{text.count(chr(10))}: RuntimeError: mat1 and mat2" in said


def test_the_traceback_is_shown_when_asked(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert main(["inspect", f"{model}:broken", "--traceback"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.rstrip().endswith(f"model.py:{RAISES}: RuntimeError: the user's own error")


def test_errors_of_nullports_own_are_raised(
    torch: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullport.lab.cli.inspect.table", raising(AssertionError("a fault")))
    with pytest.raises(AssertionError, match="a fault"):
        main(["inspect", f"{model}:make"])


def test_what_the_user_prints_is_not_in_the_json(
    torch: Any, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    Path(model).write_text(MODEL + "\ndef talks():\n    print('loading')\n    return make()\n")
    for command in ("inspect", "diagnose"):
        assert main([command, f"{model}:talks", "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)
        assert "loading" in captured.err


def test_bare_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: nullport")
    for words in ("compare", "suite", "inspect", "diagnose", "doctor", "exit codes"):
        assert words in out


def test_compare_and_doctor_print_json(
    torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record.pop("files") == [
        str(tmp_path / f"nullport-compare.{end}") for end in ("png", "json")
    ]
    assert record.pop("advice") == ""
    assert record == json.loads((tmp_path / "nullport-compare.json").read_text())
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["versions"]["nullport"] == nullport.__version__
    assert record["backends"]["torch"]["devices"][0] == "cpu"


@pytest.mark.parametrize("name", ["nullport-compare.json", "nullport-compare.png"])
def test_compare_checks_its_files_before_the_runs(
    torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("nullport.lab.cli.compare.load_task", raising(AssertionError("begun")))
    (tmp_path / name).mkdir()
    said = failure(capsys, *QUICK, "--out", str(tmp_path))
    assert f"{name}' (is a folder); allowed: a file that can be written" in said
    assert said.count("\n") == 1


def test_a_disk_that_is_full_is_one_line(
    torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "nullport-compare.json").symlink_to("/dev/full")
    said = failure(capsys, *QUICK, "--quiet", "--out", str(tmp_path))
    assert said.count("\n") == 1
    assert "nullport-compare.json: No space left on device" in said


def test_output_without_unicode_or_colour_is_fit_for_pipes(torch: Any, model: str) -> None:
    command = [sys.executable, "-m", "nullport", "diagnose", f"{model}:make"]
    env = os.environ | {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout
    assert max(map(len, done.stdout.decode("ascii").splitlines())) <= 85  # escapes are longer
    assert b"training" in done.stdout


def test_a_reader_that_goes_away_is_no_error(torch: Any, model: str) -> None:
    command = [sys.executable, "-m", "nullport", "inspect", f"{model}:make", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_doctor_shows_versions_and_backends(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in (
        f"nullport {nullport.__version__}",
        f"numpy {np.__version__}",
        "array-api-compat",
    ):
        assert words in out
    assert f"backend torch: torch {torch.__version__}; devices: cpu" in out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("no", name="torch"), 'pip install "nullport[torch]"'),
        (OSError("libcudart is broken"), "OSError: libcudart is broken"),
    ],
)
def test_doctor_says_why_a_backend_cannot_be_loaded(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr("nullport.lab.cli.doctor.load_backend", raising(error))
    assert main(["doctor"]) == 0
    assert message in capsys.readouterr().out


def test_compare_says_what_to_install_for_a_backend(
    torch: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "load_backend", raising(ModuleNotFoundError("no", name="torch")))
    assert 'torch is not installed: pip install "nullport[torch]"' in failure(capsys, "compare")


def raising(error: Exception) -> Any:
    def load(*_: object) -> None:
        raise error

    return load


def test_interrupts_are_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullport.lab.cli.doctor.versions", raise_interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "nullport: interrupted\n"


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nullport {nullport.__version__}\n"
    for argv in (
        ["--help"],
        *([name, "--help"] for name in ("compare", "inspect", "diagnose", "suite", "doctor")),
    ):
        assert main(argv) == 0
        assert "usage: nullport" in capsys.readouterr().out


def test_runs_as_a_module_and_imports_nothing_heavy() -> None:
    module = [sys.executable, "-m", "nullport.lab", "--version"]
    assert subprocess.check_output(module, text=True).startswith("nullport ")
    code = (
        "import sys, nullport, nullport.lab.cli, nullport.lab.compare\n"
        "heavy = {'torch', 'jax', 'rich', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
