"""Processes come, count, are killed and come back, while a watcher reads everything the whole time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shm.status import StatusBlock

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import sys
from shm.status import ProcessState, StatusBlock
status = StatusBlock.attach(sys.argv[1], write=True).register(sys.argv[2], "stress")
texts = ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "bbbb")
low, high, histogram = status.counter("low"), status.counter("high"), status.histogram("h")
status.state = ProcessState.READY
turn = 0
while True:
    turn += 1
    low.add()
    high.add(1 << 40)
    histogram.record(turn)
    status.placement = texts[turn & 1]
    status.heartbeat(turn)
"""


def _start(engine: str, label: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, engine, label], cwd=ROOT)


def test_a_watcher_never_sees_torn_values_and_kills_lose_none(engine_name: str) -> None:
    block = StatusBlock.create(engine_name, process_slots=3)
    watcher = StatusBlock.attach(engine_name)
    labels = ["w0", "w1", "w2"]
    children = {label: _start(engine_name, label) for label in labels}
    lowest = dict.fromkeys(labels, 0)
    try:
        kills = 0
        while kills < 6:
            for view in watcher.processes():
                assert view.placement in ("", "A" * 31, "bbbb")
                low, high = view.counters.get("low", 0), view.counters.get("high", 0)
                assert low >= lowest[view.label]
                assert high & ((1 << 40) - 1) == 0
                lowest[view.label] = low
            label = labels[kills % 3]
            view_now = watcher.process(label)
            if view_now is not None and view_now.alive and view_now.counters.get("low", 0) >= 2000 * (kills // 3 + 1):
                children[label].kill()
                children[label].wait()
                dead = watcher.process(label)
                assert dead is not None
                assert not dead.alive
                assert abs(dead.counters["low"] - (dead.counters["high"] >> 40)) <= kills // 3 + 1
                children[label] = _start(engine_name, label)
                kills += 1
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    assert {view.label for view in block.processes()} == set(labels)
