"""Session and breaker under any sequence of events: what must hold after each of them."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.breaker import BREAKER_TRANSITIONS, LONGEST_COOL_DOWN_NS, Breaker, BreakerState
from workers.session import CONNECTED, TRANSITIONS, Do, Event, Limits, Session, State, Verdict

SECOND = 1_000_000_000


class SessionMachine(RuleBasedStateMachine):
    """A session and its owner, who does what he is told and remembers it."""

    @initialize(seed=st.integers(0, 1000), login=st.booleans(), acknowledged=st.booleans())
    def make(self, seed: int, login: bool, acknowledged: bool) -> None:
        self.now = 1_000 * SECOND
        self.login, self.wants_acknowledgement = login, acknowledged
        self.limits = Limits(connect_s=5, login_s=5, acknowledge_s=5, first_data_s=20, message_s=15, stale_s=8)
        self.session = Session(random.Random(seed), limits=self.limits, login=login, acknowledged=acknowledged)
        self.connection = False  # there is one, or one is being made
        self.told_up = False
        self.acknowledged = self.heard = False
        self.not_before = 0
        self.opened = 0

    def obey(self, actions: list[Do]) -> None:
        for action in actions:
            if action is Do.CONNECT:
                assert not self.connection, "a second connection"
                assert self.now >= self.not_before, "Retry-After was not obeyed"
                self.connection = True
            elif action is Do.CLOSE:
                self.connection = False
            elif action is Do.SUBSCRIBE:
                self.acknowledged, self.heard = not self.wants_acknowledgement, False
            elif action is Do.UP:
                assert not self.told_up
                self.told_up = True
            elif action is Do.DOWN:
                assert self.told_up
                self.told_up = False

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.obey(self.session.tick(self.now))

    @rule(seconds=st.floats(0, 40))
    def wait_with_the_market_closed(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        before = self.session.state
        self.obey(self.session.tick(self.now, expected=False))
        if before is State.LIVE:
            assert self.session.state is State.LIVE or "no message" in self.session.why

    @rule()
    def open(self) -> None:
        if self.session.state is State.CONNECT:
            self.opened += 1
        self.obey(self.session.opened(self.now))

    @rule()
    def log_in(self) -> None:
        self.obey(self.session.logged_in(self.now))

    @rule()
    def acknowledge(self) -> None:
        self.acknowledged |= self.session.state is State.SUBSCRIBE
        self.obey(self.session.acknowledged(self.now))

    @rule()
    def hear(self) -> None:
        self.heard |= self.session.state is State.SUBSCRIBE
        self.obey(self.session.heard(self.now))

    @rule()
    def fall_silent(self) -> None:
        self.obey(self.session.silent(self.now, "silent"))

    @rule(retry_after_s=st.sampled_from([0.0, 0.0, 3.0, 120.0]), lasting=st.booleans())
    def lose(self, retry_after_s: float, lasting: bool) -> None:
        trying = self.connection
        self.obey(self.session.lost(self.now, Verdict("lost", retry_after_s, lasting)))
        if trying:
            self.not_before = self.now + int(retry_after_s * SECOND)
            assert self.session.state is (
                State.FAILED if self.session.breaker.state is BreakerState.OPEN else State.RECOVER
            )
            assert self.session.due_ns >= self.not_before
            assert not lasting or self.session.state is State.FAILED

    @precondition(lambda self: self.session.state is not State.CLOSED)
    @rule()
    def left_alone_it_tries_again(self) -> None:
        """Whatever it waits for, nobody answering: within a bounded time it is connecting anew."""
        for _ in range(20):
            self.now = max(self.now, self.session.due_ns)
            actions = self.session.tick(self.now)
            self.obey(actions)
            if Do.CONNECT in actions:
                return
        raise AssertionError(f"stuck in {self.session.state}: {self.session.why}")

    @rule(really=st.integers(0, 30))
    def stop(self, really: int) -> None:
        if really == 0:
            self.obey(self.session.stop(self.now))
            assert self.session.tick(self.now + 10**15) == []
            assert self.session.opened(self.now) == []

    @invariant()
    def holds(self) -> None:
        session = self.session
        assert self.told_up == (session.state is State.LIVE)
        if session.state in (State.LIVE, State.STALE):
            assert self.acknowledged
            assert self.heard
            assert session.up_since_ns
        else:
            assert session.up_since_ns == 0
        assert self.connection == (session.state is State.CONNECT or session.state in CONNECTED)
        assert session.connects == self.opened
        assert session.why
        assert (session.breaker.state is BreakerState.OPEN) == (session.state is State.FAILED) or (
            session.state is State.CLOSED
        )


SessionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestSession = SessionMachine.TestCase


class BreakerMachine(RuleBasedStateMachine):
    """A breaker and the only two ways to treat it: a try that works, and one that does not."""

    @initialize(seed=st.integers(0, 1000), threshold=st.integers(2, 8))
    def make(self, seed: int, threshold: int) -> None:
        self.now = 10**15
        self.threshold = threshold
        self.breaker = Breaker(random.Random(seed), threshold)
        self.failures = 0  # in a row

    @rule(
        up_s=st.sampled_from([0.0, 0.0, 0.0, 1.0, 29.9, 30.0, 600.0]),
        retry_after_s=st.sampled_from([0.0, 0.0, 90.0, 1e9]),
        lasting=st.booleans(),
    )
    def fail(self, up_s: float, retry_after_s: float, lasting: bool) -> None:
        before = self.breaker.state
        if up_s:
            self.breaker.worked()
            before = BreakerState.CLOSED
        up_since = self.now if up_s else 0
        self.now += int(up_s * SECOND)
        self.failures = 1 if up_s >= 30 else self.failures + 1
        due = self.breaker.failed(self.now, up_since, retry_after_ns=int(retry_after_s * SECOND), lasting=lasting)
        opens = lasting or before is BreakerState.HALF_OPEN or self.failures >= self.threshold
        assert self.breaker.state is (BreakerState.OPEN if opens else BreakerState.CLOSED)
        wait_s = (due - self.now) / SECOND
        assert wait_s >= min(retry_after_s, 86_400)
        if not retry_after_s:
            assert wait_s <= LONGEST_COOL_DOWN_NS / SECOND
            assert opens or (wait_s == 0) == (self.failures == 1)
            assert not opens or wait_s >= 45
        self.now = due
        self.breaker.trying()
        assert self.breaker.state is (BreakerState.HALF_OPEN if opens else BreakerState.CLOSED)

    @rule()
    def work(self) -> None:
        self.breaker.worked()
        assert self.breaker.state is BreakerState.CLOSED


BreakerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestBreaker = BreakerMachine.TestCase


def test_the_tables_name_every_state_and_event_and_leave_no_way_out_of_closed() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.CLOSED}
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert set(TRANSITIONS.values()) == set(State)
    assert {state for state, _ in BREAKER_TRANSITIONS} == set(BreakerState)
