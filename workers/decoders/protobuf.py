"""The wire format of protocol buffers, read field by field: tags, varints, fixed and length-delimited values.

For messages of a few dozen fields whose numbers are known (Yahoo's PricingData); layout: "Encoding" of the Protocol
Buffers documentation. Called by decoders. The generated class that yfinance ships would do the same, but importing it
imports yfinance: 1.5 s and 1,000 modules for one message type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

_DOUBLE: Final = struct.Struct("<d")
_FLOAT: Final = struct.Struct("<f")


def fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of every field in order; ValueError where the message breaks off or makes no sense.

    A varint is an unsigned number, everything else its bytes.
    """
    at, size = 0, len(message)
    while at < size:
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"protobuf: field number 0 at byte {at}")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"protobuf: wire type {kind} at byte {at}")
        if length > size - at:
            raise ValueError(f"protobuf: field {number} ends beyond the message")
        yield number, kind, message[at : at + length]
        at += length


def signed(value: int) -> int:
    """A sint32 or sint64 from its varint (ZigZag)."""
    return (value >> 1) ^ -(value & 1)


def single(value: bytes) -> float:
    """A float of 32 bits."""
    number: float = _FLOAT.unpack(value)[0]
    return number


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"protobuf: a number without an end at byte {at}")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise ValueError(f"protobuf: a number of more than 64 bits at byte {at}")
            return value, at
        shift += 7
