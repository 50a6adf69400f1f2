"""The language of WebSocket clients: what is a request, what is a topic, what goes over the wire."""

from __future__ import annotations

import json

import pytest

from shm.layout import RecordType
from workers.stream import (
    ANY_TYPE,
    EVERYTHING,
    SPECIAL,
    Pattern,
    Ping,
    RequestError,
    Subscribe,
    answer_frame,
    data_frame,
    decode_request,
    frame,
    gap_frame,
    parse_topic,
    parse_topics,
)


@pytest.mark.parametrize(
    ("topic", "pattern"),
    [
        ("marketdata.tick.AAPL", Pattern(RecordType.TICK, "AAPL")),
        ("marketdata.tick.BRK.B", Pattern(RecordType.TICK, "BRK.B")),
        ("marketdata.quote.*", Pattern(RecordType.QUOTE, "", True)),
        ("marketdata.level2.BTC*", Pattern(RecordType.LEVEL2, "BTC", True)),
        ("marketdata.*.AAPL", Pattern(ANY_TYPE, "AAPL")),
        ("marketdata.*.*", Pattern(ANY_TYPE, "", True)),
        ("marketdata.*", Pattern(EVERYTHING, "", True)),
        ("marketdata.feed.status", Pattern(SPECIAL, "marketdata.feed.status")),
        ("marketdata.error", Pattern(SPECIAL, "marketdata.error")),
        ("marketdata.tick." + "É" * 16, Pattern(RecordType.TICK, "É" * 16)),
    ],
)
def test_a_topic_means_its_pattern(topic: str, pattern: Pattern) -> None:
    assert parse_topic(topic, "topics[0]") == pattern


@pytest.mark.parametrize(
    "topic",
    [
        *(
            "",
            "*",
            "marketdata",
            "marketdata.",
            "marketdata.tick",
            "marketdata.tick.",
            "marketdata.error.A",
            "x.tick.A",
        ),
        *("marketdata.tick.*.A", "marketdata.tick.A*B", "marketdata.tick.A\n", "marketdata.tick." + "É" * 17),
    ],
)
def test_what_is_no_topic_is_refused_with_its_field(topic: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_topic(topic, "topics[3]")
    assert caught.value.field == "topics[3]"


def test_a_pattern_matches_its_topics_and_no_others() -> None:
    tick, quote = RecordType.TICK, RecordType.QUOTE
    for topic, kind, symbol, expected in [
        ("marketdata.tick.AAPL", tick, "AAPL", True),
        ("marketdata.tick.AAPL", quote, "AAPL", False),
        ("marketdata.tick.AAPL", tick, "AAPLX", False),
        ("marketdata.tick.AA*", tick, "AAPL", True),
        ("marketdata.tick.AA*", tick, "AA", True),
        ("marketdata.tick.AA*", quote, "AAPL", False),
        ("marketdata.*.*", quote, "X", True),
        ("marketdata.*.*", SPECIAL, "marketdata.error", False),
        ("marketdata.*", SPECIAL, "marketdata.error", True),
        ("marketdata.error", SPECIAL, "marketdata.error", True),
    ]:
        assert parse_topic(topic, "").matches(kind, symbol) is expected, (topic, kind, symbol)


def test_requests_are_decoded_and_their_answers_carry_the_id() -> None:
    request = decode_request(b'{"type":"subscribe","topics":["marketdata.*"],"snapshot":true,"id":"a"}')
    assert request == Subscribe(topics=["marketdata.*"], snapshot=True, id="a")
    assert decode_request(b'{"type":"ping","id":5}') == Ping(id=5)
    assert json.loads(answer_frame("pong", 5)[2:]) == {"type": "pong", "id": 5}
    assert json.loads(answer_frame("pong")[2:]) == {"type": "pong"}


def test_topics_written_twice_count_once() -> None:
    assert len(parse_topics(["marketdata.tick.A", "marketdata.tick.A"])) == 1


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_a_frame_has_the_header_of_its_length(size: int) -> None:
    made = frame(b"x" * size)
    assert made[0] == 0x81
    header = 2 if size < 126 else 4 if size < 65536 else 10
    assert len(made) == header + size
    length = made[1] if size < 126 else int.from_bytes(made[2:header], "big")
    assert length == size


def test_data_and_gap_messages_have_the_fields_of_the_interface() -> None:
    data = json.loads(data_frame("marketdata.tick.A", {"symbol": "A"})[2:])
    assert data == {"type": "data", "topic": "marketdata.tick.A", "data": {"symbol": "A"}}
    assert json.loads(data_frame("t", {}, snapshot=True)[2:])["snapshot"] is True
    gap = json.loads(gap_frame("marketdata.tick.A", 2, (10, 25), 3, "conflated")[2:])
    assert gap == {
        "type": "gap",
        "topic": "marketdata.tick.A",
        "ring": 2,
        "from": 10,
        "to": 25,
        "count": 3,
        "reason": "conflated",
    }
