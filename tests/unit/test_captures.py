"""Which feeds of a worker are captured: those that are named, if their source tells of its wire."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm.status import ProcessStatus, StatusBlock
from workers.captures import Captures
from workers.spec import CaptureSettings, FeedSpec


def spec(name: str, source: str, *types: str) -> FeedSpec:
    return FeedSpec(feed_id=1, name=name, source=source, symbols=("X",), data_types=types)


@pytest.fixture
def status(engine_name: str) -> Iterator[ProcessStatus]:
    block = StatusBlock.create(engine_name)
    yield block.register("ingest-0", "ingest", os.getpid())
    block.close()


def captures(folder: Path, status: ProcessStatus, *feeds: str) -> Captures:
    return Captures(CaptureSettings(folder=str(folder / "wire"), compress="none", feeds=feeds), status)


def test_every_feed_that_can_be_is_captured_and_no_other(
    tmp_path: Path, status: ProcessStatus, caplog: pytest.LogCaptureFixture
) -> None:
    made = captures(tmp_path, status, "*")
    try:
        assert made.wire_of(spec("a", "websocket")) is not None
        assert made.wire_of(spec("b", "yahoo", "tick")) is not None
        assert made.wire_of(spec("f", "fix", "trade")) is not None
        assert made.wire_of(spec("i", "ibkr", "trade")) is not None
        for source, kind in (("yahoo", "bar"), ("fred", "tick"), ("alpha_vantage", "bar")):
            assert made.wire_of(spec("p", source, kind)) is not None
        for source, kind in (("replay", "trade"), ("simulated", ""), ("mine", "")):
            assert made.wire_of(spec("c", source, kind)) is None
    finally:
        made.close()
    assert "not captured" not in caplog.text


def test_a_feed_that_is_named_and_can_not_be_captured_is_said(
    tmp_path: Path, status: ProcessStatus, caplog: pytest.LogCaptureFixture
) -> None:
    made = captures(tmp_path, status, "prime")
    with caplog.at_level(logging.WARNING, "capture"):
        assert made.wire_of(spec("prime", "simulated", "trade")) is None
        assert made.wire_of(spec("other", "simulated", "trade")) is None
    made.close()
    assert [record.message for record in caplog.records] == [
        "feed prime is not captured: source 'simulated' has no wire; live sources do"
    ]
    assert not (tmp_path / "wire").exists()
