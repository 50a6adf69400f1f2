"""The audit log: one line of JSON for every call that changes state, refused ones included.

    {"time": "...", "client": "127.0.0.1", "token": "token-1", "method": "POST", "path": "/feeds", "status": 201, ...}

`Audited` stands in front of the whole application, so that no route can forget it; a route adds what it did to `note`.
Secrets are never in it: of a token only its name, of bodies nothing. Bounded: at MAX_BYTES the file is renamed, the
oldest goes. A line that can't be written is counted (`audit_lost`) and said once; it stops nobody.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.access import changes_state
from shm.message import iso_time

FILE: Final = "audit.jsonl"
MAX_BYTES: Final = 16 << 20
KEPT_FILES: Final = 4  # audit.jsonl.1 the newest of them
_MAX_PATH_CHARS: Final = 256
_NOTE: Final = "tickengine.audit"


class AuditLog:
    """The file, opened at its first line. `on_lost` is called for each line that could not be written."""

    def __init__(self, folder: Path, *, on_lost: Callable[[], None], max_bytes: int = MAX_BYTES) -> None:
        """Nothing is made yet."""
        self._path = folder / FILE
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self._fd = -1
        self._size_bytes = 0
        self._complained = False

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line."""
        line = msgspec.json.encode(entry) + b"\n"
        try:
            if self._fd < 0:
                self._open()
            if self._size_bytes and self._size_bytes + len(line) > self._max_bytes:
                self._rotate()
            os.write(self._fd, line)
        except OSError as error:
            self._on_lost()
            if not self._complained:
                self._complained = True
                print(f"audit log {self._path}: {error.strerror}; see [engine] data_dir", file=sys.stderr)
        else:
            self._size_bytes += len(line)

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(self._path.with_suffix(f".jsonl.{number}") for number in range(1, KEPT_FILES + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        self._open()

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def note(scope: Any, **facts: Any) -> None:
    """What a route did, for the line of this request; nothing where the request is not audited."""
    found = scope.get(_NOTE)
    if found is not None:
        found.update(facts)


class Audited:
    """An ASGI application that writes a line for each call of the one inside that changes state."""

    def __init__(self, app: Any, log: AuditLog, caller: Callable[[str | None], Any]) -> None:
        """`caller` tells whose token an Authorization header carries (engine.access.Gate.caller)."""
        self._app = app
        self._log = log
        self._caller = caller

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http" or not changes_state(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        facts: dict[str, Any] = {}
        status = 0  # the client went away before an answer

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app({**scope, _NOTE: facts}, receive, sending)
        finally:
            header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
            token = self._caller(header.decode("latin-1")) if header is not None else None
            self._log.write(
                {
                    "time": iso_time(time.time_ns()),
                    "client": scope["client"][0] if scope["client"] else "",
                    "token": token.name if token is not None else "",
                    "method": scope["method"],
                    "path": scope["path"][:_MAX_PATH_CHARS],
                    "status": status,
                    **facts,
                }
            )
