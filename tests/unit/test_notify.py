"""sd_notify over a real datagram socket."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.notify import Notifier


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, str]]:
    """systemd's end, and its name for NOTIFY_SOCKET."""
    with tempfile.TemporaryDirectory(prefix="tk") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        path = str(Path(folder) / "notify")
        end.bind(path)
        end.settimeout(60)
        yield end, path


def test_messages_arrive_as_systemd_reads_them(listener: tuple[socket.socket, str]) -> None:
    end, path = listener
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready("3 workers")
    assert end.recv(4096).decode().split("\n") == ["READY=1", "STATUS=3 workers", f"MAINPID={os.getpid()}"]
    notifier.status("healthy")
    assert end.recv(4096) == b"STATUS=healthy"
    notifier.watchdog()
    assert end.recv(4096) == b"WATCHDOG=1"
    notifier.stopping()
    assert end.recv(4096).startswith(b"STOPPING=1")
    notifier.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_abstract_sockets_are_reached() -> None:
    name = f"tickengine-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(60)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).watchdog()
        assert end.recv(100) == b"WATCHDOG=1"


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    assert not notifier.active
    assert notifier.watchdog_s is None
    notifier.ready("x")
    notifier.close()


def test_a_socket_that_is_gone_does_not_stop_the_engine(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.ready("x")
    notifier.watchdog()


def test_a_full_socket_does_not_block(listener: tuple[socket.socket, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": listener[1]})
    for _ in range(10_000):
        notifier.watchdog()
    assert listener[0].recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "42"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_interval_and_only_if_it_is_ours(
    env: dict[str, str], expected: float | None
) -> None:
    assert Notifier(env, pid=42).watchdog_s == expected
