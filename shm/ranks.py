"""Which symbols matter most now: a score of each instrument and what it follows from, in shared memory.

Segment `/tk.NAME.rank`, made by the control process, always anew:

    0   header    u64 magic (stored last), version, instruments; i64 updated_ns
    64  entries   RANK, 48 bytes each, by instrument id

Each field has one writer: the cache process all of them but the watchers, each fan-out shard `zmq_watchers` of its own
instruments, the control process `http_watchers`. Fields are single aligned words, read and written as they are: an
entry may be of two moments, which does no harm, since all of it is advice. Nobody waits for it and nobody needs it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shm.errors import BadArgument, LayoutMismatch, SegmentMissing
from shm.segment import Segment, segment_name

# score: workers/symbol_score.py; trades and notional (price times size): decayed; move: sum of relative moves, decayed;
# ranked: 1 for the symbols of highest score.
RANK: Final = np.dtype(
    [
        ("score", "<f8"),
        ("trades", "<f8"),
        ("notional", "<f8"),
        ("move", "<f8"),
        ("zmq_watchers", "<u4"),
        ("http_watchers", "<u4"),
        ("ranked", "<u4"),
        ("spare", "<u4"),
    ]
)
MAX_INSTRUMENTS: Final = 1 << 20
_MAGIC: Final = 0x314B4E52544B54  # "TKTRNK1", little-endian
_VERSION: Final = 1
_HEADER_BYTES: Final = 64


class RankTable:
    """The scores of one engine, mapped.

    Attributes:
        entries: shape (instruments,), dtype RANK; writable if created or attached with `write`.
    """

    def __init__(self, segment: Segment) -> None:
        """Map a checked segment; use `create` or `attach` instead."""
        self._segment = segment
        self._words = np.frombuffer(segment.buf[:_HEADER_BYTES], np.uint64)
        self.entries: np.ndarray = np.frombuffer(segment.buf, RANK, int(self._words[2]), _HEADER_BYTES)

    @classmethod
    def create(cls, engine: str, *, instruments: int, mode: int = 0o600, group: str | int | None = None) -> RankTable:
        """Make the table, all zero. SegmentExists, ShmFull, BadArgument (instruments not 1 to 2**20)."""
        if not 1 <= instruments <= MAX_INSTRUMENTS:
            raise BadArgument(f"instruments is {instruments}, must be 1 to {MAX_INSTRUMENTS}")
        size_bytes = _HEADER_BYTES + instruments * RANK.itemsize
        segment = Segment.create(segment_name(engine, "rank"), size_bytes, mode=mode, group=group)
        words = np.frombuffer(segment.buf[:_HEADER_BYTES], np.uint64)
        words[1:3] = _VERSION, instruments
        words[0] = _MAGIC
        del words
        return cls(segment)

    @classmethod
    def attach(cls, engine: str, *, write: bool = False) -> RankTable:
        """Map an existing table. SegmentMissing, NotAllowed, or LayoutMismatch which names both sides."""
        segment = Segment.attach(segment_name(engine, "rank"), write=write)
        magic, version, instruments = (int(w) for w in np.frombuffer(segment.buf[:_HEADER_BYTES], np.uint64)[:3])
        if (magic, version) != (_MAGIC, _VERSION):
            segment.close()
            if magic == 0:
                raise SegmentMissing(f"segment {segment.name} is being created: its header is not complete yet")
            raise LayoutMismatch(
                f"segment {segment.name}: magic {magic:#x} version {version}, "
                f"this build has magic {_MAGIC:#x} version {_VERSION}"
            )
        if segment.size_bytes < _HEADER_BYTES + instruments * RANK.itemsize:
            size_bytes = segment.size_bytes
            segment.close()
            raise LayoutMismatch(f"segment {segment.name} has {size_bytes} bytes, too few for {instruments} entries")
        return cls(segment)

    @property
    def updated_ns(self) -> int:
        """When the scores were last computed, ns since the Unix epoch; 0 = never."""
        return int(self._words[3])

    @updated_ns.setter
    def updated_ns(self, value: int) -> None:
        self._words[3] = value

    @property
    def name(self) -> str:
        """Of the segment."""
        return self._segment.name

    def close(self) -> None:
        """Let go of the memory. Safe to call twice."""
        self.entries = np.zeros(0, RANK)
        self._words = np.zeros(8, np.uint64)
        self._segment.close()

    def __enter__(self) -> RankTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
