"""The feeds of an engine while it runs: those of the configuration, and those added, changed and removed over HTTP.

One change at a time, each in this order, so that a kill at any point leaves something that a restart makes whole:

    plan     the settings with which the supervisor would start the worker again
    worker   the command, answered; refused = the plan is put back, and nothing was done
    store    what the next start of the engine begins with

Called by engine/http_feeds.py; the observer reads `entries`. It judges no feed's health and opens no source.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from engine.errors import FeedConflict, FeedRefused, StoreError, Unavailable
from engine.health import FeedExpected
from engine.plan import CONTROL_LABEL, Plan
from engine.store import Store, StoredFeed
from workers.spec import (
    AddFeed,
    AnyReply,
    Command,
    FeedReport,
    FeedSpec,
    GroupReport,
    IngestSettings,
    PauseFeed,
    Refused,
    RemoveFeed,
    ResumeFeed,
)

FIRST_NUMBER: Final = 1001  # of feeds added; those of the configuration count from 1
LAST_NUMBER: Final = 65535
MAX_PER_WORKER: Final = 100  # numbers one worker hosts in a run: each takes nine of its 1024 counters
REPORT_VALID_NS: Final = 5_000_000_000
ALL_SYMBOLS: Final = "*"
HTTP_SOURCE: Final = "internal"  # what arrives at POST /data/ingest; no worker hosts it

# Names of the interface -> sources of the workers.
_SOURCE_NAMES: Final = {"mock": "simulated"}
_MOCK_RATE: Final = 10.0  # records/s of one added simulated feed, unless asked otherwise


class Workers(Protocol):
    """What is needed of the supervisor."""

    def set_feeds(self, label: str, feeds: tuple[FeedSpec, ...]) -> None:
        """From now on the worker is started with these feeds."""


class Commands(Protocol):
    """What is needed of the command channel."""

    reports: dict[int, FeedReport]
    groups: dict[str, GroupReport]

    async def ask(self, label: str, command: Command, timeout_s: float = 2.0) -> AnyReply:
        """Send a command, wait for its reply."""


@dataclass
class Entry:
    """One feed. `added` is None for a feed of the configuration; `label` is the process that hosts it."""

    spec: FeedSpec
    label: str
    added: StoredFeed | None = None

    @property
    def data_source(self) -> str:
        """The source as it was asked for."""
        return self.added.data_source if self.added is not None else self.spec.source


def spec_of(feed: StoredFeed, source_code: int = 0) -> FeedSpec:
    """What a worker is told of a feed that was added; `source_code` is that of a plug-in."""
    options = dict(feed.options)
    source = _SOURCE_NAMES.get(feed.data_source, feed.data_source)
    if source == "simulated":
        options.setdefault("rate", _MOCK_RATE)
    if source == "replay" and "file" in options:
        options["files"] = [options.pop("file")]
    return FeedSpec(
        feed_id=feed.number,
        name=feed.feed_id,
        source=source,
        source_code=source_code,
        symbols=() if feed.symbol == ALL_SYMBOLS else (feed.symbol,),
        data_types=feed.data_types,
        options=options,
        added=True,
        paused=feed.paused,
        group=feed.group,
        rank=feed.rank,
    )


def hosted(feeds: Iterable[StoredFeed], source_codes: Mapping[str, int]) -> tuple[FeedSpec, ...]:
    """Of feeds that were added, what workers host; `source_codes` has the plug-ins among their sources."""
    return tuple(
        spec_of(feed, source_codes.get(feed.data_source, 0)) for feed in feeds if feed.data_source != HTTP_SOURCE
    )


def worker_source(data_source: str) -> str:
    """The workers' name of a source of the interface."""
    return _SOURCE_NAMES.get(data_source, data_source)


