"""What the host of a plug-in allows it: options `limits` of its feed, read here and never shown to the plug-in.

Used by workers/sources/hosted.py, and by the ingest worker for the bound on memory, which is the process's.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from workers.errors import SettingsError
from workers.source import nearest
from workers.spec import FeedSpec

KEY: Final = "limits"
_MEGABYTE: Final = 1 << 20


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Option `limits` of a feed whose source is a plug-in."""

    max_rate: Annotated[float, Meta(ge=1, le=100e6)] = 100_000.0  # records/s; more must wait with the plug-in
    max_symbols: Annotated[int, Meta(ge=1, le=65536)] = 4096  # that it may intern
    max_memory_mb: Annotated[int, Meta(ge=0)] = 1024  # that its process may take beside the engine's; 0 = no bound
    open_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0  # for its import
    stale_factor: Annotated[float, Meta(ge=1)] = 8.0  # times an instrument's longest pause lately
    stale_floor_s: Annotated[float, Meta(gt=0)] = 30.0  # no instrument is missed sooner


def read_limits(spec: FeedSpec) -> Limits:
    """The limits of a feed. SettingsError names the key and what it may be."""
    given = spec.options.get(KEY, {})
    known = Limits.__struct_fields__
    for key in given if isinstance(given, dict) else ():
        if key not in known:
            raise SettingsError(f"feed {spec.name}: no option {KEY}.{key}{nearest(str(key), known)}")
    try:
        return msgspec.convert(given, Limits)
    except msgspec.ValidationError as error:
        raise SettingsError(f"feed {spec.name}: options.{KEY}: {error}") from None


def bound_memory(max_memory_mb: int) -> bool:
    """Let this process take so much more memory of its own and no more (Linux); False where that can't be had.

    Beyond it an allocation fails: MemoryError in Python. Shared memory does not count.
    """
    if not max_memory_mb or not sys.platform.startswith("linux"):
        return False
    with open("/proc/self/statm", encoding="ascii") as file:
        taken_bytes = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = taken_bytes + max_memory_mb * _MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    return True
