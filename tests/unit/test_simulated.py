"""The simulated source: deterministic, exact in rate, consistent as a market."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Side, Source, concatenate, empty
from workers.errors import SettingsError
from workers.source import SourceContext, open_source
from workers.sources.simulated import SimulatedSource
from workers.spec import FeedSpec

START_NS = 1_760_000_000_000_000_000
SECOND_NS = 1_000_000_000


def make(
    *, symbols: tuple[str, ...] = (), data_types: tuple[str, ...] = (), epoch: int = 0, **options: Any
) -> tuple[SimulatedSource, dict[str, int]]:
    ids: dict[str, int] = {}
    spec = FeedSpec(
        feed_id=7, name="sim", source="simulated", symbols=symbols, data_types=data_types, options=dict(options)
    )
    source = open_source(SourceContext(spec, lambda symbol: ids.setdefault(symbol, len(ids)), epoch))
    assert isinstance(source, SimulatedSource)
    return source, ids


def take(source: SimulatedSource, times_ns: list[int], slots: int = 4096) -> np.ndarray:
    batches = []
    for now_ns in times_ns:
        out = empty(slots)
        while True:
            count = source.poll(out, now_ns)
            batches.append(out[:count].copy())
            if count < slots:
                break
    return concatenate(batches)


def unpaced(count: int, **options: Any) -> np.ndarray:
    source, _ = make(rate="max", **options)
    out = empty(count)
    assert source.poll(out, START_NS) == count
    return out


def of_type(records: np.ndarray, *kinds: RecordType) -> np.ndarray:
    return records[np.isin(records["record_type"], kinds)]


def test_same_seed_gives_the_same_bytes() -> None:
    times = [START_NS, START_NS + 700_000_000, START_NS + 3 * SECOND_NS]
    first = take(make(rate=5000, seed=3)[0], times)
    second = take(make(rate=5000, seed=3)[0], times)
    assert len(first) > 10_000
    assert first.tobytes() == second.tobytes()


def test_another_seed_or_epoch_gives_another_market() -> None:
    times = [START_NS, START_NS + SECOND_NS]
    base = take(make(rate=1000, seed=3)[0], times)["instrument_id"]
    assert not np.array_equal(base, take(make(rate=1000, seed=4)[0], times)["instrument_id"])
    assert not np.array_equal(base, take(make(rate=1000, seed=3, epoch=2)[0], times)["instrument_id"])


def test_records_do_not_depend_on_when_they_are_polled() -> None:
    end = START_NS + 4 * SECOND_NS
    coarse = take(make(rate=2500)[0], [START_NS, end])
    fine = take(make(rate=2500)[0], [*range(START_NS, end + 1, 13_000_000), end], slots=64)
    assert len(coarse) == len(fine)
    for field in ("ts_event", "instrument_id", "record_type", "source_sequence", "side"):
        assert np.array_equal(coarse[field], fine[field]), field


@pytest.mark.parametrize("rate", [1, 0.25, 7.3, 1000, 123_456.7])
def test_rate_is_exact_over_whole_seconds_bursts_included(rate: float) -> None:
    source, _ = make(rate=rate, burst_factor=50)
    seconds = 8
    records = take(source, [START_NS, START_NS + seconds * SECOND_NS - 1])
    assert len(records) == int(rate * seconds)
    assert np.all(np.diff(records["ts_event"]) >= 0)
    assert np.all(records["ts_event"] <= records["ts_receive"])


def test_nothing_is_delivered_before_it_is_due() -> None:
    source, _ = make(rate=100)
    out = empty(1000)
    source.poll(out, START_NS)
    for _ in range(250):
        due_ns = source.next_due_ns
        assert due_ns is not None
        assert source.poll(out, due_ns - 1) == 0
        if source.poll(out, due_ns):
            assert out["ts_event"][0] == due_ns
        assert source.next_due_ns is not None
        assert source.next_due_ns >= due_ns


def test_bursts_crowd_records_together() -> None:
    times = [START_NS, START_NS + 60 * SECOND_NS]

    def busiest_share(factor: float) -> float:
        events = take(make(rate=5000, burst_factor=factor)[0], times)["ts_event"]
        slices = np.bincount((events - START_NS) // (SECOND_NS // 64))
        return float(np.max(slices) / np.mean(slices))

    assert busiest_share(1) < 1.1
    assert busiest_share(20) > 4


def test_every_record_is_marked_as_simulated() -> None:
    records = unpaced(20_000)
    assert set(records["source"]) == {Source.MOCK}
    assert np.all(records["flags"] & Flag.SYNTHETIC)
    assert set(records["feed_id"]) == {7}
    assert np.all(np.diff(records["source_sequence"].astype(np.int64)) == 1)
    assert set(records["venue"]) == {b"XSIM"}


def test_quotes_are_never_crossed_and_mid_and_spread_agree() -> None:
    quotes = of_type(unpaced(200_000), RecordType.QUOTE)
    assert len(quotes) > 50_000
    assert np.all(quotes["bid"] < quotes["ask"])
    assert np.all(quotes["bid"] > 0)
    assert np.allclose(quotes["mid"], (quotes["bid"] + quotes["ask"]) / 2, rtol=1e-12)
    assert np.allclose(quotes["spread"], quotes["ask"] - quotes["bid"], atol=1e-9)
    assert np.all(quotes["bid_size"] > 0)
    assert np.all(quotes["bid_count"] > 0)


def test_prices_are_the_nearest_doubles_to_cents() -> None:
    records = unpaced(50_000)
    prices = np.concatenate(
        [of_type(records, RecordType.QUOTE)["bid"], of_type(records, RecordType.TICK, RecordType.TRADE)["price"]]
    )
    assert np.array_equal(prices, np.round(prices * 100) / 100)


def test_prints_happen_at_the_quote_of_their_side() -> None:
    records = unpaced(100_000, symbols=("AAPL",))
    bid = ask = 0.0
    checked = 0
    for record in records:
        kind = record["record_type"]
        if kind == RecordType.QUOTE:
            bid, ask = record["bid"], record["ask"]
        elif kind in (RecordType.TICK, RecordType.TRADE) and bid:
            assert record["price"] == (ask if record["side"] == Side.BUY else bid)
            checked += 1
    assert checked > 10_000


def test_session_volume_and_vwap_are_kept_per_instrument() -> None:
    prints = of_type(unpaced(100_000, symbols=("AAPL", "MSFT")), RecordType.TICK, RecordType.TRADE)
    for instrument in (0, 1):
        own = prints[prints["instrument_id"] == instrument]
        assert np.array_equal(own["volume"], np.cumsum(own["size"]))
        assert np.allclose(own["vwap"], np.cumsum(own["size"] * own["price"]) / np.cumsum(own["size"]), rtol=1e-9)
        assert np.all(np.diff(own["trade_id"].astype(np.int64)) == 1)


def test_session_volume_starts_again_at_midnight() -> None:
    midnight = (START_NS // 86_400_000_000_000 + 1) * 86_400_000_000_000
    source, _ = make(rate=1000, symbols=("AAPL",), data_types=("tick",))
    records = take(source, [midnight - 2 * SECOND_NS, midnight + 2 * SECOND_NS])
    before, after = records[records["ts_event"] < midnight], records[records["ts_event"] >= midnight]
    assert np.array_equal(before["volume"], np.cumsum(before["size"]))
    assert np.array_equal(after["volume"], np.cumsum(after["size"]))


def test_book_levels_stand_behind_the_best_price() -> None:
    levels = of_type(unpaced(50_000), RecordType.LEVEL2)
    bids = levels[levels["side"] == Side.BUY]
    asks = levels[levels["side"] == Side.SELL]
    assert set(levels["level"]) == {0, 1, 2, 3, 4}
    assert np.allclose(bids["price"], bids["best_bid"] - bids["level"] / 100, atol=1e-9)
    assert np.allclose(asks["price"], asks["best_ask"] + asks["level"] / 100, atol=1e-9)
    assert np.all(levels["best_bid"] < levels["best_ask"])
    assert set(levels["depth"]) == {5}


def test_instruments_are_correlated_more_so_within_a_sector() -> None:
    # GE and BA are one sector, KO another.
    records = of_type(unpaced(3_000_000, symbols=("GE", "BA", "KO"), data_types=("quote",)), RecordType.QUOTE)
    series = []
    for instrument in range(3):
        own = records[records["instrument_id"] == instrument]
        grid = np.searchsorted(own["source_sequence"], np.arange(1000, 3_000_000, 1000)) - 1
        series.append(np.diff(np.log(own["mid"][grid])))
    same, other = np.corrcoef(series)[0, 1:]
    assert other > 0.1
    assert same > other + 0.1


def test_prices_stay_in_range_for_ever() -> None:
    source, _ = make(rate="max", symbols=("AAPL", "F"))
    out = empty(100_000)
    for step in range(30):
        source.poll(out, START_NS + step)
    quotes = of_type(out, RecordType.QUOTE)
    for instrument, start in ((0, 228.0), (1, 10.6)):
        mids = quotes["mid"][quotes["instrument_id"] == instrument]
        assert np.all((mids > start / 2) & (mids < start * 2))


def test_data_types_limit_what_is_made() -> None:
    assert set(unpaced(20_000, data_types=("tick",))["record_type"]) == {RecordType.TICK}
    kinds = set(unpaced(20_000, data_types=("quote", "news"), news_every=100)["record_type"])
    assert kinds == {RecordType.QUOTE, RecordType.NEWS}


def test_headlines_name_their_instrument_and_are_rare() -> None:
    source, ids = make(rate="max", news_every=1000)
    out = empty(200_000)
    source.poll(out, START_NS)
    news = of_type(out, RecordType.NEWS)
    symbols = {number: symbol for symbol, number in ids.items()}
    assert 100 < len(news) < 400
    for record in news:
        symbol, _, rest = record["headline"].decode().partition(" ")
        assert symbol == symbols[record["instrument_id"]]
        assert len(rest) > 5


def test_200_recognisable_instruments_by_default() -> None:
    source, ids = make()
    assert len(ids) == 200
    assert {"AAPL", "MSFT", "TSLA", "SPY"} <= set(ids)
    assert source.position is None


def test_all_instruments_are_active_but_not_alike() -> None:
    counts = np.bincount(unpaced(400_000)["instrument_id"], minlength=200)
    assert np.all(counts > 0)
    assert counts[0] > 5 * np.median(counts)


def test_pause_does_not_heap_up_records() -> None:
    source, _ = make(rate=1000)
    before = take(source, [START_NS, START_NS + 1_500_000_000])
    source.resume(START_NS + 61_500_000_000)
    after = take(source, [START_NS + 61_500_000_000 + step * 100_000_000 for step in range(6)])
    assert len(before) + len(after) == pytest.approx(2000, abs=60)
    assert np.min(after["ts_event"]) > START_NS + 61_500_000_000 - 20_000_000


def test_closed_market_is_silent_until_pre_market() -> None:
    saturday = 1_760_788_800_000_000_000  # 2025-10-18 12:00 UTC
    source, _ = make(rate=1000, session="us-equities")
    assert source.poll(empty(100), saturday) == 0
    monday_pre = 1_760_947_200_000_000_000  # 2025-10-20 04:00 New York
    assert source.next_due_ns == monday_pre
    assert np.all(take(source, [monday_pre + SECOND_NS])["flags"] & Flag.OUT_OF_SESSION)


@pytest.mark.parametrize("rate", [1000, "max"])
def test_regular_hours_are_not_flagged(rate: Any) -> None:
    monday_noon = 1_760_976_000_000_000_000  # 2025-10-20 12:00 New York
    source, _ = make(rate=rate, session="us-equities")
    out = empty(100)
    source.poll(out, monday_noon)
    assert source.poll(out, monday_noon + SECOND_NS) == 100
    assert not np.any(out["flags"] & Flag.OUT_OF_SESSION)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rat": 5}, "did you mean 'rate'"),
        ({"rate": 0}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"session": "lunar"}, "session"),
    ],
)
def test_options_that_can_not_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make(**options)


def test_unknown_data_type_and_source_are_named() -> None:
    with pytest.raises(SettingsError, match="'quote'"):
        make(data_types=("quot",))
    with pytest.raises(SettingsError, match="'simulated'"):
        open_source(SourceContext(FeedSpec(feed_id=1, name="x", source="simulate"), lambda _: 0))
