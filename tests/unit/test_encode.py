"""Records become messages one for one; news that goes over several records becomes one."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from shm.errors import BadArgument
from shm.layout import NO_INSTRUMENT, Flag, RecordType, StatusCode, empty
from shm.message import news_pieces, payload
from workers import encode
from workers.encode import MessageBuilder, encode_json, encode_msgpack
from workers.topics import STATUS, topic_index

TICK, NEWS = topic_index(RecordType.TICK, 3), topic_index(RecordType.NEWS, 3)
NAMES = {TICK: b"marketdata.tick.AAPL", NEWS: b"marketdata.news.AAPL"}
SYMBOLS: dict[int, str | None] = {TICK: "AAPL", NEWS: "AAPL"}


def build(builder: MessageBuilder, records: np.ndarray, listed: list[tuple[int, int, int]], ring: int = 2) -> list[Any]:
    return [message for _, message in builder.build(records.tobytes(), listed, ring, NAMES, SYMBOLS)]


def news(*headlines: bytes, flags: int | None = None) -> np.ndarray:
    records = empty(len(headlines))
    records["record_type"], records["headline"] = RecordType.NEWS, headlines
    records["flags"] = Flag.CONTINUES if flags is None else flags
    if flags is None:
        records["flags"][-1] = 0
    return records


def test_message_has_topic_and_payload_in_both_encodings() -> None:
    records = empty(2)
    records["record_type"], records["price"] = RecordType.TICK, [1.5, 2.5]
    records["sequence"] = [10, 11]

    (message,) = build(MessageBuilder(), records, [(1, TICK, 7)])

    assert message == {"topic": "marketdata.tick.AAPL", "payload": payload(records[1], "AAPL", 7)}
    expected = msgspec.json.decode(msgspec.json.encode(message))
    assert msgspec.json.decode(encode_json(message)) == expected
    assert msgspec.msgpack.decode(encode_msgpack(message)) == expected
    assert set(expected["payload"]) == {
        "symbol",
        "data_type",
        "data",
        "latency_ms",
        "source",
        "sequence",
        "flags",
        "topic_sequence",
    }


def test_only_trading_status_is_of_the_symbol_that_a_status_record_names() -> None:
    known = ["AAPL", "MSFT"]

    def symbol_of(instrument: int) -> str:
        if instrument >= len(known):
            raise BadArgument("unknown")
        return known[instrument]

    records = empty(4)
    records["record_type"], records["code"] = RecordType.STATUS, StatusCode.TRADING_STATUS
    records["instrument_id"], records["text"] = [1, NO_INSTRUMENT, 7, 1], b"halted: ITCH H, reason T1"
    records["code"][3] = StatusCode.OVERLOAD  # of a shard, whose number stands there
    names: dict[int, bytes] = {STATUS: b"marketdata.feed.status"}
    listed = [(index, STATUS, index + 1) for index in range(4)]
    for builder, symbols in (
        (MessageBuilder(None, symbol_of), ["MSFT", None, None, None]),
        (MessageBuilder(), [None] * 4),
    ):
        made = [message for _, message in builder.build(records.tobytes(), listed, 2, names, {STATUS: None})]
        assert [one["payload"]["symbol"] for one in made] == symbols
        assert made[0]["topic"] == "marketdata.feed.status"
        assert made[0]["payload"]["data"]["state"] == "halted"


def test_long_news_is_one_message_even_when_it_comes_in_two_turns() -> None:
    builder = MessageBuilder()
    records = news(*news_pieces("Headline " * 20, "Body " * 30, "https://example.org"))
    count = len(records)
    assert count > 3

    first = build(builder, records[:2], [(0, NEWS, 5), (1, NEWS, 6)])
    second = build(builder, records[2:], [(i, NEWS, 7 + i) for i in range(count - 2)])

    assert first == []
    (message,) = second
    assert message["payload"]["topic_sequence"] == 5
    assert message["payload"]["flags"] == ()
    assert message["payload"]["data"]["headline"] == "Headline " * 20
    assert message["payload"]["data"]["body"] == "Body " * 30
    assert message["payload"]["data"]["url"] == "https://example.org"


def test_news_of_two_rings_do_not_mix() -> None:
    builder = MessageBuilder()

    assert build(builder, news(b"from ring 2, ", flags=Flag.CONTINUES), [(0, NEWS, 1)], ring=2) == []
    assert build(builder, news(b"from ring 3, ", flags=Flag.CONTINUES), [(0, NEWS, 2)], ring=3) == []
    (third,) = build(builder, news(b"end of 3", flags=0), [(0, NEWS, 3)], ring=3)
    (second,) = build(builder, news(b"end of 2", flags=0), [(0, NEWS, 4)], ring=2)

    assert third["payload"]["data"]["headline"] == "from ring 3, end of 3"
    assert second["payload"]["data"]["headline"] == "from ring 2, end of 2"


def test_news_that_never_ends_is_bounded_and_counted() -> None:
    builder = MessageBuilder()
    for ring in range(encode.MAX_OPEN_NEWS + 3):
        build(builder, news(b"begun", flags=Flag.CONTINUES), [(0, NEWS, 1)], ring=ring)

    assert builder.unfinished == 3

    endless = news(*[b"x" * 64] * encode.MAX_NEWS_RECORDS, flags=Flag.CONTINUES)
    (message,) = build(builder, endless, [(i, NEWS, i) for i in range(len(endless))], ring=-1)
    assert len(message["payload"]["data"]["headline"]) == 64 * encode.MAX_NEWS_RECORDS
