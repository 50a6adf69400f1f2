"""What surrounds FIX messages in recordings: times before them, other separators than SOH; and the reader's dtype.

Called by `_fix.pyx` and, to recognise a FIX log, by `capture`. Pure; it reads no message.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import numpy as np

# What a session must know of a message. C twin: struct fix_head in fix_wire.h.
HEAD: Final = np.dtype([("seq", "<u8"), ("type", "<u2"), ("possdup", "u1"), ("version", "u1"), ("reserved", "<u4")])
TIME_BYTES: Final = 256  # longest beginning of a line before its message
PROBE_BYTES: Final = 65536
_MESSAGE: Final = re.compile(rb"8=FIXT?\.\d\.\d(\x01|\||\^A)9=\d")
OPEN_END: Final = re.compile(rb"(\x0110=\d{3})(?=[\r\n])")  # a message whose line lacks the last separator
# 2023-01-24 13:30:46.130, with T, Z or an offset; 20230124-13:30:46.130 as FIX engines write it.
_DATE_TIME: Final = re.compile(
    rb"(\d{4})-?(\d\d)-?(\d\d)[-T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?"
)
_EPOCH: Final = re.compile(rb"(?:^|[^\d.:-])(\d{10}(?:\.\d{1,9})?|\d{13}|\d{16}|\d{19})(?:[^\d.:-]|$)")


def separator_of(text: bytes) -> bytes | None:
    """What stands between the fields of the first message in `text`; None if no message begins there."""
    found = _MESSAGE.search(text[:PROBE_BYTES])
    return found[1] if found else None


def looks_like_fix(head: bytes) -> bool:
    """Whether a file that begins so is FIX: a message at its start, or after no more than a time in its first lines."""
    for line in head[:PROBE_BYTES].split(b"\n")[:16]:
        found = _MESSAGE.search(line)
        if found:
            return found.start() <= TIME_BYTES
    return False


def line_time(prefix: bytes) -> int:
    """ns since the epoch of the time in a line's beginning; without an offset it is UTC. 0 = there is none."""
    found = _DATE_TIME.search(prefix)
    if found:
        year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
        try:
            at = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
        except ValueError:
            return 0
        seconds = int(at.timestamp()) + (second == 60)
        if found[8] not in (None, b"Z"):
            sign = -1 if found[8][:1] == b"-" else 1
            seconds -= sign * (int(found[8][1:3]) * 3600 + int(found[8][-2:]) * 60)
        return max(0, seconds * 1_000_000_000 + int((found[7] or b"0").ljust(9, b"0")))
    found = _EPOCH.search(prefix)
    if not found:
        return 0
    whole, _, fraction = found[1].partition(b".")
    if fraction or len(whole) == 10:
        return int(whole) * 1_000_000_000 + int(fraction.ljust(9, b"0") or b"0")
    scale: int = 10 ** (19 - len(whole))
    return int(whole) * scale
