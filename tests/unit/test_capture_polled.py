"""What `capture` writes of a polled feed, replayed: the same records bit for bit, whatever the vendor answers, wherever
the capture begins and ends.

Left out of the comparison is what `tests.unit.test_capture_venues.comparable` leaves out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, concatenate, empty
from tests.replayed_trades import drain
from tests.unit.test_capture_venues import comparable, lines_of
from tests.unit.test_polled_source import FAST, KEY, TODAY_NS, Feed
from tests.unit.test_websocket_source import of
from tests.vendor_server import (
    Reply,
    VendorServer,
    av_quote,
    av_series,
    fred_body,
    fred_error,
    fred_row,
    fred_rows,
    yahoo_chart,
)
from workers import capture_log
from workers.capture_files import chains
from workers.capture_log import CaptureLog, Recording
from workers.decoders import jsonl
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.jsonl import JsonlReader
from workers.decoders.protocol import UnknownFormatError
from workers.errors import SettingsError
from workers.source import SourceContext, open_source
from workers.sources.polled_wire import runs_of
from workers.spec import CaptureSettings, FeedSpec

Make = Callable[..., Feed]
BACK, CORRECTED = Flag.BACKFILLED, Flag.CORRECTED


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(CaptureSettings(folder=str(tmp_path / "wire")))
    yield made
    made.close()


@pytest.fixture
def feeds(recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("FRED_API_KEY", KEY)
    monkeypatch.setenv("ALPHA_VANTAGE_API_KEY", KEY)
    made: list[Feed] = []

    def make(source: str, symbols: tuple[str, ...], types: tuple[str, ...] = (), **options: Any) -> Feed:
        options.setdefault("log_of", recording.log_of)
        made.append(Feed(tmp_path, source, symbols, types, **{**FAST, **options}))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def replayed(paths: list[Path], names: dict[str, int], slots: int = 500, malformed: int = 0) -> np.ndarray:
    """The parts as one."""
    last, found = None, [empty(0)]
    for path in paths:
        with open_capture(path, intern=names.__getitem__, feed_id=3, after=last) as capture:
            while count := capture.decode(out := empty(slots)):
                found.append(out[:count])
            last = capture
    assert last is not None
    assert sum(last.counters.malformed.values()) == malformed
    return concatenate(found)


def assert_replays_alike(
    feed: Feed,
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
    *,
    slots: int = 500,
    before: int = 0,
    malformed: int = 0,
) -> np.ndarray:
    """Without a key: who replays has none. `before`: so many records were published before the capture began."""
    feed.source.close()
    recording.close()
    for name in ("FRED_API_KEY", "ALPHA_VANTAGE_API_KEY"):
        monkeypatch.delenv(name)
    live = comparable(feed.records)[before:]
    assert recording.logs[0].dropped == 0
    replay = replayed(recording.logs[0].paths, feed.names, slots, malformed)
    assert (replay["flags"] & Flag.REPLAYED).all()
    assert_alike(live, comparable(replay))
    return replay


def assert_alike(live: np.ndarray, replay: np.ndarray) -> None:
    assert len(live) == len(replay) > 0
    for row in range(len(live)):
        assert live[row].tobytes() == replay[row].tobytes(), (row, live[row], replay[row])


def bytes_of(recording: Recording) -> bytes:
    """Of all its files, unpacked, every string in them taken apart once more."""
    return b"".join(json.dumps(lines_of(path)).encode() for log in recording.logs for path in log.paths)


def notes(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line["data"]) for line in lines_of(path) if line["t"] == "note"]


@pytest.mark.parametrize("slots", [1, 500])
def test_fred_with_what_is_new_corrected_and_missing(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    rows = fred_rows(samples)
    later = [*rows[:-1], fred_row(rows[-1]["date"], "0.06", "2020-06-01"), fred_row("2020-05-01", ".", "2020-06-01")]
    more = [*later[:-1], fred_row("2020-05-01", "-0.05", "2020-06-02")]
    script = [Reply(fred_body(rows)), Reply(fred_body(rows)), Reply(fred_body(later)), Reply(fred_body(more))]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 6, "six requests")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch, slots=slots)
    assert len(replay) == 792
    assert (replay["flags"][-2:] & ~np.uint16(Flag.REPLAYED)).tolist() == [CORRECTED, 0]
    (path,) = recording.logs[0].paths
    kinds = [line["t"] for line in lines_of(path)]
    assert kinds.count("ask") >= kinds.count("http") >= 6
    said = notes(path)
    history = [row for note in said[:-2] for row in note["rows"]]  # poll by poll
    assert len(history) > 6
    assert [first for first, _, _ in history] == [0, *np.cumsum([count for _, count, _ in history])][:-1]
    assert {flags for _, _, flags in history} == {BACK}
    assert [note["rows"] for note in said[-2:]] == [[[789, 1, int(CORRECTED)]], [[790, 1, 0]]]
    described = describe_capture(path)
    assert described["format"].startswith("Fred answers over HTTP, jsonl capture")
    assert described["records"] == {"tick": 792}
    assert (described["malformed"], described["gaps"], described["symbols"]) == ({}, 0, ["FEDFUNDS"])
    assert described["first"] == "1954-07-01T00:00:00.000000000Z"


def test_vintages_in_parts_and_a_symbol_that_is_renamed(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [fred_row("2020-01-01", "1.0", "2020-02-01"), fred_row("2020-01-01", "1.1", "2020-03-01")]
    second = [fred_row("2020-02-01", "2.0", "2020-03-01"), fred_row("2020-03-01", ".", "2020-04-01")]
    script = [Reply(fred_body(first, count=4)), Reply(fred_body(second, count=4))]
    with VendorServer({"GDP": [*script, *script]}) as vendor:
        rename = {"GDP": "US.GDP"}
        feed = feeds("fred", ("GDP",), url=vendor.base, vintages=True, page=2, rename=rename)
        feed.until(lambda: vendor.counts["GDP"] >= 4, "all parts, twice")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch)
    assert replay["price"].tolist() == [1.0, 1.1, 2.0]
    assert (replay["flags"] & CORRECTED != 0).tolist() == [False, True, False]
    assert list(feed.names) == ["US.GDP"]


@pytest.mark.parametrize("memory", ["the file's", "the ring's"])
def test_a_capture_that_begins_when_much_was_published_has_what_came_since(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    rows = fred_rows(samples)
    last = [fred_row(rows[5]["date"], "9.5", "2020-06-01"), *rows[6:], fred_row("2020-05-01", "0.07", "2020-06-01")]
    script = [Reply(fred_body(rows[:700])), Reply(fred_body([*rows[:5], *last]))]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=None, poll_s=3600.0)
        feed.until(lambda: len(feed.market) == 700, "what there was before")
        if memory == "the file's":
            feed.settle()
            feed.ring.clear()
        before = len(feed.market)
        feed.source.close()
        feed.log_of = recording.log_of
        feed.open()
        feed.until(lambda: len(feed.market) == 792, "what is new")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch, before=before)
    assert len(replay) == 92
    assert (replay["flags"][0] & ~np.uint16(Flag.REPLAYED)) == CORRECTED | BACK


def test_a_feed_that_is_closed_amid_an_answer_and_opened_again(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of the answers was published in part; the next has the rest."""
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, poll_s=3600.0)
        feed.until(lambda: len(feed.market) >= 256, "a part of the answer")
        assert len(feed.market) < 790
        feed.source.close()
        feed.open()
        feed.until(lambda: len(feed.market) == 790, "the rest")
        feed.settle()
        assert_replays_alike(feed, recording, monkeypatch)


