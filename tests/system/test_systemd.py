"""The systemd unit is well-formed, and the engine speaks the protocol that it relies on."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import errors
from tests.system.engine_process import ROOT, EngineProcess, wait_for

UNIT = ROOT / "systemd" / "tickengine.service"


def service() -> dict[str, str]:
    """The [Service] section; of keys given twice the last one."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


def test_systemd_analyze_finds_nothing_to_say(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # The unit names the installed program; verify would complain that this machine does not have it there.
    installed = re.search(r"^ExecStart=(\S+)", UNIT.read_text(), re.MULTILINE)
    assert installed is not None
    copy = tmp_path / "tickengine.service"
    copy.write_text(UNIT.read_text().replace(installed.group(1), "/bin/true"))
    checked = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False)
    remarks = [line for line in (checked.stdout + checked.stderr).splitlines() if "tickengine" in line]
    assert remarks == []
    assert checked.returncode == 0, checked.stderr


def test_sysusers_and_tmpfiles_are_understood() -> None:
    sysusers = shutil.which("systemd-sysusers")
    if sysusers is None:
        pytest.skip("systemd-sysusers is not installed")
    path = str(ROOT / "systemd" / "tickengine.sysusers")
    checked = subprocess.run([sysusers, "--dry-run", path], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "tickengine" in checked.stdout + checked.stderr
    lines = [
        line for line in (ROOT / "systemd/tickengine.tmpfiles").read_text().splitlines() if not line.startswith("#")
    ]
    assert all(len(line.split()) == 6 for line in lines)


def test_the_unit_keeps_shared_memory_and_lets_colocated_users_in() -> None:
    unit = service()
    assert unit["Type"] == "notify"
    assert unit["RemoveIPC"] == "no"
    assert unit["User"] == "tickengine"
    assert "DynamicUser" not in unit
    assert "PrivateIPC" not in unit
    assert unit["KillMode"] == "mixed"
    assert unit["LimitMEMLOCK"] == "infinity"
    for key in ("ProtectSystem", "NoNewPrivileges", "PrivateTmp", "StateDirectory", "RuntimeDirectory", "WatchdogSec"):
        assert key in unit


def test_statuses_that_are_not_retried_are_those_that_do_not_get_better() -> None:
    wanted = {errors.EXIT_CONFIG, errors.EXIT_PORT, errors.EXIT_RUNNING}
    assert {int(status) for status in service()["RestartPreventExitStatus"].split()} == wanted


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, str]]:
    """systemd's end of the notify socket."""
    with tempfile.TemporaryDirectory(prefix="tk") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        path = os.path.join(folder, "notify")
        end.bind(path)
        end.settimeout(60)
        yield end, path


@pytest.mark.slow
def test_the_engine_tells_ready_then_feeds_the_watchdog_then_stopping(
    engine_name: str, tmp_path: Path, manager: tuple[socket.socket, str]
) -> None:
    end, path = manager
    env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"}
    with EngineProcess(engine_name, tmp_path, "--simulate", env=env) as engine:
        first = end.recv(4096).decode().split("\n")
        assert first[0] == "READY=1"
        assert f"MAINPID={engine.process.pid}" in first
        assert engine.get("/ready")[0] == 200
        for _ in range(3):
            assert end.recv(4096) == b"WATCHDOG=1"
        for worker in engine.workers():
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(worker.environ())
        assert engine.stop(signal.SIGTERM) == 0
        messages = []
        end.setblocking(False)

        def stopping() -> bool:
            try:
                messages.append(end.recv(4096))
            except BlockingIOError:
                return False
            return messages[-1].startswith(b"STOPPING=1")

        wait_for("STOPPING=1", stopping)
