"""Files of captured IBKR feeds: their lines, parts, holes and torn ends, faults on purpose, and what can't be read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from shm.layout import Action, Flag, RecordType, StatusCode, concatenate, empty
from tests.feed_captures import comparable, replayed
from tests.ibkr_capture import (
    Make,
    assert_replays_alike,
    captured_feeds,  # noqa: F401 -- a fixture
    gap_before,
    ibkr_recording,  # noqa: F401 -- a fixture
)
from tests.ibkr_feed import AAPL, BOTH, NOW_S, Feed, prices, trade
from tests.tws_server import (
    BY_TICK,
    DEPTH,
    MKT_DATA,
    Act,
    TwsServer,
    error,
    packed,
)
from tests.unit.test_websocket_source import of
from workers.capture_log import CaptureLog, Recording
from workers.decoders.capture import open_capture
from workers.decoders.protocol import UnknownFormatError
from workers.sources.faults import FaultInjector, FaultOptions
from workers.spec import CaptureSettings, FeedSpec


def test_accounts_are_written_nowhere(feeds: Make, recording: Recording) -> None:
    accounts = packed(15, 1, "DU7654321,U1122334")
    orders = [packed(3, 1, "Filled", 1, 0, 1.5, 7), packed(6, 2, "NetLiquidation", "98765.43", "USD", "DU7654321")]
    notes = [accounts, *orders, error(-1, 2104, "Market data farm connection is OK:DU7654321")]
    with TwsServer([Act(notes=notes)], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        server.push(trade(feed.asked(server, BY_TICK), 5.0))
        feed.until(lambda: len(feed.market), "the trade")
        assert_replays_alike(feed, recording)
    (path,) = recording.logs[0].paths
    text = path.read_text()
    for secret in ("DU7654321", "U1122334", "98765", "Filled", "DU1234567"):
        assert secret not in text
    assert "Market data farm connection is OK:[redacted]" in text


def test_the_lines_say_what_was_asked_and_of_what_the_answers_are(feeds: Make, recording: Recording) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        asked = feed.asked(server, BY_TICK)
        server.push(trade(asked, 5.0))
        feed.until(lambda: len(feed.market), "the trade")
        feed.source.close()
        recording.close()
    lines = [json.loads(line) for line in recording.logs[0].paths[0].read_text().splitlines()]
    assert [line["t"] for line in lines[:3]] == ["header", "connect", "note"]
    assert lines[1]["url"] == f"tcp://127.0.0.1:{server.port}"
    assert lines[-1]["t"] == "disconnect"
    notes = [json.loads(line["data"]) for line in lines if line["t"] == "note"]
    assert notes == [
        {"of": "version", "version": 176, "first": True},
        {"of": str(asked.number), "symbol": "AAPL", "way": "Last", "types": ["trade"]},
    ]
    sent = [line["data"].split("\0") for line in lines if line["t"] == "send"]
    assert [fields[0] for fields in sent] == ["9", "97"]  # contract details, tick by tick
    assert sent[1][1] == str(asked.number)
    info_path = recording.logs[0].paths[0]
    with open_capture(info_path, intern=lambda _: 0) as capture:
        capture.decode(empty(64))
        info = capture.describe()
    assert info["format"] == "Interactive Brokers TWS messages, jsonl capture"
    assert info["records"] == {"trade": 1}
    assert info["messages"]["tickByTick"] == 1
    assert info["first_ns"] == info["last_ns"] == NOW_S * 10**9
    assert info["symbols"] == ["AAPL"]


def parts_of(tmp_path: Path) -> Recording:
    return Recording(CaptureSettings(folder=str(tmp_path / "parts"), compress="none", part_bytes=20_000, flush_s=0.005))


def test_several_parts_are_one_capture_and_each_replays_alone(tmp_path: Path) -> None:
    recording = parts_of(tmp_path)
    with TwsServer([Act()], BOTH) as server:
        feed = Feed(
            ("AAPL", "MSFT"), ("quote", "level2"), log_of=recording.log_of, port=server.port, tick_by_tick="never"
        )
        aggregates = [feed.asked(server, MKT_DATA, name) for name in ("AAPL", "MSFT")]
        book = feed.asked(server, DEPTH, "AAPL")
        for number in range(400):
            one = aggregates[number % 2]
            rows = packed(12, 1, book.number, 0, 0 if number < 5 else 1, 1, 50.0 + number, 1)
            server.push(prices(one, 1, 10.0 + number, 1) + prices(one, 2, 12.0 + number, 1) + rows)
            feed.until(lambda number=number: 50.0 + number in feed.market["price"][-50:], "the row")  # type: ignore[misc]
        server.push(error(book.number, 317, "RESET"), packed(12, 1, book.number, 0, 0, 1, 1.5, 1))
        feed.until(lambda: 1.5 in feed.market["price"][-5:], "the new book")
        live = assert_replays_alike(feed, recording)
    paths = recording.logs[0].paths
    assert len(paths) > 2
    second = [json.loads(line) for line in paths[1].read_text().splitlines()]
    kinds = [(line["t"], line.get("kept", False)) for line in second[:6]]
    assert kinds == [("header", False), ("connect", True), *[("note", True)] * 4]
    # The last part by itself: the same quotes as that part had; rows of a book whose begin is missing are marked.
    alone = comparable(replayed(paths[-1:], feed.names))
    assert len(alone)
    tail = of(live, live["ts_receive"] >= alone["ts_receive"][0])
    fields = [name for name in live.dtype.names or () if name not in ("flags", "best_ask", "best_bid")]
    quotes, expected = (of(found, found["record_type"] == RecordType.QUOTE) for found in (alone, tail))
    assert quotes[fields][-10:].tolist() == expected[fields][-10:].tolist()
    depth = of(alone, alone["record_type"] == RecordType.LEVEL2)
    assert (depth["flags"][:-2] & Flag.INCOMPLETE).all()
    assert not (depth["flags"][-2:] & Flag.INCOMPLETE).any()


def test_a_part_begins_with_the_notes_that_stand(tmp_path: Path) -> None:
    recording = parts_of(tmp_path)
    log = recording.log_of(FeedSpec(feed_id=3, name="ib", source="ibkr", symbols=("AAPL",), data_types=("trade",)))
    log.connected("tws", 1)
    for at_ns, note in enumerate(('{"of":"1"}', '{"of":"2","n":1}', '{"gap":"x"}', '{"of":"2","n":2}', "no JSON"), 2):
        log.noted("tws", note, at_ns)
    log.noted("tws", '{"of":"1","over":true}', 7)
    log.received("tws", b"x" * 30_000, 8)
    while not log.written:
        time.sleep(0.001)
    log.noted("tws", '{"of":"3"}', 9)
    log.lost("tws", 10)
    recording.close()
    first, second = ([json.loads(line) for line in path.read_text().splitlines()] for path in log.paths)
    assert [line["t"] for line in first] == ["header", "connect", *["note"] * 6, "recv"]
    told = [(line["t"], line.get("ns", 0), line.get("data", ""), line.get("kept", False)) for line in second[1:]]
    assert told == [
        ("connect", 0, "", True),
        ("note", 5, '{"of":"2","n":2}', True),
        ("note", 9, '{"of":"3"}', False),
        ("disconnect", 10, "", False),
    ]


def test_notes_find_room_where_messages_do_not(tmp_path: Path) -> None:
    spec = FeedSpec(feed_id=3, name="ib", source="ibkr", symbols=("AAPL",), data_types=("trade",))
    settings = CaptureSettings(folder=str(tmp_path), compress="none", queue_bytes=1 << 16)
    log = CaptureLog(spec, settings, wake=lambda: None)
    for at_ns in range(1, 100):
        log.received("tws", b"x" * 1000, at_ns)
    assert log.dropped > 10
    log.noted("tws", '{"of":"1"}', 100)
    dropped = log.dropped
    log.received("tws", b"x" * 1000, 101)
    assert log.dropped == dropped + 1
    log.write_some(102)
    log.close(103)
    lines = [json.loads(line) for line in log.paths[0].read_text().splitlines()]
    assert [(line["t"], line.get("messages", 0)) for line in lines[-3:]] == [
        ("dropped", dropped),
        ("note", 0),
        ("dropped", 1),
    ]


def test_a_capture_that_was_killed_replays_as_far_as_it_goes(feeds: Make, recording: Recording, tmp_path: Path) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        asked = feed.asked(server, BY_TICK)
        server.push(*(trade(asked, float(number)) for number in range(50)))
        feed.until(lambda: len(feed.market) == 50, "all")
        live = comparable(feed.records)
        feed.source.close()
        recording.close()
    whole = recording.logs[0].paths[0].read_bytes()
    torn = tmp_path / "torn.jsonl"
    for end in range(0, len(whole), 997):
        torn.write_bytes(whole[:end])
        try:
            found = comparable(replayed([torn], feed.names))
        except UnknownFormatError:
            assert end < 1000  # the header is not whole
            continue
        assert found.tobytes() == live[: len(found)].tobytes()


def test_what_the_recorder_dropped_is_a_gap(feeds: Make, recording: Recording, tmp_path: Path) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade", "level2"), tick_by_tick="never")
        asked, book = feed.asked(server, MKT_DATA), feed.asked(server, DEPTH)
        for number in range(4):
            text = f"{number};1;{NOW_S * 1000 + number};1;1;true"
            server.push(packed(46, 6, asked.number, 77, text), packed(12, 1, book.number, 0, 1, 1, 5.0 + number, 1))
        feed.until(lambda: len(feed.market) == 8, "all")
        feed.source.close()
        recording.close()
    lines = recording.logs[0].paths[0].read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "\\u00002;1;" in line)
    ns = json.loads(lines[at])["ns"]
    lines[at] = json.dumps({"t": "dropped", "ns": ns, "messages": 7, "bytes": 99}) + "\n"
    path = tmp_path / "holed.jsonl"
    path.write_text("".join(lines))
    found = replayed([path], feed.names)
    status = of(found, found["record_type"] == RecordType.STATUS)
    assert status[["code", "text"]].tolist() == [(StatusCode.GAP, b"7 messages not captured")]
    trades = of(found, found["record_type"] == RecordType.TRADE)
    assert trades["price"].tolist() == [0.0, 1.0, 3.0]
    assert gap_before(trades) == [False, False, True]
    depth = of(found, found["record_type"] == RecordType.LEVEL2)
    assert [bool(flags & Flag.INCOMPLETE) for flags in depth["flags"]] == [False, False, True, True]


def test_a_request_that_is_told_of_only_behind_a_hole_begins_there(
    feeds: Make, recording: Recording, tmp_path: Path
) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("level2",))
        first = feed.asked(server, DEPTH)
        server.push(packed(12, 1, first.number, 0, 0, 1, 5.0, 1))
        feed.until(lambda: len(feed.market), "a row")
        server.push(error(-1, 1101, "Connectivity restored - data lost"))
        feed.until(lambda: (one := server.find(DEPTH)) is not None and one.number != first.number, "asked again")
        again = feed.asked(server, DEPTH)
        server.push(packed(12, 1, again.number, 0, 0, 1, 6.0, 1))
        feed.until(lambda: 6.0 in feed.market["price"], "a row of the new book")
        feed.source.close()
        recording.close()
    lines = recording.logs[0].paths[0].read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if f'\\"of\\":\\"{again.number}\\"' in line)
    kept = {**json.loads(lines[at]), "kept": True}
    lines[at] = json.dumps({"t": "dropped", "ns": kept["ns"], "messages": 1}) + "\n" + json.dumps(kept) + "\n"
    path = tmp_path / "torn.jsonl"
    path.write_text("".join(lines))
    found = replayed([path], feed.names)
    depth = of(found, found["record_type"] == RecordType.LEVEL2)
    assert depth["price"][[0, 2]].tolist() == [5.0, 6.0]
    assert depth["action"].tolist() == [Action.ADD, Action.CLEAR, Action.ADD]
    assert [bool(flags & Flag.INCOMPLETE) for flags in depth["flags"]] == [False, False, True]


def test_faults_on_purpose_are_done_to_its_messages(feeds: Make, recording: Recording) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade", "quote"), tick_by_tick="never")
        asked = feed.asked(server, MKT_DATA)
        for number in range(300):
            text = f"{number};1;{NOW_S * 1000 + number};1;1;true"
            server.push(packed(46, 6, asked.number, 77, text) + prices(asked, 1 + number % 2, 10.0 + number, 1))
        feed.until(lambda: 299.0 in feed.kind(RecordType.TRADE)["price"], "all")
        feed.source.close()
        recording.close()
    found = {}
    options = {"drop": 0.1, "duplicate": 0.1, "delay": 0.1, "delay_ms": 0.5, "reorder": 0.1, "corrupt": 0.2}
    for name, shares in {"none": {}, "drop": {"drop": 0.5}, "all": options}.items():
        faults = FaultInjector(FaultOptions(seed=4, **shares))  # type: ignore[arg-type]
        with open_capture(recording.logs[0].paths[0], intern=feed.names.__getitem__, faults=faults) as capture:
            records = [empty(0)]
            while count := capture.decode(out := empty(100)):
                records.append(out[:count].copy())
            found[name] = concatenate(records), capture.counters, faults.counts
    assert (found["none"][0]["record_type"] == RecordType.TRADE).sum() == 300
    assert 100 < (found["drop"][0]["record_type"] == RecordType.TRADE).sum() < 200
    records, counters, counts = found["all"]
    assert min(counts.dropped, counts.duplicated, counts.delayed, counts.reordered, counts.corrupted) > 10
    assert len(records) > 200
    assert sum(counters.malformed.values()) > 0


def test_without_ib_async_it_says_what_to_install(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        feed.asked(server, BY_TICK)
        feed.source.close()
        recording.close()
    monkeypatch.setattr("workers.sources.ibkr_replay.find_spec", lambda _: None)
    with pytest.raises(UnknownFormatError, match=r"pip install 'tickengine\[ibkr\]'"):
        open_capture(recording.logs[0].paths[0], intern=lambda _: 0)


def test_a_feed_that_is_not_known_here_is_refused_by_name(tmp_path: Path) -> None:
    feed = {"name": "ib", "source": "ibkr", "symbols": ["AAPL"], "data_types": ["trades"], "options": {}}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"t": "header", "exchange": "IBKR", "feed": feed}) + "\n")
    with pytest.raises(UnknownFormatError, match="did you mean 'trade'"):
        open_capture(path, intern=lambda _: 0)
