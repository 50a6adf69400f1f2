from collections.abc import Callable
from typing import Any

from workers.decoders._decoder import NativeDecoder
from workers.decoders.protocol import Batch, FramingError

RTYPES: dict[int, str]

class DbnSymbols:
    dataset: str
    def load(self, metadata: Any) -> None: ...
    def set(self, number: int, symbol: str) -> None: ...
    def find(self, number: int, at_ns: int) -> tuple[str, int, int]: ...

class DbnReader:
    symbols: DbnSymbols
    metadata: Any
    version: int
    schema: str
    def __init__(self, symbols: DbnSymbols | None = None, *, fragment: bool = False, version: int = 0) -> None: ...
    @property
    def error(self) -> FramingError | None: ...
    def feed(self, data: bytes) -> Batch: ...
    def finish(self) -> int: ...
    def counts(self) -> dict[str, int]: ...

class DbnDecoder(NativeDecoder):
    symbols: DbnSymbols
    def __init__(
        self,
        intern: Callable[[str], int],
        symbols: DbnSymbols | None = None,
        *,
        max_orders: int = ...,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
