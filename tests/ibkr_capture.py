"""Captures of IBKR feeds for tests: feeds that are captured, and their records live and replayed, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag
from tests.feed_captures import assert_alike, comparable, replayed
from tests.ibkr_feed import Feed, prices
from tests.tws_server import (
    Asked,
    TwsServer,
)
from workers.capture_log import Recording
from workers.spec import CaptureSettings

Make = Callable[..., Feed]


@pytest.fixture(name="recording")
def ibkr_recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(CaptureSettings(folder=str(tmp_path / "wire"), compress="none", flush_s=0.01))
    yield made
    made.close()


@pytest.fixture(name="feeds")
def captured_feeds(recording: Recording) -> Iterator[Make]:
    made: list[Feed] = []

    def make(server: TwsServer, *args: object, **options: object) -> Feed:
        made.append(Feed(*args, log_of=recording.log_of, port=server.port, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def assert_replays_alike(feed: Feed, recording: Recording, *, slots: int = 500, malformed: int = 0) -> np.ndarray:
    feed.source.close()
    recording.close()
    live = comparable(feed.records)
    replay = comparable(replayed(recording.logs[0].paths, feed.names, slots=slots, malformed=malformed))
    assert recording.logs[0].dropped == 0
    assert_alike(live, replay)
    return replay


def both(asked: Asked, bid: float) -> bytes:
    """Both sides of an aggregate."""
    return prices(asked, 1, bid, 1) + prices(asked, 2, bid + 1.0, 1)


def gap_before(records: np.ndarray) -> list[bool]:
    return [bool(flags & Flag.GAP_BEFORE) for flags in records["flags"]]
