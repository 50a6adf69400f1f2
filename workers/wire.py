"""What fan-out puts on the wire: topics, and the 16-byte header of a raw frame.

A message on a raw endpoint has two frames:

    frame 1   the topic, ASCII and UTF-8: marketdata.tick.AAPL
    frame 2   header, 16 bytes, little-endian          records, 128 bytes each (shm.layout.RECORD)
              0  u16 version          1
              2  u16 ring             ring that all records of this message come from
              4  u32 count            number of records that follow
              8  u64 topic_sequence   number of the first of them within its topic, from 1

`topic_sequence` counts the records of one topic over all rings, so the next message of the topic carries
`topic_sequence + count`, and a hole says exactly how many records are missing. Each shard numbers its own topics: the
topics of a symbol exist on one shard only; `marketdata.batch`, `.feed.status`, `.error` and `.latency.alert` exist on
every shard, each with its own numbers.

Used by fan-out and by subscribers; it does no I/O and imports nothing but the record layout.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, TYPE_NAMES, RecordType

WIRE_VERSION: Final = 1
HEADER_SIZE_BYTES: Final = 16
HEADER: Final = struct.Struct("<HHIQ")

PREFIX: Final = "marketdata."
BATCH_TOPIC: Final = "marketdata.batch"
STATUS_TOPIC: Final = "marketdata.feed.status"
ERROR_TOPIC: Final = "marketdata.error"
ALERT_TOPIC: Final = "marketdata.latency.alert"

# Record types that have a topic per symbol.
SYMBOL_TYPES: Final = (
    RecordType.TICK,
    RecordType.QUOTE,
    RecordType.BAR,
    RecordType.TRADE,
    RecordType.LEVEL2,
    RecordType.NEWS,
)


class WireError(ValueError):
    """A frame that is not what this module describes; the message says in what."""


class Header(NamedTuple):
    """The header of a raw frame."""

    version: int
    ring: int
    record_count: int
    topic_sequence: int


def pack_header(ring: int, count: int, topic_sequence: int) -> bytes:
    """The 16 bytes before `count` records of ring `ring`, the first of which has that number in its topic."""
    return HEADER.pack(WIRE_VERSION, ring, count, topic_sequence)


def unpack_header(frame: bytes | memoryview) -> Header:
    """The header of a raw frame. WireError if the frame is cut, of another version, or not `count` records long."""
    if len(frame) < HEADER_SIZE_BYTES:
        raise WireError(f"raw frame has {len(frame)} bytes, its header alone has {HEADER_SIZE_BYTES}")
    header = Header._make(HEADER.unpack_from(frame))
    if header.version != WIRE_VERSION:
        raise WireError(f"raw frame has version {header.version}, this build reads version {WIRE_VERSION}")
    size_bytes = HEADER_SIZE_BYTES + header.record_count * RECORD_SIZE_BYTES
    if len(frame) != size_bytes:
        raise WireError(f"raw frame has {len(frame)} bytes, {header.record_count} records need {size_bytes}")
    return header


def unpack_frame(frame: bytes | memoryview) -> tuple[Header, np.ndarray]:
    """Header and records of a raw frame: shape (count,), dtype RECORD, a view of the frame that copies nothing."""
    header = unpack_header(frame)
    return header, np.frombuffer(frame, RECORD, count=header.record_count, offset=HEADER_SIZE_BYTES)


def symbol_topic(record_type: int, symbol: str) -> str:
    """The topic of one symbol's records of one type, e.g. (RecordType.TICK, "AAPL") -> "marketdata.tick.AAPL"."""
    return f"{PREFIX}{TYPE_NAMES[record_type]}.{symbol}"
