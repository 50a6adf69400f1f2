"""Trading hours of US equities: which phase of which session a moment belongs to, and when that changes.

Called by the simulated source with `session = "us-equities"`, a few times a day. Pure: a time in, a phase out. Hours
are those of NYSE and Nasdaq: pre-market 04:00, open 09:30, close 16:00 (13:00 on short days), after hours until 20:00
(17:00), New York time. Holidays follow the rules of NYSE Rule 7.2; unscheduled closures are not known here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from workers.errors import SettingsError

_SECOND_NS: Final = 1_000_000_000


class Phase(enum.Enum):
    """Part of a trading day."""

    CLOSED = "closed"
    PRE = "pre-market"
    OPEN = "open"
    POST = "after hours"


@dataclass(frozen=True)
class Span:
    """A stretch of time in one phase: `until_ns` is exclusive; `session` numbers the trading day (its ordinal)."""

    phase: Phase
    until_ns: int
    session: int


def span_at(now_ns: int) -> Span:
    """The phase at `now_ns` (ns since the epoch, UTC) and when it ends.

    SettingsError where the system has no time-zone data.
    """
    zone = _new_york()
    day = datetime.fromtimestamp(now_ns // _SECOND_NS, zone).date()
    while True:
        for phase, until in _phases(day):
            until_ns = int(datetime.combine(day, until, zone).timestamp()) * _SECOND_NS
            if now_ns < until_ns:
                return Span(phase, until_ns, day.toordinal())
        # Past the last phase of the day: closed until the first of the next trading day.
        day += timedelta(days=1)
        while not _phases(day):
            day += timedelta(days=1)


def _phases(day: date) -> tuple[tuple[Phase, time], ...]:
    """The phases of a day with their ends, in order; the night before belongs to it. Empty when there is no trading."""
    if day.weekday() >= 5 or day in holidays(day.year):
        return ()
    short = day in short_days(day.year)
    return (
        (Phase.CLOSED, time(4)),
        (Phase.PRE, time(9, 30)),
        (Phase.OPEN, time(13 if short else 16)),
        (Phase.POST, time(17 if short else 20)),
    )


@lru_cache(maxsize=8)
def holidays(year: int) -> frozenset[date]:
    """Days of the year on which the market stays closed, weekends apart."""
    days = {
        _nth_weekday(year, 1, 0, 3),  # Martin Luther King Jr. Day
        _nth_weekday(year, 2, 0, 3),  # Washington's Birthday
        easter(year) - timedelta(days=2),  # Good Friday
        _nth_weekday(year, 6, 0, 1) - timedelta(days=7),  # Memorial Day: the last Monday of May
        _nth_weekday(year, 9, 0, 1),  # Labor Day
        _nth_weekday(year, 11, 3, 4),  # Thanksgiving
    }
    fixed = [date(year, 1, 1), date(year, 7, 4), date(year, 12, 25)]
    if year >= 2022:
        fixed.append(date(year, 6, 19))
    for day in fixed:
        if day.weekday() == 6:
            days.add(day + timedelta(days=1))
        elif day.weekday() == 5:
            # A Saturday's holiday is kept on the Friday, unless that ends an accounting period: New Year's is not.
            if day.month != 1:
                days.add(day - timedelta(days=1))
        else:
            days.add(day)
    return frozenset(days)


@lru_cache(maxsize=8)
def short_days(year: int) -> frozenset[date]:
    """Days that close at 13:00: the day after Thanksgiving, and July 3 and December 24 where they are trading days."""
    days = {_nth_weekday(year, 11, 3, 4) + timedelta(days=1), date(year, 7, 3), date(year, 12, 24)}
    return frozenset(day for day in days if day.weekday() < 5 and day not in holidays(year))


def easter(year: int) -> date:
    """Easter Sunday (anonymous Gregorian computus, Meeus, Astronomical Algorithms, chapter 8)."""
    a, b, c = year % 19, year // 100, year % 100
    h = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    w = (32 + 2 * (b % 4) + 2 * (c // 4) - h - c % 4) % 7
    m = (a + 11 * h + 22 * w) // 451
    month, day = divmod(h + w - 7 * m + 114, 31)
    return date(year, month, day + 1)


def _nth_weekday(year: int, month: int, weekday: int, nth: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (nth - 1))


@lru_cache(maxsize=1)
def _new_york() -> ZoneInfo:
    try:
        return ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError:
        raise SettingsError(
            'session "us-equities" needs time-zone data: install the tzdata package of the system or of pip'
        ) from None
