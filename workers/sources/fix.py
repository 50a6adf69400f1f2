"""A FIX 4.2/4.4 session as a feed of market data: socket, session, numbers, decoder, and the state of the feed.

    socket (fix_wire.py) --bytes--> FixReader --messages--> inbox --in turn--> FixSession --market data--> FixDecoder
                                    garbled: counted               '- the rest: answers, gaps, refusals      '-> records

The ingest worker polls it (`workers.source.Source`). Two machines work together: workers/fix_session.py keeps the FIX
session (numbers, heartbeats, resends), workers/session.py the feed's state (connect, live, stale, breaker), as for
every live source. Runs of market data in their turn go from reader to decoder without a Python object a message. Which
message it is at, over a kill too, is workers/sources/fix_place.py's.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from shm.layout import RECORD, Flag, StatusCode
from shm.layout import Source as SourceCode
from shm.ring import status_record
from workers.decoders._fix import FixDecoder, FixReader
from workers.errors import DecodeError
from workers.fix_messages import MARKET_DATA, Identity, Received, kind_of
from workers.fix_numbers import Numbers, numbers_path
from workers.fix_protocol import Action, Deliver, End, LoggedOn, Message, Missed, Send
from workers.fix_requests import MARKET_DATA_REQUEST, QUOTE_ACKNOWLEDGEMENT, REFUSALS, Requests, acknowledgement
from workers.fix_session import FixSession, Terms
from workers.session import Do, Limits, Session, State, Verdict
from workers.source import SourceContext
from workers.sources.fix_monitor import FixMonitor
from workers.sources.fix_options import check, depth_of, find_login, tls_of
from workers.sources.fix_place import Place
from workers.sources.fix_wire import FixWire
from workers.sources.polled_loop import MAX_PAUSE_NS, PolledLoop
from workers.spec import FeedReport

log = logging.getLogger("fix")

CLOSING_TURNS: Final = 3


class _Piece(NamedTuple):
    """Messages that came together."""

    attempt: int
    buffer: bytes
    frames: np.ndarray
    heads: np.ndarray


class _Ended(NamedTuple):
    attempt: int
    verdict: Verdict


class _Told(NamedTuple):
    code: StatusCode
    text: str
    first: int = 0
    last: int = 0


class FixSource:
    """See the module and `workers.source.Source`. Never finishes; what the venue sends again it decides itself."""

    tells = True  # FEED_UP and FEED_DOWN stand among its records

    def __init__(self, context: SourceContext, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Check the settings and find the numbers; connections are made by the polls. `clock` stamps what arrives.

        Raises:
            SettingsError: settings that can't work.
            SourceError: the numbers can't be read, or another feed has this session.
        """
        spec = context.spec
        self._spec = spec
        options, types = check(spec)
        self._options = options
        find_login(spec, options)
        self._tls = tls_of(spec, options)
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = None
        self.next_due_ns: int | None = 0
        self._clock = clock
        self._symbols: dict[int, str] = {}  # instrument id -> the venue's symbol

        def intern(symbol: str) -> int:
            number = context.intern(options.rename.get(symbol, symbol))
            self._symbols[number] = symbol
            return number

        self._reader = FixReader(options.max_message_bytes)
        depth = depth_of(options, types)
        self._decoder = FixDecoder(
            intern,
            wants=types,
            top=depth == 1,
            alone=True,
            source=int(SourceCode.FIX),
            feed_id=spec.feed_id,
            venue=options.code.encode(),
        )
        self._requests = Requests(
            spec.symbols,
            types,
            depth=depth,
            incremental=options.updates == "incremental",
            exchange=options.exchange,
        )
        identity = Identity(options.version, options.sender, options.target, options.sender_sub, options.target_sub)
        path = numbers_path(context.folder, options.version, options.sender, options.target)
        self._numbers = Numbers(path, clock())
        try:
            self._place = Place(self._numbers, context.newest)
        except BaseException:
            self._numbers.close()
            raise
        self._fix = FixSession(
            identity,
            self._numbers,
            Terms(
                heartbeat_s=options.heartbeat_s,
                resend_s=options.resend_s,
                max_held=options.max_held,
                reset=options.reset_seq_num,
                login=(lambda: find_login(spec, options)) if options.login else None,
            ),
        )
        self._inbox: deque[_Piece | _Ended | _Told] = deque()
        self._piece: _Piece | None = None
        self._at = 0  # in it
        self._actions: deque[Action] = deque()
        self._decoding = False
        self._loop = PolledLoop()
        self.fd = self._loop.fd
        self._wire: FixWire | None = None
        self._attempt = 0
        self._connecting: Any = None
        self._session = Session(
            random.Random(f"{spec.name} {context.epoch}"),
            limits=Limits(
                connect_s=options.connect_s + 1.0,  # the wire's own says more
                login_s=options.login_s,
                first_data_s=options.first_data_s,
                message_s=86_400.0,  # silence is the FIX session's to judge, by the heartbeat that was agreed on
                stale_s=options.stale_s,
            ),
            login=True,
            acknowledged=False,  # FIX answers a request with data, or refuses it
        )
        self._monitor = FixMonitor(spec.feed_id, options, self._session, self._name, context.counter)
        self._asked_at = 0  # highest number that had come when the subscription was sent
        self._gap_before = False
        self._was_up = False
        self._lost_ns = 0
        self._seen_errors = 0
        self._missed = 0

    @property
    def errors(self) -> int:
        """See `Source`."""
        return self._monitor.errors

    @property
    def report(self) -> FeedReport:
        """See `LiveSource`."""
        return self._monitor.report

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`."""
        self._place.settle(self._clock())
        count = self._drain(out, 0, now_ns)
        if self._idle:
            self._obey(self._session.tick(now_ns, expected=self._monitor.cadence.expected(now_ns)), now_ns)
            self._actions += self._fix.tick(now_ns)
            count = self._drain(out, count, now_ns)
            self._loop.turn()
            count = self._drain(out, count, now_ns)
            if now_ns >= self._monitor.due_ns:
                self._look(now_ns)
                count = self._drain(out, count, now_ns)
        if self._monitor.note(now_ns):
            self._count(now_ns)
        if self._idle:
            due_ns = min(self._session.due_ns, self._fix.due_ns, self._monitor.due_ns)
            self.next_due_ns = min(due_ns, now_ns + MAX_PAUSE_NS) if self._loop.busy else due_ns
        else:
            self.next_due_ns = now_ns
        self._place.hand_out()
        return count

    @property
    def _idle(self) -> bool:
        return not (self._inbox or self._actions or self._decoding or self._piece is not None)

    # -- from messages to records

    def _drain(self, out: np.ndarray, count: int, now_ns: int) -> int:
        """Work off what has come, into `out` from `count` on, as far as there is room; returns how far it is filled."""
        while count < len(out):
            if self._decoding:
                got = self._decoder.decode(out[count:])
                if got:
                    count += self._heed(out[count : count + got], now_ns)
                    continue
                self._decoding = False
                self._count_errors(now_ns)
            elif self._actions:
                count = self._do(self._actions.popleft(), out, count, now_ns)
            else:
                self._place.reached = self._fix.expected
                item = self._inbox[0] if self._inbox else None
                if isinstance(item, _Told):  # before the messages that are left
                    self._inbox.popleft()
                    count = self._tell(item, out, count, now_ns)
                elif self._piece is not None:
                    self._go_on(self._piece, now_ns)
                elif item is None:
                    break
                else:
                    self._inbox.popleft()
                    if isinstance(item, _Piece):
                        self._piece, self._at = item, 0
                    elif item.attempt == self._attempt:
                        self._lost(item.verdict, now_ns)
        return count

    def _go_on(self, piece: _Piece, now_ns: int) -> None:
        """Turn to the next messages of the piece in hand."""
        if piece.attempt != self._attempt or self._at >= len(piece.frames):
            self._piece = None  # what a connection had left when it was given up is asked for again
            return
        taken = self._fix.take(piece.heads, self._at, now_ns)
        if taken:
            frames = piece.frames[self._at : self._at + taken]
            quotes = np.flatnonzero(piece.heads["type"][self._at : self._at + taken] == ord("i"))
            for row in quotes.tolist():
                start = int(frames["offset"][row])
                self._acknowledge(piece.buffer[start : start + int(frames["size"][row])], now_ns)
            self._decoder.feed(piece.buffer, frames)
            self._decoding = True
            self._monitor.health.messages(now_ns, taken)
            self._at += taken
            return
        frame, head = piece.frames[self._at], piece.heads[self._at]
        self._at += 1
        start = int(frame["offset"])
        data = piece.buffer[start : start + int(frame["size"])]
        self._monitor.health.messages(now_ns, 1)
        self._actions += self._fix.receive(
            Message(
                kind_of(int(head["type"])), int(head["seq"]), data, int(frame["ts_receive"]), bool(head["possdup"])
            ),
            now_ns,
        )

    def _do(self, action: Action, out: np.ndarray, count: int, now_ns: int) -> int:
        """Carry out what the session says; returns how far `out` is filled then."""
        if isinstance(action, Send):
            if self._wire is not None:
                self._wire.send(action.data)
        elif isinstance(action, Deliver):
            if action.kind in MARKET_DATA:
                if action.kind == "i":
                    self._acknowledge(action.data, now_ns)
                self._decoder.feed_message(action.data, action.ts_receive)
                self._decoding = True
            elif action.kind in REFUSALS:
                self._refuse(action.kind, action.data, now_ns)
        elif isinstance(action, LoggedOn):
            self._numbers.sync()
            self._obey(self._session.logged_in(now_ns), now_ns)
        elif isinstance(action, Missed):
            return self._miss(action, out, count, now_ns)
        elif isinstance(action, End):
            self._lost(Verdict(action.reason, lasting=action.lasting), now_ns)
        return count

    def _acknowledge(self, mass_quote: bytes, now_ns: int) -> None:
        body = acknowledgement(mass_quote)
        if body is not None and self._wire is not None:
            self._wire.send(self._fix.request(QUOTE_ACKNOWLEDGEMENT, body, now_ns, keep=False)[1].data)

    def _refuse(self, kind: str, data: bytes, now_ns: int) -> None:
        """The venue refuses a request, or complains."""
        self._monitor.failed(now_ns)
        try:
            message = Received(data)
        except DecodeError:
            return
        found = self._requests.refused(kind, message)
        if found is None:
            log.warning("feed %s: the venue complains: %s", self._spec.name, message.text(58) or data[:120])
            return
        symbol, reason = found
        self._monitor.refused[symbol] = reason
        log.warning("feed %s: %s is refused: %s", self._spec.name, symbol, reason)
        if not self._requests.subscribed:
            self._lost(Verdict(f"refused by the venue: {symbol}: {reason}", lasting=True), now_ns)

    def _miss(self, missed: Missed, out: np.ndarray, count: int, now_ns: int) -> int:
        """Messages that will not come: told with their numbers; books begin anew if they may have been changed."""
        self._missed += missed.last - missed.first
        self._decoder.doubt()
        self._gap_before = True
        count = self._tell(_Told(StatusCode.GAP, missed.reason, missed.first, missed.last), out, count, now_ns)
        if missed.last - 1 > self._asked_at and self._session.state in (State.SUBSCRIBE, State.LIVE, State.STALE):
            for request in self._requests.unsubscribe():
                self._actions.append(self._fix.request(MARKET_DATA_REQUEST, request.body, now_ns)[1])
            self._ask(now_ns)
        return count

    def _heed(self, records: np.ndarray, now_ns: int) -> int:
        """What fresh records say of the feed's health; how many there are without those that are in the ring."""
        records = self._place.without_published(records)
        if not len(records):
            return 0
        if self._gap_before:
            self._gap_before = False
            records["flags"][:1] |= np.uint16(Flag.GAP_BEFORE)
        self._monitor.heard(records, now_ns)
        fresh = records["flags"] & np.uint16(Flag.BACKFILLED) == 0
        if self._session.connected and fresh.any():  # what is sent again says nothing of the subscription
            self._obey(self._session.heard(now_ns), now_ns)
        return len(records)

    def _tell(self, told: _Told, out: np.ndarray, count: int, now_ns: int) -> int:
        """One status record."""
        text = told.text
        if told.code is StatusCode.FEED_UP:
            text = f"{self._options.target} {text}"
        else:
            log.warning("feed %s: %s: %s", self._spec.name, told.code.name.lower(), text)
        if told.code is StatusCode.GAP:
            self.gaps += 1
            self._monitor.health.gaps(now_ns)
        row = np.frombuffer(
            status_record(
                told.code,
                text=text,
                feed_id=self._spec.feed_id,
                source=SourceCode.FIX,
                ts_event=self._clock(),
                from_sequence=told.first,
                to_sequence=told.last,
            ),
            RECORD,
        )
        out[count : count + 1].view(np.uint8)[:] = row.view(np.uint8)
        return count + 1

    def _count_errors(self, now_ns: int) -> None:
        errors = self._decoder.errors + self._reader.garbled
        if errors != self._seen_errors:
            self._monitor.failed(now_ns, errors - self._seen_errors)
            self._seen_errors = errors

    # -- the connection

    def _obey(self, actions: list[Do], now_ns: int) -> None:
        """Do what the feed's session says."""
        for action in actions:
            if action is Do.CONNECT:
                options = self._options
                self._attempt += 1
                self._wire = FixWire(self, self._attempt)
                connecting = self._wire.connect(options.host, options.port, self._tls, options.connect_s, self._clock)
                self._connecting = self._loop.spawn(connecting)
            elif action is Do.LOGIN:
                self._actions += self._fix.opened(now_ns)
                self._place.reached = self._fix.expected
            elif action is Do.SUBSCRIBE:
                self._subscribe(now_ns)
            elif action is Do.CLOSE:
                self._give_up(now_ns)
            elif action is Do.UP:
                self._was_up = True
                self._inbox.appendleft(_Told(StatusCode.FEED_UP, "delivers"))
            elif action is Do.DOWN:
                self._lost_ns = now_ns
                self._inbox.appendleft(_Told(StatusCode.FEED_DOWN, self._session.why))

    def opened(self, attempt: int) -> None:
        """See `fix_wire.Owner`."""
        if attempt == self._attempt:
            now_ns = self._clock()
            if self._session.connects:
                self._monitor.health.reconnected(now_ns)
            self._obey(self._session.opened(now_ns), now_ns)

    def received(self, attempt: int, data: bytes) -> None:
        """See `fix_wire.Owner`."""
        if attempt != self._attempt:
            return
        now_ns = self._clock()
        self.bytes_received += len(data)
        batch = self._reader.feed(data, now_ns)
        if len(batch.frames):
            self._session.message(now_ns)
            self._inbox.append(_Piece(attempt, batch.buffer, batch.frames, self._reader.heads))
        self._count_errors(now_ns)

    def ended(self, attempt: int, verdict: Verdict) -> None:
        """See `fix_wire.Owner`."""
        if attempt == self._attempt:
            self._inbox.append(_Ended(attempt, verdict))

    def _lost(self, verdict: Verdict, now_ns: int) -> None:
        self._monitor.health.errors(now_ns)
        self._obey(self._session.lost(now_ns, verdict), now_ns)

    def _give_up(self, now_ns: int) -> None:
        wire, self._wire = self._wire, None
        if not self._lost_ns:
            self._lost_ns = now_ns
        self._attempt += 1  # whatever the old attempt still says concerns nobody
        self._fix.closed()
        self._actions.clear()
        self._reader.clear()
        self._place.reached = self._fix.expected
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        if wire is not None:
            wire.end()

    def _subscribe(self, now_ns: int) -> None:
        self._monitor.refused.clear()
        self._requests.begin()
        if self._was_up:
            gone_s = (now_ns - self._lost_ns) / 1e9
            self._inbox.appendleft(_Told(StatusCode.GAP, f"connected again after {gone_s:.1f} s"))
            self._gap_before = True
            self._decoder.doubt()
        self._monitor.cadence.restart(now_ns)
        self._ask(now_ns)

    def _ask(self, now_ns: int) -> None:
        self._asked_at = self._fix.seen
        for request in self._requests.subscribe():
            self._decoder.request(request.number.encode(), request.symbol)
            seq, send = self._fix.request(MARKET_DATA_REQUEST, request.body, now_ns)
            self._requests.sent(request.number, seq)
            self._actions.append(send)

    # -- how it does

    def _look(self, now_ns: int) -> None:
        """Once a second: silence and warnings."""
        stale, warnings = self._monitor.look(now_ns)
        if stale:
            self._obey(self._session.silent(now_ns, stale), now_ns)
        self._inbox.extend(_Told(StatusCode.FEED_DEGRADED, warning) for warning in warnings)

    def _count(self, now_ns: int) -> None:
        self._count_errors(now_ns)
        fix = self._fix
        self._monitor.count(
            {
                "garbled": self._reader.garbled,
                "duplicates": fix.duplicates,
                "rejected": fix.rejected,
                "resends_asked": fix.resends_asked,
                "missed": self._missed,
                "overflows": fix.overflows,
            }
        )

    def _name(self, instrument_id: int) -> str:
        return self._symbols.get(instrument_id, f"instrument {instrument_id}")

    # -- the rest of a source

    def skip(self, records: int) -> None:
        """Not possible: the venue decides what it sends again."""
        raise NotImplementedError(f"a live feed has no position to skip {records} records from")

    def resume(self, now_ns: int) -> None:
        """Nothing to do: a paused live feed is closed, and connects anew."""

    def close(self) -> None:
        """See `Source.close`: log out, and leave the numbers as they are."""
        now_ns = self._clock()
        if self._session.state is not State.CLOSED:
            self._place.settle(now_ns)
            for action in self._fix.leave("the feed is closed", now_ns):
                if isinstance(action, Send) and self._wire is not None:
                    self._wire.send(action.data)
            self._count(now_ns)
            self._obey(self._session.stop(now_ns), now_ns)
            for _ in range(CLOSING_TURNS):
                self._loop.turn()
        self._loop.close()
        self._numbers.close()
