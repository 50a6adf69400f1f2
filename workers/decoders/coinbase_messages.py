"""Coinbase Advanced Trade messages as msgspec structs, for `_coinbase`.

Layouts: Coinbase Developer Platform, "Advanced Trade WebSocket Channels". Keys that are not named here are ignored. No
logic.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Whole = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]


class Envelope(msgspec.Struct):
    """What every message of the market-data endpoint has; errors have only `type` and `message`."""

    channel: str = ""
    timestamp: str = ""
    sequence_num: Whole | None = None
    events: msgspec.Raw = msgspec.Raw(b"")


class Trade(msgspec.Struct):
    """One match. `side` is the maker's."""

    product_id: str
    trade_id: str
    price: str
    size: str
    time: str
    side: str


class TradesEvent(msgspec.Struct):
    """Of channel market_trades; newest first."""

    type: str
    trades: list[Trade]


class Ticker(msgspec.Struct):
    """The best bid and ask of a product, and day statistics that are not read."""

    product_id: str
    best_bid: str
    best_ask: str
    best_bid_quantity: str
    best_ask_quantity: str


class TickerEvent(msgspec.Struct):
    """Of channels ticker and ticker_batch."""

    type: str
    tickers: list[Ticker]


class Level(msgspec.Struct):
    """One price of the book; `new_quantity` 0 = gone."""

    side: str
    event_time: str
    price_level: str
    new_quantity: str


class BookEvent(msgspec.Struct):
    """Of channel l2_data: a whole book (snapshot) or what changed (update)."""

    type: str
    product_id: str
    updates: list[Level]
