"""Market data requests of a FIX feed (V), one a symbol; refusals (Y, j, 3); the acknowledgement of mass quotes (b).

Called by workers/sources/fix.py. Sans-I/O; workers/fix_session.py sends what is made here. Tags and values: FIX 4.4,
volume 3.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from workers.fix_messages import Received

TYPES: Final = ("trade", "quote", "level2")
MARKET_DATA_REQUEST: Final = "V"
QUOTE_ACKNOWLEDGEMENT: Final = "b"
REFUSALS: Final = frozenset("Yj3")
_REASONS: Final = {
    "0": "unknown symbol",
    "1": "duplicate request",
    "2": "insufficient bandwidth",
    "3": "insufficient permissions",
    "4": "subscriptions are not supported",
    "5": "this depth is not supported",
    "6": "this kind of update is not supported",
    "7": "aggregated books are not supported",
    "8": "this type of entry is not supported",
}


class MarketDataRequest(NamedTuple):
    """One request: its MDReqID, whose it is, the fields."""

    number: str
    symbol: str
    body: tuple[tuple[int, str | int], ...]


class Requests:
    """The requests of one feed. Numbers begin anew with each connection."""

    def __init__(
        self, symbols: tuple[str, ...], types: tuple[str, ...], *, depth: int, incremental: bool, exchange: str = ""
    ) -> None:
        """`depth`: 0 = the full book, 1 = the best prices; `exchange`: SecurityExchange of the symbols, "" = none."""
        self.depth = depth
        self._symbols = symbols
        self._types = types
        self._incremental = incremental
        self._exchange = exchange
        self._made = 0
        self._open: dict[str, str] = {}  # MDReqID -> symbol
        self._sent: dict[int, str] = {}  # MsgSeqNum of a request -> its MDReqID

    @property
    def made(self) -> int:
        """MDReqID of the last request of this connection; 0 = none was made."""
        return self._made

    def begin(self, made: int = 0) -> None:
        """A new connection: nothing is subscribed to. `made`: number of the last request that counts no more."""
        self._made = made
        self._open.clear()
        self._sent.clear()

    def subscribe(self) -> list[MarketDataRequest]:
        """A request for each symbol."""
        found = []
        for symbol in self._symbols:
            self._made += 1
            number = str(self._made)
            self._open[number] = symbol
            found.append(MarketDataRequest(number, symbol, tuple(self._body(number, symbol, "1"))))
        return found

    def unsubscribe(self) -> list[MarketDataRequest]:
        """Give back everything that is subscribed to."""
        found = [
            MarketDataRequest(number, symbol, tuple(self._body(number, symbol, "2")))
            for number, symbol in self._open.items()
        ]
        self._open.clear()
        return found

    def sent(self, number: str, seq: int) -> None:
        """The request went out under this MsgSeqNum."""
        self._sent[seq] = number

    def _body(self, number: str, symbol: str, what: str) -> list[tuple[int, str | int]]:
        entries = ["0", "1"] if {"quote", "level2"} & set(self._types) else []
        entries += ["2"] if "trade" in self._types else []
        body: list[tuple[int, str | int]] = [(262, number), (263, what), (264, self.depth)]
        if what == "1":
            body.append((265, 1 if self._incremental else 0))
        body.append((267, len(entries)))
        body += [(269, entry) for entry in entries]
        body += [(146, 1), (55, symbol)]
        if self._exchange:
            body.append((207, self._exchange))
        return body

    def refused(self, kind: str, message: Received) -> tuple[str, str] | None:
        """(symbol, reason) of a request that the venue refuses; None: the message is about something else."""
        number = message.text(262) if kind == "Y" else message.text(379)
        if number not in self._open:
            number = self._sent.get(message.number(45), "") if kind != "Y" else ""
        symbol = self._open.pop(number, None)
        if symbol is None:
            return None
        reason = _REASONS.get(message.text(281), "") if kind == "Y" else ""
        return symbol, message.text(58) or reason or "no reason given"

    @property
    def subscribed(self) -> int:
        """How many symbols are asked for and not refused."""
        return len(self._open)


def acknowledgement(mass_quote: bytes) -> tuple[tuple[int, str | int], ...] | None:
    """The body of the acknowledgement that a mass quote asks for by its QuoteID; None: it asks for none."""
    head = mass_quote[:512]
    at = head.find(b"\x01117=")
    if at < 0 or b"\x01301=0\x01" in head:
        return None
    quote_id = mass_quote[at + 5 :].partition(b"\x01")[0]
    return ((117, quote_id.decode("utf-8", "replace")), (297, 0))
