"""Legacy Databento DBZ, DBN's forerunner: its header, and its records as a stream of DBN records.

    zstd skippable frame: "DBZ", version, 92 bytes of fixed fields, zstd of symbols and mappings | zstd of records

Records are those of DBN 1, but for bars, which do not say their interval: the header's schema does. `capture` opens
such a file and gives what `read` returns to DbnReader. Never makes a record.
"""

from __future__ import annotations

import io
import os
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgspec

from workers.decoders.capture_file import CaptureFile
from workers.decoders.protocol import FramingError

MAGIC: Final = b"\x50\x2a\x4d\x18"  # of the skippable frame; other skippable frames are no DBZ
SCHEMAS: Final = (
    "mbo", "mbp-1", "mbp-10", "tbbo", "trades", "ohlcv-1s", "ohlcv-1m", "ohlcv-1h", "ohlcv-1d", "definition",
    "statistics", "status", "imbalance",
)  # fmt: skip
HEADER_MAX_BYTES: Final = 1 << 28
_FIXED_BYTES: Final = 96
_SYMBOL_BYTES: Final = 22
_BAR_BYTES: Final = 56
_BAR_TYPES: Final = {"ohlcv-1s": b"\x20", "ohlcv-1m": b"\x21", "ohlcv-1h": b"\x22", "ohlcv-1d": b"\x23"}
_OLD_BAR_TYPE: Final = b"\x11"


class DbzHeader(msgspec.Struct, frozen=True):
    """What a DBZ file says of itself; named as DBN's metadata, of which it is a part (`DbnSymbols.load`)."""

    dataset: str
    schema: str
    stype_out: str
    mappings: dict[str, list[dict[str, Any]]]
    record_count: int
    size_bytes: int  # of the whole frame that it stands in


class _Fields:
    """Reads numbers and symbols from the front of the unpacked part; ValueError where it ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError(f"ends after {len(self._data)} bytes")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def symbol(self) -> str:
        return self.take(_SYMBOL_BYTES).rstrip(b"\0").decode()

    def day(self) -> date:
        number = self.number()  # YYYYMMDD
        return date(number // 10_000, number // 100 % 100, number % 100)


def read_header(path: Path) -> DbzHeader:
    """The header of a DBZ file. FramingError says where it is damaged."""
    import zstandard

    with path.open("rb") as file:
        begin = file.read(8)
        length = int.from_bytes(begin[4:], "little")
        if begin[:4] != MAGIC or not _FIXED_BYTES <= length <= HEADER_MAX_BYTES:
            raise FramingError("dbz", 0, "no header of DBZ")
        header = file.read(length)
    if len(header) < length:
        raise FramingError("dbz", 8, "the file ends inside the header")
    if header[:4] != b"DBZ\x01":
        raise FramingError("dbz", 8, f"begins with {header[:4]!r}: not DBZ of version 1")
    schema = int.from_bytes(header[20:22], "little")
    if schema >= len(SCHEMAS):
        raise FramingError("dbz", 28, f"schema {schema}")
    try:
        packed = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(header[_FIXED_BYTES:]))
        fields = _Fields(packed.read(HEADER_MAX_BYTES))
        fields.take(fields.number())  # a definition of the schema; empty
        for _ in range(3):  # symbols asked for, found in part, not found
            fields.take(fields.number() * _SYMBOL_BYTES)
        mappings: dict[str, list[dict[str, Any]]] = {}
        for _ in range(fields.number()):
            intervals = mappings.setdefault(fields.symbol(), [])
            for _ in range(fields.number()):
                days = {"start_date": fields.day(), "end_date": fields.day()}
                intervals.append({**days, "symbol": fields.symbol()})
        dataset = header[4:20].rstrip(b"\0").decode()
    except (zstandard.ZstdError, ValueError) as problem:
        raise FramingError("dbz", 8 + _FIXED_BYTES, f"header: {problem}") from None
    stype_out = "instrument_id" if header[56] == 0 else "symbol"
    record_count = int.from_bytes(header[46:54], "little")
    return DbzHeader(dataset, SCHEMAS[schema], stype_out, mappings, record_count, 8 + length)


class DbzFile(CaptureFile):
    """The records of a DBZ file as the stream that DBN 1 would have after its header."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header."""
        self.header = read_header(Path(path))
        super().__init__(path, skip_bytes=self.header.size_bytes)
        self._offset = 0  # bytes returned so far
        if self.compression != "zstd" and (self.header.record_count or self.size_bytes > self.header.size_bytes):
            self.close()
            raise FramingError("dbz", self.header.size_bytes, "no zstd frame of records behind the header")

    def read(self) -> bytes:
        """See `CaptureFile.read`; bars have the type of their interval."""
        data = super().read()
        bar_type = _BAR_TYPES.get(self.header.schema)
        if data and bar_type is not None:
            types = slice((1 - self._offset) % _BAR_BYTES, None, _BAR_BYTES)
            changed = bytearray(data)
            changed[types] = changed[types].replace(_OLD_BAR_TYPE, bar_type)
            data = bytes(changed)
        self._offset += len(data)
        return data
