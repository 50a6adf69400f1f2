"""Waits for the disk in a thread of its own, so that a slow fsync never keeps the recorder from its rings.

Used by workers/journal.py alone. The journal asks with `request`; what had been written before that call is on the disk
once `done` has reached the ticket that the call returned. Requests that come while the disk is busy are served
together. A failed fsync is counted and its ticket still passes: the kernel forgets the error after telling it once, so
that asking again would only pretend.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger("recorder")


class Syncer:
    """The thread and what it is asked. `request`, `retire` and `close` belong to one thread, the journal's."""

    def __init__(self, on_synced: Callable[[int], None]) -> None:
        """`on_synced(duration_ns)` is called in the thread after each fsync of a file."""
        self.done = 0
        self.errors = 0
        self._on_synced = on_synced
        self._ticket = 0
        self._dirty: dict[int, bool] = {}  # descriptor -> close it afterwards
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="journal fsync", daemon=True)
        self._thread.start()

    def request(self, descriptors: list[int]) -> int:
        """Ask for these files to be brought to the disk; returns the ticket."""
        with self._changed:
            for descriptor in descriptors:
                self._dirty.setdefault(descriptor, False)
            self._ticket += 1
            self._changed.notify_all()
            return self._ticket

    def retire(self, descriptor: int) -> None:
        """Bring a file to the disk and close it: the thread owns the descriptor from now on."""
        with self._changed:
            self._dirty[descriptor] = True
            self._ticket += 1
            self._changed.notify_all()

    def wait(self, ticket: int, timeout_s: float) -> bool:
        """Whether everything up to `ticket` is on the disk, waiting up to `timeout_s` for it."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done >= ticket, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Serve what was asked and end; False if that took longer (the kernel then writes it in its own time)."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._ticket > self.done)
                if self._ticket == self.done:
                    return
                ticket, batch, self._dirty = self._ticket, self._dirty, {}
            for descriptor, last in batch.items():
                self._sync(descriptor)
                if last:
                    os.close(descriptor)
            with self._changed:
                self.done = ticket
                self._changed.notify_all()

    def _sync(self, descriptor: int) -> None:
        start = time.perf_counter_ns()
        try:
            os.fsync(descriptor)
        except OSError as error:
            self.errors += 1
            log.error("fsync of the journal: %s", error)
        self._on_synced(time.perf_counter_ns() - start)
