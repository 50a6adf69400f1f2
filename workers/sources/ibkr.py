"""Interactive Brokers as a feed: market data of TWS or IB Gateway, over ib_async.

    link (ibkr_link.py) --events--> here --records (ibkr_records.py)--> inbox --> the caller's array
      ^ requests (ibkr_requests.py)   '- session, codes (ibkr_codes.py), silence, health, report

A session (workers/session.py) keeps the connection: connect, handshake and login, contracts looked up (which counts as
TWS's acknowledgement), and live once data has come. What TWS says in numbered messages changes the feed's state or is
told, by the table of ibkr_codes.py. While TWS is cut off from IBKR silence means nothing and nothing is asked for; what
must be asked for again afterwards is.

The inbox is filled by one turn of the loop, which reads the socket once, and is emptied before the next: while the
caller has no room nothing is read, and TCP holds TWS back. So nothing is dropped here.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

import numpy as np

from shm.layout import StatusCode
from workers.errors import SettingsError
from workers.feed_health import FeedHealth
from workers.session import CONNECTED, Do, Session, State, Verdict
from workers.source import SourceContext, read_options
from workers.sources.ibkr_codes import Effect, Meaning, effect_of, farm_of
from workers.sources.ibkr_contracts import describe_all
from workers.sources.ibkr_link import Address, Link
from workers.sources.ibkr_market import Market
from workers.sources.ibkr_options import MARKET_DATA, IbkrOptions, streams_of
from workers.sources.ibkr_records import Records
from workers.sources.ibkr_remarks import Remarks
from workers.sources.ibkr_requests import Requests
from workers.sources.ibkr_silence import Silence
from workers.sources.ibkr_streams import TICK_BY_TICK, Step, Stream
from workers.sources.ibkr_witness import IbkrWitness
from workers.sources.polled_loop import MAX_PAUSE_NS, PolledLoop
from workers.spec import FeedReport

log = logging.getLogger("ibkr")

FIRST_CLIENT_ID: Final = 100  # plus the feed's number, where none is given
REPORT_EVERY_NS: Final = 1_000_000_000
AGAIN_WAIT_S: Final = 5.0  # between two requests for a stream that ends at once
LOOK_UP_CODE: Final = 2158  # the farm of contract details is up
_NO_TICK_BY_TICK: Final = (10189, 10190)


class IbkrSource:
    """See the module, `workers.source.LiveSource` and `workers.sources.ibkr_link.Events`."""

    tells = True

    def __init__(self, context: SourceContext, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Check the settings; the connection is made by the polls. `clock` stamps what arrives."""
        if find_spec("ib_async") is None:
            raise SettingsError(
                f"feed {context.spec.name}: source 'ibkr' needs ib_async, which is not installed: "
                "pip install 'tickengine[ibkr]'"
            )
        spec = context.spec
        self._spec = spec
        self._options = options = read_options(spec, IbkrOptions)
        self.errors = 0
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        self.report = FeedReport(feed_id=spec.feed_id, state=State.RECOVER.value, why="not connected yet")
        described = describe_all(spec.name, spec.symbols, options.contracts)
        streams = streams_of(context, options, described)
        self._clock = clock
        self._inbox: deque[bytes] = deque()
        self._loop = PolledLoop()
        self.fd = self._loop.fd
        client_id = options.client_id or FIRST_CLIENT_ID + spec.feed_id
        self._address = Address(
            options.host, options.port, client_id, options.requests_per_s, options.max_message_bytes
        )
        self._requests = Requests(streams, described, options.wanted(), send=self._send, over=self._over)
        self._records = Records(spec.feed_id, min(options.depth_rows, 255), put=self._inbox.append, alive=self._alive)
        self._market = Market(self._requests.stream_of, self._requests.streams, self._records)
        self._witness = IbkrWitness(context.wire)
        self._link = Link(self._address, self, self._market, loop=self._loop, clock=clock, witness=self._witness)
        self._quote_due_ns: int | None = None
        self._session = Session(
            random.Random(f"{spec.name} {context.epoch}"), limits=options.limits(len(spec.symbols)), login=True
        )
        self._health = FeedHealth(options.latency_floor_ms)
        self._silence = Silence(streams, options, self._requests.hours)
        self._heard: set[int] = set()  # instruments, in this packet
        self._now_ns = 0  # of the packet
        self._cut = ""  # why TWS has nothing for us, although we are connected
        self._cut_ns = 0  # since when
        self._is_open = True  # some market
        self._put_off = False  # all streams are
        self._farms: set[str] = set()  # that are down
        self._was_up = False
        self._lost_ns = 0
        self._pinged_ns = self._message_ns = 0
        self._told = 0
        names = () if context.counter is None else ("duplicates", "strays")
        counters = [context.counter(f"ibkr.{spec.feed_id}.{name}") for name in names if context.counter is not None]
        self._counters = [
            (counter, counter.value) for counter in counters
        ]  # they go on where the last source left them
        self._next_complaint_ns = 0
        self._next_look_ns = 0
        self._reported: tuple[Any, ...] = ()

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`."""
        count = self._drain(out, 0)
        if not self._inbox:
            self._tick(now_ns)
            self._loop.turn()
            if self._link.fault is not None:
                raise self._link.fault
            count = self._drain(out, count)
        self._note(now_ns)
        due = [self._session.due_ns, self._next_look_ns]
        if self._inbox:
            due.append(now_ns)
        if self._loop.busy or self._link.busy:
            due.append(now_ns + MAX_PAUSE_NS)
        if self._session.state in CONNECTED:
            due.append(max(self._message_ns, self._pinged_ns) + round(self._options.ping_s * 1e9))
        if self._quote_due_ns is not None:
            due.append(self._quote_due_ns)
        if self._asks:
            due.append(self._requests.due_ns)
        self.next_due_ns = min(due)
        return count

    def _drain(self, out: np.ndarray, count: int) -> int:
        """Empty the inbox into `out` from `count` on, as far as there is room; returns how far it is filled."""
        inbox = self._inbox
        taken: list[bytes] = []
        while inbox and count + len(taken) < len(out):
            taken.append(inbox.popleft())
        if taken:
            out[count : count + len(taken)].view(np.uint8)[:] = np.frombuffer(b"".join(taken), np.uint8)
        return count + len(taken)

    # -- time passes

    @property
    def _asks(self) -> bool:
        return self._session.state in (State.SUBSCRIBE, State.LIVE, State.STALE) and not self._cut

    @property
    def _expected(self) -> bool:
        """Whether silence means something: TWS has its servers, a market is open, and not all streams are put off."""
        return self._is_open and not self._cut and not self._put_off

    def _tick(self, now_ns: int) -> None:
        self._due_quotes(now_ns)
        if now_ns >= self._next_look_ns:
            self._look(now_ns)
        self._obey(self._session.tick(now_ns, expected=self._expected), now_ns)
        if self._cut and now_ns - self._cut_ns >= round(self._options.cut_s * 1e9):
            self._lost(now_ns, Verdict(f"{self._cut}, for {self._options.cut_s:g} s"))
        limit_s = self._options.look_up_s(len(self._spec.symbols))
        for number in self._requests.overdue(now_ns, limit_s):
            lookup = self._requests.lookup_of(number)
            if lookup is not None:
                why = self._requests.lookup_refused(number, f"no contract details within {limit_s:g} s")
                self._looked_up(lookup.symbol, why)
        if self._asks:
            for stream in self._requests.ask(now_ns, self._records.last_bar_ns):
                self._witness.asked(stream, now_ns)
                self._records.begin(stream, now_ns)
        ping_ns = round(self._options.ping_s * 1e9)
        if self._session.state in CONNECTED and now_ns - max(self._message_ns, self._pinged_ns) >= ping_ns:
            self._pinged_ns = now_ns
            self._send(lambda client: client.reqCurrentTime())

    def _look(self, now_ns: int) -> None:
        """Once a second: who is silent, what is to be warned of."""
        self._next_look_ns = now_ns + REPORT_EVERY_NS
        self._is_open = self._silence.expected(now_ns)
        self._judge_put_off()
        delivers = self._session.state in (State.LIVE, State.STALE) and not self._cut
        self._silence.look(now_ns, delivers=delivers)
        if self._silence.whole:
            self._obey(self._session.silent(now_ns, self._silence.why), now_ns)
        for stream in self._requests.streams:
            # It was asked for again, and has no data since: asking may have been in vain.
            late_ns = stream.asked_ns + round(self._options.first_data_s * 1e9)
            in_vain = stream.step is Step.ASKED and now_ns >= late_ns and bool(stream.had_data or stream.note)
            if in_vain and self._asks and self._is_open:
                self._requests.ask_later(stream, now_ns, 0.0, stream.note or "no data since it was asked for again")
                self._tell(StatusCode.FEED_DEGRADED, f"{stream}: asked for once more")
        if delivers and self._session.state is State.LIVE:
            for warning in self._health.warnings(now_ns, "" if self._silence.whole else self._silence.why):
                self._tell(StatusCode.FEED_DEGRADED, warning)

    def _due_quotes(self, now_ns: int) -> None:
        """It is now; the quotes that were due until then come before whatever happens now."""
        self._now_ns = now_ns
        if self._quote_due_ns is not None and now_ns >= self._quote_due_ns:
            self.packet_over(now_ns)

    def _send(self, send: Callable[[Any], None]) -> None:
        self._link.request(send)

    def _over(self, stream: Stream, request: int) -> None:
        self._witness.over(stream, request, self._now_ns)

    # -- what the session says

    def _obey(self, actions: list[Do], now_ns: int) -> None:
        for action in actions:
            if action is Do.CONNECT:
                self._message_ns = self._pinged_ns = now_ns
                self._link.open()
            elif action is Do.SUBSCRIBE:
                self._subscribe(now_ns)
            elif action is Do.CLOSE:
                self._cut, self._farms = "", set()
                self._witness.lost(now_ns, self._session.why)
                self._link.close()
                self._requests.forget()
            elif action is Do.UP:
                self._was_up = True
                self._tell(StatusCode.FEED_UP, "ibkr delivers")
            elif action is Do.DOWN:
                self._lost_ns = now_ns
                self._tell(StatusCode.FEED_DOWN, self._session.why)

    def _subscribe(self, now_ns: int) -> None:
        if self._options.market_data != "live":
            kind = MARKET_DATA[self._options.market_data]
            self._send(lambda client: client.reqMarketDataType(kind))
        if self._was_up:
            self._gap(now_ns, f"connected again after {(now_ns - self._lost_ns) / 1e9:.1f} s")
        self._requests.begin(now_ns)
        if not self._requests.looking_up:
            self._obey(self._session.acknowledged(now_ns), now_ns)

    def _gap(self, now_ns: int, text: str) -> None:
        """Something was missed of all that had come."""
        self.gaps += 1
        self._health.gaps(now_ns)
        self._witness.gap(text, now_ns)
        self._tell(StatusCode.GAP, text)
        for stream in self._requests.streams:
            stream.gap_before = stream.had_data
        self._silence.restart(now_ns)

    def _lost(self, now_ns: int, verdict: Verdict) -> None:
        self.packet_over(now_ns)  # nothing more will come of it
        self._health.errors(now_ns)
        self._obey(self._session.lost(now_ns, verdict), now_ns)

    def _tell(self, code: StatusCode, text: str) -> None:
        if code is not StatusCode.FEED_UP:
            log.warning("feed %s: %s: %s", self._spec.name, code.name.lower(), text)
        self._told += 1
        self._records.tell(code, text, self._now_ns)

    # -- what the link says

    def _alive(self, stream: Stream) -> None:
        """The stream speaks."""
        if not stream.spoke():
            return
        self._put_off = False
        self._heard.add(stream.instrument_id)
        if self._session.state is not State.LIVE:
            self._cut = ""
            self._obey(self._session.heard(self._now_ns), self._now_ns)

    def opened(self, version: int) -> None:
        """See `Events`."""
        now_ns = self._clock()
        self._witness.connected(now_ns, f"tcp://{self._address.host}:{self._address.port}", version, again=self._was_up)
        if self._session.connects:
            self._health.reconnected(now_ns)
        self._obey(self._session.opened(now_ns), now_ns)

    def ready(self) -> None:
        """See `Events`."""
        now_ns = self._clock()
        self._due_quotes(now_ns)
        self._obey(self._session.logged_in(now_ns), now_ns)

    def ended(self, verdict: Verdict) -> None:
        """See `Events`."""
        self._now_ns = now_ns = self._clock()
        self._lost(now_ns, verdict)

    def received(self, now_ns: int, size_bytes: int) -> None:
        """See `Events`."""
        self._due_quotes(now_ns)
        self._message_ns = now_ns
        self.bytes_received += size_bytes
        self._session.message(now_ns)
        self._health.messages(now_ns, 1)

    def packet_over(self, now_ns: int) -> None:
        """See `Events`."""
        self._quote_due_ns = self._records.quotes(now_ns)
        if self._records.lag_ns is not None:
            self._health.latency.observe(now_ns, self._records.lag_ns)
            self._records.lag_ns = None
        if self._heard:
            self._silence.heard(self._heard, now_ns)
            self._heard.clear()

    def complaint(self, text: str) -> None:
        """See `Events`."""
        self.errors += 1
        self._health.errors(self._now_ns)
        if self._now_ns >= self._next_complaint_ns:  # all are counted, not all are logged
            self._next_complaint_ns = self._now_ns + REPORT_EVERY_NS
            log.warning("feed %s: a message that can't be read: %s", self._spec.name, text)

    def contract_found(self, request: int, details: Any) -> None:
        """See `Events`."""
        self._requests.contract_found(request, details)

    def contracts_over(self, request: int) -> None:
        """See `Events`."""
        lookup = self._requests.lookup_of(request)
        if lookup is not None:
            why = self._requests.contracts_over(request, self._now_ns)
            self._looked_up(lookup.symbol, why)

    def message_of_tws(self, request: int, code: int, text: str) -> None:
        """See `Events`; what it means stands in ibkr_codes.py."""
        now_ns = self._now_ns
        stream, lookup = self._requests.stream_of(request), self._requests.lookup_of(request)
        meaning = effect_of(code, text, of_request=stream is not None or lookup is not None)
        said = f"{meaning.text} ({code}): {text}"
        level = logging.INFO if meaning.effect in (Effect.NOTED, Effect.FARM_UP) else logging.WARNING
        log.log(level, "feed %s: %s", self._spec.name, said)
        if lookup is not None and meaning.effect not in (Effect.NOTED, Effect.PARTLY):
            self._looked_up(lookup.symbol, self._requests.lookup_refused(request, said))
        elif stream is not None:
            self._about_stream(stream, code, meaning, said)
        elif meaning.effect is Effect.CUT:
            if not self._cut:
                self._cut, self._cut_ns = f"{meaning.text} ({code})", now_ns
                self._obey(self._session.silent(now_ns, self._cut), now_ns)
        elif meaning.effect is Effect.RESTORED_LOST:
            self._obey(self._session.silent(now_ns, f"{meaning.text} ({code})"), now_ns)
            self._restored(f"{meaning.text} ({code})")
            self._requests.again(now_ns)
        elif meaning.effect is Effect.RESTORED_KEPT:
            self._restored(f"{meaning.text} ({code})")
        elif meaning.effect is Effect.FARM_DOWN:
            farm = farm_of(text)
            if farm not in self._farms:
                self._farms.add(farm)
                self._tell(StatusCode.FEED_DEGRADED, f"{farm} is down ({code})")
        elif meaning.effect is Effect.FARM_UP:
            self._farms.discard(farm_of(text))
            if code == LOOK_UP_CODE:
                self._requests.look_up_again(now_ns)
        elif meaning.effect is Effect.LOGIN:
            own = f"; client id {self._address.client_id}, options.client_id" if code == 326 else ""
            self._lost(now_ns, Verdict(f"{said}{own}"))
        elif meaning.effect is Effect.LEAVE:
            self._lost(now_ns, Verdict(said))

    # -- what follows of it

    def _restored(self, text: str) -> None:
        """TWS has its servers again; what they sent meanwhile was missed."""
        self._cut = ""
        if self._was_up:
            self._gap(self._now_ns, text)

    def _looked_up(self, symbol: str, refused: str) -> None:
        now_ns = self._now_ns
        if refused:
            self._refused(symbol, refused)
        self._next_look_ns = now_ns  # its hours may say that the market is closed
        if not self._requests.looking_up:
            self._obey(self._session.acknowledged(now_ns), now_ns)

    def _refused(self, what: str, why: str) -> None:
        """One symbol or stream is not to be had; none left is the end of this connection."""
        self.errors += 1
        self._health.errors(self._now_ns)
        self._tell(StatusCode.FEED_DEGRADED, f"{what}: {why}")
        if all(stream.step is Step.REFUSED for stream in self._requests.streams):
            self._lost(self._now_ns, Verdict(f"nothing is to be had: {what}: {why}"[:400], lasting=True))

    def _judge_put_off(self) -> None:
        """TWS has promised nothing of what is asked for: silence is no news then."""
        self._put_off = all(stream.step is Step.REFUSED or stream.note for stream in self._requests.streams)

    def _about_stream(self, stream: Stream, code: int, meaning: Meaning, said: str) -> None:
        now_ns, effect = self._now_ns, meaning.effect
        if effect is Effect.REFUSED:
            if code in _NO_TICK_BY_TICK and stream.way in TICK_BY_TICK and self._options.tick_by_tick == "auto":
                self._requests.replace_by_aggregate(stream, now_ns)
                self._tell(StatusCode.FEED_DEGRADED, f"{stream}: aggregates ({code})")
            else:
                self._requests.refuse(stream, said)
                self._refused(str(stream), said)
        elif effect in (Effect.LATER, Effect.AGAIN):
            wait_s = meaning.wait_s
            if effect is Effect.AGAIN and (now_ns - stream.asked_ns) / 1e9 < AGAIN_WAIT_S:
                wait_s = AGAIN_WAIT_S
            if stream.note != said:
                self._tell(StatusCode.FEED_DEGRADED, f"{stream}: {meaning.text} ({code})")
            stream.gap_before = stream.had_data
            self._requests.ask_later(stream, now_ns, wait_s, said)
            self._judge_put_off()
            if self._put_off:
                self._obey(self._session.silent(now_ns, said), now_ns)
        elif effect is Effect.BOOK_RESET:
            self._records.clear_book(stream, now_ns)
        elif effect is Effect.PARTLY:
            stream.delayed = stream.delayed or code == 10167
            self._tell(StatusCode.FEED_DEGRADED, f"{stream}: {meaning.text} ({code})")

    # -- the report

    def _note(self, now_ns: int) -> None:
        """Make a new report when something has changed, or after a second."""
        session = self._session
        seen = (session.state, session.why, self._cut, len(self._farms), self._told)
        if seen == self._reported and now_ns - self.report.at_ns < REPORT_EVERY_NS:
            return
        self._reported = seen
        counts = (self._records.duplicates, self._market.strays)
        for (counter, begun), count in zip(self._counters, counts, strict=False):
            counter.set(begun + count)
        latency = self._health.latency
        remarks = Remarks.of(self._requests, self._farms, self._silence, live=session.state is State.LIVE)
        why = session.why if not self._cut or self._cut in session.why else f"{self._cut}; {session.why}"
        live = session.state is State.LIVE
        self.report = FeedReport(
            feed_id=self._spec.feed_id,
            state=session.state.value,
            why=why + remarks.text,
            health_score=round(self._health.score(now_ns, delivers=live, fresh_share=remarks.share), 3),
            degraded=live and (remarks.serious or self._health.warned),
            breaker=session.breaker.state.value,
            retry_at_ns=session.due_ns if session.state in (State.RECOVER, State.FAILED) else 0,
            connections=1,
            reconnects=session.reconnects,
            silent=len(self._silence.silent),
            latency_ms=round(latency.present_ns / 1e6, 3) if latency.samples else None,
            usual_latency_ms=round(latency.baseline_ns / 1e6, 3) if latency.samples else None,
            errors=self.errors,
            at_ns=now_ns,
        )

    # -- the rest of a source

    def skip(self, records: int) -> None:
        """Not possible: what TWS has sent is gone."""
        raise NotImplementedError(f"a live feed has no position to skip {records} records from")

    def resume(self, now_ns: int) -> None:
        """Nothing to do: a paused live feed is closed, and connects anew."""

    def close(self) -> None:
        """See `Source.close`."""
        if self._session.state is State.CLOSED:
            return
        if self._session.connected:
            self._witness.lost(self._now_ns, "closed")
        self._session.stop(self._clock())
        self._link.close()
        self._loop.turn()
        self._loop.close()
