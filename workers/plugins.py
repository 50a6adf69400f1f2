"""Which sources other packages bring: entry points of the group `tickengine.sources`.

A package names a class there; the name is what feeds, HTTP and records call the source. Looked up only when a feed
names a source that is not built in, or to list them: an engine without plug-ins never scans what is installed. Nothing
here imports a plug-in; that is done in the process that hosts its feed (workers/sources/hosted.py). Of this folder
`engine` imports only this module, `workers.spec` and `workers.points`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final, NamedTuple

from shm.layout import Source
from workers.source import SOURCES

GROUP: Final = "tickengine.sources"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{1,31}")
_TAKEN: Final = {*SOURCES, *(source.name.lower() for source in Source), "plugin"}


class Plugin(NamedTuple):
    """One that is installed. `refused` says why it can't be used; "" = it can."""

    name: str
    entry: EntryPoint
    package: str  # and its version
    refused: str


def is_built_in(name: str) -> bool:
    """Whether the name is the engine's own: no plug-in can have it."""
    return name in _TAKEN


def installed() -> list[Plugin]:
    """Every plug-in that a package on the path brings, by name; those that can't be used too."""
    return _listed(entry_points(group=GROUP))


def find(name: str) -> Plugin | None:
    """The plug-in of that name; None if there is none, or the source is built in."""
    if name in SOURCES:
        return None
    return next(iter(_listed(entry_points(group=GROUP, name=name))), None)


def _listed(entries: Iterable[EntryPoint]) -> list[Plugin]:
    found: dict[str, Plugin] = {}
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package"
        known = found.get(entry.name)
        if known is not None and known.entry.value == entry.value:
            continue  # one installation that is on the path twice
        refused = _why_not(entry.name)
        if known is not None:
            refused = f"{known.package} and {package} both bring a source {entry.name!r}: uninstall one"
        found[entry.name] = Plugin(entry.name, entry, package, refused)
    return list(found.values())


def _why_not(name: str) -> str:
    if name in _TAKEN:
        return f"{name!r} is a name of the engine's own; the package must choose another"
    if not _NAME.fullmatch(name):
        return f"{name!r} is no name for a source: 2 to 32 of a-z, 0-9, - and _, a letter first"
    return ""
