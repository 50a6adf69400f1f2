# ruff: noqa: N802, N803, N815, PLR0917, ARG002 -- the methods that ib_async calls have the names and arguments of TWS's
"""One attempt at a connection to TWS as ib_async sees it: an object with a method for each message that matters.

What is about the connection goes to Events (the source), market data to Market (workers/sources/ibkr_market.py). Made
by workers/sources/ibkr_link.py; it has no socket and no state but that of its attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from workers.session import Verdict
from workers.sources.ibkr_market import Market
from workers.sources.ibkr_witness import IbkrWitness

MAX_REASON_CHARS: Final = 200


class Events(Protocol):
    """What the source hears. `request` is the number that it gave the request; times in ns."""

    def opened(self, version: int) -> None:
        """TWS has answered the handshake, with the version of the protocol that it speaks."""

    def ready(self) -> None:
        """TWS takes requests."""

    def ended(self, verdict: Verdict) -> None:
        """The connection could not be made, or is over."""

    def received(self, now_ns: int, size_bytes: int) -> None:
        """Bytes have come; the events that follow are theirs."""

    def packet_over(self, now_ns: int) -> None:
        """These were all."""

    def complaint(self, text: str) -> None:
        """A message that can't be read."""

    def message_of_tws(self, request: int, code: int, text: str) -> None:
        """An error, a warning or a note."""

    def contract_found(self, request: int, details: Any) -> None:
        """One of the contracts that fit."""

    def contracts_over(self, request: int) -> None:
        """These were all."""


class Wire:
    """See the module. Once `dead` it tells nobody anything; `was_ready`: TWS took requests; `throttled`: some wait.

    `version` of the protocol, once TWS has said it; `captures`: somebody writes down what goes over the wire.
    """

    def __init__(
        self,
        events: Events,
        market: Market,
        failed: Callable[[BaseException], None],
        clock: Callable[[], int],
        witness: IbkrWitness,
    ) -> None:
        """`failed` takes errors of our own; `clock` stamps what arrives; `witness` is told what goes over the wire."""
        self.dead = False
        self.version = 0
        self.captures = witness.on
        self.was_ready = False
        self.throttled = False
        self._events = events
        self._market = market
        self.failed = failed
        self._clock = clock
        self._witness = witness
        self._now_ns = 0

    def arrived(self, size_bytes: int) -> None:
        """Bytes have come."""
        self._now_ns = self._market.now_ns = self._clock()
        self._events.received(self._now_ns, size_bytes)

    def captured(self, body: bytes) -> None:
        """A whole message that concerns the feed, before anything is done about it."""
        self._witness.received(body, self._now_ns)

    def sent(self, body: bytes) -> None:
        """A request goes out."""
        self._witness.sent(body, self._clock())

    def processed(self) -> None:
        """What they said has been told."""
        self._events.packet_over(self._now_ns)

    def complaint(self, text: str) -> None:
        """A message that can't be read."""
        if not self.dead:
            self._events.complaint(text)

    def end(self, verdict: Verdict) -> None:
        """Told once an attempt."""
        if not self.dead:
            self.dead = True
            self._events.ended(verdict)

    def started(self) -> None:
        """TWS takes requests."""
        self.was_ready = True

    def throttle_on(self) -> None:
        """Requests wait."""
        self.throttled = True

    def throttle_off(self) -> None:
        """No more."""
        self.throttled = False

    # -- called by ib_async

    def connectAck(self) -> None:
        self._events.opened(self.version)

    def connectionClosed(self) -> None:
        pass  # told by the connection itself, in every state

    def setEventsDone(self) -> None:
        pass  # nothing waits for events

    def nextValidId(self, reqId: int) -> None:
        pass  # of orders

    def managedAccounts(self, accountsList: str) -> None:
        pass

    def currentTime(self, time: int) -> None:
        pass  # it has come, which is what it was asked for

    def error(self, reqId: int, errorCode: int, errorString: str, advancedOrderRejectJson: str) -> None:
        self._events.message_of_tws(reqId, errorCode, errorString)

    def contractDetails(self, reqId: int, contractDetails: Any) -> None:
        self._events.contract_found(reqId, contractDetails)

    bondContractDetails = contractDetails

    def contractDetailsEnd(self, reqId: int) -> None:
        self._events.contracts_over(reqId)

    def priceSizeTick(self, reqId: int, tickType: int, price: float, size: float) -> None:
        self._market.price(reqId, tickType, price, size)

    def tickSize(self, reqId: int, tickType: int, size: float) -> None:
        self._market.size(reqId, tickType, size)

    def tickString(self, reqId: int, tickType: int, value: str) -> None:
        self._market.text(reqId, tickType, value)

    def marketDataType(self, reqId: int, marketDataId: int) -> None:
        self._market.kind_of_data(reqId, marketDataId)

    def tickReqParams(self, reqId: int, minTick: float, bboExchange: str, snapshotPermissions: int) -> None:
        self._market.accepted(reqId)

    def tickByTickAllLast(
        self,
        reqId: int,
        tickType: int,
        time: int,
        price: float,
        size: float,
        attrib: Any,
        exchange: str,
        specialConditions: str,
    ) -> None:
        self._market.by_tick_print(reqId, time, price, size, exchange, specialConditions)

    def tickByTickBidAsk(
        self,
        reqId: int,
        time: int,
        bidPrice: float,
        askPrice: float,
        bidSize: float,
        askSize: float,
        attrib: Any,
    ) -> None:
        self._market.by_tick_quote(reqId, time, bidPrice, askPrice, bidSize, askSize)

    def tickByTickMidPoint(self, reqId: int, time: int, midPoint: float) -> None:
        pass  # is not asked for

    def realtimeBar(self, reqId: int, time: int, *values: float) -> None:
        self._market.bar(reqId, time, values)

    def historicalData(self, reqId: int, bar: Any) -> None:
        self._market.kept_bar(reqId, bar.date, _values(bar), past=True)

    def historicalDataEnd(self, reqId: int, _start: str, _end: str) -> None:
        pass

    def historicalDataUpdate(self, reqId: int, bar: Any) -> None:
        self._market.kept_bar(reqId, bar.date, _values(bar), past=False)

    def updateMktDepth(self, reqId: int, position: int, operation: int, side: int, price: float, size: float) -> None:
        self._market.depth(reqId, position, operation, side, price, size, "")

    def updateMktDepthL2(
        self,
        reqId: int,
        position: int,
        marketMaker: str,
        operation: int,
        side: int,
        price: float,
        size: float,
        isSmartDepth: bool = False,
    ) -> None:
        self._market.depth(reqId, position, operation, side, price, size, marketMaker)

    def tickNews(
        self,
        reqId: int,
        timeStamp: int,
        providerCode: str,
        articleId: str,
        headline: str,
        extraData: str,
    ) -> None:
        self._market.headline(reqId, timeStamp, providerCode, headline)

    def updateNewsBulletin(self, msgId: int, msgType: int, message: str, origExchange: str) -> None:
        self._market.bulletin(message, origExchange)


def _values(bar: Any) -> tuple[float, ...]:
    return bar.open, bar.high, bar.low, bar.close, bar.volume, bar.average, bar.barCount
