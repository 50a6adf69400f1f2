"""iceoryx2 through its Python package: the shared-memory peer.

A publish-subscribe service of fixed 128-byte payloads, used as its examples use it: `send_copy` and `receive`. Its
segments live in its own folders and go with its node.
"""

from __future__ import annotations

import ctypes
import secrets
import time
from itertools import repeat
from typing import Any

import numpy as np

from perf.errors import PeerMissing, require
from perf.process import Child, Pipe, quiet_collector

BUFFER_PAYLOADS = 8192  # 80 ms at one each 10 us: a receiver that loses its core for a while loses nothing


class _Payload(ctypes.Structure):
    _fields_ = (("sequence", ctypes.c_uint64), ("sent_ns", ctypes.c_int64), ("rest", ctypes.c_uint64 * 14))


def _service(name: str, depth: int) -> tuple[Any, Any]:
    """(node, service): the node keeps the service alive."""
    try:
        import iceoryx2
    except ImportError as error:
        raise PeerMissing(f"iceoryx2 is not here: {error}") from error
    iceoryx2.set_log_level_from_env_or(iceoryx2.LogLevel.Error)
    try:
        node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
        builder = node.service_builder(iceoryx2.ServiceName.new(name)).publish_subscribe(_Payload)
        return node, builder.subscriber_max_buffer_size(depth).open_or_create()
    except Exception as error:  # the package's errors share no base class
        raise PeerMissing(f"iceoryx2 does not work here: {error!r}") from error


def publish_rate(count: int, payload_bytes: int) -> float:
    """Payloads a second that one process publishes, without a subscriber."""
    require(ctypes.sizeof(_Payload) == payload_bytes, "the peer must send as many bytes as we do")
    _node, service = _service(f"perf/{secrets.token_hex(4)}", 64)
    publisher = service.publisher_builder().create()
    payload = _Payload()
    start = time.perf_counter_ns()
    for _ in repeat(None, count):
        publisher.send_copy(payload)
    return count / (time.perf_counter_ns() - start) * 1e9


def one_way_ns(count: int, pace_ns: int) -> np.ndarray:
    """One-way times from `send_copy` to a `receive` loop that spins in another process, ns, shape (count,).

    The sender is pinned by the caller, the receiver to the second CPU. One payload each `pace_ns`.
    """
    name = f"perf/{secrets.token_hex(4)}"
    _node, service = _service(name, BUFFER_PAYLOADS)
    publisher = service.publisher_builder().create()
    payload = _Payload()
    with Child(_receive, name, count, index=1) as receiver:
        require(receiver.hear() == "ready", "the receiver did not start")
        publisher.update_connections()
        with quiet_collector():
            for number in range(count):
                due = time.perf_counter_ns() + pace_ns
                while time.perf_counter_ns() < due:
                    pass
                payload.sequence = number + 1
                payload.sent_ns = time.time_ns()
                publisher.send_copy(payload)
        taken: np.ndarray = receiver.hear()
    return taken


def _receive(pipe: Pipe, name: str, count: int) -> None:
    _node, service = _service(name, BUFFER_PAYLOADS)
    receive = service.subscriber_builder().buffer_size(BUFFER_PAYLOADS).create().receive
    taken = np.zeros(count, dtype=np.int64)
    pipe.say("ready")
    with quiet_collector():
        for number in range(count):
            while (sample := receive()) is None:
                pass
            now_ns = time.time_ns()
            payload = sample.payload().contents
            require(payload.sequence == number + 1, f"iceoryx2 lost payload {number + 1}")
            taken[number] = now_ns - payload.sent_ns
            sample.delete()
    pipe.say(taken)
