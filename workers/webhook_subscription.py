"""One webhook subscription at work: its queue, its state, and both as they stand in the ledger.

    DELIVERING --failed--> WAITING --time--> DELIVERING          the same batch again, under the same number
        ^                     |
        |                     '--failed `park_after` times in a row, or answered 410--> PARKED
        '--time, or PATCH is_active=true--------------------------------------------------'
    PAUSED: by its owner; nothing is queued for it and nothing counted

The first retry is immediate, later ones wait twice as long each time (workers/backoff.py); a Retry-After is obeyed. On
parking what is queued becomes a gap, which grows by whatever concerns the subscription until it is tried again; the gap
alone is a delivery then, and one failure parks it again.

Used by workers/webhooks.py, which passes time and records in and sends. It opens no socket and reads no ring.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from shm.layout import MAX_RINGS
from shm.ledger import UNKNOWN, DeliveryState, GapReason, Slot
from workers.backoff import Backoff
from workers.spec import SubscriptionSpec
from workers.stream import Pattern, parse_topic
from workers.webhook_queue import Batch, DeliveryQueue, Gap, Message

RANKS: Final = {"high": 0, "normal": 1, "low": 2}
MAX_RETRY_AFTER_NS: Final = 3600 * 10**9
GONE: Final = 410

_WORD_OF: Final = {reason: reason.name.lower().replace("_", " ") for reason in GapReason}
_REASON_OF: Final = {word: reason for reason, word in _WORD_OF.items()}


@dataclass(frozen=True)
class Limits:
    """Bounds of every subscription; see workers.spec.WebhookSettings."""

    queue_messages: int
    queue_bytes: int
    batch_messages: int
    batch_bytes: int
    park_after: int
    parked_ns: int


class Subscription:
    """One subscription.

    Attributes:
        spec: as its owner wants it.
        patterns: the topics it means.
        queue: what waits for it.
        floors: per ring, the sequence up to which nothing is to be offered any more.
        sending: whether a request is under way.
        state: as in the ledger.
    """

    def __init__(
        self, spec: SubscriptionSpec, slot: Slot, limits: Limits, rings: tuple[int, ...], dice: random.Random
    ) -> None:
        """Go on where the ledger says that its predecessor was."""
        self.spec = spec
        self.patterns = patterns_of(spec)
        self.queue = DeliveryQueue(limits.queue_messages, limits.queue_bytes)
        self.floors: dict[int, int] = {}
        self.sending = False
        self._slot = slot
        self._limits = limits
        self._rings = rings
        self._backoff = Backoff(dice)
        self._backoff.failures = slot.get(Slot.FAILURES)
        self._read_again: dict[int, int] = {}  # ring -> next sequence that its rings are read again from, after a kill
        self._load_gap()
        self.state = DeliveryState(slot.get(Slot.STATE))
        if spec.paused or self.state is DeliveryState.PAUSED:
            self._set_state(DeliveryState.PAUSED if spec.paused else DeliveryState.DELIVERING, 0)

    @property
    def rank(self) -> int:
        """Order of service, 0 first."""
        return RANKS[self.spec.priority]

    @property
    def next_attempt_ns(self) -> int:
        """When to call `wake`, ns since the epoch; 0 = not needed."""
        return self._slot.get(Slot.NEXT_ATTEMPT_NS)

    @property
    def ready(self) -> bool:
        """Whether something can be sent now."""
        return (
            not self.sending
            and (self.queue.in_flight is not None or self.queue.has_work)
            and self.state is DeliveryState.DELIVERING
        )

    @property
    def takes(self) -> bool:
        """Whether messages are queued for it, and not only counted."""
        return self.state in (DeliveryState.DELIVERING, DeliveryState.WAITING)

    # Where in the rings

    def unacked(self, ring: int) -> int:
        """First sequence of a ring that the ledger says is not acknowledged; 0 = none."""
        return self._slot.get(Slot.UNACKED, ring)

    def ring_is_gone(self, ring: int, read: int) -> int:
        """A ring was made anew: what was not acknowledged of the old one is lost. Returns how many messages."""
        first, count = self.unacked(ring), self._slot.get(Slot.UNACKED_COUNT, ring)
        if first:
            self._note_lost(ring, first, max(read, first) + 1, count, GapReason.ENGINE_RESTARTED)
            self._slot.set(Slot.UNACKED, 0, ring)
            self._slot.set(Slot.UNACKED_COUNT, 0, ring)
        return count if first else 0

    def read_again(self, ring: int, sequence: int, until: int) -> None:
        """The ring is being read a second time, next is `sequence`; from after `until` on it is the first time."""
        floor = self.floors.get(ring, 0)
        following = max(sequence, floor + 1)
        if following > until:
            self._read_again.pop(ring, None)
        else:
            self._read_again[ring] = following

    # Records

    def offer(self, message: Message) -> int:
        """Queue a message; returns how many were lost by that."""
        if message.sequence <= self.floors.get(message.ring, 0):
            return 0
        if not self.takes:
            self._note_lost(message.ring, message.sequence, message.sequence + 1, 1, GapReason.PARKED)
            return 1
        lost = self.queue.offer(message)
        if lost:
            self._slot.add(Slot.LOST, lost)
        return lost

    def overrun(self, ring: int, first: int, end: int) -> None:
        """The ring has overwritten [first, end) before it was read."""
        first = max(first, self.floors.get(ring, 0) + 1)
        if first < end:
            self._note_lost(ring, first, end, None, GapReason.OVERRUN)

    def shed(self, size_bytes: int) -> int:
        """Give memory back; returns how many messages were lost by that."""
        lost = self.queue.shed(size_bytes)
        self._slot.add(Slot.LOST, lost)
        return lost

    def _note_lost(self, ring: int, first: int, end: int, count: int | None, reason: GapReason) -> None:
        self.queue.gap.add(ring, first, end, count, _WORD_OF[reason])
        self._slot.add(Slot.LOST, count or 0)

    # Deliveries

    def begin(self) -> Batch:
        """What to send now: the batch that failed before, or a new one. Only if `ready`."""
        batch = self.queue.in_flight
        if batch is None:
            number = self._slot.get(Slot.DELIVERY) + 1
            self._slot.set(Slot.DELIVERY, number)
            batch = self.queue.take(number, self._limits.batch_messages, self._limits.batch_bytes)
        self.sending = True
        return batch

    def acknowledged(self, batch: Batch, now_ns: int) -> None:
        """A batch was answered with 2xx."""
        self.sending = False
        if self.queue.in_flight is not batch:
            return  # given up meanwhile
        self.queue.settle()
        slot = self._slot
        slot.add(Slot.DELIVERED, len(batch.messages))
        slot.set(Slot.LAST_ANSWER_NS, now_ns)
        slot.set(Slot.LAST_FAILURE, 0)
        self._set_state(DeliveryState.DELIVERING, failures=0)
        self.save()

    def failed(self, batch: Batch, failure: int, retry_after_ns: int, now_ns: int) -> int:
        """A batch was not; returns how many messages were lost, by parking.

        Args:
            failure: a shm.ledger.Failure or an HTTP status.
            retry_after_ns: how long the receiver wants to be left alone.
        """
        self.sending = False
        self._slot.add(Slot.FAILED, 1)
        self._slot.set(Slot.LAST_FAILURE, failure)
        if self.queue.in_flight is not batch:
            return 0
        due_ns = self._backoff.failed(now_ns, 0)
        asked_ns = now_ns + min(retry_after_ns, MAX_RETRY_AFTER_NS)
        failures = self._backoff.failures
        if failures >= self._limits.park_after or failure == GONE:
            lost = self.queue.give_up(_WORD_OF[GapReason.PARKED])
            self._slot.add(Slot.LOST, lost)
            self._set_state(DeliveryState.PARKED, failures, max(now_ns + self._limits.parked_ns, asked_ns))
            self.save()
            return lost
        self._set_state(DeliveryState.WAITING, failures, max(due_ns, asked_ns))
        return 0

    def wake(self, now_ns: int) -> None:
        """Time has passed: if it waits or is parked and its time has come, it is tried again."""
        if self.state in (DeliveryState.WAITING, DeliveryState.PARKED) and now_ns >= self.next_attempt_ns:
            parked = self.state is DeliveryState.PARKED
            failures = self._limits.park_after - 1 if parked else self._backoff.failures
            self._set_state(DeliveryState.DELIVERING, failures)

    def _set_state(self, state: DeliveryState, failures: int, next_attempt_ns: int = 0) -> None:
        self._backoff.failures = failures
        self._slot.set(Slot.FAILURES, failures)
        self._slot.set(Slot.NEXT_ATTEMPT_NS, next_attempt_ns)
        self._slot.set(Slot.STATE, state)
        self.state = state

    # Its owner's wishes

    def change(self, spec: SubscriptionSpec, *, unpark: bool) -> int:
        """Take other settings; returns how many queued messages were lost by pausing."""
        lost = 0
        self.spec, self.patterns = spec, patterns_of(spec)
        if spec.paused and self.state is not DeliveryState.PAUSED:
            lost = self.queue.give_up(_WORD_OF[GapReason.PAUSED])
            self._slot.add(Slot.LOST, lost)
            self._set_state(DeliveryState.PAUSED, 0)
        elif not spec.paused and (unpark or self.state is DeliveryState.PAUSED):
            self._set_state(DeliveryState.DELIVERING, 0)
        self.save()
        return lost

    # The ledger

    def save(self) -> None:
        """Write down what a successor must know: the gap first, then what is not acknowledged."""
        slot, queue = self._slot, self.queue
        gap = queue.gap
        if queue.in_flight is not None and queue.in_flight.gap:
            gap = Gap()
            gap.merge(queue.in_flight.gap)
            gap.merge(queue.gap)
        if gap or slot.get(Slot.GAP_REASON):
            for ring in range(MAX_RINGS):
                span = gap.spans.get(ring)
                slot.set(Slot.GAP_FROM, span.first if span else 0, ring)
                slot.set(Slot.GAP_TO, span.end if span else 0, ring)
                slot.set(Slot.GAP_COUNT, (UNKNOWN if span.messages is None else span.messages) if span else 0, ring)
            slot.set(Slot.GAP_REASON, _REASON_OF[gap.reason] if gap else 0)
        unacked = queue.unacked()
        for ring in self._rings:
            first, count = unacked.get(ring, (self._read_again.get(ring, 0), 0))
            slot.set(Slot.UNACKED_COUNT, count, ring)
            slot.set(Slot.UNACKED, first, ring)
        slot.set(Slot.QUEUED, len(queue))

    def _load_gap(self) -> None:
        slot = self._slot
        reason = slot.get(Slot.GAP_REASON)
        if not reason:
            return
        for ring in range(MAX_RINGS):
            if slot.get(Slot.GAP_TO, ring):
                count = slot.get(Slot.GAP_COUNT, ring)
                self.queue.gap.add(
                    ring,
                    slot.get(Slot.GAP_FROM, ring),
                    slot.get(Slot.GAP_TO, ring),
                    None if count == UNKNOWN else count,
                    _WORD_OF[GapReason(reason)],
                )


def patterns_of(spec: SubscriptionSpec) -> tuple[Pattern, ...]:
    """The topics that a subscription means. Raises workers.stream.RequestError for one that is none."""
    return tuple(dict.fromkeys(parse_topic(topic, "topics") for topic in spec.topics))
