"""A capture file as a stream of plain bytes: gzip, zstd and LZMA are recognised by content, unpacked piece by piece.

Used by `capture` alone. Memory stays at a few pieces whatever the file's size; several gzip members or zstd frames
one after the other are one stream.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final

from workers.decoders.protocol import FramingError

PIECE_BYTES: Final = 1 << 18
GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_PIECE_BYTES: Final = 1 << 14  # packed; a piece is unpacked whole, so its size bounds memory
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# Properties, dictionary of a power of two, unpacked size: unknown or less than 1 TiB (LZMA SDK, "lzma-specification").
_LZMA_HEAD: Final = re.compile(rb"\x5d\0[\0-\xff]{3}(\xff{8}|[\0-\xff]{5}\0{3})")


class _Gzip:
    """Several gzip members -> bytes; reads no more of the file than it unpacks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = b""
        self._offset = 0  # unpacked bytes so far
        self._member: Any = zlib.decompressobj(wbits=31)

    def read(self, size: int) -> bytes:
        while True:
            if not self._packed:
                self._packed = self._file.read(PIECE_BYTES)
            ended = not self._packed
            try:
                data: bytes = self._member.decompress(self._packed, size)
            except zlib.error as problem:
                raise FramingError("gzip", self._offset, str(problem)) from None
            self._packed = self._member.unconsumed_tail
            self._offset += len(data)
            if self._member.eof:
                self._packed = self._member.unused_data.lstrip(b"\0") or self._file.read(PIECE_BYTES)
                if self._packed:
                    self._member = zlib.decompressobj(wbits=31)
                elif not data:
                    return b""
            elif ended and not data:
                raise FramingError("gzip", self._offset, "the file ends inside the compressed stream")
            if data:
                return data

    @property
    def packed_bytes(self) -> float:
        """How far into the file that reaches which `read` has returned so far."""
        return self._file.tell() - len(self._packed)


