"""Whose hours silence is judged by: the option `session` of live feeds, as a question that is cheap to ask.

    "always"         no hours: silence always means something
    "us-equities"    the built-in calendar (workers/sources/calendar.py), pre-market and after hours included
    "XLON", "24/5"   regular hours of any market that exchange_calendars knows, holidays and lunch breaks included

Used by workers/sources/websocket.py and workers/sources/polled.py, which ask at every poll.

exchange_calendars brings pandas along, 1 s and 70 MB: it is imported when a feed names such a market, in a thread, and
until it is there the market counts as open. Only what the calendar says is kept, as plain numbers.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, Protocol

from workers.errors import SettingsError
from workers.source import nearest
from workers.sources.calendar import Phase, Span, span_at

ALWAYS: Final = "always"
US_EQUITIES: Final = "us-equities"
_DAY_NS: Final = 86_400_000_000_000
_BEFORE_NS: Final = 14 * _DAY_NS  # what is kept of the past
_RENEW_NS: Final = 30 * _DAY_NS  # before its end a calendar is made anew
_NAME: Final = re.compile(r"[A-Z]{4}|[A-Z0-9_]{2,12}|24/[57]")


class MarketHours(Protocol):
    """One market's hours."""

    def is_open(self, now_ns: int) -> bool:
        """Whether the market is open at `now_ns`, ns since the epoch. SettingsError if there is no such market."""


class UsEquities:
    """From 04:00 to 20:00 New York time on trading days."""

    def __init__(self) -> None:
        """SettingsError where the system has no time-zone data."""
        self._from_ns = 0
        self._span: Span = span_at(0)

    def is_open(self, now_ns: int) -> bool:
        """See `MarketHours`. The calendar is asked when a phase ends, or the clock was set back."""
        if not self._from_ns <= now_ns < self._span.until_ns:
            self._span, self._from_ns = span_at(now_ns), now_ns
        return self._span.phase is not Phase.CLOSED


class ExchangeHours:
    """Regular hours of a market of exchange_calendars."""

    def __init__(self, feed: str, name: str, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Begin to load them. SettingsError without the library."""
        if find_spec("exchange_calendars") is None:
            raise SettingsError(
                f"feed {feed}: options.session {name!r} needs exchange_calendars: install tickengine[calendars]"
            )
        self._feed, self._name, self._clock = feed, name, clock
        self._changes: list[int] = []  # times, ns: at even places it opens, at odd ones it closes
        self._end_ns = 0
        self._problem = ""
        self._thread: threading.Thread | None = None
        self._load()

    def is_open(self, now_ns: int) -> bool:
        """See `MarketHours`."""
        if self._problem:
            raise SettingsError(f"feed {self._feed}: options.session is {self._name!r}: {self._problem}")
        if not self._changes:
            return True
        if now_ns > self._end_ns - _RENEW_NS and not self.loading:
            self._load()
        return bisect_right(self._changes, now_ns) % 2 == 1

    @property
    def loading(self) -> bool:
        """Whether the calendar is being made."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        """Until it is there; for tests."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _load(self) -> None:
        self._thread = threading.Thread(target=self._read, name=f"calendar {self._name}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        import exchange_calendars
        import pandas

        now_ns = self._clock()
        try:
            start = pandas.Timestamp(now_ns - _BEFORE_NS).normalize()
            calendar = exchange_calendars.get_calendar(self._name, start=start)
        except exchange_calendars.errors.InvalidCalendarName:
            known = exchange_calendars.get_calendar_names(include_aliases=True)
            self._problem = f"no such market{nearest(self._name, known)}"
            return
        except ValueError as error:
            self._problem = str(error)
            return
        changes = changes_of(calendar)
        self._end_ns = changes[-1] if changes else 0
        self._changes = changes


def changes_of(calendar: Any) -> list[int]:
    """The times, ns, at which a calendar of exchange_calendars opens and closes, in turn.

    Where a session begins at the moment at which the one before it ends, the market does not close.
    """
    changes: list[int] = []
    columns = (calendar.opens_nanos, calendar.break_starts_nanos, calendar.break_ends_nanos, calendar.closes_nanos)
    for opens, pauses, goes_on, closes in zip(*(column.tolist() for column in columns), strict=True):
        spans = [(opens, pauses), (goes_on, closes)] if pauses > 0 else [(opens, closes)]
        for begin, end in spans:
            if changes and begin <= changes[-1]:
                changes[-1] = max(changes[-1], end)
            else:
                changes += [begin, end]
    return changes


def market_hours(feed: str, session: str) -> MarketHours | None:
    """The hours that a feed's option `session` names; None = there is no time at which silence means nothing.

    SettingsError for a word that names no market. A market that only looks like one is found out by `is_open`.
    """
    if session == ALWAYS:
        return None
    if session == US_EQUITIES:
        return UsEquities()
    if _NAME.fullmatch(session):
        return ExchangeHours(feed, session)
    hint = nearest(session, (ALWAYS, US_EQUITIES))
    raise SettingsError(f"feed {feed}: options.session is {session!r}{hint}, or the MIC of a market, such as 'XLON'")
