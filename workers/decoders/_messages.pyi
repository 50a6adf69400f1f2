from collections.abc import Callable

from workers.decoders._decoder import NativeDecoder

class MessageDecoder(NativeDecoder):
    def __init__(
        self,
        intern: Callable[[str], int],
        *,
        source: int = 0,
        feed_id: int = 0,
        flags: int = 0,
        venue: bytes | None = None,
    ) -> None: ...
    def message(self, text: bytes, ts_receive: int, connection: int) -> None: ...
    def seen(self, kind: int) -> None: ...
    def duplicate(self) -> None: ...
    def heartbeat(self) -> None: ...
    def trade(
        self,
        symbol: str,
        ts_event: int,
        ts_receive: int,
        price: float,
        size: float,
        trade_id: int = 0,
        side: int = 0,
        flags: int = 0,
    ) -> None: ...
    def tick(
        self,
        symbol: str,
        ts_event: int,
        ts_receive: int,
        price: float,
        size: float,
        volume: float = ...,
        flags: int = 0,
        venue: bytes = b"",
    ) -> None: ...
    def quote(
        self,
        symbol: str,
        ts_event: int,
        ts_receive: int,
        bid: float,
        bid_size: float,
        ask: float,
        ask_size: float,
        sequence: int = 0,
        flags: int = 0,
    ) -> None: ...
    def level(
        self,
        symbol: str,
        ts_event: int,
        ts_receive: int,
        side: int,
        price: float,
        size: float,
        action: int,
        sequence: int = 0,
        flags: int = 0,
        orders: int = 0,
    ) -> None: ...
    def clear(self, symbol: str, ts_event: int, ts_receive: int, sequence: int = 0) -> None: ...
    def bar(
        self,
        symbol: str,
        ts_event: int,
        ts_receive: int,
        first: float,
        high: float,
        low: float,
        close: float,
        volume: float,
        interval_s: int,
        trade_count: int = 0,
    ) -> None: ...
    def end_of_event(self) -> None: ...
    def gap(self, stream: int, first: int, last: int, symbol: str | None, ts_receive: int) -> None: ...
