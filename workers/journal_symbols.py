"""The symbols of a journal: which instrument id means what, kept beside the records so that they can be read alone.

    symbols-0001.txt     one line a symbol, in the order of their ids: "AAPL 1f2e3d4c", the symbol and its CRC-32C

An engine that starts with an empty instrument table gives the ids anew; once they differ a new file begins. The blocks
of the journal say which one they mean (`table`): the newest at that time, so their tables never go down. A last line
that was cut short is dropped when the file is opened; a line is in the file before the first block that needs it. Used
by workers/journal.py (writes) and workers/journal_reader.py (reads).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from workers._crc32c import crc32c

_NAME: Final = re.compile(r"symbols-(\d{4,9})\.txt")


class SymbolFile:
    """The symbol table that is being written. `follow` before each block is what keeps it ahead of the records."""

    def __init__(self, folder: Path) -> None:
        """Find the newest table of a journal; nothing is created yet."""
        self._folder = folder
        self._fd = -1
        self._known: list[str] = []
        self._size_bytes = 0
        self.table = max(tables(folder), default=0)
        if self.table:
            self._open()

    def follow(self, symbols: Sequence[str]) -> bool:
        """Make the table hold `symbols`, the index is the id; returns whether something was written.

        Raises:
            OSError: no room, no permission; what is in the file stays as it was.
        """
        common = min(len(symbols), len(self._known))
        if self._fd < 0 or list(symbols[:common]) != self._known[:common]:
            self._begin()
        fresh = list(symbols[len(self._known) :])
        if not fresh:
            return False
        lines = b"".join(_line(symbol) for symbol in fresh)
        try:
            _write(self._fd, lines, self._size_bytes)
        except OSError:
            os.ftruncate(self._fd, self._size_bytes)
            raise
        self._size_bytes += len(lines)
        self._known += fresh
        return True

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        if self._fd >= 0:
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> None:
        self.close()
        self.table = max(tables(self._folder), default=0) + 1
        self._open()

    def _open(self) -> None:
        path = symbols_path(self._folder, self.table)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._known, self._size_bytes = _parse(path.read_bytes())
        os.ftruncate(self._fd, self._size_bytes)


def symbols_path(folder: Path, table: int) -> Path:
    """File of a symbol table."""
    return folder / f"symbols-{table:04}.txt"


def tables(folder: Path) -> list[int]:
    """Numbers of the symbol tables of a journal, oldest first."""
    return sorted(int(match[1]) for path in folder.glob("symbols-*.txt") if (match := _NAME.fullmatch(path.name)))


def read_symbols(folder: Path, table: int) -> list[str]:
    """Symbols of a table, the index is the id; as far as the file is whole."""
    try:
        return _parse(symbols_path(folder, table).read_bytes())[0]
    except FileNotFoundError:
        return []


def _line(symbol: str) -> bytes:
    encoded = symbol.encode()
    return b"%s %08x\n" % (encoded, crc32c(encoded))


def _parse(data: bytes) -> tuple[list[str], int]:
    """(symbols, bytes that they take) up to the first line that is cut or damaged."""
    symbols: list[str] = []
    end = 0
    for line in data.splitlines(keepends=True):
        encoded, _, check = line.partition(b" ")
        if check != b"%08x\n" % crc32c(encoded):
            break
        symbols.append(encoded.decode())
        end += len(line)
    return symbols, end


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
