"""Captures of feeds for tests: their files, and records live and replayed, compared bit for bit.

Left out of the comparison: `source` (REPLAY instead of the feed's), flag REPLAYED, what only a ring gives (`sequence`,
`ts_publish`), and the status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which a replay does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Source, StatusCode, concatenate, empty
from tests.unit.test_websocket_source import of
from workers.capture_log import Recording
from workers.decoders.capture import open_capture
from workers.sources.faults import FaultInjector, parse_faults
from workers.spec import CaptureSettings

_OF_SOCKETS = (StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.FEED_DEGRADED)


@pytest.fixture(name="recording")
def compressed_recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(CaptureSettings(folder=str(tmp_path / "wire")))
    yield made
    made.close()


def replayed(
    paths: list[Path],
    names: dict[str, int],
    slots: int = 500,
    *,
    feed_id: int = 3,
    malformed: int | None = 0,
    faults: str = "",
) -> np.ndarray:
    """The parts as one, with so many malformed messages and lines in them; None: any messages, but no lines."""
    before, found = None, [empty(0)]
    for number, path in enumerate(paths):
        injector = FaultInjector(parse_faults(faults), number) if faults else None
        with open_capture(path, intern=names.__getitem__, feed_id=feed_id, after=before, faults=injector) as capture:
            while count := capture.decode(out := empty(slots)):
                found.append(out[:count])
            before = capture
    assert before is not None
    if malformed is None:
        assert "unusable note" not in before.counters.malformed
    else:
        assert sum(before.counters.malformed.values()) == malformed
    return concatenate(found)


def comparable(records: np.ndarray) -> np.ndarray:
    """A copy without what may differ; see the module."""
    status = records["record_type"] == RecordType.STATUS
    records = of(records, ~(status & np.isin(records["code"], _OF_SOCKETS))).copy()
    records["source"] = Source.REPLAY
    records["flags"] |= np.uint16(Flag.REPLAYED)
    return records


def assert_alike(live: np.ndarray, replay: np.ndarray) -> None:
    """Both are `comparable`, and there are some."""
    for row in range(min(len(live), len(replay))):
        assert live[row].tobytes() == replay[row].tobytes(), (row, live[row], replay[row])
    assert len(live) == len(replay) > 0


def lines_of(path: Path) -> list[dict[str, Any]]:
    import zstandard

    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return [json.loads(line) for line in text.splitlines()]
