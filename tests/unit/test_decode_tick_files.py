"""Dukascopy, TrueFX and LOBSTER files: the samples against figures and models of their own, names, damage."""

from __future__ import annotations

import csv
import lzma
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from shm.errors import BadArgument
from shm.layout import Action, Flag, RecordType, Side, StatusCode, concatenate, empty
from tests.ticks import Bench
from tests.unit.test_decode_samples import of_type, read
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.protocol import FramingError, UnknownFormatError
from workers.errors import SettingsError

SECOND_NS = 1_000_000_000
DAY = "ticks/dukascopy/EURUSD/2019/01/04"
LOBSTER = "ticks/lobster/AAPL_2012-06-21_34200000_57600000_message_10.csv"


def utc(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND_NS  # type: ignore[misc, arg-type]


# ---- Dukascopy ----------------------------------------------------------------------------------------------------


def day_of_quotes(samples: Path) -> np.ndarray:
    """All ticks of the captured day, in order."""
    return concatenate([read(path)[0] for path in sorted((samples / DAY).glob("*h_ticks.bi5"))])


def test_dukascopy_ticks_are_quotes_of_the_day_that_the_path_names(samples: Path) -> None:
    quotes = day_of_quotes(samples)
    assert len(quotes) == 136_741
    assert set(quotes["record_type"]) == {RecordType.QUOTE}
    assert utc(2019, 2, 4) <= quotes["ts_event"][0] < quotes["ts_event"][-1] < utc(2019, 2, 5)
    assert np.all(np.diff(quotes["ts_event"]) >= 0)
    _, summary, symbols = read(samples / DAY / "00h_ticks.bi5")
    assert symbols == {0: "EURUSD"}
    assert summary["format"] == "Dukascopy .bi5 (lzma)"
    first = quotes[0]
    assert first["ts_event"] == utc(2019, 2, 4) + 994_000_000
    assert (first["bid"], first["ask"], first["bid_size"], first["ask_size"]) == (1.14543, 1.14545, 2.06, 1.0)


def test_bars_built_from_dukascopy_ticks_equal_its_own_minute_candles(engine_name: str, samples: Path) -> None:
    quotes = day_of_quotes(samples)
    bids = empty(len(quotes))
    for field in ("ts_event", "instrument_id", "feed_id", "source", "flags", "venue"):
        bids[field] = quotes[field]
    bids["record_type"] = RecordType.TRADE
    bids["ts_receive"] = quotes["ts_event"]
    bids["price"], bids["size"] = quotes["bid"], quotes["bid_size"]
    built = []
    with Bench(engine_name, intervals_s=(60,), depth_slots=4096) as bench:
        for first in range(0, len(bids), 1000):
            bench.writers[2].publish_batch(bids[first : first + 1000])
            bench.turn()
            built += bench.new_bars()
        last = bids[-1:].copy()
        last["ts_event"] += 60 * SECOND_NS  # closes the last minute
        bench.turn(last)
        built += bench.new_bars()
    candles, summary, _ = read(samples / DAY / "BID_candles_min_1.bi5")
    assert summary["records"] == {"bar": 1440}
    assert set(candles["interval_s"]) == {60}
    assert np.array_equal(candles["ts_receive"], candles["ts_event"] + 60 * SECOND_NS)
    assert [int(bar["ts_event"]) for bar in built] == candles["ts_event"].tolist()
    for bar, candle in zip(built, candles, strict=True):
        for field in ("open", "high", "low", "close"):
            assert bar[field] == candle[field], field
        assert np.float32(bar["volume"]) == pytest.approx(np.float32(candle["volume"]), rel=1e-6)


def bi5(folder: Path, name: str, *ticks: tuple[int, int, int, float, float]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(b"".join(struct.pack(">IIIff", *tick) for tick in ticks), lzma.FORMAT_ALONE))
    return path


def test_dukascopy_prices_of_yen_are_in_thousandths_unless_an_option_says_otherwise(tmp_path: Path) -> None:
    path = bi5(tmp_path, "USDJPY/2020/11/31/23h_ticks.bi5", (5, 103_251, 103_249, 1.5, 0.12))
    (tick,) = read(path)[0]
    assert (tick["bid"], tick["ask"], tick["ask_size"], tick["bid_size"]) == (103.249, 103.251, 1.5, 0.12)
    assert tick["ts_event"] == utc(2020, 12, 31, 23) + 5_000_000
    (tick,) = read(path, point=0.01)[0]
    assert tick["bid"] == 1032.49


def test_an_hour_without_ticks_is_an_empty_file_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD/2020/00/05/03h_ticks.bi5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    records, summary, _ = read(path)
    assert (len(records), summary["malformed"], summary["truncated_bytes"]) == (0, {}, 0)


@pytest.mark.parametrize(
    "name", ["09h_ticks.bi5", "EURUSD/2020/12/01/09h_ticks.bi5", "EURUSD/2020/01/30/09h_ticks.bi5"]
)
def test_a_path_that_does_not_say_what_and_when_needs_options(tmp_path: Path, name: str) -> None:
    path = bi5(tmp_path, name, (0, 110_000, 109_999, 1, 1))
    with pytest.raises(SettingsError, match="SYMBOL/YYYY/MM/DD"):
        read(path)
    (tick,) = read(path, symbol="EURUSD", date="2020-02-29")[0]
    assert tick["ts_event"] == utc(2020, 2, 29, 9)


def test_damaged_dukascopy_files_give_what_stands_before_the_damage(tmp_path: Path) -> None:
    ticks = [(step, 110_000 + step, 109_999 + step, 1, 1) for step in range(5000)]
    path = bi5(tmp_path, "EURUSD/2020/00/05/03h_ticks.bi5", *ticks, (3_600_000, 1, 1, 1, 1))
    records, summary, _ = read(path)
    assert len(records) == 5000
    assert summary["malformed"] == {"bad value": 1}
    path.write_bytes(path.read_bytes()[:-200])
    cut = describe_capture(path)
    assert "the file ends inside the compressed stream" in cut["error"]
    assert 0 < cut["records"]["quote"] < 5000


# ---- TrueFX -------------------------------------------------------------------------------------------------------


def test_truefx_quotes_sum_up(samples: Path) -> None:
    quotes, summary, symbols = read(samples / "ticks/truefx/usdjpy-ticks.csv")
    assert summary["messages"] == {"quote": 1000, "header": 1}
    assert (len(quotes), symbols) == (1000, {0: "USDJPY"})
    assert quotes["bid"].sum() == pytest.approx(86_758.734, abs=1e-6)
    assert quotes["ask"].sum() == pytest.approx(86_780.553, abs=1e-6)
    assert quotes["ts_event"][0] == utc(2013, 1, 1, 22) + 295_000_000
    assert quotes["ts_event"][-1] == utc(2013, 1, 1, 22, 35, 13) + 494_000_000
    assert np.isnan(quotes["bid_size"]).all()


def test_times_without_colons_are_new_yorks_winter_time(samples: Path) -> None:
    path = samples / "ticks/truefx/quote_tick_data.csv"
    quotes, summary, symbols = read(path, symbol="EURUSD")
    assert (len(quotes), symbols, summary["malformed"]) == (9500, {0: "EURUSD"}, {})
    with path.open() as lines:
        rows = list(csv.reader(lines))
    assert quotes["bid"].tolist() == [float(row[1]) for row in rows]
    assert quotes["ask"].tolist() == [float(row[2]) for row in rows]
    zone = ZoneInfo("Etc/GMT+5")
    for row, ts_event in zip(rows[::500], quotes["ts_event"][::500], strict=True):
        at = datetime.strptime(row[0][:15], "%Y%m%d %H%M%S").replace(tzinfo=zone)
        assert ts_event == int(at.timestamp()) * SECOND_NS + int(row[0][15:]) * 1_000_000
    assert read(path)[2] == {0: "quote_tick_data"}  # nothing says what it is of


def test_each_way_to_write_a_quote(tmp_path: Path) -> None:
    def quote_of(line: str, name: str = "DAT_ASCII_GBPUSD_T_202007.csv") -> tuple[str, int, float, float]:
        (tmp_path / name).write_text(line)
        records, summary, symbols = read(tmp_path / name)
        assert summary["malformed"] == {}
        (record,) = records
        return (
            symbols[int(record["instrument_id"])],
            int(record["ts_event"]),
            float(record["bid"]),
            float(record["ask"]),
        )

    at = utc(2020, 7, 1, 12)
    assert quote_of("20200701 120000007,1.2,1.3,0\n") == ("GBPUSD", at + 5 * 3600 * SECOND_NS + 7_000_000, 1.2, 1.3)
    assert quote_of("EUR/USD,20200701 12:00:00.247,1.3228,1.32289\r\n") == (
        "EUR/USD",
        at + 247_000_000,
        1.3228,
        1.32289,
    )
    assert quote_of("2020-07-01T12:00:00Z,1,2") == ("GBPUSD", at, 1, 2)
    assert quote_of("2020-07-01 14:30:00.123456789+02:30,1,2") == ("GBPUSD", at + 123_456_789, 1, 2)
    assert quote_of("time,bid,ask\n2020-07-01 04:00:00-0800,1,2\n", "x.csv")[:2] == ("x", at)
    assert quote_of("2020-02-29 00:00:00,1,2")[1] == utc(2020, 2, 29)


def test_a_name_that_no_instrument_can_have_needs_the_option(tmp_path: Path) -> None:
    def intern(symbol: str) -> int:
        if len(symbol) > 32:
            raise BadArgument("symbol is longer than 32 bytes")
        return 5

    path = tmp_path / "quotes-of-a-broker-that-nobody-has-ever-heard-of.csv"
    path.write_text("2021-01-01 00:00:00,1,2\n")
    with pytest.raises(SettingsError, match="name option symbol"):
        open_capture(path, intern=intern)
    with open_capture(path, intern=intern, options={"symbol": "EURUSD"}) as capture:
        assert capture.decode(empty(5)) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2021-02-29 00:00:00,1,2", "bad value"),
        ("2021-13-01 00:00:00,1,2", "bad value"),
        ("2021-01-01 24:00:00,1,2", "bad value"),
        ("2021-01-01 00:00:0,1,2", "bad value"),
        ("2021-01-01 00:00:00+2,1,2", "bad value"),
        ("20210101 0000000001,1,2", "bad value"),
        ("2021-01-01 00:00:00,-1,2", "bad value"),
        ("2021-01-01 00:00:00,,2", "bad value"),
        ("2021-01-01 00:00:00,1", "bad length"),
        ("EUR/USD", "bad symbol"),
    ],
)
def test_a_bad_line_is_counted_and_passed_over(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "EURUSD.csv"
    path.write_text(f"2021-01-01 00:00:00,1,2\n{line}\n2021-01-01 00:00:01,3,4\n")
    records, summary, _ = read(path)
    assert records["bid"].tolist() == [1, 3]
    assert summary["malformed"] == {reason: 1}


# ---- LOBSTER ------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[list[int | float]]:
    with path.open() as lines:
        return [[float(one) if "." in one else int(one) for one in row] for row in csv.reader(lines)]


Book = dict[float, float]


def books_of(row: list[Any]) -> dict[int, Book]:
    """Price -> size by side of a line of an order book file."""
    levels = list(zip(*(row[first::4] for first in range(4)), strict=True))
    return {
        Side.SELL: {ask / 1e4: size for ask, size, _, _ in levels if size},
        Side.BUY: {bid / 1e4: size for _, _, bid, size in levels if size},
    }


def test_lobster_levels_rebuild_the_book_of_every_line(samples: Path) -> None:
    events = rows_of(samples / LOBSTER)
    wanted = [books_of(row) for row in rows_of(samples / LOBSTER.replace("message", "orderbook"))]
    records, summary, symbols = read(samples / LOBSTER)
    assert (symbols, summary["malformed"]) == ({0: "AAPL"}, {})
    assert summary["messages"] == {"new order": 471, "deletion": 369, "execution": 98, "hidden execution": 61}
    levels = of_type(records, RecordType.LEVEL2)
    assert levels["action"][0] == Action.CLEAR
    assert np.count_nonzero(levels["flags"] & Flag.SNAPSHOT) == 21
    midnight = int(datetime(2012, 6, 21, tzinfo=ZoneInfo("America/New_York")).timestamp()) * SECOND_NS
    ends = iter(np.flatnonzero(levels["flags"] & Flag.LAST_OF_BATCH))
    have: dict[int, Book] = {Side.BUY: {}, Side.SELL: {}}
    begin = 0
    for event, book in zip(events, wanted, strict=True):
        if have != book:
            end = int(next(ends)) + 1
            for level in levels[begin:end]:
                assert level["ts_event"] == midnight + round(event[0] * 1e9)
                assert level["source_sequence"] == event[2]
                if level["action"] == Action.CLEAR:
                    continue
                side = have[int(level["side"])]
                if level["action"] == Action.DELETE:
                    del side[float(level["price"])]
                else:
                    assert (level["action"] == Action.ADD) == (float(level["price"]) not in side)
                    side[float(level["price"])] = float(level["size"])
            begin = end
        assert have == book
        if begin:
            last = levels[begin - 1]
            assert (last["best_bid"], last["best_ask"]) == (max(book[Side.BUY]), min(book[Side.SELL]))
    assert begin == len(levels)


def test_lobster_executions_are_trades_against_the_standing_order(samples: Path) -> None:
    struck = [row for row in rows_of(samples / LOBSTER) if row[1] in (4, 5)]
    trades = of_type(read(samples / LOBSTER)[0], RecordType.TRADE)
    assert len(trades) == 98 + 61
    assert trades["price"].tolist() == [row[4] / 1e4 for row in struck]
    assert trades["size"].tolist() == [row[3] for row in struck]
    assert trades["side"].tolist() == [Side.SELL if row[5] == 1 else Side.BUY for row in struck]
    assert trades["condition"].tolist() == [b"hidden" if row[1] == 5 else b"" for row in struck]


def test_lobster_quotes_come_when_the_best_changes(samples: Path) -> None:
    quotes = of_type(read(samples / LOBSTER)[0], RecordType.QUOTE)
    wanted: list[tuple[float, ...]] = []
    for ask, ask_size, bid, bid_size, *_ in rows_of(samples / LOBSTER.replace("message", "orderbook")):
        best = (bid / 1e4, bid_size, ask / 1e4, ask_size)
        if not wanted or wanted[-1] != best:
            wanted.append(best)
    assert [tuple(map(float, (q["bid"], q["bid_size"], q["ask"], q["ask_size"]))) for q in quotes] == wanted


def lobster(folder: Path, events: str, books: str) -> Path:
    path = folder / "XYZ_2020-01-02_34200000_57600000_message_2.csv"
    path.write_text(events)
    (folder / path.name.replace("message", "orderbook")).write_text(books)
    return path


def test_lobster_levels_that_are_not_there_make_no_records_and_halts_make_status(tmp_path: Path) -> None:
    path = lobster(
        tmp_path,
        "34200.0,1,7,100,10000,1\n34201,7,0,0,-1,-1\n34202,7,0,0,0,-1\n34202.1,7,0,0,1,-1\n34202.2,7,0,0,9,-1\n"
        "34202.5,3,7,100,10000,1\n",
        "9999999999,0,10000,100,9999999999,0,-9999999999,0\n" * 5
        + "9999999999,0,-9999999999,0,9999999999,0,-9999999999,0\n",
    )
    records, summary, _ = read(path)
    assert summary["messages"] == {"new order": 1, "halt": 4, "deletion": 1}
    told = of_type(records, RecordType.STATUS)
    assert told["text"].tolist() == [
        b"halted: LOBSTER 7, price -1",
        b"quote only: LOBSTER 7, price 0",
        b"trading: LOBSTER 7, price 1",
        b"unknown: LOBSTER 7",
    ]
    assert set(told["code"]) == {StatusCode.TRADING_STATUS}
    assert (np.diff(told["ts_event"]) > 0).all()
    levels, quotes = of_type(records, RecordType.LEVEL2), of_type(records, RecordType.QUOTE)
    assert levels["action"].tolist() == [Action.CLEAR, Action.ADD, Action.DELETE]
    assert quotes["bid_size"].tolist() == [100, 0]
    assert np.isnan(quotes["ask"]).all()
    assert quotes["bid"][0] == 1.0
    assert np.isnan(quotes["bid"][1])


def test_lobster_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    event, book = "34200.0,1,7,100,10000,1\n", "10100,5,10000,100\n"
    assert describe_capture(lobster(tmp_path, event * 3, book * 3))["error"] == ""
    short = describe_capture(lobster(tmp_path, event * 3, book * 2))
    assert "XYZ_2020-01-02_34200000_57600000_message_2.csv goes on" in short["error"]
    assert short["messages"] == {"new order": 2}
    long = describe_capture(lobster(tmp_path, event * 2, book * 3))
    assert "orderbook_2.csv goes on" in long["error"]
    path = lobster(tmp_path, event, book)
    with pytest.raises(UnknownFormatError, match="which reads both"):
        read(path.with_name(path.name.replace("message", "orderbook")))
    path.with_name(path.name.replace("message", "orderbook")).unlink()
    with pytest.raises(FileNotFoundError, match="orderbook"):
        read(path)


@pytest.mark.parametrize(
    ("event", "book", "reason"),
    [
        ("34200.0,8,7,100,10000,1", "10100,5,10000,100", "bad value"),
        ("86401,1,7,100,10000,1", "10100,5,10000,100", "bad value"),
        ("34200.,1,7,100,10000,1", "10100,5,10000,100", "bad value"),
        ("34200,1,7,100,10000,0", "10100,5,10000,100", "bad value"),
        ("34200,1,7,100,10000", "10100,5,10000,100", "bad value"),
        ("34200,1,7,100,10000,1", "10100,5,10000", "bad length"),
        ("34200,1,7,100,10000,1", "10100,5,10000,100,10200,5,9900,100", "bad length"),
        ("34200,1,7,100,10000,1", "10100,five,10000,100", "bad length"),
    ],
)
def test_a_bad_lobster_line_is_counted_and_changes_nothing(tmp_path: Path, event: str, book: str, reason: str) -> None:
    right, state = "34200.0,1,7,100,10000,1\n", "10100,5,10000,100\n"
    path = lobster(tmp_path, f"{right}{event}\n{right}", f"{state}{book}\n{state}")
    records, summary, _ = read(path)
    assert summary["malformed"] == {reason: 1}
    assert len(of_type(records, RecordType.LEVEL2)) == 3


def test_lobster_day_and_symbol_come_from_options_where_the_name_has_none(tmp_path: Path, samples: Path) -> None:
    for kind in ("message", "orderbook"):
        shutil.copy(samples / LOBSTER.replace("message", kind), tmp_path / f"x_{kind}_10.csv")
    with pytest.raises(SettingsError, match="symbol and date"):
        read(tmp_path / "x_message_10.csv")
    records, _, symbols = read(tmp_path / "x_message_10.csv", symbol="AAPL", date="2012-06-21")
    assert (records.tobytes(), symbols) == (read(samples / LOBSTER)[0].tobytes(), {0: "AAPL"})


def test_pieces_of_any_size_give_the_same_lobster_records(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(samples / LOBSTER)[0].tobytes()
    monkeypatch.setattr("workers.decoders.capture_file.PIECE_BYTES", 777)
    assert read(samples / LOBSTER, size=5)[0].tobytes() == whole


def test_a_line_without_end_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD.csv"
    path.write_bytes(b"2021-01-01 00:00:00,1,2\n" + b"2" * (3 << 20))
    with pytest.raises(FramingError, match="line of more than"):
        read(path)
