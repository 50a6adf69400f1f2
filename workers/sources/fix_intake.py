"""From the bytes of a FIX session to records, sans-I/O: reader, session, requests and decoder in their turn.

    bytes --FixReader--> piece --in turn--> FixSession --market data--> FixDecoder --> records
                                                '- the rest: answers, gaps, refusals --> owner

The one way that messages take, live (workers/sources/fix.py, which has socket and state of the feed) and in a replay of
a capture (fix_replay.py): so both give the same records. Runs of market data in their turn go from reader to decoder
without a Python object a message. It connects nothing and reads no clock; what it decides by itself goes by the
messages alone, everything else is said by the owner, and told to the witness of a capture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shm.layout import RECORD, Flag, RecordType, Source, StatusCode
from shm.ring import status_record
from workers.decoders._fix import FixDecoder, FixReader
from workers.errors import DecodeError
from workers.fix_messages import MARKET_DATA, Identity, Received, kind_of
from workers.fix_numbers import Numbers
from workers.fix_protocol import Action, Deliver, End, LoggedOn, Message, Missed, Send, State
from workers.fix_requests import MARKET_DATA_REQUEST, QUOTE_ACKNOWLEDGEMENT, REFUSALS, Requests, acknowledgement
from workers.fix_session import FixSession, Terms
from workers.session import Verdict
from workers.sources.fix_options import FixOptions, depth_of
from workers.sources.fix_owner import Owner, Told
from workers.sources.fix_place import Place
from workers.sources.fix_witness import ASKED, CAUGHT_UP, CLOSED, GAP, LATE, OPENED, TICK, FixWitness
from workers.spec import FeedSpec


class Piece(NamedTuple):
    """Messages that came together, at `ts_receive`; the buffer is done with up to `end`."""

    buffer: bytes
    frames: np.ndarray
    heads: np.ndarray
    end: int
    ts_receive: int


class FixIntake:
    """See the module.

    Attributes:
        messages: worked off so far.
        was_up: it has delivered, so that a connection after this one has missed something.
        lost_ns: when the last connection that delivered was given up.
    """

    def __init__(
        self,
        owner: Owner,
        spec: FeedSpec,
        options: FixOptions,
        *,
        types: tuple[str, ...],
        intern: Callable[[str], int],
        numbers: Numbers,
        place: Place,
        source: Source,
        flags: int = 0,
        login: Callable[[], tuple[str, str]] | None = None,
        witness: FixWitness | None = None,
    ) -> None:
        """Not connected. `source` and `flags` are those of all records."""
        self.messages = 0
        self.missed = 0  # messages that will not come
        self.was_up = False
        self.lost_ns = 0
        self._owner = owner
        self._feed_id = spec.feed_id
        self._source, self._flags = source, flags
        self._symbols = spec.symbols
        self._numbers = numbers
        self._place = place
        self._witness = witness
        depth = depth_of(options, types)
        self.reader = FixReader(options.max_message_bytes)
        self.decoder = FixDecoder(
            intern,
            wants=types,
            top=depth == 1,
            alone=True,
            source=int(source),
            flags=flags,
            feed_id=spec.feed_id,
            venue=options.code.encode(),
        )
        self.session = FixSession(
            Identity(options.version, options.sender, options.target, options.sender_sub, options.target_sub),
            numbers,
            Terms(
                heartbeat_s=options.heartbeat_s,
                resend_s=options.resend_s,
                max_held=options.max_held,
                reset=options.reset_seq_num,
                login=login,
            ),
        )
        self._requests = Requests(
            spec.symbols,
            types,
            depth=depth,
            incremental=options.updates == "incremental",
            exchange=options.exchange,
        )
        self._piece: Piece | None = None
        self._at = 0  # in it
        self._witnessed = 0  # bytes of it
        self._actions: deque[Action] = deque()
        self._told: deque[Told] = deque()
        self._decoding = False
        self._at_ns = 0  # of what is worked off: when it arrived, or when the owner said so
        self._subscribed = False
        self._delivered = False  # on this connection
        self._asked_at = 0  # highest number that had come when the subscription was sent
        self._gap_before = False

    # -- what the owner says

    def cut(self, data: bytes, ts_receive: int) -> Piece | None:
        """Bytes have come; None: no message is whole, and there is nothing to tell."""
        batch = self.reader.feed(data, ts_receive)
        end = len(batch.buffer) - self.reader.unfinished
        if not len(batch.frames) and not (end and self._witness is not None):
            return None
        return Piece(batch.buffer, batch.frames, self.reader.heads, end, ts_receive)

    def take_up(self, piece: Piece) -> None:
        """Its turn has come: nothing else is to be worked off."""
        self._piece, self._at, self._witnessed = piece, 0, 0
        self._at_ns = piece.ts_receive

    def open(self, now_ns: int) -> None:
        """The connection is there."""
        self._note(OPENED, now_ns)
        self._at_ns = now_ns
        self._actions += self.session.opened(now_ns)
        self._place.reached = self.session.expected

    def tick(self, now_ns: int) -> None:
        """Time goes by: heartbeats, tests, gaps that nobody fills. Only while it is not busy."""
        waits = self.session.waits
        actions = self.session.tick(now_ns)
        if actions:
            self._at_ns = now_ns
            self._note(TICK if self.session.waits == waits else LATE, now_ns)
            self._actions += actions

    def subscribe(self, now_ns: int) -> None:
        """Ask for all symbols, on a connection on which nothing was asked for."""
        self._requests.begin()
        self._subscribed = True
        if self.was_up:
            self.hole(f"connected again after {(self._at_ns - self.lost_ns) / 1e9:.1f} s", self._at_ns)
        self._ask(now_ns)

    def tell(self, code: StatusCode, text: str, at_ns: int) -> None:
        """A status record, before the messages that are left."""
        self._told.append(Told(code, text, at_ns))

    def hole(self, text: str, at_ns: int) -> None:
        """Something is missing here: told, and books may be wrong."""
        self._told.append(Told(StatusCode.GAP, text, at_ns))
        self._gap_before = True
        self.decoder.doubt()

    def close(self, now_ns: int) -> None:
        """The connection is given up: what it had left is asked for again after the next logon."""
        if self.session.state is not State.IDLE:
            self._note(CLOSED, now_ns)
        if self._delivered:
            self.lost_ns = now_ns
        self._delivered = self._subscribed = False
        self._piece = None
        self._actions.clear()
        self.session.closed()
        self.reader.clear()
        self._place.reached = self.session.expected

    # -- what a replay says, beside that

    def late(self, now_ns: int) -> None:
        """It was noted that the wait for a gap was over."""
        self._at_ns = now_ns
        self._actions += self.session.late(now_ns)

    def pass_over(self, now_ns: int, *until: int) -> None:
        """The feed had no gap here, or none below a number."""
        self._at_ns = now_ns
        self._actions += self.session.pass_over("not in the capture", now_ns, *until)

    def join(self, expected: int, asked: int, now_ns: int) -> None:
        """Go on in the middle of a connection. `asked`: number of its last request; 0 = those of a new one."""
        self.session.join(expected)
        self._requests.begin(max(0, asked - len(self._symbols)))
        self._subscribed = True
        self._ask(now_ns)

    @property
    def left(self) -> bytes:
        """Of the piece in hand, what is not worked off."""
        piece = self._piece
        if piece is None or self._at >= len(piece.frames):
            return b""
        return piece.buffer[int(piece.frames["offset"][self._at]) : piece.end]

    # -- from messages to records

    @property
    def busy(self) -> bool:
        """Whether there is something to be worked off."""
        return bool(self._decoding or self._actions or self._told or self._piece is not None)

    def work(self, out: np.ndarray, count: int, now_ns: int) -> int:
        """One step of it, into `out` from `count` on, which has room; returns how far it is filled then."""
        if self._decoding:
            got = self.decoder.decode(out[count:])
            if got:
                return count + self._heed(out[count : count + got], now_ns)
            self._decoding = False
        elif self._actions:
            return self._do(self._actions.popleft(), out, count, now_ns)
        elif self._told:
            return self._tell(self._told.popleft(), out, count, now_ns)
        elif self._piece is not None:
            self._go_on(self._piece, now_ns)
        return count

    def reach(self) -> None:
        """Tell the place how far all is worked off."""
        if not self._decoding and not self._actions:
            self._place.reached = self.session.expected

    def _go_on(self, piece: Piece, now_ns: int) -> None:
        """Turn to the next messages of the piece in hand."""
        self._place.reached = self.session.expected
        if self._at >= len(piece.frames):
            self._piece = None
            if self._witness is not None and self._witnessed < piece.end:
                self._witness.received(piece.buffer[self._witnessed : piece.end], piece.ts_receive, whole=False)
            return
        taken = self.session.take(piece.heads, self._at, now_ns)
        frames = piece.frames[self._at : self._at + (taken or 1)]
        if self._witness is not None:
            self._show(self._witness, piece, frames)
        self.messages += len(frames)
        start = self._at
        self._at += len(frames)
        if taken:
            quotes = np.flatnonzero(piece.heads["type"][start : self._at] == ord("i"))
            for row in quotes.tolist():
                first = int(frames["offset"][row])
                self._acknowledge(piece.buffer[first : first + int(frames["size"][row])], now_ns)
            self.decoder.feed(piece.buffer, frames)
            self._decoding = True
            return
        frame, head = frames[0], piece.heads[start]
        first = int(frame["offset"])
        message = Message(
            kind_of(int(head["type"])),
            int(head["seq"]),
            piece.buffer[first : first + int(frame["size"])],
            int(frame["ts_receive"]),
            bool(head["possdup"]),
        )
        waited = self.session.state is State.GAP
        self._actions += self.session.receive(message, now_ns)
        if self.session.state in (State.ACTIVE, State.GAP) and waited is not (self.session.state is State.GAP):
            self._note(CAUGHT_UP if waited else GAP, piece.ts_receive)

    def _show(self, witness: FixWitness, piece: Piece, frames: np.ndarray) -> None:
        """Messages of the piece whose turn it is, each with the garbage before it."""
        for offset, size in zip(frames["offset"].tolist(), frames["size"].tolist(), strict=True):
            end = offset + size
            witness.received(piece.buffer[self._witnessed : end], piece.ts_receive, whole=True)
            self._witnessed = end

    def _do(self, action: Action, out: np.ndarray, count: int, now_ns: int) -> int:
        """Carry out what the session says; returns how far `out` is filled then."""
        if isinstance(action, Send):
            self._owner.send(action.data, now_ns)
        elif isinstance(action, Deliver):
            if action.kind in MARKET_DATA:
                if action.kind == "i":
                    self._acknowledge(action.data, now_ns)
                self.decoder.feed_message(action.data, action.ts_receive)
                self._decoding = True
            elif action.kind in REFUSALS:
                self._refuse(action.kind, action.data, now_ns)
        elif isinstance(action, LoggedOn):
            self._owner.logged_on(now_ns)
        elif isinstance(action, Missed):
            return self._miss(action, out, count, now_ns)
        elif isinstance(action, End):
            self._owner.lost(Verdict(action.reason, lasting=action.lasting), now_ns)
        return count

    def _acknowledge(self, mass_quote: bytes, now_ns: int) -> None:
        body = acknowledgement(mass_quote)
        if body is not None:
            self._owner.send(self.session.request(QUOTE_ACKNOWLEDGEMENT, body, now_ns, keep=False)[1].data, now_ns)

    def _refuse(self, kind: str, data: bytes, now_ns: int) -> None:
        """The venue refuses a request, or complains."""
        try:
            message = Received(data)
        except DecodeError as error:
            self._owner.refused("", str(error), now_ns)
            return
        found = self._requests.refused(kind, message)
        if found is None:
            self._owner.refused("", message.text(58) or repr(data[:120]), now_ns)
            return
        symbol, reason = found
        self._owner.refused(symbol, reason, now_ns)
        if not self._requests.subscribed:
            self._owner.lost(Verdict(f"refused by the venue: {symbol}: {reason}", lasting=True), now_ns)

    def _miss(self, missed: Missed, out: np.ndarray, count: int, now_ns: int) -> int:
        """Messages that will not come: told with their numbers; books begin anew if they may have been changed."""
        self.missed += missed.last - missed.first
        self.decoder.doubt()
        self._gap_before = True
        told = Told(StatusCode.GAP, missed.reason, self._at_ns, missed.first, missed.last)
        count = self._tell(told, out, count, now_ns)
        if missed.last - 1 > self._asked_at and self._subscribed:
            for request in self._requests.unsubscribe():
                self._actions.append(self.session.request(MARKET_DATA_REQUEST, request.body, now_ns)[1])
            self._ask(now_ns)
        return count

    def _heed(self, records: np.ndarray, now_ns: int) -> int:
        """Fresh records; how many there are without those that are in the ring."""
        records = self._place.without_published(records)
        market = np.flatnonzero(records["record_type"] != RecordType.STATUS)
        if not len(market):
            return len(records)
        if self._gap_before:
            self._gap_before = False
            records["flags"][market[:1]] |= np.uint16(Flag.GAP_BEFORE)
        if not self._delivered and (records["flags"] & np.uint16(Flag.BACKFILLED) == 0).any():
            self._delivered = self.was_up = True  # what is sent again says nothing of the subscription
        self._owner.heard(records[market], now_ns)
        return len(records)

    def _tell(self, told: Told, out: np.ndarray, count: int, now_ns: int) -> int:
        """One status record."""
        row = np.frombuffer(
            status_record(
                told.code,
                text=told.text,
                feed_id=self._feed_id,
                source=self._source,
                ts_event=told.at_ns,
                from_sequence=told.first,
                to_sequence=told.last,
            ),
            RECORD,
        ).copy()
        row["ts_receive"] = told.at_ns
        row["flags"] |= np.uint16(self._flags)
        out[count : count + 1].view(np.uint8)[:] = row.view(np.uint8)
        self._owner.told(told, now_ns)
        return count + 1

    def _ask(self, now_ns: int) -> None:
        self._asked_at = self.session.seen
        for request in self._requests.subscribe():
            self.decoder.request(request.number.encode(), request.symbol)
            seq, send = self.session.request(MARKET_DATA_REQUEST, request.body, now_ns)
            self._requests.sent(request.number, seq)
            self._actions.append(send)
        self._note(ASKED, now_ns)

    def _note(self, what: str, at_ns: int) -> None:
        if self._witness is not None:
            self._witness.noted(
                at_ns,
                what,
                expected=self.session.expected,
                next_out=self._numbers.next_out,
                asked=self._requests.made if self._subscribed else 0,
                gap=self.session.state is State.GAP,
                skip=self._place.skip,
            )
