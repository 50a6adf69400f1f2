"""Writing to a terminal: colours where they are wanted, and numbers that people can read.

Called by every command that prints for people. Colour is used on a terminal only, and never when NO_COLOR is set
(no-color.org). It holds no state and reads nothing but the stream it is asked about.
"""

from __future__ import annotations

import os
from typing import IO, Final

_CODES: Final = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}


class Paint:
    """Puts text into colours, or leaves it alone."""

    def __init__(self, enabled: bool) -> None:
        """`enabled` False: every call returns its text unchanged."""
        self.enabled = enabled

    @classmethod
    def for_stream(cls, stream: IO[str]) -> Paint:
        """Colours if `stream` is a terminal that wants them."""
        wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(wanted and stream.isatty())

    def __call__(self, text: str, *styles: str) -> str:
        """`text` in these styles; see _CODES for their names."""
        if not self.enabled or not styles:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"


def count_text(value: float) -> str:
    """A count in at most 6 characters: 950, 12.3k, 4.56M."""
    if value < 0:
        return f"-{count_text(-value)}"
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if value < limit * 0.9995:
            scaled = value / divisor
            if not unit:
                return f"{scaled:.0f}" if scaled >= 10 or scaled == int(scaled) else f"{scaled:.1f}"
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value / 1e12:.1f}T"


def bytes_text(value: float) -> str:
    """A size with a binary unit: 512 B, 8.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration_text(ns: float) -> str:
    """A duration in ns, with the unit that fits: 240ns, 3.1us, 12ms, 4.2s, 3m05s, 2h10m, 3d04h."""
    if ns < 0:
        return f"-{duration_text(-ns)}"
    for limit, divisor, unit in ((1e3, 1, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms"), (6e10, 1e9, "s")):
        if ns < limit * 0.9995:
            scaled = ns / divisor
            return f"{scaled:.1f}{unit}" if scaled < 10 and unit != "ns" else f"{scaled:.0f}{unit}"
    seconds = int(ns / 1e9 + 0.5)
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
