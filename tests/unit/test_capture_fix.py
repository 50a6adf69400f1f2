"""What `capture` writes of a FIX feed, replayed: the same records bit for bit, whatever the venue loses or repeats.

Left out of the comparison: `source` (REPLAY instead of FIX), flag REPLAYED, what only a ring gives (`sequence`,
`ts_publish`), and the status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which a replay does not have.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from shm.layout import Flag, RecordType, Source, StatusCode, concatenate, empty
from tests.fix_server import Act, FixServer, Out, captured, trades
from tests.unit.test_capture_venues import OF_SOCKETS, lines_of
from tests.unit.test_fix_source import Feed, text
from tests.unit.test_websocket_source import of
from workers.capture_log import CaptureLog, Recording
from workers.decoders.capture import open_capture
from workers.decoders.protocol import UnknownFormatError
from workers.resume import Newest
from workers.sources.faults import FaultInjector, parse_faults
from workers.spec import CaptureSettings, FeedSpec

Make = Callable[..., Feed]


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(CaptureSettings(folder=str(tmp_path / "wire")))
    yield made
    made.close()


@pytest.fixture
def feeds(recording: Recording) -> Iterator[Make]:
    made: list[Feed] = []

    def make(*args: Any, **options: Any) -> Feed:
        made.append(Feed(*args, **{"log_of": recording.log_of, **options}))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def replayed(paths: list[Path], names: dict[str, int], slots: int = 500, faults: str = "") -> np.ndarray:
    before, found = None, [empty(0)]
    for number, path in enumerate(paths):
        injector = FaultInjector(parse_faults(faults), number) if faults else None
        with open_capture(path, intern=names.__getitem__, feed_id=5, after=before, faults=injector) as capture:
            while count := capture.decode(out := empty(slots)):
                found.append(out[:count])
            assert "unusable note" not in capture.counters.malformed
            before = capture
    return concatenate(found)


def comparable(records: np.ndarray) -> np.ndarray:
    """A copy without what may differ; see the module."""
    status = records["record_type"] == RecordType.STATUS
    records = of(records, ~(status & np.isin(records["code"], OF_SOCKETS))).copy()
    records["source"] = Source.REPLAY
    records["flags"] |= np.uint16(Flag.REPLAYED)
    return records


def assert_same(live: np.ndarray, replay: np.ndarray) -> None:
    live = comparable(live)
    for row in range(min(len(live), len(replay))):
        assert live[row].tobytes() == replay[row].tobytes(), (row, live[row], replay[row])
    assert len(live) == len(replay) > 0


def assert_replays_alike(feed: Feed, recording: Recording) -> np.ndarray:
    feed.source.close()
    recording.close()
    (log,) = recording.logs
    assert log.dropped == 0
    for slots in (1, 500):
        replay = replayed(log.paths, feed.names, slots)
        assert_same(feed.records, replay)
    return replay


def trade_ids(records: np.ndarray) -> list[int]:
    found: list[int] = of(records, records["record_type"] == RecordType.TRADE)["trade_id"].tolist()
    return found


def texts(records: np.ndarray) -> list[bytes]:
    found: list[bytes] = of(records, records["record_type"] == RecordType.STATUS)["text"].tolist()
    return found


def lose(messages: list[Out], *places: int) -> list[Out]:
    return [Out(one.kind, one.body, lost=place in places) for place, one in enumerate(messages)]


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


def random_feed(feeds: Make, seed: int) -> Feed:
    """What a venue sends that loses, repeats and garbles messages, and hangs up, taken as it comes."""
    dice = random.Random(seed)
    number, acts = 1, []
    with FixServer([Act()]) as venue:
        for connection in range(4):
            messages: list[Out | bytes] = []
            for one in trades("X", dice.randrange(20, 120), number):
                draw = dice.random()
                messages.append(Out(one.kind, one.body, lost=draw < 0.06))
                if 0.06 <= draw < 0.09:
                    messages.append(dice.randbytes(dice.randrange(1, 60)))
                elif draw < 0.11:
                    messages.append(venue.encode(one, 1, again=True))
                elif draw < 0.13:
                    messages.append(Out("1", [(112, f"probe {number}")]))
                elif draw < 0.15:
                    messages.append(Out("2", [(7, "1"), (16, "0")]))
                number += 1
            if connection < 3:
                messages.append(venue.encode(trades("X", 1)[0], 9)[: dice.randrange(1, 80)])
            else:
                messages += trades("X", 1, number)
            kind = dice.choice([{}, {"fills": True}, {"deaf": True}])
            end = "hold" if connection == 3 else dice.choice(["close", "abort"])
            acts.append(Act(messages, end=end, **kind))  # type: ignore[arg-type]
        venue.acts = acts
        feed = feeds(venue, ("X",), ("trade",), resend_s=0.05)
        feed.out = empty(dice.choice([1, 7, 512]))
        feed.until(lambda: feed.ids[-1:] == [number], f"the last trade, seed {seed}")
        feed.source.close()
    return feed


@pytest.mark.parametrize("seed", range(6))
def test_a_venue_that_does_all_of_it_at_random(feeds: Make, recording: Recording, seed: int) -> None:
    assert_replays_alike(random_feed(feeds, seed), recording)


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


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Path:
    """Another capture, of lines of this one."""
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    made = path.with_name(f"other-{path.name}")
    made.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return made


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
