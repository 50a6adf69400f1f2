"""Processes that tests start: lines of Python in a fresh interpreter, talked to over pipes, never outliving the test.

Used by the tests of shared memory, where a promise is about two processes. A child is spawned, never forked, so that it
attaches by name like anybody else.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """Poll until `condition()` is true; fails the test after a generous deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {DEADLINE_S} s: {what or condition}"
        time.sleep(0.001)


class Child:
    """One child process. `hear()` returns what it prints, line by line; `say()` writes a line to its standard input."""

    def __init__(self, script: str, *arguments: object, path: Path = ROOT) -> None:
        """Start it.

        Args:
            script: Python source; `sys.argv[1:]` are the arguments as text.
            arguments: anything with a str().
            path: folder to import the project from.
        """
        environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=path,
            env=environment,
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def say(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, deadline_s: float = DEADLINE_S) -> str:
        """The next line that it prints; fails the test if none comes within the deadline or the child ends."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + deadline_s
        readable = select.poll()
        readable.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self._unread:
            remaining_s = max(0.0, deadline - time.monotonic())
            assert readable.poll(remaining_s * 1000), f"the child said nothing for {deadline_s} s"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, f"the child ended with status {self.process.wait()}"
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> int:
        """Close its standard input and wait for its end; returns the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE_S)

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself by SIGSTOP."""
        wait_until(lambda: os.waitpid(self.pid, os.WUNTRACED | os.WNOHANG) != (0, 0), "the child stops itself")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
