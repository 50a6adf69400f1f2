"""An outlet knows who listens, and a slow subscriber costs nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.children import wait_until
from workers.errors import WorkerError
from workers.outlet import Outlet

ENDPOINT = "inproc://outlet"  # without a network in between, queues have exactly the length that was asked for


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


def subscribe(context: zmq.Context[zmq.Socket[bytes]], *topics: bytes, hwm: int = 1000) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.SUB)
    socket.linger, socket.rcvhwm, socket.rcvtimeo = 0, hwm, 20_000
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(ENDPOINT)
    return socket


def wait_subscriptions(outlet: Outlet, count: int) -> list[bytes]:
    changed: list[bytes] = []

    def arrived() -> bool:
        changed.extend(outlet.read_subscriptions())
        return outlet.subscriptions == count

    wait_until(arrived, f"{count} subscriptions")
    return changed


def test_topics_are_wanted_while_somebody_subscribes_to_a_prefix(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    outlet = Outlet(context, [ENDPOINT], 10)
    assert not outlet.wants(b"marketdata.tick.A")
    first = subscribe(context, b"marketdata.tick.", b"marketdata.quote.A")
    assert sorted(wait_subscriptions(outlet, 2)) == [b"marketdata.quote.A", b"marketdata.tick."]

    assert outlet.wants(b"marketdata.tick.A")
    assert outlet.wants(b"marketdata.quote.AAPL")  # SUB sockets match prefixes; exactness is the subscriber's to judge
    assert not outlet.wants(b"marketdata.quote.B")
    assert not outlet.wants(b"marketdata.tick")

    second = subscribe(context, b"marketdata.tick.")
    assert wait_subscriptions(outlet, 3) == []
    first.close()
    assert wait_subscriptions(outlet, 1) == [b"marketdata.quote.A"]
    second.close()
    assert wait_subscriptions(outlet, 0) == [b"marketdata.tick."]
    assert not outlet.wants(b"marketdata.tick.A")
    outlet.close()


def test_subscriber_that_stopped_reading_loses_messages_and_the_others_none(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    outlet = Outlet(context, [ENDPOINT], 5)
    slow, fast = subscribe(context, b"t", hwm=5), subscribe(context, b"t", hwm=5)
    wait_subscriptions(outlet, 2)

    got = []
    for number in range(100):
        outlet.send(b"t", b"%d" % number)
        got.append(fast.recv_multipart())

    assert got == [[b"t", b"%d" % number] for number in range(100)]
    assert outlet.dropped >= 1
    kept = []
    while slow.poll(0):
        kept.append(slow.recv_multipart())
    assert kept == got[: len(kept)]
    assert 0 < len(kept) < 100
    slow.close()
    fast.close()
    outlet.close()


def test_patient_outlet_waits_for_a_slow_subscriber(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    waited = []
    got: list[bytes] = []

    def take_some() -> bool:
        waited.append(len(got))
        while slow.poll(0):
            got.append(slow.recv_multipart()[1])
        return True

    outlet = Outlet(context, [ENDPOINT], 5, patience_s=60.0, on_wait=take_some)
    slow = subscribe(context, b"t", hwm=5)
    wait_subscriptions(outlet, 1)
    outlet.send_frames([(7, memoryview(b"%d" % number)) for number in range(100)], {7: b"t"})
    take_some()

    assert got == [b"%d" % number for number in range(100)]
    assert (outlet.dropped, outlet.messages, outlet.bytes) == (0, 100, 190)
    assert len(waited) > 1
    slow.close()
    outlet.close()


def test_patience_ends_when_it_is_told_to(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    outlet = Outlet(context, [ENDPOINT], 5, patience_s=1e9, on_wait=lambda: False)
    stuck = subscribe(context, b"t", hwm=5)
    wait_subscriptions(outlet, 1)

    for _ in range(100):
        outlet.send(b"t", b"x")

    assert outlet.dropped == 1  # libzmq says so once; until the queue moves it leaves that subscriber out
    stuck.close()
    outlet.close()


def test_outlet_listens_on_ipc_too_and_makes_the_folder(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "main.raw.0"
    outlet = Outlet(context, [ENDPOINT, f"ipc://{path}"], 5)
    assert path.is_socket()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    outlet.close()


@pytest.mark.parametrize("endpoint", ["ipc:///" + "x" * 120, "tcp://256.0.0.1:1", "nonsense"])
def test_endpoint_that_can_not_be_bound_is_named(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
    with pytest.raises(WorkerError, match=endpoint[:20]):
        Outlet(context, [endpoint], 5)


def test_two_can_not_listen_on_one_port(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    holder = context.socket(zmq.REP)
    port = holder.bind_to_random_port("tcp://127.0.0.1")
    with pytest.raises(WorkerError, match=f"tcp://127.0.0.1:{port}.*in use"):
        Outlet(context, [f"tcp://127.0.0.1:{port}"], 5)
    holder.close()
