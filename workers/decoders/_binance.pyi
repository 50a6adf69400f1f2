from collections.abc import Callable

from workers.decoders._decoder import NativeDecoder

class BinanceDecoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        symbol: str | None = None,
        native: bool = True,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
