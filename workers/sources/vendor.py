"""What a polled vendor is: what to ask for, how often and how fast at most, and what its answers mean. Sans-I/O.

A vendor is made for one feed. workers/sources/polled.py asks on its behalf, over HTTP, within the key's budget; Alpha
Vantage, FRED and Yahoo's charts are vendors. Options that all of them have are here.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Meta

from shm.layout import TYPE_NAMES, RecordType, Source
from workers.decoders.observations import Observations
from workers.errors import SettingsError
from workers.rate_budget import MAX_REQUESTS, Limit
from workers.source import SourceContext, nearest
from workers.sources.api_key import ApiKey
from workers.spec import FeedSpec

Seconds = Annotated[float, Meta(gt=0, le=31 * 86_400)]
Requests = Annotated[int, Meta(ge=0, le=MAX_REQUESTS)]

SECOND_S: Final = 1.0
MINUTE_S: Final = 60.0
DAY_S: Final = 86_400.0


class PolledOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every polled vendor."""

    url: str = ""  # empty = the vendor's own
    poll_s: Seconds = 3600.0  # how often each symbol is asked for
    per_second: Requests = 0  # limits of the key, over all feeds and processes; 0 = none
    per_minute: Requests = 0
    per_day: Requests = 0  # in any 24 hours
    rename: dict[str, str] = {}  # the vendor's symbol -> the symbol of the records
    session: str = "always"  # whose hours these are: asked for and missed only while the market is open
    stale_factor: Annotated[float, Meta(ge=1)] = 4.0  # times the longest pause between news lately
    timeout_s: Seconds = 30.0  # of one request
    tls_verify: bool = True
    ca_file: str = ""
    headers: dict[str, str] = {}


@dataclass
class Job:
    """One thing that is asked for again and again.

    Attributes:
        symbol: the vendor's name of it.
        moves: while the market is open every answer has something new; so one that has not is silence.
        due_ns: when it is asked for next.
        offset: how much of a list that comes in parts has been had.
        history: what comes is what there was before the feed.
        refused: what the vendor says of it, if it does not serve it.
        answered_ns: when it was answered last; 0 = never.
        was_open: the market was open then.
    """

    symbol: str
    instrument_id: int
    kind: RecordType
    interval_s: int = 0
    moves: bool = False
    due_ns: int = 0
    offset: int = 0
    history: bool = False
    refused: str = ""
    answered_ns: int = 0
    was_open: bool = False

    @property
    def name(self) -> str:
        """For people, and of its series: "MSFT bar 60 s"."""
        length = f" {self.interval_s} s" if self.interval_s else ""
        return f"{self.symbol} {TYPE_NAMES[self.kind]}{length}"


class Request(NamedTuple):
    """One GET. Neither is ever shown: the key may be in both."""

    url: str
    query: dict[str, str]


class Vendor(Protocol):
    """See the module. `headers` go with every request."""

    NAME: str
    SOURCE: Source
    VENUE: bytes
    options: PolledOptions
    jobs: list[Job]
    headers: dict[str, str]

    @property
    def key(self) -> ApiKey | None:
        """What is kept out of everything that is shown."""

    def request(self, job: Job) -> Request:
        """What to ask for."""

    def read(self, job: Job, status: int, body: bytes, now_ns: int) -> Observations:
        """What has come; raises VendorError where that is no observation."""

    def known_by(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and vintages of records that were published before, as `read` gave them."""


def limits_of(options: PolledOptions) -> list[Limit]:
    """The limits of the options; a zero is none."""
    asked = (
        (options.per_second, SECOND_S),
        (options.per_minute, MINUTE_S),
        (options.per_day, DAY_S),
    )
    return [Limit(requests, period_s) for requests, period_s in asked if requests]


def check_vendor(spec: FeedSpec, options: PolledOptions, types: dict[str, str]) -> tuple[str, ...]:
    """Check what all vendors have in common. Returns the feed's data types, by default the first of `types`.

    `types`: data type -> a word on it, for the error message. SettingsError names what can't work.
    """
    if not spec.symbols:
        raise SettingsError(f"feed {spec.name}: symbols: name those of {spec.source} that are wanted")
    chosen = spec.data_types or (next(iter(types)),)
    for name in chosen:
        if name not in types:
            raise SettingsError(
                f"feed {spec.name}: data type {name!r} is not to be had from {spec.source}{nearest(name, types)}"
            )
    if options.url:
        check_url(spec, options.url)
    return tuple(dict.fromkeys(chosen))


def check_url(spec: FeedSpec, url: str) -> None:
    """Keys go over TLS, or stay on this host. SettingsError if not."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise SettingsError(
            f"feed {spec.name}: options.url begins with https:// (http:// is for this host alone: keys are secret)"
        )
    if parts.query or parts.fragment or parts.username:
        raise SettingsError(f"feed {spec.name}: options.url has no query, fragment or user")


def make_jobs(context: SourceContext, options: PolledOptions, kinds: list[tuple[RecordType, int, bool]]) -> list[Job]:
    """A job for each symbol and each (record type, interval in s, moves)."""
    return [
        Job(symbol, context.intern(options.rename.get(symbol, symbol)), kind, interval_s, moves)
        for symbol in dict.fromkeys(context.spec.symbols)
        for kind, interval_s, moves in kinds
    ]


def refuse_keys_in_options(spec: FeedSpec, variable: str) -> None:
    """A key that is written in the options must not be taken, even where somebody would understand it."""
    known: Any = ("api_key", "apikey", "key", "token")
    for name in known:
        if name in spec.options:
            raise SettingsError(
                f"feed {spec.name}: options.{name}: keys are not written in options; set {variable} in the environment "
                "of the engine, or another variable that options.key_variable names"
            )
