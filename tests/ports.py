"""Ports for what tests start: of each process of tests its own, so that several run side by side.

Used by whatever starts a server or an engine. A port stays free until whoever asked for it binds it: nobody else is
given it, and it lies below the range from which the kernel takes ports of outgoing connections.
"""

from __future__ import annotations

import fcntl
import socket
import tempfile
from functools import cache
from pathlib import Path


def free_port() -> int:
    """A TCP and UDP port that nobody listens at."""
    return free_ports(1)


def free_ports(count: int = 40) -> int:
    """First of `count` such ports in a row; an engine takes 40."""
    return _lane().take(count)


class PortLane:
    """A range of ports that this process has to itself: tests of other processes, side by side, keep out of it.

    Held by a lock on a file until the process ends, however it does.
    """

    PORTS = 2000
    FIRSTS = range(12000, 32000, PORTS)

    def __init__(self) -> None:
        """Take the first lane that nobody has."""
        for first in self.FIRSTS:
            try:
                self._lock = (Path(tempfile.gettempdir()) / f"tickengine-test-ports-{first}.lock").open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            self.first = self._next = first
            return
        raise AssertionError(f"{len(self.FIRSTS)} processes of tests run already")

    def take(self, count: int) -> int:
        """First of `count` ports in a row that nobody listens on, not those handed out last."""
        for _ in range(self.PORTS // count):
            base = self._next
            self._next = base + count if base + 2 * count <= self.first + self.PORTS else self.first
            if all(_is_free(port) for port in range(base, base + count)):
                return base
        raise AssertionError("no free ports")


@cache
def _lane() -> PortLane:
    return PortLane()


def _is_free(port: int) -> bool:
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        try:
            stream.bind(("127.0.0.1", port))
            datagrams.bind(("", port))
        except OSError:
            return False
    return True
