from collections.abc import Callable
from datetime import date

from workers.decoders._decoder import NativeDecoder

def midnight_ns(day: date) -> int: ...
def message_length(message_type: int) -> int: ...

class ItchDecoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        packets: bool = True,
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
