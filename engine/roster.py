"""The roster: which feeds a configuration asks for, what is checked of them together, and which worker hosts which.

Pure; called by the plan, and by the supervisor for the words about a worker whose feeds have changed. It knows no
source: whether one exists, and what its options may be, is for the worker that hosts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.feed_settings import FeedSection
from engine.settings import Config
from workers.spec import MAX_GROUP_FEEDS, FeedSpec


def feed_specs(config: Config, source_codes: Mapping[str, int]) -> tuple[FeedSpec, ...]:
    """The configured feeds that are enabled, then the simulated one and the replay, numbered from 1.

    Raises:
        ConfigError: feeds that can't be in one group.
    """
    sections = [feed for feed in config.feeds if feed.enabled]
    taken = {feed.name for feed in config.feeds}
    if config.simulate.enabled:
        options: dict[str, Any] = {
            "instruments": config.simulate.instruments,
            "rate": config.simulate.rate or "max",
            "seed": config.simulate.seed,
        }
        sections.append(FeedSection(name=_unused("simulated", taken), source="simulated", options=options))
    if config.replay.files:
        files = [str(Path(file).expanduser().absolute()) for file in config.replay.files]
        first = Path(files[0]).name.split(".")[0][:56] if len(files) == 1 else ""
        speed: Any = config.replay.speed if config.replay.speed == "max" else float(config.replay.speed)
        options = {"files": files, "speed": speed, "loop": config.replay.loop, "merge": config.replay.merge}
        if config.replay.faults:
            options["faults"] = config.replay.faults
        sections.append(FeedSection(name=_unused(first or "replay", taken), source="replay", options=options))
    _check_groups(sections)
    return tuple(
        FeedSpec(
            feed_id=number,
            name=feed.name,
            source=feed.source,
            source_code=source_codes.get(feed.source, 0),
            symbols=feed.symbols,
            data_types=feed.data_types,
            options=feed.options,
            group=feed.group,
            rank=feed.rank,
        )
        for number, feed in enumerate(sections, 1)
    )


def deal(feeds: tuple[FeedSpec, ...], hands: int) -> list[tuple[FeedSpec, ...]]:
    """Feeds in turn to at most `hands` workers, those of one group to the same: they take over from each other.

    To one worker at least: feeds may be added later.
    """
    together: dict[str, list[FeedSpec]] = {}
    for feed in feeds:
        together.setdefault(f"group {feed.group}" if feed.group else f"feed {feed.feed_id}", []).append(feed)
    parts = [*together.values()]
    count = min(hands, max(1, len(parts)))
    return [tuple(feed for part in parts[index::count] for feed in part) for index in range(count)]


def ingest_words(feeds: tuple[FeedSpec, ...], ring_id: int) -> str:
    """What an ingest worker does, for people."""
    names = [f"{feed.source} {feed.name}" if feed.source != feed.name else feed.name for feed in feeds]
    more = f" and {len(names) - 3} more feeds" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'no feed'}{more} into ring {ring_id}"


def _check_groups(sections: list[FeedSection]) -> None:
    """ConfigError for what can't stand by for another feed."""
    members: dict[str, int] = {}
    for feed in sections:
        if not feed.group:
            continue
        if feed.source == "replay":
            raise ConfigError(f"[[feeds]] {feed.name}: group: a replay can't be in a redundancy group; leave it out")
        members[feed.group] = members.get(feed.group, 0) + 1
        if members[feed.group] > MAX_GROUP_FEEDS:
            raise ConfigError(f"[[feeds]] {feed.name}: group {feed.group!r} has more than {MAX_GROUP_FEEDS} feeds")


def _unused(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    taken.add(candidate)
    return candidate
