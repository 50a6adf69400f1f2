from collections.abc import Callable
from datetime import date

from workers.decoders._decoder import NativeDecoder

def is_pitch(payload: bytes) -> bool: ...

class PitchDecoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        session_date: date | None = None,
        max_orders: int = ...,
        book: bool = False,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
    @property
    def live_orders(self) -> int: ...
