"""sd_notify: tells systemd that the engine is ready, alive, stopping. Spoken by the control process; no dependency.

The protocol is one datagram of `KEY=VALUE` lines to the Unix socket named by $NOTIFY_SOCKET (sd_notify(3)); a name
that begins with "@" is in the abstract namespace. Without that variable every call does nothing. It never raises: a
service manager that can't be told must not stop the engine.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """The line to systemd.

    Attributes:
        watchdog_s: send `watchdog()` at least this often, seconds (half of what systemd allows); None = no watchdog.
    """

    def __init__(self, env: Mapping[str, str], pid: int | None = None) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from `env`."""
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(env, os.getpid() if pid is None else pid)

    @property
    def active(self) -> bool:
        """Whether somebody listens."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """The engine serves."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """The control loop is alive and did its work."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The stop has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def close(self) -> None:
        """Close the socket. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0))
                self._socket.setblocking(False)
            self._socket.sendto(message.encode(), self._address)
        except OSError:  # nobody there, or its buffer is full: systemd will judge by the watchdog
            pass


def _address(name: str) -> str | None:
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_s(env: Mapping[str, str], pid: int) -> float | None:
    wanted = env.get("WATCHDOG_USEC", "")
    if not wanted.isdigit() or int(wanted) == 0:
        return None
    if env.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(wanted) / 2e6
