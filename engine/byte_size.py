"""Sizes in bytes as people write them: the type of such a setting, and how it is read."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

ByteSize = Annotated[str, Meta(pattern=r"^(?i:\d+(\.\d+)?\s*([kmgt]i?b?|b)?)$")]

_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "4GB", "512MiB", "1.5g" or "1000000" (decimal units unless they have an i)."""
    lowered = text.strip().lower()
    number = lowered.rstrip("bkmgti ")
    unit = lowered[len(number) :].strip().removesuffix("b")
    return int(float(number) * _UNITS[unit])
