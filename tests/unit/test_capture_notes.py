"""What a source notes beside its messages: written where it was said, and again where what stood before is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from workers.capture_log import CaptureLog
from workers.decoders.jsonl import JsonlReader
from workers.decoders.protocol import NOTE
from workers.spec import CaptureSettings, FeedSpec

SPEC = FeedSpec(feed_id=1, name="f", source="fix", symbols=("X",))


def quiet(folder: Path, **more: Any) -> CaptureLog:
    """A log without a thread: the test writes."""
    settings = CaptureSettings(**{"folder": str(folder), "compress": "none", **more})
    return CaptureLog(SPEC, settings, lambda: None)


def note(number: int, **more: Any) -> str:
    return json.dumps({"of": "state", "n": number, **more})


def said(path: Path) -> list[tuple[Any, ...]]:
    """The lines: what they are, whether they are of before, and what a note says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["t"], line.get("kept", False), line.get("data", "")) for line in lines if line["t"] != "header"]


def test_a_part_begins_with_the_notes_that_stand_of_the_connections_that_are_up(tmp_path: Path) -> None:
    log = quiet(tmp_path, part_bytes=4096)
    for name in "01":
        log.connected(name, 1)
    log.noted("0", note(1), 2)
    log.noted("0", note(2), 3)
    log.noted("1", note(3), 3)
    log.noted("0", json.dumps({"of": "other"}), 3)
    log.noted("0", json.dumps({"of": "other", "over": True}), 4)
    log.noted("0", json.dumps({"answer": 5}), 4)
    log.lost("1", 4)
    log.received("0", bytes(3000), 5)
    log.write_some(1)
    log.received("0", b"x", 6)
    log.write_some(2)
    log.close(3)
    first, second = log.paths
    notes = [one for one in said(first) if one[0] == "note"]
    assert notes[:3] == [("note", False, note(1)), ("note", False, note(2)), ("note", False, note(3))]
    assert said(second) == [("connect", True, ""), ("note", True, note(2)), ("recv", False, "x")]
    assert [line.get("ns") for line in map(json.loads, second.read_text().splitlines())][2] == 3
    frames = JsonlReader().feed(first.read_bytes()).frames
    assert (frames["reserved"] == NOTE).sum() == 9  # two connects, six notes, a disconnect


def test_a_full_queue_has_room_for_notes(tmp_path: Path) -> None:
    log = quiet(tmp_path, queue_bytes=1 << 16)
    log.connected("0", 1)
    log.received("0", bytes(64_900), 3)
    for number in (1, 2):
        log.received("0", bytes(64_000), 3 + number)
        log.noted("0", note(number), 3 + number)
    log.received("0", b"", 8)
    while log.write_some(1):
        pass
    log.close(3)
    assert [one[0] for one in said(log.paths[0])] == [
        "connect",
        "recv",
        "dropped",
        "note",
        "dropped",
        "note",
        "dropped",
    ]
    assert log.dropped == 3


def test_behind_what_could_not_be_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = quiet(tmp_path)
    log.connected("0", 1)
    log.write_some(1)
    write = os.write

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log.noted("0", note(1), 2)
    log.write_some(2)
    monkeypatch.setattr(os, "write", write)
    log.received("0", b"x", 3)
    log.write_some(3)
    log.close(4)
    assert [one[:2] for one in said(log.paths[0])] == [
        ("connect", False),
        ("dropped", False),
        ("note", True),
        ("recv", False),
    ]
