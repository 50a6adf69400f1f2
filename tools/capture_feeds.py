"""Live sources without an engine: polled in one loop, their wire written down, their records thrown away.

Called by tools/capture.py. A source that fails is made again with the ingest worker's back-off (workers/backoff.py);
one that fails harms no other. Nothing of the engine is needed or touched: no shared memory, no ports. Only a FIX
session's numbers are kept, since the venue goes on with them whoever logs on.
"""

from __future__ import annotations

import logging
import random
import selectors
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from shm.layout import empty
from workers.backoff import Backoff
from workers.capture_log import CaptureLog, Recording
from workers.errors import SettingsError
from workers.source import Source, SourceContext, open_source
from workers.spec import FeedSpec

log = logging.getLogger("capture")

MAX_WAIT_S: Final = 0.1  # between looks at the clock and at whether to stop
_BATCH_SLOTS: Final = 4096


class CapturedFeed:
    """One source. `log` is what it has told of its wire; `why` what keeps it from delivering, "" = nothing."""

    def __init__(self, spec: FeedSpec, recording: Recording, *, folder: str = "", budgets: str = "") -> None:
        """`folder`: where a FIX session has its numbers; `budgets`: folder of those of API keys, which the engines here
        use too.

        SettingsError: settings that can't work. Whatever else keeps it from opening is tried again.
        """
        self.spec = spec
        self._folder = folder if spec.source == "fix" else ""
        self.log: CaptureLog = recording.log_of(spec)
        self.records = 0
        self.errors = 0
        self.why = ""
        self._source: Source | None = None
        self._backoff = Backoff(random.Random(spec.name))
        self._due_ns: int | None = 0
        self._up_since_ns = 0
        self._ids: dict[str, int] = {}
        self._budgets = budgets
        try:
            self._open(0)
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001 -- the source's own fault; tried again
            self.why = str(error) or type(error).__name__

    @property
    def fd(self) -> int | None:
        """Readable when there is something to take; None = it has no sockets."""
        return getattr(self._source, "fd", None)

    @property
    def due_ns(self) -> int | None:
        """When to be served next; None = it has ended."""
        return self._due_ns

    @property
    def report(self) -> Any:
        """What a live source says of itself (workers.spec.FeedReport); None = it says nothing."""
        return getattr(self._source, "report", None)

    def serve(self, out: Any, now_ns: int) -> None:
        """Take what is there."""
        try:
            if self._source is None:
                self._open(now_ns)
            assert self._source is not None
            self.records += self._source.poll(out, now_ns)
            self._due_ns = self._source.next_due_ns
            self.why = ""
        except Exception as error:  # noqa: BLE001 -- one feed's fault is not the others'
            self.why = str(error) or type(error).__name__
            self.errors += 1
            self._close()
            self._due_ns = self._backoff.failed(now_ns, self._up_since_ns)
            if isinstance(error, SettingsError):
                self._due_ns = None
            log.warning("feed %s: %s", self.spec.name, self.why)

    def close(self) -> None:
        """Close the source, whose last words stay in `why`; its log is the recording's to end."""
        report = self.report
        if report is not None and report.state != "live":
            self.why = self.why or report.why
        self._close()

    def _open(self, now_ns: int) -> None:
        intern: Callable[[str], int] = lambda name: self._ids.setdefault(name, len(self._ids))  # noqa: E731
        context = SourceContext(self.spec, intern, folder=self._folder, wire=self.log, budgets=self._budgets)
        self._source = open_source(context)
        self._up_since_ns = now_ns

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None


def run_feeds(feeds: Iterable[CapturedFeed], go_on: Callable[[], bool], look: Callable[[], None]) -> None:
    """Serve the feeds while `go_on()`; `look` is called between, ten times a second and more, to show how it goes."""
    feeds = list(feeds)
    out = empty(_BATCH_SLOTS)
    readable: set[int] = set()
    while go_on() and any(feed.due_ns is not None for feed in feeds):
        now_ns = time.time_ns()
        for feed in feeds:
            if feed.due_ns is not None and (feed.due_ns <= now_ns or feed.fd in readable):
                feed.serve(out, now_ns)
        look()
        due_ns = min((feed.due_ns for feed in feeds if feed.due_ns is not None), default=now_ns)
        wait_s = min(MAX_WAIT_S, max(0.0, (due_ns - time.time_ns()) / 1e9))
        readable = _wait({feed.fd for feed in feeds if feed.fd is not None and feed.due_ns is not None}, wait_s)


def _wait(descriptors: set[int], wait_s: float) -> set[int]:
    if not descriptors:
        time.sleep(wait_s)
        return set()
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return {key.fd for key, _ in selector.select(wait_s)}
