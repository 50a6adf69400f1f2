"""Processes of a benchmark: started fresh, pinned to a core, asked for their results, never left behind.

A benchmark's roles (writer, reader, publisher ...) are plain functions `role(pipe, *args)` at module level. Each runs
in a spawned interpreter of its own and talks to the benchmark through `pipe`. An exception in a role is raised in the
benchmark.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import secrets
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from perf.errors import BenchmarkFailed, PeerMissing, RoleFailed, Skipped

CONTEXT = multiprocessing.get_context("spawn")
PATIENCE_S = 90.0  # longest that a role may stay silent

_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cores() -> int:
    """How many CPUs the benchmarks may use."""
    return len(_CPUS) or os.cpu_count() or 1


def cpu(index: int) -> int:
    """Number of the `index`-th CPU that we may use, round again after the last; -1 where nothing can be pinned."""
    return _CPUS[index % len(_CPUS)] if _CPUS else -1


def pin(number: int) -> None:
    """Keep this process on CPU `number`; -1 leaves it alone."""
    if number >= 0:
        os.sched_setaffinity(0, {number})


@contextmanager
def pinned(index: int) -> Iterator[None]:
    """Keep this process on the `index`-th CPU for a while. Processes started meanwhile would inherit it."""
    if not _CPUS:
        yield
        return
    before = os.sched_getaffinity(0)
    pin(cpu(index))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep the garbage collector out of a timed loop."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def scratch_engine() -> Iterator[str]:
    """An engine name for one measurement; every segment of that name is removed afterwards."""
    from shm.segment import list_segments, unlink_segment

    name = f"perf-{secrets.token_hex(4)}"
    try:
        yield name
    finally:
        for segment in list_segments(name):
            unlink_segment(segment)


class Child:
    """A role in a process of its own. A context manager: leaving it ends the process.

    `index` is the CPU it is pinned to, counted as in `cpu`; None leaves it to the scheduler.
    """

    def __init__(self, role: Callable[..., None], *args: object, index: int | None = None) -> None:
        self.name = role.__name__
        self._pipe, theirs = CONTEXT.Pipe()
        number = -1 if index is None else cpu(index)
        self._process = CONTEXT.Process(target=_play, args=(theirs, role, number, args), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    def tell(self, word: object) -> None:
        """Send something to the role."""
        self._pipe.send(word)

    def hear(self, timeout_s: float = PATIENCE_S) -> Any:
        """The next thing that the role sends. Raises what the role raised, or RoleFailed."""
        try:
            if not self._pipe.poll(timeout_s):
                raise RoleFailed(f"{self.name} said nothing for {timeout_s:.0f} s")
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise RoleFailed(f"{self.name} ended without a result, exit code {self._process.exitcode}") from None
        if kind == "said":
            return value
        name, text = value
        known = {error.__name__: error for error in (BenchmarkFailed, PeerMissing, Skipped)}
        raise known.get(name, RoleFailed)(f"{self.name}: {text}" if name in known else f"{self.name} raised\n{text}")

    def said(self) -> bool:
        """Whether there is something to hear, or the role has ended."""
        return self._pipe.poll()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pipe:
    """The role's end of the conversation."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, value: object) -> None:
        """Send a result, or "ready"."""
        self._connection.send(("said", value))

    def hear(self) -> Any:
        """Wait for what the benchmark tells; EOFError when it has gone."""
        return self._connection.recv()

    def heard(self) -> bool:
        """Whether the benchmark has told something, or has gone."""
        return self._connection.poll()


def _play(connection: Connection, role: Callable[..., None], number: int, args: tuple[object, ...]) -> None:
    pin(number)
    try:
        role(Pipe(connection), *args)
    except (BenchmarkFailed, PeerMissing, Skipped) as error:
        connection.send(("raised", (type(error).__name__, str(error))))
    except EOFError:
        pass  # the benchmark has gone: nobody wants the result
    except Exception:  # noqa: BLE001 -- whatever it is, the benchmark shall hear of it
        connection.send(("raised", ("", traceback.format_exc())))
        raise SystemExit(1) from None
