"""Records as msgpack and JSON messages: {topic, payload}, one message a record (api.md, "ZeroMQ topics").

Called by fan-out for the records of topics that somebody subscribed to on those endpoints, and for no others. Messages
of an instrument's trading status name its symbol, though their topic is that of all status records. News that goes over
several records becomes one message, sent when its last record comes; its numbers are those of the first.
It keeps the unfinished news items, at most MAX_OPEN_NEWS of them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from shm.errors import BadArgument
from shm.layout import RECORD_SIZE_BYTES, Flag, RecordType, StatusCode
from shm.message import news_fields, payload_at

MAX_OPEN_NEWS: Final = 1024
MAX_NEWS_RECORDS: Final = 4096  # 256 KiB of text; what is longer becomes several messages

_TYPE_OFFSET: Final = 36
_FLAGS_OFFSET: Final = 38
_CODE_OFFSET: Final = 64
_INSTRUMENT_OFFSET: Final = 32

encode_json: Final = msgspec.json.Encoder().encode
encode_msgpack: Final = msgspec.msgpack.Encoder().encode


class MessageBuilder:
    """Turns records into messages; keeps what news items still lack."""

    def __init__(
        self, source_names: Mapping[int, str] | None = None, symbol_of: Callable[[int], str] | None = None
    ) -> None:
        """Start with no news item open.

        Args:
            source_names: those of plug-ins, code -> name (shm.source_names).
            symbol_of: symbol of an instrument id, for topics that are of no symbol; BadArgument for an id that is none.
        """
        self._source_names = source_names
        self._symbol_of = symbol_of
        self._open: dict[tuple[int, int], tuple[dict[str, Any], list[bytes]]] = {}
        self.unfinished = 0  # news items given up because their end never came

    def open_from(self, ring: int) -> int | None:
        """Sequence of the first record of the oldest unfinished news item of a ring; None if there is none."""
        return min((found["sequence"] for key, (found, _) in self._open.items() if key[0] == ring), default=None)

    def build(
        self,
        records: bytes | memoryview,
        listed: Iterable[tuple[int, int, int | None]],
        ring: int,
        names: dict[int, bytes],
        symbols: dict[int, str | None],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(topic index, message) of the records in `listed`, in order.

        Args:
            records: the turn's records as bytes.
            listed: (index of the record in the turn, topic index, topic number), as `Router.encode_list` gives it;
                number None leaves `topic_sequence` out.
            ring: where the records come from.
            names, symbols: topic and symbol of each topic index.
        """
        for index, topic, number in listed:
            at = index * RECORD_SIZE_BYTES
            found: dict[str, Any] | None
            symbol = symbols[topic]
            if records[at + _TYPE_OFFSET] == RecordType.NEWS:
                found = self._news(records[at : at + RECORD_SIZE_BYTES], ring, topic, symbol, number)
            else:
                if symbol is None:
                    symbol = self._of_status(records, at)
                found = payload_at(records, at, symbol, number, source_names=self._source_names)
            if found is not None:
                yield topic, {"topic": names[topic].decode(), "payload": found}

    def _of_status(self, records: bytes | memoryview, at: int) -> str | None:
        """Symbol of a status record: only trading status is sure to be of the instrument that it names."""
        code = int.from_bytes(records[at + _CODE_OFFSET : at + _CODE_OFFSET + 4], "little")
        if code != StatusCode.TRADING_STATUS or self._symbol_of is None:
            return None
        instrument = int.from_bytes(records[at + _INSTRUMENT_OFFSET : at + _INSTRUMENT_OFFSET + 4], "little")
        try:
            return self._symbol_of(instrument)
        except BadArgument:
            return None

    def _news(
        self, record: bytes | memoryview, ring: int, topic: int, symbol: str | None, number: int | None
    ) -> dict[str, Any] | None:
        goes_on = int.from_bytes(record[_FLAGS_OFFSET : _FLAGS_OFFSET + 2], "little") & Flag.CONTINUES
        payload, pieces = self._open.pop((ring, topic), (None, []))
        if payload is None:
            payload = payload_at(record, 0, symbol, number, source_names=self._source_names)
        pieces.append(bytes(record))
        if goes_on and len(pieces) < MAX_NEWS_RECORDS:
            if len(self._open) >= MAX_OPEN_NEWS:
                self._open.pop(next(iter(self._open)))
                self.unfinished += 1
            self._open[ring, topic] = payload, pieces
            return None
        payload["data"] = news_fields(pieces)
        payload["flags"] = tuple(name for name in payload["flags"] if name != "CONTINUES")
        return payload
