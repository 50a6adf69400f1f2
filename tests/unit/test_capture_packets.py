"""What `capture` writes of a multicast feed: packets as they came, that other tools read and that replay alike.

Left out of the comparison with what the feed gave live: `source`, flag REPLAYED, and times of receipt (of two copies in
one poll the feed takes line A's, and the file has them by time), which are also the times of a GAP record.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Source, StatusCode, concatenate
from tests.multicast import datagrams, iex, mold
from tests.unit.test_decode_venues import iex_trade
from tests.unit.test_multicast_source import Stage, add, replayed
from workers.capture_log import Recording
from workers.errors import SettingsError
from workers.spec import CaptureSettings

PACKETS = 400


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(CaptureSettings(folder=str(tmp_path / "wire")))
    yield made
    made.close()


def lossy(stage: Stage, packets: list[bytes], seed: int) -> int:
    """Send on two lines that lose 5 % each, line 1 a little behind; returns how many went out."""
    dice, out = random.Random(seed), 0
    lines = [[packet for packet in packets if dice.random() > 0.05] for _ in (0, 1)]
    for start in range(0, PACKETS, 20):
        for line in (0, 1):
            for packet in lines[line][start : start + 20]:
                stage.send(packet, line)
                out += len(packet)
        stage.poll(stage.had(out))
    for line in (0, 1):  # the last one tells of what was lost before it
        stage.send(packets[-1], line)
    stage.poll(stage.had(out + 2 * len(packets[-1])))
    return out + 2 * len(packets[-1])


def comparable(records: np.ndarray) -> np.ndarray:
    records = concatenate([records])
    records["source"] = Source.REPLAY
    records["flags"] |= np.uint16(Flag.REPLAYED)
    records["ts_receive"] = 0
    records["ts_event"][records["record_type"] == RecordType.STATUS] = 0
    return records


@pytest.mark.bare_kernel  # options of multicast sockets
@pytest.mark.parametrize("protocol", ["mold-itch50", "iex-tops"])
@pytest.mark.parametrize("seed", [1, 2])
def test_two_lossy_lines_replay_to_what_they_gave(recording: Recording, protocol: str, seed: int) -> None:
    if protocol == "mold-itch50":
        packets = [mold(2 * n + 1, [add(2 * n + 1), add(2 * n + 2)]) for n in range(PACKETS)]
    else:
        packets = [iex(2 * n + 1, [iex_trade(2 * n + 1), iex_trade(2 * n + 2)]) for n in range(PACKETS)]
    # Longer than this process may wait for a core: the live feed goes by its clock, a replay by that of the packets.
    live = Stage(protocol, log_of=recording.log_of, book=True, gap_wait_ms=1500)
    lossy(live, packets, seed)
    deadline = time.monotonic() + 30
    while live.source._arbiter.held:  # until holes of both lines are given up
        live.poll(lambda: True)
        assert time.monotonic() < deadline
    records = concatenate(live.found)
    live.close()
    recording.close()
    (log,) = recording.logs
    (path,) = log.paths
    assert path.suffix == ".pcap"
    replay, ids = replayed(path)
    assert comparable(records).tobytes() == comparable(replay).tobytes()
    assert ids == live.ids
    # Either line alone has more holes than both together, and without arbitration the replay would show more, too.
    gaps = (replay["record_type"] == RecordType.STATUS) & (replay["code"] == StatusCode.GAP)
    plain, _ = replayed(path, arbitrate=False)
    assert gaps.sum() < ((plain["record_type"] == RecordType.STATUS) & (plain["code"] == StatusCode.GAP)).sum()
    assert len(log.connections) == 2
    assert sum(tally.received for tally in log.connections.values()) == log.written
    assert log.dropped == 0


@pytest.mark.bare_kernel  # options of multicast sockets
def test_captured_packets_of_real_feeds_replay_to_what_they_gave(samples: Path, tmp_path: Path) -> None:
    compared = 0
    for number, (protocol, folder) in enumerate(
        [
            ("iex-tops", "Iex/Tops.IexTp.v1.6"),
            ("iex-deep", "Iex/Deep.IexTp.v1.0"),
            ("mold-itch50", "Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0"),
        ]
    ):
        for path in sorted((samples / "pcap" / folder).glob("*.pcap")):
            recording = Recording(CaptureSettings(folder=str(tmp_path / f"{number}-{compared}"), compress="zstd"))
            live = Stage(protocol, log_of=recording.log_of, book=True)
            total = 0
            for packet in datagrams(path):
                live.send(packet)
                total += 2 * len(packet)
                live.poll(live.had(total))
            records = concatenate(live.found)
            live.close()
            recording.close()
            replay, ids = replayed(recording.logs[0].paths[0])
            assert comparable(records).tobytes() == comparable(replay).tobytes()
            assert ids == live.ids
            compared += len(records)
    assert compared > 0


@pytest.mark.bare_kernel  # options of multicast sockets
def test_the_file_is_a_plain_pcap_with_addresses_and_checksums(recording: Recording) -> None:
    live = Stage(log_of=recording.log_of)
    before = time.time_ns()
    live.send(mold(1, [add(1)]))
    sent_from = live.socket.getsockname()[1]
    live.poll(live.had(2 * 58))
    live.close()
    recording.close()
    data = recording.logs[0].paths[0].read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 101)
    at, seen = 24, []
    while at < len(data):
        seconds, ns, kept, had = struct.unpack_from("<IIII", data, at)
        packet = data[at + 16 : at + 16 + kept]
        total = sum(struct.unpack(">10H", packet[:20]))
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # RFC 1071
        assert (packet[0], packet[9], packet[12:16]) == (0x45, 17, b"\x7f\0\0\1")
        group, port = ".".join(map(str, packet[16:20])), int.from_bytes(packet[22:24], "big")
        if at == 24:
            head = json.loads(packet[28:])
            assert (head["t"], head["feed"]["options"]["protocol"], port) == ("header", "mold-itch50", 9)
            at += 16 + kept
            continue
        assert kept == had == 28 + 58
        assert int.from_bytes(packet[20:22], "big") == sent_from
        assert packet[28:] == mold(1, [add(1)])
        assert before - 10**9 <= seconds * 10**9 + ns <= time.time_ns()
        seen.append((group, port))
        at += 16 + kept
    assert sorted(seen) == sorted(live.to)


@pytest.mark.bare_kernel  # options of multicast sockets
def test_packets_of_parts_go_on_with_the_books_of_the_part_before(tmp_path: Path) -> None:
    from tests.replayed_trades import drain, make

    settings = CaptureSettings(folder=str(tmp_path), part_bytes=4096, flush_s=0.01)
    recording = Recording(settings)
    packets = [mold(n, [add(n)]) for n in range(1, 301)]
    live = Stage(log_of=recording.log_of, book=True)
    total = 0
    for start in range(0, 300, 10):
        for packet in packets[start : start + 10]:
            live.send(packet)
            total += 2 * len(packet)
        live.poll(live.had(total))
        written: Callable[[], Any] = lambda: recording.logs[0].waiting_bytes == 0  # noqa: E731
        live.poll(written)
    live.close()
    recording.close()
    paths = recording.logs[0].paths
    assert len(paths) > 2
    source = make(*map(str, paths), speed="max")
    records = drain(source)
    records = records[records["record_type"] != RecordType.STATUS]
    whole = concatenate(live.found)
    assert records["source_sequence"].tolist() == whole["source_sequence"].tolist()
    assert records["bid_count"][records["record_type"] == RecordType.QUOTE].max() == 300
    assert source.gaps == 0


@pytest.mark.parametrize(
    ("options", "words"), [({"arbitrate": 1}, "option arbitrate = 1"), ({"gap_wait_ms": -1}, "option gap_wait_ms = -1")]
)
def test_options_that_can_not_be_are_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        replayed(tmp_path / "none", **options)
