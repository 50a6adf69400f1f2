"""One worker process: spawned, fed its settings, listened to, ended. Used by engine/supervisor.py alone.

The child gets a session of its own (Ctrl-C in the terminal is the control process's to handle), its settings as the
first line of standard input, and keeps that pipe: its end tells the child that the control process is gone, however it
went. Settings may be withheld after the spawn: the child imports meanwhile and works only once it has them.

Exit is noticed by SIGCHLD through the event loop, at once; nothing here polls, and nothing here decides.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

from engine.secret_file import read_secret

MAX_LINE_BYTES: Final = 8192
LINES_PER_SECOND: Final = 200

# Not for children: secrets, and the line to systemd, which only the control process may use.
_VENDOR_KEYS: Final = "*_api_key*"  # credentials that the sources of ingest workers ask for
_WITHHELD: Final = (
    "TICKENGINE_HTTP_TOKEN",
    "TICKENGINE_WEBHOOK_SECRET",
    "TICKENGINE_REDIS_PASSWORD",
    "PGPASSWORD",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
)


class Child(asyncio.SubprocessProtocol):
    """A running worker process. `exit_code` is None while it runs; negative = killed by that signal."""

    def __init__(self, label: str, on_exit: Callable[[Child], None], on_line: Callable[[str, str], None]) -> None:
        """Use `spawn`."""
        self.label = label
        self.pid = 0
        self.exit_code: int | None = None
        self.ended = asyncio.Event()
        self._on_exit = on_exit
        self._lines = LineBuffer(lambda line: on_line(label, line))
        self._transport: asyncio.SubprocessTransport | None = None
        self._settings: bytes | None = None

    @classmethod
    async def spawn(
        cls,
        module: str,
        label: str,
        settings: bytes,
        env: Mapping[str, str],
        *,
        on_exit: Callable[[Child], None],
        on_line: Callable[[str, str], None],
        withhold: bool = False,
    ) -> Child:
        """Start `python -m module`; with `withhold` it waits for `release` before it begins."""
        loop = asyncio.get_running_loop()
        child = cls(label, on_exit, on_line)
        child._settings = settings
        transport, _ = await loop.subprocess_exec(
            lambda: child,
            sys.executable,
            "-P",  # a folder `workers` where the engine happens to be started must not be taken for ours
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
        child._transport = transport
        child.pid = transport.get_pid() or 0
        if not withhold:
            child.release()
        return child

    def release(self) -> None:
        """Hand over the settings. Safe to call twice."""
        if self._settings is not None and self._transport is not None and self.exit_code is None:
            stdin = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
            stdin.write(self._settings)
            self._settings = None

    @property
    def released(self) -> bool:
        """Whether it has its settings."""
        return self._settings is None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """A piece of its output or error stream."""
        self._lines.feed(fd, data, asyncio.get_running_loop().time())

    def process_exited(self) -> None:
        """It ended; the pipes may still hold its last words, but a restart does not wait for them."""
        transport = self._transport
        code = transport.get_returncode() if transport is not None else None
        self.exit_code = -1 if code is None else code
        self._lines.flush()
        self.ended.set()
        self._on_exit(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Ended, and every pipe is closed."""
        self._lines.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.exit_code is None and self.pid:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Close the pipes (a running worker takes that for our end)."""
        if self._transport is not None:
            self._transport.close()


class LineBuffer:
    """Cuts output into lines, with bounds: on a line's length, and on lines a second (the rest is counted)."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """`emit` gets each line, decoded, without its end."""
        self._emit = emit
        self._partial: dict[int, bytes] = {}
        self._window_s = 0.0
        self._lines = 0
        self._left_out = 0

    def feed(self, fd: int, data: bytes, now_s: float) -> None:
        """Output of stream `fd`, in pieces as they came."""
        if now_s - self._window_s >= 1.0:
            self._say_left_out()
            self._window_s, self._lines = now_s, 0
        *lines, rest = (self._partial.pop(fd, b"") + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines.append(rest)
            rest = b""
        if rest:
            self._partial[fd] = rest
        for line in lines:
            self._lines += 1
            if self._lines > LINES_PER_SECOND:
                self._left_out += 1
            else:
                self._emit(line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\r"))

    def flush(self) -> None:
        """What has no line end yet, at the end."""
        for rest in self._partial.values():
            self._emit(rest.decode("utf-8", "replace"))
        self._partial.clear()
        self._say_left_out()

    def _say_left_out(self) -> None:
        if self._left_out:
            self._emit(f"({self._left_out} lines left out: more than {LINES_PER_SECOND} a second)")
            self._left_out = 0


def feed_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """systemd credentials of feeds, `fix_NAME_username` and `fix_NAME_password`, as variables that workers look for.

    ConfigError: one can't be read.
    """
    folder = env.get("CREDENTIALS_DIRECTORY")
    found = {}
    for path in sorted(Path(folder).glob("fix_*")) if folder else ():
        if path.name.endswith(("_username", "_password")):
            found[f"TICKENGINE_{path.name.upper()}"] = read_secret(path, f"credential {path.name}")
    return found


def worker_environment(env: Mapping[str, str], math_threads: int) -> dict[str, str]:
    """The environment of the workers: ours without secrets, and with the folder in which `workers` is to be found.

    Keys of data vendors and logins of FIX feeds are for them: systemd's credential fred_api_key is their FRED_API_KEY,
    unless that is set.
    """
    chosen = {key: value for key, value in env.items() if key not in _WITHHELD}
    credentials = env.get("CREDENTIALS_DIRECTORY")
    for path in sorted(Path(credentials).glob(_VENDOR_KEYS)) if credentials else ():
        try:
            chosen.setdefault(path.name.upper(), path.read_text().strip())
        except (OSError, UnicodeDecodeError):
            continue  # the source that wants it says that it is missing
    chosen.update(feed_credentials(env))
    chosen["OPENBLAS_NUM_THREADS"] = chosen["OMP_NUM_THREADS"] = str(math_threads)
    chosen["PYTHONUNBUFFERED"] = "1"
    spec = find_spec("workers")
    root = str(Path(spec.origin).parent.parent) if spec and spec.origin else ""
    if root and not root.endswith(("site-packages", "dist-packages")):
        chosen["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH", ""))))
    return chosen
