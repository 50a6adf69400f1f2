"""The cache against a slow model: any stream, cut into any batches, with the cache lost at any step of its turns.

The model keeps every record in lists and computes a bar from the trades of its interval, found again and sorted each
time; it knows of lateness only which bar was closed last. It knows nothing of batches, commits, chunks or recovery.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm.layout import Flag, RecordType, empty
from shm.segment import list_segments, unlink_segment
from tests.ticks import SECOND, START, Bench, brief, quote, trade
from workers.cache import Cache
from workers.spec import CacheSettings

INTERVALS_S = (1, 5)
DELAY_S = 2
DEPTH = 60
LATER = START + 10**6 * SECOND


class Killed(BaseException):
    """The cache is gone, at this very point."""


class Mortal(Cache):
    """A cache that dies after a given number of steps: before or after publishing, before or after committing."""

    def __init__(self, settings: CacheSettings, steps: int) -> None:
        self.steps_left = steps
        super().__init__(settings)

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise Killed

    def _publish(self) -> None:
        self._step()
        super()._publish()
        self._step()

    def _commit(self) -> None:
        self._step()
        assert self._applier is not None
        self._applier.commit()
        self._step()
        super()._commit()
        self._step()


class Model:
    """What the table and the bar ring must hold after a stream of (instrument, kind, t, price, size)."""

    def __init__(self) -> None:
        self.records: dict[int, list[Any]] = defaultdict(list)
        self.last: dict[int, Any] = {}
        self.quotes: dict[int, Any] = {}
        self.kept: dict[tuple[int, int, int], list[tuple[int, int, float, float]]] = defaultdict(list)
        self.open: dict[tuple[int, int], int] = {}
        self.closed: dict[tuple[int, int], int] = {}
        self.clock = -math.inf
        self.lost = 0

    def add(self, instrument: int, kind: str, t: int, price: float, size: float) -> None:
        self.records[instrument].append((kind, price))
        if kind == "quote":
            if instrument not in self.quotes or t >= self.quotes[instrument][0]:
                self.quotes[instrument] = (t, price)
        else:
            self.trade(instrument, t, price, size)
        self.clock = max(self.clock, t)

    def trade(self, instrument: int, t: int, price: float, size: float) -> None:
        if instrument not in self.last or t >= self.last[instrument][0]:
            self.last[instrument] = (t, price, size)
        self.clock = max(self.clock, t)  # the record moves the clock before its bar is looked at
        lost = False
        due = [
            key
            for key, start in self.open.items()
            if key[0] == instrument and start + (key[1] + DELAY_S) * SECOND <= self.clock
        ]
        for key in due:
            self.closed[key] = self.open.pop(key)
        for interval in INTERVALS_S:
            key = (instrument, interval)
            start = t // (interval * SECOND) * interval * SECOND
            if start < self.closed.get(key, -1):
                lost = True
                continue
            self.kept[(*key, start)].append((t, len(self.kept[(*key, start)]), price, size))
            now_open = self.open.get(key)
            if now_open is None:
                if start > self.closed.get(key, -1):
                    self.open[key] = start
            elif start > now_open:
                self.closed[key] = now_open
                self.open[key] = start
            elif start < now_open:
                self.closed[key] = max(start, self.closed.get(key, -1))
        self.lost += lost

    def bar(self, key: tuple[int, int, int]) -> tuple[int, int, float, float, float, float, float, int]:
        trades = sorted(self.kept[key])
        prices = [price for _, _, price, _ in trades]
        earliest = next(row for row in trades if row[0] == trades[0][0])
        volume = sum(size for *_, size in trades)
        start_s = (key[2] - START) // SECOND
        return (key[1], start_s, earliest[2], max(prices), min(prices), prices[-1], volume, len(trades))


STREAM = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(("trade", "trade", "trade", "quote")),
        st.integers(0, 40),  # step of the stream's time, in quarters of a second; most are small
        st.integers(-12, 0),  # disorder of this record, in quarters of a second
        st.integers(1, 50),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=120,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stream=STREAM,
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    batch_slots=st.sampled_from((1, 3, 16, 64)),
    deaths=st.lists(st.integers(1, 12), max_size=4),
)
def test_any_stream_cut_and_killed_anywhere_gives_what_the_model_says(
    engine_name: str, stream: list[Any], cuts: list[int], batch_slots: int, deaths: list[int]
) -> None:
    model = Model()
    records = empty(len(stream) + 1)
    records.view(np.uint8)[-128:] = quote(LATER, 1, 1, instrument=3).view(np.uint8)  # closes every bar by the clock
    now = START
    for i, (instrument, kind, step, disorder, price, size) in enumerate(stream):
        now += (step if step < 4 else 0 if step < 36 else 12) * SECOND // 4
        t = now + disorder * SECOND // 4 if disorder < -6 else now
        make = (
            trade(t, price, size, instrument=instrument)
            if kind == "trade"
            else quote(t, price, 1, instrument=instrument)
        )
        records.view(np.uint8).reshape(-1, 128)[i] = make.view(np.uint8)
        model.add(instrument, kind, t, float(price), float(size))
    sizes = {"depth_records": DEPTH, "instruments": 4, "depth_slots": 256}
    try:
        with Bench(engine_name, intervals_s=INTERVALS_S, delay_s=DELAY_S, batch_slots=batch_slots, **sizes) as bench:
            drive(bench, records, cuts, list(deaths))
            check(bench, model)
    finally:
        for segment in list_segments(engine_name):
            unlink_segment(segment)


def drive(bench: Bench, records: np.ndarray, cuts: list[int], deaths: list[int]) -> None:
    """Publish the records in pieces and let mortal caches take turns until everything is read; then end the bars."""

    def reborn() -> None:
        bench.cache.close()
        while True:
            try:
                bench.cache = Mortal(bench.settings, deaths.pop(0) if deaths else -1)
                return
            except Killed:
                continue

    reborn()
    at = turn = 0
    while at < len(records):
        count = min(cuts[turn % len(cuts)], len(records) - at)
        bench.writers[2].publish_batch(records[at : at + count])
        at += count
        turn += 1
        while True:
            try:
                bench.turn()
                break
            except Killed:
                reborn()


def check(bench: Bench, model: Model) -> None:
    bars = bench.new_bars()
    keys = [(int(bar["instrument_id"]), int(bar["interval_s"]), int(bar["ts_event"])) for bar in bars]
    unique = [(key, int(bar["trade_count"])) for key, bar in zip(keys, bars, strict=True)]
    assert len(set(unique)) == len(unique), "a bar was published twice"
    final = {key: brief(bar) for key, bar in zip(keys, bars, strict=True)}
    assert final == {key: model.bar(key) for key in model.kept}
    seen = set()
    for key, bar in zip(keys, bars, strict=True):
        assert bool(bar["flags"] & Flag.CORRECTED) == (key in seen), "a bar that comes again says so, and no other"
        seen.add(key)
    assert bench.cache.counters["lost_trades"] >= model.lost  # records seen again after a kill are counted again
    for instrument, expected in model.records.items():
        snapshot, history = bench.table.join(instrument)
        assert snapshot is not None
        events = history[(history["record_type"] != RecordType.BAR) & (history["ts_event"] < LATER)]
        prices = [(("quote" if r["record_type"] == RecordType.QUOTE else "trade"), float(r["price"])) for r in events]
        assert prices == expected[-len(prices) :]
        assert len(prices) >= min(DEPTH, len(expected)) - 1
        own = [bar["sequence"] for key, bar in zip(keys, bars, strict=True) if key[0] == instrument]
        assert bench.table.history(instrument, record_type=RecordType.BAR)["sequence"].tolist() == own[-DEPTH:]
        if instrument in model.last:
            last = snapshot.last_trade
            assert last is not None
            assert (last.ts_event, last.price, last.size) == model.last[instrument]
        if instrument in model.quotes and instrument != 3:
            assert snapshot.quote is not None
            assert (snapshot.quote.ts_event, snapshot.quote.bid) == model.quotes[instrument]
        assert snapshot.as_of[2] == bench.writers[2].next_sequence - 1
