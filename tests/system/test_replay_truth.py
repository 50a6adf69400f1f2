"""Captured data through the whole engine: what a plain ZeroMQ subscriber receives equals the captures' own figures.

The engine runs as a user starts it; the subscriber is a SUB socket and `np.frombuffer`, nothing of ours but the dtype.
Each capture is replayed as fast as it goes, after a delay that lets the subscriber connect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import zmq

from shm.layout import RECORD, Flag, StatusCode, concatenate
from tests.system.engine_process import EngineProcess, wait_for

pytestmark = pytest.mark.slow

Received = dict[str, np.ndarray]


class Plain:
    """A SUB socket that keeps every record it gets, by topic; no topic sequence may be missing or doubled."""

    def __init__(self, endpoint: str) -> None:
        """Connect before the engine has sent anything."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.subscribe(b"marketdata.")
        self._socket.connect(endpoint)
        self._batches: dict[str, list[np.ndarray]] = defaultdict(list)
        self._next: dict[str, int] = {}

    def drain(self) -> None:
        """Take in all that has arrived."""
        while self._socket.poll(100):
            topic, frame = self._socket.recv_multipart()
            name = topic.decode()
            count = int.from_bytes(frame[4:8], "little")
            sequence = int.from_bytes(frame[8:16], "little")
            assert sequence == self._next.get(name, 1), f"{name}: a hole or a double in the topic sequence"
            self._next[name] = sequence + count
            records = np.frombuffer(frame, RECORD, offset=16)
            assert len(records) == count
            self._batches[name].append(records)

    def of(self, prefix: str) -> np.ndarray:
        """Records of the topics that begin so, in order of arrival within each topic."""
        batches = [batch for name in sorted(self._batches) if name.startswith(prefix) for batch in self._batches[name]]
        return concatenate(batches) if batches else np.zeros(0, RECORD)

    def topics(self, prefix: str) -> Received:
        """Topic name without the prefix -> its records."""
        return {
            name.removeprefix(prefix): concatenate(batches)
            for name, batches in self._batches.items()
            if name.startswith(prefix)
        }

    def ends(self) -> int:
        """How many replays have come to their end."""
        return int(np.sum(self.of("marketdata.feed.status")["code"] == StatusCode.END_OF_REPLAY))

    def close(self) -> None:
        """Let go of the socket."""
        self._context.destroy(0)


@contextmanager
def replayed(
    name: str, folder: Path, *files: Path, until: Callable[[Plain], bool] = lambda _: True
) -> Iterator[tuple[Plain, EngineProcess]]:
    """Replay the files at full speed to a plain subscriber, until their ends have arrived and `until` holds."""
    options = ("--replay", *map(str, files), "--speed", "max", "--start-delay", "1.5")
    with EngineProcess(name, folder, *options) as engine:
        subscriber = Plain(f"tcp://127.0.0.1:{engine.base + 1}")
        try:

            def finished() -> bool:
                assert engine.process.poll() is None, engine.output
                subscriber.drain()
                return subscriber.ends() == 1 and until(subscriber)

            wait_for(f"the end of {[file.name for file in files]}", finished)
            subscriber.drain()
            yield subscriber, engine
            assert engine.stop() == 0, engine.output
        finally:
            subscriber.close()


def utc(text: str) -> int:
    """ISO time with nanoseconds -> ns since the epoch."""
    whole, _, fraction = text.partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)


def test_es_futures_trades_and_the_bars_built_from_them(engine_name: str, tmp_path: Path, samples: Path) -> None:
    folder = samples / "dbn" / "es-futures"
    trades_file = next(folder.glob("futures_trades_*"))

    def minutes(plain: Plain) -> np.ndarray:
        bars = plain.of("marketdata.bar.ESU4")
        return bars[bars["interval_s"] == 60]

    with replayed(engine_name, tmp_path, trades_file, until=lambda plain: len(minutes(plain)) >= 4) as (plain, _):
        trades = plain.of("marketdata.trade.")
        bars = minutes(plain)
    assert len(trades) == 120
    assert trades["size"].sum() == 253
    assert trades["ts_event"].min() == utc("2024-07-01T23:58:01.218218853")
    assert trades["ts_event"].max() == utc("2024-07-02T00:01:52.813445903")

    with replayed(engine_name, tmp_path, next(folder.glob("futures_ohlcv-1m_*"))) as (plain, _):
        every = plain.of("marketdata.bar.")
        captured = plain.of("marketdata.bar.ESU4")
    assert len(every) == 60
    assert every["volume"].sum() == 2742
    captured = captured[np.isin(captured["ts_event"], bars["ts_event"])]
    assert captured["volume"].tolist() == [18, 23, 175, 37]
    for field in ("ts_event", "open", "high", "low", "close", "volume"):
        assert bars[field].tolist() == captured[field].tolist(), field


def test_es_futures_book_gives_quotes_and_the_same_trades(engine_name: str, tmp_path: Path, samples: Path) -> None:
    folder = samples / "dbn" / "es-futures"
    with replayed(engine_name, tmp_path, next(folder.glob("futures_mbp-1_*"))) as (plain, _):
        assert len(plain.of("marketdata.quote.")) == 2288
        book_trades = plain.of("marketdata.trade.")
    with replayed(engine_name, tmp_path, next(folder.glob("futures_trades_*"))) as (plain, _):
        trades = plain.of("marketdata.trade.")
    for field in ("ts_event", "price", "size"):
        assert np.sort(book_trades[field]).tolist() == np.sort(trades[field]).tolist(), field


