"""Bitfinex WebSocket messages -> records.

    te, tu, trades at subscription -> trade   book -> level2, CLEAR before a snapshot   ticker -> quote, without sizes

Layout: Bitfinex "WebSocket API v2, public channels". Messages are [channel number, data, ...]; which channel that is
was said when it was subscribed to, on the same connection. Where the client asked for it (`conf`, flags), a number that
counts all messages of the connection and the venue's time follow; without them gaps do not show and `ts_event` is the
time of receipt. Precisions P0 to P4 are prices, R0 are orders: there `source_sequence` is the order, else that number.
The ticker's sizes are sums over 25 levels, and so are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from shm.layout import Action, Flag, Side
from workers.decoders._messages import MessageDecoder

_KINDS: Final = ("other", "trades", "book", "ticker", "checksum", "heartbeat", "control")
_NAN: Final = float("nan")
_TIMESTAMPS: Final = 32768  # bits of `conf`
_SEQUENCES: Final = 65536
_MS: Final = 1_000_000


@dataclass
class Channel:
    """What was subscribed to; `orders` of a raw book: order -> (price, side)."""

    kind: str
    symbol: str
    raw: bool = False
    orders: dict[int, tuple[float, int]] = field(default_factory=dict)


@dataclass
class Connection:
    """What the messages of one connection are to be read by."""

    channels: dict[int, Channel] = field(default_factory=dict)
    numbered: bool = False
    timed: bool = False
    expected: int = 0  # number of its next message; 0 = any


class Moment(NamedTuple):
    """What the records of one message have in common."""

    ts_event: int
    ts_receive: int
    sequence: int
    flags: int = 0


class BitfinexDecoder(MessageDecoder):
    """Frames are the WebSocket's text messages. The symbol is the venue's without its t: BTCUSD, TESTBTC:TESTUSD."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"BITFINEX"

    def __init__(self, intern: Callable[[str], int], **stamp: Any) -> None:
        """`stamp`: source, feed_id, flags, venue."""
        super().__init__(intern, **stamp)
        self._connections: dict[int, Connection] = {}
        self._last_trade: dict[str, int] = {}
        self._decode = msgspec.json.Decoder().decode

    def opened(self, connection: int) -> None:
        """A new connection has channels of its own, and counts anew."""
        self._connections[connection] = Connection()

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:
        """See `MessageDecoder.message`."""
        message = self._decode(text)
        if isinstance(message, dict):
            self.seen(6)
            self._control(message, connection)
            return
        if not isinstance(message, list):
            raise TypeError("neither an event nor a channel's data")
        state = self._connections.setdefault(connection, Connection())
        ts_event = ts_receive
        if state.timed:
            ts_event = int(message.pop()) * _MS
        sequence = 0
        if state.numbered:
            sequence = int(message.pop())
            if not self._in_sequence(state, sequence, connection, ts_receive):
                return
        if message[1] == "hb":
            self.seen(5)
            self.heartbeat()
            return
        channel = state.channels.get(message[0])
        if channel is None or channel.kind not in _KINDS[1:4]:
            self.seen(0)
        elif channel.kind == "trades":
            self.seen(1)
            self._take_trades(channel, message, ts_receive)
        elif channel.kind == "book":
            if message[1] == "cs":
                self.seen(4)
                return
            self.seen(2)
            self._take_book(channel, message[1], Moment(ts_event, ts_receive, sequence))
        else:
            self.seen(3)
            bid, _, ask, *_ = message[1]
            self.quote(channel.symbol, ts_event, ts_receive, _price(bid), _NAN, _price(ask), _NAN, sequence)

    def _control(self, message: dict[str, Any], connection: int) -> None:
        event = message.get("event")
        if event == "info" and "version" in message:  # a connection's first message
            self.opened(connection)
            return
        state = self._connections.setdefault(connection, Connection())
        if event == "conf" and message.get("status") == "OK":
            flags = int(message.get("flags", 0))
            state.numbered, state.timed = bool(flags & _SEQUENCES), bool(flags & _TIMESTAMPS)
        elif event == "subscribed":
            symbol = str(message.get("symbol", ""))
            kind = str(message["channel"]) if symbol.startswith("t") else ""  # of funding (f) the columns are others
            state.channels[message["chanId"]] = Channel(kind, symbol[1:], raw=message.get("prec") == "R0")
        elif event == "unsubscribed":
            state.channels.pop(message["chanId"], None)

    def _in_sequence(self, state: Connection, sequence: int, connection: int, ts_receive: int) -> bool:
        if sequence < state.expected:
            self.duplicate()
            return False
        if state.expected and sequence > state.expected:
            self.gap(connection, state.expected, sequence, None, ts_receive)
        state.expected = sequence + 1
        return True

    def _take_trades(self, channel: Channel, message: list[Any], ts_receive: int) -> None:
        if message[1] == "te":
            self._take_trade(channel.symbol, message[2], ts_receive, 0)
        elif message[1] == "tu":  # the same trade, settled
            if message[2][0] > self._last_trade.get(channel.symbol, 0):
                self._take_trade(channel.symbol, message[2], ts_receive, 0)
        else:  # the last ones, newest first
            for trade in reversed(message[1]):
                self._take_trade(channel.symbol, trade, ts_receive, int(Flag.SNAPSHOT))

    def _take_trade(self, symbol: str, trade: list[Any], ts_receive: int, flags: int) -> None:
        trade_id, ts_event, amount, price = trade
        if trade_id <= self._last_trade.get(symbol, 0):
            self.duplicate()
            return
        side = Side.BUY if amount > 0 else Side.SELL
        self.trade(
            symbol, int(ts_event) * _MS, ts_receive, _price(price), _price(abs(amount)), trade_id, int(side), flags
        )
        self._last_trade[symbol] = trade_id

    def _take_book(self, channel: Channel, data: list[Any], at: Moment) -> None:
        whole = not data or isinstance(data[0], list)
        entries = [_entry(one) for one in (data if whole else [data])]
        if whole:
            channel.orders.clear()
            self.clear(channel.symbol, at.ts_event, at.ts_receive, at.sequence)
            at = at._replace(flags=int(Flag.SNAPSHOT))
        take = self._take_order if channel.raw else self._take_level
        made = [take(channel, entry, at) for entry in entries]
        if whole or any(made):
            self.end_of_event()

    def _take_level(self, channel: Channel, entry: tuple[float, float, float], at: Moment) -> bool:
        price, count, amount = entry
        side = int(Side.BUY if amount > 0 else Side.SELL)
        action = Action.DELETE if not count else Action.ADD if at.flags else Action.MODIFY
        size = abs(amount) if count else 0.0
        self.level(
            channel.symbol,
            at.ts_event,
            at.ts_receive,
            side,
            price,
            size,
            int(action),
            at.sequence,
            at.flags,
            orders=int(count),
        )
        return True

    def _take_order(self, channel: Channel, entry: tuple[float, float, float], at: Moment) -> bool:
        number, price, amount = entry
        order = int(number)

        def tell(side: int, price: float, size: float, action: Action) -> None:
            self.level(channel.symbol, at.ts_event, at.ts_receive, side, price, size, int(action), order, at.flags)

        had = channel.orders.pop(order, None)
        if not price:  # gone; one that the snapshot was too short for is not known
            if had is None:
                return False
            tell(had[1], had[0], 0.0, Action.DELETE)
            return True
        side = int(Side.BUY if amount > 0 else Side.SELL)
        if had is not None and had != (price, side):
            tell(had[1], had[0], 0.0, Action.DELETE)
            had = None
        tell(side, price, abs(amount), Action.ADD if had is None else Action.MODIFY)
        channel.orders[order] = (price, side)
        return True


def _price(value: Any) -> float:
    """A number that is not negative; ValueError or TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    if not 0.0 <= value < float("inf"):
        raise ValueError("number out of range")
    return float(value)


def _entry(entry: list[Any]) -> tuple[float, float, float]:
    """Price, orders and signed amount, or order, price and signed amount."""
    first, second, amount = entry
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError("not a number")
    return _price(first), _price(second), float(amount)
