"""The ledger of webhook deliveries: how far each subscription is, in a mapped file that outlives its writer.

    header   words 0..255     magic, version, slots; per ring: when it was made, sequence up to which it was read
    slots    128 words each   one subscription: its key, counts, state; per ring what is unacknowledged, and the gap

Written by the webhooks worker alone (it holds the file's lock), word by word, so that a process killed at any
instruction leaves a state its successor can go on from: at worst something is delivered twice. Read by the control
process for GET /subscriptions, whether the worker runs or not. All words are int64; a slot with key 0 is free.

What of ring R a subscription has acknowledged follows from two words:

    unacked[R] == 0     everything up to `read[R]` of the header, which moves on for all subscriptions at once
    unacked[R] == n     everything before sequence n

Order of stores, on which that rests: `unacked` before `read`, a gap before the `unacked` that steps over it.
It is a file and not a segment because counts and gaps are to survive an orderly stop too. A power cut may leave an old
state: rings do not survive that either. It never decides what is delivered.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentMissing, ShmFull, WriterBusy
from shm.layout import MAX_RINGS

SLOTS: Final = 1024
UNKNOWN: Final = -1  # count of a gap that nobody could count

_MAGIC: Final = 0x314B4F4F484B54  # "TKHOOK1", little-endian
_VERSION: Final = 1
_HEADER_WORDS: Final = 256
_SLOT_WORDS: Final = 128
_SIZE_BYTES: Final = 8 * (_HEADER_WORDS + SLOTS * _SLOT_WORDS)
_RING_MADE: Final = 16
_RING_READ: Final = 32
_LOCK_WAIT_S: Final = 2.0

Words = np.ndarray[Any, np.dtype[np.int64]]


class DeliveryState(enum.IntEnum):
    """What it does: DELIVERING, WAITING for the next attempt, PARKED after many failures, PAUSED by its owner."""

    DELIVERING = 0
    WAITING = 1
    PARKED = 2
    PAUSED = 3


class Failure(enum.IntEnum):
    """Why a delivery was not acknowledged; an HTTP status stands for itself."""

    NONE = 0
    REFUSED_TARGET = 1
    NO_ADDRESS = 2
    NO_CONNECTION = 3
    TLS = 4
    TIMEOUT = 5
    CLOSED = 6
    PROTOCOL = 7


class GapReason(enum.IntEnum):
    """Why something was never delivered."""

    NONE = 0
    QUEUE_FULL = 1
    PARKED = 2
    OVERRUN = 3
    ENGINE_RESTARTED = 4
    PAUSED = 5


class Slot:
    """The words of one subscription. Fields below are offsets; those of rings take MAX_RINGS words."""

    KEY: Final = 0
    STATE: Final = 1
    DELIVERED: Final = 2  # messages acknowledged
    FAILED: Final = 3  # attempts that were not
    DELIVERY: Final = 4  # number of the last delivery that was begun
    QUEUED: Final = 5  # messages not acknowledged yet
    LOST: Final = 6  # messages that will never be delivered, as far as they could be counted
    FAILURES: Final = 7  # attempts in a row that failed
    LAST_FAILURE: Final = 8
    LAST_ANSWER_NS: Final = 9
    NEXT_ATTEMPT_NS: Final = 10
    GAP_REASON: Final = 11
    UNACKED: Final = 16
    UNACKED_COUNT: Final = 32
    GAP_FROM: Final = 48
    GAP_TO: Final = 64
    GAP_COUNT: Final = 80

    __slots__ = ("words",)

    def __init__(self, words: Words) -> None:
        """Wrap a row of the table."""
        self.words = words

    def get(self, field: int, ring: int = 0) -> int:
        """One word."""
        return int(self.words[field + ring])

    def set(self, field: int, value: int, ring: int = 0) -> None:
        """Store one word."""
        self.words[field + ring] = value

    def add(self, field: int, amount: int) -> None:
        """Add to one word."""
        self.words[field] += amount


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One subscription at one moment; times are ns since the epoch, 0 = never."""

    state: DeliveryState
    delivered: int
    failed: int
    queued: int
    lost: int
    failures_in_a_row: int
    last_failure: int  # a Failure, or an HTTP status
    last_answer_ns: int
    next_attempt_ns: int


