"""Who makes the runs: this process, others of this machine (loky), or a Dask cluster.

All three take a function and its arguments and return a ``concurrent.futures.Future``. Only the
process of the suite reads and writes the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future
from typing import Any, Protocol

from nullport.lab.compare.extras import require

LOOK = 0.5
"""Seconds after which a process looks again whether its parent is alive."""

AHEAD = 16
"""Runs that a cluster is given at least, so that one that adapts to its work can grow."""

CONNECT = 10
"""Seconds to wait for the scheduler of a cluster."""


class Lost(Exception):  # noqa: N818
    """What made a run died; the run is to be made again."""


class Workers(Protocol):
    """What makes runs."""

    @property
    def width(self) -> int:
        """How many runs to hand over at a time."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function somewhere else."""

    def result(self, future: Future[Any]) -> Any:
        """Return what a call has returned, or raise what it has raised.

        Raises:
            Lost: If the process that made the call died.
        """


@contextlib.contextmanager
def workers(processes: int = 1, scheduler: str | None = None) -> Iterator[Workers]:
    """Open what makes the runs, and end it with the block, whatever it is at.

    Args:
        processes: Runs made at a time on this machine.
        scheduler: Address of the scheduler of a Dask cluster that makes them instead.

    Raises:
        MissingExtra: If loky or distributed is needed and not installed.
        OSError: If the scheduler does not answer.
        ValueError: If its address is none.
    """
    if scheduler is not None:
        with _client(scheduler) as client:
            yield Cluster(client, scheduler)
    elif processes == 1:
        yield Here()
    else:
        pool = Processes(processes)
        try:
            yield pool
        finally:
            pool.close()


class Here:
    """This process, one run after the other."""

    width = 1

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function now; what interrupts it passes through."""
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    def result(self, future: Future[Any]) -> Any:
        """Return or raise what the call did."""
        return future.result()


class Processes:
    """Processes of this machine; they end when this one does, however it does."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._pool = self._opened()

    def _opened(self) -> Any:
        return require("loky").ProcessPoolExecutor(
            self.width, initializer=_end_with, initargs=(os.getpid(),)
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function in a process, a new one where one has died."""
        try:
            return self._pool.submit(function, *arguments)  # type: ignore[no-any-return]
        except BrokenExecutor:
            self.close()
            self._pool = self._opened()
            return self._pool.submit(function, *arguments)  # type: ignore[no-any-return]

    def result(self, future: Future[Any]) -> Any:
        """Return or raise what the call did; one process that dies takes the others with it."""
        try:
            return future.result()
        except BrokenExecutor as error:
            raise Lost(str(error).splitlines()[0]) from error

    def close(self) -> None:
        """End all processes, at once: loky by itself looks for children of theirs first."""
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, kill_workers=True)


class Cluster:
    """A Dask cluster, which makes the runs of a worker that dies again by itself, some times."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._pool = client.get_executor(pure=False)

    @property
    def width(self) -> int:
        """Two for every thread of a worker, so that none waits for its next run."""
        threads: int = sum(self._client.nthreads().values())
        return max(AHEAD, 2 * threads)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function on a worker."""
        return self._pool.submit(_alone, os.getcwd(), function, *arguments)  # type: ignore[no-any-return]

    def result(self, future: Future[Any]) -> Any:
        """Return or raise what the call did.

        Raises:
            ConnectionError: If the scheduler is gone.
        """
        try:
            return future.result()
        except require("distributed").KilledWorker as error:
            raise Lost(str(error).splitlines()[0]) from error
        except CancelledError as error:
            msg = f"the scheduler at {self._address} is gone"
            raise ConnectionError(msg) from error


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    distributed = require("distributed", "cluster")
    try:  # before there is a client, which is not easily rid of
        asyncio.run(_answers(distributed.comm.connect, address))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        msg = f"invalid scheduler: {address!r}: {reason}; allowed: the address of a Dask scheduler"
        raise ConnectionError(msg) from error
    with distributed.Client(address, timeout=CONNECT, set_as_default=False) as client:
        yield client


async def _answers(connect: Any, address: str) -> None:
    connection = await connect(address, timeout=CONNECT)
    await connection.close()


_ONE = threading.Lock()


def _alone(folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while no other run is made in this process: random states are its own.

    Where the machines share the suite's folder, files have the same names as there.
    """
    with _ONE:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        return function(*arguments)


def _end_with(parent: int) -> None:
    """Have this process end with its parent, and leave it to the parent to be interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)
