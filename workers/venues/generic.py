"""A venue that the user describes in the feed's options: what to send, what answers look like, where fields stand.

The options are in workers/sources/WEBSOCKET.md, with an example; shapes of messages are those of
workers/decoders/described.py.
Secrets are named, never written: `${NAME}` in `login` is taken from the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from workers.decoders.described import DescribedDecoder, Shape, conditions, matches, parse_path, pick
from workers.errors import SettingsError
from workers.spec import FeedSpec
from workers.venues.dialect import (
    ALIVE,
    NO_RECOVERY,
    UNREADABLE,
    Control,
    ControlKind,
    Dialect,
    Recovery,
    Request,
    VenueOptions,
)

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TYPES: Final = ("trade", "quote", "level2", "bar")


class GenericOptions(VenueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of venue "generic"."""

    code: Annotated[str, Meta(max_length=8)] = ""  # of the records
    channels: dict[Literal["trade", "quote", "level2", "bar"], str] = msgspec.field(
        default_factory=dict
    )  # data type -> the venue's name of its stream
    subscribe: tuple[str, ...] = ()  # sent for each stream; {symbol} and {channel} are filled in
    login: tuple[str, ...] = ()  # sent before that
    logged_in: dict[str, Any] = msgspec.field(default_factory=dict)  # path -> value of the message that grants it
    acknowledged: dict[str, Any] = msgspec.field(
        default_factory=dict
    )  # path -> value of the message that grants a subscription; {} = there is none
    refused: dict[str, Any] = msgspec.field(
        default_factory=dict
    )  # path -> value of a message that refuses login or subscription
    reason: str = "message"  # path of its text
    alive: dict[str, Any] = msgspec.field(default_factory=dict)  # path -> value of heartbeats
    messages: dict[Literal["trade", "quote", "level2", "bar"], Shape] = msgspec.field(default_factory=dict)
    streams_per_connection: Annotated[int, Meta(ge=1, le=10_000)] = 200
    request_gap_s: Annotated[float, Meta(ge=0, le=60)] = 0.1
    after_gap: Literal["nothing", "reconnect"] = "reconnect"  # if the feed has books


class GenericDialect(Dialect):
    """See the module. A stream is `type:symbol`."""

    OPTIONS = GenericOptions

    def __init__(self, spec: FeedSpec, options: GenericOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        self.TYPES = {str(name): channel for name, channel in options.channels.items()}  # type: ignore[misc]
        self.DEFAULT_TYPES = tuple(options.channels)  # type: ignore[misc]
        self.ACKNOWLEDGES = bool(options.acknowledged)  # type: ignore[misc]
        self.STREAMS_PER_CONNECTION = options.streams_per_connection  # type: ignore[misc]
        self.REQUEST_GAP_S = options.request_gap_s  # type: ignore[misc]
        where = f"feed {spec.name}: options"
        if not options.url:
            raise SettingsError(f"{where}.url: a described venue needs one")
        if not options.channels:
            raise SettingsError(
                f"{where}.channels: name the venue's stream of each data type, such as trade = 'trades'"
            )
        for name in options.channels:
            if name not in options.messages:
                raise SettingsError(f"{where}.messages.{name}: missing; it says where the fields of a {name} stand")
        if options.login and not options.logged_in:
            raise SettingsError(f"{where}.logged_in: missing; it says what the answer to a login looks like")
        super().__init__(spec, options, intern)
        self._generic = options
        self._login = [_filled(spec.name, text) for text in options.login]
        self._logged_in, self._acknowledged, self._refused, self._alive = map(
            conditions, (options.logged_in, options.acknowledged, options.refused, options.alive)
        )
        self._reason = parse_path(options.reason) or ()
        wanted = {name: options.messages[name] for name in self.types}  # type: ignore[index]  # checked above
        self._described = DescribedDecoder(self.intern, wanted, venue=options.code.encode(), **self.stamp)
        self.decoder = self._described
        self._decode = msgspec.json.Decoder().decode

    @property
    def needs_login(self) -> bool:
        """See `Dialect`."""
        return bool(self._login)

    @property
    def secrets(self) -> list[str]:
        """See `Dialect`: also what `${NAME}` in a login stands for."""
        named = [name for text in self._generic.login for name in _VARIABLE.findall(text)]
        return [*super().secrets, *(os.environ.get(name, "") for name in named)]

    def streams(self) -> list[str]:
        """Every data type of a symbol together."""
        return [f"{kind}:{symbol}" for symbol in self.spec.symbols for kind in self.types]

    def login(self) -> list[Request]:
        """As configured."""
        return [Request(text.encode()) for text in self._login]

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """The templates, filled in for each stream. The first acknowledgement stands for all: none says whose it is."""
        requests = []
        for stream in streams:
            kind, _, symbol = stream.partition(":")
            channel = self.TYPES[kind].replace("{symbol}", symbol)
            for template in self._generic.subscribe:
                text = template.replace("{symbol}", symbol).replace("{channel}", channel)
                requests.append(Request(text.encode()))
        if self.ACKNOWLEDGES and requests:
            requests[-1] = requests[-1]._replace(keys=("subscription",))
        return requests

    def opened(self, connection: int) -> None:
        """See `Dialect.opened`."""
        self._described.opened(connection)

    def control(self, message: bytes) -> Control | None:
        """By the configured conditions."""
        if not (self._acknowledged or self._refused or self._logged_in or self._alive):
            return None
        try:
            told = self._decode(message)
        except UNREADABLE:
            return None  # the decoder counts it
        if self._refused and matches(told, self._refused):
            try:
                text = str(pick(told, self._reason))
            except (KeyError, IndexError, TypeError):
                text = message[:120].decode("utf-8", "replace")
            return Control(ControlKind.REFUSED, (), text)
        if self._logged_in and matches(told, self._logged_in):
            return Control(ControlKind.LOGGED_IN)
        if self._acknowledged and matches(told, self._acknowledged):
            return Control(ControlKind.ACKNOWLEDGED, ("subscription",))
        return ALIVE if self._alive and matches(told, self._alive) else None

    def after_gap(self, message: bytes, instrument_id: int, resumed: int) -> Recovery:  # noqa: ARG002
        """Books come whole with a subscription."""
        if "level2" in self.types and self._generic.after_gap == "reconnect":
            return Recovery(reconnect="messages are missing: books begin anew")
        return NO_RECOVERY


def _filled(name: str, text: str) -> str:
    def value(found: re.Match[str]) -> str:
        word = os.environ.get(found[1])
        if word is None:
            raise SettingsError(f"feed {name}: options: the environment has no {found[1]}")
        return word

    return _VARIABLE.sub(value, text)
