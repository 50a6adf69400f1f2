"""Source "multicast" on loopback, polled in this process: real sockets, real groups, the packets of captures."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RECORD, Flag, RecordType, Source, StatusCode, concatenate, empty
from tests.multicast import SESSION, datagrams, end_of_session, iex, mold, sender
from tests.ports import free_port
from workers.decoders.capture import open_capture
from workers.errors import SettingsError, SourceError
from workers.source import SourceContext, open_source
from workers.sources.multicast import MulticastSource, silent_lines
from workers.sources.multicast_lines import interface_address
from workers.spec import FeedSpec
from workers.wire_log import WireLog

pytestmark = pytest.mark.bare_kernel  # options of multicast sockets

DEADLINE_S = 30
GROUPS = ("239.255.71.1", "239.255.71.2")


def add(reference: int) -> bytes:
    """An ITCH order of stock X."""
    return struct.pack(">cHH6sQcI8sI", b"A", 1, 0, bytes(6), reference, b"B", 100, b"X       ", 10_000)


class Stage:
    """A source with two lines, and a sender for each."""

    def __init__(
        self,
        protocol: str = "mold-itch50",
        *,
        lines: int = 2,
        log_of: Callable[[FeedSpec], WireLog] | None = None,
        **options: Any,
    ) -> None:
        feed = {name: options.pop(name) for name in ("data_types", "symbols") if name in options}
        self.to = [(group, free_port()) for group in GROUPS[:lines]]
        options = {
            "protocol": protocol,
            "lines": [{"group": group, "port": port, "interface": "127.0.0.1"} for group, port in self.to],
            "rcvbuf": 1 << 20,
            "gap_wait_ms": 0,
            "book": False,
            **options,
        }
        spec = FeedSpec(feed_id=3, name="m", source="multicast", options=options, **feed)
        self.ids: dict[str, int] = {}
        wire = log_of(spec) if log_of is not None else None
        source = open_source(SourceContext(spec, lambda name: self.ids.setdefault(name, len(self.ids)), wire=wire))
        assert isinstance(source, MulticastSource)
        self.source = source
        self.socket = sender()
        self.found: list[np.ndarray] = []

    def send(self, packet: bytes, *lines: int) -> None:
        for line in lines or (0, 1):
            self.socket.sendto(packet, self.to[line])

    def poll(self, until: Callable[[], Any], out: np.ndarray | None = None) -> np.ndarray:
        """All records so far, once the condition holds after a poll."""
        out = empty(512) if out is None else out
        deadline = time.monotonic() + DEADLINE_S
        while True:
            count = self.source.poll(out, time.time_ns())
            self.found.append(concatenate([out[:count]]))
            if until() and not count:
                return concatenate(self.found)
            assert time.monotonic() < deadline

    def had(self, bytes_received: int) -> Callable[[], bool]:
        return lambda: self.source.bytes_received >= bytes_received

    def close(self) -> None:
        self.source.close()
        self.socket.close()


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(*arguments: Any, **options: Any) -> Stage:
        made.append(Stage(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def replayed(path: Path, **options: Any) -> tuple[np.ndarray, dict[str, int]]:
    ids: dict[str, int] = {}
    found = []
    with open_capture(path, intern=lambda s: ids.setdefault(s, len(ids)), options=options, feed_id=3) as capture:
        while count := capture.decode(out := np.zeros(4096, RECORD)):
            found.append(out[:count])
    return concatenate([empty(0), *found]), ids


def assert_same_but_times(live: np.ndarray, replay: np.ndarray) -> None:
    """Records of the same packets: all but the marks of a replay and the times of receipt."""
    live, replay = concatenate([live]), concatenate([replay])
    assert np.all(live["source"] == Source.MULTICAST)
    live["source"] = Source.REPLAY
    live["flags"] |= np.uint16(Flag.REPLAYED)
    live["ts_receive"] = replay["ts_receive"]
    assert live.tobytes() == replay.tobytes()


def sent(stage: Stage, packets: list[bytes]) -> np.ndarray:
    """Send on both lines, line 1 behind line 0, in doses that any socket buffer can take."""
    total = 0
    for start in range(0, len(packets), 50):
        for line in (0, 1):
            for packet in packets[start : start + 50]:
                stage.send(packet, line)
                total += len(packet)
        stage.poll(stage.had(total))
    return concatenate(stage.found)


@pytest.mark.parametrize(
    ("protocol", "folder"),
    [("iex-tops", "Iex/Tops.IexTp.v1.6"), ("iex-deep", "Iex/Deep.IexTp.v1.0")],
)
@pytest.mark.parametrize("book", [False, True])
def test_a_capture_sent_live_makes_the_records_of_its_replay(
    stage: Callable[..., Stage], samples: Path, protocol: str, folder: str, *, book: bool
) -> None:
    compared = 0
    for path in sorted((samples / "pcap" / folder).glob("*.pcap")):
        packets = datagrams(path)
        replay, ids = replayed(path, book=book)
        live = stage(protocol, book=book)
        records = sent(live, packets)
        assert_same_but_times(records, replay)
        assert live.ids == ids
        compared += len(records)
        live.close()
    assert compared > 0


def test_captured_itch_packets_make_the_records_of_their_replay(stage: Callable[..., Stage], samples: Path) -> None:
    compared = 0
    for path in sorted((samples / "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0").glob("*.pcap")):
        replay, _ = replayed(path, date="2024-07-01")
        live = stage("mold-itch50")
        records = sent(live, datagrams(path))
        market = replay["record_type"] != RecordType.STATUS
        for found in (
            records,
            replay,
        ):  # ts_event counts from midnight of the day of receipt; a gap's is when it was found
            found["ts_event"] -= found["ts_event"][market][:1] if market.any() else 0
            found["ts_event"][~market] = 0
        assert_same_but_times(records, replay)
        compared += len(records)
        live.close()
    assert compared > 0


def test_times_of_receipt_are_the_kernels(stage: Callable[..., Stage]) -> None:
    live = stage()
    before = time.time_ns()
    live.send(mold(1, [add(1)]))
    (record,) = live.poll(live.had(2 * (20 + 38)))
    # The kernel stamps at arrival, or, just after the first socket has asked for stamps, when the datagram is taken.
    assert before <= record["ts_receive"] <= time.time_ns()
    assert record["feed_id"] == 3


def test_small_arrays_lose_nothing(stage: Callable[..., Stage]) -> None:
    live = stage()
    for first in range(1, 401, 4):
        live.send(mold(first, [add(first + i) for i in range(4)]))
    records = live.poll(live.had(2 * 100 * (20 + 4 * 38)), empty(3))
    assert list(records["source_sequence"]) == list(range(1, 401))


def test_a_line_that_loses_is_filled_from_the_other_and_both_losses_are_a_gap(stage: Callable[..., Stage]) -> None:
    live = stage(gap_wait_ms=1)
    for first in range(1, 11):
        if first not in {3, 7}:
            live.send(mold(first, [add(first)]), 0)
        if first not in {4, 7}:
            live.send(mold(first, [add(first)]), 1)
    records = live.poll(lambda: live.source.gaps == 1)
    market = records[records["record_type"] != RecordType.STATUS]
    assert list(market["source_sequence"]) == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    (gap,) = records[records["record_type"] == RecordType.STATUS]
    assert (gap["code"], gap["from_sequence"], gap["to_sequence"]) == (StatusCode.GAP, 7, 8)
    assert list(market["source_sequence"][market["flags"] & Flag.GAP_BEFORE != 0]) == [8]


def test_after_an_end_of_session_the_next_session_follows(stage: Callable[..., Stage]) -> None:
    live = stage()
    live.send(mold(1, [add(1), add(2)]))
    live.send(end_of_session(3))
    live.send(mold(1, [add(1)], b"TESTING002"))
    records = live.poll(live.had(2 * (20 + 76 + 20 + 20 + 38)))
    assert list(records["source_sequence"]) == [1, 2, 1]
    assert live.source.gaps == live.source.errors == 0
    assert live.source.next_due_ns is not None


def test_only_what_the_feed_wants_comes(stage: Callable[..., Stage]) -> None:
    def trade(locate: int, stock: bytes) -> bytes:
        return struct.pack(">cHH6sQcI8sIQ", b"P", locate, 0, bytes(6), 0, b"B", 5, stock, 10_000, 99)

    live = stage(data_types=("trade",), symbols=("X",))
    live.send(mold(1, [add(1), trade(1, b"X       "), trade(2, b"Y       ")]))
    live.send(mold(5, [trade(1, b"X       ")]))
    records = live.poll(lambda: live.source.gaps)
    assert list(records["record_type"]) == [RecordType.TRADE, RecordType.STATUS, RecordType.TRADE]
    assert set(records["instrument_id"][[0, 2]]) == {live.ids["X"]}


def test_strangers_and_long_datagrams_are_refused_and_counted(stage: Callable[..., Stage]) -> None:
    live = stage(max_datagram=128)
    live.send(b"hello")
    live.send(iex(1, [b"abc"]))
    live.send(mold(1, [add(i) for i in range(10)]))
    live.send(mold(1, [add(1)]))
    records = live.poll(lambda: live.source.errors >= 6)
    assert list(records["source_sequence"]) == [1]
    assert live.source.errors == 6


def test_what_comes_in_a_pause_is_a_gap_and_no_heap(stage: Callable[..., Stage]) -> None:
    live = stage(gap_wait_ms=10_000)
    live.send(mold(1, [add(1)]))
    live.poll(live.had(2 * 58))
    for first in range(2, 50):
        live.send(mold(first, [add(first)]))
    live.source.resume(time.time_ns())
    live.send(mold(50, [add(50)]))
    records = live.poll(live.had(4 * 58))
    assert [int(r["source_sequence"]) for r in records if r["record_type"] != RecordType.STATUS] == [1, 50]
    (gap,) = records[records["record_type"] == RecordType.STATUS]
    assert (gap["from_sequence"], gap["to_sequence"]) == (2, 50)


def test_a_source_specific_line_hears_its_sender_alone() -> None:
    port, heard = free_port(), {}
    sources = {}
    for wanted in ("127.0.0.1", "127.0.0.3"):
        line = {"group": "232.1.71.1", "port": port, "interface": "127.0.0.1", "source": wanted}
        options = {"protocol": "mold-itch50", "lines": [line], "rcvbuf": 65536, "gap_wait_ms": 0}
        spec = FeedSpec(feed_id=1, name="ssm", source="multicast", options=options, data_types=("level2",))
        sources[wanted] = open_source(SourceContext(spec, lambda _: 1))
    for address, reference in (("127.0.0.1", 11), ("127.0.0.3", 33)):
        with sender() as sock:
            sock.bind((address, 0))
            sock.sendto(mold(reference, [add(reference)]), ("232.1.71.1", port))
    for wanted, source in sources.items():
        out = empty(8)
        deadline = time.monotonic() + DEADLINE_S
        while not (count := source.poll(out, time.time_ns())):
            assert time.monotonic() < deadline
        heard[wanted] = list(out[:count]["source_sequence"])
        source.close()
    assert heard == {"127.0.0.1": [11], "127.0.0.3": [33]}


def test_a_small_buffer_is_said_with_the_setting_to_change(caplog: pytest.LogCaptureFixture) -> None:
    live = Stage(rcvbuf=1 << 30)
    if any(line.rcvbuf_bytes >= 1 << 30 for line in live.source._sockets):
        live.close()
        pytest.skip("this machine gives a buffer of any size")
    live.close()
    assert "not 1073741824" in caplog.text
    assert "rmem_max" in caplog.text or "maxsockbuf" in caplog.text


LINE = {"group": "239.1.1.1", "port": 5000}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"missing required field `protocol`"),
        ({"protocol": "pitch", "lines": [LINE]}, r"'pitch'.*\$\.protocol"),
        ({"protocol": "iex-tops"}, r"missing required field `lines`"),
        ({"protocol": "iex-tops", "lines": []}, r"length >= 1.*\$\.lines"),
        ({"protocol": "iex-tops", "lines": [LINE] * 9}, r"length <= 8.*\$\.lines"),
        ({"protocol": "iex-tops", "lines": [{"port": 1}]}, r"`group`.*\$\.lines\[0\]"),
        ({"protocol": "iex-tops", "lines": [{**LINE, "prot": 1}]}, r"`prot`.*\$\.lines\[0\]"),
        ({"protocol": "iex-tops", "lines": [{**LINE, "port": 0}]}, r"\$\.lines\[0\]\.port"),
        ({"protocol": "iex-tops", "lines": [{**LINE, "group": "x"}]}, r"options\.lines\[0\]\.group is 'x'"),
        ({"protocol": "iex-tops", "lines": [{**LINE, "group": "10.1.1.1"}]}, r"lines\[0\]\.group.*multicast"),
        ({"protocol": "iex-tops", "lines": [LINE, {**LINE, "source": "eth0"}]}, r"lines\[1\]\.source is 'eth0'"),
        ({"protocol": "iex-tops", "lines": [{**LINE, "source": "239.1.1.1"}]}, r"lines\[0\]\.source"),
        ({"protocol": "iex-tops", "lines": [LINE, LINE]}, r"lines\[1\] is the same as options\.lines\[0\]"),
        ({"protocol": "iex-tops", "lines": [LINE], "rcvbuf": 1}, r"\$\.rcvbuf"),
        ({"protocol": "iex-tops", "lines": [LINE], "rcvbuff": 1}, r"no option 'rcvbuff'.*'rcvbuf'"),
        ({"protocol": "iex-tops", "lines": [LINE], "rerequest": "h:1"}, r"options\.rerequest: iex-tops"),
        ({"protocol": "mold-itch50", "lines": [LINE], "rerequest": "host"}, r"rerequest is 'host': must be host:port"),
        ({"protocol": "mold-itch50", "lines": [LINE], "rerequest": "h:70000"}, r"rerequest is 'h:70000'"),
        ({"protocol": "iex-tops", "lines": [LINE], "window": 65536, "max_datagram": 65536}, r"options\.window times"),
        ({"protocol": "mold-itch50", "lines": [LINE], "gap_wait_ms": -1}, r"\$\.gap_wait_ms"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    spec = FeedSpec(feed_id=1, name="m", source="multicast", options=options)
    with pytest.raises(SettingsError, match=message):
        open_source(SourceContext(spec, lambda _: 1))


def test_an_interface_that_is_not_there_can_come_later() -> None:
    spec = FeedSpec(
        feed_id=1,
        name="m",
        source="multicast",
        options={"protocol": "iex-tops", "lines": [{**LINE, "interface": "nosuch0"}]},
    )
    with pytest.raises(SourceError, match=r"no interface 'nosuch0'.*there are"):
        open_source(SourceContext(spec, lambda _: 1))


def test_interfaces_are_found_by_name_and_address() -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    assert interface_address(loopback) == interface_address("127.0.0.1") == b"\x7f\0\0\1"
    assert interface_address("") == bytes(4)


def test_a_line_is_silent_when_others_are_not() -> None:
    second = 10**9
    assert silent_lines({0: 0, 1: 0}, 100 * second) == set()
    assert silent_lines({0: 104 * second, 1: 0}, 100 * second) == set()
    assert silent_lines({0: 106 * second, 1: 0}, 100 * second) == {1}
    assert silent_lines({0: 150 * second, 1: 156 * second}, 100 * second) == {0}
    assert silent_lines({0: 150 * second, 1: 150 * second}, 100 * second) == set()  # a quiet venue


def test_two_feeds_can_take_the_same_group() -> None:
    first = Stage(lines=1)
    options = {
        "protocol": "mold-itch50",
        "lines": [{"group": GROUPS[0], "port": first.to[0][1], "interface": socket.inet_ntoa(b"\x7f\0\0\1")}],
    }
    spec = FeedSpec(feed_id=4, name="n", source="multicast", options=options, data_types=("level2",))
    second = open_source(SourceContext(spec, lambda _: 1))
    first.send(mold(1, [add(1)], SESSION), 0)
    assert len(first.poll(first.had(58))) == 1
    out = empty(4)
    assert second.poll(out, time.time_ns()) == 1
    first.close()
    second.close()
