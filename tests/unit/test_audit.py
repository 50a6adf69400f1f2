"""Every call that changes state leaves a line, and the file stays bounded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine.access import Gate, parse_tokens
from engine.audit import FILE, KEPT_FILES, Audited, AuditLog, note

SECRET = "0123456789abcdef-secret"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def call(folder: Path, method: str, path: str, *, fails: bool = False, headers: dict[str, str] | None = None) -> None:
    """One request through the log, answered 201, or not at all."""

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001  the shape of an ASGI application
        note(scope, did="something")
        if fails:
            raise RuntimeError("broken")
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    gate = Gate(parse_tokens(f"write {SECRET} operator", "test"), loopback=True, requests_per_second=10)
    log = AuditLog(folder, on_lost=lambda: None)
    given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": given, "client": ("10.0.0.7", 1)}
    asyncio.run(Audited(app, log, gate.caller)(scope, None, send))
    log.close()
    assert sent == ["http.response.start", "http.response.body"]


def test_a_change_leaves_who_what_and_how_it_ended(tmp_path: Path) -> None:
    call(tmp_path, "POST", "/feeds", headers={"authorization": f"Bearer {SECRET}"})
    (line,) = lines(tmp_path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "client": "10.0.0.7",
        "token": "operator",
        "method": "POST",
        "path": "/feeds",
        "status": 201,
        "did": "something",
    }
    assert SECRET not in (tmp_path / FILE).read_text()


@pytest.mark.parametrize(("method", "path"), [("GET", "/feeds"), ("HEAD", "/"), ("POST", "/symbols/AAPL/snapshot")])
def test_reading_leaves_no_line(tmp_path: Path, method: str, path: str) -> None:
    call(tmp_path, method, path)
    assert not (tmp_path / FILE).exists()


def test_a_call_that_breaks_is_there_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        call(tmp_path, "DELETE", "/feeds/x", fails=True)
    assert [(line["method"], line["status"]) for line in lines(tmp_path)] == [("DELETE", 0)]


def test_the_files_are_bounded_and_the_newest_lines_stay(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, on_lost=lambda: None, max_bytes=200)
    for number in range(100):
        log.write({"number": number, "padding": "x" * 50})
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [FILE, *(f"{FILE}.{number}" for number in range(1, KEPT_FILES + 1))]
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    kept = [
        json.loads(line)["number"]
        for name in [*files[:0:-1], FILE]
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert kept == list(range(kept[0], 100))


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    for number in range(2):
        log = AuditLog(tmp_path, on_lost=lambda: None)
        log.write({"number": number})
        log.close()
    assert lines(tmp_path) == [{"number": 0}, {"number": 1}]


def test_lost_lines_are_counted_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    lost: list[int] = []
    log = AuditLog(tmp_path / "file", on_lost=lambda: lost.append(1))
    log.write({})
    log.write({})
    assert len(lost) == 2
    assert capsys.readouterr().err.count("audit log") == 1
