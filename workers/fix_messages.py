"""FIX messages as text and back, by simplefix: the administrative ones and requests; market data has its own decoder.

Called by workers/fix_session.py and workers/fix_requests.py. Pure: times are passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from workers.errors import DecodeError

Body = Iterable[tuple[int, str | int]]

LOGON: Final = "A"
HEARTBEAT: Final = "0"
TEST_REQUEST: Final = "1"
RESEND_REQUEST: Final = "2"
REJECT: Final = "3"
SEQUENCE_RESET: Final = "4"
LOGOUT: Final = "5"
MARKET_DATA: Final = frozenset("WXif")


@dataclass(frozen=True)
class Identity:
    """Who talks to whom: BeginString, and the comp ids of every message that we send."""

    begin: str
    sender: str
    target: str
    sender_sub: str = ""
    target_sub: str = ""


class Received:
    """One message that has come, by tags. DecodeError: it is no FIX message."""

    def __init__(self, data: bytes) -> None:
        import simplefix  # an extra: a feed that needs it is told so by name (workers/sources/fix_options.py)

        parser = simplefix.FixParser()
        parser.append_buffer(data)
        try:
            message = parser.get_message()
        except (simplefix.errors.ParsingError, ValueError) as error:
            raise DecodeError(f"a FIX message that can't be read: {error}") from None
        if message is None:
            raise DecodeError("a FIX message that can't be read")
        self._message = message

    def text(self, tag: int) -> str:
        """The value of a field; "" = it is not there."""
        value = self._message.get(tag)
        return value.decode("utf-8", "replace") if value is not None else ""

    def number(self, tag: int) -> int:
        """The value of a field as a number; -1 = there is none."""
        text = self.text(tag)
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else -1

    def yes(self, tag: int) -> bool:
        """Whether a field is Y."""
        return self.text(tag) == "Y"


def timestamp(now_ns: int) -> str:
    """UTCTimestamp with milliseconds."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y%m%d-%H:%M:%S}.{rest // 1_000_000:03d}"


def encode(
    identity: Identity, kind: str, seq: int, now_ns: int, body: Body, *, first_sent_ns: int | None = None
) -> bytes:
    """One message. `first_sent_ns`: it is sent again, and this is when it was sent first."""
    import simplefix

    message = simplefix.FixMessage()
    message.append_pair(8, identity.begin)
    message.append_pair(35, kind)
    message.append_pair(34, seq)
    message.append_pair(49, identity.sender)
    if identity.sender_sub:
        message.append_pair(50, identity.sender_sub)
    message.append_pair(56, identity.target)
    if identity.target_sub:
        message.append_pair(57, identity.target_sub)
    if first_sent_ns is not None:
        message.append_pair(43, "Y")
    message.append_pair(52, timestamp(now_ns))
    if first_sent_ns is not None:
        message.append_pair(122, timestamp(first_sent_ns))
    for tag, value in body:
        message.append_pair(tag, value)
    encoded: bytes = message.encode()
    return encoded


def kind_of(code: int) -> str:
    """MsgType of a head (`workers.decoders.fix_log.HEAD`)."""
    return chr(code & 0xFF) + (chr(code >> 8) if code > 0xFF else "")
