"""What stands in a journal file: blocks, their headers, the names of the files. Bytes in, facts out; no I/O.

Used by the writer (workers/journal.py) and the readers (workers/journal_reader.py). A segment file is blocks, one
behind the other, and nothing else:

    segment   r02-<stream>-<first sequence>-<hour>.tkj
              | header 128 bytes | length x 128 bytes of records | header | records | header of a gap | ...

    header    0   char[8] magic            "TKJOURN1"
              8   u16  version             of this table
              10  u8   kind                1 records, 2 gap
              11  u8   ring
              12  u32  epoch               of the ring when the records were read: how many writers it had had
              16  i64  stream              when the ring was made, ns: a ring made anew counts from 1 again
              24  u64  first_sequence      of the records, or of the gap
              32  u64  next_sequence       one past the last; the records of a block have no hole between them
              40  u32  length              records that follow; next_sequence - first_sequence, or 0 (gap)
              44  u32  table               which symbol table the instrument ids refer to (workers/journal_symbols.py)
              48  i64  publish_min, 56 publish_max       of ts_publish over the records, ns
              64  i64  event_min, 72 event_max           of ts_event
              80  u64  schema              shm.layout.schema_hash(): which record layout
              88  i64  written             when the block was handed to the file system, ns
              120 u32  payload_crc         CRC-32C of the records
              124 u32  header_crc          CRC-32C of the 124 bytes before it

Headers are as long as a record, so that records stay aligned in a mapped file. All numbers are little-endian.
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD_SIZE_BYTES, schema_hash
from workers._crc32c import crc32c

HEADER_BYTES: Final = RECORD_SIZE_BYTES
HOUR_NS: Final = 3_600_000_000_000
KIND_RECORDS: Final = 1
KIND_GAP: Final = 2
MAX_BLOCK_RECORDS: Final = 1 << 20
SUFFIX: Final = ".tkj"

_MAGIC: Final = b"TKJOURN1"
_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<8sHBBIqQQIIqqqqQq24xI")
_CRC: Final = struct.Struct("<I")
_SCHEMA: Final = schema_hash()
_NAME: Final = re.compile(r"r(\d\d)-(\d{19})-(\d{20})-(\d{8}T\d\d)\.tkj")


class Header(NamedTuple):
    """The header of one block; times in ns since the Unix epoch."""

    kind: int
    ring_id: int
    epoch: int
    stream: int
    first_sequence: int
    next_sequence: int
    length: int
    table: int
    publish_min_ns: int
    publish_max_ns: int
    event_min_ns: int
    event_max_ns: int
    written_ns: int
    payload_crc: int

    @property
    def block_bytes(self) -> int:
        """Length of the block with this header."""
        return HEADER_BYTES + self.length * RECORD_SIZE_BYTES


class SegmentName(NamedTuple):
    """What the name of a segment file says. Sorted: by ring, then stream, then sequence."""

    ring_id: int
    stream: int
    first_sequence: int
    hour: int  # hours since the Unix epoch, of the wall clock when the segment was begun

    @property
    def file_name(self) -> str:
        """The name of the file."""
        hour = datetime.fromtimestamp(self.hour * 3600, UTC).strftime("%Y%m%dT%H")
        return f"r{self.ring_id:02}-{self.stream:019}-{self.first_sequence:020}-{hour}{SUFFIX}"


def parse_name(path: Path) -> SegmentName | None:
    """What a file's name says; None if it is no segment's."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        hour = datetime.strptime(match[4], "%Y%m%dT%H").replace(tzinfo=UTC)
    except ValueError:
        return None
    return SegmentName(int(match[1]), int(match[2]), int(match[3]), int(hour.timestamp()) // 3600)


def pack_header(header: Header) -> bytes:
    """The header's 128 bytes."""
    body = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        header.kind,
        header.ring_id,
        header.epoch,
        header.stream,
        header.first_sequence,
        header.next_sequence,
        header.length,
        header.table,
        header.publish_min_ns,
        header.publish_max_ns,
        header.event_min_ns,
        header.event_max_ns,
        _SCHEMA,
        header.written_ns,
        header.payload_crc,
    )
    return body + _CRC.pack(crc32c(body))


def unpack_header(data: bytes) -> Header | None:
    """The header in 128 bytes; None if they are none, are damaged, or tell of another layout."""
    if len(data) != HEADER_BYTES or data[:8] != _MAGIC:
        return None
    if _CRC.unpack_from(data, HEADER_BYTES - 4)[0] != crc32c(data[: HEADER_BYTES - 4]):
        return None
    fields = _FIELDS.unpack_from(data)
    version, kind, schema = fields[1], fields[2], fields[14]
    if version != _VERSION or schema != _SCHEMA:
        return None
    header = Header._make((*fields[2:14], *fields[15:]))
    span = header.next_sequence - header.first_sequence
    whole = (kind == KIND_RECORDS and 0 < header.length == span <= MAX_BLOCK_RECORDS) or (
        kind == KIND_GAP and header.length == 0 < span
    )
    return header if whole else None


def records_header(
    records: np.ndarray, *, ring_id: int, stream: int, epoch: int, table: int, written_ns: int
) -> Header:
    """The header for records of one ring without a hole, shape (1..MAX_BLOCK_RECORDS,), dtype RECORD, contiguous."""
    publish, event = records["ts_publish"], records["ts_event"]
    return Header(
        KIND_RECORDS,
        ring_id,
        epoch,
        stream,
        int(records["sequence"][0]),
        int(records["sequence"][-1]) + 1,
        len(records),
        table,
        int(publish.min()),
        int(publish.max()),
        int(event.min()),
        int(event.max()),
        written_ns,
        crc32c(records.view(np.uint8)),
    )


def gap_header(gap: tuple[int, int], *, ring_id: int, stream: int, epoch: int, table: int, written_ns: int) -> Header:
    """The header that stands for records [from, to) that were overrun before they were read."""
    at = written_ns
    return Header(KIND_GAP, ring_id, epoch, stream, gap[0], gap[1], 0, table, at, at, at, at, written_ns, 0)


def hour_of(ns: int) -> int:
    """Hours since the Unix epoch."""
    return ns // HOUR_NS
