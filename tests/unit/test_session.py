"""A session through its states, the cadence of instruments, the score of a feed: given times, no sockets."""

from __future__ import annotations

import random

import pytest

from workers.breaker import THRESHOLD, BreakerState
from workers.cadence import Cadence
from workers.feed_health import WARM_UP, FeedHealth
from workers.session import Do, Limits, Session, State, Verdict

S = 1_000_000_000
T0 = 1_700_000_000 * S


def session(**options: object) -> Session:
    return Session(random.Random(1), **options)  # type: ignore[arg-type]


def live(now: int = T0) -> Session:
    one = session()
    assert one.tick(now) == [Do.CONNECT]
    assert one.opened(now) == [Do.SUBSCRIBE]
    assert one.acknowledged(now) == []
    assert one.heard(now) == [Do.UP]
    return one


def test_live_means_acknowledged_and_data() -> None:
    one = session(login=True)
    assert one.tick(T0) == [Do.CONNECT]
    assert one.opened(T0) == [Do.LOGIN]
    assert one.heard(T0) == []
    assert one.logged_in(T0) == [Do.SUBSCRIBE]
    assert one.heard(T0) == []
    assert (one.state, "not acknowledged" in one.why) == (State.SUBSCRIBE, True)
    assert one.acknowledged(T0) == [Do.UP]
    assert one.state is State.LIVE


def test_a_subscription_that_is_not_acknowledged_is_a_failure_even_if_data_comes() -> None:
    one = session(limits=Limits(acknowledge_s=3))
    one.tick(T0)
    one.opened(T0)
    one.heard(T0 + S)
    assert one.tick(T0 + 3 * S - 1) == []
    assert one.tick(T0 + 3 * S) == [Do.CLOSE]
    assert one.why == "subscription not acknowledged within 3 s"


def test_the_first_retry_is_at_once_and_the_next_ones_back_off() -> None:
    one = live()
    assert one.lost(T0 + S, Verdict("reset")) == [Do.DOWN, Do.CLOSE]
    assert one.due_ns == T0 + S
    waits, now = [], T0 + S
    for _ in range(4):
        assert one.tick(now) == [Do.CONNECT]
        one.lost(now, Verdict("refused"))
        waits.append((one.due_ns - now) / S)
        now = one.due_ns
    assert all(0.5 * 0.5 * 2**k <= wait <= 0.5 * 2**k for k, wait in enumerate(waits)), waits


def test_the_breaker_opens_after_failures_in_a_row_and_one_try_closes_it() -> None:
    one, now = session(), T0
    for _ in range(THRESHOLD):
        assert one.state is State.RECOVER
        assert one.tick(now) == [Do.CONNECT]
        one.lost(now, Verdict("connection refused"))
        now = one.due_ns
    assert (one.state, one.breaker.state, one.why) == (State.FAILED, BreakerState.OPEN, "connection refused")
    assert one.tick(now - 1) == []
    assert one.tick(now) == [Do.CONNECT]
    assert one.breaker.state is BreakerState.HALF_OPEN
    one.opened(now)
    one.acknowledged(now)
    one.heard(now)
    assert (one.state, one.breaker.state) == (State.LIVE, BreakerState.CLOSED)


def test_retry_after_is_obeyed_where_it_is_longer_than_the_back_off() -> None:
    one = session()
    one.tick(T0)
    one.lost(T0, Verdict("429", retry_after_s=77))
    assert one.due_ns == T0 + 77 * S
    assert one.tick(T0 + 76 * S) == []
    assert one.tick(T0 + 77 * S) == [Do.CONNECT]


def test_silence_is_stale_then_made_again_and_no_matter_while_the_market_is_closed() -> None:
    one = live()
    assert one.silent(T0 + S, "all silent") == [Do.DOWN]
    assert one.heard(T0 + 2 * S) == [Do.UP]
    assert one.silent(T0 + 3 * S, "all silent") == [Do.DOWN]
    one.message(T0 + 32 * S)
    assert one.tick(T0 + 33 * S, expected=False) == []
    assert one.state is State.STALE
    assert one.tick(T0 + 63 * S) == [Do.CLOSE]
    assert one.why == "all silent"


