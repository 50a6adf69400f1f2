"""Reads the configuration: default < TOML file < environment < command line, with an error that helps.

`load` is called by the command line, once; everything else takes the finished, immutable `Config` (engine/settings.py),
whose `origins` say for each key where its value came from. An unknown key is an error that suggests the nearest name.
It reads one file; it looks at no network, no shared memory, no secret.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Meta, Struct

from engine.errors import ConfigError
from engine.feed_settings import FeedSection
from engine.settings import Config
from engine.stores import check_addresses

SECTIONS: Final[dict[str, type[Struct]]] = {
    item.name: item.type for item in msgspec.structs.fields(Config) if item.name not in ("feeds", "origins")
}

# Environment variable -> the key that it sets. The names are those of the HTTP API document's list.
ENVIRONMENT: Final[dict[str, str]] = {
    "MARKETDATA_WORKERS": "workers.ingest",
    "MARKET_DATA_CACHE_SIZE": "cache.records_per_instrument",
    "DATA_RETENTION_HOURS": "storage.retention_hours",
    "MAX_SYMBOLS_TRACKED": "cache.max_symbols",
    "FEED_UPDATE_INTERVAL_MS": "simulate.rate",
    "LATENCY_ALERT_THRESHOLD_MS": "health.latency_alert_ms",
    "LOW_LATENCY_MODE": "engine.low_latency",
    "M4_MAX_OPTIMIZED": "placement.policy",
    "ENABLE_CPU_OPTIMIZATION": "placement.policy",
    "HARDWARE_PLATFORM": "engine.hardware_platform",
    "OPENBLAS_NUM_THREADS": "engine.math_threads",
    "OMP_NUM_THREADS": "engine.math_threads",
    "MARKETDATA_MAX_MEMORY": "engine.max_memory",
    "MARKETDATA_MAX_CPU": "placement.max_cores",
}

GATEWAY_BELOW_HTTP: Final = 200  # ports: 8600 beside 8800

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def load(path: Path | str | None, env: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration, checked.

    Args:
        path: TOML file, or None.
        env: usually `os.environ`; only the names in ENVIRONMENT are looked at.
        overrides: "section.key" -> value, from command-line options; goes before everything. Text is converted.

    Without a file, and with no feed from anywhere, the simulated feed is switched on.

    Raises:
        ConfigError: names file or variable, key, value and what is allowed.
    """
    draft = _Draft()
    if path is not None:
        draft.take_file(Path(path))
    for variable in ENVIRONMENT:
        if env.get(variable, "") != "":
            draft.take_variable(variable, env[variable])
    for key, value in (overrides or {}).items():
        draft.take(key, value, "the command line", strict=False)
    if path is None and not draft.has_feeds() and "simulate.enabled" not in draft.origins:
        draft.take("simulate.enabled", True, "default: nothing else to run", strict=True)
    config = draft.finish()
    _check_together(config)
    return config