class Ledger:
    """The file, mapped. Use `open` (the one writer) or `attach` (readers)."""

    def __init__(self, fd: int, *, write: bool) -> None:
        """Map a checked file; takes `fd` over."""
        self._fd = fd
        access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
        words: Words = np.frombuffer(mmap.mmap(fd, _SIZE_BYTES, access=access), np.int64)
        self._header = words[:_HEADER_WORDS]
        self._table: Words = words[_HEADER_WORDS:].reshape(SLOTS, _SLOT_WORDS)

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Become the writer of the file, making it where there is none.

        Raises:
            WriterBusy: another live process writes it.
            NotAllowed, ShmFull: it can't be made, or the disk is full.
            LayoutMismatch: it is something else; the message says what to do.
        """
        deadline_s = time.monotonic() + _LOCK_WAIT_S
        try:
            if not path.exists():
                _make(path)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError as error:
            raise NotAllowed(f"{path}: {error.strerror}") from error
        except OSError as error:
            raise ShmFull(f"{path}: {error.strerror}") from error
        try:
            _check(path, fd)
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:  # the kernel may still be busy burying the one before
                        raise WriterBusy(f"{path}: another process delivers webhooks from it") from None
                    time.sleep(0.01)
            return cls(fd, write=True)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, path: Path) -> Ledger:
        """Map it read-only. SegmentMissing, NotAllowed, LayoutMismatch."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SegmentMissing(f"{path}: nothing was ever delivered") from None
        except OSError as error:
            raise NotAllowed(f"{path}: {error.strerror}") from error
        try:
            _check(path, fd)
            return cls(fd, write=False)
        except BaseException:
            os.close(fd)
            raise

    def slot(self, key: int) -> Slot | None:
        """The slot of a subscription; None if it has none."""
        found = np.flatnonzero(self._table[:, Slot.KEY] == key)
        return Slot(self._table[int(found[0])]) if len(found) else None

    def claim(self, key: int) -> Slot:
        """The slot of a subscription, a fresh one if it has none. ShmFull if none is free; BadArgument for key 0."""
        if key <= 0:
            raise BadArgument(f"key is {key}, must be greater than 0")
        found = self.slot(key)
        if found is not None:
            return found
        free = np.flatnonzero(self._table[:, Slot.KEY] == 0)
        if not len(free):
            raise ShmFull(f"all {SLOTS} places for webhook subscriptions are taken")
        row = self._table[int(free[0])]
        row[:] = 0
        row[Slot.KEY] = key
        return Slot(row)

    def keep(self, keys: Collection[int]) -> None:
        """Free the slots of all other subscriptions."""
        used = self._table[:, Slot.KEY]
        for index in np.flatnonzero(used != 0).tolist():
            if int(used[index]) not in keys:
                used[index] = 0

    def view(self, key: int) -> DeliveryView | None:
        """What is known of a subscription; None if nothing."""
        slot = self.slot(key)
        if slot is None:
            return None
        words = [int(word) for word in slot.words[: Slot.GAP_REASON]]
        return DeliveryView(
            state=DeliveryState(words[Slot.STATE]),
            delivered=words[Slot.DELIVERED],
            failed=words[Slot.FAILED],
            queued=words[Slot.QUEUED],
            lost=words[Slot.LOST],
            failures_in_a_row=words[Slot.FAILURES],
            last_failure=words[Slot.LAST_FAILURE],
            last_answer_ns=words[Slot.LAST_ANSWER_NS],
            next_attempt_ns=words[Slot.NEXT_ATTEMPT_NS],
        )

    def ring_made_ns(self, ring: int) -> int:
        """When the ring that `read` is about was made; 0 = none was read yet."""
        return int(self._header[_RING_MADE + ring])

    def read(self, ring: int) -> int:
        """Sequence up to which a ring was read, and queued for whom it concerns."""
        return int(self._header[_RING_READ + ring])

    def follow_ring(self, ring: int, made_ns: int, read: int) -> None:
        """From now on it is that ring, read up to `read`."""
        self._header[_RING_MADE + ring] = 0
        self._header[_RING_READ + ring] = read
        self._header[_RING_MADE + ring] = made_ns

    def set_read(self, ring: int, sequence: int) -> None:
        """A ring was read up to `sequence`; never goes back."""
        self._header[_RING_READ + ring] = max(self._header[_RING_READ + ring], sequence)

    def close(self) -> None:
        """Give up the lock; the mapping goes with its last user. Safe to call twice."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping has a descriptor of its own, which would keep it
            os.close(self._fd)
            self._fd = -1


def _make(path: Path) -> None:
    """All of it or nothing: a half made file never has the name."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        words = np.zeros(_SIZE_BYTES // 8, np.int64)
        words[:4] = _MAGIC, _VERSION, SLOTS, MAX_RINGS
        text = memoryview(words.tobytes())  # written and not only sized: a full disk shows now and not as a SIGBUS
        while text:
            text = text[os.write(fd, text) :]
        os.rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _check(path: Path, fd: int) -> None:
    head = np.frombuffer(os.pread(fd, 32, 0).ljust(32, b"\0"), np.int64).tolist()
    if os.fstat(fd).st_size != _SIZE_BYTES or head != [_MAGIC, _VERSION, SLOTS, MAX_RINGS]:
        raise LayoutMismatch(
            f"{path} is not a ledger of version {_VERSION}; move it away to start without its counts and positions"
        )
