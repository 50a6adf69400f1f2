"""The language of WebSocket clients: requests, topics with wildcards, answers, frames (api.md, "WebSocket").

Pure: bytes in, requests or a RequestError out; values in, frames out. It knows no socket, no ring and no client. Used
by `gateway.py` and its parts, and by tests.

    client   {"type":"subscribe","topics":["marketdata.tick.AAPL","marketdata.quote.*"],"snapshot":true,"id":7}
             {"type":"unsubscribe","topics":[...]}   {"type":"ping"}   {"type":"auth","token":"..."}
    server   {"type":"data","topic":"marketdata.tick.AAPL","data":{...}}        "snapshot":true on a last value
             {"type":"subscribed","topics":[...],"id":7}   {"type":"unsubscribed",...}   {"type":"pong"}
             {"type":"authorised"}   {"type":"error","field":"topics[1]","message":"..."}
             {"type":"gap","topic":...,"ring":2,"from":10,"to":25,"count":3,"reason":"conflated"}

A gap is half open: of this topic, what has a sequence of ring `ring` from `from` up to but not including `to` did not
come; `count` says how many messages that were, null where nobody can know (reason "overrun").

Topics: marketdata.TYPE.SYMBOL, where TYPE may be `*` and SYMBOL may end in `*`; marketdata.error,
marketdata.feed.status, marketdata.latency.alert; and marketdata.* for everything. TYPE status means a symbol's trading
status, whose messages have the topic marketdata.feed.status. A message that several topics of a client match comes
once.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from shm.layout import SYMBOL_SIZE_BYTES, TYPE_NAMES, RecordType
from workers.wire import ALERT_TOPIC, ERROR_TOPIC, PREFIX, STATUS_TOPIC, SYMBOL_TYPES

ANY_TYPE: Final = 0
EVERYTHING: Final = -1
SPECIAL: Final = -2
ALL_TOPICS: Final = f"{PREFIX}*"
SPECIAL_TOPICS: Final = (STATUS_TOPIC, ERROR_TOPIC, ALERT_TOPIC)
MAX_ECHO_CHARS: Final = 64  # of what a client sent, in an error message

_TYPE_OF_NAME: Final = {TYPE_NAMES[kind]: int(kind) for kind in (*SYMBOL_TYPES, RecordType.STATUS)}
_TEXT_FRAME: Final = 0x81  # FIN and opcode 1, RFC 6455 section 5.2

WhenSlow = Literal["conflate", "cut"]


class Pattern(NamedTuple):
    """Which topics are meant: a record type (or ANY_TYPE, EVERYTHING, SPECIAL), and a symbol or the start of one."""

    kind: int
    text: str  # symbol, start of symbols, or for SPECIAL the whole topic
    is_prefix: bool = False

    def matches(self, kind: int, symbol: str) -> bool:
        """Whether it means the topic of that record type and symbol (for special topics: SPECIAL and the topic)."""
        if self.kind == EVERYTHING:
            return True
        if self.kind != kind and not (self.kind == ANY_TYPE and kind > 0):
            return False
        return symbol.startswith(self.text) if self.is_prefix else symbol == self.text


class RequestError(ValueError):
    """A request that can't be served; `field` is the part of it that is wrong, `request_id` its id if it had one."""

    def __init__(self, field: str, message: str, request_id: int | str | None = None) -> None:
        """`message` is for the people who wrote the client."""
        super().__init__(message)
        self.field = field
        self.message = message
        self.request_id = request_id


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    id: int | str | None = None  # comes back in the answer


class Subscribe(_Request, frozen=True, kw_only=True, tag="subscribe"):
    """Topics wanted from now on; with `snapshot` their last values first. `when_slow` holds for the whole client."""

    topics: list[str]
    snapshot: bool = False
    when_slow: WhenSlow | None = None


class Unsubscribe(_Request, frozen=True, kw_only=True, tag="unsubscribe"):
    """Topics no longer wanted, written as they were subscribed to."""

    topics: list[str]


class Ping(_Request, frozen=True, kw_only=True, tag="ping"):
    """Answered with pong."""


class Auth(_Request, frozen=True, kw_only=True, tag="auth"):
    """The bearer token, for clients that can't send a header (browsers)."""

    token: str


Request = Subscribe | Unsubscribe | Ping | Auth

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_encode: Final = msgspec.json.Encoder().encode
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_NAMED = re.compile(r"field `([^`]*)`")


