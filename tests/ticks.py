"""Records for tests of the cache: a trade or quote in a line, and a cache with its rings made and driven by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from shm.latest import LatestTable
from shm.layout import Flag, RecordType, Source, StatusCode, empty
from shm.ring import RingReader, RingWriter, create_ring, status_record
from workers.cache import Cache
from workers.spec import CacheSettings

SECOND = 1_000_000_000
START = 1_720_000_020 * SECOND  # a full minute, in 2024
BAR_RING = 1


def trade(t_ns: int, price: float, size: float = 1.0, *, instrument: int = 0, **fields: Any) -> np.ndarray:
    """One trade at `t_ns`, replayed (the wall clock does not matter) unless `flags` say otherwise."""
    record = empty(1)
    given = {
        "ts_event": t_ns,
        "ts_receive": t_ns + 1000,
        "instrument_id": instrument,
        "record_type": RecordType.TRADE,
        "source": Source.REPLAY,
        "flags": Flag.REPLAYED,
        "venue": b"XTST",
        "price": price,
        "size": size,
    }
    for name, value in (given | fields).items():
        record[name] = value
    return record


def quote(t_ns: int, bid: float, ask: float, *, instrument: int = 0, **fields: Any) -> np.ndarray:
    """One quote at `t_ns`, sizes 1 and 2."""
    sides = {"bid": bid, "ask": ask, "bid_size": 1.0, "ask_size": 2.0}
    return trade(t_ns, bid, ask, instrument=instrument, **({"record_type": RecordType.QUOTE} | sides | fields))


def end_of_replay(feed_id: int = 0) -> np.ndarray:
    """The status record with which a replay ends."""
    record = empty(1)
    record.view(np.uint8)[:] = np.frombuffer(status_record(StatusCode.END_OF_REPLAY, feed_id=feed_id), np.uint8)
    return record


class Bench:
    """A latest table, a bar ring, data rings with their writers, and a cache over them that takes a turn when told."""

    def __init__(
        self,
        engine: str,
        *,
        rings: Sequence[int] = (2,),
        intervals_s: tuple[int, ...] = (1, 60),
        delay_s: float = 1.0,
        batch_slots: int = 4096,
        depth_slots: int = 1024,
        **table: Any,
    ) -> None:
        self.engine = engine
        options = {"instruments": 16, "depth_records": 100, "pool_records": 100_000} | table
        self.table = LatestTable.create(engine, bar_intervals_s=intervals_s, **options)
        create_ring(engine, BAR_RING, depth_slots=depth_slots)
        self.writers = {ring: RingWriter.create(engine, ring, depth_slots=depth_slots) for ring in rings}
        self.settings = CacheSettings(
            engine=engine,
            label="cache",
            rings=tuple(rings),
            bar_intervals_s=intervals_s,
            bar_close_delay_s=delay_s,
            batch_slots=batch_slots,
        )
        self.cache = Cache(self.settings)
        self.bars_reader = RingReader.attach(engine, BAR_RING, start="oldest", register=False)
        self.now_ns = START

    def publish(self, *records: np.ndarray, ring: int = 2) -> None:
        """Publish records one by one."""
        for record in records:
            self.writers[ring].publish(record)

    def turn(self, *records: np.ndarray, ring: int = 2) -> None:
        """Publish, and let the cache take turns until it has read everything; each is the time for its timer."""
        self.publish(*records, ring=ring)
        while True:
            self.now_ns += SECOND // 10
            if not self.cache.turn(self.now_ns):
                return

    def new_bars(self) -> list[np.void]:
        """Bars published since the last call."""
        out = empty(1024)
        found: list[np.void] = []
        while count := self.bars_reader.read(out):
            found.extend(record for record in out[:count].copy() if record["record_type"] == RecordType.BAR)
        return found

    def restart(self) -> None:
        """A new cache process in place of the old one, which leaves without a word."""
        self.cache.close()
        self.cache = Cache(self.settings)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cache.close()
        self.bars_reader.close()
        for writer in self.writers.values():
            writer.close()
        self.table.close()


def brief(bar: np.void) -> tuple[int, int, float, float, float, float, float, int]:
    """(interval_s, start in s since START, open, high, low, close, volume, trade_count) of a bar."""
    start_s = (int(bar["ts_event"]) - START) // SECOND
    prices = (float(bar[name]) for name in ("open", "high", "low", "close", "volume"))
    return (int(bar["interval_s"]), start_s, *prices, int(bar["trade_count"]))  # type: ignore[return-value]
