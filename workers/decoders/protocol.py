"""What containers and decoders have in common: frames, counters, and the two protocols.

    bytes -> Container.feed -> frames -> Decoder.feed, Decoder.decode -> records

Called by `capture` (files) and by live sources, which have their frames from a socket and need no container. Nothing
here does I/O or reads a clock; a decoder holds one stream's state and is used by one thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np

from workers.errors import DecodeError

# One frame: a datagram, a text message, or a run of whole messages of a stream. C twin: struct tk_frame in frames.h.
# `reserved` is 0; NOTE: no message but a line of a capture about its connection, for decoders that ask for these.
FRAME: Final = np.dtype(
    [("offset", "<u8"), ("size", "<u4"), ("port", "<u2"), ("reserved", "<u2"), ("ts_receive", "<i8")],
)
NOTE: Final = 1


class FramingError(DecodeError):
    """A stream's framing is damaged: where the next message begins is not known, so nothing after `offset` can be read.

    `offset` counts bytes of the (decompressed) stream.
    """

    def __init__(self, layout: str, offset: int, problem: str) -> None:
        super().__init__(f"{layout}: {problem} at byte {offset}")
        self.offset = offset
        self.problem = problem


class UnknownFormatError(DecodeError):
    """No decoder for this content; the message says what was recognised and which option would help."""


class Gap(NamedTuple):
    """Messages [first, last) of a stream never came. `stream` is the venue's session, or the instrument id."""

    stream: int
    first: int
    last: int


@dataclass
class Counters:
    """A snapshot of what a decoder has seen; taking it is not for hot paths."""

    messages: dict[str, int] = field(default_factory=dict)  # by the venue's type
    records: dict[str, int] = field(default_factory=dict)  # by record type
    malformed: dict[str, int] = field(default_factory=dict)  # refused messages by reason
    frames: int = 0
    bytes: int = 0
    heartbeats: int = 0
    duplicates: int = 0  # messages dropped because they were had before
    gaps: int = 0
    missing: int = 0  # messages lost in the gaps
    gap_ranges: list[Gap] = field(default_factory=list)  # the first 1024
    first_ns: int = 0  # smallest and largest ts_event of market records; 0 = none yet
    last_ns: int = 0


class Batch(NamedTuple):
    """Frames as spans of one buffer. `frames` has dtype FRAME, shape (n,)."""

    buffer: bytes
    frames: np.ndarray


class Container(Protocol):
    """Cuts a byte stream into frames. Any cut of the input gives the same frames."""

    @property
    def error(self) -> FramingError | None:
        """What ended the stream early, once the frames before it have been handed out."""

    def feed(self, data: bytes) -> Batch:
        """The frames that are whole now; the rest is kept."""

    def finish(self) -> int:
        """The stream has ended: how many bytes of an unfinished frame are left over."""

    def counts(self) -> dict[str, int]:
        """What was passed over, by reason; for people."""


class Decoder(Protocol):
    """Turns frames into records. Never raises on what the wire brings: malformed messages are counted."""

    @property
    def counters(self) -> Counters:
        """Snapshot of the counters."""

    def feed(self, buffer: bytes, frames: np.ndarray) -> None:
        """Takes a batch. Only after decode() has returned 0; the buffer is kept until then."""

    def feed_message(self, message: bytes, ts_receive: int, port: int = 0) -> None:
        """Takes one datagram or text message, as a live source has it; otherwise like `feed`."""

    def decode(self, out: np.ndarray) -> int:
        """Fills `out` (dtype RECORD) from its front and returns the count; 0 = every frame fed is done with."""


def one_frame(data: bytes, ts_receive: int = 0) -> Batch:
    """A batch of one frame: a datagram or a text message as it came from a socket."""
    frames = np.zeros(1, FRAME)
    frames["size"] = len(data)
    frames["ts_receive"] = ts_receive
    return Batch(data, frames)


def many_frames(messages: list[bytes], ts_receive: list[int]) -> Batch:
    """A batch of messages that lie apart; copies them into one buffer."""
    frames = np.zeros(len(messages), FRAME)
    sizes = np.fromiter(map(len, messages), np.uint64, len(messages))
    frames["size"] = sizes
    frames["offset"] = np.cumsum(sizes) - sizes
    frames["ts_receive"] = ts_receive
    return Batch(b"".join(messages), frames)


def clean_symbol(text: str) -> str:
    """The symbol as the engine writes it: runs of white space inside become one underscore."""
    return "_".join(text.split())
