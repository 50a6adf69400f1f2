"""Multicast feeds of an ingest worker process: what stands in the ring is what was sent, whatever the lines lose."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.instruments import InstrumentTable
from shm.layout import Flag, RecordType, StatusCode, concatenate, empty
from shm.ring import RingReader, create_ring
from shm.status import StatusBlock
from tests.children import wait_until
from tests.multicast import RerequestServer, datagrams, end_of_session, mold, sender
from tests.ports import free_port
from tests.system.engine_process import EngineProcess
from workers.decoders.capture import open_capture
from workers.spec import FeedSpec, IngestSettings, QualitySettings, encode

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RING = 2
FEED = 5
GROUPS = ("239.255.72.1", "239.255.72.2")
SEED = 20


def add(reference: int) -> bytes:
    """An ITCH order of stock X."""
    return struct.pack(">cHH6sQcI8sI", b"A", 1, 0, bytes(6), reference, b"B", 100, b"X       ", 10_000)


class Host:
    """The segments of an engine, one ingest worker with one multicast feed, a sender to its two lines."""

    def __init__(self, name: str, protocol: str, **options: Any) -> None:
        self.name = name
        self.block = StatusBlock.create(name, process_slots=4)
        self.block.set_engine(control_pid=os.getpid(), started_ns=time.time_ns())
        self.instruments = InstrumentTable.create(name)
        create_ring(name, RING, depth_slots=131_072)
        self.to = [(group, free_port()) for group in GROUPS]
        lines = [{"group": group, "port": port, "interface": "127.0.0.1"} for group, port in self.to]
        options = {"protocol": protocol, "lines": lines, "gap_wait_ms": 5, "book": False, **options}
        self.feed = FeedSpec(feed_id=FEED, name="live", source="multicast", options=options)
        self.socket = sender()
        self.sent_bytes = 0
        self.reader = RingReader.attach(name, RING, start=1, register=False)
        self.found: list[np.ndarray] = []
        self.worker = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        settings = IngestSettings(
            engine=self.name,
            label="ingest-0",
            ring_id=RING,
            feeds=(self.feed,),
            quality=QualitySettings(enabled=False),
            log_level="warning",
        )
        worker = subprocess.Popen([sys.executable, "-m", "workers.ingest"], stdin=subprocess.PIPE, cwd=ROOT)
        assert worker.stdin is not None
        worker.stdin.write(encode(settings))
        worker.stdin.flush()
        self.worker = worker
        self.await_status(StatusCode.FEED_UP, worker)
        return worker

    def await_status(self, code: StatusCode, worker: subprocess.Popen[bytes]) -> None:
        def said() -> bool:
            assert worker.poll() is None, f"the worker ended with {worker.returncode}"
            start = len(self.found)
            self.read()
            return any(
                (batch["code"][batch["record_type"] == RecordType.STATUS] == code).any() for batch in self.found[start:]
            )

        wait_until(said, code.name)

    def counter(self, name: str) -> int:
        view = self.block.process("ingest-0")
        return view.counters.get(name, 0) if view else 0

    def send(self, packet: bytes, *lines: int) -> None:
        for line in lines or (0, 1):
            self.socket.sendto(packet, self.to[line])
            self.sent_bytes += len(packet)

    def read(self) -> np.ndarray:
        """All market and gap records so far."""
        while count := self.reader.read(out := empty(8192)):
            self.found.append(out[:count])
        records = concatenate([empty(0), *self.found])
        of_data = np.isin(records["code"], (StatusCode.GAP, StatusCode.TRADING_STATUS))
        return records[(records["record_type"] != RecordType.STATUS) | of_data]

    def settle(self, condition: Callable[[], object], what: str) -> np.ndarray:
        """Wait for a condition, then give every record."""
        wait_until(condition, what)
        return self.read()

    def received(self) -> None:
        """Wait until the worker has taken what was sent: no socket buffer is asked to hold more."""
        wait_until(lambda: self.counter("bytes_received") >= self.sent_bytes, f"{self.sent_bytes} bytes received")

    def close(self) -> None:
        self.socket.close()
        self.worker.kill()
        self.worker.wait()
        assert self.worker.stdin is not None
        self.worker.stdin.close()
        self.reader.close()
        self.block.close()


@pytest.fixture
def host(engine_name: str) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(*arguments: Any, **options: Any) -> Host:
        made.append(Host(engine_name, *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lossy(packets: list[bytes], dice: random.Random, *, lost: set[int]) -> list[tuple[int, bytes]]:
    """What arrives of packets sent on a line that loses `lost` and lets one of a hundred fall back by up to five."""
    order = [(at + (dice.randrange(1, 6) + 0.5 if dice.random() < 0.01 else 0), at) for at in range(len(packets))]
    return [(at, packets[at]) for _, at in sorted(order) if at not in lost]


def test_a_captured_day_on_two_lossy_lines_makes_the_records_of_its_replay(
    host: Callable[..., Host], samples: Path
) -> None:
    path = samples / "iex/TOPS16.pcapng.gz"
    packets = datagrams(path)
    assert len(packets) == 13_022
    dice = random.Random(SEED)
    lost_a = set(dice.sample(range(1, len(packets)), len(packets) // 100))
    lost_b = set(dice.sample(sorted(set(range(1, len(packets))) - lost_a), len(packets) // 100))
    lines = [lossy(packets, dice, lost=lost) for lost in (lost_a, lost_b)]

    live = host("iex-tops", gap_wait_ms=10_000)
    for start in range(0, len(packets), 60):
        for number, line in enumerate(lines):
            for _, packet in line[start : start + 60]:
                live.send(packet, number)
        live.received()
    replay: list[np.ndarray] = []
    with open_capture(path, intern=live.instruments.intern, feed_id=FEED) as capture:
        while count := capture.decode(out := empty(8192)):
            replay.append(out[:count])
    wanted = concatenate(replay)
    records = live.settle(lambda: len(live.read()) >= len(wanted), "all records")

    for field in ("sequence", "ts_receive", "ts_publish", "source", "priority"):
        records[field] = wanted[field]
    records["flags"] |= np.uint16(Flag.REPLAYED)
    assert records.tobytes() == wanted.tobytes()
    trades = records[(records["record_type"] == RecordType.TRADE) & (records["flags"] & Flag.CORRECTED == 0)]
    assert trades["size"].sum() == 1_427_907
    wait_until(lambda: live.counter(f"multicast.{FEED}.line1.packets") == len(lines[1]), "counters of line 1")
    assert live.counter(f"multicast.{FEED}.line0.packets") == len(lines[0])
    won = [live.counter(f"multicast.{FEED}.line{number}.won") for number in (0, 1)]
    assert sum(won) == 57_674
    assert min(won) > 0
    assert live.counter(f"multicast.{FEED}.line1.missing") > 0
    assert live.counter(f"multicast.{FEED}.lost") == live.counter(f"feed.{FEED}.gaps") == 0


def test_what_both_lines_lose_is_asked_for_again_until_it_comes(host: Callable[..., Host]) -> None:
    messages = [add(number) for number in range(1, 1201)]
    packets = [mold(first, messages[first - 1 : first + 11]) for first in range(1, 1201, 12)]
    dice = random.Random(SEED)
    both = {20, 21, 22, 50, len(packets) - 1}  # the last one shows at the end of session only
    lines = [lossy(packets, dice, lost=both | {at for at in range(1, 100) if at % 10 == n}) for n in (3, 7)]
    server = RerequestServer(messages)
    live = host("mold-itch50", rerequest=server.address, rerequest_timeout_ms=20)
    for number, line in enumerate(lines):
        for _, packet in line:
            live.send(packet, number)
    live.send(end_of_session(len(messages) + 1))
    records = live.settle(lambda: len(live.read()) >= len(messages), "all messages")
    server.stop()
    assert list(records["source_sequence"]) == list(range(1, 1201))
    wait_until(lambda: live.counter(f"multicast.{FEED}.sessions_over") == 1, "the end of session")
    # Two lines may leave more open for a moment than both lose: what is asked for is at least that.
    asked = {number for first, count in server.requests for number in range(first, first + count)}
    assert asked >= {number for at in both for number in range(at * 12 + 1, at * 12 + 13)}
    wait_until(lambda: live.counter(f"multicast.{FEED}.rerequest.won") >= 12 * len(both), "the server's counters")
    wait_until(lambda: live.counter(f"multicast.{FEED}.requests") == len(server.requests), "as many requests as heard")
    assert live.counter(f"multicast.{FEED}.lost") == live.counter(f"multicast.{FEED}.unanswered") == 0


def test_a_server_that_is_not_there_delays_and_harms_nothing_else(host: Callable[..., Host]) -> None:
    live = host("mold-itch50", rerequest=f"127.0.0.1:{free_port()}", rerequest_timeout_ms=5, rerequest_retries=2)
    for first in (1, 2, 5, 6):
        live.send(mold(first, [add(first)]))
    records = live.settle(lambda: len(live.read()) >= 5, "four messages and a gap")
    assert list(records["source_sequence"]) == [1, 2, 0, 5, 6]
    assert (records[2]["from_sequence"], records[2]["to_sequence"]) == (3, 5)
    wait_until(lambda: live.counter(f"multicast.{FEED}.unanswered") == 1, "counters")
    assert live.counter(f"multicast.{FEED}.requests") == 3


def test_an_overflowing_kernel_buffer_is_counted_and_told_as_a_gap(host: Callable[..., Host]) -> None:
    live = host("mold-itch50", rcvbuf=4096)
    live.send(mold(1, [add(1)]))
    live.received()
    live.worker.send_signal(signal.SIGSTOP)
    for first in range(2, 1001):
        live.send(mold(first, [add(first)]))
    live.worker.send_signal(signal.SIGCONT)
    live.settle(lambda: len(live.read()) > 1, "what the buffer held")
    live.send(mold(1001, [add(1001)]))
    records = live.settle(lambda: 1001 in live.read()["source_sequence"], "the last message")
    gaps = records[records["record_type"] == RecordType.STATUS]
    market = records[records["record_type"] != RecordType.STATUS]
    missing = [number for gap in gaps for number in range(gap["from_sequence"], gap["to_sequence"])]
    assert missing
    assert sorted([*missing, *market["source_sequence"]]) == list(range(1, 1002))
    name = f"multicast.{FEED}.line0.kernel_drops"
    wait_until(lambda: live.counter(name) > 0, "drops of the kernel")
    assert live.counter(name) == 1001 - live.counter(f"multicast.{FEED}.line0.packets")
    assert live.counter(f"multicast.{FEED}.lost") == len(missing)


@pytest.mark.parametrize("with_server", [False, True])
def test_a_killed_worker_comes_back_and_what_was_sent_meanwhile_is_filled_or_told(
    host: Callable[..., Host], *, with_server: bool
) -> None:
    messages = [add(number) for number in range(1, 301)]
    server = RerequestServer(messages, per_packet=40) if with_server else None
    live = host("mold-itch50", **({"rerequest": server.address, "rerequest_timeout_ms": 20} if server else {}))

    def send(numbers: range) -> None:
        for number in numbers:
            live.send(mold(number, [messages[number - 1]]))

    send(range(1, 101))
    live.settle(lambda: len(live.read()) >= 100, "a hundred messages")
    wait_until(lambda: live.counter(f"multicast.{FEED}.next") == 101, "the number to go on from")
    live.worker.kill()
    live.worker.wait()
    send(range(101, 201))  # nobody hears it
    live.start()
    send(range(201, 301))
    wanted = 300 if server else 201
    records = live.settle(lambda: len(live.read()) >= wanted, "the rest")
    if server:
        assert list(records["source_sequence"]) == list(range(1, 301))
        server.stop()
        return
    (at,) = np.flatnonzero(records["record_type"] == RecordType.STATUS)
    assert (records[at]["from_sequence"], records[at]["to_sequence"]) == (101, 201)
    assert records[at + 1]["flags"] & Flag.GAP_BEFORE
    assert list(np.delete(records["source_sequence"], at)) == [*range(1, 101), *range(201, 301)]


def test_a_killed_worker_learns_the_orders_again_and_publishes_none_of_them_twice(host: Callable[..., Host]) -> None:
    def execute(reference: int) -> bytes:
        return struct.pack(">cHH6sQIQ", b"E", 1, 0, bytes(6), reference, 100, 1000 + reference)

    messages = [*map(add, range(1, 101)), *map(execute, range(1, 101))]
    server = RerequestServer(messages, per_packet=7)
    live = host("mold-itch50", join="start", rerequest=server.address, rerequest_timeout_ms=20, book=True)

    def send(numbers: range) -> None:
        for number in numbers:
            live.send(mold(number, [messages[number - 1]]))

    def kinds(kind: RecordType) -> np.ndarray:
        records = live.read()
        return records[records["record_type"] == kind]

    send(range(61, 111))  # the first sixty come late
    live.settle(lambda: len(kinds(RecordType.TRADE)) == 10, "orders, and ten trades")
    wait_until(lambda: live.counter(f"multicast.{FEED}.next") == 111, "the number to go on from")
    wait_until(lambda: live.counter(f"multicast.{FEED}.joined") == 60, "counters")
    live.worker.kill()
    live.worker.wait()
    send(range(111, 151))  # nobody hears it
    live.start()
    send(range(151, 201))
    records = live.settle(lambda: len(kinds(RecordType.TRADE)) == 100, "every trade")
    server.stop()
    levels = records[records["record_type"] == RecordType.LEVEL2]
    assert levels["source_sequence"].tolist() == [*range(1, 101), *range(1, 101)]
    assert kinds(RecordType.TRADE)["trade_id"].tolist() == list(range(1001, 1101))
    assert not (records["record_type"] == RecordType.STATUS).any()
    assert not any(kinds(RecordType.QUOTE)["flags"] & Flag.INCOMPLETE)
    late = levels["flags"] & Flag.BACKFILLED != 0
    assert late[:60].all()
    assert late[110:150].all()
    assert not late[60:110].any()
    wait_until(lambda: live.counter(f"multicast.{FEED}.joined") == 60 + 150, "counters")
    assert live.counter(f"multicast.{FEED}.joining") == live.counter(f"multicast.{FEED}.lost") == 0
    assert live.counter(f"feed.{FEED}.errors") == live.counter(f"feed.{FEED}.gaps") == 0


def test_a_multicast_feed_is_added_over_http_and_a_wrong_one_is_told_why(engine_name: str, tmp_path: Path) -> None:
    port = free_port()
    line = {"group": GROUPS[0], "port": port, "interface": "127.0.0.1"}
    wanted = {"symbol": "*", "data_source": "multicast", "data_types": [], "options": {"protocol": "mold-itch50"}}
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine, sender() as out:
        engine.wait_ready()
        bad = {**wanted, "options": {"protocol": "mold-itch50", "lines": [{**line, "group": "10.0.0.1"}]}}
        status, answer = engine.send("POST", "/feeds", bad)
        assert status == 422
        assert "options.lines[0].group" in str(answer)
        good = {**wanted, "options": {"protocol": "mold-itch50", "lines": [line]}}
        status, answer = engine.send("POST", "/feeds", good)
        assert (status, answer["data_source"]) == (201, "multicast")
        out.sendto(mold(1, [add(1), add(2)]), line_address := (GROUPS[0], port))
        wait_until(lambda: engine.json(f"/feeds/{answer['feed_id']}")["message_count"] >= 2, "messages")
        out.sendto(mold(3, [add(3)]), line_address)
        wait_until(lambda: "line0_packets" in engine.get("/metrics/prometheus")[2].decode(), "the line's metrics")
        (feed,) = [feed for feed in engine.json("/feeds")["feeds"] if feed["data_source"] == "multicast"]
        assert feed["error_count"] == 0
