"""How often each instrument of a feed usually speaks, and which of them is silent for too long.

Every instrument is judged by its own pauses: the longest lately, fading by half every five minutes. One that trades ten
times a second is missed after a few seconds, one that trades twice an hour is not. Not judged: what has not spoken
three times yet, and any time at which the market is closed. Pure; called by live sources with each batch they deliver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

HALF_LIFE_NS: Final = 300e9
MIN_PAUSES: Final = 2


class Silent(NamedTuple):
    """An instrument that says nothing, for how long, and how long would have been usual, seconds."""

    instrument_id: int
    silent_s: float
    allowed_s: float


@dataclass(slots=True)
class _Pulse:
    last_ns: int
    longest_ns: float = 0.0
    pauses: int = 0


class Cadence:
    """The pulses of one feed's instruments."""

    def __init__(self, *, factor: float, floor_s: float, is_open: Callable[[int], bool] | None = None) -> None:
        """Know nothing yet.

        Args:
            factor: silent for so many times the longest pause is too long,
            floor_s: and for so many seconds at least.
            is_open: whether the market is open at a time, ns; None = it always is.
        """
        self._factor = factor
        self._floor_s = floor_s
        self._is_open = is_open
        self._was_open = True
        self._pulses: dict[int, _Pulse] = {}

    def __len__(self) -> int:
        """How many instruments have spoken."""
        return len(self._pulses)

    def expected(self, now_ns: int) -> bool:
        """Whether the market is open, so that silence means something."""
        is_open = self._is_open is None or self._is_open(now_ns)
        if is_open and not self._was_open:
            self.restart(now_ns)
        self._was_open = is_open
        return is_open

    def heard(self, instrument_ids: Iterable[int], now_ns: int) -> None:
        """These have spoken."""
        pulses = self._pulses
        for instrument_id in instrument_ids:
            pulse = pulses.get(instrument_id)
            if pulse is None:
                pulses[instrument_id] = _Pulse(now_ns)
                continue
            pause_ns = max(0, now_ns - pulse.last_ns)
            pulse.longest_ns = max(pulse.longest_ns * math.exp2(-pause_ns / HALF_LIFE_NS), pause_ns)
            pulse.pauses += 1
            pulse.last_ns = now_ns

    def restart(self, now_ns: int) -> None:
        """What was missed until now, while there was no connection or no market, is no pause of theirs."""
        for pulse in self._pulses.values():
            pulse.last_ns = max(pulse.last_ns, now_ns)

    def silent(self, now_ns: int) -> list[Silent]:
        """Those that are silent for too long, the longest first."""
        found: list[Silent] = []
        if not self.expected(now_ns):
            return found
        for instrument_id, pulse in self._pulses.items():
            if pulse.pauses < MIN_PAUSES:
                continue
            silent_s = (now_ns - pulse.last_ns) / 1e9
            allowed_s = max(self._floor_s, self._factor * pulse.longest_ns / 1e9)
            if silent_s > allowed_s:
                found.append(Silent(instrument_id, silent_s, allowed_s))
        return sorted(found, key=lambda one: -one.silent_s)
