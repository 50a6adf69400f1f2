from collections.abc import Callable
from typing import Any

from workers.decoders._decoder import NativeDecoder

class Bi5Decoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        symbol: str,
        begin_ns: int,
        *,
        units: float = ...,
        candles: bool = ...,
        **stamp: Any,
    ) -> None: ...

class TrueFxDecoder(NativeDecoder):
    def __init__(self, intern: Callable[[str], int], symbol: str, **stamp: Any) -> None: ...

class LobsterDecoder(NativeDecoder):
    def __init__(self, intern: Callable[[str], int], symbol: str, midnight_ns: int, **stamp: Any) -> None: ...