def test_what_arrives_after_the_connection_was_given_up_changes_nothing() -> None:
    one = live()
    one.lost(T0, Verdict("reset"))
    before = (one.state, one.why, one.due_ns)
    assert one.heard(T0) == one.acknowledged(T0) == one.opened(T0) == one.lost(T0, Verdict("again")) == []
    assert (one.state, one.why, one.due_ns) == before


def test_an_instrument_is_missed_by_its_own_cadence() -> None:
    cadence = Cadence(factor=5, floor_s=2)
    for second in range(100):
        cadence.heard([1], T0 + second * S)
        if second % 30 == 0:
            cadence.heard([2], T0 + second * S)
    end = T0 + 99 * S
    assert cadence.silent(end + 4 * S) == []
    assert [(one.instrument_id, one.silent_s) for one in cadence.silent(end + 6 * S)] == [(1, 6.0)]
    assert [one.instrument_id for one in cadence.silent(end + 200 * S)] == [2, 1]
    cadence.restart(end + 200 * S)
    assert cadence.silent(end + 201 * S) == []


def test_what_has_hardly_spoken_is_not_judged_nor_what_is_closed() -> None:
    cadence = Cadence(factor=5, floor_s=2, is_open=lambda now: now < T0 + 50 * S or now >= T0 + 500 * S)
    cadence.heard([1, 2], T0)
    for second in range(10):
        cadence.heard([1], T0 + second * S)
    assert [one.instrument_id for one in cadence.silent(T0 + 40 * S)] == [1]
    assert cadence.silent(T0 + 60 * S) == []
    assert cadence.silent(T0 + 501 * S) == []
    assert [one.instrument_id for one in cadence.silent(T0 + 520 * S)] == [1]


def test_growing_latency_is_warned_of_once_whatever_the_clocks_say() -> None:
    health = FeedHealth()
    now = T0
    for step in range(400):
        now += S // 20
        health.latency.observe(now, -1.2e9 + (step % 7) * 1e6)
    health.messages(now, 400)
    assert health.warnings(now) == []
    assert health.score(now, delivers=True) == 1.0
    for _ in range(200):
        now += S // 20
        health.latency.observe(now, -0.8e9)
    assert [text.startswith("latency 3") for text in health.warnings(now)] == [True]
    assert health.warnings(now) == []
    assert health.score(now, delivers=True) == pytest.approx(0.5, abs=0.3)
    assert health.score(now, delivers=True) < 0.9


def test_a_few_samples_are_no_baseline() -> None:
    health = FeedHealth()
    for step in range(WARM_UP - 1):
        health.latency.observe(T0 + step * S, step * 1e9)
    assert health.latency.excess == 0.0


def test_each_part_lowers_the_score_and_fades() -> None:
    health = FeedHealth()
    health.messages(T0, 100)
    assert health.score(T0, delivers=False) == 0.0
    assert health.score(T0, delivers=True) == 1.0
    assert health.score(T0, delivers=True, fresh_share=0.75) == 0.75
    health.errors(T0, 10)
    assert health.score(T0, delivers=True) == pytest.approx(0.9)
    assert health.warnings(T0) == ["10 errors in the last minutes"]
    health.gaps(T0, 10)
    assert health.score(T0, delivers=True) == pytest.approx(0.9 * 0.5)
    for _ in range(3):
        health.reconnected(T0)
    assert health.warnings(T0) == ["3 reconnects in ten minutes"]
    later = T0 + 3600 * S
    health.messages(later, 100)
    assert health.score(later, delivers=True) == pytest.approx(1.0, abs=0.01)
    assert health.warnings(later, silent="BTCUSDT silent") == ["BTCUSDT silent"]
    assert health.warned
    assert health.warnings(later) == []
    assert not health.warned
