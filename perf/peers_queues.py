"""Queues between two processes, for scale: multiprocessing.Queue and faster-fifo, carrying 128 bytes an item.

Each returns items a second from the first to the last that arrived, writer and reader pinned to a CPU each. What
arrives is counted and its contents checked.
"""

from __future__ import annotations

import time
from typing import Any

from perf.errors import PeerMissing, require
from perf.process import CONTEXT, Child, Pipe

_RECORD = bytes(range(128))
_AT_ONCE = 1024


def _same(value: bytes) -> bytes:
    """Stands for pickling: the items are bytes already, and the peer shall not pay for what it does not need."""
    return bytes(value)


def multiprocessing_rate(count: int) -> float:
    """Items a second through multiprocessing.Queue, one item a put."""
    return _rate(CONTEXT.Queue(4096), _put_each, _get_each, count)


def faster_fifo_rate(count: int) -> float:
    """Items a second through faster_fifo.Queue, 1024 items a put_many, as many as there are a get_many."""
    try:
        import faster_fifo
    except ImportError as error:
        raise PeerMissing(f"faster-fifo is not here: {error}") from error
    queue = faster_fifo.Queue(max_size_bytes=8 << 20, loads=_same, dumps=_same)
    return _rate(queue, _put_many, _get_many, count)


def _rate(queue: Any, put: Any, get: Any, count: int) -> float:
    with Child(get, queue, count, index=1) as reader, Child(put, queue, count, index=0) as writer:
        require(reader.hear() == "ready" and writer.hear() == "ready", "a role did not start")
        writer.tell("go")
        elapsed_ns: int = reader.hear()
        require(writer.hear() == count, "the writer did not finish")
    return count / elapsed_ns * 1e9


def _put_each(pipe: Pipe, queue: Any, count: int) -> None:
    pipe.say("ready")
    pipe.hear()
    for _ in range(count):
        queue.put(_RECORD)
    pipe.say(count)
    pipe.hear()


def _get_each(pipe: Pipe, queue: Any, count: int) -> None:
    pipe.say("ready")
    require(queue.get() == _RECORD, "an item is not what was put")
    start = time.perf_counter_ns()
    for _ in range(count - 1):
        last = queue.get()
    require(last == _RECORD, "an item is not what was put")
    pipe.say(time.perf_counter_ns() - start)


def _put_many(pipe: Pipe, queue: Any, count: int) -> None:
    items = [_RECORD] * _AT_ONCE
    pipe.say("ready")
    pipe.hear()
    for start in range(0, count, _AT_ONCE):
        queue.put_many(items[: count - start], timeout=30)
    pipe.say(count)
    pipe.hear()


def _get_many(pipe: Pipe, queue: Any, count: int) -> None:
    pipe.say("ready")
    got = len(queue.get_many(max_messages_to_get=_AT_ONCE, timeout=30))
    start = time.perf_counter_ns()
    while got < count:
        items = queue.get_many(max_messages_to_get=_AT_ONCE, timeout=30)
        got += len(items)
    require(got == count and items[-1] == _RECORD, "an item is not what was put")
    pipe.say(time.perf_counter_ns() - start)
