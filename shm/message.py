"""A record in words: the dicts that JSON and msgpack clients get, with the field names of the public interface.

Called by fan-out (msgpack and JSON topics), by the HTTP API and by the command-line tools, so that a record looks the
same everywhere. Pure: it reads bytes and returns dicts; it does no I/O, knows no ring. What a record leaves undefined
(NaN, no trade id, no venue) is None. Times are ISO 8601 UTC with microseconds and `Z`.

News longer than one record: the text is cut into pieces of at most 64 bytes, one record each, published in one batch;
every piece but the last has Flag.CONTINUES. The text itself is the headline, then the URL, then the body, a line each;
the body may have several lines; trailing empty lines are left out (`news_pieces` writes it, `news_fields` reads it).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from math import isfinite
from time import gmtime
from typing import Any, Final

from shm.layout import (
    BODIES,
    FIELDS,
    RECORD_SIZE_BYTES,
    TYPE_NAMES,
    Action,
    Flag,
    RecordType,
    Side,
    Source,
    StatusCode,
)

NEWS_PIECE_BYTES: Final = 64

Record = Any  # 128 bytes: numpy.void or array of one of a record dtype, bytes, memoryview

_SIDES: Final = {int(side): side.name.lower() if side else None for side in Side}
_ACTIONS: Final = {int(action): action.name.lower() if action else None for action in Action}
_SOURCES: Final = {int(source): source.name.lower() for source in Source if source != Source.PLUGIN}
_CODES: Final = {int(code): code.name.lower() for code in StatusCode}
_FLAGS: Final = tuple((int(flag), str(flag.name)) for flag in Flag)
_CODE_OF_FORMAT: Final = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i8": "q", "f8": "d"}


def _struct_of(body: str) -> struct.Struct:
    """A struct that unpacks the head and one body of a record, in the order of the field table."""
    text, at = "<", 0
    for field in sorted((f for f in FIELDS if f.body in ("head", body)), key=lambda f: f.offset):
        code = f"{field.type[1:]}s" if field.type[0] == "S" else _CODE_OF_FORMAT[field.type]
        text += f"{field.offset - at}x{code}"
        at = field.offset + field.dtype.itemsize
    return struct.Struct(f"{text}{RECORD_SIZE_BYTES - at}x")


_STRUCTS: Final = {body: _struct_of(body) for body in BODIES}
_HEAD: Final = _struct_of("head")
_BODY_OF_TYPE: Final = (
    None,
    *(_STRUCTS[name] for name in ("tick", "quote", "bar", "tick", "level2", "news", "status")),
)
_HEAD_FIELDS: Final = 14


def iso_time(time_ns: int) -> str:
    """`time_ns` (ns since the Unix epoch) as ISO 8601 UTC with microseconds: 2024-03-01T14:30:00.000123Z."""
    seconds, rest_ns = divmod(int(time_ns), 1_000_000_000)
    return f"{_iso_second(seconds)}.{rest_ns // 1000:06d}Z"


@lru_cache(maxsize=4096)
def _iso_second(seconds: int) -> str:
    t = gmtime(seconds)
    return f"{t.tm_year:04d}-{t.tm_mon:02d}-{t.tm_mday:02d}T{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d}"


@lru_cache(maxsize=4096)
def _flag_tuple(flags: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _FLAGS if flags & bit)


def flag_names(flags: int) -> list[str]:
    """Names of the bits set in a record's flags, lowest bit first: ["OUTLIER", "LATE"]."""
    return list(_flag_tuple(int(flags)))


def source_name(source: int, names: Mapping[int, str] | None = None) -> str:
    """DataSource value of a source code; `names` holds those of plug-ins, code -> name (shm.source_names)."""
    code = int(source)
    found = _SOURCES.get(code) or (names.get(code) if names is not None else None)
    return found or f"plugin_{code - Source.PLUGIN}"


def type_name(record_type: int) -> str:
    """DataType value of a record type; "unknown" where there is none."""
    return TYPE_NAMES[record_type] if 0 < record_type < len(TYPE_NAMES) else "unknown"


def data_fields(record: Record) -> dict[str, Any]:
    """The `data` object of one record: the fields of its type and `timestamp` (its ts_event).

    Args:
        record: one record, 128 bytes; longer buffers are read at their start.

    Raises:
        ValueError: record_type is none of RecordType.
    """
    values = _unpack(_bytes_of(record))
    return _data(values)


