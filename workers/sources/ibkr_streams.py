"""What a feed asks TWS for: its streams, how each is had, and when the limits of IBKR let it be asked.

    data type   tick by tick   aggregate: a market data line, every 250 ms      other
    trade       Last           RTVolume of reported trades (generic tick 375)
    tick        AllLast        RTVolume of all trades (generic tick 233)
    quote       BidAsk         best bid and ask
    news                       headlines of providers (generic tick 292)        bulletins
    bar                                                                         5 s real-time, 60 s kept up to date
    level2                                                                      market depth

Tick by tick is scarce: 5 % of the account's market data lines, and one request for an instrument in 15 s. `plan` gives
it to the first streams while there is some left, and aggregates to the rest. All aggregates of a symbol are one stream,
so that they cost one line.

Pure: time is passed in. Used by workers/sources/ibkr.py, which sends the requests.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from workers.errors import SettingsError

BULLETINS: Final = "IBKR.BULLETINS"  # symbol of the records of bulletins
TYPES: Final = ("tick", "quote", "bar", "trade", "level2", "news")

TICK_BY_TICK_GAP_NS: Final = 15_000_000_000
HISTORICAL_WINDOW_NS: Final = 600_000_000_000
HISTORICAL_MOST: Final = 60
HISTORICAL_SAME_NS: Final = 15_000_000_000


class Way(enum.Enum):
    """How a stream is had: a request of the API."""

    LAST = "Last"
    ALL_LAST = "AllLast"
    BID_ASK = "BidAsk"
    AGGREGATE = "aggregate"
    BARS_5 = "5 s bars"
    BARS_60 = "60 s bars"
    DEPTH = "depth"
    BULLETINS = "bulletins"


TICK_BY_TICK: Final = (Way.LAST, Way.ALL_LAST, Way.BID_ASK)
_BY_TICK_OF: Final = {"trade": Way.LAST, "tick": Way.ALL_LAST, "quote": Way.BID_ASK}


class Step(enum.Enum):
    """How far a stream is."""

    WAITS = "waits"  # for its contract, or for its turn
    ASKED = "asked"
    LIVE = "live"  # a record has come since it was asked for
    REFUSED = "refused"


@dataclass(eq=False, slots=True)
class Stream:
    """One request's worth of data.

    Attributes:
        types: data types that it brings; several for an aggregate.
        due_ns: not asked for earlier than this.
        request: number of the request that runs; 0 = none.
        had_data: it has ever brought a record.
        gap_before: on its next record: something was missed before it.
        volumeless: it is an index, whose prints are changes of its last price.
    """

    symbol: str
    way: Way
    types: list[str]
    instrument_id: int
    step: Step = Step.WAITS
    due_ns: int = 0
    request: int = 0
    asked_ns: int = 0
    note: str = ""
    had_data: bool = False
    gap_before: bool = False
    delayed: bool = False
    volumeless: bool = False

    def spoke(self) -> bool:
        """A record has come of it. False = it was held until the request had ended, and says nothing about the next."""
        if self.step is Step.ASKED:
            self.step, self.note, self.had_data = Step.LIVE, "", True
        return self.step is Step.LIVE

    def __str__(self) -> str:
        """As people call it: "quote of AAPL"."""
        return f"{'/'.join(self.types)} of {self.symbol}"


def plan(
    name: str,
    symbols: Iterable[tuple[str, int, bool]],
    types: Iterable[str],
    *,
    by_tick: Literal["auto", "always", "never"],
    by_tick_lines: int,
    bar_s: int,
) -> list[Stream]:
    """The streams of a feed, in the order in which they are asked for.

    Args:
        name: of the feed, for messages.
        symbols: with their instrument numbers, and whether they are indexes: these have no prints tick by tick.
        by_tick: "always" is a SettingsError where there are not enough lines; "never" asks for aggregates alone.
        by_tick_lines: how many tick-by-tick streams the account may have at a time.
        bar_s: 5 or 60.
    """
    streams: list[Stream] = []
    left = by_tick_lines if by_tick != "never" else 0
    wanted = list(types)
    asked_by_tick = 0
    for symbol, number, volumeless in symbols:
        aggregate: Stream | None = None
        for kind in wanted:
            if kind in _BY_TICK_OF and not volumeless:
                asked_by_tick += 1
                if left:
                    left -= 1
                    streams.append(Stream(symbol, _BY_TICK_OF[kind], [kind], number))
                    continue
            elif kind == "bar":
                streams.append(Stream(symbol, Way.BARS_5 if bar_s == 5 else Way.BARS_60, [kind], number))
                continue
            elif kind == "level2":
                streams.append(Stream(symbol, Way.DEPTH, [kind], number))
                continue
            if aggregate is None:
                aggregate = Stream(symbol, Way.AGGREGATE, [], number, volumeless=volumeless)
                streams.append(aggregate)
            aggregate.types.append(kind)
    if by_tick == "always" and asked_by_tick > by_tick_lines:
        raise SettingsError(
            f"feed {name}: options.tick_by_tick is 'always', which takes {asked_by_tick} tick-by-tick streams, and "
            f"options.tick_by_tick_lines is {by_tick_lines}"
        )
    return streams


def generic_ticks(types: Iterable[str], providers: Iterable[str]) -> str:
    """The generic tick list of an aggregate (TWS API, "Generic Tick Types")."""
    wanted = list(types)
    ticks = []
    if wanted == ["news"]:
        ticks.append("mdoff")  # headlines without a market data subscription
    if "tick" in wanted:
        ticks.append("233")
    if "trade" in wanted:
        ticks.append("375")
    if "news" in wanted:
        ticks.append(f"292:{'+'.join(providers)}")
    return ",".join(ticks)


@dataclass
class Pace:
    """When the next request of a kind may go. Remembers over reconnects, because TWS does."""

    _by_tick: dict[Hashable, int] = field(default_factory=dict)
    _historical: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=HISTORICAL_MOST))

    def free_at(self, stream: Stream, now_ns: int) -> int:
        """When this stream may be asked for, ns; not after `now_ns` = now."""
        if stream.way in TICK_BY_TICK:
            last_ns = self._by_tick.get(stream.symbol)
            return now_ns if last_ns is None else last_ns + TICK_BY_TICK_GAP_NS
        if stream.way is Way.BARS_60:
            free_ns = now_ns
            if len(self._historical) == HISTORICAL_MOST:
                free_ns = self._historical[0][0] + HISTORICAL_WINDOW_NS
            for at_ns, symbol in self._historical:
                if symbol == stream.symbol:
                    free_ns = max(free_ns, at_ns + HISTORICAL_SAME_NS)
            return free_ns
        return now_ns

    def asked(self, stream: Stream, now_ns: int) -> None:
        """It is asked for now."""
        if stream.way in TICK_BY_TICK:
            self._by_tick[stream.symbol] = now_ns
        elif stream.way is Way.BARS_60:
            self._historical.append((now_ns, stream.symbol))