def test_coinbase_trades_arrive_once_each(engine_name: str, tmp_path: Path, samples: Path) -> None:
    with replayed(engine_name, tmp_path, samples / "websocket" / "COINBASE.jsonl.zst") as (plain, _):
        trades = plain.topics("marketdata.trade.")
        gaps = plain.of("marketdata.feed.status")["code"] == StatusCode.GAP
    ids = np.concatenate([records["trade_id"] for records in trades.values()])
    assert len(np.unique(ids)) == 279
    for symbol, count, total in (("BTC-USD", 147, 1.24903697), ("ETH-USD", 132, 70.43699852)):
        once = trades[symbol][np.unique(trades[symbol]["trade_id"], return_index=True)[1]]
        assert len(once) == count
        assert once["size"].sum() == pytest.approx(total, abs=1e-8)
    assert not gaps.any()


def test_binance_trades_are_contiguous(engine_name: str, tmp_path: Path, samples: Path) -> None:
    with replayed(engine_name, tmp_path, samples / "websocket" / "spot_btcusdt_20240808.gz") as (plain, _):
        trades = plain.of("marketdata.trade.BTCUSDT")
        gaps = plain.of("marketdata.feed.status")["code"] == StatusCode.GAP
    assert len(trades) == 9757
    assert trades["trade_id"].tolist() == list(range(3735683259, 3735693015 + 1))
    assert trades["size"].sum() == pytest.approx(212.03315, abs=1e-6)
    assert (trades["price"] * trades["size"]).sum() == pytest.approx(13_084_074.1123886, abs=1e-4)
    assert not gaps.any()


def test_iex_tops_quotes_trades_and_shares(engine_name: str, tmp_path: Path, samples: Path) -> None:
    with replayed(engine_name, tmp_path, samples / "iex" / "TOPS16.pcapng.gz") as (plain, _):
        assert len(plain.of("marketdata.quote.")) == 27_217
        trades = plain.of("marketdata.trade.")
        gaps = plain.of("marketdata.feed.status")["code"] == StatusCode.GAP
    broken = (trades["flags"] & Flag.CORRECTED) != 0
    assert broken.sum() == 3
    assert (~broken).sum() == 6_390
    assert trades["size"][~broken].sum() == 1_427_907
    assert not gaps.any()


def test_itch_instruments_are_all_known(engine_name: str, tmp_path: Path, samples: Path) -> None:
    with replayed(engine_name, tmp_path, samples / "itch" / "bekele-first1000-start-of-day.itch") as (_, engine):
        listed = engine.json("/symbols")
    assert listed["count"] == 993
    assert len(set(listed["symbols"])) == 993


def test_itch_over_moldudp64_adds_deletes_and_executes(engine_name: str, tmp_path: Path, samples: Path) -> None:
    pcap = samples / "pcap" / "Nasdaq" / "Nasdaq.Equities.TotalView.Itch.v5.0" / "Multiple.Packets.pcap"
    with replayed(engine_name, tmp_path, pcap) as (plain, _):
        levels = plain.of("marketdata.level2.")
    assert len(levels) > 0
    assert (levels["price"] > 0).all()


def test_a_day_of_dukascopy_hours_in_any_order_is_one_stream(engine_name: str, tmp_path: Path, samples: Path) -> None:
    folder = samples / "ticks/dukascopy/EURUSD/2019/01/04"
    hours = sorted(folder.glob("*h_ticks.bi5"), reverse=True)
    with replayed(engine_name, tmp_path, *hours, folder / "BID_candles_min_1.bi5") as (plain, _):
        quotes, bars = plain.of("marketdata.quote.EURUSD"), plain.of("marketdata.bar.EURUSD")
    assert len(quotes) == 136_741
    assert (np.diff(quotes["ts_event"]) >= 0).all()
    assert quotes["ts_event"].min() >= utc("2019-02-04T00:00:00")
    assert bars["ts_event"].tolist() == [utc("2019-02-04T00:00:00") + minute * 60_000_000_000 for minute in range(1440)]
    first = quotes[quotes["ts_event"] < utc("2019-02-04T00:01:00")]["bid"]
    assert (bars["open"][0], bars["close"][0]) == (first[0], first[-1])


def test_lobster_beside_a_websocket_capture(engine_name: str, tmp_path: Path, samples: Path) -> None:
    lobster = next((samples / "ticks/lobster").glob("*_message_10.csv"))
    with replayed(engine_name, tmp_path, samples / "websocket/BITFINEX.jsonl.zst", lobster) as (plain, _):
        trades = plain.topics("marketdata.trade.")
        quotes = plain.topics("marketdata.quote.")
    assert len(trades.pop("AAPL")) == 98 + 61
    assert sum(map(len, trades.values())) == 210
    assert len(quotes["AAPL"]) == 485


def test_json_and_the_api_say_what_the_records_say(engine_name: str, tmp_path: Path, samples: Path) -> None:
    trades_file = next((samples / "dbn" / "es-futures").glob("futures_trades_*"))
    with replayed(engine_name, tmp_path, trades_file) as (plain, engine):
        trades = plain.of("marketdata.trade.ESU4")
        answer = engine.json("/data/ESU4?data_type=trade&limit=1000")
    assert [row["data"]["price"] for row in answer["data"]] == trades["price"].tolist()
    assert [row["data"]["size"] for row in answer["data"]] == trades["size"].tolist()
    assert answer["count"] == len(trades)