def payload(
    record: Record,
    symbol: str | None,
    topic_sequence: int | None = None,
    *,
    source_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """The `payload` object of one record's message.

    `latency_ms` is ts_receive - ts_event in ms, how old the data was when it got here (None where either is unknown);
    `sequence` is the ring's. `topic_sequence` is included where it is given. ValueError as `data_fields`.
    """
    return payload_at(_bytes_of(record), 0, symbol, topic_sequence, source_names=source_names)


def payload_at(
    buffer: bytes | memoryview,
    offset: int,
    symbol: str | None,
    topic_sequence: int | None = None,
    *,
    source_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """As `payload`, for the record that starts `offset` bytes into a buffer; saves a copy where there are many."""
    values = _unpack(buffer, offset)
    sequence, ts_event, ts_receive, _, _, record_type, source, flags = values[:8]
    found: dict[str, Any] = {
        "symbol": symbol,
        "data_type": TYPE_NAMES[record_type],
        "data": _data(values),
        "latency_ms": (ts_receive - ts_event) / 1e6 if ts_event and ts_receive else None,
        "source": source_name(source, source_names),
        "sequence": sequence,
        "flags": _flag_tuple(flags),
    }
    if topic_sequence is not None:
        found["topic_sequence"] = topic_sequence
    return found


def news_pieces(headline: str, body: str = "", url: str = "") -> list[bytes]:
    """The text of a news item cut for records, each piece 1 to 64 bytes; set Flag.CONTINUES on all but the last."""
    head = " ".join(headline.splitlines()), " ".join(url.split())
    text = "\n".join((*head, body)).rstrip("\n").encode() or b" "
    return [text[at : at + NEWS_PIECE_BYTES] for at in range(0, len(text), NEWS_PIECE_BYTES)]


def news_fields(records: Iterable[Record]) -> dict[str, Any]:
    """`data` of a news item from all its records, in order; `timestamp` is the first one's."""
    pieces = [_unpack(_bytes_of(record)) for record in records]
    return _news(b"".join(values[_HEAD_FIELDS].rstrip(b"\0") for values in pieces), pieces[0][1])


def _bytes_of(record: Record) -> bytes:
    tobytes: Callable[[], bytes] | None = getattr(record, "tobytes", None)
    return tobytes() if tobytes is not None else bytes(record)


def _unpack(buffer: bytes | memoryview, offset: int = 0) -> tuple[Any, ...]:
    record_type = buffer[offset + 36]
    body = _BODY_OF_TYPE[record_type] if record_type < len(_BODY_OF_TYPE) else None
    if body is None:
        raise ValueError(f"record_type is {record_type}, must be 1 to {len(_BODY_OF_TYPE) - 1}")
    return body.unpack_from(buffer, offset)


def _data(values: tuple[Any, ...]) -> dict[str, Any]:
    return _BUILDERS[values[5]](values)


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _text(value: bytes) -> str | None:
    return value.rstrip(b"\0").decode("utf-8", "replace") or None


def _trade(values: tuple[Any, ...]) -> dict[str, Any]:
    price, size, trade_id = values[_HEAD_FIELDS : _HEAD_FIELDS + 3]
    return {
        "timestamp": iso_time(values[1]),
        "price": _number(price),
        "size": _number(size),
        "exchange": _text(values[13]),
        "trade_id": trade_id or None,
        "side": _SIDES.get(values[11]),
    }


def _quote(values: tuple[Any, ...]) -> dict[str, Any]:
    bid, ask, bid_size, ask_size, mid, spread = values[_HEAD_FIELDS : _HEAD_FIELDS + 6]
    return {
        "timestamp": iso_time(values[1]),
        "bid": _number(bid),
        "ask": _number(ask),
        "bid_size": _number(bid_size),
        "ask_size": _number(ask_size),
        "mid": _number(mid),
        "spread": _number(spread),
    }


def _bar(values: tuple[Any, ...]) -> dict[str, Any]:
    open_, high, low, close, volume, vwap, interval_s, trade_count = values[_HEAD_FIELDS : _HEAD_FIELDS + 8]
    return {
        "timestamp": iso_time(values[1]),
        "open": _number(open_),
        "high": _number(high),
        "low": _number(low),
        "close": _number(close),
        "volume": _number(volume),
        "vwap": _number(vwap),
        "trade_count": trade_count,
        "interval": interval_s,
    }


def _level2(values: tuple[Any, ...]) -> dict[str, Any]:
    price, size, _, level, action = values[_HEAD_FIELDS : _HEAD_FIELDS + 5]
    return {
        "timestamp": iso_time(values[1]),
        "side": _SIDES.get(values[11]),
        "price": _number(price),
        "size": _number(size),
        "level": level,
        "action": _ACTIONS.get(action),
    }


def _news(text: bytes, ts_event: int) -> dict[str, Any]:
    headline, url, body = [*text.decode("utf-8", "replace").split("\n", 2), "", ""][:3]
    return {"timestamp": iso_time(ts_event), "headline": headline, "body": body or None, "url": url or None}


def _news_record(values: tuple[Any, ...]) -> dict[str, Any]:
    return _news(values[_HEAD_FIELDS].rstrip(b"\0"), values[1])


def _status(values: tuple[Any, ...]) -> dict[str, Any]:
    code, from_sequence, to_sequence, text = values[_HEAD_FIELDS : _HEAD_FIELDS + 4]
    data = {
        "timestamp": iso_time(values[1]),
        "code": _CODES.get(code, str(code)),
        "feed_id": values[9],
        "from": from_sequence,
        "to": to_sequence,
        "text": _text(text),
    }
    if code == StatusCode.TRADING_STATUS:
        # "STATE: what the venue says": shm.layout.TRADING_STATES
        data["state"], _, data["detail"] = (data["text"] or "").partition(": ")
        data["exchange"] = _text(values[13])
    if code == StatusCode.LATENCY_ALERT and from_sequence:
        # "HOP PROCESS", p99 and threshold in ns: engine/alerts.py
        hop, _, process = (data["text"] or "").partition(" ")
        data |= {
            "state": "raised" if from_sequence > to_sequence else "cleared",
            "hop": hop,
            "process": process,
            "p99_ms": from_sequence / 1e6,
            "threshold_ms": to_sequence / 1e6,
        }
    return data


_BUILDERS: Final[dict[int, Callable[[tuple[Any, ...]], dict[str, Any]]]] = {
    RecordType.TICK: _trade,
    RecordType.QUOTE: _quote,
    RecordType.BAR: _bar,
    RecordType.TRADE: _trade,
    RecordType.LEVEL2: _level2,
    RecordType.NEWS: _news_record,
    RecordType.STATUS: _status,
}
