"""Follows a journal while it is written: what comes after a cursor, each record once, in the order of each ring.

Used by the mirror (workers/mirror.py), one process a store. The cursor of a ring as it was made at `stream` is the next
sequence that the store does not have; it is the store's, and told by `resume`. Segments stay open while they are read,
so that one which is removed meanwhile is still read to its end. Nothing is written, nobody is waited for.

    whole block at the offset      it is next
    none, a later segment is there the writer has left this one: its end, or damage; go on there
    none, no later segment         the end of the journal, for now

What the journal no longer has when it is looked for shows as a jump of the sequence, and is counted in the batch
(`lost`); what the ring lost before it was recorded stands in the journal as a gap block (`gaps`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, concatenate, empty
from workers._crc32c import crc32c
from workers.journal_format import HEADER_BYTES, KIND_RECORDS, Header, unpack_header
from workers.journal_reader import SegmentFile, list_segments
from workers.journal_symbols import read_symbols

SCAN_S: Final = 1.0

_KEPT_TABLES: Final = 64


class Place(NamedTuple):
    """A ring of the journal: its number and when it was made, ns. A ring made anew is another one."""

    ring_id: int
    stream: int


@dataclass(frozen=True)
class Batch:
    """Records of one ring that follow its cursor: [from_sequence, next_sequence), as far as the journal has them."""

    place: Place
    from_sequence: int  # where the cursor was; 0 = nowhere yet
    next_sequence: int  # where it is once this is stored
    records: np.ndarray  # shape (n,), dtype RECORD; may be empty
    symbols: tuple[str, ...]  # the index is the instrument id
    lost: int  # records that the journal had and no longer has
    gaps: int  # holes that the ring left
    written_ns: int  # when the recorder wrote the oldest of them, wall clock


@dataclass
class _Track:
    """How far one ring has been read."""

    place: Place
    next_sequence: int = 0
    segments: list[SegmentFile] = field(default_factory=list)
    segment: SegmentFile | None = None
    fd: int = -1
    offset: int = 0
    seen_end: int = 0  # the highest sequence that the journal is known to have had, and one more

    def leave(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.segment, self.offset = -1, None, 0


class JournalFollower:
    """One a store. For one thread.

    Attributes:
        vanished: records that were known to be in the journal and went with the last segment of their ring.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the journal's; it need not exist yet."""
        self.folder = folder
        self.vanished = 0
        self._tracks: dict[Place, _Track] = {}
        self._symbols: dict[int, tuple[str, ...]] = {}
        self._changed_ns = -1
        self._scanned_s = 0.0

    def resume(self, cursors: Mapping[Place, int]) -> None:
        """Go on where the store is: the next sequence of each ring that it has something of."""
        for track in self._tracks.values():
            track.leave()
        self._tracks = {place: _Track(place, sequence) for place, sequence in cursors.items()}
        self._changed_ns = -1
        self._scan()

    def read(self, max_records: int) -> list[Batch]:
        """What comes next, one batch a ring: whole blocks until there are `max_records`; empty = nothing."""
        self._scan()
        batches = []
        left = max_records
        for place in sorted(self._tracks):
            if left <= 0:
                break
            batch = self._read_track(self._tracks[place], left)
            if batch is not None:
                batches.append(batch)
                left -= max(1, len(batch.records))
        return batches

    def positions(self) -> dict[int, tuple[Place, int]]:
        """ring -> (its newest stream, the sequence up to which it has been handed out); 0 = nothing yet."""
        newest: dict[int, tuple[Place, int]] = {}
        for place in sorted(self._tracks):
            newest[place.ring_id] = (place, max(0, self._tracks[place].next_sequence - 1))
        return newest

    def unread(self) -> dict[Place, int]:
        """Records of each ring that were not handed out, at most: block headers count as records here."""
        self._scan()
        return {place: _unread(track) for place, track in self._tracks.items()}

    def oldest_unread_ns(self) -> int:
        """When the oldest block that was not handed out was written; 0 = there is none."""
        times = [header.written_ns for track in self._tracks.values() if (header := self._peek(track)) is not None]
        return min(times, default=0)

    def outlived(self, cursors: Iterable[Place]) -> list[Place]:
        """Of these, the ones that nobody needs again: the journal has their ring as it was made later, and not them.

        A journal that can't be seen at all (a disk that is not mounted) outlives nothing.
        """
        newest = {place.ring_id: place.stream for place in sorted(self._tracks) if self._tracks[place].segments}
        return [
            place
            for place in cursors
            if place.stream < newest.get(place.ring_id, place.stream) and place not in self._tracks
        ]

    def close(self) -> None:
        """Let go of the segments. Safe to call twice."""
        for track in self._tracks.values():
            track.leave()

    def _scan(self) -> None:
        """Look at the folder, if it has changed; so that a later segment proves the one before it complete.

        What appeared in the same tick of the file system's clock as our last look is seen SCAN_S later.
        """
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        now_s = time.monotonic()
        if changed_ns == self._changed_ns and now_s - self._scanned_s < SCAN_S:
            return
        self._changed_ns, self._scanned_s = changed_ns, now_s
        by_place: dict[Place, list[SegmentFile]] = {}
        for segment in list_segments(self.folder):
            by_place.setdefault(Place(segment.name.ring_id, segment.name.stream), []).append(segment)
        for place, segments in by_place.items():
            track = self._tracks.setdefault(place, _Track(place))
            track.segments = segments
            track.seen_end = max(track.seen_end, segments[-1].name.first_sequence)
        for place, track in list(self._tracks.items()):
            if place in by_place:
                continue
            track.segments = []
            if track.fd < 0:
                if 0 < track.next_sequence < track.seen_end:
                    self.vanished += track.seen_end - track.next_sequence
                del self._tracks[place]

    def _read_track(self, track: _Track, max_records: int) -> Batch | None:
        start = track.next_sequence
        blocks: list[np.ndarray] = []
        count = lost = gaps = written_ns = 0
        table = None
        while count < max_records:
            header = self._peek(track)
            if header is None or (table is not None and header.table != table):
                break
            records = _payload(track, header)
            if records is None:
                if not self._move_on(track):
                    break
                continue
            track.offset += header.block_bytes
            first = header.first_sequence
            if track.next_sequence and first > track.next_sequence:
                lost += first - track.next_sequence
            if header.kind == KIND_RECORDS:
                records = records[max(0, track.next_sequence - first) :]
                blocks.append(records)
                count += len(records)
            else:
                gaps += 1
            track.next_sequence = header.next_sequence
            track.seen_end = max(track.seen_end, header.next_sequence)
            table = header.table
            written_ns = written_ns or header.written_ns
        if track.next_sequence == start or table is None:
            return None
        joined = blocks[0] if len(blocks) == 1 else concatenate(blocks) if blocks else empty(0)
        symbols = self._symbols_of(table, joined)
        return Batch(track.place, start, track.next_sequence, joined, symbols, lost, gaps, written_ns)

    def _peek(self, track: _Track) -> Header | None:
        """The next block that the store does not have, by its header; opens segments and skips blocks as needed."""
        while True:
            if track.fd < 0 and not self._open(track):
                return None
            header = unpack_header(os.pread(track.fd, HEADER_BYTES, track.offset))
            if header is not None and track.offset + header.block_bytes <= os.fstat(track.fd).st_size:
                if header.next_sequence > track.next_sequence:
                    return header
                track.offset += header.block_bytes
            elif not self._move_on(track):
                return None

    def _open(self, track: _Track) -> bool:
        """Open the segment in which the cursor lies, or the first one after it."""
        chosen: SegmentFile | None = None
        for segment in track.segments:
            if chosen is None or segment.name.first_sequence <= track.next_sequence:
                chosen = segment
        while chosen is not None:
            try:
                track.fd = os.open(chosen.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # removed since we looked
                chosen = _after(track, chosen)
                continue
            track.segment, track.offset = chosen, 0
            return True
        return False

    def _move_on(self, track: _Track) -> bool:
        """Nothing whole comes here: go to the next segment. False if there is none."""
        assert track.segment is not None
        following = _after(track, track.segment)
        while following is not None:
            try:
                fd = os.open(following.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                following = _after(track, following)
                continue
            track.leave()
            track.fd, track.segment = fd, following
            return True
        if track.segment not in track.segments:  # it was removed, and with it the rest of its ring
            track.leave()
        return False

    def _symbols_of(self, table: int, records: np.ndarray) -> tuple[str, ...]:
        """The symbols of a table; read again when an instrument is new."""
        known = self._symbols.get(table, ())
        ids = records["instrument_id"]
        real = ids[ids != np.uint32(0xFFFFFFFF)]
        if table not in self._symbols or (len(real) and int(real.max()) >= len(known)):
            found = tuple(read_symbols(self.folder, table))
            if len(found) > len(known):  # a table that the journal has removed is remembered
                known = found
            if len(self._symbols) >= _KEPT_TABLES:
                self._symbols.clear()
            self._symbols[table] = known
        return known


def _payload(track: _Track, header: Header) -> np.ndarray | None:
    """The block's records, checked by their CRC; None if they are not whole."""
    if not header.length:
        return empty(0)
    records = empty(header.length)
    raw = records.view(np.uint8)
    if os.preadv(track.fd, [raw.data], track.offset + HEADER_BYTES) != len(raw) or crc32c(raw) != header.payload_crc:
        return None
    return raw.view(RECORD)


def _after(track: _Track, segment: SegmentFile) -> SegmentFile | None:
    return next((s for s in track.segments if s.name.first_sequence > segment.name.first_sequence), None)


def _unread(track: _Track) -> int:
    """By the names of segments, and by the length of the last one."""
    if not track.segments:
        return 0
    last = track.segments[-1]
    try:
        if track.segment == last:
            return max(0, os.fstat(track.fd).st_size - track.offset) // RECORD_SIZE_BYTES
        behind = last.name.first_sequence - (track.next_sequence or track.segments[0].name.first_sequence)
        return max(0, behind) + last.path.stat().st_size // RECORD_SIZE_BYTES
    except FileNotFoundError:
        return 0
