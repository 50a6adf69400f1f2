"""What `capture` writes of a WebSocket feed, replayed: the same records bit for bit, whatever the venue and the losses.

Left out of the comparison is what tests/feed_captures.py leaves out, and the text and times of the GAP that stands for
the time without a connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, empty
from tests import feed_captures
from tests.feed_captures import (
    assert_alike,
    compressed_recording,  # noqa: F401 -- a fixture
    lines_of,
    replayed,
)
from tests.unit.test_venues import DESCRIBED, PAIRS, bitstamp_messages, kraken_book
from tests.unit.test_websocket_source import COINBASE, Feed, binance, binance_books, btc_messages, coinbase, of
from tests.unit.test_yahoo_stream import YahooFeed
from tests.vendor_server import yahoo_frames
from tests.venue_server import (
    Act,
    VenueServer,
    after,
    always_ready,
    bitstamp_answer,
    kraken_answer,
    no_answer,
    received,
    timed_lines,
)
from workers.capture_log import Recording
from workers.decoders.capture import open_capture
from workers.sources.channel import Message, Picture
from workers.spec import CaptureSettings
from workers.venues.binance import BinanceDialect

Make = Callable[..., Feed]


@pytest.fixture
def feeds(recording: Recording) -> Iterator[Make]:
    made: list[Feed] = []

    def make(*args: Any, **options: Any) -> Feed:
        made.append(Feed(*args, log_of=recording.log_of, **options))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def comparable(records: np.ndarray) -> np.ndarray:
    """A copy without what may differ; see the module."""
    records = feed_captures.comparable(records)
    for row in np.flatnonzero(records["record_type"] == RecordType.STATUS):
        if records["text"][row].startswith(b"connected again"):
            for name in ("ts_event", "ts_receive", "text"):
                records[name][row : row + 1] = b"" if name == "text" else 0
    return records


def assert_replays_alike(feed: Feed, recording: Recording, slots: int = 500) -> np.ndarray:
    feed.source.close()
    recording.close()
    live = comparable(feed.records)
    replay = comparable(replayed(recording.logs[0].paths, feed.names, slots))
    assert recording.logs[0].dropped == 0
    assert_alike(live, replay)
    return replay


def until_all(feed: Feed, messages: list[bytes]) -> None:
    """Every message received, and decoded."""
    wanted = sum(len(message) for message in messages)
    feed.until(
        lambda: feed.source.bytes_received >= wanted and not feed.source._inbox and feed.source._decoding is None,
        "every message",
    )


@pytest.mark.parametrize("slots", [1, 500])
def test_binance_with_snapshots_that_fail_and_come(
    samples: Path, feeds: Make, recording: Recording, slots: int
) -> None:
    messages, pictures, expected = binance_books(samples)
    with binance(Act(messages), pictures=pictures) as venue:
        venue.picture_status = [429, 200, 500]
        options = {"venue": "binance", "url": venue.url, "rest_url": venue.rest_url}
        feed = feeds(tuple(pictures), ("level2", "trade"), **options)
        last = {symbol: json.loads(m)["data"]["u"] for m in messages for symbol in [json.loads(m)["data"]["s"]]}
        feed.until(lambda: set(last.values()) <= set(feed.market["source_sequence"].tolist()), "the last changes")
        assert len(expected) == len(pictures)
        assert_replays_alike(feed, recording, slots)
    kinds = [line["t"] for line in lines_of(recording.logs[0].paths[0])]
    assert kinds.count("recv") == len(messages) + 1  # the answer to the subscription
    assert kinds.count("ask") == kinds.count("http") == len(venue.fetched) == len(pictures) + 2


def test_binance_gap_in_a_book_and_a_new_snapshot(samples: Path, feeds: Make, recording: Recording) -> None:
    lines = timed_lines(samples / "websocket/spot_btcusdt_20240808.gz")
    messages = [line for line in lines if b"@depth" in line[:40]][:60]
    events = [json.loads(message)["data"] for message in messages]
    empty_book = b'{"lastUpdateId":%d,"bids":[],"asks":[]}'
    with binance(Act([*messages[:10], *messages[11:]]), pictures={"BTCUSDT": empty_book % events[3]["u"]}) as venue:
        venue.pause_after = 20
        feed = feeds(("BTCUSDT",), ("level2",), venue="binance", url=venue.url, rest_url=venue.rest_url)
        feed.until(lambda: StatusCode.GAP in feed.codes(), "the gap")
        venue._pictures["BTCUSDT"] = empty_book % events[30]["u"]
        venue.go_on.set()
        feed.until(lambda: events[-1]["u"] in feed.market["source_sequence"], "the last change")
        replay = assert_replays_alike(feed, recording)
    assert (replay["flags"] & Flag.GAP_BEFORE).any()


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_connection_that_is_lost_and_made_again(samples: Path, feeds: Make, recording: Recording, end: str) -> None:
    messages = btc_messages(samples)
    with binance(Act(messages[:500], end=end, close_code=1011), Act(messages[700:1000])) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url)
        feed.until(lambda: len(feed.market) == 800, "all of both connections")
        replay = assert_replays_alike(feed, recording)
    gaps = of(replay, replay["record_type"] == RecordType.STATUS)
    assert gaps["code"].tolist().count(StatusCode.GAP) == 2  # without a connection, and in the numbers of the trades
    said = [line for line in lines_of(recording.logs[0].paths[0]) if line["t"] == "disconnect"]
    assert ("1011 bye" if end == "close" else "broke off") in said[0]["why"]


def test_coinbase(samples: Path, feeds: Make, recording: Recording) -> None:
    messages = received(samples / "websocket/COINBASE.jsonl.zst")
    with coinbase(Act(messages)) as venue:
        feed = feeds(*COINBASE, venue="coinbase", url=venue.url)
        until_all(feed, messages)
        assert_replays_alike(feed, recording)


def test_bitstamp_with_snapshots(samples: Path, feeds: Make, recording: Recording) -> None:
    messages = bitstamp_messages(samples)
    first = {}
    for message in messages:
        told = json.loads(message)
        if told["channel"].startswith("diff_order_book"):
            first.setdefault(told["channel"].rpartition("_")[2], int(told["data"]["microtimestamp"]))
    pictures = {
        symbol: b'{"microtimestamp":"%d","bids":[["1.5","2"]],"asks":[["1.6","3"]]}' % (first.get(symbol, 0) + 1)
        for symbol in PAIRS
    }
    with VenueServer([Act(messages)], answer=bitstamp_answer, ready=after(6), pictures=pictures) as venue:
        feed = feeds(PAIRS, ("trade", "level2"), venue="bitstamp", url=venue.url, rest_url=venue.rest_url)
        until_all(feed, messages)
        feed.until(lambda: len(venue.fetched) >= len(first) and feed.source._dialect.books.all_synced, "the books")
        replay = assert_replays_alike(feed, recording)
    assert (replay["flags"] & Flag.SNAPSHOT).any()


def test_kraken_with_a_checksum_that_is_wrong(feeds: Make, recording: Recording) -> None:
    trade = (
        b'{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"buy","price":1.5,"qty":4,'
        b'"trade_id":7,"timestamp":"2023-09-25T07:49:37.708706Z"}]}'
    )
    book = kraken_book("snapshot", [("0.05000", "1.00000000")], [("0.05005", "2.00000000")], 0)
    messages = [book, trade]
    with VenueServer([Act(messages)], answer=kraken_answer, ready=after(2)) as venue:
        feed = feeds(("BTC/USD",), ("trade", "level2"), venue="kraken", url=venue.url)
        feed.until(lambda: 7 in feed.market["source_sequence"], "the trade")
        feed.until(lambda: len(venue.requests[0]) >= 4, "the book asked for again")
        replay = assert_replays_alike(feed, recording)
    assert StatusCode.GAP in replay["code"][replay["record_type"] == RecordType.STATUS]


def test_a_described_venue(samples: Path, feeds: Make, recording: Recording) -> None:
    messages = bitstamp_messages(samples)
    with VenueServer([Act(messages)], answer=bitstamp_answer, ready=after(6)) as venue:
        feed = feeds(PAIRS, ("trade", "level2"), url=venue.url, **DESCRIBED)
        until_all(feed, messages)
        assert_replays_alike(feed, recording)


def test_source_yahoo_and_its_garbage(samples: Path, recording: Recording) -> None:
    frames = yahoo_frames(samples)
    acts = [Act([frames[0], frames[0], b"@@@"], end="abort"), Act([*frames, *frames])]
    with VenueServer(acts, answer=no_answer, ready=always_ready) as venue:
        feed = YahooFeed(("tick", "quote"), log_of=recording.log_of, url=venue.url)
        try:
            feed.until(lambda: len(feed.market) == 4, "the ticks of both connections")
            until_all(feed, [frames[0], frames[0], b"@@@", *frames, *frames])
        finally:
            feed.source.close()
        recording.close()
    names = feed.names
    (path,) = recording.logs[0].paths
    with open_capture(path, intern=names.__getitem__, feed_id=3) as capture:
        replay = comparable(of(out := empty(500), np.arange(500) < capture.decode(out)))
        assert sum(capture.counters.malformed.values()) == feed.source.errors == 1
    live = comparable(feed.records)
    assert len(live) == len(replay) >= 4
    for row in range(len(live)):
        assert live[row].tobytes() == replay[row].tobytes(), (row, live[row], replay[row])


def test_several_parts_are_one_capture(samples: Path, tmp_path: Path) -> None:
    settings = CaptureSettings(folder=str(tmp_path / "parts"), compress="none", part_bytes=50_000, flush_s=0.01)
    recording = Recording(settings)
    messages, pictures, _ = binance_books(samples)
    with binance(Act(messages), pictures=pictures) as venue:
        options = {"venue": "binance", "url": venue.url, "rest_url": venue.rest_url}
        feed = Feed(tuple(pictures), ("level2",), log_of=recording.log_of, **options)
        last = {symbol: json.loads(m)["data"]["u"] for m in messages for symbol in [json.loads(m)["data"]["s"]]}
        feed.until(lambda: set(last.values()) <= set(feed.market["source_sequence"].tolist()), "the last changes")
        assert_replays_alike(feed, recording)
    paths = recording.logs[0].paths
    assert len(paths) > 1
    assert [path.name[-10:] for path in paths[:2]] == ["0001.jsonl", "0002.jsonl"]
    second = [json.loads(line) for line in paths[1].read_text().splitlines()]
    assert [line["t"] for line in second[:2]] == ["header", "connect"]
    assert (second[0]["part"], second[1]["kept"]) == (2, True)


def test_secrets_are_written_nowhere(feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TK_TEST_KEY", "s3/cret-key")
    options = {
        "venue": "generic",
        "channels": {"quote": "bbo"},
        "headers": {"X-Api-Key": "h3ader-secret", "Authorization": "Bearer b3arer-secret"},
        "login": ['{"op":"login","user":"somebody","key":"${TK_TEST_KEY}"}'],
        "logged_in": {"event": "login", "code": 0},
        "subscribe": ['{"op":"subscribe","channel":"{channel}","symbol":"{symbol}"}'],
        "messages": {"quote": {"when": {"ch": "bbo"}, "items": "d", "bid_size": "-", "ask_size": "-"}},
    }

    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        echo = ["s3/cret-key", "b3arer-secret", "h3ader-secret"]
        return [{"event": "login", "code": 0, "echo": echo}] if asked["op"] == "login" else []

    quote = b'{"ch":"bbo","d":[{"symbol":"X","bid":1.5,"ask":2}]}'
    with VenueServer([Act([quote])], answer=answer, ready=after(2)) as venue:
        feed = feeds(("X",), (), url=f"{venue.url}?apiKey=u5erkey&depth=5", **options)
        feed.until(lambda: len(feed.market) == 1, "the quote")
        assert_replays_alike(feed, recording)
    lines = lines_of(recording.logs[0].paths[0])
    text = json.dumps(lines)
    for secret in ("s3", "cret", "h3ader", "b3arer", "u5erkey", "somebody"):
        assert secret not in text
    sent = [line for line in lines if line["t"] == "send"]
    assert [line.get("redacted", False) for line in sent] == [True, False]
    assert "depth=5" in lines[1]["url"]
    login = next(line for line in lines if line["t"] == "recv" and "login" in line["data"])
    assert json.loads(login["data"])["echo"] == ["[redacted]"] * 3


def test_several_connections_come_in_the_order_in_which_they_did(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BinanceDialect, "STREAMS_PER_CONNECTION", 1)
    messages = btc_messages(samples)
    with binance(Act(messages[:800]), Act(messages[800:1600])) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url)
        until_all(feed, messages[:1600])
        assert_replays_alike(feed, recording)
    assert set(recording.logs[0].connections) == {"0", "1"}


def test_a_change_that_comes_with_its_snapshot_is_applied_after_it(feeds: Make) -> None:
    feed = feeds(("X",), ("level2",), venue="binance", url="ws://127.0.0.1:1/")
    source = feed.source
    source._dialect.subscribe(["x@depth@100ms"])
    assert source._dialect.hold(depth(1, 4), 1, 0)
    assert source._dialect.wanted_snapshot(1) is not None
    channel = source._channels[0]
    book = b'{"lastUpdateId":4,"bids":[["1.0","7"]],"asks":[]}'
    source._inbox.extend([Picture("x", book, 3), Message(channel, 0, depth(5, 6), 2), Picture("x", book, 4)])
    out = empty(64)
    count = source._drain(out, 0, 5)
    assert out["source_sequence"][:count].tolist() == [4, 4, 6]
    # The other way round, in one turn of the loop: the change waits for the snapshot behind it.
    source._dialect.subscribe(["x@depth@100ms"])
    source._dialect.snapshot_asked("x")
    source._inbox.extend([Message(channel, 0, depth(9, 9), 6), Picture("x", book.replace(b"4", b"8"), 7)])
    count = source._drain(out, 0, 8)
    assert out["source_sequence"][:count].tolist() == [8, 8, 9]


def depth(first: int, final: int) -> bytes:
    return (
        b'{"stream":"x@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"X","U":%d,"u":%d,"b":[["1.5","2"]],"a":[]}}'
        % (first, final)
    )
