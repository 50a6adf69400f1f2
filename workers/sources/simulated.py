"""A simulated market as a feed: seeded, paced, with bursts, sessions and now and then a headline.

The ingest worker polls it (`workers.source.Source`). The records themselves are made by workers/sources/_simulate.pyx;
here are the settings and the schedule. Same seed, same epoch and same polled times give the same records, byte by
byte. With a rate, not even the times of the polls matter: record k and its ts_event follow from the seed and the time
of the first poll, only ts_receive is the time of the poll that fetched it.

Schedule: time is cut into windows of one second. Window m gets floor(rate * (m + 1)) - floor(rate * m) records, so
that after m windows exactly floor(rate * m) have been delivered, and within a window 64 slices share them, calm ones
and bursts. With session "us-equities", windows outside 04:00-20:00 New York time do not count, and pre-market and
after-hours records are flagged OUT_OF_SESSION. With rate "max" there is no schedule: each poll fills the array.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from shm.layout import TYPE_NAMES, Flag, RecordType
from workers.errors import SettingsError
from workers.source import SourceContext, nearest, read_options
from workers.sources._simulate import Market
from workers.sources.calendar import Phase, Span, span_at
from workers.sources.universe import listings, symbols

WINDOW_NS: Final = 1_000_000_000
DAY_NS: Final = 86_400_000_000_000

# Share of each type among the records, where the feed asks for it. A print is a tick or a trade, never both.
_SHARES: Final = {RecordType.TICK: 0.3, RecordType.QUOTE: 0.4, RecordType.TRADE: 0.1, RecordType.LEVEL2: 0.2}
_NEWS: Final = "news"
_DATA_TYPES: Final = (*(TYPE_NAMES[kind] for kind in _SHARES), _NEWS)

_TEMPLATES: Final = (
    b" trades higher in active session",
    b" slips as sellers step in",
    b" confirms full-year outlook",
    b" to report results next week",
    b" names new head of operations",
    b" opens plant two months early",
    b" board approves share buyback",
    b" halts guidance, cites demand",
    b" wins appeal in patent case",
    b" supplier warns of delays",
)


class SimulatedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "simulated"."""

    rate: Annotated[float, Meta(gt=0, le=1e9)] | Literal["max"] = 2000.0  # records per second
    instruments: Annotated[int, Meta(ge=1, le=65536)] = 200  # how many, where the feed lists no symbols
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 1
    session: Literal["always", "us-equities"] = "always"
    burst_factor: Annotated[float, Meta(ge=1, le=1000)] = 10.0  # rate within a burst, in calm rates; 1 = no bursts
    news_every: Annotated[int, Meta(ge=0)] = 20_000  # mean number of records between headlines; 0 = none


class SimulatedSource:
    """See `workers.source.Source`. Never finishes, can't be skipped forward."""

    def __init__(self, context: SourceContext) -> None:
        """Make the market; interns its symbols. SettingsError for data types or options that it does not have."""
        options = read_options(context.spec, SimulatedOptions)
        self.errors = 0
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        self._options = options
        self._market = _market(context, options)
        self._start_ns = 0  # of window 0; 0 = not polled yet
        self._window = -1  # window in hand
        self._counted = 0  # windows that counted: those in which the market was not closed
        self._last_ns = 0
        self._span = Span(Phase.OPEN, 0, -1)

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`."""
        if self._options.rate == "max":
            return self._poll_unpaced(out, now_ns)
        if not self._start_ns:
            self._start_ns = now_ns
        self._last_ns = now_ns
        filled = 0
        while True:
            filled += self._market.fill_until(out, filled, now_ns)
            self.next_due_ns = self._market.next_due_ns
            if self.next_due_ns is None:
                self.next_due_ns = self._next_window(self._options.rate, now_ns)
                if self.next_due_ns <= now_ns:
                    continue
            return filled

    def _next_window(self, rate: float, now_ns: int) -> int:
        """Open the next window that has records, if it has begun; returns when to look again."""
        while True:
            start_ns = self._start_ns + (self._window + 1) * WINDOW_NS
            if start_ns > now_ns:
                return start_ns
            self._enter(start_ns)
            if self._span.phase is Phase.CLOSED:
                self._window += -(-(self._span.until_ns - start_ns) // WINDOW_NS)
                continue
            count = int(rate * (self._counted + 1)) - int(rate * self._counted)
            self._window += 1
            self._counted += 1
            if count:
                self._market.open_window(start_ns, WINDOW_NS, count)
                return start_ns

    def _poll_unpaced(self, out: np.ndarray, now_ns: int) -> int:
        self._enter(now_ns)
        if self._span.phase is Phase.CLOSED:
            self.next_due_ns = self._span.until_ns
            return 0
        count: int = self._market.fill(out, self._last_ns or now_ns, now_ns)
        self._last_ns = self.next_due_ns = now_ns
        return count

    def _enter(self, now_ns: int) -> None:
        """Keep the session's phase and day up to date."""
        if now_ns < self._span.until_ns:
            return
        session_before = self._span.session
        if self._options.session == "always":
            day = now_ns // DAY_NS
            self._span = Span(Phase.OPEN, (day + 1) * DAY_NS, day)
        else:
            self._span = span_at(now_ns)
        if self._span.session != session_before:
            self._market.reset_session()
        outside = self._span.phase in (Phase.PRE, Phase.POST)
        self._market.set_session_flags(Flag.OUT_OF_SESSION if outside else 0)

    def skip(self, records: int) -> None:
        """Not possible: a simulation is never had twice."""
        raise NotImplementedError(f"a simulated feed has no position to skip {records} records from")

    def resume(self, now_ns: int) -> None:
        """The schedule goes on from now; what would have been due in between never was."""
        if self._last_ns:
            paused_ns = now_ns - self._last_ns
            self._market.postpone(paused_ns)
            self._start_ns += paused_ns
            self._last_ns = now_ns

    def close(self) -> None:
        """Nothing to let go of."""


def _market(context: SourceContext, options: SimulatedOptions) -> Market:
    spec = context.spec
    wanted = spec.data_types or _DATA_TYPES
    for name in wanted:
        if name not in _DATA_TYPES:
            raise SettingsError(f"feed {spec.name}: data type {name!r} is not simulated{nearest(name, _DATA_TYPES)}")
    kinds = {int(kind): share for kind, share in _SHARES.items() if TYPE_NAMES[kind] in wanted}
    if not kinds:
        raise SettingsError(f"feed {spec.name}: data_types is {list(wanted)}, needs one of tick, quote, trade, level2")
    chosen = listings(list(spec.symbols) or symbols(options.instruments), options.seed)
    return Market(
        # The epoch advances the seed: a restarted simulation goes on with other random numbers, and with sequence
        # numbers above all earlier ones.
        seed=options.seed | (context.epoch & 0xFFFF) << 32 | spec.feed_id << 48,
        sequence_base=(context.epoch & 0xFFFF) << 44,
        feed_id=spec.feed_id,
        ids=np.array([context.intern(one.symbol) for one in chosen], dtype=np.uint32),
        symbols=[one.symbol.encode() for one in chosen],
        base_ticks=np.array([one.price * one.ticks_per_unit for one in chosen]),
        ticks_per_unit=np.array([float(one.ticks_per_unit) for one in chosen]),
        sectors=np.array([one.sector for one in chosen], dtype=np.uint32),
        weights=np.array([one.weight for one in chosen]),
        betas=np.array([one.beta for one in chosen]),
        kinds=kinds,
        templates=list(_TEMPLATES),
        news_every=options.news_every if _NEWS in wanted else 0,
        burst_factor=options.burst_factor,
    )
