from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from typing_extensions import Buffer

from workers.decoders.protocol import Counters

REASONS: tuple[str, ...]

class NativeDecoder:
    NAMES: ClassVar[Mapping[int, str] | None]
    VENUE: ClassVar[bytes]
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
    def feed(self, buffer: Buffer, frames: np.ndarray) -> None: ...
    def feed_message(self, message: bytes, ts_receive: int, port: int = 0) -> None: ...
    def decode(self, out: np.ndarray) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def gaps(self) -> int: ...
    @property
    def counters(self) -> Counters: ...
