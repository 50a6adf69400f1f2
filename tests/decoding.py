"""Messages through a native decoder, and its records in short: for tests of what venues' messages become."""

from __future__ import annotations

from typing import Any

import numpy as np

from shm.errors import BadArgument
from shm.layout import Action, RecordType, Side, concatenate, empty
from workers.decoders._decoder import NativeDecoder
from workers.decoders.protocol import many_frames


class Names:
    """An intern() that keeps what it was asked for, and refuses some names."""

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        self.numbers: dict[str, int] = {}
        self.calls: list[str] = []
        self._refused = refused

    def __call__(self, name: str) -> int:
        self.calls.append(name)
        if name in self._refused:
            raise BadArgument(name)
        return self.numbers.setdefault(name, len(self.numbers))


def collect(decoder: NativeDecoder, size: int = 64) -> np.ndarray:
    """All that it makes of what it was fed, asked for `size` records at a time."""
    batches = [empty(0)]
    while True:
        out = empty(size)
        count = decoder.decode(out)
        if not count:
            return concatenate(batches)
        batches.append(out[:count])


def drain(decoder: NativeDecoder, messages: list[bytes], *, ts_receive: int = 10, size: int = 64) -> np.ndarray:
    """Feed it messages, and collect."""
    decoder.feed(*many_frames(messages, [ts_receive] * len(messages)))
    return collect(decoder, size)


def shown(records: np.ndarray) -> list[tuple[Any, ...]]:
    """(type, side, price, size, action or None) of trades and levels."""
    found: list[tuple[Any, ...]] = []
    for record in records:
        kind = RecordType(record["record_type"])
        action = Action(record["action"]) if kind == RecordType.LEVEL2 else None
        found.append((kind, Side(record["side"]), float(record["price"]), float(record["size"]), action))
    return found
