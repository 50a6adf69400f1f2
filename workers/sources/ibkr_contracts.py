"""Which contract of IBKR a symbol of a feed means, and when it trades.

    AAPL                       stock, SMART, USD
    AAPL@SMART:USD             exchange and currency
    AAPL@SMART/NASDAQ:USD      with the primary exchange, where the stock is listed in several places
    ESU4@CME                   future, by its local symbol
    EUR.USD@IDEALPRO           currency pair
    BTC.USD@PAXOS              crypto currency pair
    anything else              a table in option `contracts`, by symbol

What TWS answers (contract details) is matched here: none, one, or several that differ in fields which are then named.
Used by workers/sources/ibkr.py; no I/O. ib_async's Contract is made only in `Description.contract`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from workers.errors import SettingsError

if TYPE_CHECKING:
    from ib_async import Contract

MAX_NAMED: Final = 4
_DAY_NS: Final = 86_400_000_000_000

SecType = Literal[
    "STK",
    "OPT",
    "FUT",
    "CONTFUT",
    "FOP",
    "IND",
    "CASH",
    "CFD",
    "WAR",
    "IOPT",
    "BOND",
    "CMDTY",
    "FUND",
    "CRYPTO",
    "NEWS",
]

_SYMBOL: Final = re.compile(
    r"(?P<name>[^@\s]+?)(?:@(?P<exchange>[A-Z0-9.]+)(?:/(?P<primary>[A-Z0-9.]+))?)?(?::(?P<currency>[A-Z]{3}))?"
)
_PAIR: Final = re.compile(r"([A-Z0-9]{3,5})\.([A-Z]{3,4})")
_LOCAL_FUTURE: Final = re.compile(r"[A-Z0-9]{1,5}[FGHJKMNQUVXZ]\d{1,2}")
_FUTURES_EXCHANGES: Final = frozenset(
    {
        *("CME", "CBOT", "NYMEX", "COMEX", "GLOBEX", "ECBOT", "CFE", "SMFE", "NYBOT", "CDE"),
        *("ICEUS", "ICEEU", "ICEEUSOFT", "IPE", "ENDEX", "EUREX", "MEFFRV", "MATIF", "MONEP", "IDEM", "FTA", "BELFOX"),
        *("OMS", "SNFE", "SGX", "HKFE", "OSE.JPN", "KSE", "NSE"),
    }
)
_PAIR_EXCHANGES: Final = {"IDEALPRO": "CASH", "PAXOS": "CRYPTO", "ZEROHASH": "CRYPTO"}

# Our names of the fields -> those of ib_async's Contract, in the order in which they tell contracts apart.
FIELDS: Final[dict[str, str]] = {
    "sec_type": "secType",
    "currency": "currency",
    "primary_exchange": "primaryExchange",
    "expiry": "lastTradeDateOrContractMonth",
    "strike": "strike",
    "right": "right",
    "multiplier": "multiplier",
    "trading_class": "tradingClass",
    "local_symbol": "localSymbol",
    "exchange": "exchange",
    "symbol": "symbol",
}


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a feed's settings say of a contract; what is left out may be anything."""

    symbol: str = ""  # of the underlying, for futures and options
    sec_type: SecType = "STK"
    exchange: str = "SMART"
    primary_exchange: str = ""
    currency: str = ""
    local_symbol: str = ""
    expiry: Annotated[str, Meta(pattern=r"^(\d{6}|\d{8})?$")] = ""  # YYYYMM or YYYYMMDD
    strike: Annotated[float, Meta(ge=0)] = 0.0
    right: Literal["", "C", "P"] = ""
    multiplier: str = ""
    trading_class: str = ""
    con_id: Annotated[int, Meta(ge=0)] = 0  # IBKR's own number, which says everything but the exchange
    sec_id_type: Literal["", "ISIN", "CUSIP", "FIGI"] = ""
    sec_id: str = ""

    def contract(self) -> Contract:
        """As ib_async has it."""
        from ib_async import Contract

        return Contract(
            secType=self.sec_type,
            conId=self.con_id,
            symbol=self.symbol,
            lastTradeDateOrContractMonth=self.expiry,
            strike=self.strike,
            right=self.right,
            multiplier=self.multiplier,
            exchange=self.exchange,
            primaryExchange=self.primary_exchange,
            currency=self.currency,
            localSymbol=self.local_symbol,
            tradingClass=self.trading_class,
            secIdType=self.sec_id_type,
            secId=self.sec_id,
        )

    @property
    def known(self) -> bool:
        """Whether it needs no look-up: news have no contract details."""
        return self.sec_type == "NEWS"

    def __str__(self) -> str:
        """The fields that are set, for messages."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.__struct_fields__ if getattr(self, name))


def describe(symbol: str, tables: dict[str, Description]) -> Description:
    """What a symbol of a feed means: its table, or what its form says. ValueError says what is wrong with it."""
    if symbol in tables:
        table = tables[symbol]
        if not (table.symbol or table.local_symbol or table.con_id or table.sec_id):
            raise ValueError("needs one of symbol, local_symbol, con_id and sec_id")
        if bool(table.sec_id) != bool(table.sec_id_type):
            raise ValueError("sec_id and sec_id_type go together")
        return table
    found = _SYMBOL.fullmatch(symbol)
    if found is None:
        raise ValueError("is not NAME, NAME@EXCHANGE or NAME@EXCHANGE:CURRENCY; describe it in options.contracts")
    name, exchange = found["name"], found["exchange"] or "SMART"
    currency, primary = found["currency"] or "", found["primary"] or ""
    if exchange in _PAIR_EXCHANGES:
        pair = _PAIR.fullmatch(name)
        if pair is None:
            raise ValueError(f"is no pair: on {exchange} it is written like EUR.USD@{exchange}")
        if currency and currency != pair[2]:
            raise ValueError(f"says two currencies: {pair[2]} and {currency}")
        kind: Any = _PAIR_EXCHANGES[exchange]
        return Description(symbol=pair[1], sec_type=kind, exchange=exchange, currency=pair[2])
    if exchange in _FUTURES_EXCHANGES:
        if not _LOCAL_FUTURE.fullmatch(name):
            raise ValueError(
                f"is no local symbol of a future on {exchange}, such as ESU4; describe it in options.contracts"
            )
        return Description(local_symbol=name, sec_type="FUT", exchange=exchange, currency=currency)
    return Description(symbol=name, exchange=exchange, primary_exchange=primary, currency=currency or "USD")


def describe_all(name: str, symbols: Iterable[str], tables: dict[str, Description]) -> dict[str, Description]:
    """`describe` for a feed's symbols; SettingsError names feed, symbol and what is wrong with it."""
    found = {}
    for symbol in symbols:
        try:
            found[symbol] = describe(symbol, tables)
        except ValueError as error:
            where = f"options.contracts[{symbol!r}]" if symbol in tables else f"symbol {symbol!r}"
            raise SettingsError(f"feed {name}: {where} {error}") from None
    for symbol in tables:
        if symbol not in found:
            raise SettingsError(f"feed {name}: options.contracts has {symbol!r}, which is not among its symbols")
    return found


