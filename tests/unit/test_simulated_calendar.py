"""The session calendar against dates that NYSE published."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest

from workers.sources.calendar import Phase, easter, holidays, short_days, span_at

NEW_YORK = ZoneInfo("America/New_York")


def ns(*when: int) -> int:
    return int(datetime(*when, tzinfo=NEW_YORK).timestamp()) * 1_000_000_000  # type: ignore[arg-type]


def test_holidays_of_2025_are_those_of_the_exchange() -> None:
    assert sorted(holidays(2025)) == [
        date(2025, 1, 1),
        date(2025, 1, 20),
        date(2025, 2, 17),
        date(2025, 4, 18),
        date(2025, 5, 26),
        date(2025, 6, 19),
        date(2025, 7, 4),
        date(2025, 9, 1),
        date(2025, 11, 27),
        date(2025, 12, 25),
    ]
    assert sorted(short_days(2025)) == [date(2025, 7, 3), date(2025, 11, 28), date(2025, 12, 24)]


def test_new_years_day_on_a_saturday_is_not_made_up_for() -> None:
    assert date(2021, 12, 31) not in holidays(2021)
    assert date(2022, 1, 1) not in holidays(2022)


def test_holidays_on_weekends_move() -> None:
    assert date(2021, 7, 5) in holidays(2021)  # the 4th was a Sunday
    assert date(2026, 7, 3) in holidays(2026)  # the 4th is a Saturday


@pytest.mark.parametrize(("year", "day"), [(2019, (4, 21)), (2024, (3, 31)), (2025, (4, 20)), (2038, (4, 25))])
def test_easter(year: int, day: tuple[int, int]) -> None:
    assert easter(year) == date(year, *day)


@pytest.mark.parametrize(
    ("when", "phase", "until"),
    [
        ((2025, 10, 20, 3, 59), Phase.CLOSED, (2025, 10, 20, 4, 0)),
        ((2025, 10, 20, 4, 0), Phase.PRE, (2025, 10, 20, 9, 30)),
        ((2025, 10, 20, 9, 30), Phase.OPEN, (2025, 10, 20, 16, 0)),
        ((2025, 10, 20, 16, 0), Phase.POST, (2025, 10, 20, 20, 0)),
        ((2025, 10, 20, 20, 0), Phase.CLOSED, (2025, 10, 21, 4, 0)),
        ((2025, 10, 24, 21, 0), Phase.CLOSED, (2025, 10, 27, 4, 0)),
        ((2025, 11, 27, 12, 0), Phase.CLOSED, (2025, 11, 28, 4, 0)),
        ((2025, 11, 28, 13, 0), Phase.POST, (2025, 11, 28, 17, 0)),
        ((2025, 3, 9, 12, 0), Phase.CLOSED, (2025, 3, 10, 4, 0)),
    ],
)
def test_phase_and_its_end(when: tuple[int, ...], phase: Phase, until: tuple[int, ...]) -> None:
    span = span_at(ns(*when))
    assert (span.phase, span.until_ns) == (phase, ns(*until))


def test_one_trading_day_is_one_session() -> None:
    sessions = {span_at(ns(2025, 10, 20, hour)).session for hour in (4, 10, 17)}
    assert len(sessions) == 1
    assert span_at(ns(2025, 10, 21, 10)).session not in sessions
