"""A source that follows a text file as it grows: one trade or quote a line.

T,ACME,101.25,300,1700000000000000000     trade: symbol, price, size, time in ns (may be left out)
Q,ACME,101.2,101.3,500,400                quote: symbol, bid, ask, bid size, ask size
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from workers.plugin import Plugin, Rows, SourceContext, SourceError, read_options

CHUNK_BYTES = 65536


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the feed."""

    file: str
    from_start: bool = True
    every_ms: Annotated[float, msgspec.Meta(gt=0)] = 20.0  # how often the file is looked at


class LineTail(Plugin):
    """See the module. `symbols` of the feed chooses among those in the file."""

    def __init__(self, context: SourceContext) -> None:
        """Open the file; one that is not there yet is tried again later."""
        super().__init__(context)
        self._options = read_options(context.spec, Options)
        self._wanted = set(context.spec.symbols)
        self._lines: list[bytes] = []
        self._rest = b""
        try:
            self._fd = os.open(Path(self._options.file), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{self._options.file}: {error.strerror}") from error
        if not self._options.from_start:
            os.lseek(self._fd, 0, os.SEEK_END)

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """The lines that have come, as many as there is room for."""
        rows = Rows(out, self.context, now_ns)
        if not self._lines:
            self._read()
        while self._lines and not rows.full:
            line = self._lines.pop()
            try:
                self._line(line.decode().strip().split(","), rows)
            except (ValueError, IndexError):
                self.errors += 1
        self.next_due_ns = now_ns + (0 if self._lines else round(self._options.every_ms * 1e6))
        return rows.count

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        data = os.read(self._fd, CHUNK_BYTES)
        self.bytes_received += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines = lines[::-1]

    def _line(self, words: list[str], rows: Rows) -> None:
        if words == [""]:
            return
        kind, symbol, numbers = words[0], words[1], [float(word) for word in words[2:6]]
        if self._wanted and symbol not in self._wanted:
            return
        if kind == "T":
            time_ns = int(words[4]) if len(words) > 4 else 0
            rows.trade(symbol, numbers[0], numbers[1], ts_event_ns=time_ns)
        elif kind == "Q":
            rows.quote(symbol, numbers[0], numbers[1], bid_size=numbers[2], ask_size=numbers[3])
        else:
            raise ValueError(kind)
