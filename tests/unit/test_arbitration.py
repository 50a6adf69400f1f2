"""Line arbitration: what is kept, dropped, held, given up and asked for again; and that decoders see exact gaps."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from shm.errors import BadArgument
from shm.layout import RECORD, Flag, RecordType, StatusCode, empty
from tests.multicast import end_of_session, iex, mold
from workers._arbitration import MAX_LINES, Arbiter
from workers.arbitration import HolePolicy, Recovery, Request
from workers.decoders._itch import ItchDecoder

A, B = 0, 1
MS = 1_000_000


def add(reference: int, *, side: bytes = b"B", shares: int = 100, price: int = 10_000) -> bytes:
    """An ITCH order of stock X, locate 1."""
    return struct.pack(">cHH6sQcI8sI", b"A", 1, 0, bytes(6), reference, side, shares, b"X       ", price)


def numbers(arbiter: Arbiter) -> list[int]:
    """First numbers of the packets that are handed on; recycles them."""
    buffer = memoryview(arbiter)
    found = [int.from_bytes(buffer[int(f["offset"]) + 10 : int(f["offset"]) + 18], "big") for f in arbiter.frames]
    arbiter.recycle()
    return found


def decode(arbiter: Arbiter, decoder: ItchDecoder) -> np.ndarray:
    out = empty(64)
    decoder.feed(arbiter, arbiter.frames)
    count = decoder.decode(out)
    assert decoder.decode(out[count:]) == 0
    arbiter.recycle()
    return out[:count].copy()


def test_the_first_copy_wins_and_the_second_is_counted_for_its_line() -> None:
    arbiter = Arbiter("mold")
    arbiter.offer(A, mold(1, [b"x", b"x"]), 1, 1)
    arbiter.offer(B, mold(1, [b"x", b"x"]), 1, 1)
    arbiter.offer(B, mold(3, [b"x"]), 7, 1)
    arbiter.offer(A, mold(3, [b"x"]), 9, 1)
    assert numbers(arbiter) == [1, 3]
    line_a, line_b = arbiter.line(A), arbiter.line(B)
    assert (line_a["won"], line_a["duplicates"], line_a["last_ns"]) == (2, 1, 9)
    assert (line_b["won"], line_b["duplicates"], line_b["last_ns"]) == (1, 1, 7)


def test_the_other_line_fills_a_hole() -> None:
    arbiter = Arbiter("mold")
    for first in (1, 3, 4):
        arbiter.offer(A, mold(first, [b"x"]), 1, 1)
    assert numbers(arbiter) == [1]
    assert arbiter.held == 2
    arbiter.offer(B, mold(2, [b"x"]), 1, 1)
    assert numbers(arbiter) == [2, 3, 4]
    assert arbiter.line(A)["missing"] == 1
    assert arbiter.lost == 0


def test_what_was_overtaken_is_no_longer_missing_on_its_line() -> None:
    arbiter = Arbiter("mold")
    for first in (1, 3, 2):
        arbiter.offer(A, mold(first, [b"x"]), 1, 1)
    assert numbers(arbiter) == [1, 2, 3]
    assert arbiter.line(A)["missing"] == 0


def test_an_end_of_session_reveals_what_is_missing_at_the_tail() -> None:
    arbiter = Arbiter("mold")
    arbiter.offer(A, mold(1, [b"x"]), 1, 1)
    arbiter.offer(A, end_of_session(3), 1, 5)
    arbiter.offer(B, end_of_session(3), 1, 6)
    assert numbers(arbiter) == [1]
    assert arbiter.holes() == [(0, b"TESTING001" + bytes(6), 2, 3, 5)]
    assert arbiter.sessions_over == 1
    arbiter.offer(B, mold(2, [b"x"]), 1, 1)
    assert numbers(arbiter) == [2]
    assert arbiter.held == 0


def test_a_new_session_counts_anew_and_the_old_one_is_brought_to_its_end() -> None:
    arbiter = Arbiter("mold")
    arbiter.offer(A, mold(1, [b"x"]), 1, 1)
    arbiter.offer(A, mold(3, [b"x"]), 1, 1)
    arbiter.offer(A, mold(1, [b"x"], b"TESTING002"), 1, 1)
    arbiter.offer(B, mold(2, [b"x"]), 1, 1)
    assert numbers(arbiter) == [1, 1, 2, 3]
    assert arbiter.position() == (b"TESTING001" + bytes(6), 4)


def test_sessions_beyond_room_take_the_place_of_the_oldest_without_leaking() -> None:
    arbiter = Arbiter("mold", window=8, batch=40)
    for number in range(20):
        arbiter.offer(A, mold(1, [b"x"], b"SESSION%03d" % number), 1, 1)
        arbiter.offer(A, mold(3, [b"x"], b"SESSION%03d" % number), 1, 1)
        arbiter.recycle()
    assert arbiter.held + arbiter.free_slots == 48


def test_a_full_window_gives_up_the_oldest_hole() -> None:
    arbiter = Arbiter("mold", window=2)
    for first in (1, 3, 5, 7):
        arbiter.offer(A, mold(first, [b"x"]), 1, 1)
    assert numbers(arbiter) == [1, 3]
    assert (arbiter.held, arbiter.overflows, arbiter.lost) == (2, 1, 1)
    arbiter.offer(B, mold(2, [b"x"]), 1, 1)
    assert (arbiter.line(B)["duplicates"], arbiter.line(B)["late"]) == (1, 1)


def test_other_protocols_and_cut_packets_are_refused() -> None:
    arbiter = Arbiter("iex-tops")
    good = iex(1, [b"abc"])
    for bad in (b"", good[:39], good[:-1], iex(1, [b"abc"], protocol=0x8004), mold(1, [b"x"]), b"\2" + good[1:]):
        arbiter.offer(A, bad, 1, 1)
    assert (arbiter.refused, len(arbiter.frames)) == (6, 0)
    arbiter.offer(A, good, 1, 1)
    assert len(arbiter.frames) == 1


def test_a_damaged_copy_does_not_beat_a_good_one() -> None:
    arbiter = Arbiter("mold")
    good = mold(1, [b"abc", b"def"])
    arbiter.offer(A, good[:20] + b"\0\x04" + good[22:], 1, 1)
    arbiter.offer(B, good, 1, 1)
    assert arbiter.line(B)["won"] == 2
    assert arbiter.line(A)["refused"] == 1


def test_after_a_rebase_the_next_packet_is_taken_wherever_it_begins() -> None:
    arbiter = Arbiter("mold")
    arbiter.offer(A, mold(1, [b"x"]), 1, 1)
    arbiter.offer(A, mold(4, [b"x"]), 1, 1)
    arbiter.rebase()
    arbiter.offer(A, mold(9, [b"x"]), 1, 1)
    assert numbers(arbiter) == [1, 4, 9]
    assert arbiter.lost == 2 + 4


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(BadArgument, match="framing 'fix'"):
        Arbiter("fix")
    with pytest.raises(BadArgument, match="too small"):
        Arbiter("mold", window=0)
    arbiter = Arbiter("mold", window=1, batch=1, slot_bytes=64)
    with pytest.raises(BadArgument, match="65 bytes"):
        arbiter.offer(A, bytes(65), 1, 1)
    with pytest.raises(BadArgument, match="line 9"):
        arbiter.offer(MAX_LINES + 1, b"", 1, 1)
    arbiter.offer(A, mold(1, [b"x"]), 1, 1)
    arbiter.offer(A, mold(2, [b"x"]), 1, 1)
    with pytest.raises(BadArgument, match="recycle"):
        arbiter.offer(A, mold(3, [b"x"]), 1, 1)


def test_the_decoder_tells_the_exact_gap() -> None:
    arbiter, decoder = Arbiter("mold"), ItchDecoder(lambda _: 5, session_date=None)
    recovery = Recovery(arbiter, HolePolicy(gap_wait_ns=10 * MS))
    arbiter.offer(A, mold(1, [add(1)]), 1, 0)
    arbiter.offer(A, mold(5, [add(5)]), 2, 0)
    assert recovery.step(9 * MS) == ([], 10 * MS)
    assert list(decode(arbiter, decoder)["source_sequence"]) == [1]
    recovery.step(10 * MS)
    gap, after = decode(arbiter, decoder)
    assert (gap["record_type"], gap["code"]) == (RecordType.STATUS, StatusCode.GAP)
    assert (gap["from_sequence"], gap["to_sequence"]) == (2, 5)
    assert (after["source_sequence"], bool(after["flags"] & Flag.GAP_BEFORE)) == (5, True)
    assert decoder.gaps == 1


def test_a_gap_at_the_tail_is_told_when_the_end_of_session_is_given_up() -> None:
    arbiter, decoder = Arbiter("mold"), ItchDecoder(lambda _: 5)
    recovery = Recovery(arbiter, HolePolicy(gap_wait_ns=0))
    arbiter.offer(A, mold(1, [add(1)]), 1, 0)
    arbiter.offer(A, end_of_session(4), 1, 0)
    recovery.step(1)
    records = decode(arbiter, decoder)
    assert [int(r["record_type"]) for r in records] == [RecordType.LEVEL2, RecordType.STATUS]
    assert (records[1]["from_sequence"], records[1]["to_sequence"]) == (2, 4)


class Clockwork:
    """A hole [2, 10) with a policy, stepped by hand."""

    def __init__(self, **policy: Any) -> None:
        self.arbiter = Arbiter("mold")
        self.recovery = Recovery(self.arbiter, HolePolicy(**{"gap_wait_ns": 10 * MS, "ask": True, **policy}))
        self.arbiter.offer(A, mold(1, [b"x"]), 1, 0)
        self.arbiter.offer(A, mold(10, [b"x"]), 1, 0)

    def asked(self, now_ns: int) -> list[tuple[int, int]]:
        return [(request.first, request.messages) for request in self.recovery.step(now_ns)[0]]


def test_a_request_says_what_is_missing_in_the_servers_words() -> None:
    request = Request(b"TESTING001" + bytes(6), 258, 3)
    assert request.encode() == b"TESTING001" + b"\0\0\0\0\0\0\1\2" + b"\0\3"


def test_a_hole_is_asked_for_after_the_wait_and_again_until_retries_are_used_up() -> None:
    clock = Clockwork(timeout_ns=20 * MS, retries=1)
    assert clock.asked(9 * MS) == []
    assert clock.asked(10 * MS) == [(2, 8)]
    assert clock.asked(29 * MS) == []
    assert clock.asked(30 * MS) == [(2, 8)]
    assert clock.recovery.step(49 * MS) == ([], 50 * MS)
    assert numbers(clock.arbiter) == [1]
    assert clock.asked(50 * MS) == []
    assert numbers(clock.arbiter) == [10]
    assert (clock.recovery.requests, clock.recovery.unanswered, clock.arbiter.lost) == (2, 1, 8)


def test_a_partial_answer_is_followed_by_a_request_for_the_rest_at_once() -> None:
    clock = Clockwork()
    assert clock.asked(10 * MS) == [(2, 8)]
    clock.arbiter.offer(MAX_LINES, mold(2, [b"x"] * 3), 1, 11 * MS)
    assert clock.asked(11 * MS) == [(5, 5)]
    clock.arbiter.offer(MAX_LINES, mold(5, [b"x"] * 5), 1, 12 * MS)
    assert clock.recovery.step(12 * MS) == ([], None)
    assert numbers(clock.arbiter) == [1, 2, 5, 10]
    assert clock.arbiter.line(MAX_LINES)["won"] == 8
    assert clock.arbiter.lost == 0


def test_requests_are_limited_in_rate() -> None:
    clock = Clockwork(timeout_ns=MS, retries=100, per_second=2.0)
    asked = [now_ms for now_ms in range(0, 3000, 10) if clock.asked(now_ms * MS)]
    assert asked[:2] == [10, 20]
    assert len(asked) == pytest.approx(2 + 2 * 3, abs=1)


def test_a_hole_is_not_asked_for_more_than_a_request_can_say() -> None:
    arbiter = Arbiter("mold")
    recovery = Recovery(arbiter, HolePolicy(gap_wait_ns=0, ask=True))
    arbiter.offer(A, mold(1, [b"x"]), 1, 0)
    arbiter.offer(A, mold(1_000_000, [b"x"]), 1, 0)
    ((_, first, messages),) = recovery.step(0)[0]
    assert (first, messages) == (2, 0xFFFE)


@pytest.mark.parametrize("policy", [{"gap_wait_ns": -1}, {"timeout_ns": 0}, {"retries": -1}, {"per_second": 0.0}])
def test_impossible_policies_are_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        HolePolicy(**policy)


def test_frames_have_the_layout_that_decoders_take() -> None:
    arbiter = Arbiter("mold")
    arbiter.offer(A, mold(1, [add(1)]), 1234, 1)
    (frame,) = arbiter.frames
    assert (frame["size"], frame["ts_receive"]) == (20 + 2 + 36, 1234)
    assert memoryview(arbiter).readonly
    assert decode(arbiter, ItchDecoder(lambda _: 1)).dtype == RECORD
