"""Captures of polled feeds for tests: feeds that are captured, what stands in the files, files by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag
from tests.feed_captures import assert_alike, comparable, lines_of, replayed
from tests.unit.test_polled_source import FAST, KEY, Feed
from workers.capture_log import Recording
from workers.source import SourceContext, open_source
from workers.spec import FeedSpec

Make = Callable[..., Feed]


@pytest.fixture(name="feeds")
def captured_feeds(recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("FRED_API_KEY", KEY)
    monkeypatch.setenv("ALPHA_VANTAGE_API_KEY", KEY)
    made: list[Feed] = []

    def make(source: str, symbols: tuple[str, ...], types: tuple[str, ...] = (), **options: Any) -> Feed:
        options.setdefault("log_of", recording.log_of)
        made.append(Feed(tmp_path, source, symbols, types, **{**FAST, **options}))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def assert_replays_alike(
    feed: Feed,
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
    *,
    slots: int = 500,
    before: int = 0,
    malformed: int = 0,
) -> np.ndarray:
    """Without a key: who replays has none. `before`: so many records were published before the capture began."""
    feed.source.close()
    recording.close()
    for name in ("FRED_API_KEY", "ALPHA_VANTAGE_API_KEY"):
        monkeypatch.delenv(name)
    live = comparable(feed.records)[before:]
    assert recording.logs[0].dropped == 0
    replay = replayed(recording.logs[0].paths, feed.names, slots, malformed=malformed)
    assert (replay["flags"] & Flag.REPLAYED).all()
    assert_alike(live, comparable(replay))
    return replay


def bytes_of(recording: Recording) -> bytes:
    """Of all its files, unpacked, every string in them taken apart once more."""
    return b"".join(json.dumps(lines_of(path)).encode() for log in recording.logs for path in log.paths)


def notes(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line["data"]) for line in lines_of(path) if line["t"] == "note"]


def source_of(path: Path, **options: Any) -> Any:
    spec = FeedSpec(feed_id=9, name="r", source="replay", options={"files": (str(path),), "speed": "max", **options})
    return open_source(SourceContext(spec, lambda _: 0))


def written(folder: Path, *lines: dict[str, Any], **feed: Any) -> Path:
    """A capture by hand."""
    about = {"name": "f", "source": "fred", "symbols": ["X"], "data_types": [], "options": {}, **feed}
    head = {"t": "header", "format": 2, "exchange": "FRED", "feed": about}
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))
    return path
