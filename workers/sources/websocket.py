"""A venue's WebSocket as a feed: one or more connections, their messages through the venue's decoder, in order of
arrival.

    connections (channel.py) --messages, status--> inbox --decoder--> records of the caller's array
         ^ sessions, requests                        '- a book that waits for its snapshot holds its messages

The ingest worker polls it (`workers.source.Source`) when its `fd` is readable or a deadline has come. The inbox is
filled by one turn of the loop and emptied before the next: while the caller has no room for more, nothing is read,
and TCP holds the venue back. So nothing is dropped here; a venue that cuts a slow client makes it a reconnect, which
is told as a gap and begins books anew.

Status records stand among the records where they belong: FEED_UP and FEED_DOWN with the reason, GAP after a reconnect
(the next record of that connection has GAP_BEFORE), FEED_DEGRADED for warnings. `report` is what GET /feeds shows.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import numpy as np

from shm.layout import RECORD, Flag, RecordType, StatusCode
from shm.ring import status_record
from workers.cadence import Cadence
from workers.errors import SettingsError
from workers.feed_health import FeedHealth
from workers.session import Session, State, Verdict
from workers.source import SourceContext, nearest, read_options
from workers.sources.channel import Channel, Ended, Item, Message, Picture, Told, limits_of, retry_after_s
from workers.sources.market_hours import market_hours
from workers.sources.polled_loop import MAX_PAUSE_NS, PolledLoop
from workers.sources.tls import tls_context
from workers.spec import FeedReport
from workers.venues.dialect import SNAPSHOT_OF, UNREADABLE, Dialect

log = logging.getLogger("websocket")

# Name of a venue in options -> module and class that speak to it.
VENUES: Final[dict[str, tuple[str, str]]] = {
    "binance": ("workers.venues.binance", "BinanceDialect"),
    "bitstamp": ("workers.venues.bitstamp", "BitstampDialect"),
    "coinbase": ("workers.venues.coinbase", "CoinbaseDialect"),
    "generic": ("workers.venues.generic", "GenericDialect"),
    "kraken": ("workers.venues.kraken", "KrakenDialect"),
    "kraken-v1": ("workers.venues.kraken_v1", "KrakenV1Dialect"),
    "yahoo": ("workers.venues.yahoo", "YahooDialect"),
}
REPORT_EVERY_NS: Final = 1_000_000_000
SNAPSHOT_S: Final = 20.0  # longest time for one over HTTP
MAX_NAMED: Final = 3

# Of several connections' states, the first of these is the feed's.
_BEST_FIRST: Final = (
    State.LIVE,
    State.STALE,
    State.SUBSCRIBE,
    State.AUTHENTICATE,
    State.CONNECT,
    State.RECOVER,
    State.FAILED,
    State.CLOSED,
)


class WebSocketSource:
    """See the module and `workers.source.Source`. Never finishes; what it has delivered can't be had again."""

    tells = True  # FEED_UP and FEED_DOWN stand among its records

    def __init__(self, context: SourceContext, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Check the settings; connections are made by the polls. `clock` stamps what arrives."""
        spec = context.spec
        self._spec = spec
        self._dialect = open_dialect(context)
        options = self._dialect.options
        self.errors = 0
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        self.report = FeedReport(feed_id=spec.feed_id, state=State.RECOVER.value, why="not connected yet")
        self._inbox: deque[Item] = deque()
        self._decoding: Message | None = None  # fed to the decoder, which has not finished with it
        self._health = FeedHealth(options.latency_floor_ms)
        self._clock = clock
        self._wire = context.wire
        if self._wire is not None:
            for secret in self._dialect.secrets:
                self._wire.hide(secret)
        self._up = False
        self._silent: list[str] = []  # the venue's symbols that are silent for too long
        self._fresh_share = 1.0  # of the symbols that have spoken, those that are not
        self._reported: tuple[Any, ...] = ()
        self._next_look_ns = 0
        self._decoder_errors = self._decoder_gaps = 0
        self._http: Any = None
        self._fetching = False
        tls = tls_context(spec.name, verify=options.tls_verify, ca_file=options.ca_file)
        hours = market_hours(spec.name, options.session)
        is_open = None if hours is None else hours.is_open
        self._loop = PolledLoop()
        self.fd = self._loop.fd
        dice = random.Random(f"{spec.name} {context.epoch}")
        self._channels = [
            Channel(
                number,
                connection,
                self._dialect,
                Session(
                    dice,
                    limits=limits_of(self._dialect),
                    login=self._dialect.needs_login,
                    acknowledged=self._dialect.ACKNOWLEDGES,
                ),
                loop=self._loop,
                tls=tls,
                inbox=self._inbox,
                cadence=Cadence(factor=options.stale_factor, floor_s=options.stale_floor_s, is_open=is_open),
                health=self._health,
                clock=clock,
                log=context.wire,
            )
            for number, connection in enumerate(self._dialect.connections())
        ]

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`."""
        count = self._drain(out, 0, now_ns)
        if not self._inbox and self._decoding is None:
            for channel in self._channels:
                channel.tick(now_ns, expected=channel.cadence.expected(now_ns))
            self._fetch(now_ns)
            self._loop.turn()
            count = self._drain(out, count, now_ns)
            if now_ns >= self._next_look_ns:
                self._look(now_ns)
                count = self._drain(out, count, now_ns)
        self._note(now_ns)
        if self._inbox or self._decoding is not None or self._loop.unfinished:
            self.next_due_ns = now_ns
        else:
            due_ns = min(*(channel.due_ns for channel in self._channels), self._next_look_ns)
            if self._loop.busy:
                due_ns = min(due_ns, now_ns + MAX_PAUSE_NS)
            self.next_due_ns = due_ns
        return count

    # -- from messages to records

    def _drain(self, out: np.ndarray, count: int, now_ns: int) -> int:
        """Empty the inbox into `out` from `count` on, as far as there is room; returns how far it is filled.

        What the records say of the feed's health is looked at once for a run of messages: of one connection, without
        a gap, while nothing is to be told in between.
        """
        begun = count  # of the run in hand
        last: Message | None = None
        while count < len(out):
            message = self._decoding
            if message is None:
                if not self._inbox:
                    break
                item = self._inbox[0]
                if last is not None and not last.same_run(item):
                    self._heed(last, out[begun:count], now_ns)
                    begun, last = count, None
                    continue  # which may have put something before it
                self._inbox.popleft()
                if isinstance(item, Told):
                    count = begun = self._tell(item, out, count, now_ns)
                    continue
                if isinstance(item, Ended):
                    item.channel.ended(item, now_ns)
                    continue
                if isinstance(item, Picture):
                    self._show(item)
                    continue
                item.channel.listen(item, now_ns)
                if self._dialect.hold(item.data, item.ts_receive, item.channel.number):
                    continue
                self._dialect.decoder.feed_message(item.data, item.ts_receive, item.channel.number)
                self._health.messages(now_ns, 1)
                self._decoding = message = item
            got = self._dialect.decoder.decode(out[count:])
            last = message
            if got:
                count += got
                continue
            self._decoding = None
            if self._count_decoder(now_ns) or message.channel.session.state is not State.LIVE:
                self._heed(message, out[begun:count], now_ns)
                begun, last = count, None
        if last is not None:
            self._heed(last, out[begun:count], now_ns)
        return count

    def _show(self, picture: Picture) -> None:
        """A book's snapshot has its turn: it and what waited for it come next."""
        try:
            messages = self._dialect.snapshot(picture.symbol, picture.body, picture.ts_receive)
        except UNREADABLE as error:
            self._no_snapshot(picture.symbol, str(error) or type(error).__name__, 0.0)
            return
        for data, ts_receive, number in reversed(messages):
            channel = self._channels[number]
            self._inbox.appendleft(Message(channel, channel.attempt, data, ts_receive))

    def _heed(self, message: Message, records: np.ndarray, now_ns: int) -> None:
        """What fresh records say about the feed's health; `message` is the last one that they came of."""
        channel = message.channel
        rows = np.flatnonzero(records["record_type"] != RecordType.STATUS)
        if len(rows) < len(records):
            for row in np.flatnonzero(
                (records["record_type"] == RecordType.STATUS) & (records["code"] == StatusCode.GAP)
            ):
                gap = records[row]
                self._after_gap(message, int(gap["instrument_id"]), int(gap["to_sequence"]), now_ns)
        if not len(rows) or message.attempt != channel.attempt:
            return
        if channel.gap_before:
            channel.gap_before = False
            first = int(rows[0])
            records["flags"][first : first + 1] |= np.uint16(Flag.GAP_BEFORE)
        ids = records["instrument_id"]
        heard = set(ids.tolist()) if len(rows) == len(records) else set(ids[rows].tolist())
        channel.cadence.heard(heard, now_ns)
        newest = records[int(rows[-1])]
        if not newest["flags"] & np.uint16(Flag.SNAPSHOT):
            self._health.latency.observe(now_ns, float(newest["ts_receive"] - newest["ts_event"]))
        channel.heard(now_ns)

    def _after_gap(self, message: Message, instrument_id: int, resumed: int, now_ns: int) -> None:
        recovery = self._dialect.after_gap(message.data, instrument_id, resumed)
        channel = message.channel
        if recovery.requests:
            channel.send(recovery.requests)
        if recovery.reconnect:
            channel.lost(now_ns, Verdict(recovery.reconnect))

    def _tell(self, told: Told, out: np.ndarray, count: int, now_ns: int) -> int:
        """One status record. FEED_UP and FEED_DOWN speak of the feed: one connection of several only degrades it."""
        code, text = told.code, told.text
        up = sum(channel.session.state is State.LIVE for channel in self._channels)
        if len(self._channels) > 1 and code in (StatusCode.FEED_UP, StatusCode.FEED_DOWN):
            text = f"{up} of {len(self._channels)} connections: {text}"
        if code is StatusCode.FEED_UP:
            self._up = True
            text = f"{self._dialect.options.venue} {text}"
        elif code is StatusCode.FEED_DOWN:
            self._up = bool(up)
            code = StatusCode.FEED_DEGRADED if up else code
        elif code is StatusCode.GAP:
            self.gaps += 1
            self._health.gaps(now_ns)
        if code is not StatusCode.FEED_UP:
            log.warning("feed %s: %s: %s", self._spec.name, code.name.lower(), told.text)
        row = np.frombuffer(
            status_record(
                code, text=text, feed_id=self._spec.feed_id, source=self._dialect.SOURCE, ts_event=self._clock()
            ),
            RECORD,
        )
        out[count : count + 1].view(np.uint8)[:] = row.view(np.uint8)
        return count + 1

    def _count_decoder(self, now_ns: int) -> bool:
        """Take over the decoder's counts; True if it has found a gap since."""
        decoder: Any = self._dialect.decoder
        errors, gaps = decoder.errors + self._dialect.dropped, decoder.gaps
        if errors != self._decoder_errors:
            self._health.errors(now_ns, errors - self._decoder_errors)
            self.errors += errors - self._decoder_errors
            self._decoder_errors = errors
        if gaps == self._decoder_gaps:
            return False
        self._health.gaps(now_ns, gaps - self._decoder_gaps)
        self.gaps += gaps - self._decoder_gaps
        self._decoder_gaps = gaps
        return True

    # -- once a second: silence, warnings, the report

    def _look(self, now_ns: int) -> None:
        self._next_look_ns = now_ns + REPORT_EVERY_NS
        silent, known = [], 0
        for channel in self._channels:
            found = channel.cadence.silent(now_ns)
            known += len(channel.cadence)
            if channel.session.state not in (State.LIVE, State.STALE):
                continue
            silent += found
            if found and len(found) == len(channel.cadence):
                what = self._name(found[0].instrument_id) if len(found) == 1 else f"all {len(found)} symbols"
                channel.silent(
                    now_ns,
                    f"{what} silent for {found[-1].silent_s:.1f} s; {found[-1].allowed_s:.1f} s would be usual",
                )
        self._silent = [self._name(one.instrument_id) for one in silent]
        self._fresh_share = 1.0 - len(silent) / known if known else 1.0
        text = ""
        if silent and self._fresh_share > 0.0:
            text = f"{self._silent[0]} silent for {silent[0].silent_s:.0f} s"
        if self._up:
            for warning in self._health.warnings(now_ns, text):
                self._inbox.append(Told(StatusCode.FEED_DEGRADED, warning))

    def _note(self, now_ns: int) -> None:
        """Bring the counters up to date, and make a new report when something has changed, at most once a second."""
        self.bytes_received = sum(channel.bytes_received for channel in self._channels)
        states = tuple(channel.session.state for channel in self._channels)
        whys = tuple(channel.session.why for channel in self._channels)
        if (states, whys) == self._reported and now_ns - self.report.at_ns < REPORT_EVERY_NS:
            return
        self._reported = (states, whys)
        state = min(states, key=_BEST_FIRST.index)
        worst = max(self._channels, key=lambda channel: _BEST_FIRST.index(channel.session.state))
        why = worst.session.why
        live = sum(one is State.LIVE for one in states)
        if len(states) > 1 and live < len(states):
            why = f"{live} of {len(states)} connections deliver: {why}"
        if state is State.LIVE and self._silent:
            more = f" and {len(self._silent) - MAX_NAMED} more" if len(self._silent) > MAX_NAMED else ""
            why = f"{why}; silent: {', '.join(self._silent[:MAX_NAMED])}{more}"
        refused = [f"{key}: {text}" for channel in self._channels for key, text in channel.refused.items()]
        if refused and state is State.LIVE:
            why = f"{why}; refused: {', '.join(refused[:MAX_NAMED])}"
        latency = self._health.latency
        share = live / len(states) * self._fresh_share
        self.report = FeedReport(
            feed_id=self._spec.feed_id,
            state=state.value,
            why=why,
            health_score=round(self._health.score(now_ns, delivers=live > 0, fresh_share=share), 3),
            degraded=state is State.LIVE and (live < len(states) or bool(refused) or self._health.warned),
            breaker=worst.session.breaker.state.value,
            retry_at_ns=worst.session.due_ns if worst.session.state in (State.RECOVER, State.FAILED) else 0,
            connections=len(states),
            reconnects=sum(channel.session.reconnects for channel in self._channels),
            silent=len(self._silent),
            latency_ms=round(latency.present_ns / 1e6, 3) if latency.samples else None,
            usual_latency_ms=round(latency.baseline_ns / 1e6, 3) if latency.samples else None,
            errors=self.errors + sum(channel.errors for channel in self._channels),
            at_ns=now_ns,
        )

    def _name(self, instrument_id: int) -> str:
        return self._dialect.symbol_of(instrument_id) or f"instrument {instrument_id}"

    # -- snapshots of books

    def _fetch(self, now_ns: int) -> None:
        """Ask for one snapshot at a time: venues count requests."""
        if self._fetching or not any(channel.session.connected for channel in self._channels):
            return
        wanted = self._dialect.wanted_snapshot(now_ns)
        if wanted is not None:
            self._fetching = True
            if self._wire is not None:
                self._wire.asked(f"{SNAPSHOT_OF}{wanted[0]}", wanted[1], now_ns)
            self._loop.spawn(self._get(*wanted))

    async def _get(self, symbol: str, url: str) -> None:
        import aiohttp

        try:
            if self._http is None:
                options = self._dialect.options
                tls = tls_context(self._spec.name, verify=options.tls_verify, ca_file=options.ca_file)
                self._http = aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=SNAPSHOT_S),
                    connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True),
                )
            async with self._http.get(url, allow_redirects=False) as answer:
                body = await answer.read()
                at_ns = self._clock()
                if self._wire is not None:
                    self._wire.answered(f"{SNAPSHOT_OF}{symbol}", url, answer.status, body, at_ns)
                if answer.status != 200:
                    wait_s = retry_after_s(answer.headers.get("Retry-After", ""), self._clock())
                    self._no_snapshot(symbol, f"HTTP {answer.status}", wait_s)
                    return
            self._inbox.append(Picture(symbol, body, at_ns))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            if self._wire is not None:
                self._wire.answered(f"{SNAPSHOT_OF}{symbol}", url, 0, reason.encode(), self._clock())
            self._no_snapshot(symbol, reason, 0.0)
        finally:
            self._fetching = False

    def _no_snapshot(self, symbol: str, reason: str, wait_s: float) -> None:
        now_ns = self._clock()
        self.errors += 1
        self._health.errors(now_ns)
        log.warning("feed %s: snapshot of %s: %s", self._spec.name, symbol, reason)
        self._dialect.snapshot_failed(symbol, now_ns, wait_s)

    # -- the rest of a source

    def skip(self, records: int) -> None:
        """Not possible: what a venue has sent is gone."""
        raise NotImplementedError(f"a live feed has no position to skip {records} records from")

    def resume(self, now_ns: int) -> None:
        """Nothing to do: a paused live feed is closed, and connects anew."""

    def close(self) -> None:
        """See `Source.close`."""
        now_ns = self._clock()
        for channel in self._channels:
            channel.close(now_ns)
        if self._http is not None:
            self._loop.spawn(self._http.close())
            self._http = None
            self._loop.turn()
        self._loop.close()


def open_dialect(context: SourceContext) -> Dialect:
    """The dialect that the feed's options name. SettingsError for one that is not known, or options that can't work."""
    spec = context.spec
    venue = spec.options.get("venue")
    if not isinstance(venue, str) or venue not in VENUES:
        raise SettingsError(f"feed {spec.name}: options.venue is {venue!r}{nearest(str(venue), VENUES)}")
    module, name = VENUES[venue]
    kind: type[Dialect] = getattr(import_module(module), name)
    options = read_options(spec, kind.OPTIONS)
    if options.url and not options.url.startswith(("ws://", "wss://")):
        raise SettingsError(f"feed {spec.name}: options.url is {options.url!r}; it begins with ws:// or wss://")
    return kind(spec, options, context.intern)
