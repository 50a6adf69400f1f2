"""What `capture` writes of a FIX feed, replayed: the same records bit for bit, whatever the venue loses or repeats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, empty
from tests.feed_captures import (
    compressed_recording,  # noqa: F401 -- a fixture
    lines_of,
)
from tests.fix_capture import (
    Make,
    assert_replays_alike,
    captured_feeds,  # noqa: F401 -- a fixture
    lose,
    random_feed,
    texts,
    trade_ids,
)
from tests.fix_server import Act, FixServer, Out, captured, trades
from tests.unit.test_fix_source import text
from tests.unit.test_websocket_source import of
from workers.capture_log import Recording
from workers.decoders.capture import open_capture
from workers.resume import Newest


def test_books_quotes_and_trades_of_several_symbols(samples: Path, feeds: Make, recording: Recording) -> None:
    quote = captured(samples, "i")[1]
    mass = Out("i", [(tag, "2" if tag == 302 else value) for tag, value in quote.body])
    messages = [*captured(samples, "W")[3:5], *captured(samples, "X")[:3], mass, *trades("EUR/USD", 30)]
    symbols = ("BTC-PERPETUAL", "GBP/USD", "EUR/USD")
    with FixServer([Act(messages, subscriptions=3)]) as venue:
        feed = feeds(venue, symbols, ("trade", "quote", "level2"), rename={"GBP/USD": "GBPUSD"})
        feed.until(lambda: feed.ids[-1:] == [30] and venue.asked("b"), "every message")
        replay = assert_replays_alike(feed, recording)
    kinds = {RecordType.TRADE, RecordType.QUOTE, RecordType.LEVEL2}
    assert kinds <= set(replay["record_type"].tolist())
    assert feed.names["GBPUSD"] in replay["instrument_id"]
    with open_capture(recording.logs[0].paths[0], intern=feed.names.__getitem__) as capture:
        assert capture.format == "Venue FIX messages, jsonl capture (zstd)"


def test_messages_that_are_lost_come_again_in_their_place(feeds: Make, recording: Recording) -> None:
    with FixServer([Act(lose(trades("X", 60), 10, 11, 30, 59))]) as venue:
        venue.pause_after = 59
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 59, "all but the last")
        venue.acts[0] = Act()
        venue.go_on.set()
        feed.until(lambda: venue.next_out > 61, "the last one lost")
        with venue._lock:
            venue.send(venue._connections[0], trades("X", 1, 61)[0])
        feed.until(lambda: len(feed.ids) == 61, "every trade")
        replay = assert_replays_alike(feed, recording)
    late = of(replay, replay["flags"] & np.uint16(Flag.BACKFILLED) != 0)
    assert late["trade_id"].tolist() == [11, 12, 31, 60]


@pytest.mark.parametrize("act", [{"fills": True}, {"deaf": True}])
def test_a_gap_that_is_never_filled_is_told_where_and_when_it_was(
    feeds: Make, recording: Recording, act: dict[str, bool]
) -> None:
    with FixServer([Act(lose(trades("X", 20), 4, 9), **act)]) as venue:  # type: ignore[arg-type]
        feed = feeds(venue, ("X",), ("trade",), resend_s=0.05)
        feed.until(lambda: len(feed.ids) == 18, "the others")
        feed.until(lambda: len(venue.asked("V")) >= 3, "subscribed again")
        replay = assert_replays_alike(feed, recording)
    gaps = of(replay, replay["record_type"] == RecordType.STATUS)
    assert gaps[["from_sequence", "to_sequence"]].tolist() == [(6, 7), (11, 12)]
    with open_capture(recording.logs[0].paths[0], intern=feed.names.__getitem__) as capture:
        while capture.decode(empty(64)):
            pass
        counters = capture.counters
    assert (counters.gaps, counters.missing) == (2, 2)
    assert [(gap.first, gap.last) for gap in counters.gap_ranges] == [(6, 7), (11, 12)]


def test_garbage_is_in_the_capture_and_harms_as_little(feeds: Make, recording: Recording) -> None:
    messages: list[Out | bytes] = list(lose(trades("X", 40), 20))
    with FixServer([Act(messages)]) as venue:
        wire = venue.encode(trades("X", 1, 99)[0], 500)
        wrong_sum = wire[:-4] + bytes([48 + (wire[-4] - 47) % 10]) + wire[-3:]
        wrong_length = wire.replace(b"\x019=", b"\x019=9")
        noise = [b"\0\xff noise \x018=FIX", b"8=FIX.4.4\x019=x\x01"]
        for place, bad in enumerate([wrong_sum, wrong_length, wire[: len(wire) // 2], *noise]):
            messages.insert(5 * (place + 1), bad)
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 40, "every trade")
        assert_replays_alike(feed, recording)
    lines = lines_of(recording.logs[0].paths[0])
    assert any("b64" in line for line in lines)
    assert any(wrong_sum.decode() in line.get("data", "") for line in lines)


def test_possible_duplicates_resets_and_heartbeats(feeds: Make, recording: Recording) -> None:
    with FixServer([Act()]) as venue:
        again = [venue.encode(trades("X", 1, number)[0], 1 + number, again=True) for number in (3, 9)]
        hard = venue.encode(Out("4", [(36, "50")]), 1)
        backwards = venue.encode(Out("4", [(36, "3")]), 1)
        ahead = [venue.encode(one, seq) for seq, one in enumerate(trades("X", 2, 11), 50)]
        fill = venue.encode(Out("4", [(123, "Y"), (36, "60")]), 52)
        last = [venue.encode(one, seq) for seq, one in enumerate(trades("X", 2, 13), 60)]
        probe = venue.encode(Out("1", [(112, "there?")]), 62)
        back = venue.encode(Out("2", [(7, "1"), (16, "0")]), 63)
        venue.acts[0] = Act([*trades("X", 10), *again, hard, backwards, *ahead, fill, *last, probe, back])
        feed = feeds(venue, ("X",), ("trade",), heartbeat_s=1)
        feed.until(lambda: len(feed.ids) == 14, "every trade")
        feed.until(lambda: len(venue.asked("0")) >= 2, "the answer, and a heartbeat")
        replay = assert_replays_alike(feed, recording)
    assert trade_ids(replay) == list(range(1, 15))
    notes = [json.loads(line["data"])["what"] for line in lines_of(recording.logs[0].paths[0]) if line["t"] == "note"]
    assert notes[:2] == ["opened", "asked"]
    assert "tick" in notes


@pytest.mark.parametrize("end", ["logout", "close", "abort"])
def test_a_connection_that_is_lost_in_a_message_and_made_again(feeds: Make, recording: Recording, end: str) -> None:
    with FixServer([Act()]) as venue:
        half = venue.encode(trades("X", 1, 51)[0], 52)[:60]
        first = [*lose(trades("X", 51), 50), half] if end != "logout" else trades("X", 50)
        venue.acts = [Act(first, end=end), Act(end=end), Act(trades("X", 50, 52 if end != "logout" else 51))]
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: feed.ids[-1:] == [101 if end != "logout" else 100], "all of the connections")
        replay = assert_replays_alike(feed, recording)
    assert sum(said.startswith(b"connected again after ") for said in texts(replay)) == 2
    lines = lines_of(recording.logs[0].paths[0])
    assert [line.get("again", False) for line in lines if line["t"] == "connect"] == [False, True, True]
    assert lines[1]["url"] == f"tcp://127.0.0.1:{venue.port}"


def test_numbers_that_begin_anew(feeds: Make, recording: Recording) -> None:
    with FixServer([Act(trades("X", 5), end="close"), Act(trades("X", 5, 6))]) as venue:
        feed = feeds(venue, ("X",), ("trade",), reset_seq_num=True)
        feed.until(lambda: len(feed.ids) == 10, "both connections")
        replay = assert_replays_alike(feed, recording)
    market = of(replay, replay["record_type"] == RecordType.TRADE)
    assert market["source_sequence"].tolist() == [*range(2, 7), *range(2, 7)]


def test_what_stands_behind_the_end_of_a_session_is_not_had(feeds: Make, recording: Recording) -> None:
    """In one piece: the refusal of all symbols, or a number too low, and messages that nobody worked off."""
    with FixServer([Act()]) as venue:
        low = venue.encode(trades("X", 1, 9)[0], 2)
        behind = b"".join(venue.encode(one, seq) for seq, one in enumerate(trades("X", 3, 6), 7))
        venue.acts[0] = Act([*trades("X", 5), low + behind])
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: feed.source.report.state == "failed", "the end")
        replay = assert_replays_alike(feed, recording)
    assert trade_ids(replay) == [1, 2, 3, 4, 5]


def test_a_refusal_of_all_symbols_ends_the_session_at_its_place(feeds: Make, recording: Recording) -> None:
    """Told by MsgSeqNum of the request, which the heartbeats before it have moved on."""
    with FixServer([Act(trades("X", 3))]) as venue:
        feed = feeds(venue, ("X",), ("trade",), heartbeat_s=1)
        feed.until(lambda: len(feed.ids) == 3 and len(venue.asked("0")) >= 2, "a quiet line")
        number = text(venue.asked("V")[0], 34)
        refusal = venue.encode(Out("3", [(45, number), (58, "no more")]), venue.next_out)
        behind = b"".join(venue.encode(one, seq) for seq, one in enumerate(trades("X", 3, 4), venue.next_out + 1))
        venue._connections[0].sendall(refusal + behind)
        feed.until(lambda: feed.source.report.state == "failed", "the end")
        replay = assert_replays_alike(feed, recording)
    assert trade_ids(replay) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(6))
def test_a_venue_that_does_all_of_it_at_random(feeds: Make, recording: Recording, seed: int) -> None:
    assert_replays_alike(random_feed(feeds, seed), recording)


def test_what_a_killed_worker_had_published_is_left_out(feeds: Make, recording: Recording, tmp_path: Path) -> None:
    entries = [(tag, value) for one in trades("X", 4) for tag, value in one.body[1:]]
    four = Out("X", [(268, "4"), *entries])
    with FixServer([Act([four]), Act(trades("X", 3, 5))]) as venue:
        first = feeds(venue, ("X",), ("trade",), folder=tmp_path, log_of=None)
        first.until(lambda: len(first.ids) == 4, "all four")
        first.source._numbers.close()  # as a kill does: nothing is settled, nothing is said
        first.source._numbers.path = None
        newest = Newest(2, 3, False)
        second = feeds(venue, ("X",), ("trade",), folder=tmp_path, names=first.names, newest=lambda *_: newest)
        second.until(lambda: len(second.ids) == 4, "what was left of it, and the next")
        assert second.ids == [4, 5, 6, 7]
        assert_replays_alike(second, recording)
