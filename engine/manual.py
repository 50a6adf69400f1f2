"""The configuration as a commented TOML file: what `tickengine config` prints.

Every key appears with its meaning, range, default and where its value came from; the output is itself a valid
configuration file that gives the same settings. Pure text: it reads and starts nothing.
"""

from __future__ import annotations

import typing
from typing import Any

import msgspec

from engine.config import ENVIRONMENT, SECTIONS, allowed, metas
from engine.feed_settings import FeedSection
from engine.settings import Config

_FEED_EXAMPLE = """\
# One table per feed; with none, and no --replay, the simulated feed runs.
# [[feeds]]
"""


def render(config: Config) -> str:
    """The effective configuration as commented TOML."""
    lines = [
        "# tickengine configuration: effective values. Durations and sizes carry their unit in the key's name.",
        "",
    ]
    for section, kind in SECTIONS.items():
        lines += [f"# {(kind.__doc__ or '').strip()}", f"[{section}]"]
        values = getattr(config, section)
        for item in msgspec.structs.fields(kind):
            key = f"{section}.{item.name}"
            lines += [f"# {text}" for text in _explain(item, key)]
            origin = config.origins.get(key)
            note = f"  # set by {origin}" if origin else ""
            lines.append(f"{item.name} = {to_toml(getattr(values, item.name))}{note}")
        lines.append("")
    lines.append(_FEED_EXAMPLE.rstrip())
    for item in msgspec.structs.fields(FeedSection):
        lines.append(f"# {item.name}: {describe_key(item.type)}; {allowed(item.type)}")
    for feed in config.feeds:
        lines += ["", "[[feeds]]"]
        for item in msgspec.structs.fields(FeedSection):
            lines.append(f"{item.name} = {to_toml(getattr(feed, item.name))}")
    return "\n".join(lines) + "\n"


def describe_key(annotation: Any) -> str:
    """The description of a key, from its annotation."""
    return next((meta.description for meta in metas(annotation) if meta.description), "")


def _explain(item: msgspec.structs.FieldInfo, key: str) -> list[str]:
    default = item.default if item.default is not msgspec.NODEFAULT else typing.cast(Any, item.default_factory)()
    variables = [name for name, target in ENVIRONMENT.items() if target == key]
    lines = [describe_key(item.type), f"{allowed(item.type)}; default {to_toml(default)}"]
    if variables:
        lines[-1] += f"; environment {', '.join(variables)}"
    return lines


def to_toml(value: Any) -> str:
    """One value in TOML's notation: booleans, numbers, text, lists, inline tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, list | tuple):
        return f"[{', '.join(to_toml(item) for item in value)}]"
    if isinstance(value, dict):
        inside = ", ".join(f"{to_toml(str(key))} = {to_toml(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    raise TypeError(f"{type(value).__name__} has no place in TOML")
