"""Files of captured polled feeds: no keys, parts, holes, torn ends, lines that somebody changed, what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, concatenate, empty
from tests.feed_captures import (
    assert_alike,
    comparable,
    compressed_recording,  # noqa: F401 -- a fixture
    lines_of,
    replayed,
)
from tests.polled_capture import (
    Make,
    assert_replays_alike,
    captured_feeds,  # noqa: F401 -- a fixture
    notes,
    source_of,
    written,
)
from tests.replayed_trades import drain
from tests.unit.test_polled_source import KEY
from tests.unit.test_websocket_source import of
from tests.vendor_server import (
    Reply,
    VendorServer,
    fred_body,
    fred_error,
    fred_row,
    fred_rows,
)
from workers import capture_log
from workers.capture_files import chains
from workers.capture_log import CaptureLog, Recording
from workers.decoders import jsonl
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.jsonl import JsonlReader
from workers.decoders.protocol import UnknownFormatError
from workers.errors import SettingsError
from workers.sources.polled_witness import runs_of
from workers.spec import CaptureSettings


def without(records: np.ndarray, flag: Flag) -> np.ndarray:
    records["flags"] &= ~np.uint16(flag)
    return records


def test_the_key_is_written_nowhere(samples: Path, feeds: Make, recording: Recording) -> None:
    bad = Reply(fred_error(f"Bad Request. The value for variable api_key ({KEY}) is not registered."), status=400)
    broken = Reply(f'"{KEY}'.encode() + b"\xff")
    with VendorServer({"UNRATE": [Reply(fred_body(fred_rows(samples))), broken, bad]}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base, key_variable="FRED_API_KEY")
        feed.until(lambda: feed.source.report.state == "failed", "the key is refused")
        assert vendor.asked[0]["api_key"] == KEY
        feed.source.close()
    recording.close()
    (path,) = recording.logs[0].paths
    lines = lines_of(path)
    assert KEY not in json.dumps(lines)
    assert all(KEY.encode() not in base64.b64decode(line["b64"]) for line in lines if "b64" in line)
    asked = next(line for line in lines if line["t"] == "ask")
    assert "api_key=[redacted]" in asked["url"]
    assert "series_id=UNRATE" in asked["url"]
    assert "[redacted]" in lines[0]["feed"]["options"]["key_variable"]
    assert any("is refused" in note.get("why", "") for note in notes(path))
    with open_capture(path, intern=lambda _: 0) as capture:
        assert capture.decode(empty(1000)) == 790


def test_parts_are_one_capture_and_each_is_good_alone(
    samples: Path, tmp_path: Path, feeds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a part alone lacks, an answer in the one before it, is told."""
    made = Recording(CaptureSettings(folder=str(tmp_path / "parts"), part_bytes=4096, compress="none", flush_s=0.001))
    rows = fred_rows(samples)
    script = [Reply(fred_body(rows[:count])) for count in (200, 600, 602, 788, 790)]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=made.log_of)
        feed.until(lambda: len(feed.market) == 790, "all of it")
        feed.settle()
        assert_replays_alike(feed, made, monkeypatch)
    paths = made.logs[0].paths
    assert len(paths) > 3
    assert chains(paths) == [tuple(paths)]
    found, missing = [], 0
    for path in paths:
        alone = replayed([path], feed.names)
        status = alone["record_type"] == RecordType.STATUS
        gaps = of(alone, status)
        assert (gaps["code"] == StatusCode.GAP).all()
        missing += sum(int(text.split()[0]) for text in gaps["text"].tolist() if text.endswith(b"without their answer"))
        if len(gaps) and not status.all():
            first = alone[int(np.flatnonzero(~status)[0])]
            assert first["flags"] & Flag.GAP_BEFORE
        found.append(of(alone, ~status))
    assert len(concatenate(found)) + missing == 790


def test_a_queue_that_is_full_costs_answers_and_is_told(samples: Path, tmp_path: Path, feeds: Make) -> None:
    """The second answer alone is longer than the queue may be."""
    rows = fred_rows(samples)
    script = [Reply(fred_body(rows[:20])), Reply(fred_body(rows)), Reply(fred_body(rows[780:]))]
    script += [Reply(fred_body([*rows[785:], fred_row("2020-05-01", "1.5", "2020-06-01")]))]
    size = len(script[1].body)
    assert size > 1 << 16
    spec_of = CaptureSettings(folder=str(tmp_path / "small"), queue_bytes=1 << 16)
    made = Recording(spec_of)
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=made.log_of)
        feed.until(lambda: len(feed.market) == 791, "all of it")
        feed.settle()
        feed.source.close()
    made.close()
    log: CaptureLog = made.logs[0]
    assert log.dropped == 1
    (dropped,) = [line for line in lines_of(log.paths[0]) if line["t"] == "dropped"]
    assert dropped["messages"] == 1
    assert dropped["bytes"] >= size
    replay = replayed(log.paths, feed.names)
    status = replay["record_type"] == RecordType.STATUS
    said = of(replay, status)["text"].tolist()
    assert said[0] == b"1 messages not captured"
    assert all(text.endswith(b"records without their answer") for text in said[1:])
    assert sum(int(text.split()[0]) for text in said[1:]) == 770
    assert_alike(
        of(comparable(feed.records), np.isin(np.arange(791), [*range(20), 790])),
        without(of(comparable(replay), ~status), Flag.GAP_BEFORE),
    )
    assert (of(replay, ~status)["flags"] & Flag.GAP_BEFORE != 0).tolist() == [False] * 20 + [True]
    described = describe_capture(log.paths[0])
    assert described["missing"] == 770
    assert described["gaps"] == len(said)


