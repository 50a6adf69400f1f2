"""Venues that are asked for a channel and a list of symbols: a stream is `channel:symbol`, a request one channel's.

Base of workers/venues/coinbase.py, kraken.py and kraken_v1.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from workers.venues.dialect import Dialect, Request


class ChannelDialect(Dialect):
    """See the module. A venue defines `request`."""

    def streams(self) -> list[str]:
        """Every channel of a symbol together, so that one connection has all of it."""
        return [f"{self.TYPES[kind]}:{symbol}" for symbol in self.spec.symbols for kind in self.types]

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """A request for each channel, answered for each symbol."""
        channels: dict[str, list[str]] = {}
        for stream in streams:
            channel, _, symbol = stream.partition(":")
            channels.setdefault(channel, []).append(symbol)
        return [
            Request(self.request("subscribe", channel, symbols), tuple(f"{channel}:{symbol}" for symbol in symbols))
            for channel, symbols in channels.items()
        ]

    def request(self, what: str, channel: str, symbols: list[str]) -> bytes:
        """The message that subscribes ("subscribe") or unsubscribes ("unsubscribe")."""
        raise NotImplementedError

    def again(self, channel: str, symbol: str) -> tuple[Request, ...]:
        """What brings a new snapshot of a book: out and in again, not answered for the session."""
        return tuple(Request(self.request(what, channel, [symbol])) for what in ("unsubscribe", "subscribe"))
