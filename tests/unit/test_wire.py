"""The bytes of a raw frame and the names of topics: what subscribers in other languages rely on."""

from __future__ import annotations

import numpy as np
import pytest

from shm.layout import RECORD, RecordType, empty
from workers import wire


def test_header_bytes_are_pinned() -> None:
    packed = wire.pack_header(ring=3, count=2, topic_sequence=0x0102030405060708)

    assert packed == bytes.fromhex("0100 0300 02000000 0807060504030201")


def test_frame_decodes_by_the_documented_frombuffer_call() -> None:
    records = empty(2)
    records["price"] = [1.5, 2.5]
    frame = wire.pack_header(2, 2, 7) + records.tobytes()

    assert np.frombuffer(frame, RECORD, offset=16)["price"].tolist() == [1.5, 2.5]
    header, got = wire.unpack_frame(frame)
    assert header == (1, 2, 2, 7)
    assert got["price"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"", "0 bytes"),
        (b"\x01\x00" * 7, "14 bytes"),
        (wire.HEADER.pack(2, 0, 0, 1), "version 2"),
        (wire.pack_header(0, 1, 1) + bytes(127), "1 records need 144"),
        (wire.pack_header(0, 1, 1) + bytes(129), "1 records need 144"),
    ],
)
def test_malformed_frame_is_refused(frame: bytes, complaint: str) -> None:
    with pytest.raises(wire.WireError, match=complaint):
        wire.unpack_frame(frame)


def test_topics_are_named_as_the_interface_says() -> None:
    assert [wire.symbol_topic(kind, "AAPL") for kind in wire.SYMBOL_TYPES] == [
        "marketdata.tick.AAPL",
        "marketdata.quote.AAPL",
        "marketdata.bar.AAPL",
        "marketdata.trade.AAPL",
        "marketdata.level2.AAPL",
        "marketdata.news.AAPL",
    ]
    assert RecordType.STATUS not in wire.SYMBOL_TYPES
    assert wire.BATCH_TOPIC == "marketdata.batch"
    assert wire.STATUS_TOPIC == "marketdata.feed.status"
    assert wire.ERROR_TOPIC == "marketdata.error"
    assert wire.ALERT_TOPIC == "marketdata.latency.alert"


@pytest.mark.parametrize(
    ("raw", "replay"),
    [
        ("tcp://127.0.0.1:8801", "tcp://127.0.0.1:8831"),
        ("tcp://[::1]:8802", "tcp://[::1]:8832"),
        ("ipc:///run/tk/main.raw.0", "ipc:///run/tk/main.replay.0"),
        ("tcp://127.0.0.1:65530", None),
        ("tcp://127.0.0.1:*", None),
        ("ipc:///run/tk/other", None),
        ("inproc://x", None),
        ("nonsense", None),
    ],
)
def test_replay_endpoint_follows_from_the_raw_one(raw: str, replay: str | None) -> None:
    assert wire.replay_endpoint(raw) == replay