class Feeds:
    """The feeds of one engine. `entries` by feed id, the configured ones first."""

    def __init__(
        self,
        plan: Plan,
        stored: Iterable[StoredFeed],
        store: Store,
        workers: Workers,
        *,
        posted: dict[str, int],
        code_of: Callable[[str], int],
    ) -> None:
        """Everything in `plan` and `stored` runs already, or is about to.

        Args:
            posted: symbol -> feed number, which HTTP ingest puts into its records; kept up to date here.
            code_of: the code of a plug-in source, 0 = it is none (engine.source_codes); may block.
        """
        self._store = store
        self._workers = workers
        self._posted = posted
        self._changing = asyncio.Lock()
        self._commands: Commands | None = None
        labels = {
            feed.feed_id: worker.label for worker in plan.workers for feed in getattr(worker.settings, "feeds", ())
        }
        ingest = [worker.settings for worker in plan.workers if isinstance(worker.settings, IngestSettings)]
        self._labels = [settings.label for settings in ingest if not settings.isolated]
        self._hosts = [settings.label for settings in ingest if settings.isolated]
        self._code_of = code_of
        self.entries = {spec.name: Entry(spec, labels[spec.feed_id]) for spec in plan.feeds if not spec.added}
        for feed in stored:
            planned = next((spec for spec in plan.feeds if spec.feed_id == feed.number and spec.added), None)
            spec = planned or spec_of(feed)
            self.entries[feed.feed_id] = Entry(spec, labels.get(spec.feed_id, CONTROL_LABEL), feed)
            if feed.data_source == HTTP_SOURCE:
                posted[feed.symbol] = feed.number
        self._numbers: dict[str, set[int]] = {label: set() for label in (*self._labels, *self._hosts, CONTROL_LABEL)}
        for entry in self.entries.values():
            self._numbers[entry.label].add(entry.spec.feed_id)
        self._free: dict[str, deque[int]] = {label: deque() for label in self._numbers}

    def connect(self, commands: Commands) -> None:
        """The channel to the workers; before it is there nothing can be changed."""
        self._commands = commands

    @property
    def expected(self) -> tuple[FeedExpected, ...]:
        """Every feed as health judges it, in order of `entries`."""
        return tuple(FeedExpected(e.spec.feed_id, e.spec.name, e.label) for e in self.entries.values())

    def reports(self, now_ns: int) -> dict[int, FeedReport]:
        """What workers say of their live feeds, by number. One that has fallen silent is not quoted."""
        told = self._commands.reports if self._commands is not None else {}
        return {number: report for number, report in told.items() if now_ns - report.at_ns < REPORT_VALID_NS}

    def group_reports(self, now_ns: int) -> dict[str, GroupReport]:
        """What workers say of redundancy groups, by name; of groups that still have feeds."""
        told = self._commands.groups if self._commands is not None else {}
        known = {entry.spec.group for entry in self.entries.values()}
        return {
            name: report for name, report in told.items() if name in known and now_ns - report.at_ns < REPORT_VALID_NS
        }

    def get(self, feed_id: str) -> Entry | None:
        """A feed by its id."""
        return self.entries.get(feed_id)

    async def create(self, wanted: StoredFeed, *, failed: Iterable[str]) -> tuple[Entry, str]:
        """Add a feed; one that was asked for in the same words before is the answer, started again if it has failed.

        Args:
            wanted: without `feed_id` and `number`, which are given here.
            failed: ids of feeds that have failed.

        Returns:
            the feed, and "created", "restarted" or "exists".

        Raises:
            FeedRefused: it can't work; the text says what to do.
            FeedConflict: there is no place for it.
            Unavailable: not now.
        """
        async with self._changing:
            for entry in self.entries.values():
                if entry.added is not None and _request(entry.added) == _request(wanted):
                    if entry.spec.name not in set(failed):
                        return entry, "exists"
                    await self._replace(entry, entry.added)
                    return entry, "restarted"
            _check(wanted)
            if wanted.data_source == HTTP_SOURCE:
                if wanted.group:
                    raise FeedRefused(f"group: a feed of source {HTTP_SOURCE!r} can't be in one: no worker hosts it")
                if wanted.symbol == ALL_SYMBOLS or wanted.symbol in self._posted:
                    raise FeedRefused(f"symbol: a feed of source {HTTP_SOURCE!r} is one symbol's, and each has one")
                label, code = CONTROL_LABEL, 0
            else:
                label, code = await self._choose(wanted)
            number = self._number(label)
            feed = msgspec.structs.replace(wanted, feed_id=self._name(wanted.symbol), number=number)
            entry = Entry(spec_of(feed, code), label, feed)
            try:
                await self._start(entry, fresh=True)
                await self._keep(feed)
            except (FeedRefused, Unavailable):
                await self._stop(entry)
                self._free[label].appendleft(number)
                raise
            self.entries[feed.feed_id] = entry
            return entry, "created"

    async def change(self, entry: Entry, *, data_types: tuple[str, ...] | None, paused: bool | None) -> None:
        """Take other data types, pause or resume. Raises as `create`."""
        async with self._changing:
            if self.entries.get(entry.spec.name) is not entry:
                raise FeedConflict(f"feed {entry.spec.name!r} has been removed meanwhile")
            if entry.label == CONTROL_LABEL:
                raise FeedRefused(f"a feed of source {HTTP_SOURCE!r} is what is posted: it has nothing to change")
            if data_types is not None:
                if entry.added is None:
                    raise FeedRefused(f"feed {entry.spec.name!r} is configured: change its data_types there")
                await self._replace(entry, msgspec.structs.replace(entry.added, data_types=data_types))
            if paused is not None and paused != entry.spec.paused:
                await self._pause(entry, paused)

    async def remove(self, entry: Entry) -> None:
        """Close a feed and forget it. Raises FeedRefused for one of the configuration, Unavailable."""
        async with self._changing:
            if entry.added is None:
                raise FeedRefused(f"feed {entry.spec.name!r} is configured: take it out of the configuration file")
            if self.entries.get(entry.spec.name) is not entry:
                return
            try:
                await asyncio.to_thread(self._store.delete_feed, entry.spec.name)
            except StoreError as error:
                raise Unavailable(str(error)) from error
            del self.entries[entry.spec.name]
            await self._stop(entry)
            self._free[entry.label].append(entry.spec.feed_id)

    async def _choose(self, wanted: StoredFeed) -> tuple[str, int]:
        """(worker for a new feed, code of its source): a plug-in gets a worker of its own. Raises as `create`."""
        try:
            code = await asyncio.to_thread(self._code_of, worker_source(wanted.data_source))
        except StoreError as error:
            raise Unavailable(str(error)) from error
        if not code:
            return self._place(wanted.group), 0
        if wanted.group:
            raise FeedRefused(
                f"group: {wanted.data_source!r} is a plug-in with a process of its own, and can't be in one"
            )
        free = [label for label in self._hosts if not self._of(label)]
        if not free:
            raise FeedConflict(
                f"{wanted.data_source!r} is a plug-in, which gets a process of its own, and none of the "
                f"{len(self._hosts)} is free: raise [workers] plugins and start the engine again, or remove such a feed"
            )
        return free[0], code

    async def _replace(self, entry: Entry, feed: StoredFeed) -> None:
        """Close an added feed and start it again as `feed`; if that can't work, as it was."""
        if entry.label == CONTROL_LABEL:
            return
        spec = spec_of(feed, entry.spec.source_code)
        await self._ask(entry.label, RemoveFeed(feed_id=spec.feed_id))
        try:
            await self._start(Entry(spec, entry.label))
        except (FeedRefused, Unavailable):
            await self._start(entry)
            raise
        entry.spec, entry.added = spec, feed
        await self._keep(feed)

    async def _pause(self, entry: Entry, paused: bool) -> None:
        number = entry.spec.feed_id
        await self._ask(entry.label, PauseFeed(feed_id=number) if paused else ResumeFeed(feed_id=number))
        entry.spec = msgspec.structs.replace(entry.spec, paused=paused)
        self._workers.set_feeds(entry.label, self._of(entry.label))
        if entry.added is not None:
            entry.added = msgspec.structs.replace(entry.added, paused=paused)
            await self._keep(entry.added)

    async def _start(self, entry: Entry, *, fresh: bool = False) -> None:
        """Plan, then worker. If that is refused the caller puts the plan back."""
        if entry.label == CONTROL_LABEL:
            assert entry.added is not None
            self._posted[entry.added.symbol] = entry.spec.feed_id
            return
        others = tuple(spec for spec in self._of(entry.label) if spec.feed_id != entry.spec.feed_id)
        self._workers.set_feeds(entry.label, (*others, entry.spec))
        await self._ask(entry.label, AddFeed(feed=entry.spec, fresh=fresh))

    async def _stop(self, entry: Entry) -> None:
        """Out of plan and worker. A worker that does not answer is started again without it, if it is started again."""
        if entry.label == CONTROL_LABEL:
            assert entry.added is not None
            self._posted.pop(entry.added.symbol, None)
            return
        left = tuple(spec for spec in self._of(entry.label) if spec.feed_id != entry.spec.feed_id)
        self._workers.set_feeds(entry.label, left)
        try:
            await self._ask(entry.label, RemoveFeed(feed_id=entry.spec.feed_id))
        except Unavailable:
            pass

    async def _ask(self, label: str, command: Command) -> None:
        if self._commands is None:
            raise Unavailable("the engine is starting")
        reply = await self._commands.ask(label, command)
        if isinstance(reply, Refused):
            raise FeedRefused(reply.error) if reply.settings else Unavailable(reply.error)

    async def _keep(self, feed: StoredFeed) -> None:
        try:
            await asyncio.to_thread(self._store.put_feed, feed)
        except StoreError as error:
            raise Unavailable(str(error)) from error

    def _place(self, group: str) -> str:
        """The worker of the feeds of that group; else the one that has the fewest."""
        for entry in self.entries.values():
            if group and entry.spec.group == group:
                return entry.label
        return min(self._labels, key=lambda name: len(self._of(name)))

    def _of(self, label: str) -> tuple[FeedSpec, ...]:
        return tuple(entry.spec for entry in self.entries.values() if entry.label == label)

    def _number(self, label: str) -> int:
        """A number for a feed of that worker: new ones first, then those that were given up longest ago."""
        taken = set().union(*self._numbers.values())
        number = next(n for n in range(FIRST_NUMBER, LAST_NUMBER + 2) if n not in taken)
        if len(self._numbers[label]) < MAX_PER_WORKER and number <= LAST_NUMBER:
            self._numbers[label].add(number)
            return number
        if not self._free[label]:
            raise FeedConflict(
                f"{label} has {MAX_PER_WORKER} feeds, the most it can host; remove one, or raise [workers] ingest"
            )
        return self._free[label].popleft()

    def _name(self, symbol: str) -> str:
        """feed_tsla_001: the next of this symbol."""
        word = "all" if symbol == ALL_SYMBOLS else re.sub(r"[^a-z0-9]+", "_", symbol.lower()).strip("_") or "x"
        number = 1
        while f"feed_{word}_{number:03d}" in self.entries:
            number += 1
        return f"feed_{word}_{number:03d}"


def _request(feed: StoredFeed) -> tuple[Any, ...]:
    """What makes two requests the same one."""
    return (feed.symbol, feed.data_source, sorted(feed.data_types), feed.group, feed.rank, feed.options)


def _check(feed: StoredFeed) -> None:
    if _SOURCE_NAMES.get(feed.data_source, feed.data_source) == "replay" and feed.options.get("speed") == "max":
        raise FeedRefused(
            "options.speed: 'max' is for `tickengine run --replay`, whose readers hold the replay back; those that run "
            "here would be overrun: give a number"
        )