def decode_request(data: bytes) -> Request:
    """A client's message. Raises RequestError, which names the field."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        text = str(error)
        where = _WHERE.search(text)
        named = _NAMED.search(text)
        field = (where and where.group(1)) or (named and named.group(1)) or ""
        raise RequestError(field[:MAX_ECHO_CHARS], text[:256]) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("", f"not JSON: {error}"[:256]) from None
    except RecursionError:
        raise RequestError("", "not JSON: nested too deep") from None


def parse_topic(topic: str, field: str) -> Pattern:
    """The pattern that a topic stands for. Raises RequestError about `field`."""
    if topic == ALL_TOPICS:
        return Pattern(EVERYTHING, "", True)
    if topic in SPECIAL_TOPICS:
        return Pattern(SPECIAL, topic)
    shown = repr(topic[:MAX_ECHO_CHARS])
    kind_name, dot, symbol = topic.removeprefix(PREFIX).partition(".")
    if not topic.startswith(PREFIX) or not dot or not symbol:
        raise RequestError(
            field, f"{shown} is no topic; expected marketdata.TYPE.SYMBOL, {', '.join(SPECIAL_TOPICS)} or {ALL_TOPICS}"
        )
    kind = ANY_TYPE if kind_name == "*" else _TYPE_OF_NAME.get(kind_name)
    if kind is None:
        raise RequestError(field, f"{shown}: the type must be * or one of {', '.join(_TYPE_OF_NAME)}")
    is_prefix = symbol.endswith("*")
    text = symbol[:-1] if is_prefix else symbol
    if "*" in text:
        raise RequestError(field, f"{shown}: in the symbol * may stand at the end only")
    if len(text.encode(errors="replace")) > SYMBOL_SIZE_BYTES or not text.isprintable() or " " in text:
        raise RequestError(field, f"{shown}: a symbol has at most {SYMBOL_SIZE_BYTES} bytes and no blanks")
    return Pattern(kind, text, is_prefix)


def parse_topics(topics: list[str]) -> dict[Pattern, str]:
    """Pattern -> topic as written, of a request's `topics`. Raises RequestError naming the first that is none."""
    if not topics:
        raise RequestError("topics", "topics is empty")
    return {parse_topic(topic, f"topics[{index}]"): topic for index, topic in enumerate(topics)}


def flatten(payload: dict[str, Any], ring: int | None) -> dict[str, Any]:
    """The flat `data` of a WebSocket message from a payload of shm.message (which has it in two levels)."""
    return {
        "symbol": payload["symbol"],
        "data_type": payload["data_type"],
        "source": payload["source"],
        "sequence": payload["sequence"],
        "ring": ring,
        "latency_ms": payload["latency_ms"],
        "flags": payload["flags"],
        **payload["data"],
    }


def frame(text: bytes) -> bytes:
    """One unmasked text frame of a server, whole: the same bytes for every client (RFC 6455 section 5.2)."""
    size = len(text)
    if size < 126:
        return bytes((_TEXT_FRAME, size)) + text
    if size < 65536:
        return bytes((_TEXT_FRAME, 126)) + size.to_bytes(2, "big") + text
    return bytes((_TEXT_FRAME, 127)) + size.to_bytes(8, "big") + text


def data_frame(topic: str, data: dict[str, Any], *, snapshot: bool = False) -> bytes:
    """A data message; `snapshot` marks a last value from before the subscription."""
    message: dict[str, Any] = {"type": "data", "topic": topic, "data": data}
    if snapshot:
        message["snapshot"] = True
    return frame(_encode(message))


def gap_frame(topic: str, ring: int, lost: tuple[int, int], count: int | None, reason: str) -> bytes:
    """What of a topic did not come, `lost` half open; see the module's docstring."""
    return frame(
        _encode(
            {
                "type": "gap",
                "topic": topic,
                "ring": ring,
                "from": lost[0],
                "to": lost[1],
                "count": count,
                "reason": reason,
            }
        )
    )


def answer_frame(kind: str, request_id: int | str | None = None, **fields: object) -> bytes:
    """subscribed, unsubscribed, pong, authorised or error."""
    message: dict[str, object] = {"type": kind, **fields}
    if request_id is not None:
        message["id"] = request_id
    return frame(_encode(message))
