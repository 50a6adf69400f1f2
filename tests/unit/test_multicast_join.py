"""Joining a session late, from its first message on: over sockets with a re-request server, and against a model."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import Flag, RecordType, StatusCode, concatenate, empty
from tests.multicast import SESSION, RerequestServer, mold
from tests.ports import free_port
from tests.unit.test_multicast_source import Stage, add
from workers._arbitration import MAX_LINES, Arbiter
from workers.arbitration import HolePolicy, Recovery
from workers.decoders._itch import ItchDecoder
from workers.errors import SettingsError
from workers.sources.multicast_join import Join

WINDOW, BATCH = 6, 4


def execute(reference: int, match: int) -> bytes:
    """100 shares of an order are traded."""
    return struct.pack(">cHH6sQIQ", b"E", 1, 0, bytes(6), reference, 100, match)


def gaps_of(records: np.ndarray) -> list[tuple[int, int]]:
    rows = records[(records["record_type"] == RecordType.STATUS) & (records["code"] == StatusCode.GAP)]
    return [(int(row["from_sequence"]), int(row["to_sequence"])) for row in rows]


def late(records: np.ndarray) -> list[bool]:
    return [bool(flags & Flag.BACKFILLED) for flags in records["flags"]]


def joined(server: RerequestServer | None = None, **options: Any) -> Stage:
    address = server.address if server is not None else f"127.0.0.1:{free_port()}"
    return Stage(join="start", rerequest=address, rerequest_timeout_ms=20, rerequest_per_s=1e4, **options)


# ---- over sockets -------------------------------------------------------------------------------------------------


@pytest.mark.bare_kernel
@pytest.mark.parametrize("window", [3, 4096])
def test_what_was_before_the_first_packet_comes_first_and_books_are_whole(window: int) -> None:
    messages = [*[add(number) for number in range(1, 301)], *[execute(number, number) for number in range(1, 301)]]
    server = RerequestServer(messages, per_packet=9)
    with closing(joined(server, book=True, window=window)) as stage:
        for first in range(401, 601, 2):
            stage.send(mold(first, messages[first - 1 : first + 1]))

        def all_traded() -> bool:
            stage.send(mold(601, []))  # a heartbeat: says what should have come by now
            found = concatenate(stage.found) if stage.found else empty(0)
            return int(np.sum(found["record_type"] == RecordType.TRADE)) == 300

        records = stage.poll(all_traded)
        levels = records[records["record_type"] == RecordType.LEVEL2]
        assert levels["source_sequence"].tolist() == [*range(1, 301), *range(1, 301)]
        trades = records[records["record_type"] == RecordType.TRADE]
        assert trades["trade_id"].tolist() == list(range(1, 301))
        assert (gaps_of(records), stage.source.gaps, stage.source.errors) == ([], 0, 0)
        assert not any(records["flags"] & Flag.INCOMPLETE)
        assert all(late(levels[:400]))
        if window > 100:
            assert not any(late(levels[400:]))  # came live, and waited
            assert not stage.source._arbiter.put_off
        else:
            assert stage.source._arbiter.put_off > 0
        assert stage.source._arbiter.joining == stage.source._arbiter.lost == 0
    server.stop()


@pytest.mark.bare_kernel
def test_what_nobody_sends_again_is_a_gap_with_its_numbers() -> None:
    with closing(joined(rerequest_retries=1)) as stage:
        stage.send(mold(501, [add(501), add(502)]))
        records = stage.poll(lambda: sum(map(len, stage.found)) >= 3)
        assert gaps_of(records) == [(1, 501)]
        assert records["source_sequence"].tolist()[1:] == [501, 502]
        assert records["flags"][1] & Flag.GAP_BEFORE
        assert not any(late(records))
        assert (stage.source.gaps, stage.source._arbiter.lost) == (1, 500)
        assert stage.source._recovery.unanswered == 1


@pytest.mark.bare_kernel
def test_a_session_that_is_heard_from_its_start_needs_nothing() -> None:
    with closing(joined()) as stage:
        for first in range(1, 11):
            stage.send(mold(first, [add(first)]))
        records = stage.poll(lambda: sum(map(len, stage.found)) >= 10)
        assert records["source_sequence"].tolist() == list(range(1, 11))
        assert (stage.source._recovery.requests, stage.source._arbiter.joins) == (0, 0)
        assert not any(late(records))


@pytest.mark.bare_kernel
def test_joining_from_the_start_needs_a_server() -> None:
    with pytest.raises(SettingsError, match=r"options.join is \"start\": needs options.rerequest"):
        Stage(join="start")
    with pytest.raises(SettingsError, match="join"):
        Stage(join="later")


# ---- against a model ----------------------------------------------------------------------------------------------


def cut(draw: st.DrawFn, first: int, end: int) -> list[tuple[int, int]]:
    """Messages [first, end) as packets of up to four."""
    found = []
    while first < end:
        until = min(end, first + draw(st.integers(1, 4)))
        found.append((first, until))
        first = until
    return found


@st.composite
def sessions(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[bool], int, list[int]]:
    """Where the session is met, its live packets, which of them are lost, what was published, how long answers are."""
    met, count = draw(st.integers(1, 40)), draw(st.integers(1, 30))
    packets = cut(draw, met, met + count)
    lost = [draw(st.integers(0, 9)) == 0 for _ in packets[1:]]
    published = draw(st.sampled_from([0, 1, met // 2, met, met + count // 2, met + count]))
    return met, packets, [False, *lost], published, draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))


@given(plan=sessions())
@settings(max_examples=200, deadline=None)
def test_every_message_comes_once_in_order_and_what_was_published_does_not(
    plan: tuple[int, list[tuple[int, int]], list[bool], int, list[int]],
) -> None:
    met, packets, lost, published, lengths = plan
    last = packets[-1][1]
    arbiter = Arbiter("mold", window=WINDOW, batch=BATCH, slot_bytes=512, from_start=True)
    recovery = Recovery(arbiter, HolePolicy(gap_wait_ns=0, ask=True, timeout_ns=1000, retries=3, per_second=1e9))
    decoder = ItchDecoder(lambda _: 0)
    join = Join(SESSION.ljust(16, b"\0"), published)
    out, found = empty(7), [empty(0)]
    answered = 0
    live = [mold(first, [add(n) for n in range(first, end)]) for first, end in packets]
    waiting = [packet for packet, gone in zip(live, lost, strict=True) if not gone] + [mold(last, [])] * 200

    def take(needed: bool) -> None:
        assert arbiter.held <= WINDOW
        runs = join.runs(arbiter) if needed or join.is_needed(arbiter) else None
        if runs is None:
            decoder.feed(arbiter, arbiter.frames)
            while count := decoder.decode(out):
                found.append(concatenate([out[:count]]))
        else:
            for run in list(runs):
                join.begin(run)
                decoder.feed(run.buffer, run.frames)
                while count := decoder.decode(out):
                    found.append(concatenate([out[: join.keep(out[:count])]]))
        arbiter.recycle()

    for now, packet in enumerate(waiting, 1):
        needed = join.is_needed(arbiter)
        arbiter.offer(0, packet, now, now)
        take(needed)
        while requests := recovery.step(now)[0]:
            for request in requests:
                end = min(request.first + lengths[answered % len(lengths)], request.first + request.messages)
                answered += 1
                needed = join.is_needed(arbiter)
                answer = mold(request.first, [add(n) for n in range(request.first, end)])
                arbiter.offer(MAX_LINES, answer, now, now)
                take(needed)
            if arbiter.joining:  # live packets go on coming meanwhile, more than the window takes
                break
    records = concatenate(found)
    assert records["source_sequence"].tolist() == list(range(max(1, published), last))
    assert set(records["record_type"]) <= {RecordType.LEVEL2}
    assert all(late(records[records["source_sequence"] < met]))
    assert (arbiter.joining, arbiter.lost, decoder.counters.gaps) == (0, 0, 0)


def test_the_place_to_go_on_from_never_falls_behind_what_was_published() -> None:
    join = Join(SESSION.ljust(16, b"\0"), 50)
    assert join.position(SESSION.ljust(16, b"\0"), 7) == 50
    assert join.position(SESSION.ljust(16, b"\0"), 70) == 70
    assert join.position(b"ANOTHERDAY".ljust(16, b"\0"), 7) == 7
    assert Join(b"", 0).position(SESSION, 7) == 7


@pytest.mark.parametrize(("published", "told"), [(0, (1, 50)), (20, (20, 50)), (50, None), (70, None)])
def test_a_gap_leaves_out_what_was_published(published: int, told: tuple[int, int] | None) -> None:
    arbiter = Arbiter("mold", from_start=True)
    decoder, join, out = ItchDecoder(lambda _: 0), Join(SESSION, published), empty(64)
    arbiter.offer(0, mold(50, [add(number) for number in range(50, 90)]), 1, 1)
    arbiter.give_up(0)
    found = [empty(0)]
    feed: Callable[..., None] = decoder.feed
    for run in list(join.runs(arbiter)):
        join.begin(run)
        feed(run.buffer, run.frames)
        while count := decoder.decode(out):
            found.append(concatenate([out[: join.keep(out[:count])]]))
    records = concatenate(found)
    assert gaps_of(records) == ([told] if told else [])
    market = records[records["record_type"] != RecordType.STATUS]
    assert market["source_sequence"].tolist() == list(range(max(50, published), 90))