def test_a_worker_that_is_killed_amid_an_answer_leaves_what_the_ring_had(
    samples: Path, tmp_path: Path, feeds: Make
) -> None:
    """But for its last poll, of which it could not say any more that the ring has it: as what waited for the disk."""
    before, after = (Recording(CaptureSettings(folder=str(tmp_path / name))) for name in ("before", "after"))
    with VendorServer({"FEDFUNDS": [Reply(fred_body(fred_rows(samples)))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, poll_s=3600.0, log_of=before.log_of)
        feed.until(lambda: len(feed.market) >= 256, "a part of the answer")
        killed, reached, last = feed.source, len(feed.market), len(feed.ring[-1])
        before.close()
        feed.log_of = after.log_of
        feed.open()  # nobody has closed the one before
        feed.until(lambda: len(feed.market) == 790, "the rest")
        feed.settle()
        feed.source.close()
        after.close()
        killed._observed.close()
    live = comparable(feed.records)
    first, second = (comparable(replayed(made.logs[0].paths, feed.names)) for made in (before, after))
    assert len(first) == reached - last
    assert_alike(live[: len(first)], first)
    assert_alike(live[reached:], second)


def test_what_goes_wrong_brings_nothing_and_is_in_the_capture(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Reply(fred_body([fred_row("2020-01-01", "3.5")]))
    odd = fred_body([fred_row("2020-01-01", "3.5"), fred_row("2020-02-31", "1"), fred_row("2020-03-01", "4.5")])
    script = [
        good,
        Reply(b'{"count": 1, "observations": [{"date": "20'),
        good,
        Reply(b"\xff\xfe garbage"),
        good,
        Reply(b"oops", status=500),
        good,
        Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        good,
        Reply(fred_body([fred_row("2020-01-01", "1.0")]), cut=40),
        good,
        Reply(b"{}", status=429, headers={"Retry-After": "1"}),
        Reply(odd),
    ]
    with VendorServer({"UNRATE": script}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base)
        feed.until(lambda: len(feed.market) == 2, "what is new in the last one")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch, malformed=1)
    assert replay["price"].tolist() == [3.5, 4.5]
    (path,) = recording.logs[0].paths
    lines = lines_of(path)
    statuses = [line.get("status", 0) for line in lines if line["t"] == "http"][: len(script)]
    assert statuses == [200, 200, 200, 200, 200, 500, 200, 302, 200, 0, 200, 429, 200]
    why = [note["why"] for note in notes(path) if "why" in note]
    for word, text in zip(("no observ", "no observ", "HTTP 500", "points elsewhere", "waits 1 s"), why, strict=True):
        assert word in text
    garbage = next(line for line in lines if line.get("b64"))
    assert garbage["t"] == "http"
    described = describe_capture(path)
    assert (described["messages"]["refusal"], described["messages"]["no answer"]) == (5, 1)
    assert described["malformed"] == {"entry": 1}
    assert feed.source.gaps == described["gaps"] == 0


def test_symbols_that_are_refused_or_in_the_vendors_words_no(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Reply(fred_error("Bad Request. The series does not exist."), status=400)
    with VendorServer({"NOPE": [bad], "UNRATE": [Reply(fred_body([fred_row("2020-01-01", "3.5")]))]}) as vendor:
        feed = feeds("fred", ("NOPE", "UNRATE"), url=vendor.base)
        feed.until(lambda: vendor.counts["UNRATE"] >= 3, "the good one, several times")
        feed.settle()
        assert_replays_alike(feed, recording, monkeypatch)
    (path,) = recording.logs[0].paths
    assert [note["why"] for note in notes(path) if "why" in note] == ["Bad Request. The series does not exist."]


def test_alpha_vantage_prices_quotes_and_bars(
    samples: Path, tmp_path: Path, feeds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last price's time is that of its receipt."""
    day = str(np.datetime64(TODAY_NS, "ns") + np.timedelta64(2, "D"))[:10]  # not over anywhere
    rate = (
        b'{"Realtime Currency Exchange Rate": {"6. Last Refreshed": "2024-05-01 10:00:0%d", "7. Time Zone": "UTC", '
        b'"8. Bid Price": "1.06710", "9. Ask Price": "1.06720"}}'
    )
    bars = [
        Reply((samples / "vendor/alphavantage/mock_time_series").read_bytes()),
        Reply(av_series({"2024-05-01 10:01:00": 5.0, "2024-05-01 10:00:00": 4.0})),
        Reply(av_series({"2024-05-01 10:02:00": 6.0, "2024-05-01 10:01:00": 5.5, "2024-05-01 10:00:00": 4.0})),
    ]
    quotes = [Reply(av_quote("IBM", day, price)) for price in ("10.5", "10.5", "10.6", "10.5")]
    rates = [Reply(rate % second) for second in (1, 1, 2)]
    script = {"MSFT": bars, "IBM": quotes, "EUR/USD": rates}
    with VendorServer(script) as vendor:
        for symbol, types, count in (("MSFT", ("bar",), 104), ("IBM", ("tick",), 3), ("EUR/USD", ("quote",), 2)):
            made = Recording(CaptureSettings(folder=str(tmp_path / types[0])))
            monkeypatch.setenv("FRED_API_KEY", KEY)
            monkeypatch.setenv("ALPHA_VANTAGE_API_KEY", KEY)
            feed = feeds("alpha_vantage", (symbol,), types, url=vendor.base, interval="1min", log_of=made.log_of)
            feed.until(lambda symbol=symbol: vendor.counts[symbol] >= 5, "five requests")
            feed.settle()
            replay = assert_replays_alike(feed, made, monkeypatch)
            assert len(replay) == count
            assert KEY.encode() not in bytes_of(made)


def test_several_symbols_and_types_of_one_feed(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last prices and bars of two symbols, asked for in turn."""
    quote = [Reply(av_quote("A", "2018-10-05", price)) for price in ("1.5", "1.6")]
    bars = [Reply(av_series({"2024-05-01 10:00:00": price})) for price in (4.0, 4.5)]
    both = [reply for pair in zip(quote, bars, strict=True) for reply in pair]  # tick, bar, tick, bar
    with VendorServer({"A": both, "B": both}) as vendor:
        feed = feeds("alpha_vantage", ("A", "B"), ("tick", "bar"), url=vendor.base, interval="1min")
        feed.until(lambda: len(feed.market) == 8, "all of it")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch)
    assert set(replay["instrument_id"].tolist()) == {0, 1}
    assert set(replay["record_type"].tolist()) == {RecordType.TICK, RecordType.BAR}


def test_yahoo_charts(samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = yahoo_chart(samples)
    missing = {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found, delisted"}}}
    other = json.loads(json.dumps(chart))
    other["chart"]["result"][0]["indicators"]["quote"][0]["volume"][0] += 1
    script = {
        "AAPL": [Reply(json.dumps(chart).encode()), Reply(json.dumps(other).encode())],
        "GONE": [Reply(json.dumps(missing).encode(), status=404)],
    }
    with VendorServer(script) as vendor:
        options = {"url": vendor.base, "interval": "1d", "range": "5d", "headers": {"X-Token": "h3ader-secret"}}
        feed = feeds("yahoo", ("GONE", "AAPL"), ("bar",), **options)
        feed.until(lambda: vendor.counts["AAPL"] >= 3, "three charts")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch)
    assert (replay["flags"] & CORRECTED != 0).tolist() == [False, True]
    assert b"h3ader" not in bytes_of(recording)
    assert describe_capture(recording.logs[0].paths[0])["format"].startswith("Yahoo answers over HTTP")


def test_the_key_is_written_nowhere(samples: Path, feeds: Make, recording: Recording) -> None:
    bad = Reply(fred_error(f"Bad Request. The value for variable api_key ({KEY}) is not registered."), status=400)
    broken = Reply(f'"{KEY}'.encode() + b"\xff")
    with VendorServer({"UNRATE": [Reply(fred_body(fred_rows(samples))), broken, bad]}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base, key_variable="FRED_API_KEY")
        feed.until(lambda: feed.source.report.state == "failed", "the key is refused")
        assert vendor.asked[0]["api_key"] == KEY
        feed.source.close()
    recording.close()
    (path,) = recording.logs[0].paths
    lines = lines_of(path)
    assert KEY not in json.dumps(lines)
    assert all(KEY.encode() not in base64.b64decode(line["b64"]) for line in lines if "b64" in line)
    asked = next(line for line in lines if line["t"] == "ask")
    assert "api_key=[redacted]" in asked["url"]
    assert "series_id=UNRATE" in asked["url"]
    assert "[redacted]" in lines[0]["feed"]["options"]["key_variable"]
    assert any("is refused" in note.get("why", "") for note in notes(path))
    with open_capture(path, intern=lambda _: 0) as capture:
        assert capture.decode(empty(1000)) == 790


def test_parts_are_one_capture_and_each_is_good_alone(
    samples: Path, tmp_path: Path, feeds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a part alone lacks, an answer in the one before it, is told."""
    made = Recording(CaptureSettings(folder=str(tmp_path / "parts"), part_bytes=4096, compress="none", flush_s=0.001))
    rows = fred_rows(samples)
    script = [Reply(fred_body(rows[:count])) for count in (200, 600, 602, 788, 790)]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=made.log_of)
        feed.until(lambda: len(feed.market) == 790, "all of it")
        feed.settle()
        assert_replays_alike(feed, made, monkeypatch)
    paths = made.logs[0].paths
    assert len(paths) > 3
    assert chains(paths) == [tuple(paths)]
    found, missing = [], 0
    for path in paths:
        alone = replayed([path], feed.names)
        status = alone["record_type"] == RecordType.STATUS
        gaps = of(alone, status)
        assert (gaps["code"] == StatusCode.GAP).all()
        missing += sum(int(text.split()[0]) for text in gaps["text"].tolist() if text.endswith(b"without their answer"))
        if len(gaps) and not status.all():
            first = alone[int(np.flatnonzero(~status)[0])]
            assert first["flags"] & Flag.GAP_BEFORE
        found.append(of(alone, ~status))
    assert len(concatenate(found)) + missing == 790


def test_a_queue_that_is_full_costs_answers_and_is_told(samples: Path, tmp_path: Path, feeds: Make) -> None:
    """The second answer alone is longer than the queue may be."""
    rows = fred_rows(samples)
    script = [Reply(fred_body(rows[:20])), Reply(fred_body(rows)), Reply(fred_body(rows[780:]))]
    script += [Reply(fred_body([*rows[785:], fred_row("2020-05-01", "1.5", "2020-06-01")]))]
    size = len(script[1].body)
    assert size > 1 << 16
    spec_of = CaptureSettings(folder=str(tmp_path / "small"), queue_bytes=1 << 16)
    made = Recording(spec_of)
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=made.log_of)
        feed.until(lambda: len(feed.market) == 791, "all of it")
        feed.settle()
        feed.source.close()
    made.close()
    log: CaptureLog = made.logs[0]
    assert log.dropped == 1
    (dropped,) = [line for line in lines_of(log.paths[0]) if line["t"] == "dropped"]
    assert dropped["messages"] == 1
    assert dropped["bytes"] >= size
    replay = replayed(log.paths, feed.names)
    status = replay["record_type"] == RecordType.STATUS
    said = of(replay, status)["text"].tolist()
    assert said[0] == b"1 messages not captured"
    assert all(text.endswith(b"records without their answer") for text in said[1:])
    assert sum(int(text.split()[0]) for text in said[1:]) == 770
    assert_alike(
        of(comparable(feed.records), np.isin(np.arange(791), [*range(20), 790])),
        without(of(comparable(replay), ~status), Flag.GAP_BEFORE),
    )
    assert (of(replay, ~status)["flags"] & Flag.GAP_BEFORE != 0).tolist() == [False] * 20 + [True]
    described = describe_capture(log.paths[0])
    assert described["missing"] == 770
    assert described["gaps"] == len(said)


def test_an_answer_too_long_for_a_line_is_dropped_and_told(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reader would take the line, nor what comes after it."""
    monkeypatch.setattr(capture_log, "LINE_MAX_BYTES", 4096)
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows[:count])) for count in (2, 700, 2)]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 4, "four requests")
        feed.settle()
        feed.source.close()
    recording.close()
    (log,) = recording.logs
    assert log.dropped == 1
    (dropped,) = [line for line in lines_of(log.paths[0]) if line["t"] == "dropped"]
    assert (dropped["messages"], dropped["bytes"] > 4096) == (1, True)
    replay = replayed(log.paths, feed.names)
    texts = of(replay, replay["record_type"] == RecordType.STATUS)["text"].tolist()
    assert texts[0] == b"1 messages not captured"
    assert sum(int(text.split()[0]) for text in texts[1:]) == 698
    assert len(replay) - len(texts) == 2


def test_a_line_is_read_whatever_the_pieces_in_which_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = {"name": "f", "source": "fred"}
    lines = [{"t": "header", "feed": feed}, *({"t": "http", "ns": ns, "data": "x" * ns} for ns in (5, 300, 7))]
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    for step in (1, 3, 100, len(data)):
        reader = JsonlReader()
        found = [reader.feed(data[at : at + step]) for at in range(0, len(data), step)]
        assert reader.finish() == len(json.dumps(lines[-1]))  # its end is missing
        found.append(reader.feed(b"\n"))
        assert reader.finish() == 0
        frames = [(batch.buffer, frame) for batch in found for frame in batch.frames]
        texts = [buffer[int(frame["offset"]) :][: int(frame["size"])] for buffer, frame in frames]
        assert [json.loads(text) for text in texts] == lines[1:]
        assert [int(frame["ts_receive"]) for _, frame in frames] == [5, 300, 7]
    monkeypatch.setattr(jsonl, "LINE_MAX_BYTES", 100)
    reader = JsonlReader()
    for at in range(0, 120, 10):
        reader.feed(data[-300:][at : at + 10])
    assert "jsonl: a line of more than" in str(reader.error)
    assert reader.finish() == 0


def without(records: np.ndarray, flag: Flag) -> np.ndarray:
    records["flags"] &= ~np.uint16(flag)
    return records


def test_a_file_that_is_cut_off_gives_what_came_before(samples: Path, tmp_path: Path, feeds: Make) -> None:
    made = Recording(CaptureSettings(folder=str(tmp_path / "cut"), compress="none"))
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows[:count])) for count in (3, 5, 9)]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=made.log_of)
        feed.until(lambda: len(feed.market) == 9, "all of it")
        feed.settle()
        feed.source.close()
    made.close()
    (path,) = made.logs[0].paths
    whole, live = path.read_bytes(), comparable(feed.records)
    head = whole.index(b"\n") + 1
    sizes = set()
    for end in range(head, len(whole) + 17, 17):
        short = tmp_path / "short.jsonl"
        short.write_bytes(whole[:end])
        with open_capture(short, intern=feed.names.__getitem__, feed_id=3) as capture:
            replay = comparable(of(out := empty(64), np.arange(64) < capture.decode(out)))
        sizes.add(len(replay))
        for row in range(len(replay)):
            assert live[row].tobytes() == replay[row].tobytes()
    assert sizes == {0, 3, 5, 9}


def source_of(path: Path, **options: Any) -> Any:
    spec = FeedSpec(feed_id=9, name="r", source="replay", options={"files": (str(path),), "speed": "max", **options})
    return open_source(SourceContext(spec, lambda _: 0))


def test_replayed_as_a_feed_with_a_filter_and_another_code(samples: Path, feeds: Make, recording: Recording) -> None:
    with VendorServer({"FEDFUNDS": [Reply(fred_body(fred_rows(samples)))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 3, "three requests")
        feed.settle()
        feed.source.close()
    recording.close()
    (path,) = recording.logs[0].paths
    found = drain(source_of(path, decoder={"venue": "MINE"}))
    assert len(found) == 791
    assert (found["feed_id"] == 9).all()
    assert (found["venue"][:-1] == b"MINE").all()
    assert found["code"][-1] == StatusCode.END_OF_REPLAY


def test_faults_on_purpose_are_refused_in_a_line(samples: Path, feeds: Make, recording: Recording) -> None:
    with VendorServer({"FEDFUNDS": [Reply(fred_body(fred_rows(samples)))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: len(feed.market) == 790, "all of it")
        feed.settle()
        feed.source.close()
    recording.close()
    (path,) = recording.logs[0].paths
    with pytest.raises(SettingsError, match=r"faults: .*jsonl.zst is of a polled feed, whose answers come whole"):
        drain(source_of(path, faults="drop=0.1"))


def written(folder: Path, *lines: dict[str, Any], **feed: Any) -> Path:
    """A capture by hand."""
    about = {"name": "f", "source": "fred", "symbols": ["X"], "data_types": [], "options": {}, **feed}
    head = {"t": "header", "format": 2, "exchange": "FRED", "feed": about}
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))
    return path


@pytest.mark.parametrize(
    ("answer", "note", "said", "malformed"),
    [
        ({}, {"answer": 5, "rows": [[0, 1, 0]]}, [], {}),
        ({"ns": 6}, {"answer": 5, "rows": [[0, 1, 0]]}, [b"1 records without their answer"], {}),
        ({"conn": "Y tick"}, {"answer": 5, "rows": [[0, 1, 0]]}, [b"1 records without their answer"], {}),
        (
            {},
            {"answer": 5, "rows": [[0, 1, 0], [1, 9, 0]]},
            [b"10 records without their answer"],
            {"answer with less in it than was published of it": 1},
        ),
        (
            {"data": "garbage"},
            {"answer": 5, "rows": [[0, 1, 0]]},
            [b"1 records without their answer"],
            {"answer that can't be read": 1},
        ),
        (
            {"status": 500},
            {"answer": 5, "rows": [[0, 1, 0]]},
            [b"1 records without their answer"],
            {"answer that can't be read": 1},
        ),
        ({}, {"answer": 5, "rows": [[-1, 1, 0]]}, [], {"line": 1}),
        ({}, {"answer": 5, "rows": [[0, 0, 0]]}, [], {"line": 1}),
        ({}, {"answer": 5, "rows": [[0, 1, 1 << 16]]}, [], {"line": 1}),
        ({}, ["no note"], [], {"line": 1}),
        ({}, {"answer": 5, "why": "because"}, [], {}),
    ],
)
def test_captures_that_somebody_has_changed(
    tmp_path: Path, answer: dict[str, Any], note: Any, said: list[bytes], malformed: dict[str, int]
) -> None:
    body = fred_body([fred_row("2020-01-01", "3.5")]).decode()
    path = written(
        tmp_path,
        {"t": "http", "conn": "X tick", "ns": 5, "status": 200, "data": body, **answer},
        {"t": "note", "conn": "X tick", "ns": 7, "data": json.dumps(note)},
        {"t": "note", "conn": "X tick", "ns": 7, "kept": True, "data": json.dumps(note)},  # told again
        {"t": "disconnect", "conn": "X tick", "ns": 8},
    )
    with open_capture(path, intern=lambda _: 0) as capture:
        count = capture.decode(out := empty(16))
        found = out[:count]
        assert capture.decode(empty(16)) == 0
        assert capture.counters.malformed == malformed
    texts = of(found, found["record_type"] == RecordType.STATUS)["text"].tolist()
    assert texts == said
    good = not said and not malformed and "rows" in note
    assert len(found) - len(texts) == good


@pytest.mark.parametrize(
    "feed",
    [
        {"symbols": None},
        {"symbols": []},
        {"data_types": ["bar"]},
        {"options": {"vintages": "perhaps"}},
        {"options": {"unheard_of": 1}},
        {"source": "yahoo", "data_types": ["bar", "tick"]},
    ],
)
def test_a_header_of_a_feed_that_can_not_be_is_said(tmp_path: Path, feed: dict[str, Any]) -> None:
    with pytest.raises(UnknownFormatError, match="names a feed that can't be decoded here"):
        open_capture(written(tmp_path, **feed), intern=lambda _: 0)


def test_long_stretches_without_news_are_not_read_in_one_poll(tmp_path: Path) -> None:
    """A worker that did so would be taken for a stuck one."""
    same = [{"t": "http", "conn": "X tick", "ns": ns, "status": 200, "data": "x" * 300_000} for ns in range(1, 41)]
    body = fred_body([fred_row("2020-01-01", "3.5")]).decode()
    news = {"t": "http", "conn": "X tick", "ns": 50, "status": 200, "data": body}
    note = {"t": "note", "conn": "X tick", "ns": 51, "data": json.dumps({"answer": 50, "rows": [[0, 1, 0]]})}
    source = source_of(written(tmp_path, *same, news, note))
    counts = []
    while source.next_due_ns is not None:
        counts.append(source.poll(empty(10), 1))
    assert sum(counts) == 2
    assert counts[:8] == [0] * 8


def test_rows_become_runs() -> None:
    rows, flags = np.array([0, 1, 2, 4, 5, 9]), np.array([8, 8, 0, 0, 0, 8], np.uint16)
    assert runs_of(rows, flags) == [(0, 2, 8), (2, 1, 0), (4, 2, 0), (9, 1, 8)]
