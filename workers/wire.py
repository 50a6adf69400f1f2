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

A replay endpoint (ROUTER; tcp: the port of the raw endpoint + 30) answers what any DEALER or REQ socket asks. A request
is one frame, a msgpack map (a DEALER sends that frame alone; a REQ's empty frame before it is echoed):

    {"kind": "range", "id": 7, "topic": "marketdata.tick.AAPL", "from": 120, "to": 180}    by topic sequence
    {"kind": "ring", "id": 8, "ring": 2, "from": 1000, "to": 2000}                         by ring sequence, any topic
    {"kind": "time", "id": 10, "topics": ["marketdata.tick.AAPL"], "from_ns": 1792300000000000000, "to_ns": 0}
    {"kind": "snapshot", "id": 9, "topic": "marketdata.tick.AAPL", "limit": 100}           or "symbol": "AAPL"

`id` is the client's own, an integer or a string, and optional. The answer is one message: a msgpack map, then raw
frames as above, ascending (`ring` answers have ring sequences in the place of topic sequences). The map has

    id, kind          as asked; kind "error" instead with `code` and `error`, a sentence that names the field
                      bad_request, unknown_symbol, unknown_ring, other_shard; busy: ask again later; no_journal: the
                      rings no longer go back so far, and nothing is recorded; journal_error: can't be read
    from, to          the range that this answer settles; where `to` is less than asked for, ask on from there, unless
                      it is beyond `topic_sequence` (`published` for rings): not published yet
    records           how many the frames have
    unavailable       [[from, to], ...] within it: published, and no longer to be found
    topic_sequence    last number given in the topic; a stream that goes on at the next one has no gap and no double
    as_of_ns          when this was, ns
    symbol, last_trade, quote, day, open_bars, as_of, history
                      snapshots: latest values (null where there are none) and, as [ring, sequence] pairs, up to where
                      each ring is in them; `history` counts records in one more frame, the last, which carries the
                      number 0: older records from the latest-value table, whose numbers are not known

`time` asks for up to 64 topics by `ts_publish`, [from_ns, to_ns), to_ns 0 = up to now; out of the journal and, where
they have it, the rings. Its answer has frames of one topic each, with the number 0 (not known), and

    topics, from_ns, to_ns, records, as_of_ns         as above
    topics_of         of each frame, the index of its topic in `topics`
    next              where the next answer begins: ask again with it, {"kind": "time", ..., "next": [...]}, until it is
                      nil. Records of one answer are older than all of the next; within a topic they are in order
    topic_sequences   with `next` nil: of each topic the last number given; subscribe first, then ask, and the stream
                      goes on at the number after it with neither gap nor double
    since_ns          the past is complete from here on; above from_ns if older records are no longer kept
    unavailable       [[ring, from, to], ...]: sequences that nobody has: the recorder was overrun, or a file was lost

A `ring` answer, too, comes out of the journal where the ring no longer has it. Topic numbers can't be told from a
journal, so `range` reaches as far as the rings do.

Used by fan-out and by subscribers; it does no I/O and imports nothing but the record layout.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, TYPE_NAMES, RecordType

WIRE_VERSION: Final = 1
REPLAY_PORT_OFFSET: Final = 30
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


def replay_endpoint(raw_endpoint: str) -> str | None:
    """The replay endpoint beside a raw one as the engine lays them out; None if that can't be told from its name."""
    scheme, _, address = raw_endpoint.partition("://")
    if scheme == "tcp":
        host, _, port = address.rpartition(":")
        replay_port = int(port) + REPLAY_PORT_OFFSET if port.isascii() and port.isdecimal() else 0
        return f"tcp://{host}:{replay_port}" if host and REPLAY_PORT_OFFSET < replay_port < 65536 else None
    folder, slash, name = address.rpartition("/")
    parts = name.split(".")
    if scheme == "ipc" and len(parts) == 3 and parts[1] == "raw":
        return f"ipc://{folder}{slash}{parts[0]}.replay.{parts[2]}"
    return None


def symbol_topic(record_type: int, symbol: str) -> str:
    """The topic of one symbol's records of one type, e.g. (RecordType.TICK, "AAPL") -> "marketdata.tick.AAPL"."""
    return f"{PREFIX}{TYPE_NAMES[record_type]}.{symbol}"