def test_an_answer_too_long_for_a_line_is_dropped_and_told(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reader would take the line, nor what comes after it."""
    monkeypatch.setattr(capture_log, "LINE_MAX_BYTES", 4096)
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows[:count])) for count in (2, 700, 2)]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 4, "four requests")
        feed.settle()
        feed.source.close()
    recording.close()
    (log,) = recording.logs
    assert log.dropped == 1
    (dropped,) = [line for line in lines_of(log.paths[0]) if line["t"] == "dropped"]
    assert (dropped["messages"], dropped["bytes"] > 4096) == (1, True)
    replay = replayed(log.paths, feed.names)
    texts = of(replay, replay["record_type"] == RecordType.STATUS)["text"].tolist()
    assert texts[0] == b"1 messages not captured"
    assert sum(int(text.split()[0]) for text in texts[1:]) == 698
    assert len(replay) - len(texts) == 2


def test_a_line_is_read_whatever_the_pieces_in_which_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = {"name": "f", "source": "fred"}
    lines = [{"t": "header", "feed": feed}, *({"t": "http", "ns": ns, "data": "x" * ns} for ns in (5, 300, 7))]
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    for step in (1, 3, 100, len(data)):
        reader = JsonlReader()
        found = [reader.feed(data[at : at + step]) for at in range(0, len(data), step)]
        assert reader.finish() == len(json.dumps(lines[-1]))  # its end is missing
        found.append(reader.feed(b"\n"))
        assert reader.finish() == 0
        frames = [(batch.buffer, frame) for batch in found for frame in batch.frames]
        texts = [buffer[int(frame["offset"]) :][: int(frame["size"])] for buffer, frame in frames]
        assert [json.loads(text) for text in texts] == lines[1:]
        assert [int(frame["ts_receive"]) for _, frame in frames] == [5, 300, 7]
    monkeypatch.setattr(jsonl, "LINE_MAX_BYTES", 100)
    reader = JsonlReader()
    for at in range(0, 120, 10):
        reader.feed(data[-300:][at : at + 10])
    assert "jsonl: a line of more than" in str(reader.error)
    assert reader.finish() == 0


def test_a_file_that_is_cut_off_gives_what_came_before(samples: Path, tmp_path: Path, feeds: Make) -> None:
    made = Recording(CaptureSettings(folder=str(tmp_path / "cut"), compress="none"))
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows[:count])) for count in (3, 5, 9)]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=made.log_of)
        feed.until(lambda: len(feed.market) == 9, "all of it")
        feed.settle()
        feed.source.close()
    made.close()
    (path,) = made.logs[0].paths
    whole, live = path.read_bytes(), comparable(feed.records)
    head = whole.index(b"\n") + 1
    sizes = set()
    for end in range(head, len(whole) + 17, 17):
        short = tmp_path / "short.jsonl"
        short.write_bytes(whole[:end])
        with open_capture(short, intern=feed.names.__getitem__, feed_id=3) as capture:
            replay = comparable(of(out := empty(64), np.arange(64) < capture.decode(out)))
        sizes.add(len(replay))
        for row in range(len(replay)):
            assert live[row].tobytes() == replay[row].tobytes()
    assert sizes == {0, 3, 5, 9}


def test_replayed_as_a_feed_with_a_filter_and_another_code(samples: Path, feeds: Make, recording: Recording) -> None:
    with VendorServer({"FEDFUNDS": [Reply(fred_body(fred_rows(samples)))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 3, "three requests")
        feed.settle()
        feed.source.close()
    recording.close()
    (path,) = recording.logs[0].paths
    found = drain(source_of(path, decoder={"venue": "MINE"}))
    assert len(found) == 791
    assert (found["feed_id"] == 9).all()
    assert (found["venue"][:-1] == b"MINE").all()
    assert found["code"][-1] == StatusCode.END_OF_REPLAY


def test_faults_on_purpose_are_refused_in_a_line(samples: Path, feeds: Make, recording: Recording) -> None:
    with VendorServer({"FEDFUNDS": [Reply(fred_body(fred_rows(samples)))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: len(feed.market) == 790, "all of it")
        feed.settle()
        feed.source.close()
    recording.close()
    (path,) = recording.logs[0].paths
    with pytest.raises(SettingsError, match=r"faults: .*jsonl.zst is of a polled feed, whose answers come whole"):
        drain(source_of(path, faults="drop=0.1"))


@pytest.mark.parametrize(
    ("answer", "note", "said", "malformed"),
    [
        ({}, {"answer": 5, "rows": [[0, 1, 0]]}, [], {}),
        ({"ns": 6}, {"answer": 5, "rows": [[0, 1, 0]]}, [b"1 records without their answer"], {}),
        ({"conn": "Y tick"}, {"answer": 5, "rows": [[0, 1, 0]]}, [b"1 records without their answer"], {}),
        (
            {},
            {"answer": 5, "rows": [[0, 1, 0], [1, 9, 0]]},
            [b"10 records without their answer"],
            {"answer with less in it than was published of it": 1},
        ),
        (
            {"data": "garbage"},
            {"answer": 5, "rows": [[0, 1, 0]]},
            [b"1 records without their answer"],
            {"answer that can't be read": 1},
        ),
        (
            {"status": 500},
            {"answer": 5, "rows": [[0, 1, 0]]},
            [b"1 records without their answer"],
            {"answer that can't be read": 1},
        ),
        ({}, {"answer": 5, "rows": [[-1, 1, 0]]}, [], {"line": 1}),
        ({}, {"answer": 5, "rows": [[0, 0, 0]]}, [], {"line": 1}),
        ({}, {"answer": 5, "rows": [[0, 1, 1 << 16]]}, [], {"line": 1}),
        ({}, ["no note"], [], {"line": 1}),
        ({}, {"answer": 5, "why": "because"}, [], {}),
    ],
)
def test_captures_that_somebody_has_changed(
    tmp_path: Path, answer: dict[str, Any], note: Any, said: list[bytes], malformed: dict[str, int]
) -> None:
    body = fred_body([fred_row("2020-01-01", "3.5")]).decode()
    path = written(
        tmp_path,
        {"t": "http", "conn": "X tick", "ns": 5, "status": 200, "data": body, **answer},
        {"t": "note", "conn": "X tick", "ns": 7, "data": json.dumps(note)},
        {"t": "note", "conn": "X tick", "ns": 7, "kept": True, "data": json.dumps(note)},  # told again
        {"t": "disconnect", "conn": "X tick", "ns": 8},
    )
    with open_capture(path, intern=lambda _: 0) as capture:
        count = capture.decode(out := empty(16))
        found = out[:count]
        assert capture.decode(empty(16)) == 0
        assert capture.counters.malformed == malformed
    texts = of(found, found["record_type"] == RecordType.STATUS)["text"].tolist()
    assert texts == said
    good = not said and not malformed and "rows" in note
    assert len(found) - len(texts) == good


@pytest.mark.parametrize(
    "feed",
    [
        {"symbols": None},
        {"symbols": []},
        {"data_types": ["bar"]},
        {"options": {"vintages": "perhaps"}},
        {"options": {"unheard_of": 1}},
        {"source": "yahoo", "data_types": ["bar", "tick"]},
    ],
)
def test_a_header_of_a_feed_that_can_not_be_is_said(tmp_path: Path, feed: dict[str, Any]) -> None:
    with pytest.raises(UnknownFormatError, match="names a feed that can't be decoded here"):
        open_capture(written(tmp_path, **feed), intern=lambda _: 0)


def test_long_stretches_without_news_are_not_read_in_one_poll(tmp_path: Path) -> None:
    """A worker that did so would be taken for a stuck one."""
    same = [{"t": "http", "conn": "X tick", "ns": ns, "status": 200, "data": "x" * 300_000} for ns in range(1, 41)]
    body = fred_body([fred_row("2020-01-01", "3.5")]).decode()
    news = {"t": "http", "conn": "X tick", "ns": 50, "status": 200, "data": body}
    note = {"t": "note", "conn": "X tick", "ns": 51, "data": json.dumps({"answer": 50, "rows": [[0, 1, 0]]})}
    source = source_of(written(tmp_path, *same, news, note))
    counts = []
    while source.next_due_ns is not None:
        counts.append(source.poll(empty(10), 1))
    assert sum(counts) == 2
    assert counts[:8] == [0] * 8


def test_rows_become_runs() -> None:
    rows, flags = np.array([0, 1, 2, 4, 5, 9]), np.array([8, 8, 0, 0, 0, 8], np.uint16)
    assert runs_of(rows, flags) == [(0, 2, 8), (2, 1, 0), (4, 2, 0), (9, 1, 8)]
