"""FRED (Federal Reserve Bank of St. Louis) as a feed: observations of series as ticks (workers/sources/polled.py).

A symbol is the id of a series. Answers are workers/decoders/fred.py's. The key: FRED_API_KEY.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import numpy as np
from msgspec import Meta

from shm.layout import RecordType, Source
from workers.decoders import fred
from workers.decoders.observations import Observations
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

URL: Final = "https://api.stlouisfed.org/fred"
KEYS_AT: Final = "https://fred.stlouisfed.org/docs/api/api_key.html"
FIRST_VINTAGE: Final = "1776-07-04"  # the earliest that FRED takes
LAST_VINTAGE: Final = "9999-12-31"
_TYPES: Final = {"tick": "observations"}

Day = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class FredOptions(PolledOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "fred"."""

    per_second: Requests = 2
    per_minute: Requests = 120
    key_variable: KeyVariable = "FRED_API_KEY"  # of the environment
    start: Day | Literal[""] = ""  # observations of this day and later; empty = all
    vintages: bool = False  # every vintage of an observation, and not the present one alone
    vintages_from: Day = FIRST_VINTAGE  # earlier ones are left out
    units: Literal["lin", "chg", "ch1", "pch", "pc1", "pca", "cch", "cca", "log"] = "lin"
    frequency: Literal["", "d", "w", "bw", "m", "q", "sa", "a"] = ""  # aggregated by FRED; empty = as it is
    page: Annotated[int, Meta(ge=1, le=100_000)] = 100_000  # observations of one answer


class Fred:
    """See the module and `workers.sources.vendor.Vendor`."""

    NAME = "fred"
    SOURCE = Source.FRED
    VENUE = b"FRED"

    def __init__(self, context: SourceContext, key: ApiKey | None = None) -> None:
        """Check the feed's settings; SettingsError names what can't work. `key`: instead of the environment's."""
        spec = context.spec
        refuse_keys_in_options(spec, "FRED_API_KEY")
        options = read_options(spec, FredOptions)
        check_vendor(spec, options, _TYPES)
        self.options: PolledOptions = options
        self._options = options
        self.key = key if key is not None else find_key(spec, options.key_variable, KEYS_AT)
        self.headers: dict[str, str] = {}
        self.jobs = make_jobs(context, options, [(RecordType.TICK, 0, False)])

    def request(self, job: Job) -> Request:
        """See `Vendor.request`."""
        options = self._options
        query = {
            "series_id": job.symbol,
            "api_key": self.key.value,
            "file_type": "json",
            "units": options.units,
            "limit": str(options.page),
            "offset": str(job.offset),
        }
        if options.start:
            query["observation_start"] = options.start
        if options.frequency:
            query["frequency"] = options.frequency
        if options.vintages:
            query |= {"realtime_start": options.vintages_from, "realtime_end": LAST_VINTAGE}
        return Request(f"{(options.url or URL).rstrip('/')}/series/observations", query)

    def read(self, job: Job, status: int, body: bytes, now_ns: int) -> Observations:  # noqa: ARG002 -- see Vendor.read
        """See `Vendor.read`."""
        if status != 200:
            raise fred.read_problem(status, body)
        return fred.read_observations(body, vintages=self._options.vintages)

    def known_by(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vendor.known_by`."""
        keys = records["ts_event"].astype(np.int64)
        if self._options.vintages:
            return keys, records["source_sequence"].astype(np.int64)
        return keys, np.zeros(len(records), np.int64)


def open_fred(context: SourceContext) -> PolledSource:
    """Source "fred"."""
    return PolledSource(context, Fred(context))
