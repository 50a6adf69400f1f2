"""JSON messages of a venue that the user describes: which message is what, and where in it each field stands.

A `Shape` says it for one data type; `DescribedDecoder` goes by a feed's shapes. Paths are keys joined by dots, numbers
are places in a list: "data.0.price"; "" is the value itself. Used by workers/venues/generic.py, which has the shapes
from the feed's options. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from shm.layout import Action, Flag, Side
from workers.decoders._coinbase import parse_time
from workers.decoders._decimal import parse_decimal
from workers.decoders._messages import MessageDecoder

_SCALES: Final = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
_KINDS: Final = ("other", "trade", "quote", "level2", "bar")
_NAN: Final = float("nan")
_TIME_LIMIT_NS: Final = 1 << 63

Path = tuple[str | int, ...]


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the fields of one data type stand. Paths are within an item; "-" = the venue has no such field."""

    when: dict[str, Any] = {}  # path in the message -> the value it has in messages of this type; a list = one of these
    items: str = ""  # path of the list of items in the message; a single object does too
    symbol: str = "symbol"  # this, time and sequence: with "/" before it, in the message and not in the item
    symbol_after: str = ""  # only what follows the last of these characters: of "trades_btcusd" with "_", "btcusd"
    time: str = "-"  # "-" = the time of receipt
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = "ms"
    sequence: str = "-"  # a number that counts by one
    sequence_of: Literal["symbol", "connection"] = "symbol"
    # trade
    price: str = "price"  # also of an entry of bids and asks
    size: str = "size"
    id: str = "-"
    side: str = "-"
    buy: tuple[str, ...] = ("buy", "b", "bid")  # words for it, whatever their case; everything else is a sale
    side_is_makers: bool = False
    # quote
    bid: str = "bid"
    ask: str = "ask"
    bid_size: str = "bid_size"
    ask_size: str = "ask_size"
    # level2: lists of entries, or (without them) items that have side, price and size themselves
    bids: str = "-"
    asks: str = "-"
    snapshot: dict[str, Any] = {}  # path in the message -> the value it has in those that state a whole book
    # bar
    open: str = "open"
    high: str = "high"
    low: str = "low"
    close: str = "close"
    volume: str = "volume"
    interval_s: int = 60
    closed: dict[str, Any] = {}  # path in the item -> the value it has in bars that change no more


def parse_path(text: str) -> Path | None:
    """The steps of a path; None for "-"."""
    if text == "-":
        return None
    return tuple(int(step) if step.isdecimal() else step for step in text.split(".") if step)


def pick(value: Any, path: Path) -> Any:
    """What stands there; KeyError, IndexError or TypeError if nothing does."""
    for step in path:
        value = value[step]
    return value


def matches(value: Any, wanted: Mapping[Path, Any]) -> bool:
    """Whether each path has its value."""
    for path, one in wanted.items():
        try:
            found = pick(value, path)
        except (KeyError, IndexError, TypeError):
            return False
        if found not in one if isinstance(one, list) else found != one:
            return False
    return True


def conditions(named: Mapping[str, Any]) -> dict[Path, Any]:
    """`when` and its like, ready for `matches`."""
    return {parse_path(path) or (): value for path, value in named.items()}