class _Zstd:
    """Several zstd frames -> bytes."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._error: type[Exception] = zstandard.ZstdError
        self._context: Any = zstandard.ZstdDecompressor()
        self._file = file
        self._frame: Any = None  # the frame being unpacked; None between two
        self._packed = b""
        self._ready = b""
        self._piece_bytes = 1  # of what `_ready` is the rest of
        self._begun_at = 0  # where in the file that began
        self._offset = 0  # unpacked bytes so far

    def read(self, size: int) -> bytes:
        while not self._ready:
            self._begun_at = self._file.tell() - len(self._packed)
            self._packed = self._packed or self._file.read(_ZSTD_PIECE_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise FramingError("zstd", self._offset, "the file ends inside the compressed stream")
                return b""
            if self._frame is None:
                self._frame = self._context.decompressobj()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._error as problem:
                raise FramingError("zstd", self._offset, str(problem)) from None
            self._offset += len(self._ready)
            self._piece_bytes = len(self._ready) or 1
            self._packed = b""
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = None
        piece, self._ready = self._ready[:size], self._ready[size:]
        return piece

    @property
    def packed_bytes(self) -> float:
        """How far into the file that reaches which `read` has returned so far."""
        end = self._file.tell() - len(self._packed)
        return end - (end - self._begun_at) * len(self._ready) / self._piece_bytes


class _Lzma:
    """One stream of the form that .lzma and .bi5 files have -> bytes."""

    def __init__(self, file: BinaryIO) -> None:
        import lzma  # not every Python is built with it

        self._error: type[Exception] = lzma.LZMAError
        self._file = file
        self._stream: Any = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
        self._offset = 0  # unpacked bytes so far

    def read(self, size: int) -> bytes:
        while not self._stream.eof:
            packed = self._file.read(_ZSTD_PIECE_BYTES) if self._stream.needs_input else b""
            if not packed and self._stream.needs_input:
                raise FramingError("lzma", self._offset, "the file ends inside the compressed stream")
            try:
                data: bytes = self._stream.decompress(packed, size)
            except self._error as problem:
                raise FramingError("lzma", self._offset, str(problem)) from None
            self._offset += len(data)
            if data:
                return data
        return b""

    @property
    def packed_bytes(self) -> float:
        """How far into the file that reaches which `read` has returned so far."""
        return self._file.tell()


class CaptureFile:
    """`read()` gives the next piece, b"" at the end; FramingError where the compressed stream is damaged."""

    def __init__(self, path: str | os.PathLike[str], *, skip_bytes: int = 0) -> None:
        """`skip_bytes` at the front of the file belong to who opens it."""
        self.path = Path(path)
        self._file = self.path.open("rb")
        self.size_bytes = os.fstat(self._file.fileno()).st_size
        self._file.seek(skip_bytes)
        magic = self._file.read(13)
        self._file.seek(skip_bytes)
        self._reader: Any = self._file
        self.compression = ""
        if magic.startswith(GZIP_MAGIC):
            self._reader, self.compression = _Gzip(self._file), "gzip"
        elif magic.startswith(ZSTD_MAGIC):
            self._reader, self.compression = _Zstd(self._file), "zstd"
        elif _LZMA_HEAD.match(magic):
            self._reader, self.compression = _Lzma(self._file), "lzma"

    def read(self) -> bytes:
        """Up to PIECE_BYTES of the unpacked stream."""
        data: bytes = self._reader.read(PIECE_BYTES)
        return data

    @property
    def progress(self) -> float:
        """How far into the file what `read` has returned reaches, 0 to 1; what was only read ahead does not count."""
        if self._file.closed or not self.size_bytes:
            return 1.0
        done = self._reader.packed_bytes if self.compression else self._file.tell()
        return min(1.0, done / self.size_bytes)

    def close(self) -> None:
        """May be called more than once."""
        self._file.close()


class PairedLines:
    """Two files that belong together line for line, as one stream of lines joined by a comma."""

    def __init__(self, path: str | os.PathLike[str], partner: str | os.PathLike[str]) -> None:
        self._first = CaptureFile(path)
        try:
            self._second = CaptureFile(partner)
        except BaseException:
            self._first.close()
            raise
        self.path = self._first.path
        self.size_bytes = self._first.size_bytes + self._second.size_bytes
        self.compression = self._first.compression
        self._lines: tuple[list[bytes], list[bytes]] = ([], [])
        self._rests = [b"", b""]
        self._offset = 0  # bytes returned so far

    def read(self) -> bytes:
        """Whole joined lines, b"" at the end. FramingError where one file has more lines than the other."""
        files = self._first, self._second
        while True:
            ended = [not self._fill(number, file) for number, file in enumerate(files)]
            count = min(map(len, self._lines))
            if count:
                first, second = (lines[:count] for lines in self._lines)
                for lines in self._lines:
                    del lines[:count]
                data = b"\n".join(map(b",".join, zip(first, second, strict=True))) + b"\n"
                self._offset += len(data)
                return data
            if any(ended):
                longer = [file.path.name for file, lines in zip(files, self._lines, strict=True) if lines]
                if longer and any(done and not lines for done, lines in zip(ended, self._lines, strict=True)):
                    raise FramingError("lines", self._offset, f"{longer[0]} goes on, the file that belongs to it ends")
                if all(ended):
                    return b""

    def _fill(self, number: int, file: CaptureFile) -> bool:
        """Have a line of one of the files ready; False = there is none, the file has ended."""
        lines = self._lines[number]
        while not lines:
            data = file.read()
            if not data:
                if self._rests[number].strip():
                    lines.append(self._rests[number].rstrip(b"\r"))
                    self._rests[number] = b""
                return bool(lines)
            whole = (self._rests[number] + data).split(b"\n")
            self._rests[number] = whole.pop()
            if b"\r" in data:
                whole = [line.rstrip(b"\r") for line in whole]
            lines += filter(None, whole)
        return True

    @property
    def progress(self) -> float:
        """How far into the files what `read` has returned reaches, 0 to 1."""
        return min(self._first.progress, self._second.progress)

    def close(self) -> None:
        """May be called more than once."""
        self._first.close()
        self._second.close()
