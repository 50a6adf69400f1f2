"""What decoding costs without the engine: each format's usual way in Python, over the same bytes, in one process.

    dbn        databento_dbn's own decoder, then price and time of each record it makes
    itch, iex  struct.unpack of each message that carries a price, and nothing done with it
    binance    msgspec into a typed struct, price and quantity to float: the least that JSON trades cost in Python
    bi5        struct.iter_unpack, prices divided
    truefx     the csv module, time by datetime.fromisoformat, bid and ask to float
    lobster    the csv module over both files, every column to a number

Each returns messages a second, and has counted that it saw them all.
"""

from __future__ import annotations

import csv
import struct
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from perf.captures import CaptureFile, need
from perf.errors import require

# Unpacked part of each ITCH 5.0 message from its type on; others are skipped (Nasdaq TotalView-ITCH 5.0, section 1).
_ITCH = {
    ord("A"): struct.Struct(">cHH6sQcI8sI"),
    ord("F"): struct.Struct(">cHH6sQcI8sI4s"),
    ord("E"): struct.Struct(">cHH6sQIQ"),
    ord("C"): struct.Struct(">cHH6sQIQcI"),
    ord("X"): struct.Struct(">cHH6sQI"),
    ord("D"): struct.Struct(">cHH6sQ"),
    ord("U"): struct.Struct(">cHH6sQQII"),
    ord("P"): struct.Struct(">cHH6sQcI8sIQ"),
    ord("R"): struct.Struct(">cHH6s8scI"),
}

# The same for IEX TOPS 1.6, little-endian: quote update, trade report, official price, trade break, auction.
_IEX = {
    ord("Q"): struct.Struct("<cBq8sIqqI"),
    ord("T"): struct.Struct("<cBq8sIqq"),
    ord("X"): struct.Struct("<cBq8sq"),
    ord("B"): struct.Struct("<cBq8sIqq"),
    ord("A"): struct.Struct("<ccq8sIqqIcBIqqqq"),
}
_IEX_TRANSPORT_BYTES = 40


def dbn_rate(capture: CaptureFile) -> float:
    """databento_dbn.DBNDecoder over the whole file."""
    need("databento_dbn")
    import databento_dbn

    data = capture.path.read_bytes()
    start = time.perf_counter_ns()
    decoder = databento_dbn.DBNDecoder()
    count, last = 0, 0
    for offset in range(0, len(data), 1 << 20):
        decoder.write(data[offset : offset + (1 << 20)])
        for record in decoder.decode():
            if isinstance(record, databento_dbn.MBP1Msg):
                last = record.price + record.ts_event
                count += 1
    elapsed_ns = time.perf_counter_ns() - start
    require(count == capture.messages and last > 0, f"databento_dbn decoded {count} of {capture.messages} records")
    return count / elapsed_ns * 1e9


def itch_rate(capture: CaptureFile) -> float:
    """A loop of struct.unpack_from over length-framed messages."""
    data = capture.path.read_bytes()
    start = time.perf_counter_ns()
    offset = count = 0
    layouts = _ITCH
    while offset < len(data):
        length = data[offset] << 8 | data[offset + 1]
        layout = layouts.get(data[offset + 2])
        if layout is not None:
            layout.unpack_from(data, offset + 2)
        offset += 2 + length
        count += 1
    elapsed_ns = time.perf_counter_ns() - start
    require(count == capture.messages, f"struct saw {count} of {capture.messages} messages")
    return count / elapsed_ns * 1e9


def iex_rate(capture: CaptureFile) -> float:
    """A loop of struct.unpack_from over packets of a pcap file and the messages in them."""
    data = capture.path.read_bytes()
    start = time.perf_counter_ns()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    packet = struct.Struct(order + "IIII")
    offset, count, layouts = 24, 0, _IEX
    while offset < len(data):
        _, _, size, _ = packet.unpack_from(data, offset)
        offset += 16
        end = offset + size
        place = offset + 14 + 20 + 8 + _IEX_TRANSPORT_BYTES  # Ethernet, IPv4, UDP, IEX-TP
        messages = data[place - 26] | data[place - 25] << 8
        for _ in range(messages):
            length = data[place] | data[place + 1] << 8
            layout = layouts.get(data[place + 2])
            if layout is not None:
                layout.unpack_from(data, place + 2)
            place += 2 + length
        count += messages
        offset = end
    elapsed_ns = time.perf_counter_ns() - start
    require(count == capture.messages, f"struct saw {count} of {capture.messages} messages")
    return count / elapsed_ns * 1e9


def binance_rate(capture: CaptureFile) -> float:
    """msgspec alone: decode into a struct, two floats."""
    need("msgspec")
    decode = _binance_decoder()
    lines = [line.split(b" ", 1)[1] for line in Path(capture.path).read_bytes().splitlines()]
    start = time.perf_counter_ns()
    total = 0.0
    for line in lines:
        trade = decode(line).data
        total += float(trade.p) * float(trade.q)
    elapsed_ns = time.perf_counter_ns() - start
    require(len(lines) == capture.messages and total > 0, "msgspec did not decode all trades")
    return len(lines) / elapsed_ns * 1e9


def _binance_decoder() -> Any:
    import msgspec

    trade = msgspec.defstruct("Trade", [("s", str), ("t", int), ("p", str), ("q", str), ("T", int), ("m", bool)])
    return msgspec.json.Decoder(msgspec.defstruct("Message", [("stream", str), ("data", trade)])).decode


def bi5_rate(capture: CaptureFile) -> float:
    """struct.iter_unpack over the ticks."""
    data = capture.path.read_bytes()
    start = time.perf_counter_ns()
    count, highest = 0, 0.0
    for _, ask, bid, _, _ in struct.iter_unpack(">IIIff", data):
        highest = max(highest, ask / 1e5, bid / 1e5)
        count += 1
    elapsed_ns = time.perf_counter_ns() - start
    require(count == capture.messages and highest > 0, f"struct saw {count} of {capture.messages} ticks")
    return count / elapsed_ns * 1e9


def truefx_rate(capture: CaptureFile) -> float:
    """The csv module, then a time and two floats of each line."""
    start = time.perf_counter_ns()
    count = 0
    with capture.path.open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        for at, bid, ask in lines:
            datetime.fromisoformat(at).timestamp()
            float(bid), float(ask)
            count += 1
    elapsed_ns = time.perf_counter_ns() - start
    require(count + 1 == capture.messages, f"csv saw {count} of {capture.messages - 1} quotes")
    return count / elapsed_ns * 1e9


def lobster_rate(capture: CaptureFile) -> float:
    """The csv module over events and books, every column to a number."""
    books_path = capture.path.with_name(capture.path.name.replace("message", "orderbook"))
    start = time.perf_counter_ns()
    count = 0
    with capture.path.open(newline="") as events, books_path.open(newline="") as books:
        for (at, *event), book in zip(csv.reader(events), csv.reader(books), strict=True):
            float(at)
            list(map(int, event))
            list(map(int, book))
            count += 1
    elapsed_ns = time.perf_counter_ns() - start
    require(count == capture.messages, f"csv saw {count} of {capture.messages} events")
    return count / elapsed_ns * 1e9