class DescribedDecoder(MessageDecoder):
    """Decodes by shapes, data type -> Shape; the first whose `when` fits a message takes it."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b""

    def __init__(self, intern: Callable[[str], int], shapes: Mapping[str, Shape], **stamp: Any) -> None:
        """`stamp`: source, feed_id, flags, venue."""
        super().__init__(intern, **stamp)
        self._shapes = [(_KINDS.index(name), _Ready(shape)) for name, shape in shapes.items()]
        self._expected: dict[tuple[int, str], int] = {}
        self._decode = msgspec.json.Decoder().decode

    def opened(self, connection: int) -> None:
        """A new connection counts anew."""
        self._expected = {key: value for key, value in self._expected.items() if key[0] != connection}

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:
        """See `MessageDecoder.message`."""
        message = self._decode(text)
        for kind, ready in self._shapes:
            if ready.when and not matches(message, ready.when):
                continue
            self.seen(kind)
            found = pick(message, ready.items)
            for item in found if isinstance(found, list) else (found,):
                self._item(kind, ready, message, item, ts_receive=ts_receive, connection=connection)
            return
        self.seen(0)

    def _item(self, kind: int, ready: _Ready, message: Any, item: Any, *, ts_receive: int, connection: int) -> None:
        shape = ready.shape
        symbol = str(pick(message if ready.symbol_outside else item, ready.symbol))
        if shape.symbol_after:
            symbol = symbol.rpartition(shape.symbol_after)[2]
        ts_event = ready.time_of(item, message, ts_receive)
        sequence = 0
        if ready.sequence is not None:
            sequence = int(ready.field(item, message, ready.sequence))
            if not self._in_sequence(ready, symbol, sequence, ts_receive, connection):
                return
        if kind == 1:
            self.trade(
                symbol,
                ts_event,
                ts_receive,
                number(pick(item, ready.price)),
                number(pick(item, ready.size)),
                ready.trade_id(item) or sequence,
                ready.side_of(item),
            )
        elif kind == 2:
            sides = [optional(item, path) for path in (ready.bid, ready.bid_size, ready.ask, ready.ask_size)]
            self.quote(symbol, ts_event, ts_receive, sides[0], sides[1], sides[2], sides[3], sequence)
        elif kind == 3:
            self._book(ready, symbol, message, item, ts_event=ts_event, ts_receive=ts_receive, sequence=sequence)
        elif not ready.closed or matches(item, ready.closed):
            first, high, low, close, volume = (number(pick(item, path)) for path in ready.ohlcv)
            self.bar(symbol, ts_event, ts_receive, first, high, low, close, volume, shape.interval_s)

    def _book(
        self, ready: _Ready, symbol: str, message: Any, item: Any, *, ts_event: int, ts_receive: int, sequence: int
    ) -> None:
        whole = bool(ready.snapshot) and matches(message, ready.snapshot)
        levels: list[tuple[int, float, float]] = []
        if ready.bids is not None or ready.asks is not None:
            for path, side in ((ready.bids, Side.BUY), (ready.asks, Side.SELL)):
                entries = _entries(item, path)
                levels += [(int(side), number(pick(e, ready.price)), number(pick(e, ready.size))) for e in entries]
        else:
            levels.append((ready.side_of(item), number(pick(item, ready.price)), number(pick(item, ready.size))))
        if whole:
            self.clear(symbol, ts_event, ts_receive, sequence)
        flags = int(Flag.SNAPSHOT) if whole else 0
        for side_number, price, size in levels:
            action = Action.DELETE if size == 0 else Action.ADD if whole else Action.MODIFY
            self.level(symbol, ts_event, ts_receive, side_number, price, size, int(action), sequence, flags)
        if levels or whole:
            self.end_of_event()

    def _in_sequence(self, ready: _Ready, symbol: str, sequence: int, ts_receive: int, connection: int) -> bool:
        """Whether it is new; a hole before it is told."""
        whose = symbol if ready.shape.sequence_of == "symbol" else ""
        key = (connection, whose)
        expected = self._expected.get(key, sequence)
        if sequence < expected:
            self.duplicate()
            return False
        if sequence > expected:
            self.gap(connection, expected, sequence, whose or None, ts_receive)
        self._expected[key] = sequence + 1
        return True


class _Ready:
    """A shape with its paths taken apart."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.when, self.snapshot, self.closed = map(conditions, (shape.when, shape.snapshot, shape.closed))
        self.items = parse_path(shape.items) or ()
        self.symbol_outside = shape.symbol.startswith("/")
        self.symbol = parse_path(shape.symbol.lstrip("/")) or ()
        self.time, self.sequence = parse_path(shape.time.lstrip("/")), parse_path(shape.sequence.lstrip("/"))
        self._outside = {
            path
            for text, path in ((shape.time, self.time), (shape.sequence, self.sequence))
            if text.startswith("/") and path is not None
        }
        self.price, self.size = parse_path(shape.price) or (), parse_path(shape.size) or ()
        self.id, self.side = parse_path(shape.id), parse_path(shape.side)
        self.bid, self.ask = parse_path(shape.bid), parse_path(shape.ask)
        self.bid_size, self.ask_size = parse_path(shape.bid_size), parse_path(shape.ask_size)
        self.bids, self.asks = parse_path(shape.bids), parse_path(shape.asks)
        self.ohlcv = [parse_path(text) or () for text in (shape.open, shape.high, shape.low, shape.close, shape.volume)]
        self._buy = {word.lower() for word in shape.buy}

    def field(self, item: Any, message: Any, path: Path) -> Any:
        """A field that may stand beside the items."""
        return pick(message if path in self._outside else item, path)

    def time_of(self, item: Any, message: Any, ts_receive: int) -> int:
        """The venue's time, ns."""
        if self.time is None:
            return ts_receive
        value = self.field(item, message, self.time)
        unit = self.shape.time_unit
        if unit == "iso":
            if str(value).endswith("Z"):
                return parse_time(str(value))
            moment = datetime.fromisoformat(str(value))
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            whole = int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000
            found = whole + moment.microsecond * 1000
        elif isinstance(value, float):
            found = round(value * _SCALES[unit])
        elif isinstance(value, str) and not value.isdecimal():
            found = round(parse_decimal(value) * _SCALES[unit])
        else:
            found = int(value) * _SCALES[unit]
        if not 0 <= found < _TIME_LIMIT_NS:
            raise ValueError("time out of range")
        return found

    def trade_id(self, item: Any) -> int:
        """The venue's number of the trade; 0 where it has letters in it."""
        if self.id is None:
            return 0
        value = pick(item, self.id)
        text = str(value)
        return int(text) if text.isdecimal() and len(text) < 19 else 0

    def side_of(self, item: Any) -> int:
        """The aggressor's side, or that of the book."""
        if self.side is None:
            return int(Side.NONE)
        buy = str(pick(item, self.side)).lower() in self._buy
        return int(Side.BUY if buy != self.shape.side_is_makers else Side.SELL)


def number(value: Any) -> float:
    """A price or size: a JSON number, or decimal text."""
    if isinstance(value, str):
        return parse_decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return float(value)


def optional(item: Any, path: Path | None) -> float:
    """The same, NaN where there is none."""
    if path is None:
        return _NAN
    try:
        value = pick(item, path)
    except (KeyError, IndexError):
        return _NAN
    return _NAN if value is None or value == "" else number(value)


def _entries(item: Any, path: Path | None) -> list[Any]:
    if path is None:
        return []
    try:
        found = pick(item, path)
    except KeyError:  # a change of one side alone
        return []
    if not isinstance(found, list):
        raise TypeError("not a list of levels")
    return found
