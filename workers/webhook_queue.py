"""What waits for one webhook subscription: messages in order, bounded, and the gap before them where there is one.

Used by workers/webhook_subscription.py. Pure: no clock, no socket, no shared memory.

    [ batch in flight ] [ gap ] [ waiting ............ ]
      taken, kept until   told    bounded; when full the oldest waiting messages go and the gap grows, so that a
      acknowledged        next    receiver that comes back gets the newest, and hears exactly what it has missed

A gap is per ring [first, end) with the number of messages that were for this subscription, None where nobody could
count them. It is told at the head of the next batch, as a message of topic marketdata.gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

GAP_TOPIC: Final = "marketdata.gap"
QUEUE_FULL: Final = "queue full"

_encode: Final = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """One encoded message: ring and sequence of its (first) record, its JSON, when it was published (ns)."""

    ring: int
    sequence: int
    body: bytes
    publish_ns: int


class Span(NamedTuple):
    """What of one ring was lost: sequences [first, end), and how many messages; None = nobody knows."""

    first: int
    end: int
    messages: int | None


class Gap:
    """What was lost, by ring, and the latest reason (a word)."""

    def __init__(self) -> None:
        """Nothing is lost."""
        self.spans: dict[int, Span] = {}
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.spans)

    def add(self, ring: int, first: int, end: int, count: int | None, reason: str) -> None:
        """These, too."""
        before = self.spans.get(ring)
        if before is not None:
            unknown = count is None or before.messages is None
            total = None if unknown else (count or 0) + (before.messages or 0)
            first, end, count = min(first, before.first), max(end, before.end), total
        self.spans[ring] = Span(first, end, count)
        self.reason = reason

    def merge(self, other: Gap) -> None:
        """What `other` says, too."""
        for ring, span in other.spans.items():
            self.add(ring, *span, other.reason)

    def bodies(self) -> list[bytes]:
        """The gap as messages, one a ring."""
        return [
            _encode(
                {
                    "topic": GAP_TOPIC,
                    "payload": {
                        "ring": ring,
                        "from": span.first,
                        "to": span.end,
                        "count": span.messages,
                        "reason": self.reason,
                    },
                }
            )
            for ring, span in sorted(self.spans.items())
        ]


class Batch(NamedTuple):
    """What goes out in one request; `number` is unique within the subscription and grows."""

    number: int
    messages: tuple[Message, ...]
    gap: Gap
    body: bytes


class DeliveryQueue:
    """The queue of one subscription.

    Attributes:
        gap: what was lost and is not in flight.
        in_flight: the batch taken and not settled.
        size_bytes: of waiting messages.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        """Bounds of what waits; what is in flight comes on top, bounded by the batch."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[Message] = deque()
        self._sequences: dict[int, deque[int]] = {}  # of what waits, by ring: where each begins is asked every turn
        self._flying: dict[int, tuple[int, int]] = {}
        self.size_bytes = 0
        self.gap = Gap()
        self.in_flight: Batch | None = None

    def __len__(self) -> int:
        """Messages not acknowledged: waiting and in flight."""
        return len(self._waiting) + (len(self.in_flight.messages) if self.in_flight else 0)

    @property
    def has_work(self) -> bool:
        """Whether there is something to take."""
        return bool(self._waiting or self.gap)

    def unacked(self) -> dict[int, tuple[int, int]]:
        """Per ring, (first sequence, number of messages) not acknowledged."""
        found = dict(self._flying)
        for ring, sequences in self._sequences.items():
            if sequences:
                first, count = found.get(ring, (sequences[0], 0))
                found[ring] = first, count + len(sequences)
        return found

    def offer(self, message: Message) -> int:
        """Put a message at the end; returns how many old ones had to go for it."""
        self._waiting.append(message)
        self._sequences.setdefault(message.ring, deque()).append(message.sequence)
        self.size_bytes += len(message.body)
        dropped = 0
        while len(self._waiting) > 1 and (len(self._waiting) > self._max_messages or self.size_bytes > self._max_bytes):
            self._drop_oldest()
            dropped += 1
        return dropped

    def shed(self, size_bytes: int) -> int:
        """Drop the oldest until `size_bytes` are free or nothing waits; returns how many messages went."""
        target, dropped = max(0, self.size_bytes - size_bytes), 0
        while self._waiting and self.size_bytes > target:
            self._drop_oldest()
            dropped += 1
        return dropped

    def _pop(self) -> Message:
        message = self._waiting.popleft()
        self._sequences[message.ring].popleft()
        self.size_bytes -= len(message.body)
        return message

    def _drop_oldest(self) -> None:
        message = self._pop()
        self.gap.add(message.ring, message.sequence, message.sequence + 1, 1, QUEUE_FULL)

    def take(self, number: int, max_messages: int, max_bytes: int) -> Batch:
        """Take what has queued, up to the limits (one message may be larger), the gap first; it is in flight then."""
        assert self.in_flight is None, "one batch at a time"
        gap, self.gap = self.gap, Gap()
        messages: list[Message] = []
        size_bytes = 0
        while self._waiting and len(messages) < max_messages:
            size_bytes += len(self._waiting[0].body)
            if messages and size_bytes > max_bytes:
                break
            message = self._pop()
            messages.append(message)
            first, count = self._flying.get(message.ring, (message.sequence, 0))
            self._flying[message.ring] = first, count + 1
        body = b"[" + b",".join([*gap.bodies(), *(message.body for message in messages)]) + b"]"
        self.in_flight = Batch(number, tuple(messages), gap, body)
        return self.in_flight

    def settle(self) -> Batch:
        """What was in flight has been acknowledged."""
        batch, self.in_flight = self.in_flight, None
        self._flying.clear()
        assert batch is not None, "nothing is in flight"
        return batch

    def give_up(self, reason: str) -> int:
        """Everything in flight and waiting becomes gap; returns how many messages that were."""
        count = len(self)
        gap = Gap()
        if self.in_flight is not None:
            gap.merge(self.in_flight.gap)
            _add_all(gap, self.in_flight.messages, reason)
        gap.merge(self.gap)
        _add_all(gap, self._waiting, reason)
        self.gap, self.in_flight = gap, None
        self._waiting.clear()
        self._sequences.clear()
        self._flying.clear()
        self.size_bytes = 0
        return count


def _add_all(gap: Gap, messages: Iterable[Message], reason: str) -> None:
    for message in messages:
        gap.add(message.ring, message.sequence, message.sequence + 1, 1, reason)
