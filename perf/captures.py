"""Captures large enough to time, made from the captured samples, in a folder that goes with the benchmark.

    dbn        the ES futures MBP-1 file, unpacked, its records repeated
    itch       the captured start of a day (directory messages), then generated order flow on its instruments, repeated
    iex        the TOPS pcap, unpacked, its packets repeated with message numbers that go on
    binance    the trades of the spot capture, unpacked; one pass has 9,757
    bi5        the Dukascopy ticks of a day, unpacked, as if they were of one hour, repeated
    truefx     the USDJPY quotes, repeated
    lobster    the AAPL events and books, repeated

The samples are found at $TICKENGINE_SAMPLES or ../shared/samples. Order flow is generated because the captured ITCH
file ends before trading starts: it never reaches the order table, which is what an ITCH decoder spends its time on.
"""

from __future__ import annotations

import gzip
import lzma
import os
import random
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from perf.errors import PeerMissing, Skipped

_ROOT = Path(__file__).resolve().parent.parent
_ITCH_LIVE_ORDERS = 2000
_ITCH_BLOCK_ORDERS = 10_000
_PCAP_HEADER_BYTES = 24
_PCAP_PACKET_BYTES = 16
_UDP_BYTES = 14 + 20 + 8  # Ethernet, IPv4, UDP


@dataclass(frozen=True)
class CaptureFile:
    """A file to replay and the number of messages in it, counted without our decoders."""

    path: Path
    messages: int


def samples() -> Path:
    """The folder of captured samples. Skipped if there is none."""
    folder = Path(os.environ.get("TICKENGINE_SAMPLES", _ROOT.parent / "shared" / "samples"))
    if not folder.is_dir():
        raise Skipped(f"no captured samples at {folder} (set TICKENGINE_SAMPLES)")
    return folder


def _sample(pattern: str) -> Path:
    found = sorted(samples().glob(pattern))
    if not found:
        raise Skipped(f"no {pattern} among the samples at {samples()}")
    return found[0]


def dbn(folder: Path, copies: int) -> CaptureFile:
    """An uncompressed DBN file with the sample's MBP-1 records `copies` times."""
    try:
        import zstandard
    except ImportError as error:
        raise Skipped(f"zstandard is not here: {error}") from error
    with _sample("dbn/es-futures/*mbp-1*.dbn.zst").open("rb") as packed:
        data = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
    start = 8 + struct.unpack_from("<I", data, 4)[0]  # "DBN", version, length of the metadata
    body, offset, records = data[start:], 0, 0
    while offset < len(body):
        offset += body[offset] * 4  # the first byte of a record is its length in words
        records += 1
    path = folder / "repeated.dbn"
    path.write_bytes(data[:start] + body * copies)
    return CaptureFile(path, records * copies)


def itch(folder: Path, copies: int) -> CaptureFile:
    """A length-framed ITCH 5.0 file: the captured directory, then `copies` blocks of generated order flow."""
    captured = _sample("itch/*.itch").read_bytes()
    stocks = []
    offset = messages = 0
    while offset < len(captured):
        length = struct.unpack_from(">H", captured, offset)[0]
        body = captured[offset + 2 : offset + 2 + length]
        if body[:1] == b"R":
            stocks.append((struct.unpack_from(">H", body, 1)[0], body[11:19]))
        offset += 2 + length
        messages += 1
    block = _order_flow(stocks)
    path = folder / "day.itch"
    with path.open("wb") as file:
        file.write(captured)
        for _ in range(copies):
            file.write(b"".join(block))
    return CaptureFile(path, messages + len(block) * copies)


