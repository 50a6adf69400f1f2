"""An engine that is killed while it makes its segments: the next one of that name starts, and serves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shm.errors import ShmError
from shm.layout import empty
from shm.ring import RingReader, RingWriter, create_ring, ring_info
from shm.segment import Segment, list_segments, segment_exists, segment_name
from tests.children import DEADLINE_S, ROOT
from tests.system.engine_process import EngineProcess, wait_for

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
from shm import segment
allocate, victim, whole = segment._allocate, sys.argv.pop(1), sys.argv.pop(1) == "whole"

def killed(name, fd, size_bytes):
    if not name.endswith(victim):
        return allocate(name, fd, size_bytes)
    if whole:
        allocate(name, fd, size_bytes)
    os.kill(os.getpid(), signal.SIGKILL)

segment._allocate = killed
from tools.cli import main
main()
"""


@pytest.mark.parametrize(
    ("what", "size"),
    [("r0", "none"), ("r0", "whole"), ("r2", "none"), ("stat", "whole"), ("inst", "none"), ("last", "whole")],
)
def test_next_engine_replaces_what_a_killed_one_left_half_made(
    engine_name: str, tmp_path: Path, what: str, size: str
) -> None:
    options = ["run", "--name", engine_name, "--simulate", "--data-dir", str(tmp_path / "data")]
    first = subprocess.run(
        [sys.executable, "-c", KILLED, f".{what}", size, *options],
        cwd=ROOT,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert segment_exists(segment_name(engine_name, what))
    with EngineProcess(engine_name, tmp_path, "--simulate") as second:
        second.wait_ready()
        with RingReader.attach(engine_name, 2, start="oldest", register=False) as reader:
            wait_for("records", lambda: reader.read(empty(16)))
        assert second.stop() == 0
    assert list_segments(engine_name) == []


def test_engine_of_another_version_that_runs_keeps_its_rings(engine_name: str, tmp_path: Path) -> None:
    create_ring(engine_name, 0, depth_slots=1024)
    with RingWriter.open(engine_name, 0):
        segment = Segment.attach(segment_name(engine_name, "r0"), write=True)
        segment.buf[8:12] = (99).to_bytes(4, "little")
        with EngineProcess(engine_name, tmp_path, "--simulate") as second:
            assert second.process.wait(DEADLINE_S) == 6
            assert f"an engine named {engine_name!r} is running already (of another version)" in second.output
        assert segment.is_named()
        segment.close()
    with pytest.raises(ShmError, match="version"):
        ring_info(engine_name, 0)
    with EngineProcess(engine_name, tmp_path, "--simulate") as third:
        third.wait_ready()
        assert third.stop() == 0
