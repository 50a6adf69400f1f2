"""Options of source "ibkr", and what a feed asks for by them. Used by workers/sources/ibkr.py; pure."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from workers.errors import SettingsError
from workers.session import Limits
from workers.source import SourceContext, nearest
from workers.sources.ibkr_contracts import Description
from workers.sources.ibkr_requests import Wanted
from workers.sources.ibkr_streams import BULLETINS, TYPES, Stream, Way, plan

Seconds = Annotated[float, Meta(gt=0, le=86_400)]

DEFAULT_TYPES: Final = ("trade", "quote")
MARKET_DATA: Final = {"live": 1, "frozen": 2, "delayed": 3, "delayed-frozen": 4}  # TWS API, reqMarketDataType


class IbkrOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "ibkr"."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 4001  # IB Gateway; 4002 its paper account, 7496 and 7497 those of TWS
    client_id: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None  # unique among TWS's clients
    contracts: dict[str, Description] = {}  # by symbol, where its form does not say it
    rename: dict[str, str] = {}  # a symbol of the feed -> the symbol of the records
    tick_by_tick: Literal["auto", "always", "never"] = "auto"
    tick_by_tick_lines: Annotated[int, Meta(ge=0, le=1000)] = 5  # 5 % of the account's market data lines
    market_data: Literal["live", "frozen", "delayed", "delayed-frozen"] = "live"
    bar_s: Literal[5, 60] = 5
    bars_of: Literal["", "TRADES", "AGGTRADES", "MIDPOINT", "BID", "ASK"] = ""  # empty = trades, where there are any
    bars_back_s: Annotated[int, Meta(ge=60, le=86_400)] = 300  # of 60 s bars, at the start
    regular_hours: bool = False  # bars of regular trading hours alone
    depth_rows: Annotated[int, Meta(ge=1, le=100)] = 10
    smart_depth: bool | None = None  # depth of all exchanges together; None = where the exchange is SMART
    news_providers: tuple[Annotated[str, Meta(pattern=r"^[A-Z0-9-]+$")], ...] = ("BRFG", "BRFUPDN", "DJNL")
    bulletins: bool = False  # news of IBKR itself
    session: Literal["contract", "always", "us-equities"] = "contract"  # when silence means something
    connect_s: Seconds = 10.0
    login_s: Seconds = 10.0
    acknowledge_s: Seconds = 15.0  # for contract details
    first_data_s: Seconds = 60.0
    message_s: Seconds = 60.0  # longest silence of the connection
    ping_s: Seconds = 15.0  # TWS is asked for its time after so long without a message
    stale_factor: Annotated[float, Meta(ge=1)] = 8.0
    stale_floor_s: Seconds = 10.0
    stale_s: Seconds = 30.0
    cut_s: Seconds = 600.0  # TWS that has lost IBKR for so long is connected to anew
    latency_floor_ms: Annotated[float, Meta(ge=0)] = 1500.0  # tick-by-tick times are whole seconds
    requests_per_s: Annotated[int, Meta(ge=1, le=50)] = 45
    max_message_bytes: Annotated[int, Meta(ge=1024, le=1 << 24)] = 1 << 24

    def limits(self, symbols: int) -> Limits:
        """The session's deadlines."""
        return Limits(
            connect_s=self.connect_s,
            login_s=self.login_s,
            acknowledge_s=self.look_up_s(symbols) + 1.0,  # what is overdue then is all there is
            first_data_s=self.first_data_s,
            message_s=self.message_s,
            stale_s=self.stale_s,
        )

    def look_up_s(self, symbols: int) -> float:
        """How long contract details may take: those of many symbols are asked for at so many a second."""
        return self.acknowledge_s + symbols / self.requests_per_s

    def wanted(self) -> Wanted:
        """How streams are asked for."""
        return Wanted(
            bars_of=self.bars_of,
            regular_hours=self.regular_hours,
            bars_back_s=self.bars_back_s,
            depth_rows=self.depth_rows,
            smart_depth=self.smart_depth,
            news_providers=self.news_providers,
        )


def streams_of(context: SourceContext, options: IbkrOptions, described: dict[str, Description]) -> list[Stream]:
    """Everything that the feed asks TWS for; interns its symbols. SettingsError names what can't work."""
    spec = context.spec
    types = spec.data_types or DEFAULT_TYPES
    for name in types:
        if name not in TYPES:
            there = nearest(name, TYPES)
            raise SettingsError(f"feed {spec.name}: data type {name!r} is not to be had from ibkr{there}")
    if not spec.symbols and not options.bulletins:
        raise SettingsError(f"feed {spec.name}: symbols: name those that are wanted, such as AAPL or EUR.USD@IDEALPRO")
    if "news" in types and not options.news_providers:
        raise SettingsError(f"feed {spec.name}: options.news_providers: name one at least, or leave it out")
    streams = plan(
        spec.name,
        [
            (symbol, context.intern(options.rename.get(symbol, symbol)), one.sec_type == "IND")
            for symbol, one in described.items()
        ],
        types,
        by_tick=options.tick_by_tick,
        by_tick_lines=options.tick_by_tick_lines,
        bar_s=options.bar_s,
    )
    aggregated = [stream for stream in streams if stream.way is Way.AGGREGATE and stream.types != ["news"]]
    if options.stale_floor_s < 1.0 and aggregated:
        raise SettingsError(
            f"feed {spec.name}: options.stale_floor_s is {options.stale_floor_s:g}: under a second needs tick-by-tick "
            f"data, and {aggregated[0]} is an aggregate of every 250 ms; see options.tick_by_tick"
        )
    if options.bulletins:
        streams.append(Stream(BULLETINS, Way.BULLETINS, ["news"], context.intern(BULLETINS)))
    return streams
