"""What a feed has asked TWS for and what became of it: contracts looked up, streams asked for, refused, asked again.

    symbol --contract details--> contract --in its turn--> request --data--> live
                  '-- none, several: refused      ^--- later ---'-- refused

One symbol or stream that is refused leaves the others as they are. Every request has a number that is never used twice,
so that what comes late for an earlier one reaches nobody. Time is passed in; workers/sources/ibkr.py calls this, and
the link (workers/sources/ibkr_link.py) sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from workers.sources.ibkr_contracts import Ambiguous, Description, Hours, choose
from workers.sources.ibkr_streams import TICK_BY_TICK, Pace, Step, Stream, Way, generic_ticks

FIRST_REQUEST: Final = 1_000  # numbers below are left to orders, which share TWS's numbering
FRESH_NS: Final = 6 * 3600 * 1_000_000_000  # contract details, with their trading hours, are looked up again after this
IDLE_NS: Final = 3600 * 1_000_000_000  # nothing waits
MOST_ANSWERS: Final = 500  # contracts that fit one description; more are not looked at
_MORE_BARS_S: Final = 120
_LONGEST_BARS_S: Final = 86_400
_BARS_OF: Final = {"CASH": "MIDPOINT", "CFD": "MIDPOINT", "CMDTY": "MIDPOINT", "CRYPTO": "AGGTRADES"}  # others: trades

Send = Callable[[Callable[[Any], None]], None]  # the link's `request`


@dataclass
class Lookup:
    """A request for contract details."""

    symbol: str
    asked_ns: int
    answers: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """How streams are asked for (options of the feed)."""

    bars_of: str = ""
    regular_hours: bool = False
    bars_back_s: int = 300
    depth_rows: int = 10
    smart_depth: bool | None = None
    news_providers: tuple[str, ...] = ()


class Requests:
    """See the module.

    Attributes:
        streams: all of them, whatever their state.
        refused: symbol or stream -> why, in words.
        hours: symbol -> when it trades.
        due_ns: when `ask` has something to do.
    """

    def __init__(
        self,
        streams: list[Stream],
        described: dict[str, Description],
        wanted: Wanted,
        *,
        send: Send,
        over: Callable[[Stream, int], None],
    ) -> None:
        """Nothing is asked for yet. `over` is told which stream's request has ended while the connection goes on."""
        self.streams = streams
        self.refused: dict[str, str] = {}
        self.hours: dict[str, Hours] = {}
        self._described = described
        self._wanted = wanted
        self._send = send
        self._over = over
        self._pace = Pace()
        self._next = FIRST_REQUEST
        self._running: dict[int, Stream] = {}
        self._lookups: dict[int, Lookup] = {}
        self._contracts: dict[str, tuple[Any, int]] = {}  # contract and when it was looked up
        self.due_ns = 0

    # -- a connection begins and ends

    def begin(self, now_ns: int) -> None:
        """On a new connection: everything is asked for from the start. Contracts that are known need no look-up."""
        self.forget()
        self.refused.clear()
        for symbol, described in self._described.items():
            known = self._contracts.get(symbol)
            if described.known:
                self._contracts[symbol] = described.contract(), now_ns
            elif known is None or now_ns - known[1] > FRESH_NS:
                self._contracts.pop(symbol, None)
                self._look_up(symbol, now_ns)
        for stream in self.streams:
            stream.step, stream.note, stream.due_ns = Step.WAITS, "", now_ns
        self.due_ns = now_ns

    def forget(self) -> None:
        """The connection is over: no request runs any more."""
        self._running.clear()
        self._lookups.clear()
        for stream in self.streams:
            stream.request = 0
            if stream.step is not Step.REFUSED:
                stream.step = Step.WAITS

    def again(self, now_ns: int) -> None:
        """TWS has lost the subscriptions, the connection is there: ask for all streams that were not refused."""
        for stream in self.streams:
            self._stop(stream)
            if stream.step is not Step.REFUSED:
                stream.step, stream.due_ns, stream.note = Step.WAITS, now_ns, ""
        self.due_ns = now_ns

    # -- contracts

    @property
    def looking_up(self) -> bool:
        """Whether contract details are still to come."""
        return bool(self._lookups)

    def lookup_of(self, request: int) -> Lookup | None:
        """The look-up with this number, if it runs."""
        return self._lookups.get(request)

    def contract_found(self, request: int, details: Any) -> None:
        """One that fits."""
        lookup = self._lookups.get(request)
        if lookup is not None and len(lookup.answers) < MOST_ANSWERS:
            lookup.answers.append(details)

    def contracts_over(self, request: int, now_ns: int) -> str:
        """No more fit; returns why the symbol is refused, "" = it is not."""
        lookup = self._lookups.pop(request, None)
        if lookup is None:
            return ""
        described = self._described[lookup.symbol]
        try:
            details = choose(described, lookup.answers)
        except Ambiguous as error:
            self._refuse_symbol(lookup.symbol, str(error))
            return str(error)
        contract = details.contract
        if described.exchange:
            contract.exchange = described.exchange
        self._contracts[lookup.symbol] = contract, now_ns
        self.hours[lookup.symbol] = Hours(details.tradingHours, details.timeZoneId)
        self.due_ns = now_ns
        return ""

    def lookup_refused(self, request: int, why: str) -> str:
        """TWS knows no such contract; returns why, naming what was asked for."""
        lookup = self._lookups.pop(request)
        text = f"{why}; asked for {self._described[lookup.symbol]}"
        self._refuse_symbol(lookup.symbol, text)
        return text

    def overdue(self, now_ns: int, limit_s: float) -> list[int]:
        """Look-ups that are not answered for so long, while others were."""
        if not self._lookups or not self._contracts:
            return []
        return [number for number, one in self._lookups.items() if now_ns - one.asked_ns >= round(limit_s * 1e9)]

    def look_up_again(self, now_ns: int) -> None:
        """Contract details are to be had again: those that were not found may have been refused for that alone."""
        running = {lookup.symbol for lookup in self._lookups.values()}
        for symbol in self._described:
            if symbol in self.refused and symbol not in self._contracts and symbol not in running:
                del self.refused[symbol]
                for stream in self.streams:
                    if stream.symbol == symbol:
                        stream.step, stream.note, stream.due_ns = Step.WAITS, "", now_ns
                self._look_up(symbol, now_ns)

    def _look_up(self, symbol: str, now_ns: int) -> None:
        number = self._number()
        self._lookups[number] = Lookup(symbol, now_ns)
        self._send(partial(_ask_contract, number=number, contract=self._described[symbol].contract()))

    def _refuse_symbol(self, symbol: str, why: str) -> None:
        self.refused[symbol] = why
        for stream in self.streams:
            if stream.symbol == symbol:
                stream.step, stream.note = Step.REFUSED, why

    # -- streams

    def stream_of(self, request: int) -> Stream | None:
        """The stream that this request brings, if it runs."""
        return self._running.get(request)

    def ask(self, now_ns: int, last_bar_ns: Callable[[Stream], int | None]) -> list[Stream]:
        """Ask for what is due and allowed; returns these streams."""
        if now_ns < self.due_ns:
            return []
        asked, next_ns = [], now_ns + IDLE_NS
        for stream in self.streams:
            if stream.step is not Step.WAITS:
                continue
            known = self._contracts.get(stream.symbol)
            if known is None and stream.way is not Way.BULLETINS:
                continue  # `contracts_over` comes first
            stream.due_ns = max(stream.due_ns, self._pace.free_at(stream, now_ns))
            if stream.due_ns > now_ns:
                next_ns = min(next_ns, stream.due_ns)
                continue
            self._pace.asked(stream, now_ns)
            stream.request, stream.asked_ns, stream.step = self._number(), now_ns, Step.ASKED
            self._running[stream.request] = stream
            last_ns = last_bar_ns(stream)
            back_s = self._wanted.bars_back_s if last_ns is None else (now_ns - last_ns) // 10**9 + _MORE_BARS_S
            contract = known[0] if known is not None else None
            self._send(
                partial(self._ask_stream, stream=stream, number=stream.request, contract=contract, back_s=back_s)
            )
            asked.append(stream)
        self.due_ns = next_ns
        return asked

    def ask_later(self, stream: Stream, now_ns: int, wait_s: float, why: str) -> None:
        """The stream's request has ended, or is ended here; it is asked for again after a while."""
        self._end(stream)
        stream.step, stream.note, stream.due_ns = Step.WAITS, why, now_ns + round(wait_s * 1e9)
        self.due_ns = min(self.due_ns, stream.due_ns)

    def refuse(self, stream: Stream, why: str) -> None:
        """TWS does not give it."""
        self._stop(stream)
        stream.step, stream.note = Step.REFUSED, why
        self.refused[str(stream)] = why

    def replace_by_aggregate(self, stream: Stream, now_ns: int) -> Stream:
        """Tick by tick is not to be had for it: the symbol's aggregate brings its types too. Returns that."""
        self._stop(stream)
        self.streams.remove(stream)
        for other in self.streams:
            if other.symbol == stream.symbol and other.way is Way.AGGREGATE:
                other.types += stream.types
                if other.step in (Step.ASKED, Step.LIVE):
                    self.ask_later(other, now_ns, 0.0, "")
                aggregate = other
                break
        else:
            aggregate = Stream(
                stream.symbol, Way.AGGREGATE, stream.types, stream.instrument_id, had_data=stream.had_data
            )
            self.streams.append(aggregate)
        aggregate.due_ns = self.due_ns = now_ns
        return aggregate

    def waiting(self) -> Iterable[Stream]:
        """Streams that are not asked for yet."""
        return (stream for stream in self.streams if stream.step is Step.WAITS)

    def _end(self, stream: Stream) -> None:
        number = stream.request
        if self._stop(stream):
            self._send(partial(self._cancel, stream=stream, number=number))

    def _stop(self, stream: Stream) -> bool:
        """What still comes for its request is nobody's; False = none ran."""
        number, stream.request = stream.request, 0
        if self._running.pop(number, None) is None:
            return False
        self._over(stream, number)
        return True

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _ask_stream(self, client: Any, *, stream: Stream, number: int, contract: Any, back_s: int) -> None:
        """Send the request that the way of the stream is. TWS API: reqTickByTickData and so on."""
        wanted, way = self._wanted, stream.way
        if way in TICK_BY_TICK:
            client.reqTickByTickData(number, contract, way.value, 0, False)
        elif way is Way.AGGREGATE:
            client.reqMktData(number, contract, generic_ticks(stream.types, wanted.news_providers), False, False, [])
        elif way is Way.DEPTH:
            client.reqMktDepth(number, contract, wanted.depth_rows, self._smart_depth(stream), [])
        elif way is Way.BULLETINS:
            client.reqNewsBulletins(False)
        else:
            of = wanted.bars_of or _BARS_OF.get(contract.secType, "TRADES")
            if way is Way.BARS_5:
                client.reqRealTimeBars(number, contract, 5, of, wanted.regular_hours, [])
            else:
                back = f"{min(max(back_s, 60), _LONGEST_BARS_S)} S"
                regular = int(wanted.regular_hours)
                client.reqHistoricalData(number, contract, "", back, "1 min", of, regular, 2, True, [])

    def _cancel(self, client: Any, *, stream: Stream, number: int) -> None:
        way = stream.way
        if way in TICK_BY_TICK:
            client.cancelTickByTickData(number)
        elif way is Way.AGGREGATE:
            client.cancelMktData(number)
        elif way is Way.DEPTH:
            client.cancelMktDepth(number, self._smart_depth(stream))
        elif way is Way.BARS_5:
            client.cancelRealTimeBars(number)
        elif way is Way.BARS_60:
            client.cancelHistoricalData(number)
        else:
            client.cancelNewsBulletins()

    def _smart_depth(self, stream: Stream) -> bool:
        asked = self._wanted.smart_depth
        return self._contracts[stream.symbol][0].exchange == "SMART" if asked is None else asked


def _ask_contract(client: Any, *, number: int, contract: Any) -> None:
    client.reqContractDetails(number, contract)
