"""Options of source "fix", checked: who talks to whom, where, how, and with which credentials.

Made into what workers/sources/fix.py works with. Passwords come from the environment (where the control process puts
systemd credentials, too), never from the options, and stand in no message.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from workers.errors import SettingsError
from workers.fix_requests import TYPES
from workers.source import nearest, read_options
from workers.spec import FeedSpec

log = logging.getLogger("fix")

DEFAULT_TYPES: Final = ("trade", "quote")
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
CompId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x21-\x7e][\x20-\x7e]*$")]


class FixOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "fix"."""

    host: Annotated[str, Meta(min_length=1)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    sender: CompId  # SenderCompID: us
    target: CompId  # TargetCompID: the venue
    sender_sub: Annotated[str, Meta(max_length=64)] = ""
    target_sub: Annotated[str, Meta(max_length=64)] = ""
    version: Literal["FIX.4.2", "FIX.4.4"] = "FIX.4.4"
    login: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{0,32}$")] = ""  # name under which user and password are found
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)] = 30  # HeartBtInt
    reset_seq_num: bool = False  # ResetSeqNumFlag: both sides begin from 1 at every logon
    tls: bool = False
    tls_verify: bool = True
    ca_file: str = ""  # certificates to trust instead of the system's
    depth: Annotated[int, Meta(ge=0, le=10_000)] | None = None  # MarketDepth; 0 = the full book, 1 = the best prices
    updates: Literal["incremental", "full"] = "incremental"  # MDUpdateType
    exchange: Annotated[str, Meta(max_length=32)] = ""  # SecurityExchange of the symbols
    code: Annotated[str, Meta(max_length=8)] = "FIX"  # venue of records whose messages name none
    rename: dict[str, str] = {}  # the venue's symbol -> the symbol of the records
    session: Literal["always", "us-equities"] = "always"  # when silence means nothing
    connect_s: Seconds = 10.0
    login_s: Seconds = 10.0
    resend_s: Seconds = 5.0  # how long messages that were asked for again are waited for, three times
    first_data_s: Seconds = 60.0
    max_held: Annotated[int, Meta(ge=1, le=1 << 20)] = 4096  # messages kept behind a gap
    stale_factor: Annotated[float, Meta(ge=1)] = 8.0
    stale_floor_s: Seconds = 10.0
    stale_s: Seconds = 30.0
    latency_floor_ms: Annotated[float, Meta(ge=0)] = 50.0
    max_message_bytes: Annotated[int, Meta(ge=1024, le=1 << 26)] = 1 << 20


def check(spec: FeedSpec) -> tuple[FixOptions, tuple[str, ...]]:
    """The options and the data types of a feed. SettingsError names what can't work."""
    options = read_options(spec, FixOptions)
    if find_spec("simplefix") is None:
        raise SettingsError(f"feed {spec.name}: source 'fix' needs simplefix: pip install 'tickengine[fix]'")
    types = spec.data_types or DEFAULT_TYPES
    for name in types:
        if name not in TYPES:
            raise SettingsError(f"feed {spec.name}: data type {name!r} is not to be had over FIX{nearest(name, TYPES)}")
    if not spec.symbols:
        raise SettingsError(f"feed {spec.name}: symbols: name those of the venue that are wanted")
    for symbol in spec.symbols:
        if "\x01" in symbol or len(symbol.encode()) > 32:
            raise SettingsError(f"feed {spec.name}: symbols: {symbol!r} is longer than 32 bytes or holds a separator")
    return options, types


def depth_of(options: FixOptions, types: tuple[str, ...]) -> int:
    """MarketDepth: as asked for, else the full book where levels are wanted and the best prices where not."""
    if options.depth is not None:
        return options.depth
    return 0 if "level2" in types else 1


def variables(login: str) -> tuple[str, str]:
    """The environment variables that have a login's user name and password."""
    name = re.sub(r"[^A-Z0-9]", "_", login.upper())
    return f"TICKENGINE_FIX_{name}_USERNAME", f"TICKENGINE_FIX_{name}_PASSWORD"


def find_login(spec: FeedSpec, options: FixOptions, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """User name and password, "" = none. SettingsError: a login is named and neither is there."""
    if not options.login:
        return "", ""
    user, password = (env.get(name, "") for name in variables(options.login))
    if not user and not password:
        names = " and ".join(variables(options.login))
        raise SettingsError(
            f"feed {spec.name}: options.login is {options.login!r}: set {names}, or the systemd credentials "
            f"fix_{options.login.lower()}_username and fix_{options.login.lower()}_password"
        )
    if "\x01" in user + password:
        raise SettingsError(f"feed {spec.name}: options.login: user name or password hold a separator")
    return user, password


def tls_of(spec: FeedSpec, options: FixOptions) -> ssl.SSLContext | None:
    """None = no TLS. Verified unless the feed says otherwise."""
    if not options.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"feed {spec.name}: options.ca_file {options.ca_file!r}: {error}") from None
    if not options.tls_verify:
        log.warning("feed %s: TLS certificates are not verified (tls_verify = false)", spec.name)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
