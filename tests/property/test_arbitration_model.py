"""Line arbitration against a slow model: what either line carried comes once and in order, the rest is lost."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.multicast import iex, mold
from workers._arbitration import Arbiter
from workers.arbitration import HolePolicy, Recovery

BATCH = 4
WAIT_NS = 100


@dataclass(frozen=True)
class Packet:
    first: int
    end: int

    def encode(self, framing: str) -> bytes:
        messages = [struct.pack(">Q", number) for number in range(self.first, self.end)]
        return mold(self.first, messages) if framing == "mold" else iex(self.first, messages)


@st.composite
def two_lines(draw: st.DrawFn) -> list[tuple[int, Packet]]:
    """Packets of one stream of two lossy, reordering, doubling lines in order of arrival: (line, packet)."""
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=40))
    packets, number = [], draw(st.sampled_from([1, 77, 2**40]))
    for size in sizes:
        packets.append(Packet(number, number + size))
        number += size
    arrivals = []
    for line in (0, 1):
        for place, packet in enumerate(packets):
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 1, 2]))):
                late = draw(st.sampled_from([0, 0, 0, 0, 1, 3, 10]))
                arrivals.append((place + late + draw(st.integers(0, 1)), line, packet))
    arrivals.sort(key=lambda arrival: arrival[0])  # stable: within a line mostly in order
    return [(line, packet) for _, line, packet in arrivals]


class Receiver:
    """Takes out what the arbiter hands on, as a decoder does: in order, what was had is skipped."""

    def __init__(self, arbiter: Arbiter, framing: str) -> None:
        self.arbiter, self.framing = arbiter, framing
        self.expected = 0
        self.got: list[int] = []
        self.lost: list[int] = []

    def take(self) -> None:
        buffer = memoryview(self.arbiter)
        for frame in self.arbiter.frames:
            start = int(frame["offset"])
            packet = bytes(buffer[start : start + int(frame["size"])])
            if self.framing == "mold":
                first, count = struct.unpack_from(">QH", packet, 10)
                order, at = ">", 20
            else:
                count, first = struct.unpack_from("<H", packet, 14)[0], struct.unpack_from("<Q", packet, 24)[0]
                order, at = "<", 40
            if self.expected:
                self.lost += range(self.expected, first)
            for number in range(first, first + count):
                (size,) = struct.unpack_from(f"{order}H", packet, at)
                (said,) = struct.unpack_from(">Q", packet, at + 2)
                assert (size, said) == (8, number)
                at += 10
                if number >= self.expected:
                    self.got.append(number)
            self.expected = max(self.expected, first + count)
        self.arbiter.recycle()


@settings(max_examples=300, deadline=None)
@given(arrivals=two_lines(), framing=st.sampled_from(["mold", "iex-tops"]))
def test_what_either_line_carried_comes_once_and_in_order(arrivals: list[tuple[int, Packet]], framing: str) -> None:
    arbiter = Arbiter(framing, window=512, batch=BATCH)
    receiver = Receiver(arbiter, framing)
    carried: set[int] = set()
    for line, packet in arrivals:
        arbiter.offer(line, packet.encode(framing), 5, 0)
        carried.update(range(packet.first, packet.end))
        receiver.take()
    if not arrivals:
        return
    while arbiter.held:  # nothing more comes: what neither line had is lost
        arbiter.give_up(arbiter.holes()[0][0])
        receiver.take()
    start = arrivals[0][1].first
    wanted = sorted(number for number in carried if number >= start)
    assert receiver.got == wanted
    end = max(packet.end for _, packet in arrivals)
    assert receiver.lost == sorted(set(range(start, end)) - carried)
    assert arbiter.lost == len(receiver.lost)
    assert sum(arbiter.line(line)["won"] for line in (0, 1)) == len(wanted)
    assert arbiter.overflows == 0
    assert arbiter.free_slots == 512 + BATCH


@settings(max_examples=300, deadline=None)
@given(arrivals=two_lines(), window=st.integers(1, 6), step_ns=st.sampled_from([1, 30, 150]))
def test_whatever_is_waited_for_nothing_is_doubled_and_every_loss_is_told(
    arrivals: list[tuple[int, Packet]], window: int, step_ns: int
) -> None:
    arbiter = Arbiter("mold", window=window, batch=BATCH)
    recovery = Recovery(arbiter, HolePolicy(gap_wait_ns=WAIT_NS))
    receiver = Receiver(arbiter, "mold")
    now_ns = 1000
    for line, packet in arrivals:
        arbiter.offer(line, packet.encode("mold"), now_ns, now_ns)
        recovery.step(now_ns)
        receiver.take()
        assert arbiter.free_slots >= BATCH
        now_ns += step_ns
    for _ in range(len(arrivals)):
        requests, due_ns = recovery.step(now_ns)
        assert not requests
        receiver.take()
        now_ns = max(now_ns, due_ns or 0)
    assert arbiter.held == 0
    assert receiver.got == sorted(set(receiver.got))
    if arrivals:
        start, end = arrivals[0][1].first, max(packet.end for _, packet in arrivals)
        assert sorted(receiver.got + receiver.lost) == list(range(start, end))
    assert arbiter.lost == len(receiver.lost)
    assert arbiter.free_slots == window + BATCH


@settings(max_examples=200, deadline=None)
@given(arrivals=two_lines())
def test_a_hole_that_is_filled_in_time_is_no_loss(arrivals: list[tuple[int, Packet]]) -> None:
    """The slow model: what comes within the wait after the hole was noticed can't be lost."""
    arbiter = Arbiter("mold", window=512, batch=BATCH)
    recovery = Recovery(arbiter, HolePolicy(gap_wait_ns=WAIT_NS))
    receiver = Receiver(arbiter, "mold")
    came: dict[int, int] = {}  # message -> when it came first
    noticed: dict[int, int] = {}  # message -> when a later one had come
    newest = 0
    for index, (line, packet) in enumerate(arrivals):
        now_ns = 1000 + 17 * index
        recovery.step(now_ns)  # as the source does: time passes, then packets come
        receiver.take()
        arbiter.offer(line, packet.encode("mold"), now_ns, now_ns)
        receiver.take()
        for number in range(packet.first, packet.end):
            came.setdefault(number, now_ns)
        for number in range(newest or packet.first, packet.first):
            noticed.setdefault(number, now_ns)
        newest = max(newest, packet.end)
    in_time = {number for number, at in came.items() if at < noticed.get(number, at) + WAIT_NS}
    if arrivals:
        lost = set(receiver.lost)
        assert not lost & {number for number in in_time if number >= arrivals[0][1].first}


@settings(max_examples=300, deadline=None)
@given(
    packets=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                lambda first, cut: mold(first, [b"abcdefgh"] * 2)[:cut], st.integers(0, 2**64 - 1), st.integers(0, 40)
            ),
        ),
        max_size=20,
    )
)
def test_a_stray_datagram_moves_no_numbers(packets: list[bytes]) -> None:
    arbiter = Arbiter("mold", window=16, batch=BATCH)
    receiver = Receiver(arbiter, "mold")
    arbiter.offer(0, mold(10, [struct.pack(">Q", 10)]), 1, 1)
    receiver.take()
    for packet in packets:
        if packet[:10] == b"TESTING001" and len(packet) in {20, 40}:
            continue  # a good one
        arbiter.offer(1, packet, 1, 1)
        assert not arbiter.holes()
        assert not len(arbiter.frames)
    arbiter.offer(0, mold(11, [struct.pack(">Q", 11)]), 1, 1)
    receiver.take()
    assert receiver.got == [10, 11]
