"""The last values of an instrument as WebSocket messages, and up to which sequence of each ring they are complete.

Reads the latest-value table (shm/latest.py), the cache's; called by `gateway.py` when a client subscribes with
`snapshot`. Per topic: the newest trade, tick, quote, level2 record and whole news item, and the newest bar of each
interval, as they were published. Where a quote or trade has left the kept records, its values come from the table's
entry; which of tick and trade it was the entry does not say: it goes to the one that is asked for, trade before tick.
The table does not say which ring a record came by: `ring` is null in these messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any, Final

import numpy as np

from shm.latest import LatestTable, Snapshot
from shm.layout import Flag, RecordType, Side
from shm.message import iso_time, news_fields, payload, source_name, type_name
from workers.audience import INSTRUMENTS
from workers.backlog import Message
from workers.stream import data_frame, flatten
from workers.wire import SYMBOL_TYPES, symbol_topic

FEW_RECORDS: Final = 64  # of each lane; enough for most instruments, and 15 times cheaper than all of them

NO_RING: Final = -1

Value = tuple[int, int, dict[str, Any]]  # record type, sequence, flat data


class LastValues:
    """Reads one engine's table for the gateway."""

    def __init__(self, table: LatestTable, source_names: Mapping[int, str] | None = None) -> None:
        """Read this table; it stays the caller's to close. `source_names`: those of plug-ins, code -> name."""
        self._table = table
        self._source_names = source_names

    def complete(self) -> dict[int, int]:
        """Per ring, the sequence up to which the table holds every record."""
        return self._table.as_of()

    def messages(
        self, instrument: int, symbol: str, concerns: Callable[[int, str], bool]
    ) -> tuple[list[Message], dict[int, int]]:
        """(messages of the topics that `concerns` says yes to, ring -> sequence up to which they are complete)."""
        kinds = [int(kind) for kind in SYMBOL_TYPES if concerns(kind, symbol)]
        complete = self._table.as_of()
        if not kinds or instrument >= self._table.instruments_room:
            return [], complete
        snapshot, records = self._table.join(instrument, FEW_RECORDS)
        if len(records) >= FEW_RECORDS and not set(kinds) <= set(records["record_type"].tolist()):
            snapshot, records = self._table.join(instrument, self._table.depth_records)
        if snapshot is None:
            return [], complete
        messages = []
        for kind, sequence, data in self._values(snapshot, records, kinds, symbol):
            topic = symbol_topic(kind, symbol)
            key = (kind - 1) * INSTRUMENTS + instrument
            messages.append(Message(key, NO_RING, sequence, topic, data_frame(topic, data, snapshot=True)))
        return messages, snapshot.as_of

    def _values(self, snapshot: Snapshot, records: np.ndarray, kinds: list[int], symbol: str) -> Iterator[Value]:
        types = records["record_type"]
        for kind in kinds:
            mine = records[types == kind]
            if kind == RecordType.NEWS:
                yield from self._news(mine, symbol)
            elif kind == RecordType.BAR:
                for interval_s in np.unique(mine["interval_s"]).tolist():
                    yield self._value(mine[mine["interval_s"] == interval_s][-1], symbol)
            elif len(mine):
                yield self._value(mine[-1], symbol)
            elif kind == RecordType.QUOTE and snapshot.quote is not None:
                yield self._quote(snapshot, symbol)
            elif kind in (RecordType.TICK, RecordType.TRADE) and snapshot.last_trade is not None:
                either = (types == RecordType.TICK) | (types == RecordType.TRADE)
                first = RecordType.TRADE if RecordType.TRADE in kinds else RecordType.TICK
                if kind == first and not either.any():
                    yield self._trade(snapshot, kind, symbol)

    def _value(self, record: np.void, symbol: str) -> Value:
        found = payload(record, symbol, source_names=self._source_names)
        return int(record["record_type"]), int(record["sequence"]), flatten(found, None)

    def _news(self, records: np.ndarray, symbol: str) -> Iterator[Value]:
        """The newest item whose last piece is there; its pieces follow one another in one ring."""
        last = len(records) - 1
        while last >= 0 and records["flags"][last] & Flag.CONTINUES:
            last -= 1
        if last < 0:
            return
        first = last
        while (
            first > 0
            and records["flags"][first - 1] & Flag.CONTINUES
            and records["sequence"][first - 1] + 1 == records["sequence"][first]
        ):
            first -= 1
        kind, _, data = self._value(records[first], symbol)
        data |= news_fields(records[first : last + 1])
        data["flags"] = tuple(name for name in data["flags"] if name != "CONTINUES")
        yield kind, int(records["sequence"][last]), data

    def _quote(self, snapshot: Snapshot, symbol: str) -> Value:
        quote = snapshot.quote
        assert quote is not None
        mid = (quote.bid + quote.ask) / 2
        data = {
            **_head(symbol, RecordType.QUOTE),
            "timestamp": iso_time(quote.ts_event),
            "bid": _number(quote.bid),
            "ask": _number(quote.ask),
            "bid_size": _number(quote.bid_size),
            "ask_size": _number(quote.ask_size),
            "mid": _number(mid),
            "spread": _number(quote.ask - quote.bid),
        }
        return int(RecordType.QUOTE), 0, data

    def _trade(self, snapshot: Snapshot, kind: int, symbol: str) -> Value:
        trade = snapshot.last_trade
        assert trade is not None
        data = {
            **_head(symbol, kind),
            "source": source_name(trade.source, self._source_names),
            "sequence": trade.sequence,
            "timestamp": iso_time(trade.ts_event),
            "price": _number(trade.price),
            "size": _number(trade.size),
            "exchange": trade.venue or None,
            "trade_id": trade.trade_id or None,
            "side": Side(trade.side).name.lower() if trade.side in (Side.BUY, Side.SELL) else None,
        }
        return kind, trade.sequence, data


def _head(symbol: str, kind: int) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "data_type": type_name(kind),
        "source": None,
        "sequence": None,
        "ring": None,
        "latency_ms": None,
        "flags": (),
    }


def _number(value: float) -> float | None:
    return value if isfinite(value) else None
