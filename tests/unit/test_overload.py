"""When fan-out conflates, sheds, tries again and is relieved: every edge of the table, with the time passed in."""

from __future__ import annotations

import pytest

from shm.layout import Priority
from workers.overload import (
    HEAVY_LAG,
    HOLD_CAP_S,
    HOLD_S,
    LIGHT_LAG,
    SETTLE_S,
    SEVERE_LAG,
    SEVERE_NS,
    SEVERE_WAIT_NS,
    Load,
    Overload,
    State,
)

SECOND = 1_000_000_000
LIGHT, HEAVY, SEVERE = Load(0.0), Load(HEAVY_LAG), Load(SEVERE_LAG)
BETWEEN = Load((LIGHT_LAG + HEAVY_LAG) / 2)


def in_state(state: State) -> tuple[Overload, int]:
    """An overload in that state, and the time."""
    overload, now = Overload(), 0
    if state is State.NORMAL:
        return overload, now
    overload.judge(HEAVY, now)
    if state is State.SHEDDING:
        overload.judge(SEVERE, now)
        now += SEVERE_NS
        overload.judge(SEVERE, now)
    elif state is State.PROBING:
        overload.judge(LIGHT, now)
        now += int(HOLD_S * SECOND)
        overload.judge(LIGHT, now)
    assert overload.state is state
    return overload, now


@pytest.mark.parametrize(
    ("state", "load", "following"),
    [
        (State.NORMAL, LIGHT, State.NORMAL),
        (State.NORMAL, BETWEEN, State.NORMAL),
        (State.NORMAL, HEAVY, State.CONFLATING),
        (State.NORMAL, Load(0.0, excess=True), State.CONFLATING),
        (State.NORMAL, SEVERE, State.CONFLATING),
        (State.CONFLATING, HEAVY, State.CONFLATING),
        (State.CONFLATING, Load(0.0, excess=True), State.CONFLATING),
        (State.CONFLATING, Load(0.0, full=True), State.SHEDDING),
        (State.SHEDDING, SEVERE, State.SHEDDING),
        (State.SHEDDING, BETWEEN, State.SHEDDING),
        (State.PROBING, LIGHT, State.PROBING),
        (State.PROBING, BETWEEN, State.PROBING),
        (State.PROBING, HEAVY, State.CONFLATING),
        (State.PROBING, Load(0.0, excess=True), State.CONFLATING),
    ],
)
def test_what_follows_at_once(state: State, load: Load, following: State) -> None:
    overload, now = in_state(state)
    assert overload.judge(load, now) is following


@pytest.mark.parametrize("severe", [SEVERE, Load(0.0, waited_ns=SEVERE_WAIT_NS)])
def test_low_is_shed_when_conflating_is_not_enough_for_a_while(severe: Load) -> None:
    overload, now = in_state(State.CONFLATING)
    assert overload.judge(severe, now) is State.CONFLATING
    assert overload.judge(severe, now + SEVERE_NS - 1) is State.CONFLATING
    assert overload.judge(severe, now + SEVERE_NS) is State.SHEDDING
    assert overload.shed == 1 << Priority.LOW


@pytest.mark.parametrize(
    ("state", "after_s", "following"),
    [
        (State.SHEDDING, HOLD_S, State.CONFLATING),
        (State.CONFLATING, HOLD_S, State.PROBING),
        (State.PROBING, SETTLE_S, State.NORMAL),
    ],
)
def test_what_a_light_load_leads_to_in_time(state: State, after_s: float, following: State) -> None:
    overload, now = in_state(state)
    overload.judge(LIGHT, now)
    assert overload.judge(LIGHT, now + int(after_s * SECOND) - 1) is state
    assert overload.judge(LIGHT, now + int(after_s * SECOND)) is following


@pytest.mark.parametrize("other", [BETWEEN, Load(0.0, excess=True), Load(0.0, waited_ns=SEVERE_WAIT_NS // 2)])
@pytest.mark.parametrize("state", [State.SHEDDING, State.CONFLATING])
def test_a_turn_that_is_not_light_begins_the_wait_anew(state: State, other: Load) -> None:
    overload, now = in_state(state)
    overload.judge(LIGHT, now)
    overload.judge(other, now + SECOND // 2)
    overload.judge(LIGHT, now + SECOND // 2)
    assert overload.judge(LIGHT, now + SECOND) is state


def test_each_failed_try_doubles_the_pause_up_to_a_cap_and_a_success_forgets_them() -> None:
    overload, now = in_state(State.CONFLATING)
    pauses = []
    for _ in range(8):
        began = now
        while overload.judge(LIGHT, now) is not State.PROBING:
            now += SECOND // 10
        pauses.append(round((now - began) / SECOND))
        overload.judge(HEAVY, now)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert overload.hold_s == HOLD_CAP_S
    while overload.judge(LIGHT, now) is not State.NORMAL:
        now += SECOND // 10
    assert overload.hold_s == HOLD_S


@pytest.mark.parametrize("state", list(State))
def test_high_tier_is_never_kept_back(state: State) -> None:
    overload, _ = in_state(state)
    assert not (overload.hold | overload.shed) >> Priority.HIGH & 1
    assert overload.shed & ~overload.hold == 0
    assert bool(overload.hold) is (state in (State.CONFLATING, State.SHEDDING))


def test_a_try_is_not_told() -> None:
    assert State.PROBING.told is State.CONFLATING
    assert [state.told for state in State if state is not State.PROBING] == [
        State.NORMAL,
        State.CONFLATING,
        State.SHEDDING,
    ]
