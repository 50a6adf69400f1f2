"""kill -9 at each step of a commit: the next process finds the turn done wholly or not at all, never a part of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shm.layout import RecordType
from tests.children import ROOT, Child
from workers._route import Router
from workers.topics import BATCH, LOG_WORD, TopicTable, topic_index

pytestmark = pytest.mark.slow

STEPS = {
    1: ("the log is written and not yet valid", False),
    2: ("the log is valid, nothing applied", True),
    3: ("half of it is applied", True),
    4: ("all is applied, the log still valid", True),
}
INSTRUMENTS = 40

SCRIPT = """
import sys
import numpy as np
from shm.layout import empty
from workers import _route
from workers.topics import TopicTable

engine, step, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
assert _route.HAS_STOPS
table = TopicTable.attach(engine, write=True)
table.claim(0)
router = _route.Router(table, 0)
records = empty(80)
records["record_type"], records["instrument_id"] = 1, np.arange(80) % 40
for turn in range(1, turns + 1):
    if turn == turns:
        _route.set_stop(step)
    router.scan(records, 80)
    router.route(2, turn * 80 + 1)
print("the stop did not happen")
"""


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a build of the router that can stop itself; the product's own build never contains a stop."""
    if shutil.which(os.environ.get("CC", "gcc")) is None and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stops")
    for package in ("shm", "workers"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "_*.c", "__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    environment = {**os.environ, "TICKENGINE_STOPS": "1", "TICKENGINE_EXT": "workers._route", "CFLAGS": "-O1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("step", STEPS, ids=[text for text, _ in STEPS.values()])
def test_turn_is_committed_wholly_or_not_at_all(stops: Path, engine_name: str, step: int) -> None:
    turns, (_, committed) = 5, STEPS[step]
    with TopicTable.create(engine_name, turn_records=100) as table:
        with Child(SCRIPT, engine_name, step, turns, path=stops) as child:
            child.wait_until_stopped()
            child.kill()
        ring_word = table.block_word(0) + 2
        if committed:
            assert table.logged(0) == 43  # 40 topics, the batch topic, the cursor, the turn log
        assert int(table.words[table.block_word(0) + LOG_WORD]) == ring_word

        table.claim(0)
        Router(table, 0).close()  # what the next process does first

        done = turns if committed else turns - 1
        assert int(table.words[ring_word]) == done * 80 + 1
        assert table.sequence(BATCH, 0) == done * 80
        assert {table.sequence(topic_index(RecordType.TICK, i)) for i in range(INSTRUMENTS)} == {done * 2}
        assert table.logged(0) == 0
