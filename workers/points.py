"""Points as people send them (POST /data/ingest) into records: the reverse of shm/message.py, with its field names.

Called by the control process, which owns the ring that these records go to; the one module besides `spec` that
`engine` may import, because HTTP ingest is a feed without a process of its own. Bytes in, records and reasons out: it
does no I/O and reads no clock. One unusable point never takes another along: it is left out, with its index and the
field that is wrong.

A whole body is decoded at once into typed points; only if that fails is each point decoded by itself to find which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from shm.layout import Source, empty
from shm.message import source_name
from workers import _points
from workers.quality import Quality
from workers.spec import QualitySettings, Tier
from workers.symbol_tiers import SymbolTiers

DataType = Literal["tick", "quote", "bar", "trade", "level2", "news"]

_U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_MAX_IDS: Final = 1 << 17  # symbols remembered here; beyond, the instrument table is asked

# Names that a point's `source` may have: the DataSource values, and those of plug-ins.
SOURCES: Final[dict[str, int]] = {
    source_name(code): int(code) for code in (*Source, *range(Source.PLUGIN, 256)) if code
}


class PointData(Struct, gc=False):
    """`data` of a point: which fields it needs depends on its type; null and left out are the same."""

    price: Annotated[float | None, Meta(description="tick, trade, level2")] = None
    size: float | None = None
    bid: Annotated[float | None, Meta(description="quote: bid or ask is needed")] = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    mid: Annotated[float | None, Meta(description="left out: computed")] = None
    spread: Annotated[float | None, Meta(description="left out: computed")] = None
    exchange: Annotated[str | None, Meta(description="venue code, at most 8 bytes")] = None
    trade_id: Annotated[int | str | None, Meta(description="a whole number, as such or as text")] = None
    side: Literal["buy", "sell", "bid", "ask"] | None = None
    open: Annotated[float | None, Meta(description="bar: open, high, low, close, interval are needed")] = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    vwap: float | None = None
    interval: Annotated[Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)] | None, Meta(description="seconds")] = None
    trade_count: _U32 | None = None
    level: Annotated[int, Meta(ge=0, le=65535)] | None = None
    action: Literal["add", "modify", "delete", "clear", "execute"] | None = None
    headline: Annotated[Annotated[str, Meta(max_length=4096)] | None, Meta(description="news: needed")] = None
    body: Annotated[str, Meta(max_length=32768)] | None = None
    url: Annotated[str, Meta(max_length=2048)] | None = None


class Point(Struct, gc=False):
    """One point."""

    symbol: Annotated[str, Meta(description="1 to 32 bytes of UTF-8 without blanks")]
    data_type: DataType
    data: PointData
    source: Annotated[str, Meta(description="a DataSource name")] = "internal"
    timestamp: Annotated[
        datetime | int | None,
        Meta(description="ISO 8601 (UTC if it names no zone), or ns since 1970; left out: the time of arrival"),
    ] = None
    latency_ms: Annotated[
        float | None, Meta(description="how old it was when you got it; left out: its age on arrival here")
    ] = None


class Body(Struct):
    """Points in one request."""

    data: list[Point]


class _RawBody(Struct):
    data: list[msgspec.Raw]


_DECODERS: Final[dict[str, tuple[Any, Any, Any]]] = {
    name: (module.Decoder(Body), module.Decoder(_RawBody), module.Decoder(Point))
    for name, module in (("json", msgspec.json), ("msgpack", msgspec.msgpack))
}

Rejection = tuple[int, str]


def decode_body(body: bytes, form: Literal["json", "msgpack"]) -> tuple[list[Point | None], list[Rejection]]:
    """The points of a body {"data": [...]}: None where one is unusable, and why.

    Raises:
        msgspec.ValidationError: the body is not of that shape.
        msgspec.DecodeError: it is neither.
    """
    whole, raw, single = _DECODERS[form]
    try:
        return whole.decode(body).data, []
    except msgspec.ValidationError:
        return _decode_each(raw.decode(body).data, single)


def decode_lines(text: bytes) -> tuple[list[Point | None], list[Rejection]]:
    """The points of newline-delimited JSON, one a line, empty lines left out. A line that is no JSON is rejected."""
    single = _DECODERS["json"][2]
    try:
        return single.decode_lines(text), []
    except msgspec.DecodeError:
        return _decode_each([line for line in text.split(b"\n") if line.strip()], single)


def _decode_each(pieces: list[Any], decoder: Any) -> tuple[list[Point | None], list[Rejection]]:
    points: list[Point | None] = []
    rejected = []
    for index, piece in enumerate(pieces):
        try:
            points.append(decoder.decode(piece))
        except msgspec.DecodeError as error:
            points.append(None)
            rejected.append((index, reason(error)))
    return points, rejected


def reason(error: msgspec.DecodeError) -> str:
    """A decoding error with the field in front: "data.price: expected `float`, got `str`"."""
    text, _, path = str(error).partition(" - at `$.")
    lowered = text[:1].lower() + text[1:]
    return f"{path.rstrip('`')}: {lowered}" if path else lowered


class Composer:
    """Points to checked records; one for all of HTTP ingest, as quality remembers each instrument.

    Attributes:
        feeds: symbol -> feed id, for records that belong to a feed; 0 elsewhere. The owner's to change.
        sources: name -> code, of the sources that points may name; the owner adds plug-ins.
    """

    def __init__(
        self, intern: Callable[[str], int], quality: QualitySettings, priorities: Mapping[str, Tier] | None = None
    ) -> None:
        """`intern` gives a symbol its instrument id (shm.instruments.InstrumentTable.intern), `priorities` its tier."""
        tiers = SymbolTiers(priorities or {}, intern)
        self.feeds: dict[str, int] = {}
        self.sources = dict(SOURCES)
        self._intern = tiers.intern
        self._ids: dict[str, int] = {}
        self._quality = Quality(quality, tiers)

    def compose(self, points: list[Point | None], now_ns: int) -> tuple[np.ndarray, list[Rejection]]:
        """Records of the points, in order, and (index, reason) of each point that is not among them.

        Returns:
            records: shape (n,), dtype RECORD; a long news item has several. `sequence` is the index of the point, until
                the ring gives its own.
        """
        if len(self._ids) > _MAX_IDS:
            self._ids.clear()
        rejected: list[Rejection] = []
        records = empty(_points.count_pieces(points))
        count = _points.fill(points, records, self._ids, self._intern, self.sources, self.feeds, now_ns, rejected)
        indexes = records["sequence"][:count].copy()
        kept = self._quality.check(records, count)
        if kept < count:
            last = self._quality.last_rejected
            why = last[0] if last is not None else "unusable"
            left = set(records["sequence"][:kept].tolist())
            rejected += [(index, f"data: {why}") for index in sorted(set(indexes.tolist()) - left)]
            rejected.sort()
        return records[:kept], rejected
