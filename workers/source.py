"""What a feed looks like to the ingest worker, and which kinds there are.

A source is pulled: the ingest loop asks `poll(out, now_ns)` and the source fills records into the caller's array, as
many as are due. It never publishes, sleeps or reads a clock: time is passed in, so that the same polls give the same
records. New kinds are added to SOURCES by name; options they do not know are refused before anything starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

import msgspec
import numpy as np

from shm.status import Counter
from workers.errors import SettingsError
from workers.resume import Newest
from workers.spec import FeedReport, FeedSpec
from workers.wire_log import WireLog

# Name of a source in settings -> module, and the class or function in it that makes one. A module is imported when a
# feed names it.
SOURCES: Final[dict[str, tuple[str, str]]] = {
    "simulated": ("workers.sources.simulated", "SimulatedSource"),
    "replay": ("workers.sources.replay", "ReplaySource"),
    "websocket": ("workers.sources.websocket", "WebSocketSource"),
    "multicast": ("workers.sources.multicast", "MulticastSource"),
    "alpha_vantage": ("workers.sources.alpha_vantage", "open_alpha_vantage"),
    "fred": ("workers.sources.fred", "open_fred"),
    "yahoo": ("workers.sources.yahoo", "open_yahoo"),
    "fix": ("workers.sources.fix", "FixSource"),
    "ibkr": ("workers.sources.ibkr", "IbkrSource"),
}
# Any other name is a plug-in's (workers/plugins.py), and this makes it.
HOST: Final = ("workers.sources.hosted", "HostedSource")


class Source(Protocol):
    """One running feed.

    Attributes:
        errors: pieces of input that could not be decoded, since the start.
        gaps: holes in the venue's own sequence numbers, since the start.
        bytes_received: input bytes taken so far; 0 where there are none.
        position: records handed out so far, if the same input can be had again (`skip`); None for what comes only once.
        asks: of a feed in a redundancy group: it is polled, so its pauses say nothing of its health. Left out = no.
        orders: the same: its level2 records are single orders, numbered by `source_sequence`. Left out = no.
        next_due_ns: when `poll` has something next (ns since the epoch; now or earlier = at once); None = finished.

    A source of sockets also has `fd`, a file descriptor: the worker sleeps on it, and polls before `next_due_ns` when
    it is readable.
    """

    errors: int
    gaps: int
    bytes_received: int
    position: int | None
    next_due_ns: int | None

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """Fill records that are due into `out` (shape (n,), dtype RECORD) from its start; returns how many, 0 = none.

        Every field but sequence, ts_publish and priority is set. SourceError: nothing can be had now; the ingest worker
        closes the source and tries again later.
        """

    def skip(self, records: int) -> None:
        """Leave out the next `records` records, as fast as it goes. Only where `position` is not None."""

    def resume(self, now_ns: int) -> None:
        """The feed was paused until now: do not deliver in a heap what would have been due meanwhile."""

    def close(self) -> None:
        """Let go of files and connections. Safe to call twice."""


class LiveSource(Source, Protocol):
    """A source that keeps connections of its own; the feed tells one by `tells`.

    Attributes:
        tells: FEED_UP and FEED_DOWN stand among its records; the feed adds none.
        report: how it is; another object whenever that has changed.
        fd: readable when `poll` has something to do; the worker sleeps on it.
    """

    tells: bool
    report: FeedReport
    fd: int


@dataclass(frozen=True)
class SourceContext:
    """What a source is made with.

    Attributes:
        spec: the feed's settings.
        intern: gives a symbol its instrument id (shm.instruments.InstrumentTable.intern).
        epoch: epoch of the ring: how often its writer has changed. Seeds and sequence numbers depend on it, so that a
            restarted simulation does not repeat itself.
        counter: makes or finds a counter of the worker by name (shm.status.ProcessStatus.counter); it outlives a killed
            worker. None: nobody reads them.
        folder: the engine's folder under the data directory; "" = there is none, and nothing outlives the process.
        budgets: where the budgets of API keys are; "" = beside `folder`, for all engines of the data directory.
        published: records of this feed that stand in the ring (dtype RECORD), oldest first, piece by piece: what a
            worker that was killed had published last. None: there is no ring.
        newest: the feed's newest message among the ring's records that were published since the one time and received
            since the other, ns; None: there is no ring.
        wire: writes down what a live source receives and sends (workers/wire_log.py). None: nobody does.
    """

    spec: FeedSpec
    intern: Callable[[str], int]
    epoch: int = 0
    counter: Callable[[str], Counter] | None = None
    folder: str = ""
    published: Callable[[], Iterator[np.ndarray]] | None = None
    newest: Callable[[int, int], Newest | None] | None = None
    wire: WireLog | None = None
    budgets: str = ""


def open_source(context: SourceContext) -> Source:
    """Make the source that the feed's settings name.

    Raises:
        SettingsError: no such source, or options that it can't use.
        SourceError: the settings are right, but it can't deliver now.
    """
    module, name = SOURCES.get(check_source(context.spec), HOST)
    source: Source = getattr(import_module(module), name)(context)
    return source


def check_source(spec: FeedSpec) -> str:
    """The source's name, if there is such a source; SettingsError with the nearest name if not."""
    if spec.source not in SOURCES:
        from workers import plugins  # which scans what is installed: only for what is not built in

        found = plugins.find(spec.source)
        if found is None:
            names = [*SOURCES, *(plugin.name for plugin in plugins.installed() if not plugin.refused)]
            raise SettingsError(f"feed {spec.name}: source is {spec.source!r}{nearest(spec.source, names)}")
        if found.refused:
            raise SettingsError(f"feed {spec.name}: source is {spec.source!r}: {found.refused}")
    return spec.source


OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


def read_options(spec: FeedSpec, options_type: type[OptionsT]) -> OptionsT:
    """The feed's options as a struct. SettingsError names the feed, the key and what it may be."""
    known = options_type.__struct_fields__
    for key in spec.options:
        if key not in known:
            raise SettingsError(f"feed {spec.name}: no option {key!r} for source {spec.source!r}{nearest(key, known)}")
    try:
        return msgspec.convert(spec.options, options_type)
    except msgspec.ValidationError as error:
        raise SettingsError(f"feed {spec.name}: options of source {spec.source!r}: {error}") from None


def nearest(name: str, known: Any) -> str:
    """ "; did you mean ...?" or "; must be one of ..." for an error message about a name that is not among `known`."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; must be one of {', '.join(sorted(known))}"
