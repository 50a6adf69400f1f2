from workers.decoders._messages import MessageDecoder

CHANNELS: tuple[str, ...]

def parse_time(text: str) -> int: ...

class CoinbaseDecoder(MessageDecoder): ...
