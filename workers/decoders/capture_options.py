"""Options of a capture's decoding, and their checks: what replay, replay-info and `tickengine config` let people say.

Called by workers/decoders/capture.py and decoder_choice.py, and by tools/replay_info.py, which shows the texts. Never
opens a file, and never asks whether an option fits the file's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from workers.decoders.detection import FORMATS, PROTOCOLS
from workers.errors import SettingsError

# What may stand in `options`, for messages and for `tickengine config`.
OPTIONS: Final = {
    "format": f"one of {', '.join(FORMATS)}; default: found by content",
    "protocol": f"of the datagrams in a packet capture: one of {', '.join(PROTOCOLS)}; default: found by content",
    "port": "UDP port to read in a packet capture; default: all",
    "date": "day that times count from, YYYY-MM-DD; default: of ITCH and PITCH the capture's, else the file's name",
    "book": "true: quotes of the best prices, from ITCH and PITCH orders, IEX DEEP and CME price levels; "
    "default: false, or as the captured feed had it",
    "orders": "true: level2 of single orders, not of price levels, from CME packets; default: false",
    "arbitrate": "true: all packets of a capture are of one stream, in copies (lines A and B): the first wins; "
    "default: false, but true in captures of our own",
    "gap_wait_ms": "with arbitrate: how long a hole waits for another line's copy; default: 10, or as the feed had it",
    "symbol": "whose a Binance depth snapshot or a file of ticks is that does not say so; default: the file's name",
    "point": "Dukascopy: price of one unit; default: 0.00001, and 0.001 for JPY, RUB, HUF, metals and what is no pair",
    "venue": "venue code of the records; default: the format's own",
}


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given, the day as a date. SettingsError names the one that can not be."""
    found = {key: value for key, value in options.items() if value is not None}
    for key, value in found.items():
        if key not in OPTIONS:
            raise SettingsError(f"no option {key!r} for a capture; there are: {', '.join(OPTIONS)}")
        if key == "format" and value not in FORMATS:
            raise SettingsError(f"option format = {value!r}: {OPTIONS[key]}")
        if key == "protocol" and value not in PROTOCOLS:
            raise SettingsError(f"option protocol = {value!r}: {OPTIONS[key]}")
        if key == "port" and not (str(value).isdecimal() and 0 <= int(value) <= 65535):
            raise SettingsError(f"option port = {value!r}: a UDP port, 0 = all")
        if key == "point" and not _is_positive(value):
            raise SettingsError(f"option point = {value!r}: a number greater than 0")
        if key in ("book", "arbitrate", "orders") and not isinstance(value, bool):
            raise SettingsError(f"option {key} = {value!r}: true or false")
        if key == "gap_wait_ms" and not (isinstance(value, int | float) and 0 <= value <= 1e7):
            raise SettingsError(f"option gap_wait_ms = {value!r}: milliseconds, 0 to 10000000")
        if key == "venue" and not (isinstance(value, str) and value.isascii() and len(value) <= 8):
            raise SettingsError(f"option venue = {value!r}: at most 8 ASCII characters")
    if isinstance(found.get("date"), str):
        try:
            found["date"] = date.fromisoformat(found["date"])
        except ValueError:
            raise SettingsError(f"option date = {found['date']!r}: {OPTIONS['date']}") from None
    return found


def _is_positive(value: Any) -> bool:
    try:
        return 0.0 < float(value) < float("inf")
    except (TypeError, ValueError):
        return False
