"""What a WebSocket venue speaks: where to connect, how to subscribe, what its answers mean, how a loss is made good.

A dialect is sans-I/O: messages in, decisions out. It owns the venue's decoder, which turns data messages into records;
`control` picks out the few messages that are about the connection. Used by workers/sources/websocket.py, which owns
sockets and sessions; a new venue is a subclass of `Dialect` and a line in VENUES there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import msgspec
from msgspec import Meta

from shm.layout import Source
from workers.decoders.protocol import Decoder
from workers.errors import SettingsError
from workers.source import nearest
from workers.spec import FeedSpec
from workers.wire_log import secrets_of

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


# What reading a message may raise: it is not JSON, not of that shape, not UTF-8, or nested deeper than anything sane.
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# And the venue's symbol: in a capture, the connection over which a snapshot was had.
SNAPSHOT_OF: Final = "snapshot "


class VenueOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "websocket" that every venue has."""

    venue: str
    url: str = ""  # of the WebSocket; empty = the venue's own
    tls_verify: bool = True
    ca_file: str = ""  # certificates to trust instead of the system's
    headers: dict[str, str] = {}  # more headers of the handshake
    rename: dict[str, str] = {}  # the venue's symbol -> the symbol of the records
    session: str = "always"  # whose hours: while that market is closed silence means nothing
    connect_s: Seconds = 10.0
    acknowledge_s: Seconds = 15.0
    first_data_s: Seconds = 60.0  # from subscribing to the first record
    message_s: Seconds = 60.0  # longest silence of the connection, pongs included
    ping_s: Seconds = 15.0  # a ping after so long without a message
    stale_factor: Annotated[float, Meta(ge=1)] = 8.0  # times an instrument's longest pause lately
    stale_floor_s: Seconds = 10.0  # no instrument is missed sooner
    stale_s: Seconds = 30.0  # a connection all of whose instruments are silent is made again after so long
    latency_floor_ms: Annotated[float, Meta(ge=0)] = 50.0  # growing by less is never warned of
    max_message_bytes: Annotated[int, Meta(ge=1024, le=1 << 28)] = 16 << 20


class ControlKind(enum.Enum):
    """What a message about the connection says."""

    ACKNOWLEDGED = "acknowledged"  # `keys` of requests that were taken
    LOGGED_IN = "logged in"
    REFUSED = "refused"  # `keys` of requests that were not; none = the connection as such
    COMPLAINT = "complaint"  # an error that leaves the connection as it is
    ALIVE = "alive"  # heartbeats, pongs, system status
    GOING = "going"  # the venue is about to close this connection


class Control(NamedTuple):
    """One such message."""

    kind: ControlKind
    keys: tuple[str, ...] = ()
    text: str = ""
    retry_after_s: float = 0.0


ALIVE: Final = Control(ControlKind.ALIVE)


class Connection(NamedTuple):
    """What one connection carries."""

    url: str
    streams: tuple[str, ...]


class Request(NamedTuple):
    """A message to the venue, and the keys by which its answers are known; no keys = it is not answered.

    `secret`: what it says must not be written down.
    """

    message: bytes
    keys: tuple[str, ...] = ()
    secret: bool = False


@dataclass(frozen=True)
class Recovery:
    """What to do about a gap: make the connection again (and why), send requests, or nothing."""

    reconnect: str = ""
    requests: tuple[Request, ...] = ()


NO_RECOVERY: Final = Recovery()


