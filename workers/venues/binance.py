"""Binance, spot and futures: combined streams, subscriptions by request, order books with a snapshot over REST.

Layouts and limits: Binance "WebSocket Streams", "Websocket Market Streams" (USD-M, COIN-M futures). See
workers/venues/dialect.py for who calls what; the decoder is workers/decoders/_binance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from shm.layout import NO_INSTRUMENT
from workers.decoders._binance import BinanceDecoder
from workers.errors import SettingsError
from workers.spec import FeedSpec
from workers.venues.depth_sync import Change
from workers.venues.dialect import (
    ALIVE,
    NO_RECOVERY,
    UNREADABLE,
    Control,
    ControlKind,
    Recovery,
    Request,
    VenueOptions,
)
from workers.venues.rest_books import RestBooksDialect

_STREAMS_PER_REQUEST: Final = 200
_URLS: Final = {
    "spot": ("wss://stream.binance.com:9443/stream", "https://api.binance.com/api/v3/depth"),
    "usdm": ("wss://fstream.binance.com/stream", "https://fapi.binance.com/fapi/v1/depth"),
    "coinm": ("wss://dstream.binance.com/stream", "https://dapi.binance.com/dapi/v1/depth"),
}


class BinanceOptions(VenueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of venue "binance"."""

    market: Literal["spot", "usdm", "coinm"] = "spot"
    trades: Literal["", "trade", "aggTrade"] = (
        ""  # aggTrade: those of one order at one price together; "" = trade on spot
    )
    depth_ms: Literal[100, 250, 500, 1000] = 100  # how often changes of a book are sent
    depth_limit: Annotated[int, Meta(ge=5, le=5000)] = 1000  # levels of a snapshot
    bars: str = "1m"  # interval of bars
    rest_url: str = ""  # of snapshots; empty = the venue's own


class _Reply(msgspec.Struct):
    """Answer to a request, or an error that answers none."""

    id: int | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    code: int | None = None
    msg: str = ""
    e: str = ""


class _Error(msgspec.Struct):
    code: int = 0
    msg: str = ""


class _Range(msgspec.Struct):
    U: int
    u: int


class _Depth(msgspec.Struct):
    data: _Range


class _Picture(msgspec.Struct):
    lastUpdateId: int  # noqa: N815 -- the venue's name


_reply = msgspec.json.Decoder(_Reply)
_error = msgspec.json.Decoder(_Error)
_depth = msgspec.json.Decoder(_Depth)
_picture = msgspec.json.Decoder(_Picture)


class BinanceDialect(RestBooksDialect):
    """See the module."""

    OPTIONS = BinanceOptions
    CODE = b"BINANCE"
    TYPES = {"trade": "trade", "quote": "bookTicker", "level2": "depth", "bar": "kline"}  # noqa: RUF012
    STREAMS_PER_CONNECTION = 200  # the venue allows 1024; fewer, so that a loss concerns fewer
    REQUEST_GAP_S = 0.25  # the venue closes connections that send more than 5 a second

    def __init__(self, spec: FeedSpec, options: BinanceOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        if options.market != "spot" and options.trades == "trade":
            # The futures venues publish their single matches in no documented stream.
            raise SettingsError(f"feed {spec.name}: options.trades: of futures only 'aggTrade' is to be had")
        self._binance = options
        self._trades = options.trades or ("trade" if options.market == "spot" else "aggTrade")
        self.decoder = BinanceDecoder(self.intern, **self.stamp)
        self._requests = 0

    def streams(self) -> list[str]:
        """`btcusdt@trade` and so on."""
        options = self._binance
        named = {
            "trade": self._trades,
            "quote": "bookTicker",
            "level2": f"depth@{options.depth_ms}ms",
            "bar": f"kline_{options.bars}",
        }
        return [f"{symbol.lower()}@{named[kind]}" for symbol in self.spec.symbols for kind in self.types]

    @property
    def url(self) -> str:
        """See `Dialect.url`."""
        return self._binance.url or _URLS[self._binance.market][0]

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """Some hundred streams a request, each answered by its number."""
        named, found = list(streams), []
        for at in range(0, len(named), _STREAMS_PER_REQUEST):
            self._requests += 1
            part = named[at : at + _STREAMS_PER_REQUEST]
            message = msgspec.json.encode({"method": "SUBSCRIBE", "params": part, "id": self._requests})
            found.append(Request(message, (str(self._requests),)))
        for stream in named:
            symbol, _, kind = stream.partition("@")
            if kind.startswith("depth"):
                self.books.expect(symbol)
        return found

    def control(self, message: bytes) -> Control | None:
        """Answers have no `stream`."""
        if message.startswith(b'{"stream"'):
            return None
        try:
            reply = _reply.decode(message)
        except UNREADABLE:
            return None  # the decoder counts it
        if reply.e == "serverShutdown":
            return Control(ControlKind.GOING, text="the venue shuts this server down")
        if reply.e:
            return None
        error = bytes(reply.error)
        if error and error != b"null":
            try:
                told = _error.decode(error)
            except msgspec.MsgspecError:
                told = _Error(msg=error[:80].decode("utf-8", "replace"))
            return _refusal(reply.id, told.code, told.msg)
        if reply.code is not None:
            return _refusal(reply.id, reply.code, reply.msg)
        return Control(ControlKind.ACKNOWLEDGED, (str(reply.id),)) if reply.id is not None else ALIVE

    def after_gap(self, message: bytes, instrument_id: int, resumed: int) -> Recovery:
        """A book with a hole begins anew; a hole among trades is told and stays."""
        symbol = self.symbol_of(instrument_id).lower()
        if b"@depth" in message[:80] and symbol and instrument_id != NO_INSTRUMENT:
            self.books.expect(symbol, resumed)
        return NO_RECOVERY

    def hold(self, message: bytes, ts_receive: int, connection: int) -> bool:
        """Changes of a book without a picture wait for it."""
        if self.books.all_synced or b"@depth" not in message[:80]:
            return False
        symbol = message[11 : message.find(b"@", 11)].decode("ascii", "replace")
        if not self.books.is_waiting(symbol):
            return False
        try:
            update = _depth.decode(message).data
        except UNREADABLE:
            return False  # the decoder counts it
        self.books.hold(symbol, Change(update.U, update.u, message, ts_receive, connection))
        return True

    def picture_url(self, symbol: str) -> str:
        """See `RestBooksDialect.picture_url`."""
        url = self._binance.rest_url or _URLS[self._binance.market][1]
        return f"{url}?symbol={symbol.upper()}&limit={self._binance.depth_limit}"

    def picture(self, symbol: str, body: bytes) -> tuple[int, bytes]:
        """See `RestBooksDialect.picture`; in words that the decoder knows from captures."""
        return _picture.decode(body).lastUpdateId, b'{"stream":"%s@depth","data":%s}' % (symbol.encode(), body)


def _refusal(number: int | None, code: int, text: str) -> Control:
    """Code 3 and -1130 and the like: what was asked for; -1003: too much of it."""
    wait_s = 60.0 if code == -1003 else 0.0
    keys = (str(number),) if number is not None else ()
    return Control(ControlKind.REFUSED, keys, f"{text} (code {code})".strip(), wait_s)
