"""Quality checks: each flag when it is due and not otherwise, rejection only of what means nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shm.layout import Action, Flag, Priority, RecordType, StatusCode, concatenate, empty
from workers.quality import Quality
from workers.spec import QualitySettings
from workers.symbol_tiers import SymbolTiers

NOW_NS = 1_760_000_000_000_000_000


def records(kind: RecordType, count: int = 1, **fields: Any) -> np.ndarray:
    made = empty(count)
    made["record_type"] = kind
    made["ts_event"] = made["ts_receive"] = NOW_NS
    if kind in (RecordType.TICK, RecordType.TRADE, RecordType.LEVEL2):
        made["price"], made["size"] = 100.0, 10.0
    if kind == RecordType.QUOTE:
        made["bid"], made["ask"], made["bid_size"], made["ask_size"] = 99.0, 101.0, 5.0, 5.0
    if kind == RecordType.LEVEL2:
        made["best_bid"], made["best_ask"], made["action"] = 99.0, 101.0, Action.MODIFY
    if kind == RecordType.BAR:
        made["open"], made["high"], made["low"], made["close"], made["volume"] = 1.0, 2.0, 0.5, 1.5, 10.0
    for name, value in fields.items():
        made[name] = value
    return made


def flags(batch: np.ndarray, **settings: Any) -> list[Flag]:
    assert Quality(QualitySettings(**settings)).check(batch, len(batch)) == len(batch)
    return [Flag(int(value)) for value in batch["flags"]]


def test_good_records_get_no_flag_and_keep_their_fields() -> None:
    batch = concatenate([records(kind, 3) for kind in RecordType if kind != RecordType.STATUS])
    before = batch.copy()
    assert set(flags(batch)) == {Flag(0)}
    batch["priority"] = before["priority"]
    assert batch.tobytes() == before.tobytes()


def test_flags_of_the_source_stay() -> None:
    assert flags(records(RecordType.TICK, flags=Flag.SYNTHETIC)) == [Flag.SYNTHETIC]


def test_event_time_going_back_is_out_of_order() -> None:
    batch = records(RecordType.TRADE, 4, ts_event=NOW_NS + np.array([10, 20, 15, 20]))
    assert flags(batch) == [Flag(0), Flag(0), Flag.OUT_OF_ORDER, Flag(0)]


def test_source_sequence_going_back_is_out_of_order_and_equal_ones_are_not() -> None:
    batch = records(RecordType.TRADE, 5, source_sequence=[5, 6, 6, 4, 0])
    assert flags(batch) == [Flag(0), Flag(0), Flag(0), Flag.OUT_OF_ORDER, Flag(0)]


def test_order_is_judged_per_instrument_and_kind() -> None:
    batch = concatenate(
        [
            records(RecordType.TRADE, source_sequence=100, instrument_id=1),
            records(RecordType.TRADE, source_sequence=50, instrument_id=2),
            records(RecordType.QUOTE, source_sequence=7, instrument_id=1),
        ]
    )
    assert set(flags(batch)) == {Flag(0)}


def test_a_venue_that_counts_anew_is_believed_after_64_records() -> None:
    batch = records(RecordType.TRADE, 101, source_sequence=[1_000_000, *range(1, 101)])
    found = flags(batch)
    assert found[1:65] == [Flag.OUT_OF_ORDER] * 64
    assert set(found[65:]) == {Flag(0)}


@pytest.mark.parametrize("flag", [Flag.SNAPSHOT, Flag.CORRECTED, Flag.BACKFILLED])
def test_what_speaks_of_an_earlier_time_is_neither_out_of_order_nor_late(flag: Flag) -> None:
    batch = records(RecordType.LEVEL2, 3, source_sequence=[100, 50, 60])
    batch["flags"][1] = flag
    batch["ts_event"][1] -= 5_000_000_000
    assert flags(batch) == [Flag(0), flag, Flag.OUT_OF_ORDER]


def test_late_is_judged_by_the_threshold_and_not_for_replays() -> None:
    batch = records(RecordType.TICK, 3, ts_receive=NOW_NS + np.array([999_000_000, 1_000_000_001, 1_000_000_001]))
    batch["flags"][2] = Flag.REPLAYED
    assert flags(batch.copy()) == [Flag(0), Flag.LATE, Flag.REPLAYED]
    assert flags(batch.copy(), late_when_replayed=True)[2] == Flag.REPLAYED | Flag.LATE
    assert flags(batch.copy(), late_after_ms=0)[1] == Flag(0)


def test_crossed_quotes_are_flagged_and_locked_ones_are_not() -> None:
    batch = records(RecordType.QUOTE, 3, bid=[99.0, 100.0, 101.0], ask=[100.0, 100.0, 100.0])
    assert flags(batch) == [Flag(0), Flag(0), Flag.CROSSED]


def test_crossed_books_are_flagged() -> None:
    batch = records(RecordType.LEVEL2, 2, best_bid=[99.0, math.nan], best_ask=[98.0, 98.0])
    assert flags(batch) == [Flag.CROSSED, Flag(0)]


@pytest.mark.parametrize("kind", [RecordType.TICK, RecordType.TRADE, RecordType.QUOTE])
def test_a_price_far_from_the_running_mean_is_an_outlier(kind: RecordType) -> None:
    generator = np.random.default_rng(1)
    prices = 100 + generator.normal(0, 0.05, 500)
    prices[300] = 103.0
    batch = records(kind, 500)
    if kind == RecordType.QUOTE:
        batch["bid"], batch["ask"] = prices - 0.01, prices + 0.01
    else:
        batch["price"] = prices
    found = flags(batch)
    assert [index for index, flag in enumerate(found) if flag & Flag.OUTLIER] == [300]


def test_one_tick_in_a_dead_market_is_no_outlier() -> None:
    batch = records(RecordType.TICK, 200)
    batch["price"][150] = 100.01
    assert set(flags(batch)) == {Flag(0)}


def test_an_outlier_by_percentage_needs_no_deviation() -> None:
    batch = records(RecordType.TICK, 200)
    batch["price"][150] = 121.0
    assert flags(batch, outlier_deviations=0)[150] == Flag.OUTLIER
    assert flags(records(RecordType.TICK, 200, price=batch["price"]), outlier_deviations=0, outlier_percent=0)[150] == 0


def test_nothing_is_an_outlier_while_warming_up() -> None:
    batch = records(RecordType.TICK, 32, price=np.linspace(1, 1000, 32))
    assert set(flags(batch)) == {Flag(0)}


def test_a_new_price_level_is_believed_in_the_end() -> None:
    generator = np.random.default_rng(2)
    prices = np.concatenate([100 + generator.normal(0, 0.05, 300), 150 + generator.normal(0, 0.05, 700)])
    found = flags(records(RecordType.TICK, 1000, price=prices))
    assert found[300] == Flag.OUTLIER
    assert not any(found[700:])


def test_one_outlier_does_not_hide_the_next() -> None:
    prices = 100 + np.random.default_rng(3).normal(0, 0.05, 300)
    prices[200] = prices[205] = 130.0
    found = flags(records(RecordType.TICK, 300, price=prices))
    assert [index for index, flag in enumerate(found) if flag & Flag.OUTLIER] == [200, 205]


def test_a_huge_print_is_a_volume_spike() -> None:
    batch = records(RecordType.TRADE, 100)
    batch["size"][80] = 10_000
    found = flags(batch)
    assert [index for index, flag in enumerate(found) if flag & Flag.VOLUME_SPIKE] == [80]


@pytest.mark.parametrize(
    "batch",
    [
        records(RecordType.QUOTE, bid=math.nan),
        records(RecordType.QUOTE, ask=math.nan),
        records(RecordType.QUOTE, bid=0.0),
        records(RecordType.QUOTE, bid_size=-1.0),
        records(RecordType.QUOTE, ask=math.inf),
        records(RecordType.TRADE, price=0.0),
        records(RecordType.TRADE, size=math.nan),
        records(RecordType.TRADE, size=-5.0),
        records(RecordType.TRADE, size=math.inf),
        records(RecordType.LEVEL2, price=math.nan),
        records(RecordType.LEVEL2, size=-1.0),
        records(RecordType.BAR, open=math.nan),
        records(RecordType.BAR, high=0.1),
    ],
)
def test_missing_and_impossible_values_are_incomplete(batch: np.ndarray) -> None:
    assert flags(batch.copy()) == [Flag.INCOMPLETE]


@pytest.mark.parametrize(
    "batch",
    [
        records(RecordType.TRADE, price=-37.63),
        records(RecordType.LEVEL2, price=math.nan, action=Action.CLEAR),
        records(RecordType.LEVEL2, price=0.0, action=Action.DELETE, size=0.0),
        records(RecordType.QUOTE, bid=-1.0, ask=-0.5),
    ],
)
def test_unusual_but_legitimate_values_are_not_flagged(batch: np.ndarray) -> None:
    assert flags(batch.copy()) == [Flag(0)]


def test_meaningless_records_are_rejected_and_counted_the_rest_keeps_its_order() -> None:
    batch = records(RecordType.TRADE, 6, trade_id=range(6))
    batch["record_type"][1] = 0
    batch["record_type"][2] = 77
    batch["price"][4] = math.nan
    quality = Quality(QualitySettings())
    kept = quality.check(batch, 6)
    assert list(batch["trade_id"][:kept]) == [0, 3, 5]
    assert quality.rejected == 3
    assert quality.rejected_by_reason == {
        "unknown record type": 2,
        "print without a price": 1,
        "impossible value": 0,
    }
    last = quality.last_rejected
    assert last is not None
    assert last[0] == "print without a price"
    assert last[1]["trade_id"][0] == 4


def test_policy_reject_rejects_impossible_values_too() -> None:
    batch = records(RecordType.TRADE, 3, size=[1.0, -1.0, 2.0])
    quality = Quality(QualitySettings(policy="reject"))
    assert quality.check(batch, 3) == 2
    assert list(batch["size"][:2]) == [1.0, 2.0]
    assert quality.rejected_by_reason["impossible value"] == 1


def test_checks_can_be_turned_off_but_priority_is_still_set() -> None:
    batch = records(RecordType.QUOTE, 1, bid=200.0)
    assert flags(batch, enabled=False) == [Flag(0)]
    assert batch["priority"][0] == Priority.NORMAL


def test_priority_follows_the_type() -> None:
    expected = {
        RecordType.TICK: Priority.HIGH,
        RecordType.QUOTE: Priority.NORMAL,
        RecordType.BAR: Priority.LOW,
        RecordType.TRADE: Priority.HIGH,
        RecordType.LEVEL2: Priority.LOW,
        RecordType.NEWS: Priority.HIGH,
        RecordType.STATUS: Priority.HIGH,
    }
    batch = concatenate([records(kind, priority=9) for kind in expected])
    Quality(QualitySettings()).check(batch, len(batch))
    assert list(batch["priority"]) == list(expected.values())


def test_symbols_with_a_tier_of_their_own_have_it_but_never_for_trades() -> None:
    ids = {"OWN": 3, "OTHER": 4}
    tiers = SymbolTiers({"OWN": "high", "OTHER": "low", "UNSEEN": "high"}, ids.__getitem__)
    quality = Quality(QualitySettings(), tiers)
    kinds = (RecordType.QUOTE, RecordType.LEVEL2, RecordType.BAR, RecordType.TRADE)
    batch = concatenate([records(kind, instrument_id=i) for i in (3, 4, 5) for kind in kinds])

    quality.check(batch, len(batch))
    assert batch["priority"].reshape(3, 4).tolist() == [[1, 2, 2, 0]] * 3  # nobody has interned them
    assert [tiers.intern("OWN"), tiers.intern("OTHER")] == [3, 4]
    quality.check(batch, len(batch))
    assert batch["priority"].reshape(3, 4).tolist() == [[0, 0, 0, 0], [2, 2, 2, 0], [1, 2, 2, 0]]


def test_after_the_end_of_a_replay_the_feed_begins_anew() -> None:
    batch = concatenate(
        [
            records(RecordType.TRADE, ts_event=NOW_NS),
            records(RecordType.STATUS, code=StatusCode.END_OF_REPLAY),
            records(RecordType.TRADE, ts_event=NOW_NS - 1_000),
            records(RecordType.STATUS, code=StatusCode.FEED_UP),
            records(RecordType.TRADE, ts_event=NOW_NS - 2_000),
        ]
    )
    assert flags(batch) == [Flag(0), Flag(0), Flag(0), Flag(0), Flag.OUT_OF_ORDER]


def test_state_carries_over_from_batch_to_batch_and_forget_drops_it() -> None:
    quality = Quality(QualitySettings())
    assert quality.check(records(RecordType.TRADE, source_sequence=10), 1) == 1
    second, third = records(RecordType.TRADE, source_sequence=9), records(RecordType.TRADE, source_sequence=8)
    quality.check(second, 1)
    assert second["flags"][0] == Flag.OUT_OF_ORDER
    quality.forget()
    quality.check(third, 1)
    assert third["flags"][0] == 0


def test_any_instrument_id_is_taken() -> None:
    ids = [0, 1023, 1024, 65_535, 1_000_000, 0xFFFF_FFFF]
    first = records(RecordType.TRADE, len(ids), instrument_id=ids, source_sequence=5)
    again = records(RecordType.TRADE, len(ids), instrument_id=ids, source_sequence=4)
    found = flags(concatenate([first, again]))
    # An id beyond every instrument table has no state; it is passed on all the same.
    assert found == [Flag(0)] * 6 + [Flag.OUT_OF_ORDER] * 5 + [Flag(0)]


def test_flags_set_are_counted_by_name() -> None:
    quality = Quality(QualitySettings())
    quality.check(records(RecordType.QUOTE, 3, bid=[99.0, 102.0, 103.0]), 3)
    assert quality.flagged["crossed"] == 2
    assert quality.flagged["late"] == 0


def test_more_records_than_the_array_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="count is 3"):
        Quality(QualitySettings()).check(records(RecordType.TICK, 2), 3)
