"""The score of a symbol, and the rank table, the cache's, fan-out's and the control process's side of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from engine.store import StoredSubscription
from engine.symbol_scores import Watchers, symbol_scores
from shm.errors import BadArgument, LayoutMismatch, SegmentMissing
from shm.ranks import RankTable
from tests.ticks import SECOND, START, Bench, trade
from workers.symbol_score import HALF_LIFE_S, STAYS, SymbolScores, Totals
from workers.watch import Watch

NOBODY = np.zeros(4)


def totals(
    trades: list[int], notional: list[float] | None = None, price: list[float] | None = None, day: int = 20_000
) -> Totals:
    count = len(trades)
    return Totals(
        np.full(count, day, np.int64),
        np.array(trades, np.uint64),
        np.array(notional or [0.0] * count),
        np.array(price or [0.0] * count),
    )


def test_what_is_new_at_a_look_counts_and_is_halved_in_time() -> None:
    scores = SymbolScores(4)
    scores.look(totals([100, 5, 0, 0]), NOBODY, 0.0, 0)
    assert scores.trades.tolist() == [0, 0, 0, 0]  # what was there before is history
    scores.look(totals([110, 5, 4, 0]), NOBODY, 1.0, 0)
    assert scores.trades.tolist() == [10, 0, 4, 0]
    scores.look(totals([110, 5, 4, 0]), NOBODY, 1.0 + HALF_LIFE_S, 0)
    assert scores.trades.tolist() == pytest.approx([5, 0, 2, 0])


def test_another_day_begins_anew_and_a_new_instrument_counts_from_nothing() -> None:
    scores = SymbolScores(4)
    scores.look(totals([100]), NOBODY, 0.0, 0)
    scores.look(totals([7, 3], day=20_001), NOBODY, 0.0, 0)
    assert scores.trades.tolist() == [7, 3, 0, 0]


def test_moves_are_relative_and_what_is_no_price_is_none() -> None:
    scores = SymbolScores(4)
    scores.look(totals([0] * 4, price=[100.0, 0.0, np.nan, -50.0]), NOBODY, 0.0, 0)
    scores.look(totals([0] * 4, price=[101.0, 5.0, 5.0, -49.0]), NOBODY, 0.0, 0)
    assert scores.move.tolist() == pytest.approx([0.01, 0.0, 0.0, 0.02])


def test_score_is_activity_by_shares_and_interest() -> None:
    scores = SymbolScores(4)
    scores.look(totals([0] * 4), NOBODY, 0.0, 0)
    watchers = np.array([0.0, 1.0, 3.0, 0.0])
    scores.look(totals([100, 25, 0, 0], [50.0, 200.0, 0.0, 0.0]), watchers, 0.0, 2)
    activity = [(1 + 0.5) / 3, (0.5 + 1) / 3, 0.0, 0.0]
    assert scores.score.tolist() == pytest.approx([activity[0], activity[1] + 0.5, 0.75, 0.0])
    assert scores.ranked.tolist() == [False, True, True, False]


def test_symbols_without_a_score_are_not_ranked_however_many_may_be() -> None:
    scores = SymbolScores(4)
    scores.look(totals([0] * 4), np.array([0.0, 2.0, 0.0, 0.0]), 0.0, 4)
    assert scores.ranked.tolist() == [False, True, False, False]


def test_who_is_ranked_stays_until_another_is_clearly_ahead() -> None:
    scores = SymbolScores(2)
    nobody = np.zeros(2)

    def look(first: int, second: int) -> list[bool]:
        scores.trades[:] = first, second
        scores.look(totals([0, 0]), nobody, 0.0, 1)
        return scores.ranked.tolist()  # type: ignore[no-any-return]

    assert look(100, 90) == [True, False]
    assert look(100, 101) == [True, False]
    assert look(100, int(100 * STAYS**2) + 2) == [False, True]  # the score has the root


@pytest.fixture
def ranks(engine_name: str) -> Iterator[RankTable]:
    with RankTable.create(engine_name, instruments=8) as made:
        yield made


def test_rank_table_is_what_was_made_or_a_clear_error(engine_name: str) -> None:
    with pytest.raises(SegmentMissing):
        RankTable.attach(engine_name)
    with pytest.raises(BadArgument, match="instruments is 0"):
        RankTable.create(engine_name, instruments=0)
    with RankTable.create(engine_name, instruments=8) as made:
        made.entries["score"][3], made.updated_ns = 1.5, 77
        with RankTable.attach(engine_name) as again:
            assert (len(again.entries), float(again.entries["score"][3]), again.updated_ns) == (8, 1.5, 77)
        made._words[1] = 9
        with pytest.raises(LayoutMismatch, match="version 9"):
            RankTable.attach(engine_name)
        made._words[0] = 0
        with pytest.raises(SegmentMissing, match="being created"):
            RankTable.attach(engine_name)


def test_cache_keeps_the_scores_from_what_it_counts(engine_name: str, ranks: RankTable) -> None:
    ranks.entries["http_watchers"][1] = 2
    with Bench(engine_name) as bench:
        bench.publish(*(trade(START + i, 100.0, 2.0, instrument=0) for i in range(5)))
        bench.cache.turn(START)
        bench.publish(*(trade(START + SECOND + i, 110.0, 2.0, instrument=0) for i in range(10)))
        bench.publish(trade(START + SECOND, 5.0, 1.0, instrument=2))
        bench.cache.turn(START + 2 * SECOND)
        bench.cache.turn(START + 4 * SECOND)
    entries = ranks.entries
    assert entries["trades"][:3].tolist() == pytest.approx([10, 0, 1], rel=0.05)
    assert entries["notional"][0] == pytest.approx(2200, rel=0.05)
    assert entries["move"][0] == pytest.approx(0.1, rel=0.05)
    assert entries["score"][1] == pytest.approx(2 / 3)
    assert entries["ranked"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert ranks.updated_ns == START + 4 * SECOND


def test_fan_out_counts_who_listens_by_name_and_takes_over_who_ranks(engine_name: str, ranks: RankTable) -> None:
    ids = {"A": 0, "B.C": 3, "FAR": 100}
    counts = {b"marketdata.quote.B.C": 2, b"marketdata.trade.B.C": 1}
    watch = Watch(engine_name, ids.get)
    watch.note(
        [b"marketdata.quote.B.C", b"marketdata.", b"marketdata.trade.NEW", b"x", b"\xff", b"marketdata.quote.FAR"],
        lambda topic: counts.get(topic, 0),
    )
    assert ranks.entries["zmq_watchers"].tolist() == [0, 0, 0, 3, 0, 0, 0, 0]
    counts.clear()
    watch.note([b"marketdata.trade.B.C"], lambda topic: counts.get(topic, 0))
    assert not ranks.entries["zmq_watchers"].any()

    ranked = np.zeros(16, np.uint8)
    ranks.entries["ranked"][2] = 1
    watch.look(10 * SECOND, ranked)
    assert ranked.tolist() == [0, 0, 1] + [0] * 13
    watch.close()
    Watch("no-such-engine", ids.get).look(0, ranked)  # without a table there is nothing to do


def test_subscriptions_count_by_their_priority_and_answers_are_sorted(ranks: RankTable) -> None:
    def subscription(key: int, *symbols: str, **fields: object) -> StoredSubscription:
        made = {"subscription_id": f"s{key}", "key": key, "symbols": symbols, "created_ns": 1} | fields
        return StoredSubscription(**made)  # type: ignore[arg-type]

    ids = {"A": 0, "B": 1, "C": 2}
    watchers = Watchers(ids.get, ranks)
    high, low = subscription(1, "A", "B", "UNSEEN", priority="high"), subscription(2, "B", "C*", priority="low")
    watchers.note([high, low], 3)
    assert ranks.entries["http_watchers"][:4].tolist() == [3, 4, 0, 0]
    ids["UNSEEN"] = 3
    watchers.note([high, low], 4)
    assert ranks.entries["http_watchers"][:4].tolist() == [3, 4, 0, 3]
    watchers.note([subscription(1, "A", is_active=False), low], 4)
    assert ranks.entries["http_watchers"][:4].tolist() == [0, 1, 0, 0]

    ranks.entries["score"][:3], ranks.entries["ranked"][1] = [0.5, 1.5, 0.0], 1
    got = symbol_scores([f"S{number}" for number in range(10)], ranks)
    assert [(one.symbol, one.score, one.ranked, one.watchers) for one in got[:2]] == [
        ("S1", 1.5, True, 1),
        ("S0", 0.5, False, 0),
    ]
    assert len(got) == 10