def _order_flow(stocks: list[tuple[int, bytes]]) -> list[bytes]:
    """Framed messages that leave no order behind, so that they can be repeated: about 47 % adds, 40 % deletes,
    6 % replaces, 4 % executions, 2 % cancels, 1 % trades off the book."""
    random_source = random.Random(5)
    pick = random_source.random
    live: deque[tuple[int, int, int]] = deque()
    found: list[bytes] = []
    now_ns, reference = 34_200 * 10**9, 1

    def say(kind: bytes, locate: int, rest: bytes) -> None:
        body = kind + struct.pack(">HH", locate, 0) + now_ns.to_bytes(6, "big") + rest
        found.append(struct.pack(">H", len(body)) + body)

    for number in range(_ITCH_BLOCK_ORDERS):
        now_ns += 1000 + int(pick() * 50_000)
        locate, stock = stocks[number * 7919 % len(stocks)]
        shares, price = 100 * (1 + int(pick() * 9)), 100_000 + int(pick() * 1_000_000)
        add = (reference, b"B" if pick() < 0.5 else b"S", shares, stock, price)
        say(b"A", locate, struct.pack(">Qc I8sI", *add))
        live.append((locate, reference, shares))
        reference += 1
        if pick() < 0.02:
            say(b"P", locate, struct.pack(">QcI8sIQ", 0, b"B", shares, stock, price, reference))
        if pick() < 0.12:
            locate, old, shares = live.popleft()
            say(b"U", locate, struct.pack(">QQII", old, reference, shares, price))
            live.append((locate, reference, shares))
            reference += 1
        if pick() < 0.05:
            locate, old, shares = live.popleft()
            say(b"X", locate, struct.pack(">QI", old, shares // 2))
            live.append((locate, old, shares - shares // 2))
        if len(live) > _ITCH_LIVE_ORDERS:
            locate, old, shares = live.popleft()
            if pick() < 0.1:
                say(b"E", locate, struct.pack(">QIQ", old, shares, reference))
            else:
                say(b"D", locate, struct.pack(">Q", old))
    for locate, old, _ in live:
        say(b"D", locate, struct.pack(">Q", old))
    return found


def iex(folder: Path, copies: int) -> CaptureFile:
    """The TOPS 1.6 pcap, unpacked, `copies` times; message numbers and stream offsets go on from copy to copy."""
    data = gzip.decompress(_sample("iex/TOPS16*.gz").read_bytes())
    packets = bytearray(data[_PCAP_HEADER_BYTES:])
    transports = []
    offset = 0
    while offset < len(packets):
        transports.append(offset + _PCAP_PACKET_BYTES + _UDP_BYTES)
        offset += _PCAP_PACKET_BYTES + struct.unpack_from("<I", packets, offset + 8)[0]
    # IEX-TP header: payload bytes u16 at 12, messages u16 at 14, stream offset u64 at 16, first message u64 at 24
    sizes = [struct.unpack_from("<HHqq", packets, transport + 12) for transport in transports]
    messages = sum(size[1] for size in sizes)
    stream_bytes = sum(size[0] for size in sizes)
    path = folder / "tops.pcap"
    with path.open("wb") as file:
        file.write(data[:_PCAP_HEADER_BYTES])
        for copy in range(copies):
            for transport, (_, _, stream_offset, first) in zip(transports, sizes, strict=True):
                moved = stream_offset + copy * stream_bytes, first + copy * messages
                struct.pack_into("<qq", packets, transport + 16, *moved)
            file.write(packets)
    return CaptureFile(path, messages * copies)


def binance(folder: Path) -> CaptureFile:
    """The lines of the spot capture that are trades: `<local ns> <JSON>`."""
    text = gzip.decompress(_sample("websocket/spot_btcusdt*.gz").read_bytes())
    lines = [line for line in text.splitlines(keepends=True) if b'"e":"trade"' in line]
    path = folder / "spot_btcusdt_trades.txt"
    path.write_bytes(b"".join(lines))
    return CaptureFile(path, len(lines))


def bi5(folder: Path, copies: int) -> CaptureFile:
    """Dukascopy ticks without their compression, `copies` times; each counts from the hour's begin."""
    hours = sorted(_sample("ticks/dukascopy/**/09h_ticks.bi5").parent.glob("*h_ticks.bi5"))
    ticks = b"".join(lzma.decompress(hour.read_bytes()) for hour in hours)
    path = folder / "EURUSD/2019/01/04/09h_ticks.bi5"
    path.parent.mkdir(parents=True)
    path.write_bytes(ticks * copies)
    return CaptureFile(path, len(ticks) // 20 * copies)


def truefx(folder: Path, copies: int) -> CaptureFile:
    """Lines of time, bid and ask; the header once."""
    header, *lines = _sample("ticks/truefx/usdjpy*.csv").read_bytes().splitlines(keepends=True)
    path = folder / "USDJPY.csv"
    path.write_bytes(header + b"".join(lines) * copies)
    return CaptureFile(path, 1 + len(lines) * copies)


def lobster(folder: Path, copies: int) -> CaptureFile:
    """Events and the ten best levels after each, in two files."""
    events = _sample("ticks/lobster/*_message_10.csv")
    for path in (events, events.with_name(events.name.replace("message", "orderbook"))):
        lines = path.read_bytes().splitlines()
        (folder / path.name).write_bytes(b"\n".join(lines * copies) + b"\n")
    return CaptureFile(folder / events.name, len(lines) * copies)


def need(module: str) -> None:
    """Raise PeerMissing unless a peer's library can be imported."""
    from importlib import import_module

    try:
        import_module(module)
    except ImportError as error:
        raise PeerMissing(f"{module} is not here: {error}") from error
