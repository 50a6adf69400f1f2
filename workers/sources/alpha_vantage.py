"""Alpha Vantage as a feed: last prices, bars, and quotes of currency pairs, polled (workers/sources/polled.py).

Endpoints are functions of one URL; which one a symbol is asked for with depends on the data type. Answers are
workers/decoders/alpha_vantage.py's. The key: ALPHA_VANTAGE_API_KEY.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from shm.layout import RecordType, Source
from workers.decoders import alpha_vantage
from workers.decoders.observations import KeyRefused, Observations, SlowDown, Unusable
from workers.errors import SettingsError
from workers.source import SourceContext, read_options
from workers.sources.api_key import ApiKey, KeyVariable, find_key
from workers.sources.polled import PolledSource
from workers.sources.vendor import (
    Job,
    PolledOptions,
    Request,
    Requests,
    check_vendor,
    make_jobs,
    refuse_keys_in_options,
)

URL: Final = "https://www.alphavantage.co/query"
KEYS_AT: Final = "https://www.alphavantage.co/support/#api-key"
_MINUTES: Final = {"1min": 60, "5min": 300, "15min": 900, "30min": 1800, "60min": 3600}
_DAILY: Final = {"daily": 86_400}
_TYPES: Final = {"tick": "GLOBAL_QUOTE", "bar": "TIME_SERIES", "quote": "CURRENCY_EXCHANGE_RATE"}


class AlphaVantageOptions(PolledOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "alpha_vantage". The limits are those of a free key."""

    per_second: Requests = 1
    per_minute: Requests = 5
    per_day: Requests = 25
    key_variable: KeyVariable = "ALPHA_VANTAGE_API_KEY"  # of the environment
    session: str = "us-equities"
    interval: Literal["1min", "5min", "15min", "30min", "60min", "daily"] = "daily"  # of bars
    outputsize: Literal["compact", "full"] = "compact"  # the newest 100 bars, or all
    adjusted: bool = True  # bars within a day: for splits and dividends
    extended_hours: bool = True  # bars within a day: before and after hours too
    entitlement: Literal["", "realtime", "delayed"] = ""  # what a premium key is entitled to


class AlphaVantage:
    """See the module and `workers.sources.vendor.Vendor`."""

    NAME = "alpha_vantage"
    SOURCE = Source.ALPHA_VANTAGE
    VENUE = b"ALPHAVAN"

    def __init__(self, context: SourceContext, key: ApiKey | None = None) -> None:
        """Check the feed's settings; SettingsError names what can't work. `key`: instead of the environment's."""
        spec = context.spec
        refuse_keys_in_options(spec, "ALPHA_VANTAGE_API_KEY")
        options = read_options(spec, AlphaVantageOptions)
        types = check_vendor(spec, options, _TYPES)
        for symbol in spec.symbols:
            if "quote" in types and not _is_pair(symbol):
                raise SettingsError(
                    f"feed {spec.name}: quote of {symbol!r}: Alpha Vantage has bid and ask of currency pairs alone "
                    "(EUR/USD); ask for tick, which is the last price"
                )
            if _is_pair(symbol) and types != ("quote",):
                raise SettingsError(f"feed {spec.name}: {symbol!r}: of a currency pair ask for quote alone")
        self.options: PolledOptions = options
        self._options = options
        self.key = key if key is not None else find_key(spec, options.key_variable, KEYS_AT)
        self.headers: dict[str, str] = {}
        interval_s = {**_MINUTES, **_DAILY}[options.interval]
        kinds = {
            "tick": (RecordType.TICK, 0, True),
            "quote": (RecordType.QUOTE, 0, False),
            "bar": (RecordType.BAR, interval_s, interval_s <= options.poll_s and interval_s < 86_400),
        }
        self.jobs = make_jobs(context, options, [kinds[name] for name in types])

    def request(self, job: Job) -> Request:
        """See `Vendor.request`."""
        options = self._options
        query = {"apikey": self.key.value}
        if job.kind is RecordType.QUOTE:
            base, _, other = job.symbol.partition("/")
            query |= {"function": "CURRENCY_EXCHANGE_RATE", "from_currency": base, "to_currency": other}
        elif job.kind is RecordType.TICK:
            query |= {"function": "GLOBAL_QUOTE", "symbol": job.symbol}
        else:
            query |= {"symbol": job.symbol, "outputsize": options.outputsize}
            if options.interval in _DAILY:
                query["function"] = "TIME_SERIES_DAILY"
            else:
                query |= {
                    "function": "TIME_SERIES_INTRADAY",
                    "interval": options.interval,
                    "adjusted": str(options.adjusted).lower(),
                    "extended_hours": str(options.extended_hours).lower(),
                }
        if options.entitlement and job.kind is not RecordType.QUOTE:
            query["entitlement"] = options.entitlement
        return Request(options.url or URL, query)

    def read(self, job: Job, status: int, body: bytes, now_ns: int) -> Observations:
        """See `Vendor.read`."""
        if status in (401, 403):
            raise KeyRefused(f"HTTP {status}")
        if status == 429:
            raise SlowDown(f"HTTP {status}", 60.0)
        if status != 200:
            raise Unusable(f"HTTP {status}")
        if job.kind is RecordType.TICK:
            return alpha_vantage.read_quote(body, now_ns)
        if job.kind is RecordType.QUOTE:
            return alpha_vantage.read_rate(body)
        return alpha_vantage.read_series(body, job.interval_s, now_ns)

    def known_by(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vendor.known_by`."""
        return alpha_vantage.key_of(records), np.zeros(len(records), np.int64)


def _is_pair(symbol: str) -> bool:
    base, slash, other = symbol.partition("/")
    return bool(slash and base and other)


def open_alpha_vantage(context: SourceContext) -> PolledSource:
    """Source "alpha_vantage"."""
    return PolledSource(context, AlphaVantage(context))
