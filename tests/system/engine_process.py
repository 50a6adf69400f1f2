"""A real engine as a child process of a test: started, asked, killed, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 60.0


def wait_for(what: str, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `condition` gives something true, and return that; fail the test after a generous time."""
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s:g} s in vain for: {what}")
        time.sleep(0.02)


class EngineProcess:
    """`tickengine run` with a name and ports of its own; output goes to a file that `output` reads."""

    def __init__(
        self, name: str, folder: Path, *options: str, base: int | None = None, env: dict[str, str] | None = None
    ) -> None:
        """Start it; `base` is its HTTP port and base of the ZeroMQ ports, by default one that is free."""
        self.name = name
        self.base = free_ports() if base is None else base
        self.http_port = self.base
        self._log = folder / f"{name}-{self.base}.log"
        self._runtime = tempfile.TemporaryDirectory(prefix="tk")  # pytest's own folders are too long for Unix sockets
        environment = {**os.environ, "XDG_RUNTIME_DIR": self._runtime.name, "PYTHONPATH": str(ROOT), **(env or {})}
        if "--data-dir" not in options:
            options = (*options, "--data-dir", str(folder / "data"))
        ports = ("--http-port", str(self.http_port), "--zmq-port", str(self.base))
        data = () if "--data-dir" in options else ("--data-dir", str(folder / "data"))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools", "run", "--name", name, *ports, *data, *options],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self._descendants()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for worker in workers:
            try:
                worker.kill()
            except psutil.NoSuchProcess:
                pass
        self._runtime.cleanup()

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return self._log.read_text(errors="replace")

    def url(self, path: str) -> str:
        """Address of a route."""
        return f"http://127.0.0.1:{self.http_port}{path}"

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request; error statuses are answers too."""
        return self._ask(urllib.request.Request(self.url(path), method=method, headers=headers))

    def send(
        self, method: str, path: str, body: Any, content_type: str = "application/json", **headers: str
    ) -> tuple[int, Any]:
        """(status, decoded body) of a request with a body: bytes as they are, anything else as JSON."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": content_type, **headers}
        status, _, answer = self._ask(urllib.request.Request(self.url(path), sent, fields, method=method))
        return status, json.loads(answer) if answer else None

    @staticmethod
    def _ask(request: urllib.request.Request) -> tuple[int, dict[str, str], bytes]:
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def json(self, path: str) -> Any:
        """The decoded body of a GET."""
        return json.loads(self.get(path)[2])

    def wait_ready(self) -> EngineProcess:
        """Until the ready line is there."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the engine ended with {self.process.returncode}:\n{self.output}"
            return "\nready" in self.output

        wait_for(f"ready line; so far:\n{self.output}", ready)
        return self

    def pids(self) -> dict[str, int]:
        """Label -> pid of the processes that are running and ready."""
        return {
            process["label"]: process["pid"]
            for process in self.json("/processes")["processes"]
            if process["state"] == "ready" and process["phase"] == "running" and process["alive"]
        }

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, and its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_S)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return [p for p in self._descendants() if any(word.startswith("workers.") for word in p.cmdline())]

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
