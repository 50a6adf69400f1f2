"""Small Binance captures written to a folder, and what the replay source makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shm.layout import RecordType, StatusCode, concatenate, empty
from workers.source import SourceContext, open_source
from workers.sources.replay import ReplaySource
from workers.spec import FeedSpec

NOW_NS = 1_790_000_000_000_000_000
RECORDED_NS = 1_723_161_254_000_000_000
SECOND_NS = 1_000_000_000


def trade(at_ns: int, trade_id: int, symbol: str = "BTCUSDT") -> str:
    ms = at_ns // 1_000_000
    return (
        f'{at_ns} {{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":{ms},"s":"{symbol}","t":{trade_id},'
        f'"p":"100.5","q":"2","T":{ms},"m":true,"M":true}}}}\n'
    )


def quote(at_ns: int, update: int) -> str:
    return (
        f'{at_ns} {{"stream":"btcusdt@bookTicker","data":{{"u":{update},"s":"BTCUSDT","b":"100.4","B":"1","a":"100.6",'
        f'"A":"2"}}}}\n'
    )


def capture(folder: Path, name: str, *lines: str) -> str:
    path = folder / name
    path.write_text("".join(lines))
    return str(path)


def trades(folder: Path, name: str, offsets_s: list[float], first_id: int = 1) -> str:
    lines = [trade(RECORDED_NS + round(s * 1e9), first_id + index) for index, s in enumerate(offsets_s)]
    return capture(folder, name, *lines)


def make(*files: str, symbols: tuple[str, ...] = (), data_types: tuple[str, ...] = (), **options: Any) -> ReplaySource:
    ids: dict[str, int] = {}
    spec = FeedSpec(
        feed_id=4,
        name="rep",
        source="replay",
        symbols=symbols,
        data_types=data_types,
        options={"files": list(files), **options},
    )
    source = open_source(SourceContext(spec, lambda symbol: ids.setdefault(symbol, len(ids))))
    assert isinstance(source, ReplaySource)
    return source


def drain(source: ReplaySource, now_ns: int = NOW_NS, slots: int = 1000, polls: int = 10_000) -> np.ndarray:
    """Everything until the source is finished, polled whenever it is due."""
    batches = [empty(0)]
    for _ in range(polls):
        out = empty(slots)
        batches.append(out[: source.poll(out, now_ns)])
        if source.next_due_ns is None:
            return concatenate(batches)
        now_ns = max(now_ns, source.next_due_ns)
    raise AssertionError("not finished")


def market(records: np.ndarray) -> np.ndarray:
    return records[records["record_type"] != RecordType.STATUS]


def ids(records: np.ndarray) -> list[int]:
    return [int(number) for number in market(records)["trade_id"]]


def ends(records: np.ndarray) -> list[tuple[str, int]]:
    found = records[records["record_type"] == RecordType.STATUS]
    assert set(found["code"]) <= {StatusCode.END_OF_REPLAY}
    return [(end["text"].decode(), int(end["to_sequence"] - end["from_sequence"])) for end in found]
