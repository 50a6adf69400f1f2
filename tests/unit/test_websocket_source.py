"""WebSocket feeds against a local server that speaks the venue's protocol over a real socket, and misbehaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RECORD, Action, Flag, RecordType, Side, StatusCode, concatenate, empty
from tests.venue_server import (
    Act,
    VenueServer,
    always_ready,
    binance_answer,
    coinbase_ready,
    jsonl,
    no_answer,
    received,
    timed_lines,
)
from workers.decoders.capture import open_capture
from workers.errors import SettingsError
from workers.source import SourceContext, open_source
from workers.sources.websocket import WebSocketSource
from workers.spec import FeedSpec
from workers.wire_log import WireLog

DEADLINE_S = 60
COMPARED = ("instrument_id", "record_type", "side", "source_sequence", "venue", "conditions")
BODY = slice(64, 128)


class Feed:
    """A source and all that it has delivered."""

    def __init__(
        self,
        symbols: tuple[str, ...],
        types: tuple[str, ...],
        *,
        log_of: Callable[[FeedSpec], WireLog] | None = None,
        **options: Any,
    ) -> None:
        self.names: dict[str, int] = {}
        spec = FeedSpec(feed_id=3, name="live", source="websocket", symbols=symbols, data_types=types, options=options)
        wire = log_of(spec) if log_of is not None else None
        source = open_source(SourceContext(spec, lambda name: self.names.setdefault(name, len(self.names)), wire=wire))
        assert isinstance(source, WebSocketSource)
        self.source = source
        self._batches = [empty(0)]
        self.out = empty(512)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll as the ingest worker does, until it is so."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            count = self.source.poll(self.out, time.time_ns())
            if count:
                self._batches.append(self.out[:count].copy())
            if found := condition():
                return found
            if not count:
                time.sleep(0.001)
        raise AssertionError(f"not within {DEADLINE_S} s: {what}; {self.source.report}; said {self.said}")

    @property
    def records(self) -> np.ndarray:
        self._batches = [concatenate(self._batches)]
        return self._batches[0]

    @property
    def market(self) -> np.ndarray:
        records = self.records
        return of(records, records["record_type"] != RecordType.STATUS)

    @property
    def said(self) -> list[tuple[StatusCode, str]]:
        rows = self.records
        rows = of(rows, rows["record_type"] == RecordType.STATUS)
        return [(StatusCode(row["code"]), row["text"].decode()) for row in rows]

    def codes(self) -> list[StatusCode]:
        return [code for code, _ in self.said]


def of(records: np.ndarray, mask: np.ndarray) -> np.ndarray:
    rows: np.ndarray = records.view(np.uint8).reshape(-1, RECORD.itemsize)[mask]
    return rows.reshape(-1).view(RECORD)


@pytest.fixture
def feeds() -> Iterator[Callable[..., Feed]]:
    made: list[Feed] = []

    def make(*args: Any, **options: Any) -> Feed:
        made.append(Feed(*args, **options))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def replayed(path: Path, names: dict[str, int], kinds: set[int], **options: Any) -> np.ndarray:
    """The records of a capture, with the same instrument numbers."""
    out, found = empty(4096), [empty(0)]
    with open_capture(path, intern=lambda name: names.setdefault(name, len(names)), options=options) as capture:
        while count := capture.decode(out):
            found.append(out[:count].copy())
    records = concatenate(found)
    return of(records, np.isin(records["record_type"], list(kinds)))


def assert_same(live: np.ndarray, replay: np.ndarray) -> None:
    assert len(live) == len(replay) > 0
    for field in COMPARED:
        assert (live[field] == replay[field]).all(), field
    bodies = [records.view(np.uint8).reshape(-1, RECORD.itemsize)[:, BODY] for records in (live, replay)]
    assert (bodies[0] == bodies[1]).all()
    provenance = np.uint16(Flag.REPLAYED | Flag.GAP_BEFORE)
    assert ((live["flags"] & ~provenance) == (replay["flags"] & ~provenance)).all()


COINBASE = (("BTC-USD", "ETH-USD"), ("trade", "quote", "level2"))


def coinbase(*acts: Act) -> VenueServer:
    return VenueServer(list(acts), answer=no_answer, ready=coinbase_ready)


def binance(*acts: Act, **options: Any) -> VenueServer:
    return VenueServer(list(acts), answer=binance_answer, ready=always_ready, **options)


def btc_messages(samples: Path) -> list[bytes]:
    """Trades and quotes of BTCUSDT, in order."""
    lines = timed_lines(samples / "websocket/spot_btcusdt_20240808.gz")
    return [line for line in lines if b"@trade" in line[:40] or b"@bookTicker" in line[:40]][:3000]


def test_coinbase_live_is_what_its_replay_is(samples: Path, feeds: Callable[..., Feed]) -> None:
    path = samples / "websocket/COINBASE.jsonl.zst"
    with coinbase(Act(received(path))) as venue:
        feed = feeds(*COINBASE, venue="coinbase", url=venue.url)
        replay = replayed(path, feed.names, {RecordType.TRADE, RecordType.QUOTE, RecordType.LEVEL2})
        feed.until(lambda: len(feed.market) >= len(replay), "every record")
        assert_same(feed.market, replay)
        assert feed.said == [(StatusCode.FEED_UP, "coinbase delivers")]
        assert (feed.market["source"] == 7).all()
        assert (feed.market["feed_id"] == 3).all()
        asked = venue.requests[0]
        assert [request["channel"] for request in asked] == ["market_trades", "ticker", "level2", "heartbeats"]
        assert asked[0]["product_ids"] == ["BTC-USD", "ETH-USD"]
        feed.until(lambda: feed.source.report.health_score == 1.0, "the report")
        assert (feed.source.report.state, feed.source.gaps, feed.source.errors) == ("live", 0, 0)


def test_binance_live_is_what_its_replay_is(samples: Path, feeds: Callable[..., Feed], tmp_path: Path) -> None:
    messages = btc_messages(samples)
    path = tmp_path / "capture"
    path.write_bytes(b"".join(b"%d %s\n" % (10**18 + k, line) for k, line in enumerate(messages)))
    with binance(Act(messages)) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url)
        replay = replayed(path, feed.names, {RecordType.TRADE, RecordType.QUOTE})
        feed.until(lambda: len(feed.market) >= len(replay), "every record")
        assert_same(feed.market, replay)
        assert venue.requests[0] == [
            {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "btcusdt@bookTicker"], "id": 1}
        ]


def books(records: np.ndarray) -> dict[int, dict[tuple[int, float], float]]:
    """The books that level2 records leave behind."""
    found: dict[int, dict[tuple[int, float], float]] = {}
    for row in of(records, records["record_type"] == RecordType.LEVEL2):
        book = found.setdefault(int(row["instrument_id"]), {})
        if row["action"] == Action.CLEAR:
            book.clear()
        elif row["action"] == Action.DELETE:
            book.pop((int(row["side"]), float(row["price"])), None)
        else:
            book[int(row["side"]), float(row["price"])] = float(row["size"])
    return found


def binance_books(samples: Path) -> tuple[list[bytes], dict[str, bytes], dict[str, dict[tuple[int, float], float]]]:
    """Depth messages, pictures by symbol, and the books after all of it by an independent count."""
    lines = jsonl(samples / "websocket/BINANCE.jsonl.zst")
    pictures = {
        line["url"].partition("symbol=")[2].partition("&")[0]: line["data"].encode()
        for line in lines
        if "/depth?" in line.get("url", "")
    }
    messages = [line["data"].encode() for line in lines if line["t"] == "recv" and "@depth" in line["data"][:60]]
    expected: dict[str, dict[tuple[int, float], float]] = {}
    for symbol, picture in pictures.items():
        whole = json.loads(picture)
        book = {(side, float(p)): float(q) for side, key in ((1, "bids"), (2, "asks")) for p, q in whole[key]}
        for message in messages:
            event = json.loads(message)["data"]
            if event["s"] != symbol or event["u"] <= whole["lastUpdateId"]:
                continue
            for side, key in ((Side.BUY, "b"), (Side.SELL, "a")):
                for price, size in event[key]:
                    if float(size):
                        book[int(side), float(price)] = float(size)
                    else:
                        book.pop((int(side), float(price)), None)
        expected[symbol] = book
    return messages, pictures, expected


def test_binance_books_are_a_snapshot_and_the_changes_after_it(samples: Path, feeds: Callable[..., Feed]) -> None:
    messages, pictures, expected = binance_books(samples)
    with binance(Act(messages), pictures=pictures) as venue:
        venue.picture_status = [429, 200, 500]
        feed = feeds(
            tuple(pictures), ("level2",), venue="binance", url=venue.url, rest_url=venue.rest_url, depth_limit=1000
        )
        feed.until(
            lambda: books(feed.records) == {feed.names.get(s, -1): b for s, b in expected.items()}, "equal books"
        )
        assert len(venue.fetched) == len(pictures) + 2
        assert feed.source.gaps == 0
        assert feed.source.errors == 2
        first = feed.market[0]
        assert (first["action"], bool(first["flags"] & Flag.SNAPSHOT)) == (Action.CLEAR, True)


def test_a_missing_change_is_a_gap_and_the_book_is_made_anew(samples: Path, feeds: Callable[..., Feed]) -> None:
    messages = [line for line in timed_lines(samples / "websocket/spot_btcusdt_20240808.gz") if b"@depth" in line[:40]][
        :60
    ]
    events = [json.loads(message)["data"] for message in messages]
    empty_book = b'{"lastUpdateId":%d,"bids":[],"asks":[]}'
    with binance(Act([*messages[:10], *messages[11:]]), pictures={"BTCUSDT": empty_book % events[3]["u"]}) as venue:
        venue.pause_after = 20
        feed = feeds(("BTCUSDT",), ("level2",), venue="binance", url=venue.url, rest_url=venue.rest_url)
        feed.until(lambda: StatusCode.GAP in feed.codes(), "the gap")
        venue._pictures["BTCUSDT"] = empty_book % events[30]["u"]
        venue.go_on.set()
        feed.until(lambda: events[-1]["u"] in feed.market["source_sequence"], "the last change")
        assert len(venue.fetched) >= 2
        gap = of(feed.records, feed.records["record_type"] == RecordType.STATUS)
        gap = gap[gap["code"] == StatusCode.GAP][0]
        assert (gap["from_sequence"], gap["to_sequence"]) == (events[10]["U"], events[11]["U"])
        clears = np.flatnonzero(feed.market["action"] == Action.CLEAR)
        assert len(clears) == 2
        assert feed.market["source_sequence"][clears].tolist() == [events[3]["u"], events[30]["u"]]


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_lost_connection_resumes_with_a_gap_and_subscribes_again(
    samples: Path, feeds: Callable[..., Feed], end: str
) -> None:
    messages = btc_messages(samples)
    with binance(Act(messages[:500], end=end, close_code=1011), Act(messages[700:1000])) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url)
        feed.until(lambda: len(feed.market) == 800, "all of both connections")
        codes = feed.codes()
        assert codes[:3] == [StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.GAP]
        assert codes.count(StatusCode.FEED_UP) == 2
        down = feed.said[1][1]
        assert ("closed by the venue: 1011 bye" if end == "close" else "broke off") in down
        assert venue.requests[1][0]["params"] == venue.requests[0][0]["params"]
        records = feed.records
        at = int(np.flatnonzero((records["code"] == StatusCode.GAP) & (records["record_type"] == RecordType.STATUS))[0])
        after = of(records[at:], records[at:]["record_type"] != RecordType.STATUS)
        assert after["flags"][0] & Flag.GAP_BEFORE
        assert feed.source.report.reconnects == 1
        assert feed.source.gaps >= 1


def test_what_is_had_twice_is_dropped_and_garbage_is_counted(samples: Path, feeds: Callable[..., Feed]) -> None:
    trades = [message for message in btc_messages(samples) if b"@trade" in message[:40]][:100]
    bad = [
        trades[5],
        trades[4],
        b"{",
        b'{"stream":"x","data":',
        b"[]",
        trades[7][:60],
        b'{"stream":3}',
        *[b"garbage"] * 8,
    ]
    with binance(Act([*trades[:50], *bad, *trades[50:]])) as venue:
        feed = feeds(("BTCUSDT",), ("trade",), venue="binance", url=venue.url)
        feed.until(lambda: len(feed.market) >= 100, "every trade")
        assert len(set(feed.market["trade_id"].tolist())) == len(feed.market) == 100
        assert feed.source.errors >= 8
        assert feed.source.report.state == "live"
        feed.until(lambda: StatusCode.FEED_DEGRADED in feed.codes(), "the warning")
        assert "errors in the last minutes" in dict(feed.said)[StatusCode.FEED_DEGRADED]
        feed.until(lambda: feed.source.report.health_score < 1.0, "the score")


def test_429_and_retry_after_at_the_handshake_are_obeyed_and_told(samples: Path, feeds: Callable[..., Feed]) -> None:
    with binance(Act(status=429, headers={"Retry-After": "2"}), Act(btc_messages(samples)[:10])) as venue:
        began = time.monotonic()
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url)
        report = feed.until(
            lambda: feed.source.report if feed.source.report.state == "recovering" and venue.requests else None, "429"
        )
        feed.until(lambda: "HTTP 429" in feed.source.report.why, "the reason")
        assert "waits 2 s as asked" in feed.source.report.why
        assert report.health_score == 0.0
        feed.until(lambda: len(feed.market) == 10, "data")
        assert time.monotonic() - began >= 2.0
        assert len(venue.requests) == 2


def test_a_refused_login_or_key_opens_the_breaker_at_once(feeds: Callable[..., Feed]) -> None:
    with binance(Act(status=403)) as venue:
        feed = feeds(("BTCUSDT",), ("trade",), venue="binance", url=venue.url)
        feed.until(lambda: feed.source.report.state == "failed", "the breaker")
        assert feed.source.report.breaker == "open"
        assert "HTTP 403" in feed.source.report.why
        assert feed.source.report.retry_at_ns > time.time_ns() + 30 * 10**9
        assert len(venue.requests) == 1


def test_a_refused_subscription_is_told_in_the_venues_words(feeds: Callable[..., Feed]) -> None:
    def refuse(asked: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"error": {"code": 2, "msg": "Invalid request: unknown stream"}, "id": asked["id"]}]

    with binance(Act(answer=refuse)) as venue:
        feed = feeds(("NOPE",), ("trade",), venue="binance", url=venue.url)
        feed.until(lambda: feed.source.report.state == "failed", "the breaker")
        assert feed.source.report.why == "refused by the venue: Invalid request: unknown stream (code 2)"

    with coinbase(Act(answer=lambda _: [{"type": "error", "message": "failure to subscribe"}])) as venue:
        feed = feeds(("NOPE",), ("trade",), venue="coinbase", url=venue.url)
        feed.until(lambda: feed.source.report.state == "failed", "the breaker")
        assert "failure to subscribe" in feed.source.report.why


def test_data_without_an_acknowledgement_is_not_enough(samples: Path, feeds: Callable[..., Feed]) -> None:
    silent = Act(btc_messages(samples)[:20], answer=lambda _: [])
    with binance(silent, Act(btc_messages(samples)[20:40])) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url, acknowledge_s=0.5)
        feed.until(lambda: len(venue.requests) == 2 and feed.source.report.state == "live", "the second connection")
        assert feed.codes()[-1] is StatusCode.FEED_UP
        assert feed.codes().count(StatusCode.FEED_UP) == 1


def test_a_server_that_hangs_is_left(feeds: Callable[..., Feed]) -> None:
    with binance(Act(reads=False)) as venue:
        feed = feeds(("BTCUSDT",), ("trade",), venue="binance", url=venue.url, acknowledge_s=0.3)
        feed.until(lambda: feed.source.report.state == "recovering", "the end of its patience")
        feed.until(lambda: "not acknowledged within 0.3 s" in feed.source.report.why, "why")
        feed.until(lambda: len(venue.requests) >= 3, "more tries")


def test_a_connection_that_says_nothing_at_all_is_made_again(samples: Path, feeds: Callable[..., Feed]) -> None:
    with binance(Act(btc_messages(samples)[:50], pongs=False), Act(btc_messages(samples)[50:60])) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url, message_s=1.0, ping_s=0.2)
        feed.until(lambda: len(feed.market) == 60, "data of the second connection")
        assert feed.said[1] == (StatusCode.FEED_DOWN, "no message of any kind for 1 s")


def test_pongs_keep_a_quiet_connection_and_silence_of_its_symbols_is_stale(
    samples: Path, feeds: Callable[..., Feed]
) -> None:
    with binance(Act()) as venue:
        feed = feeds(
            ("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url, message_s=1.0, ping_s=0.2,
            stale_floor_s=1.5, stale_factor=1, stale_s=600,
        )  # fmt: skip
        feed.until(lambda: venue.listeners, "the subscription")
        for number, message in enumerate(btc_messages(samples)[:10], 1):  # pauses are told from one poll to the next
            venue.push(message)
            feed.until(lambda number=number: len(feed.market) == number, "each message")
        feed.until(lambda: feed.source.report.state == "stale", "staleness")
        assert len(venue.requests) == 1
        assert feed.codes() == [StatusCode.FEED_UP, StatusCode.FEED_DOWN]
        feed.until(lambda: feed.source.report.silent == 1, "which")
        assert feed.source.report.why.startswith("BTCUSDT silent for ")
        assert feed.source.report.health_score == 0.0


def test_many_symbols_are_shared_out_over_connections(feeds: Callable[..., Feed]) -> None:
    with binance(Act()) as venue:
        symbols = tuple(f"SYM{number}" for number in range(350))
        feed = feeds(symbols, ("trade",), venue="binance", url=venue.url)
        feed.until(lambda: len(venue.requests) == 2 and all(venue.requests), "both connections")
        asked = sorted(len(requests[0]["params"]) for requests in venue.requests)
        assert asked == [150, 200]
        assert feed.source.report.connections == 2


def test_what_the_caller_has_no_room_for_waits(samples: Path, feeds: Callable[..., Feed]) -> None:
    messages = btc_messages(samples)[:2000]
    with binance(Act(messages)) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url)
        feed.out = empty(3)
        feed.until(lambda: len(feed.market) == 2000, "every record, three at a time")


def test_symbols_are_renamed_where_asked(samples: Path, feeds: Callable[..., Feed]) -> None:
    with binance(Act(btc_messages(samples)[:5])) as venue:
        feed = feeds(("BTCUSDT",), ("trade", "quote"), venue="binance", url=venue.url, rename={"BTCUSDT": "BTC-USDT"})
        feed.until(lambda: len(feed.market) == 5, "data")
        assert list(feed.names) == ["BTC-USDT"]


@pytest.mark.parametrize(
    ("symbols", "types", "options", "words"),
    [
        (("A",), (), {}, "options.venue is None; must be one of"),
        (("A",), (), {"venue": "binanc"}, "did you mean 'binance'?"),
        (("A",), (), {"venue": "binance", "markt": 1}, "no option 'markt'"),
        (("A",), (), {"venue": "binance", "market": "moon"}, "market"),
        (("A",), (), {"venue": "binance", "market": "usdm", "trades": "trade"}, "only 'aggTrade'"),
        (("A",), ("news",), {"venue": "coinbase"}, "data type 'news' is not to be had from coinbase"),
        ((), (), {"venue": "coinbase"}, "symbols: name those"),
        (("A",), (), {"venue": "coinbase", "url": "http://x"}, "begins with ws:// or wss://"),
        (("A",), (), {"venue": "coinbase", "ca_file": "/nowhere"}, "options.ca_file '/nowhere'"),
    ],
)
def test_settings_that_can_not_work_are_refused_by_name(
    symbols: tuple[str, ...], types: tuple[str, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        Feed(symbols, types, **options)
    assert words in str(error.value)