class Ambiguous(Exception):
    """None or several contracts; the text says which field to set."""


def choose(described: Description, answers: list[Any]) -> Any:
    """The one contract that is meant, of TWS's contract details (ib_async.ContractDetails).

    The same contract may come once for each exchange: then the asked one counts. Ambiguous for none or several.
    """
    by_number: dict[int, Any] = {}
    for details in answers:
        contract = details.contract
        if contract is None or not contract.conId:
            continue
        if contract.conId not in by_number or contract.exchange == described.exchange:
            by_number[contract.conId] = details
    if not by_number:
        raise Ambiguous(f"there is no contract with {described}")
    if len(by_number) == 1:
        return next(iter(by_number.values()))
    raise Ambiguous(f"{len(by_number)} contracts have {described}; {_difference(list(by_number.values()))}")


def _difference(answers: list[Any]) -> str:
    for ours, theirs in FIELDS.items():
        values = sorted({str(getattr(details.contract, theirs)) for details in answers})
        if len(values) > 1:
            more = f" and {len(values) - MAX_NAMED} more" if len(values) > MAX_NAMED else ""
            return f"set {ours} in options.contracts: {', '.join(values[:MAX_NAMED])}{more}"
    numbers = sorted(str(details.contract.conId) for details in answers)
    return f"set con_id in options.contracts: {', '.join(numbers[:MAX_NAMED])}"


class Hours:
    """When a contract trades, as far as TWS has said: some days ahead. Beyond that, and if unreadable, it is open."""

    def __init__(self, trading_hours: str, zone: str) -> None:
        """Take `ContractDetails.tradingHours`: "20230103:0400-20230103:2000;20230104:CLOSED", in time zone `zone`."""
        self._spans: list[tuple[int, int]] = []
        self._first_ns = self._until_ns = 0
        try:
            self._read(trading_hours, ZoneInfo(zone))
        except (ValueError, KeyError, OSError):  # the last two: of a zone that does not exist
            self._spans.clear()
            self._first_ns = self._until_ns = 0

    def is_open(self, now_ns: int) -> bool:
        """Whether it trades at a time, ns since the epoch."""
        if not self._first_ns <= now_ns < self._until_ns:
            return True
        return any(begin <= now_ns < end for begin, end in self._spans)

    def _read(self, text: str, zone: ZoneInfo) -> None:
        days = []
        for part in text.split(";"):
            day, _, hours = part.strip().partition(":")
            if not day:
                continue
            days.append(_time_ns(f"{day}:0000", zone))
            if hours == "CLOSED":
                continue
            for span in f"{day}:{hours}".split(","):
                begin, _, end = span.partition("-")
                self._spans.append((_time_ns(begin, zone), _time_ns(end, zone)))
        if days:
            self._first_ns = min([*days, *(begin for begin, _ in self._spans)])
            self._until_ns = max([days[-1] + _DAY_NS, *(end for _, end in self._spans)])


def _time_ns(text: str, zone: ZoneInfo) -> int:
    return int(datetime.strptime(text, "%Y%m%d:%H%M").replace(tzinfo=zone).timestamp()) * 1_000_000_000
