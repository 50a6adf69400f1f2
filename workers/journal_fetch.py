"""Reads a journal for a process that must not wait for a disk: one thread looks, finds, reads and checks blocks.

Used by workers/chronicle.py inside fan-out, which asks, goes on with its turns, and takes the answer when it is there.
Everything slow is here and outside the interpreter's lock: opening, reading, CRC-32C. A call does a bounded amount:
one block, or HEADERS headers passed over on the way to it. Whoever asks has one call under way at a time, so the
queue is as long as there are askers (workers/replay.py bounds them). It changes nothing and may run while the recorder
appends, seals and removes segments.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD
from workers._crc32c import crc32c
from workers.journal_format import HEADER_BYTES, KIND_GAP, Header, unpack_header
from workers.journal_reader import SegmentFile, list_segments
from workers.journal_symbols import read_symbols, symbols_path

HEADERS: Final = 256  # most that one call passes over
_PLACES_KEPT: Final = 256
_BLOCKS_KEPT: Final = 32
_TABLES_KEPT: Final = 8

_NOTHING: Final = np.zeros(0, RECORD)


class Place(NamedTuple):
    """A position in a ring: when the ring was made (ns), and the sequence that is wanted next."""

    stream: int
    sequence: int


class Begin(NamedTuple):
    """Where to begin reading a ring, and since when (ns) the journal is complete for it."""

    place: Place
    since_ns: int


class Piece(NamedTuple):
    """What follows a place.

    Attributes:
        records: the next ones, shape (n,), read-only; may be empty.
        first: sequence of the first of them; what is between the place and it is not in the journal.
        next: the place after them.
        ids: where the block's symbols have other numbers than today's, those asked for: today's id -> its id.
    """

    records: np.ndarray
    first: int
    next: Place
    ids: dict[int, int]


class _Wanted(NamedTuple):
    ring: int
    place: Place
    from_ns: int
    symbols: dict[str, int]


class JournalFetch:
    """One journal folder, read in a thread. Calls return futures; an OSError comes out of `result`."""

    def __init__(self, folder: Path) -> None:
        """Nothing is opened, and no thread started, before something is asked."""
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, "journal-fetch")
        # Used by the thread alone:
        self._offsets: OrderedDict[tuple[int, Place], tuple[Path, int]] = OrderedDict()
        self._blocks: deque[tuple[Header, Path, int]] = deque(maxlen=_BLOCKS_KEPT)
        self._tables: OrderedDict[int, tuple[int, dict[str, int]]] = OrderedDict()

    def begin(self, ring: int, from_ns: int) -> Future[Begin | None]:
        """Where the ring's records of this time begin, or the oldest that there are; None if there is none."""
        return self._pool.submit(self._begin, ring, from_ns)

    def piece(self, ring: int, place: Place, from_ns: int, symbols: dict[str, int]) -> Future[Piece | None]:
        """What follows a place in the same stream or, at the end of that, the next; None if nothing does yet.

        Args:
            from_ns: blocks that are older (`ts_publish`) are passed over.
            symbols: the wanted ones, with their numbers of today.
        """
        return self._pool.submit(self._piece, ring, place, from_ns, symbols)

    def close(self) -> None:
        """End the thread; what it reads at this moment is still read."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _segments(self, ring: int) -> list[SegmentFile]:
        return [segment for segment in list_segments(self._folder) if segment.name.ring_id == ring]

    def _begin(self, ring: int, from_ns: int) -> Begin | None:
        segments = [(segment, header) for segment in self._segments(ring) if (header := _first_header(segment.path))]
        if not segments:
            return None
        chosen = 0
        for index, (_, header) in enumerate(segments):
            if header.publish_min_ns <= from_ns:
                chosen = index
        segment, header = segments[chosen]
        if header.publish_min_ns <= from_ns:
            since_ns = from_ns
        else:  # the journal begins later; with the ring itself, if it has its first record
            since_ns = header.publish_min_ns if header.first_sequence > 1 else max(from_ns, segment.name.stream)
        return Begin(Place(segment.name.stream, header.first_sequence), since_ns)

    def _piece(self, ring: int, place: Place, from_ns: int, symbols: dict[str, int]) -> Piece | None:
        known = self._offsets.pop((ring, place), None) or self._inside(ring, place)
        if known is not None:
            path, offset = known
            found = self._read(path, offset, _Wanted(ring, place, from_ns, symbols))
            if found is not None:
                return found
        segments = self._segments(ring)
        for index, segment in enumerate(segments):
            later = segments[index + 1].name if index + 1 < len(segments) else None
            if segment.name.stream < place.stream:
                continue
            if segment.name.stream == place.stream:
                if later is not None and later.stream == place.stream and later.first_sequence <= place.sequence:
                    continue
                wanted = place
            else:
                wanted = Place(segment.name.stream, segment.name.first_sequence)
            if known is not None and segment.path == known[0]:
                continue
            found = self._read(segment.path, 0, _Wanted(ring, wanted, from_ns, symbols))
            if found is not None:
                return found
        if known is not None:  # its end, for now: to be looked at again there
            self._remember(ring, place, *known)
        return None

    def _inside(self, ring: int, place: Place) -> tuple[Path, int] | None:
        """The block read lately that has a place in its middle: an answer had no room for all of it."""
        for header, path, offset in self._blocks:
            same = (header.ring_id, header.stream) == (ring, place.stream)
            if same and header.first_sequence <= place.sequence < header.next_sequence:
                return path, offset
        return None

    def _remember(self, ring: int, place: Place, path: Path, offset: int) -> None:
        self._offsets[ring, place] = path, offset
        if len(self._offsets) > _PLACES_KEPT:
            self._offsets.popitem(last=False)

    def _read(self, path: Path, offset: int, wanted: _Wanted) -> Piece | None:
        """The first block from `offset` on that has `place` or what comes after; None if the segment has none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            ring, place, from_ns, _ = wanted
            size_bytes = os.fstat(fd).st_size
            passed = 0
            while offset + HEADER_BYTES <= size_bytes:
                header = unpack_header(os.pread(fd, HEADER_BYTES, offset))
                if header is None or offset + header.block_bytes > size_bytes:
                    return None
                after = Place(header.stream, header.next_sequence)
                passed += 1
                if header.next_sequence <= place.sequence:
                    pass
                elif header.publish_max_ns < from_ns:
                    place = after
                else:
                    self._remember(ring, after, path, offset + header.block_bytes)
                    if header.kind == KIND_GAP:
                        return Piece(_NOTHING, header.next_sequence, after, {})
                    self._blocks.append((header, path, offset))
                    return self._block(fd, offset, header, wanted._replace(place=place))
                offset += header.block_bytes
                if passed >= HEADERS:
                    self._remember(ring, place, path, offset)
                    return Piece(_NOTHING, place.sequence, place, {})
            return None
        finally:
            os.close(fd)

    def _block(self, fd: int, offset: int, header: Header, wanted: _Wanted) -> Piece | None:
        data = bytearray(header.block_bytes - HEADER_BYTES)
        if os.preadv(fd, [data], offset + HEADER_BYTES) != len(data):
            return None
        payload = np.frombuffer(data, np.uint8)
        if crc32c(payload) != header.payload_crc:
            return None
        first = max(header.first_sequence, wanted.place.sequence)
        records = payload.view(RECORD)[first - header.first_sequence :]
        symbols, table = wanted.symbols, self._table(header.table, wanted.symbols)
        ids = {today: table.get(symbol, -1) for symbol, today in symbols.items() if table.get(symbol) != today}
        return Piece(records, first, Place(header.stream, header.next_sequence), ids)

    def _table(self, table: int, symbols: dict[str, int]) -> dict[str, int]:
        """Symbol -> id of one of the journal's tables; read anew when it has grown and a symbol is not found."""
        size_bytes, ids = self._tables.get(table, (-1, {}))
        if not all(symbol in ids for symbol in symbols):
            try:
                now_bytes = symbols_path(self._folder, table).stat().st_size
            except OSError:
                now_bytes = 0
            if now_bytes != size_bytes:
                ids = {symbol: number for number, symbol in enumerate(read_symbols(self._folder, table))}
                self._tables[table] = now_bytes, ids
                if len(self._tables) > _TABLES_KEPT:
                    self._tables.popitem(last=False)
        return ids


def _first_header(path: Path) -> Header | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return unpack_header(os.pread(fd, HEADER_BYTES, 0))
    finally:
        os.close(fd)
