from collections.abc import Callable

from workers.decoders._decoder import NativeDecoder

def is_packet(payload: bytes) -> bool: ...
def market_depth(message: bytes) -> int: ...

class Mdp3Decoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        book: bool = False,
        orders: bool = False,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
