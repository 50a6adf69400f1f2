"""A MoldUDP64 feed that wants its session from the first message on: which frames are old, and which were published.

    frames of the arbiter --runs--> decoder --records--> keep --> what is to be published
                                                              BACKFILLED: the message was asked for while joining
                                                              left out: a worker before this one has published it

The arbiter knows what it lacks (`from_start`, workers/arbitration.h); this says what becomes of what comes. A decoder
needs every message for its orders, also those whose records are in the ring. Made by workers/sources/multicast.py for
feeds with `join = "start"`, and asked only while there is something to tell apart. Sans-I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD_SIZE_BYTES, Flag, RecordType, StatusCode
from workers._arbitration import JOINED, Arbiter
from workers.arbitration import MOLD_SESSION_BYTES
from workers.decoders.protocol import one_frame

HEADER_BYTES: Final = 20
_BACKFILLED: Final = np.uint16(Flag.BACKFILLED)


class Run(NamedTuple):
    """Frames that are decoded together, because the same holds for them."""

    buffer: Arbiter | bytes
    frames: np.ndarray
    joined: bool  # asked for while joining
    published: bool  # by a worker before this one


class Join:
    """The sessions of one feed."""

    def __init__(self, session: bytes, published: int) -> None:
        """A worker before this one has published the session's messages below `published` (0 = none)."""
        self._session = session[:MOLD_SESSION_BYTES]
        self._published = published
        self._known: set[bytes] = set()  # sessions that the decoder was told the start of
        self._run = Run(b"", np.zeros(0), joined=False, published=False)
        self._beyond = False  # this run goes on behind what was published

    def is_needed(self, arbiter: Arbiter) -> bool:
        """Whether frames can't go to the decoder as they are."""
        return bool(self._published) or arbiter.joining > 0 or len(self._known) < arbiter.joins

    def position(self, session: bytes, expected: int) -> int:
        """`expected`, or what was published of that session if that is more: the place to go on from after a kill."""
        return max(expected, self._published) if session[:MOLD_SESSION_BYTES] == self._session else expected

    def runs(self, arbiter: Arbiter) -> Iterator[Run]:
        """What to decode of `arbiter.frames`, in order; valid until it recycles."""
        frames, buffer = arbiter.frames, memoryview(arbiter)
        begun = 0
        kind = (False, False)
        for place, frame in enumerate(frames):
            start = int(frame["offset"])
            packet = buffer[start : start + int(frame["size"])]
            session, first, count = _header(packet)
            joined, published = bool(frame["reserved"] & JOINED), self._is_published(session, first)
            news = session not in self._known
            crossing = published and first + count > self._published
            if place > begun and ((joined, published) != kind or news or crossing):
                yield Run(arbiter, frames[begun:place], *kind)
                begun = place
            kind = (joined, published)
            if news:
                self._known.add(session)
                yield Run(*one_frame(session + (1).to_bytes(8, "big") + bytes(2), 0), joined=False, published=False)
            if crossing:
                ts_receive = int(frame["ts_receive"])
                for part, had in zip(_cut(bytes(packet), self._published), (True, False), strict=True):
                    yield Run(*one_frame(part, ts_receive), joined=joined, published=had)
                begun = place + 1
        if begun < len(frames):
            yield Run(arbiter, frames[begun:], *kind)

    def begin(self, run: Run) -> None:
        """The decoder has this run now: `keep` is asked about its records."""
        self._run = run
        session, first, count = _header(memoryview(run.buffer)[int(run.frames["offset"][0]) :])
        if self._beyond or (session != self._session and count):
            self._published, self._beyond = 0, False
        self._beyond = bool(self._published) and first >= self._published

    def keep(self, records: np.ndarray) -> int:
        """Flags what was asked for, and moves what is to be published to the front; returns how many that are."""
        if self._run.joined:
            records["flags"] |= _BACKFILLED
        gaps = (records["record_type"] == RecordType.STATUS) & (records["code"] == StatusCode.GAP)
        wanted = np.full(len(records), not self._run.published)
        if self._published and gaps.any():  # of what is missing, some may have been published
            records["from_sequence"][gaps] = np.maximum(records["from_sequence"][gaps], np.uint64(self._published))
            wanted &= ~gaps | (records["from_sequence"] < records["to_sequence"])
        count = int(np.count_nonzero(wanted))
        if count < len(records):
            rows = records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)
            rows[:count] = rows[wanted]
        return count

    def _is_published(self, session: bytes, first: int) -> bool:
        return session == self._session and first < self._published


def _header(packet: memoryview) -> tuple[bytes, int, int]:
    """Session, number of the first message, count of messages."""
    count = int.from_bytes(packet[18:HEADER_BYTES], "big")
    first = int.from_bytes(packet[MOLD_SESSION_BYTES:18], "big")
    return bytes(packet[:MOLD_SESSION_BYTES]), first, 0 if count == 0xFFFF else count


def _cut(packet: bytes, at: int) -> tuple[bytes, bytes]:
    """A packet as two: its messages below number `at`, and the others."""
    session, first, count = _header(memoryview(packet))
    place = HEADER_BYTES
    for _ in range(at - first):
        place += 2 + int.from_bytes(packet[place : place + 2], "big")
    head = session + first.to_bytes(8, "big") + (at - first).to_bytes(2, "big") + packet[HEADER_BYTES:place]
    return head, session + at.to_bytes(8, "big") + (first + count - at).to_bytes(2, "big") + packet[place:]
