"""Captures of FIX feeds for tests: feeds that are captured, their records replayed, and what is in these."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RecordType, empty
from tests import feed_captures
from tests.feed_captures import assert_alike, comparable
from tests.fix_server import Act, FixServer, Out, trades
from tests.unit.test_fix_source import Feed
from tests.unit.test_websocket_source import of
from workers.capture_log import Recording

Make = Callable[..., Feed]


@pytest.fixture(name="feeds")
def captured_feeds(recording: Recording) -> Iterator[Make]:
    made: list[Feed] = []

    def make(*args: Any, **options: Any) -> Feed:
        made.append(Feed(*args, **{"log_of": recording.log_of, **options}))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def replayed(paths: list[Path], names: dict[str, int], slots: int = 500, faults: str = "") -> np.ndarray:
    """The parts as one; garbage in them is malformed, and no line is."""
    return feed_captures.replayed(paths, names, slots, feed_id=5, malformed=None, faults=faults)


def assert_same(live: np.ndarray, replay: np.ndarray) -> None:
    assert_alike(comparable(live), replay)


def assert_replays_alike(feed: Feed, recording: Recording) -> np.ndarray:
    feed.source.close()
    recording.close()
    (log,) = recording.logs
    assert log.dropped == 0
    for slots in (1, 500):
        replay = replayed(log.paths, feed.names, slots)
        assert_same(feed.records, replay)
    return replay


def trade_ids(records: np.ndarray) -> list[int]:
    found: list[int] = of(records, records["record_type"] == RecordType.TRADE)["trade_id"].tolist()
    return found


def texts(records: np.ndarray) -> list[bytes]:
    found: list[bytes] = of(records, records["record_type"] == RecordType.STATUS)["text"].tolist()
    return found


def lose(messages: list[Out], *places: int) -> list[Out]:
    return [Out(one.kind, one.body, lost=place in places) for place, one in enumerate(messages)]


def random_feed(feeds: Make, seed: int) -> Feed:
    """What a venue sends that loses, repeats and garbles messages, and hangs up, taken as it comes."""
    dice = random.Random(seed)
    number, acts = 1, []
    with FixServer([Act()]) as venue:
        for connection in range(4):
            messages: list[Out | bytes] = []
            for one in trades("X", dice.randrange(20, 120), number):
                draw = dice.random()
                messages.append(Out(one.kind, one.body, lost=draw < 0.06))
                if 0.06 <= draw < 0.09:
                    messages.append(dice.randbytes(dice.randrange(1, 60)))
                elif draw < 0.11:
                    messages.append(venue.encode(one, 1, again=True))
                elif draw < 0.13:
                    messages.append(Out("1", [(112, f"probe {number}")]))
                elif draw < 0.15:
                    messages.append(Out("2", [(7, "1"), (16, "0")]))
                number += 1
            if connection < 3:
                messages.append(venue.encode(trades("X", 1)[0], 9)[: dice.randrange(1, 80)])
            else:
                messages += trades("X", 1, number)
            kind = dice.choice([{}, {"fills": True}, {"deaf": True}])
            end = "hold" if connection == 3 else dice.choice(["close", "abort"])
            acts.append(Act(messages, end=end, **kind))  # type: ignore[arg-type]
        venue.acts = acts
        feed = feeds(venue, ("X",), ("trade",), resend_s=0.05)
        feed.out = empty(dice.choice([1, 7, 512]))
        feed.until(lambda: feed.ids[-1:] == [number], f"the last trade, seed {seed}")
        feed.source.close()
    return feed
