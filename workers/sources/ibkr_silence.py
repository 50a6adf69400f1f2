"""Which symbols of an IBKR feed are silent for too long, each by its own market's hours.

A feed may have stocks, futures and currencies, which close at different times: each symbol has a Cadence
(workers/cadence.py) that asks for its own hours. Used by workers/sources/ibkr.py; time is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workers.cadence import Cadence, Silent
from workers.sources.calendar import Phase, span_at
from workers.sources.ibkr_contracts import Hours
from workers.sources.ibkr_options import IbkrOptions
from workers.sources.ibkr_streams import Stream, Way


class Silence:
    """See the module.

    Attributes:
        silent: those of the last look, the longest first.
        whole: none is left that is not silent.
        why: in words, with figures; "" = none is silent.
    """

    def __init__(self, streams: Iterable[Stream], options: IbkrOptions, hours: dict[str, Hours]) -> None:
        """Know nothing yet. `hours`: symbol -> when it trades; filled by its owner."""
        self.silent: list[Silent] = []
        self.whole = False
        self.why = ""
        self._names: dict[int, str] = {}
        self._cadences: dict[int, Cadence] = {}
        for stream in streams:
            if stream.way is Way.BULLETINS or stream.types == ["news"]:
                continue  # news come when there are any
            is_open: Callable[[int], bool] | None = None if options.session == "always" else _open_in_new_york
            if options.session == "contract":
                is_open = _opens(stream.symbol, hours)
            self._names[stream.instrument_id] = stream.symbol
            self._cadences[stream.instrument_id] = Cadence(
                factor=options.stale_factor, floor_s=options.stale_floor_s, is_open=is_open
            )

    def expected(self, now_ns: int) -> bool:
        """Whether any market is open."""
        found = [cadence.expected(now_ns) for cadence in self._cadences.values()]  # each of them notes it
        return any(found)

    def heard(self, instrument_ids: Iterable[int], now_ns: int) -> None:
        """These have spoken."""
        for instrument_id in instrument_ids:
            cadence = self._cadences.get(instrument_id)
            if cadence is not None:
                cadence.heard((instrument_id,), now_ns)

    def restart(self, now_ns: int) -> None:
        """What was missed until now is nobody's pause."""
        for cadence in self._cadences.values():
            cadence.restart(now_ns)

    @property
    def fresh_share(self) -> float:
        """Of the symbols that have spoken, those that are not silent."""
        known = sum(map(len, self._cadences.values()))
        return 1.0 - len(self.silent) / known if known else 1.0

    @property
    def names(self) -> list[str]:
        """Of the silent."""
        return [self._names[one.instrument_id] for one in self.silent]

    def look(self, now_ns: int, *, delivers: bool) -> None:
        """Judge anew; while nothing is delivered nobody is silent by himself."""
        found = [one for cadence in self._cadences.values() for one in cadence.silent(now_ns)] if delivers else []
        self.silent = sorted(found, key=lambda one: -one.silent_s)
        self.whole = bool(found) and len(found) == sum(map(len, self._cadences.values()))
        self.why = ""
        if self.whole:
            last = self.silent[-1]
            who = self.names[0] if len(found) == 1 else f"all {len(found)} symbols"
            self.why = f"{who} silent for {last.silent_s:.1f} s; {last.allowed_s:.1f} s would be usual"
        elif found:
            self.why = f"{self.names[0]} silent for {self.silent[0].silent_s:.0f} s"


def _opens(symbol: str, hours: dict[str, Hours]) -> Callable[[int], bool]:
    def is_open(now_ns: int) -> bool:
        known = hours.get(symbol)
        return known is None or known.is_open(now_ns)

    return is_open


def _open_in_new_york(now_ns: int) -> bool:
    return span_at(now_ns).phase is not Phase.CLOSED
