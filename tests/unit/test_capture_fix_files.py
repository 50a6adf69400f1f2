"""Files of captured FIX feeds: parts, holes, missing beginnings, faults on purpose, no secrets, what can't be read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shm.layout import Flag, RecordType, StatusCode, concatenate, empty
from tests.feed_captures import (
    compressed_recording,  # noqa: F401 -- a fixture
    lines_of,
)
from tests.fix_capture import (
    Make,
    assert_replays_alike,
    assert_same,
    captured_feeds,  # noqa: F401 -- a fixture
    lose,
    random_feed,
    replayed,
    texts,
    trade_ids,
)
from tests.fix_server import Act, FixServer, Out, captured, trades
from tests.unit.test_fix_source import Feed, text
from tests.unit.test_websocket_source import of
from workers.capture_log import CaptureLog, Recording
from workers.decoders.capture import open_capture
from workers.decoders.protocol import UnknownFormatError
from workers.spec import CaptureSettings, FeedSpec


def logged(
    folder: Path, feed_of: Callable[[Callable[[FeedSpec], CaptureLog]], Feed], **more: int
) -> tuple[Feed, CaptureLog]:
    """A log without a thread: the test writes."""
    made: list[CaptureLog] = []
    settings = CaptureSettings(**{"folder": str(folder), "compress": "none", "part_bytes": 4096, **more})

    def log_of(spec: FeedSpec) -> CaptureLog:
        made.append(CaptureLog(spec, settings, lambda: None))
        return made[0]

    return feed_of(log_of), made[0]


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Path:
    """Another capture, of lines of this one."""
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    made = path.with_name(f"other-{path.name}")
    made.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return made


@pytest.mark.parametrize("seed", range(10, 12))
def test_no_hole_costs_more_than_what_was_in_it(feeds: Make, recording: Recording, seed: int) -> None:
    """Notes are written all the same (tests/unit/test_capture_notes.py): with them, nothing comes twice, either."""
    feed = random_feed(feeds, seed)
    recording.close()
    whole, dice = set(feed.ids), random.Random(seed)
    path = recording.logs[0].paths[0]
    plain = path.with_name("plain.jsonl")
    lines = [msgspec.json.encode(line) + b"\n" for line in lines_of(path)]
    for _ in range(40):
        first = dice.randrange(1, len(lines))
        hole = lines[first : first + dice.randrange(1, 40)]
        dropped = b'{"t":"dropped","ns":5,"messages":3}\n'
        kept = [line + dropped for line in hole if b'"t":"note"' in line]
        plain.write_bytes(b"".join((*lines[:first], dropped, *kept, *lines[first + len(hole) :])))
        ids = trade_ids(replayed([plain], feed.names))
        assert len(ids) == len(set(ids)), (first, len(hole))
        assert len(whole - set(ids)) <= sum(b'"t":"recv"' in line for line in hole), (first, len(hole))


def test_each_part_can_be_replayed_and_all_of_them_are_one_capture(samples: Path, tmp_path: Path) -> None:
    """Mass quotes say by the number of a request whose they are: a part knows what was asked for before it."""
    quote = captured(samples, "i")[1]
    with FixServer([Act(subscriptions=2)]) as venue:
        feed, log = logged(tmp_path, lambda log_of: Feed(venue, ("A", "B"), ("trade", "quote"), log_of=log_of))
        feed.until(lambda: len(venue.asked("V")) == 2, "the requests")
        for number in range(1, 41):
            mass = [(tag, {302: "2", 188: f"1.{number:02d}"}.get(tag, value)) for tag, value in quote.body]
            for one in (*lose(trades("A", 3, 3 * number - 2), *([1] if number == 20 else [])), Out("i", mass)):
                venue.send(venue._connections[0], one)
            feed.until(lambda number=number: len(feed.market) == 4 * number, "all so far")  # type: ignore[misc]
            log.write_some(number)
        feed.source.close()
        log.write_some(50)
        log.close(50)
    replay = replayed(log.paths, feed.names)
    assert_same(feed.records, replay)
    assert len(log.paths) > 3
    second = [json.loads(line) for line in log.paths[1].read_text().splitlines()]
    assert [line["t"] for line in second[:3]] == ["header", "connect", "note"]
    assert all(line["kept"] for line in second[1:3])
    alone = [replayed([path], feed.names) for path in log.paths]
    assert_same(feed.records, concatenate([empty(0), *alone]))


def test_a_part_that_begins_in_a_gap_waits_for_what_is_sent_again(tmp_path: Path) -> None:
    """The feed waits for message 6 and holds 7 to 9 when the part ends: the next one has 6, and 10 and so on."""
    with FixServer([Act(lose(trades("X", 8), 4), deaf=True)]) as venue:
        feed, log = logged(tmp_path, lambda log_of: Feed(venue, ("X",), ("trade",), log_of=log_of))
        feed.until(lambda: venue.asked("2"), "the gap")
        feed.until(lambda: feed.source._fix.held == 3, "what waits behind it")
        log.write_some(1)
        log._parts["jsonl"]._finish()
        wire = venue._connections[0]
        for seq, one in ((10, trades("X", 1, 9)[0]), (6, trades("X", 1, 5)[0])):
            wire.sendall(venue.encode(one, seq, again=seq == 6))
        feed.until(lambda: len(feed.ids) == 9, "all of it")
        wire.sendall(venue.encode(trades("X", 1, 10)[0], 11))
        feed.until(lambda: len(feed.ids) == 10, "the next one")
        feed.source.close()
        log.write_some(2)
        log.close(2)
    first, second = log.paths
    assert_same(feed.records, replayed([first, second], feed.names))
    alone = replayed([second], feed.names)
    assert trade_ids(alone) == [5, 9, 10]
    assert texts(alone) == [b"not in the capture"]
    gap = of(alone, alone["record_type"] == RecordType.STATUS)
    assert gap[["from_sequence", "to_sequence"]].tolist() == [(7, 10)]


@pytest.mark.parametrize("reset", [False, True])
def test_what_the_recorder_had_no_room_for_is_told_and_the_rest_is_had(tmp_path: Path, reset: bool) -> None:
    """In the hole are messages, or a whole connection and the beginning of another, whose numbers began anew."""
    acts = [Act(trades("X", 400), end="close"), Act(trades("X", 50, 401))] if reset else [Act(trades("X", 450))]
    with FixServer(acts) as venue:
        venue.pause_after = 50 if reset else 450
        more = {"queue_bytes": 1 << 16, "part_bytes": 1 << 20}
        feed, log = logged(
            tmp_path, lambda log_of: Feed(venue, ("X",), ("trade",), reset_seq_num=reset, log_of=log_of), **more
        )
        feed.until(lambda: feed.ids[-1:] == [50 if reset else 450], "trades")
        if reset:
            venue.go_on.set()
            feed.until(lambda: feed.ids[-1:] == [450], "those of both connections")
        written = log._queue.waiting_bytes
        assert log.dropped > 100
        log.write_some(1)
        assert written > 60_000
        for one in trades("X", 20, 451):
            venue.send(venue._connections[-1], one)
        feed.until(lambda: feed.ids[-1:] == [470], "the last ones")
        feed.source.close()
        log.write_some(2)
        log.close(2)
    replay = replayed(log.paths, feed.names)
    ids = trade_ids(replay)
    kept = ids.index(451)
    assert 50 < kept < 300
    assert ids == [*range(1, kept + 1), *range(451, 471)]
    *said, gap = texts(replay)
    dropped = [text for text in said if text.endswith(b" messages not captured")]
    assert sum(int(text.split()[0]) for text in dropped) == log.dropped
    assert gap == b"not in the capture"
    told = of(replay, replay["to_sequence"] * (replay["record_type"] == RecordType.STATUS) > 0)
    first = 2 if reset else 2 + kept  # what the new connection had begun with is not there
    assert told[["from_sequence", "to_sequence"]].tolist() == [(first, 52 if reset else 452)]
    assert of(replay, replay["trade_id"] == 451)["flags"][0] & Flag.GAP_BEFORE


def test_a_hole_in_which_a_gap_was_closed_ends_with_the_connection_at_the_latest(
    feeds: Make, recording: Recording
) -> None:
    with FixServer([Act(lose(trades("X", 20), 4), end="hold")]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 20, "every trade")
        feed.source.close()
        recording.close()

    def dropped(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        again = next(at for at, line in enumerate(lines) if "\x0143=Y\x01" in line.get("data", ""))
        noted = max(at for at, line in enumerate(lines[:again]) if line["t"] == "note")
        closed = next(at for at, line in enumerate(lines) if '"closed"' in line.get("data", ""))
        hole = {"t": "dropped", "ns": lines[again]["ns"], "messages": 1, "bytes": 9}
        between = [line for line in lines[again + 1 : closed] if line["t"] == "recv"]
        return [*lines[:again], hole, {**lines[noted], "kept": True}, *between, *lines[closed:]]

    path = recording.logs[0].paths[0]
    plain = path.with_name("plain.jsonl")
    plain.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines_of(path)))
    replay = replayed([rewritten(plain, dropped)], feed.names)
    assert trade_ids(replay) == [*range(1, 5), *range(6, 21)]
    assert texts(replay) == [b"1 messages not captured", b"not in the capture"]
    told = of(replay, replay["record_type"] == RecordType.STATUS)
    assert told[["from_sequence", "to_sequence"]].tolist() == [(0, 0), (6, 7)]


@pytest.mark.parametrize("missing", [("connect",), ("note",), ("connect", "note"), ("connect", "note", "logon")])
def test_a_beginning_that_is_missing_costs_nothing_but_itself(
    feeds: Make, recording: Recording, missing: tuple[str, ...]
) -> None:
    with FixServer([Act(trades("X", 20), end="close"), Act(trades("X", 20, 21))]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 40, "every trade")
        feed.source.close()
        recording.close()
    path = recording.logs[0].paths[0]
    plain = path.with_name("plain.jsonl")
    plain.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines_of(path)))

    def torn(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        logon = "\x0135=A\x01"
        return [
            line
            for line in lines
            if line["t"] not in missing and not ("logon" in missing and logon in line.get("data", ""))
        ]

    assert trade_ids(replayed([rewritten(plain, torn)], feed.names)) == list(range(1, 41))


@pytest.mark.parametrize("fault", ["drop", "duplicate", "reorder", "corrupt", "delay"])
def test_faults_on_purpose_are_done_to_messages_and_told(feeds: Make, recording: Recording, fault: str) -> None:
    with FixServer([Act(trades("X", 400))]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 400, "every trade")
        feed.source.close()
        recording.close()
    whole = replayed(recording.logs[0].paths, feed.names)
    replay = replayed(recording.logs[0].paths, feed.names, faults=f"{fault}=0.05,seed=7,delay_ms=0.01")
    ids = trade_ids(replay)
    assert ids == sorted(set(ids))
    if fault == "duplicate":
        assert ids == trade_ids(whole)
        return
    assert 300 < len(ids) < 400 or (fault == "reorder" and len(ids) == 400)  # a session waits for what comes late
    told = of(replay, replay["record_type"] == RecordType.STATUS)
    gone = {seq - 1 for row in told for seq in range(int(row["from_sequence"]), int(row["to_sequence"]))}
    assert set(range(1, 401)) - set(ids) <= gone  # trade N was message N + 1
    assert set(told["code"].tolist()) <= {int(StatusCode.GAP)}
    assert len(told) or fault == "reorder"


def test_secrets_stand_nowhere(feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what was sent, nor where the venue says them: in their fields, in words, in a message in two halves."""
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_USERNAME", "a-trader")
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_PASSWORD", "hunter2-hunter2")
    told: list[Out | bytes] = [
        Out("B", [(148, "hello a-trader"), (33, "1"), (58, "your password is hunter2-hunter2!")]),
        Out("BF", [(553, "somebody"), (554, "pw"), (925, "another"), (1402, "encrypted")]),
    ]
    with FixServer([Act()]) as venue:
        whole = venue.encode(Out("B", [(58, "again: hunter2-hunter2, in two halves")]), 4)
        halves = whole.partition(b"hunter2-h")
        messages = [*told, halves[0] + halves[1], halves[2]]
        venue.acts[0] = Act(messages)
        feed = feeds(venue, ("X",), ("trade",), login="prime")
        feed.until(lambda: feed.source._fix.expected == 5, "the words")
        venue.next_out = 5
        venue.send(venue._connections[0], trades("X", 1)[0])
        feed.until(lambda: feed.ids == [1], "the trade")
        assert text(venue.asked("A")[0], 554) == "hunter2-hunter2"
        replay = assert_replays_alike(feed, recording)
    assert texts(replay) == []  # no message is missing, changed as they are
    lines = lines_of(recording.logs[0].paths[0])
    written = json.dumps(lines)
    for secret in ("hunter2", "a-trader", "somebody", "=pw", "another", "encrypted"):
        assert secret not in written
    sent = [line for line in lines if line["t"] == "send"]
    assert [line.get("redacted", False) for line in sent[:2]] == [True, False]
    assert lines[0]["feed"]["options"]["login"] == []
    assert lines[0]["feed"]["options"]["sender"] == "CLIENT"


def test_a_user_that_is_the_sender_does_not_blank_out_every_message(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_USERNAME", "CLIENT")
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_PASSWORD", "hunter2-hunter2")
    with FixServer([Act(trades("X", 3))]) as venue:
        feed = feeds(venue, ("X",), ("trade",), login="prime")
        feed.until(lambda: len(feed.ids) == 3, "every trade")
        assert_replays_alike(feed, recording)


def test_a_header_that_can_not_be_says_so(feeds: Make, recording: Recording) -> None:
    with FixServer([Act(trades("X", 1))]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 1, "the trade")
        feed.source.close()
        recording.close()
    plain = recording.logs[0].paths[0].with_name("plain.jsonl")
    lines = lines_of(recording.logs[0].paths[0])
    lines[0]["feed"]["options"]["version"] = "FIX.9"
    plain.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    with pytest.raises(UnknownFormatError, match=r"names a feed that can't be decoded here.*version"):
        open_capture(plain, intern=feed.names.__getitem__)
