from workers.decoders._decoder import NativeDecoder

CHANNELS: tuple[str, ...]

def parse_time(text: str) -> int: ...

class CoinbaseDecoder(NativeDecoder): ...
