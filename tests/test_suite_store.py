"""The store of runs: what it refuses, who may make which run, and that no run is lost."""

from __future__ import annotations

import csv
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.own_suite import ARGV, RUNS, prepare

from nullport.lab.cli import main
from nullport.lab.suite import exchange, store
from nullport.lab.suite.store import Store, StoreError

OTHERS = {
    "text": b"notes of a whole year, no newline",
    "json": b'{"results": [1, 2, 3]}',
    "lines": b'{"a": 1}\n{"a": 2}',
    "bytes": b"\xff\xfe\x00\x01",
    "magic": b"SQLite format 3\0" + bytes(200),
    "blank": b"\n",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.sqlite"


@pytest.mark.parametrize("suffix", [".sqlite", ".jsonl", ""])
@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_a_file_of_something_else_keeps_every_byte(
    content: bytes, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    runs = Path(f"notes{suffix}")
    runs.write_bytes(content)
    assert main([*ARGV, "--runs", str(runs)]) == 2
    assert runs.read_bytes() == content
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert runs.name in said
    assert not Path("made.txt").exists()


def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE records (key TEXT, record TEXT)")
    database.close()
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"runs.sqlite' holds something else; allowed: a store"):
        Store(path)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["runs.sqlite"]


def test_a_store_of_another_version_is_refused(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {store.VERSION + 1}")
    database.close()
    with pytest.raises(ValueError, match="is of version 2; allowed: 1"):
        Store(path)


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    """It is what a crash in the very first moment leaves."""
    path.touch()
    with Store(path) as one:
        one.add([{"key": "a"}])
    assert store.read(path) == [{"key": "a"}]
    assert path.with_name("missing").exists() is False
    assert store.read(path.with_name("missing")) == []


def test_a_run_has_one_owner(path: Path) -> None:
    with Store(path) as one, Store(path) as two:
        assert one.claim("abc", 2) == ["a", "b"]
        assert two.claim("abcd", 9) == ["c", "d"]
        assert one.claim("abcd", 9) == two.claim("abcd", 9) == []
        one.add([{"key": "a", "loss": 1.0}])
        two.add([{"key": "a", "loss": 2.0}, {"key": "c"}])  # came too late
        one.release(["b", "d"])  # only its own
        assert two.claim("abcd", 9) == ["b"]
        assert one.records() == [{"key": "a", "loss": 1.0}, {"key": "c"}]
        assert two.keys() == {"a", "c"}


def test_claims_of_the_dead_expire_and_those_of_the_living_do_not(path: Path) -> None:
    lease = 0.6
    with Store(path, lease) as dead, Store(path, lease) as living, Store(path, lease) as heir:
        assert dead.claim("a", 1) == ["a"]
        assert living.claim("b", 1) == ["b"]
        with living.held():
            threading.Event().wait(2 * lease)
            assert heir.claim("ab", 2) == ["a"]
        assert heir.claim("b", 1) == ["b"]  # given back


def test_many_writers_get_every_run_once(path: Path) -> None:
    keys, taken, lock = [str(i) for i in range(60)], [], threading.Lock()

    def work() -> None:
        with Store(path) as mine:  # the first ones make the tables at the same time
            while claimed := mine.claim(keys, 3):
                with lock:
                    taken.extend(claimed)
                mine.add({"key": key} for key in claimed)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == keys
    assert {record["key"] for record in store.read(path)} == set(keys)


def test_a_full_disk_loses_what_is_being_written_and_no_more(path: Path) -> None:
    """SQLite is told that no more pages are to be had."""
    with Store(path) as one:
        one.add([{"key": "a"}])
        one._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreError, match=r"runs.sqlite: database or disk is full; .* is kept"):
            one.add([{"key": "b", "much": "x" * 200_000}])
        assert one.keys() == {"a"}
        one._database.execute("PRAGMA max_page_count = 1000000")
        one.add([{"key": "b"}])
    assert [record["key"] for record in store.read(path)] == ["a", "b"]


def test_a_store_that_is_damaged_is_named(path: Path) -> None:
    with Store(path) as one:
        one.add({"key": str(i), "much": "x" * 2000} for i in range(50))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreError, match=r"runs.sqlite: "):
        store.read(path)


def test_export(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records: list[dict[str, Any]] = [
        {"key": '["baseline", 0, {}]', "loss": None, "curve": {"loss": [1]}, "drift": [0.5]},
        {"key": '["teleport", 0, {}]', "loss": 0.25, "settings": {"lr": 0.1, "at": [3]}},
    ]
    with Store(path) as one:
        one.add(records)
    assert main(["suite", "export", str(path)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == records
    sheet = path.with_suffix(".csv")
    for out in (sheet, path.with_suffix(".jsonl")):
        assert main(["suite", "export", str(path), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert exchange.read_jsonl(path.with_suffix(".jsonl")) == records
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["baseline", "teleport"]
    assert [(row["loss"], row["drift"]) for row in rows] == [("", "[0.5]"), ("0.25", "")]
    assert (rows[1]["settings.lr"], rows[1]["settings.at"]) == ("0.1", "[3]")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["export"], "invalid store: None; allowed: a file that nullport suite made"),
        (["export", "nowhere.sqlite"], "invalid store: 'nowhere.sqlite'"),
        (["export", "runs.sqlite", "--out", "runs.txt"], "'.txt'; allowed: .jsonl, .csv"),
        (["export", "grid.toml"], "'grid.toml' holds something else"),
        (["grid.toml", "runs.sqlite"], "invalid store: 'runs.sqlite'; allowed: none, but with"),
    ],
)
def test_a_wrong_export(
    argv: list[str], words: str, path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(path.parent)
    prepare(path.parent)
    Store(path).close()
    assert main(["suite", *argv, "--backend", "numpy"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_jsonl_of_before_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(ARGV) == 0
    records = store.read(Path("grid.sqlite"))
    assert len(records) == RUNS
    old = exchange.text(records[:5], ".jsonl")
    Path("old.jsonl").write_text(old + old[:30])  # the last line was cut off
    Path("made.txt").unlink()
    assert main([*ARGV, "--runs", "old.jsonl"]) == 0
    assert len(Path("made.txt").read_text().splitlines()) == RUNS - 5
    assert exchange.read_jsonl(Path("old.jsonl"))[:5] == records[:5]
    assert len(exchange.read_jsonl(Path("old.jsonl"))) == RUNS
