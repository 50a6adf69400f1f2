"""L2 without Redis: the records of one symbol out of the journal, found by the headers of its blocks.

Implements workers.tier.Tier; used by the historian. Reads the recorder's folder while the recorder writes there and
removes; changes nothing. What is remembered is small: of each block its place, its header and a mask of 256 bits that
says which instruments can't be in it, made when the block is first read.

Blocks are read from the one with the newest `ts_event` on, until those left can't hold any newer record than the
`limit` that are there. A block whose CRC does not fit is left out and counted (`damaged`).
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Final

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES
from workers._crc32c import crc32c
from workers.journal_format import HEADER_BYTES, KIND_RECORDS, Header, SegmentName, unpack_header
from workers.journal_reader import SegmentFile, list_segments
from workers.journal_symbols import read_symbols, symbols_path
from workers.tier import TierDown, Wanted
from workers.tier_order import Gathered

_MASK_BITS: Final = 256


class _Block:
    """A block of records: where it is, what its header says, which instruments it may have."""

    __slots__ = ("header", "mask", "offset", "segment")

    def __init__(self, segment: _Segment, offset: int, header: Header) -> None:
        self.segment = segment
        self.offset = offset
        self.header = header
        self.mask: int | None = None  # bit `instrument id % 256`; None = never read

    def may_have(self, instrument_id: int) -> bool:
        return self.mask is None or bool(self.mask >> (instrument_id % _MASK_BITS) & 1)


class _Segment:
    """The whole blocks of one segment file, as far as they have been seen."""

    def __init__(self, file: SegmentFile) -> None:
        self.path = file.path
        self.end_bytes = 0
        self.blocks: list[_Block] = []

    def follow(self) -> bool:
        """Take in what was appended; False if the file has gone."""
        try:
            size_bytes = self.path.stat().st_size
            if size_bytes < self.end_bytes:  # a recovering recorder has cut its last block off
                self.blocks, self.end_bytes = [], 0
            if size_bytes == self.end_bytes:
                return True
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            while self.end_bytes + HEADER_BYTES <= size_bytes:
                header = unpack_header(os.pread(fd, HEADER_BYTES, self.end_bytes))
                if header is None or self.end_bytes + header.block_bytes > size_bytes:
                    break
                if header.kind == KIND_RECORDS:
                    self.blocks.append(_Block(self, self.end_bytes, header))
                self.end_bytes += header.block_bytes
        finally:
            os.close(fd)
        return True


class JournalTier:
    """The journal of one engine as a tier.

    Attributes:
        damaged: blocks that were left out because their CRC does not fit.
    """

    level = "L2"
    name = "journal"

    def __init__(self, folder: Path, timeout_s: float = 5.0) -> None:
        """`folder` is the journal's own; it need not exist yet. A question that takes longer gives TierDown."""
        self.damaged = 0
        self._folder = folder
        self._timeout_s = timeout_s
        self._segments: dict[SegmentName, _Segment] = {}
        self._symbols: dict[int, tuple[int, dict[str, int]]] = {}  # table -> (bytes of its file, symbol -> id)
        self._open: dict[Path, tuple[int, mmap.mmap | None]] = {}  # during one question

    def read(self, wanted: Wanted) -> np.ndarray:
        """See workers.tier.Tier."""
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return self._read(wanted, deadline_s)
        except OSError as error:
            raise TierDown(f"{error.strerror or error}: {self._folder}") from error
        finally:
            self._close_files()

    def holds(self, ring_id: int, publish_ns: int) -> bool:
        """Whether everything of a ring that was published up to `publish_ns` is here: something later is."""
        self._follow()
        newest = max((name for name in self._segments if name.ring_id == ring_id), default=None)
        blocks = self._segments[newest].blocks if newest is not None else []
        return bool(blocks) and blocks[-1].header.publish_max_ns > publish_ns

    def close(self) -> None:
        """See workers.tier.Tier."""
        self._close_files()
        self._segments.clear()
        self._symbols.clear()

    def _read(self, wanted: Wanted, deadline_s: float) -> np.ndarray:
        self._follow()
        gathered = Gathered(wanted)
        to_ns = wanted.to_ns
        if wanted.before is not None:
            to_ns = wanted.before.ts_event + 1 if to_ns is None else min(to_ns, wanted.before.ts_event + 1)
        ids: dict[int, int | None] = {}
        for block in self._candidates(wanted.from_ns, to_ns):
            if gathered.floor_ns is not None and block.header.event_max_ns < gathered.floor_ns:
                break
            if time.monotonic() > deadline_s:
                raise TierDown(f"took longer than {self._timeout_s:g} s")
            table = block.header.table
            if table not in ids:
                ids[table] = self._id_of(table, wanted.symbol)
            instrument_id = ids[table]
            if instrument_id is None or not block.may_have(instrument_id):
                continue
            found = self._records(block, instrument_id)
            if found is None or not len(found):
                continue
            gathered.add(found)
        return gathered.records()

    def _follow(self) -> None:
        """Know every segment and block that is there now."""
        known, self._segments = self._segments, {}
        for file in list_segments(self._folder):
            segment = known.get(file.name) or _Segment(file)
            if segment.follow():
                self._segments[file.name] = segment

    def _candidates(self, from_ns: int | None, to_ns: int | None) -> list[_Block]:
        """Blocks that may have records in the range, newest first."""
        found = [
            block
            for segment in self._segments.values()
            for block in segment.blocks
            if (from_ns is None or block.header.event_max_ns >= from_ns)
            and (to_ns is None or block.header.event_min_ns < to_ns)
        ]
        found.sort(key=lambda block: block.header.event_max_ns, reverse=True)
        return found

    def _id_of(self, table: int, symbol: str) -> int | None:
        size_bytes, ids = self._symbols.get(table, (-1, {}))
        if symbol in ids:
            return ids[symbol]
        try:
            now_bytes = symbols_path(self._folder, table).stat().st_size
        except FileNotFoundError:
            return None
        if now_bytes != size_bytes:
            ids = {name: number for number, name in enumerate(read_symbols(self._folder, table))}
            self._symbols[table] = (now_bytes, ids)
        return ids.get(symbol)

    def _records(self, block: _Block, instrument_id: int) -> np.ndarray | None:
        """Records of an instrument in a block, a copy; None if the block can't be had."""
        raw = self._bytes_of(block)
        if raw is None:
            return None
        whole = len(raw) == block.header.length * RECORD_SIZE_BYTES
        if not whole or (block.mask is None and crc32c(raw) != block.header.payload_crc):
            self.damaged += block.mask != 0
            block.mask = 0
            return None
        ids = raw.view(RECORD)["instrument_id"]
        if block.mask is None:
            bits = np.zeros(_MASK_BITS, bool)
            bits[ids % _MASK_BITS] = True
            block.mask = int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")
        words = raw.view(np.uint64).reshape(-1, RECORD_SIZE_BYTES // 8)
        found: np.ndarray = words.take(np.flatnonzero(ids == instrument_id), axis=0).reshape(-1).view(RECORD)
        return found

    def _bytes_of(self, block: _Block) -> np.ndarray | None:
        """A block's records, where they lie in the mapped file; None if the file has gone.

        The last block of a segment is copied, because a recovering recorder may cut it off.
        """
        segment, start = block.segment, block.offset + HEADER_BYTES
        length_bytes = block.header.length * RECORD_SIZE_BYTES
        last_offset = segment.blocks[-1].offset
        found = self._open.get(segment.path)
        if found is None:
            try:
                fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # sealed and removed meanwhile: L3, which is asked after this, has it
                return None
            found = self._open[segment.path] = (fd, None)
            if last_offset:
                found = self._open[segment.path] = (fd, mmap.mmap(fd, last_offset, prot=mmap.PROT_READ))
        fd, mapped = found
        if mapped is not None and block.offset < last_offset:
            return np.frombuffer(mapped, np.uint8, length_bytes, start)
        return np.frombuffer(os.pread(fd, length_bytes, start), np.uint8)

    def _close_files(self) -> None:
        """Let go of the files of one question; the mappings go with the last array that looks into them."""
        for fd, _ in self._open.values():
            os.close(fd)
        self._open.clear()
