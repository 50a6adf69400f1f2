"""A capture file as a stream of plain bytes: gzip and zstd are recognised by content and unpacked piece by piece.

Used by `capture` alone. Memory stays at a few pieces whatever the file's size; several gzip members or zstd frames
one after the other are one stream.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final

from workers.decoders.protocol import FramingError

PIECE_BYTES: Final = 1 << 18
GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


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


class _Zstd:
    """Several zstd frames -> bytes."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._error: type[Exception] = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
        self._offset = 0

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._reader.read(size)
        except self._error as problem:
            raise FramingError("zstd", self._offset, str(problem)) from None
        self._offset += len(data)
        return data


class CaptureFile:
    """`read()` gives the next piece, b"" at the end; FramingError where the compressed stream is damaged."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = self.path.open("rb")
        self.size_bytes = os.fstat(self._file.fileno()).st_size
        magic = self._file.read(4)
        self._file.seek(0)
        self._reader: Any = self._file
        self.compression = ""
        if magic.startswith(GZIP_MAGIC):
            self._reader, self.compression = _Gzip(self._file), "gzip"
        elif magic == ZSTD_MAGIC:
            self._reader, self.compression = _Zstd(self._file), "zstd"

    def read(self) -> bytes:
        """Up to PIECE_BYTES of the unpacked stream."""
        data: bytes = self._reader.read(PIECE_BYTES)
        return data

    @property
    def progress(self) -> float:
        """How much of the file has been read, 0 to 1."""
        if self._file.closed or not self.size_bytes:
            return 1.0
        return min(1.0, self._file.tell() / self.size_bytes)

    def close(self) -> None:
        """May be called more than once."""
        self._file.close()
