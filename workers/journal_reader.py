"""Reads a journal: blocks in order, chosen by ring, sequence and time, their records where they lie in the mapped file.

For anybody who may read the folder: exports, queries, sealing, recovery, benchmarks. Needs no engine, changes nothing,
and may run while the recorder appends: a block that is not whole yet is the end of its segment. A block is only ever
yielded after its CRC has been checked (unless `verify` is False).

The last block of a segment is copied and not mapped, because it is the one that a recovering recorder may cut off.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES
from workers._crc32c import crc32c
from workers.journal_format import (
    HEADER_BYTES,
    KIND_GAP,
    KIND_RECORDS,
    SUFFIX,
    Header,
    SegmentName,
    parse_name,
    unpack_header,
)
from workers.journal_symbols import read_symbols


class SegmentFile(NamedTuple):
    """A segment file that exists."""

    name: SegmentName
    path: Path


class Block(NamedTuple):
    """One block, as far as it was asked for.

    `records` (shape (n,), dtype RECORD, read-only) may be views of a mapped file; empty if the block is a gap, and
    then [first_sequence, next_sequence) is what the ring lost before it could be recorded.
    """

    header: Header
    records: np.ndarray

    @property
    def is_gap(self) -> bool:
        """Whether this block says that records are missing."""
        return self.header.kind == KIND_GAP


def list_segments(folder: Path) -> list[SegmentFile]:
    """The segments of a journal, by ring, stream and sequence; empty if there is no journal.

    Raises:
        OSError: there is one, but it can't be listed: it is not known to be empty.
    """
    try:
        names = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    paths = [folder / name for name in names]
    return sorted(SegmentFile(name, path) for path in paths if (name := parse_name(path)) is not None)


def walk(fd: int, *, verify: bool) -> Iterator[tuple[int, Header]]:
    """(offset, header) of every whole block of a segment, up to the first that is not.

    Blocks are whole by their length; with `verify` by the CRC of their records too.
    """
    size_bytes = os.fstat(fd).st_size
    offset = 0
    mapped = np.zeros(0, np.uint8)
    buffer = bytearray()
    while offset + HEADER_BYTES <= size_bytes:
        header = unpack_header(os.pread(fd, HEADER_BYTES, offset))
        if header is None or offset + header.block_bytes > size_bytes:
            return
        if verify and header.length:
            payload_bytes = header.length * RECORD_SIZE_BYTES
            if len(buffer) < payload_bytes:
                buffer = bytearray(payload_bytes)
                mapped = np.frombuffer(buffer, np.uint8)
            read = os.preadv(fd, [mapped[:payload_bytes].data], offset + HEADER_BYTES)
            if read != payload_bytes or crc32c(mapped[:payload_bytes]) != header.payload_crc:
                return
        yield offset, header
        offset += header.block_bytes


def read_segment(path: Path, *, verify: bool = True) -> Iterator[Block]:
    """Every whole block of one segment, in order. Nothing if the file has gone meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        blocks = list(walk(fd, verify=False))
        if not blocks:
            return
        last_offset = blocks[-1][0]
        mapped = None
        if last_offset:
            mapped = mmap.mmap(fd, last_offset, prot=mmap.PROT_READ)
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        for offset, header in blocks:
            start, payload_bytes = offset + HEADER_BYTES, header.length * RECORD_SIZE_BYTES
            if mapped is not None and offset < last_offset:
                records = np.frombuffer(mapped, RECORD, header.length, start)
            else:
                data = os.pread(fd, payload_bytes, start)
                if len(data) != payload_bytes:
                    return
                records = np.frombuffer(data, RECORD)
            if verify and header.length and crc32c(records.view(np.uint8)) != header.payload_crc:
                return
            yield Block(header, records)
    finally:
        os.close(fd)


class JournalReader:
    """A journal folder, seen by a reader."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """Nothing is opened yet; segments that come later are seen by later calls."""
        self.folder = folder
        self.verify = verify
        self._symbols: dict[int, list[str]] = {}

    def blocks(
        self,
        *,
        ring_id: int | None = None,
        stream: int | None = None,
        from_sequence: int = 0,
        to_sequence: int | None = None,
        from_ns: int | None = None,
        to_ns: int | None = None,
        segments: Sequence[SegmentFile] | None = None,
    ) -> Iterator[Block]:
        """Blocks by ring, stream and sequence, gaps included.

        Args:
            ring_id, stream: only this ring, only as it was made at this time; None = all.
            from_sequence, to_sequence: only [from, to); blocks are cut to fit.
            from_ns, to_ns: only blocks in which a record may have its `ts_event` in [from, to); they are not cut.
            segments: only these, in this order; None = all that there are.
        """
        chosen = [
            segment
            for segment in (list_segments(self.folder) if segments is None else segments)
            if ring_id in (None, segment.name.ring_id) and stream in (None, segment.name.stream)
        ]
        for index, segment in enumerate(chosen):
            if to_sequence is not None and segment.name.first_sequence >= to_sequence:
                continue
            follower = chosen[index + 1].name if index + 1 < len(chosen) else None
            if (
                follower is not None
                and follower[:2] == segment.name[:2]
                and follower.first_sequence <= from_sequence
                and from_sequence
            ):
                continue
            for block in read_segment(segment.path, verify=self.verify):
                header = block.header
                if from_ns is not None and not block.is_gap and header.event_max_ns < from_ns:
                    continue
                if to_ns is not None and not block.is_gap and header.event_min_ns >= to_ns:
                    continue
                cut = _cut(block, from_sequence, to_sequence)
                if cut is not None:
                    yield cut

    def symbols(self, table: int) -> list[str]:
        """Symbols of a table of this journal, the index is the instrument id."""
        found = self._symbols.get(table)
        if found is None:
            found = self._symbols[table] = read_symbols(self.folder, table)
        return found

    def symbol(self, table: int, instrument_id: int) -> str:
        """One symbol; "" for records that concern no instrument or one that the table does not have."""
        if instrument_id >= len(self.symbols(table)):
            self._symbols[table] = read_symbols(self.folder, table)
        symbols = self._symbols[table]
        return symbols[instrument_id] if instrument_id < len(symbols) else ""


def _cut(block: Block, from_sequence: int, to_sequence: int | None) -> Block | None:
    """The part of a block that lies in [from, to); None if none does."""
    header = block.header
    first = max(header.first_sequence, from_sequence)
    end = header.next_sequence if to_sequence is None else min(header.next_sequence, to_sequence)
    if first >= end:
        return None
    if (first, end) == (header.first_sequence, header.next_sequence):
        return block
    if header.kind == KIND_RECORDS:
        records = block.records[first - header.first_sequence : end - header.first_sequence]
        return Block(header._replace(first_sequence=first, next_sequence=end, length=len(records)), records)
    return Block(header._replace(first_sequence=first, next_sequence=end), block.records)
