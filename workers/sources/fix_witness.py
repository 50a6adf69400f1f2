"""What a FIX feed tells of its wire to a capture: messages as they are worked off, and what a replay needs beside them.

    fix.py, fix_intake.py --connected, sent, received, noted, lost--> FixWitness --> WireLog (workers/wire_log.py)

A received message is told when its turn comes, with the time at which it arrived: so lines stand in the order in which
things were decided, and what was never worked off stands nowhere. Garbage goes with the message behind it. No message
says at which number a connection began, or that the wait for a gap was over: these are notes (`FixNote`).

Secrets are never told: of a logon that is sent, only that it was; in what comes, each of their bytes is a `*`, and the
checksum is made to fit, so that a replay can read the message. Makes nothing of what it tells, and keeps nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from workers.wire_log import Hidden, WireLog

CONNECTION: Final = "0"
OPENED: Final = "opened"  # a connection; the numbers are those that the logon goes by
TICK: Final = "tick"  # heartbeats and tests went out
LATE: Final = "late"  # what was asked for again did not come
GAP: Final = "gap"  # a number was too high
CAUGHT_UP: Final = "caught up"
ASKED: Final = "asked"  # requests went out
CLOSED: Final = "closed"  # the connection is given up; what is held is not had
# Username, Password, RawData, NewPassword, EncryptedPassword, EncryptedNewPassword.
_SECRET_FIELD: Final = re.compile(rb"(?<=\x01)(553|554|96|925|1402|1404)=([^\x01]+)")
_TRAILER_BYTES: Final = len(b"10=000\x01")

Number = Annotated[int, Meta(ge=0, lt=1 << 62)]


class FixNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has happened, and how the session stands then. `of` and `over` are `WireLog.noted`'s."""

    of: str
    what: str
    connection: Number  # of this capture, from 1
    expected: Number  # MsgSeqNum that comes next
    next_out: Number  # and of the next message to send
    asked: Number = 0  # MDReqID of the last request of this connection
    gap: bool = False  # messages are waited for
    over: bool = False
    skip: tuple[Number, Number] = (0, 0)  # of this message, so many records were published before a kill


class FixWitness:
    """See the module. All of it for the feed's thread."""

    def __init__(self, log: WireLog, secrets: Iterable[str]) -> None:
        """`secrets` are hidden wherever they stand; empty ones are none."""
        self._log = log
        self._connections = 0
        self._hidden = Hidden()
        for secret in filter(None, secrets):
            log.hide(secret)
            self._hidden.add(secret)

    def connected(self, at_ns: int, *, url: str, again: bool) -> None:
        """See `WireLog.connected`."""
        self._connections += 1
        self._log.connected(CONNECTION, at_ns, url=url, again=again)

    def sent(self, data: bytes, at_ns: int) -> None:
        """A message went out."""
        self._log.sent(CONNECTION, self._clean(data), at_ns, secret=b"\x0135=A\x01" in data[:32])

    def received(self, data: bytes, at_ns: int, *, whole: bool) -> None:
        """Bytes that came at `at_ns` are worked off. `whole`: the end of them is a message."""
        cleaned = self._clean(data)
        if whole and cleaned is not data:
            start = cleaned.rfind(b"8=FIX", 0, -_TRAILER_BYTES)
            total = sum(cleaned[max(start, 0) : -_TRAILER_BYTES]) & 0xFF
            cleaned = cleaned[:-_TRAILER_BYTES] + b"10=%03d\x01" % total
        self._log.received(CONNECTION, cleaned, at_ns)

    def noted(self, at_ns: int, what: str, **stands: Any) -> None:
        """Something that no message says; `stands`: the rest of a `FixNote`."""
        note = FixNote("session", what, self._connections, over=what == CLOSED, **stands)
        self._log.noted(CONNECTION, msgspec.json.encode(note).decode(), at_ns)

    def lost(self, at_ns: int, why: str) -> None:
        """See `WireLog.lost`."""
        self._log.lost(CONNECTION, at_ns, why)

    def _clean(self, data: bytes) -> bytes:
        """`data` itself where it holds no secret."""
        if _SECRET_FIELD.search(data):
            data = _SECRET_FIELD.sub(lambda found: found[1] + b"=" + b"*" * len(found[2]), data)
        return self._hidden.blank(data)
