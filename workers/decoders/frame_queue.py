"""The frames that a decoder was fed, taken one at a time: base of decoders in Python that need to see each.

Used by feed_replay.py and arbitrated.py. Copies a frame's bytes when it is taken, and nothing before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from workers.decoders.protocol import FRAME


class Frame(NamedTuple):
    """A row of dtype FRAME; `kind` is NOTE or 0."""

    offset: int
    size: int
    port: int
    kind: int
    ts_receive: int


class FrameQueue:
    """`Decoder.feed` and `Decoder.feed_message`, and for those who derive: what is next, and taking it."""

    def __init__(self) -> None:
        """Nothing was fed yet."""
        self._buffer: Any = b""
        self._frames: list[tuple[int, int, int, int, int]] = []
        self._next = 0

    def feed(self, buffer: Any, frames: np.ndarray) -> None:
        """See `Decoder.feed`."""
        if frames.dtype != FRAME:
            raise ValueError(f"frames must have dtype FRAME, not {frames.dtype}")
        self._buffer, self._frames, self._next = buffer, frames.tolist(), 0

    def feed_message(self, message: bytes, ts_receive: int, port: int = 0) -> None:
        """See `Decoder.feed_message`."""
        self._buffer, self._frames, self._next = message, [(0, len(message), port, 0, ts_receive)], 0

    def _head(self) -> Frame | None:
        """The next frame, which stays the next one; None = all are taken."""
        return Frame._make(self._frames[self._next]) if self._next < len(self._frames) else None

    def _pop(self) -> bytes:
        """Takes the next frame, of which there is one: its bytes."""
        offset, size, *_ = self._frames[self._next]
        self._next += 1
        return bytes(self._buffer[offset : offset + size])

    def _put_back(self) -> None:
        """The frame that was taken last is the next one again."""
        self._next -= 1
