"""The store of runs: a SQLite file that several suites share, in which every run is made once.

``records`` holds what came out of every run, by its key. ``claims`` says who is making which run,
and until when that counts: an owner renews its claims while it lives, and those of one that died
expire. Every change is one transaction, on disk before it returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

Record = dict[str, Any]

MAGIC = b"SQLite format 3\0"
APPLICATION = 0x6E707275
"""Marks a SQLite file as a store of runs (``PRAGMA application_id``, 4 bytes from 68 on)."""

VERSION = 1
"""Version of the tables (``PRAGMA user_version``)."""

TABLES = (
    "CREATE TABLE records (key TEXT NOT NULL UNIQUE, record TEXT NOT NULL)",
    "CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)

LEASE = 30.0
"""Seconds that a claim counts without being renewed."""

PATIENCE = 30.0
"""Seconds to wait for another process that writes."""


class StoreError(OSError):
    """The store cannot be read or written; the message names the file."""


class Store:
    """An open store of runs.

    Args:
        path: Its file, made if it is not there or empty.
        lease: Seconds that a claim counts without being renewed.

    Raises:
        ValueError: If the file is anything but a store of this version; it keeps every byte.
        StoreError: If it cannot be opened.
    """

    def __init__(self, path: Path, lease: float = LEASE) -> None:
        _check_header(path)
        self.path, self.lease = path, lease
        self.owner = f"{socket.gethostname()} {os.getpid()} {uuid4().hex}"
        with self._explained(), contextlib.ExitStack() as stack:
            self._database = stack.enter_context(contextlib.closing(_connect(path)))
            _make_tables(self._database, path)
            stack.pop_all()  # it stays open

    def __enter__(self) -> Store:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def records(self) -> list[Record]:
        """Return the records in the order in which they were added."""
        with self._explained():
            rows = self._database.execute("SELECT record FROM records ORDER BY rowid").fetchall()
        return [json.loads(text) for (text,) in rows]

    def keys(self) -> set[str]:
        """Return the keys of the records."""
        with self._explained():
            return {key for (key,) in self._database.execute("SELECT key FROM records")}

    def claim(self, keys: Iterable[str], most: int) -> list[str]:
        """Claim runs that are neither there nor claimed, at most so many, and return their keys."""
        now = time.time()
        with self._changed() as database:
            taken = database.execute(
                "SELECT key FROM records UNION SELECT key FROM claims WHERE expires > ?", (now,)
            )
            known = {key for (key,) in taken}
            free = [key for key in keys if key not in known][: max(most, 0)]
            rows = [(key, self.owner, now + self.lease) for key in free]
            database.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", rows)
        return free

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records, each with its ``"key"``, and drop the claims on them; none replaces one."""
        rows = [(str(r["key"]), json.dumps(r, allow_nan=False)) for r in records]
        with self._changed() as database:
            database.executemany("INSERT OR IGNORE INTO records VALUES (?, ?)", rows)
            database.executemany("DELETE FROM claims WHERE key = ?", [row[:1] for row in rows])

    def release(self, keys: Sequence[str]) -> None:
        """Give claims of this store back."""
        rows = [(key, self.owner) for key in keys]
        with self._changed() as database:
            database.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", rows)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Renew the claims of this store until the block ends, then give back those left."""
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            # On a full disk they expire instead.
            with contextlib.suppress(StoreError), self._changed() as database:
                database.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(self.lease / 4):
            # A connection of this thread's own; if it fails, there are more times to come.
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(_connect(self.path)) as database,
            ):
                database.execute(
                    "UPDATE claims SET expires = ? WHERE owner = ?",
                    (time.time() + self.lease, self.owner),
                )

    @contextlib.contextmanager
    def _changed(self) -> Iterator[sqlite3.Connection]:
        """Make the block one transaction."""
        with self._explained(), _transaction(self._database):
            yield self._database

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            msg = f"the store of runs {self.path}: {error}; what it holds is kept"
            raise StoreError(msg) from error


def read(path: Path) -> list[Record]:
    """Return the records of a store, none if it is not there.

    Raises:
        ValueError: If the file is no store.
        StoreError: If it cannot be read.
    """
    if not path.exists():
        return []
    with Store(path) as store:
        return store.records()


def _check_header(path: Path) -> None:
    """Refuse what is no store by its first bytes, without opening it as a database."""
    if not path.exists():
        return
    with path.open("rb") as file:
        head = file.read(100)
    if head and (head[:16] != MAGIC or head[68:72] != APPLICATION.to_bytes(4, "big")):
        msg = f"invalid runs: {str(path)!r} holds something else; allowed: a store that nullport "
        raise ValueError(msg + "suite made, or a file that is not there yet")


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    database.execute("PRAGMA synchronous = FULL")  # on disk, power cut or not
    return database


def _make_tables(database: sqlite3.Connection, path: Path) -> None:
    """Make the tables if there are none, in one transaction, so that no half a store is left."""
    if _version(database, path):
        return
    with _transaction(database):
        for statement in () if _version(database, path) else TABLES:
            database.execute(statement)
    # Only now, for the mark has to be in the file itself. Busy: another process does the same.
    with contextlib.suppress(sqlite3.OperationalError):
        database.execute("PRAGMA journal_mode = WAL")


def _version(database: sqlite3.Connection, path: Path) -> int:
    """Return the version of the tables, 0 if there are none."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        msg = f"invalid runs: {str(path)!r} is of version {version}; allowed: {VERSION}"
        raise ValueError(msg)
    return int(version)


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have rolled it back already
            database.execute("ROLLBACK")
        raise
