"""The recorder of the wire: bounds, what is told of losses, parts, torn files, full disks, and what it keeps secret."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shm.layout import RecordType, StatusCode, empty
from workers.capture_files import CaptureParts, follows
from workers.capture_log import CaptureLog, Recording
from workers.decoders.capture import open_capture
from workers.decoders.protocol import FramingError
from workers.errors import SettingsError
from workers.spec import CaptureSettings, FeedSpec
from workers.wire_log import Hidden, clean_options, clean_url, secrets_of

SPEC = FeedSpec(
    feed_id=1,
    name="b 1",
    source="websocket",
    symbols=("X",),
    data_types=("trade",),
    options={"venue": "binance", "url": "ws://h/?token=abc"},
)
SECOND_NS = 10**9
VENUES_GAP = b"gap in the venue's sequence"  # trade ids count by one


def settings(folder: Path, **more: Any) -> CaptureSettings:
    return CaptureSettings(**{"folder": str(folder), "compress": "none", **more})


def quiet(folder: Path, **more: Any) -> CaptureLog:
    """A log without a thread: the test writes."""
    return CaptureLog(SPEC, settings(folder, **more), lambda: None)


def trade(number: int) -> bytes:
    return b'{"stream":"x@trade","data":{"e":"trade","E":1,"s":"X","t":%d,"p":"1.5","q":"2","T":1,"m":true}}' % number


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def replayed(path: Path) -> tuple[list[int], list[bytes], bool]:
    """Trade ids, texts of gaps, and whether the file was torn."""
    found, said, torn = [], [], False
    with open_capture(path, intern=lambda _: 0) as capture:
        while True:
            try:
                count = capture.decode(out := empty(64))
            except FramingError:
                torn = True
                continue
            if not count:
                return found, said, torn
            for row in out[:count]:
                if row["record_type"] == RecordType.TRADE:
                    found.append(int(row["trade_id"]))
                elif row["code"] == StatusCode.GAP and row["text"]:
                    said.append(bytes(row["text"]))


def test_a_full_queue_drops_the_newest_and_says_so_where_the_hole_is(tmp_path: Path) -> None:
    log = quiet(tmp_path, queue_bytes=1 << 16)
    log.connected("0", SECOND_NS)
    sent = 0
    while not log.dropped:
        sent += 1
        log.received("0", trade(sent), SECOND_NS + sent)
    fits = sent - 1
    log.received("0", trade(sent + 1), SECOND_NS + sent + 1)
    assert log.dropped == 2
    while log.write_some(SECOND_NS):
        pass
    assert log.waiting_bytes == 0
    log.received("0", trade(sent + 2), SECOND_NS + sent + 2)
    log.write_some(SECOND_NS)
    log.close(SECOND_NS)
    (path,) = log.paths
    found = lines(path)
    assert [line["t"] for line in found[-3:]] == ["recv", "dropped", "recv"]
    assert found[-2]["messages"] == 2
    ids, said, _ = replayed(path)
    assert ids == [*range(1, fits + 1), sent + 2]
    assert said == [b"2 messages not captured", VENUES_GAP]
    assert log.written == fits + 3  # connect and dropped, too


def test_what_is_dropped_at_the_very_end_is_told_too(tmp_path: Path) -> None:
    log = quiet(tmp_path, queue_bytes=1 << 16)
    log.received("0", b"x", 1)
    log.received("0", bytes(1 << 16), 2)
    log.write_some(SECOND_NS)
    log.close(SECOND_NS)
    assert [line["t"] for line in lines(log.paths[0])] == ["header", "recv", "dropped"]


def test_a_disk_that_is_full_costs_messages_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = quiet(tmp_path)
    write, room = os.write, [10**9]

    def short(fd: int, data: Any) -> int:
        """A disk on which there is room for so many bytes."""
        part = bytes(data)[: room[0]]
        if not part:
            raise OSError(28, "No space left on device")
        room[0] -= len(part)
        return write(fd, part)

    monkeypatch.setattr(os, "write", short)
    log.connected("0", 1)
    log.received("0", trade(1), 2)
    log.write_some(SECOND_NS)
    room[0] = 30  # of the next, a part can be written
    log.received("0", trade(2), 3)
    log.received("0", trade(3), 4)
    log.write_some(SECOND_NS)
    assert log.dropped == 2
    assert "No space left" in caplog.text
    room[0] = 10**9
    log.received("0", trade(4), 5)
    log.write_some(SECOND_NS)
    log.close(SECOND_NS)
    ids, said, torn = replayed(log.paths[0])
    assert (ids, said, torn) == ([1, 4], [b"2 messages not captured", VENUES_GAP], False)


def test_a_torn_file_is_read_up_to_its_last_whole_message(tmp_path: Path) -> None:
    for compress in ("none", "zstd"):
        log = quiet(tmp_path / compress, compress=compress)
        log.connected("0", 1)
        for number in range(1, 11):
            log.received("0", trade(number), number)
            log.write_some(SECOND_NS)
        whole = log.paths[0].read_bytes()
        sizes = set()
        for cut in range(1, 200):
            path = tmp_path / "torn"
            path.write_bytes(whole[:-cut])
            ids, _, _ = replayed(path)
            assert ids == list(range(1, len(ids) + 1))
            sizes.add(len(ids))
        assert max(sizes) in (9, 10)  # a line that lacks its newline alone is whole
        assert min(sizes) < 9


def test_parts_end_by_size_and_by_age_and_each_says_what_is_connected(tmp_path: Path) -> None:
    log = quiet(tmp_path, part_bytes=4096, part_s=60)
    log.connected("0", 1, url="ws://user:pw@h/x?token=abc&depth=5")
    log.received("0", bytes(8000), 2)
    log.write_some(SECOND_NS)
    log.received("0", b"b", 3)
    log.write_some(2 * SECOND_NS)
    log.received("0", b"c", 4)
    log.lost("0", 5, "gone")
    log.write_some(70 * SECOND_NS)
    log.received("1", b"d", 6)
    log.write_some(140 * SECOND_NS)
    log.close(SECOND_NS)
    found = [lines(path) for path in log.paths]
    assert [[line["t"] for line in part] for part in found] == [
        ["header", "connect", "recv"],
        ["header", "connect", "recv"],
        ["header", "connect", "recv", "disconnect"],
        ["header", "recv"],
    ]
    assert [part[0]["part"] for part in found] == [1, 2, 3, 4]
    assert found[1][1]["kept"]
    assert found[0][1]["url"] == "ws://[redacted]@h/x?token=[redacted]&depth=5"
    assert [follows(b, a) for a, b in zip(log.paths, log.paths[1:], strict=False)] == [True] * 3
    assert not follows(log.paths[0], log.paths[1])
    assert not follows(log.paths[2], log.paths[0])
    assert not follows(tmp_path / "x.pcap", tmp_path / "y.pcap")


def test_the_oldest_parts_make_room_also_those_of_earlier_captures(tmp_path: Path) -> None:
    other = tmp_path / "other-20261121T103000.123Z-0001.jsonl"
    other.write_bytes(bytes(50_000))
    paths = []
    for start in (0, 100):
        log = quiet(tmp_path, part_bytes=4096, keep_bytes=20_000)
        for number in range(4):
            log.received("0", bytes(3000), 1)  # a NUL is six characters in JSON
            log.write_some((start + number + 1) * SECOND_NS)
        log.close(SECOND_NS)
        paths += log.paths
    left = [path for path in paths if path.exists()]
    assert left == paths[-len(left) :]
    assert len(left) == 1 or sum(path.stat().st_size for path in left) <= 20_000 + 4096
    assert len(left) < len(paths)
    assert other.exists()


def test_captures_that_begin_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    logs = [quiet(tmp_path) for _ in range(3)]
    for log in logs:
        log.received("0", b"x", 1)
        log.write_some(SECOND_NS)
        log.close(SECOND_NS)
    assert len({log.paths[0] for log in logs}) == 3
    assert logs[0].paths[0].name == "b_1-19700101T000001.000Z-0001.jsonl"
    assert logs[0].paths[0].stat().st_mode & 0o777 == 0o600


def test_what_is_no_text_comes_back_as_it_was(tmp_path: Path) -> None:
    log = quiet(tmp_path)
    data = bytes(range(256))
    log.received("0", data, 1)
    log.write_some(SECOND_NS)
    log.close(SECOND_NS)
    assert base64.b64decode(lines(log.paths[0])[1]["b64"]) == data
    from workers.decoders.jsonl import JsonlReader

    batch = JsonlReader().feed(log.paths[0].read_bytes())
    frame = batch.frames[0]
    start = int(frame["offset"])
    assert batch.buffer[start : start + int(frame["size"])] == data
    assert frame["ts_receive"] == 1


def test_a_recording_writes_what_waits_when_it_is_closed_and_ends_single_feeds(tmp_path: Path) -> None:
    recording = Recording(settings(tmp_path, flush_s=60))
    log = recording.log_of(SPEC)
    assert recording.log_of(SPEC) is log
    for number in range(1000):
        log.received("0", trade(number), number + 1)
    recording.close()
    recording.close()
    assert len(lines(log.paths[0])) == 1001
    assert log.connections["0"].received == 1000


def test_a_feed_that_ends_and_comes_again_has_a_capture_of_its_own(tmp_path: Path) -> None:
    recording = Recording(settings(tmp_path, flush_s=60))
    first = recording.log_of(SPEC)
    first.received("0", trade(1), 1)
    recording.end(SPEC)
    second = recording.log_of(SPEC)
    assert second is not first
    second.received("0", trade(2), 2)
    recording.close()
    assert [replayed(log.paths[0])[0] for log in (first, second)] == [[1], [2]]
    assert first.paths != second.paths


def test_what_nobody_thought_of_is_counted_and_harms_no_other_feed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recording = Recording(settings(tmp_path, flush_s=0.01))
    bad, good = recording.log_of(SPEC), recording.log_of(msgspec.structs.replace(SPEC, name="other"))
    bad.lost("0", 1, "\ud800")  # half a character: no UTF-8
    good.received("0", trade(1), 1)
    recording.close()
    assert bad.dropped == 1
    assert "capture of b 1" in caplog.text
    assert replayed(good.paths[0])[0] == [1]


def test_a_folder_that_can_not_be_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Recording(settings(tmp_path / "file"))


def test_without_zstandard_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(SettingsError, match=r"zstandard is not installed.*tickengine\[replay\].*none"):
        CaptureParts("f", "jsonl", settings(tmp_path, compress="auto"), lambda _: b"")
    CaptureParts("f", "pcap", settings(tmp_path, compress="auto"), lambda _: b"")


def test_a_capture_of_a_source_without_a_decoder_says_so(tmp_path: Path) -> None:
    spec = FeedSpec(feed_id=1, name="f", source="other", options={"password": "x", "host": "h"})
    log = CaptureLog(spec, settings(tmp_path), lambda: None)
    log.received("0", b"8=FIX", 1)
    log.write_some(SECOND_NS)
    log.close(SECOND_NS)
    assert lines(log.paths[0])[0]["feed"]["options"] == {"password": "[redacted]", "host": "h"}
    with pytest.raises(Exception, match="source 'other': no decoder"):
        open_capture(log.paths[0], intern=lambda _: 0)


def test_secrets_are_found_in_every_form() -> None:
    hidden = Hidden()
    hidden.add("Basic dXNlcjpwdw==")
    hidden.add('a"b/c d')  # seven characters
    hidden.add("")
    hidden.add("12345")  # would blank out prices
    assert hidden.clean(b"12345") == b"12345"
    for text in (b"dXNlcjpwdw==", b'a"b/c d', b'a\\"b/c d', b"a%22b%2Fc%20d", base64.b64encode(b'a"b/c d')):
        assert hidden.clean(b"<" + text + b">") == b"<[redacted]>"
    assert hidden.clean(b"nothing") == b"nothing"
    assert clean_url("wss://h/x?api_key=1&depth=5#token=2") == "wss://h/x?api_key=[redacted]&depth=5#token=[redacted]"
    assert clean_url("ws://[::1") == "[redacted]" or "://" in clean_url("ws://[::1")
    assert secrets_of("ws://u:p@h/?sign=s&x=y", ["Bearer z"]) == ["Bearer z", "s", "u", "p"]
    options = {
        "headers": {"X": "1"},
        "login": ["l"],
        "logged_in": {"e": 1},
        "url": "ws://u:p@h/",
        "deep": [{"apiSecret": "s", "n": 1}],
        "rename": {"TOKENUSDT": "TOKEN-USDT"},
    }
    assert clean_options(options) == {
        "headers": {"X": "[redacted]"},
        "login": [],
        "logged_in": {"e": 1},
        "url": "ws://[redacted]@h/",
        "deep": [{"apiSecret": "[redacted]", "n": 1}],
        "rename": {"TOKENUSDT": "TOKEN-USDT"},
    }


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
