"""Captures of IBKR feeds for tests: feeds that are captured, and their records live and replayed, compared.

Left out of the comparison: `source` (REPLAY instead of IBKR), flag REPLAYED, what only a ring gives (`sequence`,
`ts_publish`), and the status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which a replay does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Source, concatenate, empty
from tests.ibkr_feed import Feed, prices
from tests.tws_server import (
    Asked,
    TwsServer,
)
from tests.unit.test_capture_venues import OF_SOCKETS
from tests.unit.test_websocket_source import of
from workers.capture_log import Recording
from workers.decoders.capture import open_capture
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


def replayed(paths: list[Path], names: dict[str, int], *, slots: int = 500, malformed: int = 0) -> np.ndarray:
    before, found = None, [empty(0)]
    for path in paths:
        with open_capture(path, intern=names.__getitem__, feed_id=3, after=before) as capture:
            while count := capture.decode(out := empty(slots)):
                found.append(out[:count].copy())
            before = capture
    assert before is not None
    assert sum(before.counters.malformed.values()) == malformed
    return concatenate(found)


def comparable(records: np.ndarray) -> np.ndarray:
    """A copy without what may differ; see the module."""
    status = records["record_type"] == RecordType.STATUS
    records = of(records, ~(status & np.isin(records["code"], OF_SOCKETS))).copy()
    records["source"] = Source.REPLAY
    records["flags"] |= np.uint16(Flag.REPLAYED)
    return records


def assert_replays_alike(feed: Feed, recording: Recording, *, slots: int = 500, malformed: int = 0) -> np.ndarray:
    feed.source.close()
    recording.close()
    live = comparable(feed.records)
    replay = comparable(replayed(recording.logs[0].paths, feed.names, slots=slots, malformed=malformed))
    assert recording.logs[0].dropped == 0
    for row in range(min(len(live), len(replay))):
        assert live[row].tobytes() == replay[row].tobytes(), (row, live[row], replay[row])
    assert len(live) == len(replay) > 0
    return replay


def both(asked: Asked, bid: float) -> bytes:
    """Both sides of an aggregate."""
    return prices(asked, 1, bid, 1) + prices(asked, 2, bid + 1.0, 1)


def gap_before(records: np.ndarray) -> list[bool]:
    return [bool(flags & Flag.GAP_BEFORE) for flags in records["flags"]]
