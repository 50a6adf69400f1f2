"""Shared memory of the tick engine: records, rings, instruments, latest values, status. Needs only numpy, posix_ipc.

    import shm

    engine = shm.attach("main")                                   # a running engine, by its name
    for ring, batch in engine.reader().batches():                 # numpy records, in place order, as they come
        print(ring.ring_id, batch["instrument_id"], batch["price"])

Names below are imported when first used, so that a consumer pays for what it takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shm.consumer import Engine, attach
    from shm.errors import ShmError
    from shm.instruments import InstrumentTable
    from shm.latest import LatestTable
    from shm.layout import (
        BAR,
        LEVEL2,
        NEWS,
        QUOTE,
        RECORD,
        STATUS,
        TICK,
        TRADE,
        Flag,
        RecordType,
        Side,
        Source,
        StatusCode,
        empty,
    )
    from shm.ring import RingReader, RingSet, RingWriter
    from shm.status import StatusBlock

_HOME = {
    "shm.consumer": ("Engine", "attach"),
    "shm.errors": ("ShmError",),
    "shm.instruments": ("InstrumentTable",),
    "shm.latest": ("LatestTable",),
    "shm.layout": (
        "BAR",
        "LEVEL2",
        "NEWS",
        "QUOTE",
        "RECORD",
        "STATUS",
        "TICK",
        "TRADE",
        "Flag",
        "RecordType",
        "Side",
        "Source",
        "StatusCode",
        "empty",
    ),
    "shm.ring": ("RingReader", "RingSet", "RingWriter"),
    "shm.status": ("StatusBlock",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BAR",
    "LEVEL2",
    "NEWS",
    "QUOTE",
    "RECORD",
    "STATUS",
    "TICK",
    "TRADE",
    "Engine",
    "Flag",
    "InstrumentTable",
    "LatestTable",
    "RecordType",
    "RingReader",
    "RingSet",
    "RingWriter",
    "ShmError",
    "Side",
    "Source",
    "StatusBlock",
    "StatusCode",
    "attach",
    "empty",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'shm' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
