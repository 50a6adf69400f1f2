"""Which feeds of an ingest worker are captured while it runs, and what has become of that: section [capture].

Made by workers/ingest.py, which asks for each feed's `wire` and has the counters brought up to date; the writing is
workers/capture_log.py's, in a thread of its own. A capture that can't be made (no room, no zstd) is said and counted,
and harms no feed.

Counters, FEED being the feed's number: `capture.FEED.messages` and `.bytes` in files, `.dropped` in none.
"""

from __future__ import annotations

import logging
from typing import Final

from shm.status import Counter, ProcessStatus
from workers.capture_log import CaptureLog, Recording
from workers.errors import SettingsError
from workers.spec import CaptureSettings, FeedSpec
from workers.wire_log import WireLog

log = logging.getLogger("capture")

COUNT_EVERY_NS: Final = 1_000_000_000
_COUNTED: Final = ("messages", "bytes", "dropped")
NOT_LIVE: Final = ("simulated", "mock", "replay")  # sources that have no wire
WIRED: Final = ("websocket", "fix", "multicast", "yahoo", "alpha_vantage", "fred", "ibkr")  # sources that tell of it


def why_not(source: str) -> str:
    """Why a feed of this source can't be captured, to follow its name; "" = it can."""
    if source in NOT_LIVE:
        return "has no wire; live sources do"
    if source not in WIRED:
        return f"can not be captured: only {', '.join(WIRED[:-1])} and {WIRED[-1]} feeds can"
    return ""


class Captures:
    """The captures of one worker; none costs nothing."""

    def __init__(self, settings: CaptureSettings | None, status: ProcessStatus) -> None:
        """Nothing is opened before a feed is captured."""
        self._settings = settings
        self._status = status
        self._recording: Recording | None = None
        self._logs: dict[int, tuple[CaptureLog, tuple[Counter, ...], tuple[int, ...]]] = {}
        self._next_count_ns = 0

    def wire_of(self, spec: FeedSpec, *, fresh: bool = False) -> WireLog | None:
        """Where this feed's source tells of its wire; None = it is not captured.

        `fresh`: the counters of its number were another feed's and begin at 0.
        """
        settings = self._settings
        if settings is None or not {"*", spec.name} & set(settings.feeds):
            return None
        if why := why_not(spec.source):
            if spec.name in settings.feeds:  # "*" means those that can be
                log.warning("feed %s is not captured: source %r %s", spec.name, spec.source, why)
            return None
        try:
            if self._recording is None:
                self._recording = Recording(settings)
        except (OSError, SettingsError) as error:
            log.error("feed %s is not captured: %s", spec.name, error)
            return None
        found = self._recording.log_of(spec)
        counters = tuple(self._status.counter(f"capture.{spec.feed_id}.{name}") for name in _COUNTED)
        # They go on where the worker before this one left them.
        self._logs[spec.feed_id] = found, counters, tuple(0 if fresh else counter.value for counter in counters)
        log.info("feed %s is captured into %s", spec.name, settings.folder)
        return found

    def count(self, now_ns: int) -> None:
        """Bring the counters up to date, once a second."""
        if not self._logs or 0 <= self._next_count_ns - now_ns <= COUNT_EVERY_NS:
            return
        self._next_count_ns = now_ns + COUNT_EVERY_NS
        self._show()

    def end(self, spec: FeedSpec) -> None:
        """The feed was removed."""
        if self._recording is not None and self._logs.pop(spec.feed_id, None) is not None:
            self._recording.end(spec)

    def close(self) -> None:
        """Write what waits, and end the files."""
        if self._recording is not None:
            self._recording.close()
            self._show()

    def _show(self) -> None:
        for found, counters, before in self._logs.values():
            values = (found.written, found.bytes_written, found.dropped)
            for counter, value, base in zip(counters, values, before, strict=True):
                counter.set(base + value)
