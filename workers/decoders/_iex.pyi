from collections.abc import Callable

from workers.decoders._decoder import NativeDecoder

class IexDecoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        book: bool = False,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
