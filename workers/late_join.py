"""A client that wants the last values first: which live messages wait meanwhile, and which are in those values.

Pure: positions and messages in, messages out. Made by `gateway.py` for one subscribe request with `snapshot`; the
values themselves come from `last_values.py`.

    barrier     per ring, the newest sequence that the gateway had read when the client subscribed. What comes later is
                offered to `passes`; what came earlier has to be in the values.
    waiting     an instrument whose values have not been sent: its live messages are held, in order
    released    values sent, complete up to `floors` (ring -> sequence): held and later messages up to the floor are in
                them and are dropped, the others go out. No gap, no duplicate
    over        every instrument is released, and the gateway has read past every floor: nothing is left to decide

Only topics that the request added are concerned; what the client had before goes on as it was.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

from workers.audience import INSTRUMENTS, STATUS_KEY
from workers.backlog import Message
from workers.stream import Pattern

MAX_HELD: Final = 50_000  # messages; some 5 MB of references while the values are on their way


class LateJoin:
    """One subscribe request with `snapshot`, from its arrival until it is a subscription like any other."""

    def __init__(
        self,
        added: Iterable[Pattern],
        before: Iterable[Pattern],
        barrier: Mapping[int, int],
        instruments: Iterable[int],
    ) -> None:
        """`added`: the new patterns; `before`: what the client had; `instruments`: those that can be meant."""
        self._added = tuple(added)
        self._before = tuple(before)
        self._covers: dict[int, bool] = {}
        self._held: dict[int, list[Message]] = {}
        self._floors: dict[int, Mapping[int, int]] = {}
        self._ceiling: dict[int, int] = {}
        self.barrier = dict(barrier)
        self.waiting: dict[int, None] = dict.fromkeys(instruments)
        self.held = 0

    def forget(self, patterns: Container[Pattern]) -> None:
        """The client no longer wants these: neither their values nor what is held."""
        self._added = tuple(pattern for pattern in self._added if pattern not in patterns)
        self._covers.clear()
        for instrument, messages in self._held.items():
            kept = [m for m in messages if self.concerns(m.key // INSTRUMENTS + 1, m.topic.split(".", 2)[2])]
            self.held -= len(messages) - len(kept)
            self._held[instrument] = kept

    def concerns(self, kind: int, symbol: str) -> bool:
        """Whether the topic of that record type and symbol is one that the request added."""
        return any(pattern.matches(kind, symbol) for pattern in self._added) and not any(
            pattern.matches(kind, symbol) for pattern in self._before
        )

    def passes(self, message: Message, kind: int, symbol: str) -> bool:
        """Whether a live message may go to the client now; one that may not is held, or is in the values."""
        if message.key < 0 or message.key >= STATUS_KEY:
            return True
        instrument = message.key % INSTRUMENTS
        waits = instrument in self.waiting
        floors = self._floors.get(instrument)
        if not waits and floors is None:
            return True
        covered = self._covers.get(message.key)
        if covered is None:
            covered = self._covers[message.key] = self.concerns(kind, symbol)
        if not covered:
            return True
        if waits:
            self._held.setdefault(instrument, []).append(message)
            self.held += 1
            return False
        assert floors is not None
        return message.sequence > floors.get(message.ring, 0)

    def covered_by(self, complete: Mapping[int, int]) -> bool:
        """Whether values that are complete up to there hold everything that came before the request."""
        return all(complete.get(ring, 0) >= sequence for ring, sequence in self.barrier.items())

    def release(self, instrument: int, floors: Mapping[int, int]) -> list[Message]:
        """The values of an instrument, complete up to `floors`, have been sent: what was held and is not in them."""
        self.waiting.pop(instrument, None)
        self._floors[instrument] = floors
        for ring, sequence in floors.items():
            self._ceiling[ring] = max(self._ceiling.get(ring, 0), sequence)
        held = self._held.pop(instrument, [])
        self.held -= len(held)
        return [message for message in held if message.sequence > floors.get(message.ring, 0)]

    def is_over(self, positions: Mapping[int, int]) -> bool:
        """Whether nothing is left to decide, the gateway having read each ring up to `positions`."""
        return not self.waiting and all(
            positions.get(ring, sequence) >= sequence for ring, sequence in self._ceiling.items()
        )
