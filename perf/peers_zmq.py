"""Plain pyzmq: what one would write without the engine. A PUB socket, a SUB socket, one two-frame message a tick.

    publisher process                                         subscriber process
    send_multipart([b"marketdata.tick.S0007", 128 bytes]) --- tcp on loopback ---> recv_multipart, decode to numpy

PUB drops when a subscriber is slow, so the publisher keeps at most WINDOW ticks ahead of what the subscriber says it
has (a word of shared memory), as our fan-out benchmarks do. Verified: every tick arrives, in order.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import zmq

from perf.errors import require
from perf.process import CONTEXT, Child, Pipe, quiet_collector
from perf.stage import free_port
from perf.ticks import ticks
from shm.layout import RECORD

WINDOW = 50_000
_HWM = 200_000
_AT_ONCE = 1024
_GO = b"marketdata.go"


def rate(count: int, instruments: int) -> float:
    """Ticks a second to one subscriber that takes them all, `instruments` topics."""
    port, taken = free_port(), CONTEXT.RawValue("Q", 0)
    with (
        Child(_publish, port, taken, count, instruments) as publisher,
        Child(_subscribe, port, taken, count) as subscriber,
    ):
        require(publisher.hear() == "ready", "the publisher did not start")
        elapsed_ns: int = subscriber.hear()
    return (count - 1) / elapsed_ns * 1e9


def one_way_ns(count: int, pace_s: float) -> np.ndarray:
    """One-way times of single ticks from `send_multipart` to `recv_multipart`, idle, ns, shape (count,)."""
    port = free_port()
    with Child(_publish_paced, port, count, pace_s) as publisher, Child(_time, port, count) as subscriber:
        require(publisher.hear() == "ready", "the publisher did not start")
        taken: np.ndarray = subscriber.hear()
    return taken


def _bound(port: int) -> Any:
    """An XPUB: the same as PUB on the wire and in cost, but it can wait until its subscriber has come."""
    publisher: Any = zmq.Context.instance().socket(zmq.XPUB)
    publisher.sndhwm = _HWM
    publisher.bind(f"tcp://127.0.0.1:{port}")
    return publisher


def _connected(port: int) -> Any:
    subscriber: Any = zmq.Context.instance().socket(zmq.SUB)
    subscriber.rcvhwm = _HWM
    subscriber.subscribe(b"marketdata.")
    subscriber.connect(f"tcp://127.0.0.1:{port}")
    return subscriber


def _publish(pipe: Pipe, port: int, taken: Any, count: int, instruments: int) -> None:
    records = ticks(instruments)
    topics = [b"marketdata.tick.S%04d" % number for number in range(instruments)]
    frames = [records[i : i + 1].tobytes() for i in range(instruments)]
    messages = list(zip(topics, frames, strict=True))
    with _bound(port) as publisher, quiet_collector():
        pipe.say("ready")
        publisher.recv()
        send, sent = publisher.send_multipart, 0
        while sent < count:
            while sent - taken.value > WINDOW:
                time.sleep(0.0001)
            for message in messages[: count - sent]:
                send(message, copy=True)
            sent += min(len(messages), count - sent)
        pipe.hear()


def _subscribe(pipe: Pipe, port: int, taken: Any, count: int) -> None:
    with _connected(port) as subscriber, quiet_collector():
        receive = subscriber.recv_multipart
        expected = np.frombuffer(receive()[1], RECORD)["source_sequence"][0]
        got, instruments = 1, 0
        start = time.perf_counter_ns()
        while got < count:
            frames = [receive()[1] for _ in range(min(_AT_ONCE, count - got))]
            numbers = np.frombuffer(b"".join(frames), RECORD)["source_sequence"]
            steps = np.diff(numbers, prepend=np.uint64(expected)).astype(np.int64)
            wraps = steps[steps != 1]
            instruments = instruments or (1 - int(wraps[0]) if len(wraps) else 0)
            require(bool((wraps == 1 - instruments).all()), "pyzmq lost ticks or changed their order")
            expected = numbers[-1]
            got += len(frames)
            taken.value = got
        pipe.say(time.perf_counter_ns() - start)


def _publish_paced(pipe: Pipe, port: int, count: int, pace_s: float) -> None:
    records = ticks(count)
    with _bound(port) as publisher, quiet_collector():
        pipe.say("ready")
        publisher.recv()
        for number in range(count):
            time.sleep(pace_s)
            records["ts_publish"][number] = time.time_ns()
            publisher.send_multipart((b"marketdata.tick.S0000", records[number].tobytes()))
        pipe.hear()


def _time(pipe: Pipe, port: int, count: int) -> None:
    taken = np.zeros(count, dtype=np.int64)
    with _connected(port) as subscriber, quiet_collector():
        for number in range(count):
            frame = subscriber.recv_multipart()[1]
            now_ns = time.time_ns()
            record = np.frombuffer(frame, RECORD)[0]
            require(record["source_sequence"] == number + 1, f"pyzmq lost tick {number + 1}")
            taken[number] = now_ns - record["ts_publish"]
    pipe.say(taken)