class Dialect:
    """Base of the venues. Class attributes say what the venue is like; `streams` and the rest are for them to define.

    Attributes:
        TYPES: data types that the venue has, and the name of the stream each is had from.
        DEFAULT_TYPES: what a feed gets that names no data types.
    """

    OPTIONS: ClassVar[type[VenueOptions]] = VenueOptions
    SOURCE: ClassVar[Source] = Source.WEBSOCKET  # of the records
    URL: ClassVar[str] = ""
    CODE: ClassVar[bytes] = b""
    TYPES: ClassVar[dict[str, str]] = {}
    DEFAULT_TYPES: ClassVar[tuple[str, ...]] = ("trade", "quote")
    ACKNOWLEDGES: ClassVar[bool] = True
    STREAMS_PER_CONNECTION: ClassVar[int] = 200
    REQUEST_GAP_S: ClassVar[float] = 0.0  # between two requests on one connection
    REPEAT_S: ClassVar[float] = 0.0  # the subscription is sent again each time so long has passed; 0 = never

    decoder: Decoder

    def __init__(self, spec: FeedSpec, options: VenueOptions, intern: Callable[[str], int]) -> None:
        """Check the feed's settings. SettingsError names what can't work."""
        self.spec = spec
        self.options = options
        self.types = spec.data_types or self.DEFAULT_TYPES
        for name in self.types:
            if name not in self.TYPES:
                there = nearest(name, self.TYPES)
                raise SettingsError(
                    f"feed {spec.name}: data type {name!r} is not to be had from {options.venue}{there}"
                )
        if not spec.symbols:
            raise SettingsError(f"feed {spec.name}: symbols: name those of {options.venue} that are wanted")
        self._numbers: dict[int, str] = {}  # instrument id -> the venue's symbol

        def intern_renamed(symbol: str) -> int:
            name = options.rename.get(symbol, symbol)
            number = intern(name)
            self._numbers[number] = symbol
            return number

        self.intern = intern_renamed
        self.stamp: dict[str, Any] = {"source": int(self.SOURCE), "feed_id": spec.feed_id}

    @property
    def needs_login(self) -> bool:
        """Whether a login comes before the subscription."""
        return False

    @property
    def dropped(self) -> int:
        """Messages that were held and let go of."""
        return 0

    @property
    def fetches(self) -> bool:
        """Whether it wants snapshots over HTTP."""
        return False

    @property
    def secrets(self) -> list[str]:
        """What must not be written down, whichever message brings it."""
        return secrets_of(self.url, self.options.headers.values())

    def symbol_of(self, instrument_id: int) -> str:
        """The venue's symbol of an instrument that has been met; "" if it has not."""
        return self._numbers.get(instrument_id, "")

    @property
    def url(self) -> str:
        """Where to connect."""
        return self.options.url or self.URL

    def streams(self) -> list[str]:
        """Everything to subscribe to, in the venue's words."""
        raise NotImplementedError

    def connections(self) -> list[Connection]:
        """The streams, shared out so that no connection has more than the venue allows."""
        streams, most = self.streams(), self.STREAMS_PER_CONNECTION
        return [Connection(self.url, tuple(streams[at : at + most])) for at in range(0, len(streams), most)]

    def login(self) -> list[Request]:
        """What to send for a login."""
        return []

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """What to send to subscribe."""
        raise NotImplementedError

    def opened(self, connection: int) -> None:
        """A connection was made (again): numbering and books of its streams begin anew."""

    def control(self, message: bytes) -> Control | None:
        """What a message says about the connection; None = nothing, it is data. The decoder gets every message too."""
        raise NotImplementedError

    def after_gap(self, message: bytes, instrument_id: int, resumed: int) -> Recovery:  # noqa: ARG002 -- for subclasses
        """What makes a gap good that the decoder found at `message`, with which numbering goes on at `resumed`.

        `instrument_id` is NO_INSTRUMENT for a gap in the connection's own numbering.
        """
        return NO_RECOVERY

    # Books whose first picture is had over HTTP; venues without that leave these as they are.

    def hold(self, message: bytes, ts_receive: int, connection: int) -> bool:  # noqa: ARG002 -- for subclasses
        """Whether the message must wait for its book's snapshot; then the dialect keeps it."""
        return False

    def wanted_snapshot(self, now_ns: int) -> tuple[str, str] | None:  # noqa: ARG002 -- for subclasses
        """(symbol, URL) of a snapshot to fetch now; given once."""
        return None

    def snapshot_asked(self, symbol: str) -> None:
        """A capture says that this snapshot was asked for now."""

    def snapshot(self, symbol: str, body: bytes, now_ns: int) -> list[tuple[bytes, int, int]]:  # noqa: ARG002
        """A snapshot has come: messages that can go to the decoder now, as (message, ts_receive, connection)."""
        return []

    def snapshot_failed(self, symbol: str, now_ns: int, retry_after_s: float) -> None:
        """It could not be had; asked for again after a while."""
