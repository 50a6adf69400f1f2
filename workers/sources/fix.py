"""A FIX 4.2/4.4 session as a feed of market data: socket, numbers, and the state of the feed.

    socket (fix_wire.py) --bytes--> FixIntake.cut --messages--> inbox --in turn--> FixIntake.work --> records
                                    garbled: counted                    '- answers, requests --> socket

The ingest worker polls it (`workers.source.Source`). Two machines work together: workers/fix_session.py keeps the FIX
session (numbers, heartbeats, resends), workers/session.py the feed's state (connect, live, stale, breaker), as for
every live source. How messages become records is workers/sources/fix_intake.py's; which message it is at, over a kill
too, fix_place.py's; what a capture is told, fix_witness.py's.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from shm.layout import Flag, StatusCode
from shm.layout import Source as SourceCode
from workers.fix_numbers import Numbers, numbers_path
from workers.fix_protocol import Send
from workers.session import Do, Limits, Session, State, Verdict
from workers.source import SourceContext
from workers.sources.fix_intake import FixIntake, Piece
from workers.sources.fix_monitor import FixMonitor
from workers.sources.fix_options import FixOptions, check, find_login, tls_of
from workers.sources.fix_owner import Told
from workers.sources.fix_place import Place
from workers.sources.fix_wire import FixWire
from workers.sources.fix_witness import FixWitness
from workers.sources.polled_loop import MAX_PAUSE_NS, PolledLoop
from workers.spec import FeedReport, FeedSpec

log = logging.getLogger("fix")

CLOSING_TURNS: Final = 3


class _Arrived(NamedTuple):
    """Messages that came together."""

    attempt: int
    piece: Piece


class _Ended(NamedTuple):
    attempt: int
    verdict: Verdict


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
        login = find_login(spec, options)
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

        path = numbers_path(context.folder, options.version, options.sender, options.target)
        self._numbers = Numbers(path, clock())
        try:
            self._place = Place(self._numbers, context.newest)
        except BaseException:
            self._numbers.close()
            raise
        self._witness = None if context.wire is None else FixWitness(context.wire, _secrets(spec, options, login))
        self._intake = FixIntake(
            self,
            spec,
            options,
            types=types,
            intern=intern,
            numbers=self._numbers,
            place=self._place,
            source=SourceCode.FIX,
            login=(lambda: find_login(spec, options)) if options.login else None,
            witness=self._witness,
        )
        self._fix, self._reader = self._intake.session, self._intake.reader
        self._inbox: deque[_Arrived | _Ended] = deque()
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
        self._seen_errors = self._seen_messages = 0

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
            if not self._intake.busy:  # else its connection was given up a moment ago
                self._intake.tick(now_ns)
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
        return not (self._inbox or self._intake.busy)

    # -- from messages to records

    def _drain(self, out: np.ndarray, count: int, now_ns: int) -> int:
        """Work off what has come, into `out` from `count` on, as far as there is room; returns how far it is filled."""
        intake = self._intake
        while count < len(out):
            if intake.busy:
                count = intake.work(out, count, now_ns)
            elif self._inbox:
                item = self._inbox.popleft()
                if item.attempt != self._attempt:
                    continue  # what a connection had left when it was given up is asked for again
                if isinstance(item, _Arrived):
                    intake.take_up(item.piece)
                else:
                    self.lost(item.verdict, now_ns)
            else:
                break
        intake.reach()
        self._monitor.health.messages(now_ns, intake.messages - self._seen_messages)
        self._seen_messages = intake.messages
        self._count_errors(now_ns)
        return count

    def heard(self, records: np.ndarray, now_ns: int) -> None:
        """See `fix_owner.Owner`: what fresh records say of the feed's health."""
        self._monitor.heard(records, now_ns)
        fresh = records["flags"] & np.uint16(Flag.BACKFILLED) == 0
        if self._session.connected and fresh.any():  # what is sent again says nothing of the subscription
            self._obey(self._session.heard(now_ns), now_ns)

    def refused(self, symbol: str, reason: str, now_ns: int) -> None:
        """See `fix_owner.Owner`."""
        self._monitor.failed(now_ns)
        if not symbol:
            log.warning("feed %s: the venue complains: %s", self._spec.name, reason)
            return
        self._monitor.refused[symbol] = reason
        log.warning("feed %s: %s is refused: %s", self._spec.name, symbol, reason)

    def told(self, told: Told, now_ns: int) -> None:
        """See `fix_owner.Owner`."""
        if told.code is not StatusCode.FEED_UP:
            log.warning("feed %s: %s: %s", self._spec.name, told.code.name.lower(), told.text)
        if told.code is StatusCode.GAP:
            self.gaps += 1
            self._monitor.health.gaps(now_ns)

    def _count_errors(self, now_ns: int) -> None:
        errors = self._intake.decoder.errors + self._reader.garbled
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
                self._intake.open(now_ns)
            elif action is Do.SUBSCRIBE:
                self._monitor.refused.clear()
                self._monitor.cadence.restart(now_ns)
                self._intake.subscribe(now_ns)
            elif action is Do.CLOSE:
                self._give_up(now_ns)
            elif action is Do.UP:
                self._intake.tell(StatusCode.FEED_UP, f"{self._options.target} delivers", self._clock())
            elif action is Do.DOWN:
                self._intake.tell(StatusCode.FEED_DOWN, self._session.why, self._clock())

    def send(self, data: bytes, now_ns: int) -> None:
        """See `fix_owner.Owner`."""
        if self._wire is not None:
            self._wire.send(data)
            if self._witness is not None:
                self._witness.sent(data, now_ns)

    def logged_on(self, now_ns: int) -> None:
        """See `fix_owner.Owner`."""
        self._numbers.sync()
        self._obey(self._session.logged_in(now_ns), now_ns)

    def opened(self, attempt: int) -> None:
        """See `fix_wire.Owner`."""
        if attempt == self._attempt:
            now_ns = self._clock()
            if self._session.connects:
                self._monitor.health.reconnected(now_ns)
            if self._witness is not None:
                url = f"{'tls' if self._tls else 'tcp'}://{self._options.host}:{self._options.port}"
                self._witness.connected(now_ns, url=url, again=self._intake.was_up)
            self._obey(self._session.opened(now_ns), now_ns)

    def received(self, attempt: int, data: bytes) -> None:
        """See `fix_wire.Owner`."""
        if attempt != self._attempt:
            return
        now_ns = self._clock()
        self.bytes_received += len(data)
        piece = self._intake.cut(data, now_ns)
        if piece is not None:
            if len(piece.frames):
                self._session.message(now_ns)
            self._inbox.append(_Arrived(attempt, piece))
        self._count_errors(now_ns)

    def ended(self, attempt: int, verdict: Verdict) -> None:
        """See `fix_wire.Owner`."""
        if attempt == self._attempt:
            self._inbox.append(_Ended(attempt, verdict))

    def lost(self, verdict: Verdict, now_ns: int) -> None:
        """See `fix_owner.Owner`."""
        self._monitor.health.errors(now_ns)
        self._obey(self._session.lost(now_ns, verdict), now_ns)

    def _give_up(self, now_ns: int) -> None:
        wire, self._wire = self._wire, None
        self._attempt += 1  # whatever the old attempt still says concerns nobody
        self._intake.close(now_ns)
        if self._witness is not None and wire is not None:
            self._witness.lost(now_ns, self._session.why)
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        if wire is not None:
            wire.end()

    # -- how it does

    def _look(self, now_ns: int) -> None:
        """Once a second: silence and warnings."""
        stale, warnings = self._monitor.look(now_ns)
        if stale:
            self._obey(self._session.silent(now_ns, stale), now_ns)
        for warning in warnings:
            self._intake.tell(StatusCode.FEED_DEGRADED, warning, self._clock())

    def _count(self, now_ns: int) -> None:
        self._count_errors(now_ns)
        fix = self._fix
        self._monitor.count(
            {
                "garbled": self._reader.garbled,
                "duplicates": fix.duplicates,
                "rejected": fix.rejected,
                "resends_asked": fix.resends_asked,
                "missed": self._intake.missed,
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
                if isinstance(action, Send):
                    self.send(action.data, now_ns)
            self._count(now_ns)
            self._obey(self._session.stop(now_ns), now_ns)
            for _ in range(CLOSING_TURNS):
                self._loop.turn()
        self._loop.close()
        self._numbers.close()


def _secrets(spec: FeedSpec, options: FixOptions, login: tuple[str, str]) -> list[str]:
    """What a capture must not hold: the password, and the user unless the settings, which stand there, say it too."""
    user, password = login
    plain = (options.sender, options.target, options.sender_sub, options.target_sub, *spec.symbols)
    return [password] if any(user in one for one in plain) else [user, password]
