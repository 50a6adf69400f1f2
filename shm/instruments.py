"""The instrument table: every symbol of an engine and its number, one append-only segment (`/tk.NAME.inst`).

A record carries the number (`instrument_id`, from 0); this table is how people and other processes get the symbol.
Ingest interns symbols, everyone else finds them. Looking up is a dict; interning a new symbol takes a file lock, so
that each symbol has one number in all processes. Entries never change and never go away.

    byte 0     u64 magic, stored last | u32 version | u32 capacity | u32 bytes an entry
    byte 128   u64 count              writer: whoever holds lock 0; readers: all (ST-COUNT of shm/status.h)
    byte 4096  entries of 64 bytes    char[32] symbol, UTF-8, NUL padded | 32 bytes spare
"""

from __future__ import annotations

import struct
import threading
from typing import Final

from shm import _status
from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentExists, ShmFull
from shm.layout import SYMBOL_SIZE_BYTES
from shm.locks import ByteLock
from shm.segment import Segment, segment_name
from shm.status import attach_complete

DEFAULT_CAPACITY: Final = 65536

_MAGIC: Final = int.from_bytes(b"TKGINST1", "little")
_VERSION: Final = 1
_ENTRY_BYTES: Final = 64
_COUNT_OFFSET: Final = 128
_ENTRIES_OFFSET: Final = 4096
_HEADER: Final = struct.Struct("<III")  # version, capacity, bytes an entry; after the magic
_LOCK_INTERN: Final = 0
_MAX_CAPACITY: Final = 1 << 24