@dataclass
class _Draft:
    """Values as they come in, each checked at once so that the error can name where it stands."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    feeds: tuple[FeedSection, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)

    def take_file(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                document = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        for section, content in document.items():
            if section == "feeds":
                self.feeds = _read_feeds(content, str(path))
                self.origins["feeds"] = str(path)
            elif section not in SECTIONS:
                raise ConfigError(f"{path}: unknown section [{section}]{_nearest(section, [*SECTIONS, 'feeds'])}")
            elif not isinstance(content, dict):
                raise ConfigError(f"{path}: {section} must be a section, [{section}], but is a value")
            else:
                for name, value in content.items():
                    self.take(f"{section}.{name}", value, str(path), strict=True)

    def take_variable(self, variable: str, text: str) -> None:
        key = ENVIRONMENT[variable]
        where = f"environment variable {variable}"
        value: Any = text
        if key == "placement.policy":
            on = _truth(text, where)
            if variable == "M4_MAX_OPTIMIZED" and not on:
                return  # says that the machine is another one, not that nothing shall be pinned
            value = "auto" if on else "none"
        elif variable == "FEED_UPDATE_INTERVAL_MS":
            value = 1000.0 / _interval_ms(text, where)
        elif variable == "MARKETDATA_MAX_CPU" and text.strip().endswith("%"):
            value = _number(text.strip()[:-1], where) / 100
        self.take(key, value, where, strict=False)

    def take(self, key: str, value: Any, where: str, *, strict: bool) -> None:
        section, _, name = key.partition(".")
        if section not in SECTIONS:
            raise ConfigError(f"{where}: unknown section [{section}]{_nearest(section, list(SECTIONS))}")
        fields = {item.name: item for item in msgspec.structs.fields(SECTIONS[section])}
        if name not in fields:
            raise ConfigError(f"{where}: unknown key {name!r} in [{section}]{_nearest(name, list(fields))}")
        self.values.setdefault(section, {})[name] = _convert(
            value, fields[name], f"{where}: [{section}]", strict=strict
        )
        self.origins[key] = where

    def has_feeds(self) -> bool:
        return bool(self.feeds or self.values.get("replay", {}).get("files"))

    def finish(self) -> Config:
        sections: dict[str, Any] = {name: SECTIONS[name](**values) for name, values in self.values.items()}
        return Config(**sections, feeds=self.feeds, origins=self.origins)


def _convert(value: Any, item: msgspec.structs.FieldInfo, where: str, *, strict: bool) -> Any:
    given = value
    if not strict and isinstance(value, str) and bare_type(item.type) is bool:
        value = _truth(value, f"{where} {item.name}")
    if isinstance(value, bool) and bare_type(item.type) is not bool:
        raise ConfigError(f"{where} {item.name} = {given!r}: allowed is {allowed(item.type)}{_default_text(item)}")
    try:
        return msgspec.convert(value, item.type, strict=strict)
    except msgspec.ValidationError as error:
        reason = str(error)
        raise ConfigError(
            f"{where} {item.name} = {given!r}: {reason[0].lower()}{reason[1:]}; "
            f"allowed is {allowed(item.type)}{_default_text(item)}"
        ) from error


def _read_feeds(content: Any, where: str) -> tuple[FeedSection, ...]:
    if not isinstance(content, list) or not all(isinstance(feed, dict) for feed in content):
        raise ConfigError(f"{where}: feeds must be tables, each under [[feeds]]")
    fields = {item.name: item for item in msgspec.structs.fields(FeedSection)}
    feeds = []
    for number, table in enumerate(content, 1):
        at = f"{where}: [[feeds]] number {number}"
        for name in table:
            if name not in fields:
                raise ConfigError(f"{at}: unknown key {name!r}{_nearest(name, list(fields))}")
        for name, item in fields.items():
            if item.required and name not in table:
                raise ConfigError(f"{at}: {name} is missing")
        feeds.append(
            FeedSection(**{name: _convert(value, fields[name], at, strict=True) for name, value in table.items()})
        )
    return tuple(feeds)


def _check_together(config: Config) -> None:
    """What no single key can tell."""
    depth = config.rings.depth_slots
    if depth & (depth - 1):
        raise ConfigError(
            f"[rings] depth_slots = {depth}: must be a power of two, the next is {1 << depth.bit_length()}"
        )
    if config.replay.speed != "max" and float(config.replay.speed) <= 0:
        raise ConfigError(f'[replay] speed = {config.replay.speed!r}: must be greater than 0, or "max"')
    names = [feed.name for feed in config.feeds]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"[[feeds]]: two feeds are named {min(twice)!r}; names must differ")
    last_port = config.zmq.base_port + 31 + config.workers.fanout - 1
    if config.workers.fanout > 10 or last_port > 65535:
        raise ConfigError(f"[zmq] base_port = {config.zmq.base_port}: the last port would be {last_port}")
    taken = {
        config.zmq.base_port + offset + shard for offset in (1, 11, 21, 31) for shard in range(config.workers.fanout)
    }
    if config.http.port in taken:
        raise ConfigError(f"[http] port = {config.http.port} is also a ZeroMQ port; move it or [zmq] base_port")
    check_addresses(config)
    if config.gateway.enabled:
        _check_gateway(config, taken)


def _check_gateway(config: Config, zmq_ports: set[int]) -> None:
    port = gateway_port(config)
    if port < 1:
        raise ConfigError(f"[http] port = {config.http.port}: {GATEWAY_BELOW_HTTP} less is no port; set [gateway] port")
    if port == config.http.port or port in zmq_ports:
        other = "the HTTP port" if port == config.http.port else "a ZeroMQ port"
        raise ConfigError(f"[gateway] port: {port} is also {other}; set another")


def gateway_port(config: Config) -> int:
    """Where WebSocket clients connect: as set, or a fixed distance below the HTTP port."""
    return config.gateway.port or config.http.port - GATEWAY_BELOW_HTTP


def is_loopback(host: str) -> bool:
    """Whether an address given in the configuration is reached from this host alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def bare_type(annotation: Any) -> Any:
    """The type inside `Annotated[...]`, however often wrapped."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def metas(annotation: Any) -> list[Meta]:
    """The msgspec constraints of an annotation."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return []
    return [item for item in typing.get_args(annotation)[1:] if isinstance(item, Meta)]


def allowed(annotation: Any) -> str:
    """What a key may be, for people: "a number from 1 to 65535", 'one of "auto", "none"'."""
    bare = bare_type(annotation)
    if typing.get_origin(bare) is typing.Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(bare))
    if bare is bool:
        return "true or false"
    if bare in (int, float):
        kind = "a whole number" if bare is int else "a number"
        low = max((meta.ge for meta in metas(annotation) if meta.ge is not None), default=None)
        high = min((meta.le for meta in metas(annotation) if meta.le is not None), default=None)
        if low is not None and high is not None:
            return f"{kind} from {low:g} to {high}" if isinstance(high, int) else f"{kind} from {low:g} to {high:g}"
        return f"{kind} of at least {low:g}" if low is not None else kind
    if bare is str:
        pattern = next((meta.pattern for meta in metas(annotation) if meta.pattern), None)
        known = {r"^[a-z0-9-]{1,16}$": "1 to 16 of a-z, 0-9 and -", r"^(max|\d+(\.\d+)?)$": 'a number, or "max"'}
        if pattern is not None:
            return known.get(pattern, 'a size such as "512MB" or "4GiB"')
        return "text"
    if typing.get_origin(bare) is tuple:
        return f"a list, each {allowed(typing.get_args(bare)[0])}"
    return "a table"


def _default_text(item: msgspec.structs.FieldInfo) -> str:
    if item.default is msgspec.NODEFAULT:
        return ""
    return f" (default {msgspec.json.encode(item.default).decode()})"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _truth(text: str, where: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE or lowered in _FALSE:
        return lowered in _TRUE
    raise ConfigError(f"{where} = {text!r}: must be true or false (also 1/0, yes/no, on/off)")


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{where} = {text!r}: must be a number") from None


def _interval_ms(text: str, where: str) -> float:
    interval = _number(text, where)
    if not 1e-6 <= interval <= 3.6e6:
        raise ConfigError(f"{where} = {text!r}: must be a number of milliseconds from 0.000001 to 3600000")
    return interval
