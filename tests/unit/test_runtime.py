"""What every worker process does alike, with a worker that does nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm.status import ProcessState, StatusBlock
from workers.spec import (
    EXIT_BAD_SETTINGS,
    EXIT_CLEAN,
    EXIT_FAILED,
    EXIT_SHM,
    Placement,
    WorkerSettings,
    encode,
)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60

WORKER = """
import time
from shm.errors import ShmFull
from workers.errors import SettingsError
from workers.runtime import main
from workers.spec import WorkerSettings

def run(runtime):
    {body}

main("cache", WorkerSettings, run)
"""
LOOP = """runtime.ready()
    while not runtime.stopping:
        runtime.beat(time.time_ns())
        runtime.wait(60)
"""


@pytest.fixture
def block(engine_name: str) -> Iterator[StatusBlock]:
    block = StatusBlock.create(engine_name, process_slots=2)
    yield block
    block.close()


def start(engine: str, body: str, **settings: object) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(body=body)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert worker.stdin is not None
    worker.stdin.write(encode(WorkerSettings(engine=engine, label="w-0", role="cache", **settings)))  # type: ignore[arg-type]
    worker.stdin.flush()
    return worker


def finish(worker: subprocess.Popen[bytes]) -> tuple[int, str]:
    code = worker.wait(DEADLINE_S)
    assert worker.stderr is not None
    assert worker.stdin is not None
    logged = worker.stderr.read().decode()
    worker.stderr.close()
    worker.stdin.close()
    return code, logged


def until_ready(block: StatusBlock) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (view := block.process("w-0")) is None or view.state != ProcessState.READY:
        assert time.monotonic() < deadline, "not ready"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return", EXIT_CLEAN, ""),
        ("raise SettingsError('rate is -1')", EXIT_BAD_SETTINGS, "rate is -1"),
        ("raise ShmFull('no room')", EXIT_SHM, "no room"),
        ("raise KeyError('odd')", EXIT_FAILED, "KeyError"),
    ],
)
def test_exit_code_and_state_say_how_it_ended(
    block: StatusBlock, engine_name: str, body: str, code: int, message: str
) -> None:
    ended, logged = finish(start(engine_name, body))
    assert ended == code
    assert message in logged
    view = block.process("w-0")
    assert view is not None
    assert view.state == (ProcessState.STOPPED if code == EXIT_CLEAN else ProcessState.FAILED)
    assert not view.alive


def test_a_signal_ends_a_long_wait_at_once(block: StatusBlock, engine_name: str) -> None:
    worker = start(engine_name, LOOP)
    until_ready(block)
    worker.terminate()
    code, logged = finish(worker)
    assert code == EXIT_CLEAN
    assert "SIGTERM" in logged


@pytest.mark.usefixtures("block")
def test_a_wait_says_which_sockets_have_something(engine_name: str) -> None:
    body = """import os
    runtime.ready()
    (full, filler), (empty, open_end) = os.pipe(), os.pipe()
    os.write(filler, b"x")
    assert runtime.wait(60, (full, empty)) == [full]
    assert runtime.wait(0, (empty,)) == []
"""
    code, logged = finish(start(engine_name, body))
    assert (code, "Traceback" in logged) == (EXIT_CLEAN, False), logged


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells whether the handler is there")
@pytest.mark.bare_kernel  # the emulator catches every signal, so that /proc says nothing of the program
def test_sigterm_before_the_settings_is_a_clean_end() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True)\n" + WORKER.format(body=LOOP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert worker.stdout is not None
    assert worker.stdin is not None
    worker.stdin.write(b'{"engine"')
    worker.stdin.flush()
    deadline = time.monotonic() + DEADLINE_S
    while not _catches_sigterm(worker.pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    worker.terminate()
    assert worker.wait(DEADLINE_S) == EXIT_CLEAN
    worker.stdin.close()
    worker.stdout.close()


def _catches_sigterm(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> 14 & 1)
    return True


def test_placement_is_reported_as_it_was_got(block: StatusBlock, engine_name: str) -> None:
    worker = start(engine_name, LOOP, placement=Placement(policy="none"))
    until_ready(block)
    view = block.process("w-0")
    assert view is not None
    assert (view.core, view.placement) == (-1, "unpinned: as configured")
    worker.terminate()
    assert finish(worker)[0] == EXIT_CLEAN


def test_a_label_that_is_taken_by_a_living_process_is_refused(block: StatusBlock, engine_name: str) -> None:
    first = start(engine_name, LOOP)
    until_ready(block)
    code, logged = finish(start(engine_name, LOOP))
    assert code == EXIT_SHM
    assert "w-0" in logged
    first.terminate()
    assert finish(first)[0] == EXIT_CLEAN
