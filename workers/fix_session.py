"""The FIX session protocol, sans-I/O: messages and time in, what to send and what to take out. States: fix_protocol.py.

ACTIVE: every number so far was had. GAP: a number too high has come; what lies between is asked for (ResendRequest),
what comes meanwhile is held, bounded by `max_held`; what was not held is asked for again. What a venue does not send
again is told as Missed with its exact range: all that it does not answer, and what it fills (SequenceReset-GapFill)
unless it has sent other messages of the same gap again, which shows that it fills for administrative ones alone. So
messages are delivered in order, each number once. Source: FIX 4.4 with Errata 20030618, volume 2, "Session Protocol".

Used by workers/sources/fix.py, which owns socket, decoder and the file of numbers. Whether the feed delivers is not
judged here (workers/session.py). Nothing here reads a clock; times are ns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from workers.errors import DecodeError
from workers.fix_messages import (
    HEARTBEAT,
    LOGON,
    LOGOUT,
    REJECT,
    RESEND_REQUEST,
    SEQUENCE_RESET,
    TEST_REQUEST,
    Body,
    Identity,
    Received,
    encode,
)
from workers.fix_numbers import Numbers
from workers.fix_protocol import (
    TRANSITIONS,
    Action,
    Deliver,
    End,
    Event,
    LoggedOn,
    Message,
    Missed,
    Send,
    State,
)

DAY_NS: Final = 86_400_000_000_000
SILENCE: Final = 1.2  # of HeartBtInt, until a test request, and again until the connection is given up
RESEND_TRIES: Final = 3
_NO_NUMBER: Final = 1 << 63  # above all
_X, _W, _I = map(ord, "XWi")
_EXPECTING: Final = re.compile(r"too low.*?expect\w*\D{0,20}(\d{1,18})", re.IGNORECASE)


@dataclass(frozen=True)
class Terms:
    """How a session is kept. `resend_s`: wait for what was asked for; `max_held`: messages kept behind a gap."""

    heartbeat_s: float = 30.0
    resend_s: float = 5.0
    max_held: int = 4096
    reset: bool = False  # both sides begin from 1 at every logon
    login: Callable[[], tuple[str, str]] | None = None  # user name and password


class FixSession:
    """See the module. `expected`: the number that comes next; `due_ns`: call `tick` then."""

    def __init__(self, identity: Identity, numbers: Numbers, terms: Terms) -> None:
        """Not connected. `expected` begins where `numbers` says."""
        self.state = State.IDLE
        self.expected = numbers.next_in
        self.duplicates = self.rejected = self.overflows = self.resends_asked = self.resends_answered = 0
        self.waits = 0  # times that what was asked for did not come
        self._identity = identity
        self._numbers = numbers
        self._terms = terms
        self._heartbeat_ns = round(terms.heartbeat_s * 1e9)
        self._heard_ns = self._sent_ns = self._tested_ns = self._asked_ns = 0
        self._tests = 0
        self._tries = 0  # for the gap in hand; `_asked_ns`: of the last try, or the last message that it has brought
        self._asked_to = 0  # last number asked for
        self._filled: list[tuple[int, int]] = []  # of the gap in hand: ranges filled, messages sent again
        self._again = 0
        self._seen = 0  # highest number seen
        self._held: dict[int, Message] = {}
        self._sent: dict[int, tuple[str, tuple[tuple[int, str | int], ...], int]] = {}  # requests of this connection

    @property
    def seen(self) -> int:
        """The highest number that has come."""
        return max(self._seen, self.expected - 1)

    @property
    def held(self) -> int:
        """Messages that wait behind a gap."""
        return len(self._held)

    @property
    def due_ns(self) -> int:
        """When to call `tick` at the latest."""
        if self.state not in (State.ACTIVE, State.GAP):
            return self._heard_ns + DAY_NS
        silent_ns = (self._tested_ns or self._heard_ns) + round(SILENCE * self._heartbeat_ns)
        due_ns = min(self._sent_ns + self._heartbeat_ns, silent_ns)
        return min(due_ns, self._asked_ns + round(self._terms.resend_s * 1e9)) if self.state is State.GAP else due_ns

    # -- what the owner says

    def opened(self, now_ns: int) -> list[Action]:
        """The connection is there: log on."""
        self._move(Event.OPENED)
        self._held.clear()
        self._sent.clear()
        self._filled.clear()
        self._seen = self._again = 0
        self._tested_ns = 0
        self._heard_ns = now_ns
        body: list[tuple[int, str | int]] = [(98, 0), (108, round(self._terms.heartbeat_s))]
        if self._terms.reset:
            self._numbers.reset(now_ns)
            self.expected = 1
            body.append((141, "Y"))
        if self._terms.login is not None:
            user, password = self._terms.login()
            body += [(tag, text) for tag, text in ((553, user), (554, password)) if text]
        return [self._send(LOGON, body, now_ns)]

    def closed(self) -> None:
        """The connection is gone. What was held is asked for again after the next logon."""
        self._move(Event.CLOSED)
        self._held.clear()
        self._sent.clear()

    def leave(self, text: str, now_ns: int) -> list[Action]:
        """Log out."""
        if self.state not in (State.LOGON, State.ACTIVE, State.GAP):
            return []
        self._move(Event.LEAVE)
        return [self._send(LOGOUT, [(58, text)], now_ns)]

    def request(self, kind: str, body: Body, now_ns: int, *, keep: bool = True) -> tuple[int, Send]:
        """Send a request; its number, by which a refusal may name it. `keep`: sent again if the venue has missed it."""
        seq = self._numbers.next_out
        fields = tuple(body)
        if keep:
            self._sent[seq] = (kind, fields, now_ns)
        return seq, self._send(kind, fields, now_ns)

    def tick(self, now_ns: int) -> list[Action]:
        """Heartbeats, tests, gaps that nobody fills."""
        if self.state not in (State.ACTIVE, State.GAP):
            return []
        actions: list[Action] = []
        limit_ns = round(SILENCE * self._heartbeat_ns)
        if self._tested_ns and now_ns - self._tested_ns >= limit_ns:
            self._move(Event.SILENT)
            return [End(f"nothing came for {(now_ns - self._heard_ns) / 1e9:.1f} s, nor an answer to a test request")]
        if not self._tested_ns and now_ns - self._heard_ns >= limit_ns:
            self._tested_ns = now_ns
            self._tests += 1
            actions.append(self._send(TEST_REQUEST, [(112, f"TEST{self._tests}")], now_ns))
        if now_ns - self._sent_ns >= self._heartbeat_ns:
            actions.append(self._send(HEARTBEAT, [], now_ns))
        if self.state is State.GAP and now_ns - self._asked_ns >= round(self._terms.resend_s * 1e9):
            actions += self.late(now_ns)
        return actions

    def late(self, now_ns: int) -> list[Action]:
        """What was asked for does not come: ask again, or go on without it. Said by `tick`, and by replays of it."""
        if self.state is not State.GAP:
            return []
        self.waits += 1
        if self._tries < RESEND_TRIES:
            return [self._ask(now_ns)]
        return self._go_without(f"not sent again, asked for {self._tries} times", now_ns)

    def _go_without(self, reason: str, now_ns: int, until: int = _NO_NUMBER) -> list[Action]:
        to = min(until, min(self._held) if self._held else self._seen + 1)
        actions = self._judge()
        actions.append(Missed(self.expected, to, reason))
        self.expected = to
        return [*actions, *self._go_on(now_ns)]

    # -- what a replay of a capture says, where that lacks something

    def join(self, expected: int) -> None:
        """The session is there, and its next number is this one; nothing waits for a gap."""
        self.closed()
        for event in (Event.OPENED, Event.LOGGED_ON):
            self._move(event)
        self._seen = self._again = 0
        self._filled.clear()
        self.expected = expected

    def pass_over(self, reason: str, now_ns: int, until: int = _NO_NUMBER) -> list[Action]:
        """The feed had no gap below this number: what is missing will never come."""
        actions: list[Action] = []
        while self.state is State.GAP and self.expected < until:
            actions += self._go_without(reason, now_ns, until)
        return actions

    def take(self, heads: np.ndarray, start: int, now_ns: int) -> int:
        """How many messages from `start` on are market data in their turn: they are had, no `receive` is wanted."""
        if self.state is not State.ACTIVE:
            return 0
        rest = heads[start:]
        wanted = np.arange(self.expected, self.expected + len(rest), dtype=np.uint64)
        types = rest["type"]
        plain = (types == _X) | (types == _W) | (types == _I)
        plain &= (rest["seq"] == wanted) & (rest["possdup"] == 0)
        count = len(plain) if plain.all() else int(plain.argmin())
        if count:
            self.expected += count
            self._heard(now_ns)
        return count

    def receive(self, message: Message, now_ns: int) -> list[Action]:
        """A message has come, in its turn or not."""
        kind, seq, data = message.kind, message.seq, message.data
        if self.state in (State.IDLE, State.ENDED):
            return []
        self._heard(now_ns)
        if self.state is State.LOGON and kind not in (LOGON, LOGOUT, REJECT):
            return self._broken("the first message is not a logon", now_ns)
        if not seq:
            return self._broken("a message without MsgSeqNum", now_ns)
        try:
            if kind == LOGON:
                return self._logon(seq, Received(data), now_ns)
            if kind == LOGOUT:
                return self._logged_out(Received(data), now_ns)
            if self.state is State.LOGON:  # a reject of the logon
                self._move(Event.BROKEN)
                return [End(f"the logon was rejected: {Received(data).text(58)}", lasting=True)]
            if kind == SEQUENCE_RESET and not (reset := Received(data)).yes(123):
                return self._hard_reset(seq, reset, now_ns)
            if seq > self.expected:
                return self._ahead(message, now_ns)
            if seq < self.expected:
                if message.possdup:
                    self.duplicates += 1
                    return []
                return self._too_low(seq, now_ns)
            actions = self._accept(message, now_ns)
        except DecodeError as error:
            if seq == self.expected:
                self.expected += 1
            return [self._reject(seq, str(error), now_ns), *self._go_on(now_ns)]
        return [*actions, *self._go_on(now_ns)] if self.state is State.GAP else actions

    # -- messages of the session

    def _logon(self, seq: int, message: Received, now_ns: int) -> list[Action]:
        identity = self._identity
        for tag, wanted in ((8, identity.begin), (49, identity.target), (56, identity.sender)):
            if message.text(tag) != wanted:
                return self._broken(f"logon with {tag}={message.text(tag)!r}, not {wanted!r}", now_ns, lasting=True)
        first = self.state is State.LOGON
        actions: list[Action] = []
        if message.yes(141) and (seq < self.expected or not self._terms.reset):
            self.expected = seq
            self._numbers.reset(now_ns, next_in=seq, next_out=2 if first else 1)
            self._held.clear()
            self._seen = 0
            if not first:
                actions.append(
                    self._send(LOGON, [(98, 0), (108, self._heartbeat_ns // 1_000_000_000), (141, "Y")], now_ns)
                )
        if seq < self.expected:
            return [] if message.yes(43) else self._too_low(seq, now_ns)
        if first:
            if message.number(108) > 0:
                self._heartbeat_ns = message.number(108) * 1_000_000_000
            self._move(Event.LOGGED_ON)
            actions.append(LoggedOn())
        if seq > self.expected:
            self._held[seq] = Message(LOGON, seq, b"", done=True)
            self._seen = max(self._seen, seq)
            if self.state is State.ACTIVE:
                self._move(Event.AHEAD)
                self._tries = 0
                actions.insert(0, self._ask(now_ns))
            return actions
        self.expected = seq + 1
        return actions

    def _logged_out(self, message: Received, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        was = self.state
        if was is not State.LOGOUT:
            actions.append(self._send(LOGOUT, [], now_ns))
        if message.number(34) == self.expected:
            self.expected += 1
        self._move(Event.LOGGED_OUT)
        text = message.text(58)
        if was is State.LOGON:
            wanted = _EXPECTING.search(text)
            if wanted and int(wanted[1]) > self._numbers.next_out:  # a power cut took some of ours back
                self._numbers.next_out = int(wanted[1])
                return [*actions, End(f"the venue refuses the logon: {text}; goes on from there")]
            return [*actions, End(f"the venue refuses the logon{': ' + text if text else ''}", lasting=True)]
        return [*actions, End(f"logged out by the venue{': ' + text if text else ''}")]

    def _hard_reset(self, seq: int, message: Received, now_ns: int) -> list[Action]:
        """SequenceReset-Reset: its own number means nothing, and numbers may only grow."""
        to = message.number(36)
        if to < self.expected:
            return [
                self._reject(seq, f"NewSeqNo (36) is {message.text(36)!r}: must not be below {self.expected}", now_ns)
            ]
        actions: list[Action] = []
        if to > self.expected:
            actions.append(Missed(self.expected, to, "the venue has set its numbers forward"))
        self.expected = to
        self._drop_held()
        return [*actions, *self._go_on(now_ns)]

    def _ahead(self, message: Message, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        seq = message.seq
        done = message.kind == RESEND_REQUEST  # answered at once, or both sides would wait for each other
        if done:
            actions += self._resend(Received(message.data), now_ns)
        self._seen = max(self._seen, seq)
        if len(self._held) < self._terms.max_held:
            self._held[seq] = message._replace(done=done)
        elif seq not in self._held:
            self.overflows += 1  # asked for again when what is held has been let go
        if self.state is State.ACTIVE:
            self._move(Event.AHEAD)
            self._tries = 0
            actions.append(self._ask(now_ns))
        return actions

    def _accept(self, message: Message, now_ns: int) -> list[Action]:
        """The message whose turn it is."""
        kind, data = message.kind, message.data
        if not message.done:
            self._asked_ns = now_ns  # what was asked for is coming
        if kind == SEQUENCE_RESET:
            return self._gap_fill(message.seq, message.possdup, Received(data), now_ns)
        self.expected = message.seq + 1
        if message.done or kind == HEARTBEAT:
            return []
        if kind == TEST_REQUEST:
            return [self._send(HEARTBEAT, [(112, Received(data).text(112))], now_ns)]
        if kind == RESEND_REQUEST:
            return self._resend(Received(data), now_ns)
        actions: list[Action] = []
        if self.state is State.GAP and message.possdup:
            self._again += 1
            if message.seq >= self._asked_to:
                actions = self._judge()
        return [*actions, Deliver(kind, message.seq, data, message.ts_receive)]

    def _gap_fill(self, seq: int, possdup: bool, message: Received, now_ns: int) -> list[Action]:
        to = message.number(36)
        if to <= seq:
            self.expected = seq + 1
            return [self._reject(seq, f"NewSeqNo (36) is {message.text(36)!r}: must be above {seq}", now_ns)]
        asked = possdup or self.state is State.GAP
        self.expected = to
        self._drop_held()
        if asked:
            self._filled.append((seq, to))
        return self._judge() if self.state is not State.GAP or to > self._asked_to else []

    def _judge(self) -> list[Action]:
        """The hole is closed: was what the venue filled lost?"""
        lost: list[Action] = [Missed(first, last, "the venue does not send it again") for first, last in self._filled]
        if self._again:
            lost.clear()
        self._filled.clear()
        self._again = 0
        return lost

    def _resend(self, message: Received, now_ns: int) -> list[Action]:
        """Requests again, as possible duplicates; everything else is filled, since it means nothing any more."""
        begin, end, last = message.number(7), message.number(16), self._numbers.next_out - 1
        if begin < 1 or end < 0 or (end and end < begin):
            return [self._reject(message.number(34), "BeginSeqNo (7) or EndSeqNo (16) makes no sense", now_ns)]
        self.resends_answered += 1
        end = min(end, last) if end else last
        actions: list[Action] = []
        at = begin
        for seq in sorted(number for number in self._sent if begin <= number <= end):
            if seq > at:
                actions.append(self._fill(at, seq, now_ns))
            kind, body, first_ns = self._sent[seq]
            actions.append(Send(encode(self._identity, kind, seq, now_ns, body, first_sent_ns=first_ns)))
            at = seq + 1
        if at <= end:
            actions.append(self._fill(at, end + 1, now_ns))
        self._sent_ns = now_ns
        return actions

    def _fill(self, seq: int, to: int, now_ns: int) -> Send:
        body: Body = [(123, "Y"), (36, to)]
        return Send(encode(self._identity, SEQUENCE_RESET, seq, now_ns, body, first_sent_ns=now_ns))

    # -- gaps

    def _ask(self, now_ns: int) -> Send:
        self._tries += 1
        self.resends_asked += 1
        self._asked_ns = now_ns
        self._asked_to = min(self._held) - 1 if self._held else self._seen
        return self._send(RESEND_REQUEST, [(7, self.expected), (16, self._asked_to)], now_ns)

    def _go_on(self, now_ns: int) -> list[Action]:
        """Let go of what was held up to the next hole, and see to that."""
        actions: list[Action] = []
        while self.state is State.GAP and (held := self._held.pop(self.expected, None)) is not None:
            try:
                actions += self._accept(held, now_ns)
            except DecodeError as error:
                self.expected = held.seq + 1
                actions.append(self._reject(held.seq, str(error), now_ns))
        if self.state is not State.GAP:
            return actions
        if not self._held and self.expected > self._seen:
            self._move(Event.CAUGHT_UP)
        elif self.expected > self._asked_to:
            self._tries = 0
            actions.append(self._ask(now_ns))
        return actions

    def _drop_held(self) -> None:
        for seq in [number for number in self._held if number < self.expected]:
            del self._held[seq]

    # -- sending, and ends

    def _send(self, kind: str, body: Body, now_ns: int) -> Send:
        seq = self._numbers.next_out
        self._numbers.next_out = seq + 1  # before it is sent: a number that was used is never used again
        self._sent_ns = now_ns
        return Send(encode(self._identity, kind, seq, now_ns, body))

    def _reject(self, seq: int, text: str, now_ns: int) -> Send:
        self.rejected += 1
        return self._send(REJECT, [(45, seq), (58, text)], now_ns)

    def _too_low(self, seq: int, now_ns: int) -> list[Action]:
        return self._broken(f"MsgSeqNum too low, expecting {self.expected} but received {seq}", now_ns, lasting=True)

    def _broken(self, text: str, now_ns: int, *, lasting: bool = False) -> list[Action]:
        sent = self._send(LOGOUT, [(58, text)], now_ns)
        self._move(Event.BROKEN)
        return [sent, End(text, lasting)]

    def _heard(self, now_ns: int) -> None:
        self._heard_ns, self._tested_ns = now_ns, 0

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
