"""What is done about holes in a numbered packet stream: wait for the other line, ask again, give up.

    hole seen --gap_wait--> asked --answer--> filled (or asked for the rest)
                               |--timeout, `retries` times--> lost: the arbiter goes on behind it
                               '-- no server to ask: lost at once after gap_wait

The order, the copies and the counting are native (`workers/_arbitration.pyx`, `arbitration.h`); this decides, seldom,
with the time passed in. Used by workers/sources/multicast.py. Sans-I/O: `step` returns the requests to send.

Every wait is bounded: a hole lives at most gap_wait + (retries + 1) * timeout, and what the rate limit adds. Requests
are limited by a bucket that fills with `per_second` and holds that many at most; only the first hole of a stream is
asked for, the next one when that is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from workers._arbitration import Arbiter

MAX_REQUEST_MESSAGES: Final = 0xFFFE  # 0xFFFF means end of session
MOLD_SESSION_BYTES: Final = 10


class Request(NamedTuple):
    """Messages [first, first + messages) of a session are wanted again."""

    key: bytes  # as Arbiter.holes gives it: the session, zero padded
    first: int
    messages: int

    def encode(self) -> bytes:
        """The request packet of "MoldUDP64 Protocol Specification" 1.00: session, sequence number, message count."""
        return self.key[:MOLD_SESSION_BYTES] + self.first.to_bytes(8, "big") + self.messages.to_bytes(2, "big")


class Hole(NamedTuple):
    """Messages [first, end) of stream number `stream` are missing since `since_ns`; what `Arbiter.holes` gives."""

    stream: int
    key: bytes
    first: int
    end: int
    since_ns: int


@dataclass(frozen=True)
class HolePolicy:
    """How long to wait for what; times in ns. `ask` False: there is no server to ask."""

    gap_wait_ns: int = 10_000_000
    ask: bool = False
    timeout_ns: int = 100_000_000  # for an answer
    retries: int = 3  # requests after the first
    per_second: float = 100.0  # requests, over all streams

    def __post_init__(self) -> None:
        """ValueError for what can't work."""
        if self.gap_wait_ns < 0 or self.timeout_ns <= 0 or self.retries < 0 or self.per_second <= 0:
            raise ValueError(f"impossible: {self}")


@dataclass
class _Attempt:
    """What has been done about the first hole of a stream."""

    key: bytes
    first: int  # where the hole began when it was asked for
    end: int
    sent: int  # requests for this very `first`
    next_ns: int  # when the next step is due


class Recovery:
    """The holes of one arbiter.

    Attributes:
        requests: sent so far.
        unanswered: holes that were given up although they had been asked for.
    """

    def __init__(self, arbiter: Arbiter, policy: HolePolicy) -> None:
        """Nothing is pending."""
        self.requests = 0
        self.unanswered = 0
        self._arbiter = arbiter
        self._policy = policy
        self._attempts: dict[int, _Attempt] = {}
        self._tokens = max(1.0, policy.per_second)
        self._filled_ns = 0

    def step(self, now_ns: int) -> tuple[list[Request], int | None]:
        """Give up what has waited long enough.

        Returns the requests to send, and when to call again (ns); None = there is no hole. What was given up stands in
        `arbiter.frames` afterwards.
        """
        wanted: list[Request] = []
        due_ns: int | None = None
        open_now = set()
        for hole in map(Hole._make, self._arbiter.holes()):
            open_now.add(hole.stream)
            next_ns = self._step_one(hole, now_ns, wanted)
            due_ns = next_ns if due_ns is None else min(due_ns, next_ns)
        for stream in self._attempts.keys() - open_now:
            del self._attempts[stream]
        return wanted, due_ns

    def _step_one(self, hole: Hole, now_ns: int, wanted: list[Request]) -> int:
        stream, key, first, end, since_ns = hole
        policy = self._policy
        attempt = self._attempts.get(stream)
        if attempt is not None and (attempt.key != key or not attempt.first <= first < attempt.end):
            attempt = None  # another hole
        if attempt is None:
            self._attempts.pop(stream, None)
            if now_ns < since_ns + policy.gap_wait_ns:
                return since_ns + policy.gap_wait_ns
            if not policy.ask:
                self._arbiter.give_up(stream)
                return now_ns
            attempt = self._attempts[stream] = _Attempt(key, first, end, 0, now_ns)
        elif attempt.first < first:  # some of it has come: ask for the rest at once
            attempt.first, attempt.sent, attempt.next_ns = first, 0, now_ns
        if now_ns < attempt.next_ns:
            return attempt.next_ns
        if attempt.sent > policy.retries:
            self.unanswered += 1
            del self._attempts[stream]
            self._arbiter.give_up(stream)
            return now_ns
        wait_ns = self._take_token(now_ns)
        if wait_ns:
            attempt.next_ns = now_ns + wait_ns
            return attempt.next_ns
        attempt.sent += 1
        attempt.next_ns = now_ns + policy.timeout_ns
        wanted.append(Request(key, first, min(end - first, MAX_REQUEST_MESSAGES)))
        self.requests += 1
        return attempt.next_ns

    def _take_token(self, now_ns: int) -> int:
        """0 = a request may be sent now; else how many ns to wait."""
        rate = self._policy.per_second
        if self._filled_ns:
            self._tokens = min(max(1.0, rate), self._tokens + max(0, now_ns - self._filled_ns) * rate / 1e9)
        self._filled_ns = now_ns
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        return max(1, round((1 - self._tokens) / rate * 1e9))
