"""One rate budget per API key: how many requests all processes that use the key may make, whatever restarts between.

A file of fixed size per key, under a kernel file lock that dies with its holder; it keeps the times of the newest
requests, so that a limit of N requests in P seconds holds exactly, over any P seconds, and over a kill or a restart of
the engine. What the vendor answers to one (429, Retry-After) holds for all. The file is named after a digest of the
key, never the key.

    0   magic, version            64   4096 times of requests, ns since the epoch; 0 = free
    16  head: requests so far          request number h is kept in place h % 4096
    24  blocked until, ns

    take    place[head % 4096] := now, then head := head + 1     killed in between: nothing taken, nothing asked

Called by workers/sources/polled_requests.py from the ingest worker's loop: nothing here waits. A lock that somebody
else holds is tried again a little later; those who hold it do so for some microseconds. Time is passed in.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from workers.errors import SettingsError, SourceError

MAX_REQUESTS: Final = 4096  # of one limit: so many times are kept
LOCK_RETRY_NS: Final = 1_000_000
CLOCK_SLACK_NS: Final = 1_000_000_000  # processes look at the clock before they have the lock
_MAGIC: Final = b"TKBUDGET"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sII q q")  # magic, version, capacity, head, blocked until; padded to 64
_STATE: Final = struct.Struct("<qq")
_STATE_AT: Final = 16
_TIMES_AT: Final = 64
_SIZE: Final = _TIMES_AT + 8 * MAX_REQUESTS


class Limit(NamedTuple):
    """At most `requests` within any `period_s` seconds."""

    requests: int
    period_s: float


class RateBudget:
    """The budget of one key, as one process sees it. Close it when done."""

    def __init__(self, folder: Path, vendor: str, key: str, limits: Sequence[Limit]) -> None:
        """Open the key's file in `folder`, or make both.

        Raises:
            SettingsError: a limit beyond what is kept.
            SourceError: the file can't be used; the text says what to do.
        """
        for limit in limits:
            if not 1 <= limit.requests <= MAX_REQUESTS or limit.period_s <= 0:
                raise SettingsError(f"a limit of {limit.requests} requests: it is 1 to {MAX_REQUESTS}")
        self.limits = tuple(limits)
        self.path = folder / f"{vendor}-{hashlib.sha256(f'{vendor} {key}'.encode()).hexdigest()[:24]}.budget"
        self._fd = -1
        self._block_wanted_ns = 0  # could not be written down yet
        self._returned: list[int] = []  # the same
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._check()
        except OSError as error:
            self.close()
            raise SourceError(f"budget {self.path}: {error.strerror or error}") from error

    def _check(self) -> None:
        """Write an empty file's header, refuse a foreign one. Waits for the lock: at start only."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._fd).st_size
            head = os.pread(self._fd, _HEADER.size, 0)
            if head[:8] == bytes(8) or (size < _SIZE and head[:8] in (b"", _MAGIC)):  # new, or made only half
                os.ftruncate(self._fd, _SIZE)
                os.pwrite(self._fd, _HEADER.pack(_MAGIC, _VERSION, MAX_REQUESTS, 0, 0), 0)
            elif size != _SIZE or _HEADER.unpack(head)[:3] != (_MAGIC, _VERSION, MAX_REQUESTS):
                self.close()
                raise SourceError(f"{self.path} is no budget of this version: remove it")
        finally:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def try_take(self, now_ns: int) -> int:
        """Take one request: 0 = it may be made now, else how long to wait before asking again, ns."""
        if self._block_wanted_ns > now_ns and not self._try_lock():
            return self._block_wanted_ns - now_ns
        if not self._try_lock():
            return LOCK_RETRY_NS
        try:
            head, blocked_ns, times = self._read(now_ns)
            self._settle(blocked_ns, times)
            wait_ns = max(self._wait_ns(times, now_ns), max(blocked_ns, self._block_wanted_ns) - now_ns, 0)
            self._block_wanted_ns = 0
            if not wait_ns:
                os.pwrite(self._fd, struct.pack("<q", now_ns), _TIMES_AT + 8 * (head % MAX_REQUESTS))
                os.pwrite(self._fd, struct.pack("<q", head + 1), _STATE_AT)
            return wait_ns
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def give_back(self, taken_ns: int) -> None:
        """The request taken at `taken_ns` never reached the vendor: it does not count."""
        self._returned.append(taken_ns)
        self._write_down()

    def block(self, until_ns: int) -> None:
        """The vendor wants no request of this key before then; holds for every process. Never shortens a block."""
        self._block_wanted_ns = max(self._block_wanted_ns, until_ns)
        self._write_down()

    def blocked_until_ns(self) -> int:
        """Until when the vendor wants no requests, as far as anybody has been told; 0 = it has not said."""
        blocked_ns: int = _STATE.unpack(os.pread(self._fd, _STATE.size, _STATE_AT))[1]
        return max(blocked_ns, self._block_wanted_ns)

    def used(self, limit: Limit, now_ns: int) -> int:
        """How many of the requests of that limit are used up now. A glance: somebody may just be taking one."""
        times = np.frombuffer(os.pread(self._fd, 8 * MAX_REQUESTS, _TIMES_AT), np.int64)
        return int(np.count_nonzero(times > now_ns - round(limit.period_s * 1e9)))

    def close(self) -> None:
        """Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _wait_ns(self, times: np.ndarray, now_ns: int) -> int:
        wait_ns = 0
        for limit in self.limits:
            period_ns = round(limit.period_s * 1e9)
            within = np.sort(times[times > now_ns - period_ns])
            if len(within) >= limit.requests:
                wait_ns = max(wait_ns, int(within[-limit.requests]) + period_ns - now_ns)
        return wait_ns

    def _read(self, now_ns: int) -> tuple[int, int, np.ndarray]:
        """head, blocked until, times. What lies far ahead was written before the clock was set back: it is now."""
        head, blocked_ns = _STATE.unpack(os.pread(self._fd, _STATE.size, _STATE_AT))
        times = np.frombuffer(os.pread(self._fd, 8 * MAX_REQUESTS, _TIMES_AT), np.int64).copy()
        ahead = times > now_ns + CLOCK_SLACK_NS
        if ahead.any():
            times[ahead] = now_ns
            os.pwrite(self._fd, times.tobytes(), _TIMES_AT)
        return head, blocked_ns, times

    def _settle(self, blocked_ns: int, times: np.ndarray) -> None:
        """Under the lock: write down what was to be said before. A block that the vendor gave is never shortened."""
        if self._block_wanted_ns > blocked_ns:
            os.pwrite(self._fd, struct.pack("<q", self._block_wanted_ns), _STATE_AT + 8)
        for taken_ns in self._returned:
            for place in np.flatnonzero(times == taken_ns)[:1]:
                times[place] = 0
                os.pwrite(self._fd, bytes(8), _TIMES_AT + 8 * int(place))
        self._returned.clear()

    def _write_down(self) -> None:
        if not self._try_lock():
            return  # with the next request
        try:
            blocked_ns = _STATE.unpack(os.pread(self._fd, _STATE.size, _STATE_AT))[1]
            times = np.frombuffer(os.pread(self._fd, 8 * MAX_REQUESTS, _TIMES_AT), np.int64).copy()
            self._settle(blocked_ns, times)
            self._block_wanted_ns = 0
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
