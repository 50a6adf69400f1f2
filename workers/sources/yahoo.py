"""Yahoo Finance as a feed: prices from its stream, or bars from its charts.

tick and quote come over a WebSocket (workers/venues/yahoo.py, workers/sources/websocket.py), bar is polled
(workers/sources/polled.py, workers/decoders/yahoo_chart.py). A feed has one or the other: they are lost, missed and
asked for again in different ways. No key; the budget of charts is this host's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal
from urllib.parse import quote

import msgspec
import numpy as np

from shm.layout import RecordType, Source
from workers.decoders import yahoo_chart
from workers.decoders.observations import Observations
from workers.errors import SettingsError
from workers.source import SourceContext, read_options
from workers.sources.api_key import ApiKey
from workers.sources.polled import PolledSource
from workers.sources.vendor import Job, PolledOptions, Request, Requests, Seconds, check_vendor, make_jobs
from workers.sources.websocket import WebSocketSource

URL: Final = "https://query1.finance.yahoo.com"
AGENT: Final = "Mozilla/5.0"  # without one that looks like a browser's it answers 429
INTERVALS: Final = {
    "1m": 60,
    "2m": 120,
    "5m": 300,
    "15m": 900,
    "30m": 1800,
    "60m": 3600,
    "90m": 5400,
    "1d": 86_400,
    "1wk": 604_800,
}
_TYPES: Final = {"bar": "charts"}

Interval = Literal["1m", "2m", "5m", "15m", "30m", "60m", "90m", "1d", "1wk"]
Range = Literal["1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max"]


class YahooChartOptions(PolledOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "yahoo" for bars."""

    poll_s: Seconds = 60.0
    per_second: Requests = 1
    per_minute: Requests = 30
    session: str = "us-equities"
    interval: Interval = "1m"
    range: Range = "1d"  # how far back each answer goes; bars missed for longer are not had
    pre_post: bool = False  # before and after hours too


class YahooCharts:
    """See the module and `workers.sources.vendor.Vendor`."""

    NAME = "yahoo"
    SOURCE = Source.YAHOO
    VENUE = b"YAHOO"

    def __init__(self, context: SourceContext) -> None:
        """Check the feed's settings; SettingsError names what can't work."""
        spec = context.spec
        options = read_options(spec, YahooChartOptions)
        check_vendor(spec, options, _TYPES)
        self.options: PolledOptions = options
        self._options = options
        self.key: ApiKey | None = None
        self.headers = {"User-Agent": AGENT}
        interval_s = INTERVALS[options.interval]
        moves = interval_s <= options.poll_s and interval_s < 86_400
        self.jobs = make_jobs(context, options, [(RecordType.BAR, interval_s, moves)])

    def request(self, job: Job) -> Request:
        """See `Vendor.request`."""
        options = self._options
        query = {
            "interval": options.interval,
            "range": options.range,
            "includePrePost": str(options.pre_post).lower(),
        }
        base = (options.url or URL).rstrip("/")
        return Request(f"{base}/v8/finance/chart/{quote(job.symbol, safe='')}", query)

    def read(self, job: Job, status: int, body: bytes, now_ns: int) -> Observations:
        """See `Vendor.read`."""
        if status != 200:
            raise yahoo_chart.read_problem(status, body)
        return yahoo_chart.read_chart(body, job.interval_s, now_ns)

    def known_by(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vendor.known_by`."""
        return records["ts_event"].astype(np.int64), np.zeros(len(records), np.int64)


def open_yahoo(context: SourceContext) -> WebSocketSource | PolledSource:
    """Source "yahoo": a stream, or charts if the feed's data type is bar."""
    spec = context.spec
    if "bar" not in spec.data_types:
        if spec.options.get("venue", "yahoo") != "yahoo":
            raise SettingsError(f"feed {spec.name}: no option 'venue' for source 'yahoo'")
        stream = msgspec.structs.replace(spec, options={**spec.options, "venue": "yahoo"})
        return WebSocketSource(replace(context, spec=stream))
    if set(spec.data_types) != {"bar"}:
        raise SettingsError(
            f"feed {spec.name}: data types {', '.join(spec.data_types)}: tick and quote are streamed, bar is polled; "
            "make a feed of each"
        )
    return PolledSource(context, YahooCharts(context))
