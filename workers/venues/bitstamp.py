"""Bitstamp: a subscription for each channel of each pair, books as changes with a first picture over REST.

Layout: Bitstamp "WebSocket API v2". Changes have a time and no number, so a picture is good once it is newer than the
first change that was held; what was lost of a book can't be told by the messages. The decoder is
workers/decoders/bitstamp.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from workers.decoders.bitstamp import BitstampDecoder
from workers.spec import FeedSpec
from workers.venues.depth_sync import Change
from workers.venues.dialect import ALIVE, UNREADABLE, Control, ControlKind, Request, VenueOptions
from workers.venues.rest_books import RestBooksDialect

_REST: Final = "https://www.bitstamp.net/api/v2/order_book"
_BOOK: Final = "diff_order_book"


class BitstampOptions(VenueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of venue "bitstamp"."""

    rest_url: str = ""  # of snapshots, without the pair; empty = the venue's own


class _Told(msgspec.Struct):
    event: str = ""
    channel: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")


class _Error(msgspec.Struct):
    message: str = ""


class _Time(msgspec.Struct):
    microtimestamp: str


class _Message(msgspec.Struct):
    data: _Time
    channel: str


_told = msgspec.json.Decoder(_Told)
_error = msgspec.json.Decoder(_Error)
_time = msgspec.json.Decoder(_Time)
_message = msgspec.json.Decoder(_Message)


class BitstampDialect(RestBooksDialect):
    """See the module. A stream is a channel; symbols as the venue writes them, btcusd."""

    OPTIONS = BitstampOptions
    URL = "wss://ws.bitstamp.net"
    TYPES = {"trade": "live_trades", "level2": _BOOK}  # noqa: RUF012
    DEFAULT_TYPES = ("trade", "level2")
    STREAMS_PER_CONNECTION = 100
    REQUEST_GAP_S = 0.02

    def __init__(self, spec: FeedSpec, options: BitstampOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        self._rest_url = options.rest_url or _REST
        self.decoder = BitstampDecoder(self.intern, **self.stamp)

    def streams(self) -> list[str]:
        """`live_trades_btcusd` and so on."""
        return [f"{self.TYPES[kind]}_{symbol}" for symbol in self.spec.symbols for kind in self.types]

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """One request a channel."""
        requests = []
        for stream in streams:
            message = {"event": "bts:subscribe", "data": {"channel": stream}}
            requests.append(Request(msgspec.json.encode(message), (stream,)))
            if stream.startswith(_BOOK):
                self.books.expect(stream.rpartition("_")[2])
        return requests

    def control(self, message: bytes) -> Control | None:
        """What is not data begins with bts."""
        if b'"bts:' not in message:
            return None
        try:
            told = _told.decode(message)
        except UNREADABLE:
            return None  # the decoder counts it
        if told.event == "bts:subscription_succeeded":
            return Control(ControlKind.ACKNOWLEDGED, (told.channel,))
        if told.event == "bts:request_reconnect":
            return Control(ControlKind.GOING, text="the venue asks to connect again")
        if told.event == "bts:error":
            try:
                text = _error.decode(told.data).message
            except msgspec.MsgspecError:
                text = bytes(told.data)[:80].decode("utf-8", "replace")
            return Control(ControlKind.REFUSED, (told.channel,) if told.channel else (), text)
        return ALIVE

    def hold(self, message: bytes, ts_receive: int, connection: int) -> bool:
        """Changes of a book without a picture wait for it."""
        if self.books.all_synced or b'"diff_order_book_' not in message or b'"bts:' in message:
            return False
        try:
            told = _message.decode(message)
            update = int(told.data.microtimestamp)
        except (*UNREADABLE, ValueError):
            return False  # the decoder counts it
        symbol = told.channel.rpartition("_")[2]
        if not self.books.is_waiting(symbol):
            return False
        self.books.hold(symbol, Change(0, update, message, ts_receive, connection))
        return True

    def picture_url(self, symbol: str) -> str:
        """See `RestBooksDialect.picture_url`."""
        return f"{self._rest_url}/{symbol}/?group=1"

    def picture(self, symbol: str, body: bytes) -> tuple[int, bytes]:
        """See `RestBooksDialect.picture`."""
        update = int(_time.decode(body).microtimestamp)
        return update, b'{"event":"picture","channel":"%s_%s","data":%s}' % (_BOOK.encode(), symbol.encode(), body)