class InstrumentTable:
    """Symbols and their numbers, as this process knows them; it looks again whenever it meets one it does not know.

    May be used by several threads. `attach` without write is enough for finding.
    """

    def __init__(self, segment: Segment, capacity: int) -> None:
        """Wrap a checked segment; use `create`, `attach` or `create_or_attach`."""
        self.segment = segment
        self.name = segment.name
        self.capacity = capacity
        self._buffer = segment.buf  # keeps the mapping as long as this object: a late look-up reads valid memory
        self._count_address = segment.address + _COUNT_OFFSET
        self._symbols: list[str] = []
        self._ids: dict[str, int] = {}
        self._threads = threading.Lock()
        self.refresh()

    @classmethod
    def create(
        cls, engine: str, capacity: int = DEFAULT_CAPACITY, *, mode: int = 0o600, group: str | int | None = None
    ) -> InstrumentTable:
        """Make the instrument table of an engine; 64 bytes a symbol.

        Raises:
            SegmentExists: there is one already.
            ShmFull: no room in shared memory.
            BadArgument: `capacity` outside 1..2^24.
        """
        if not 1 <= capacity <= _MAX_CAPACITY:
            raise BadArgument(f"capacity is {capacity}, allowed are 1..{_MAX_CAPACITY}")
        size_bytes = _ENTRIES_OFFSET + capacity * _ENTRY_BYTES
        segment = Segment.create(segment_name(engine, "inst"), size_bytes, mode=mode, group=group)
        _HEADER.pack_into(segment.buf, 8, _VERSION, capacity, _ENTRY_BYTES)
        _status.publish_table_count(segment.address, _MAGIC)
        return cls(segment, capacity)

    @classmethod
    def attach(cls, engine: str, write: bool = False) -> InstrumentTable:
        """Map the instrument table of an engine; `write` is needed to intern.

        Raises:
            SegmentMissing: no such engine, or its creator died before the segment was complete.
            LayoutMismatch: made by a build with another layout.
            NotAllowed: the mode keeps this user out.
        """
        segment = attach_complete(segment_name(engine, "inst"), write, _MAGIC)
        magic = _status.table_count(segment.address)
        version, capacity, entry_bytes = _HEADER.unpack_from(segment.buf, 8)
        if (magic, version, entry_bytes) != (_MAGIC, _VERSION, _ENTRY_BYTES):
            segment.close()
            raise LayoutMismatch(
                f"segment {segment.name}: magic {magic:#x} version {version} with {entry_bytes} bytes an entry; "
                f"this build has magic {_MAGIC:#x} version {_VERSION} with {_ENTRY_BYTES}"
            )
        if _ENTRIES_OFFSET + capacity * entry_bytes > segment.size_bytes:
            segment.close()
            raise LayoutMismatch(f"segment {segment.name}: {segment.size_bytes} bytes can not hold {capacity} symbols")
        return cls(segment, capacity)

    @classmethod
    def create_or_attach(
        cls, engine: str, capacity: int = DEFAULT_CAPACITY, *, mode: int = 0o600, group: str | int | None = None
    ) -> InstrumentTable:
        """Make the table, or take over the one that is there with its symbols. Raises as both."""
        try:
            return cls.create(engine, capacity, mode=mode, group=group)
        except SegmentExists:
            return cls.attach(engine, write=True)

    def intern(self, symbol: str) -> int:
        """The number of `symbol`, given now if it is new.

        Raises:
            BadArgument: empty, longer than 32 bytes of UTF-8, or with blanks or control characters.
            ShmFull: the table has `capacity` symbols already.
            NotAllowed: the symbol is new, and this table is attached read-only.
        """
        found = self._ids.get(symbol)
        return self._add(symbol) if found is None else found

    def find(self, symbol: str) -> int | None:
        """The number of `symbol`, or None if nobody has interned it yet."""
        found = self._ids.get(symbol)
        if found is None and self.refresh():
            found = self._ids.get(symbol)
        return found

    def symbol(self, instrument_id: int) -> str:
        """The symbol of a number. Raises BadArgument for one that is not in the table."""
        if instrument_id >= len(self._symbols):
            self.refresh()
        if not 0 <= instrument_id < len(self._symbols):
            raise BadArgument(f"instrument id {instrument_id} is not in the table of {len(self._symbols)} symbols")
        return self._symbols[instrument_id]

    def symbols(self) -> list[str]:
        """All symbols; the index is the number."""
        self.refresh()
        return list(self._symbols)

    def refresh(self) -> int:
        """Take over what other processes have interned; returns how many symbols that were."""
        if _status.table_count(self._count_address) == len(self._symbols):
            return 0
        with self._threads:
            return self._read_new()

    def __len__(self) -> int:
        """Number of symbols in the table now."""
        self.refresh()
        return len(self._symbols)

    def close(self) -> None:
        """Let go of the segment; what was known can still be looked up. Safe to call twice."""
        self.segment.close()

    def unlink(self) -> None:
        """Remove the segment's name. Safe to call twice."""
        self.segment.unlink()

    def _read_new(self) -> int:
        known = len(self._symbols)
        count = min(_status.table_count(self._count_address), self.capacity)
        for instrument_id in range(known, count):
            start = _ENTRIES_OFFSET + instrument_id * _ENTRY_BYTES
            symbol = bytes(self._buffer[start : start + SYMBOL_SIZE_BYTES]).rstrip(b"\0").decode("utf-8", "replace")
            self._symbols.append(symbol)
            self._ids[symbol] = instrument_id
        return count - known

    def _add(self, symbol: str) -> int:
        encoded = check_symbol(symbol)
        if not self.segment.writable:
            found = self.find(symbol)
            if found is None:
                raise NotAllowed(f"symbol {symbol!r} is new and {self.name} is attached read-only")
            return found
        with self._threads, ByteLock(self.name, _LOCK_INTERN):
            self._read_new()
            found = self._ids.get(symbol)
            if found is not None:
                return found
            instrument_id = len(self._symbols)
            if instrument_id >= self.capacity:
                raise ShmFull(f"symbol {symbol!r}: the instrument table {self.name} holds {self.capacity} already")
            start = _ENTRIES_OFFSET + instrument_id * _ENTRY_BYTES
            self._buffer[start : start + SYMBOL_SIZE_BYTES] = encoded.ljust(SYMBOL_SIZE_BYTES, b"\0")
            _status.publish_table_count(self._count_address, instrument_id + 1)
            self._symbols.append(symbol)
            self._ids[symbol] = instrument_id
            return instrument_id


def check_symbol(symbol: str) -> bytes:
    """The bytes of a usable symbol, else BadArgument: 1..32 bytes of UTF-8 without blanks or control characters."""
    if not symbol.isprintable() or " " in symbol:
        raise BadArgument(f"symbol {symbol!r}: blanks and control characters are not allowed")
    encoded = symbol.encode()
    if not 1 <= len(encoded) <= SYMBOL_SIZE_BYTES:
        raise BadArgument(f"symbol {symbol!r} has {len(encoded)} bytes of UTF-8, allowed are 1..{SYMBOL_SIZE_BYTES}")
    return encoded
