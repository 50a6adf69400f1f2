"""Each topic's records in order, once: what to do about holes, about what comes twice, and about the past on joining.

The rules of workers/subscriber.py without its sockets: messages and answers go in with the time, ordered messages and
requests come out. One state per topic:

                    number == expected: handed out
                  +------------------+
                  |                  v
    (first) --> joining --answer--> in order --hole--> asking --all of it settled--> in order
                                                         | messages that come meanwhile are held
                                                         '--no answer in time, too much held--> Gap, in order

A hole that can't be asked about, or that the answer says is gone, becomes a Gap with its exact range, and the message
after it carries the gap. So does, unasked, a hole in quotes, bars or levels whose next record has Flag.GAP_BEFORE:
fan-out left those records out because it was overloaded (workers/overload.py), and answering for them would make it
worse. At most `held_limit` records are held, over all topics. It knows no ZeroMQ, keeps no time and never waits.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any, Final, NamedTuple

import numpy as np

from shm.layout import RECORD_SIZE_BYTES, Flag, RecordType

GAPS_KEPT: Final = 1000
RESEND_S: Final = 0.5  # a request may be lost with a connection
RETRY_S: Final = 0.02  # without a connection
UNDER_WAY: Final = 16  # questions asked at the same time; the others wait here, not in the engine
_TS_PUBLISH_WORD: Final = 3
_CONFLATED: Final = frozenset({RecordType.QUOTE, RecordType.BAR, RecordType.LEVEL2})


class PastGap(NamedTuple):
    """Sequences [from_sequence, to_sequence) of a ring that neither journal nor ring had when a topic was joined."""

    topic: str
    ring: int
    from_sequence: int
    to_sequence: int


class Gap(NamedTuple):
    """Records [from_sequence, to_sequence) of a topic that were published and did not arrive here."""

    topic: str
    from_sequence: int
    to_sequence: int


class Message(NamedTuple):
    """One message. `records` is read-only, shape (n,), dtype RECORD; `gap` is what is missing just before it."""

    topic: str
    ring: int
    topic_sequence: int
    records: np.ndarray
    gap: Gap | None


class Part(NamedTuple):
    """Records as they came: the first has that number, `newest_ns` is the ts_publish of the last."""

    ring: int
    number: int
    records: np.ndarray
    newest_ns: int


class Topic:
    """What is known of one topic of one endpoint.

    Attributes:
        expected: number of the next record; 0 = nothing received yet.
        newest_ns: ts_publish of the youngest record, ns.
        plain: True if a message with the expected number can be handed out as it is.
        joined_end: one past the newest record that the answer to joining had; 0 = none asked for.
        live_end: up to `joined_end`, one past the newest record that came with the stream as well.
    """

    __slots__ = (
        "ask",
        "endpoint",
        "expected",
        "gap",
        "held",
        "joined",
        "joined_end",
        "live_end",
        "name",
        "newest_ns",
        "plain",
    )

    def __init__(self, name: str, endpoint: int, joined: bool) -> None:
        """`joined` False: the past is asked for before the first message is handed out."""
        self.name, self.endpoint = name, endpoint
        self.expected = 0
        self.newest_ns = 0
        self.joined_end = self.live_end = 0
        self.joined = self.plain = joined
        self.held: deque[Part] | None = None
        self.gap: Gap | None = None
        self.ask: Ask | None = None


def is_meant(records: np.ndarray) -> bool:
    """Whether the hole before these records was made on purpose: see the head of this module."""
    return int(records["record_type"][0]) in _CONFLATED and bool(int(records["flags"][0]) & Flag.GAP_BEFORE)


class Ask:
    """A question that is open: records [first, end) of a topic; end 0: its past.

    Attributes:
        next: of a past by time, where the answer before ended.
    """

    __slots__ = ("deadline", "end", "first", "next", "number", "send_at", "topic")

    def __init__(self, topic: Topic, first: int, end: int, now: float) -> None:
        self.topic, self.first, self.end = topic, first, end
        self.send_at = now
        self.deadline = inf  # its time runs from the first attempt to send it
        self.next: Any = None
        self.number = 0  # id of the request, per endpoint; 0 = none is under way

    def request(self, join_records: int, join_from_ns: int) -> dict[str, Any]:
        """The request as workers.wire describes it, without its id."""
        if not self.end and join_from_ns:
            return {"kind": "time", "topics": [self.topic.name], "from_ns": join_from_ns, "next": self.next}
        if self.end:
            return {"kind": "range", "topic": self.topic.name, "from": self.first, "to": self.end}
        return {"kind": "snapshot", "topic": self.topic.name, "limit": join_records}


class Healing:
    """The order of all topics of a subscriber.

    Attributes:
        ready: messages to be handed out before anything else is.
        asks: open questions.
        healed: records that were asked for because they had not arrived, and then did.
        joined: records of before the first message that were handed out.
        refused: why the past can't be had, (code, sentence), of each refusal that has not been taken.
        since_ns: topic -> since when its past is complete, ns; later than asked for if so much is not kept.
        past_gaps: what is missing in it.
        overlapped: records of the stream that the answer to joining had brought already: each is counted at most once.
        gaps, gap_count, records_missed, duplicates, restarts: see workers.subscriber.Subscriber.
    """

    def __init__(
        self, endpoints: list[bool], *, join_records: int, held_limit: int, timeout_s: float, join_from_ns: int = 0
    ) -> None:
        """`endpoints` says which of them can be asked; nothing is asked of the others."""
        self._can_ask = endpoints
        self.join_records, self.join_from_ns = join_records, join_from_ns
        self.refused: deque[tuple[str, str]] = deque(maxlen=GAPS_KEPT)
        self.since_ns: dict[str, int] = {}
        self.past_gaps: deque[PastGap] = deque(maxlen=GAPS_KEPT)
        self._held_limit = held_limit
        self._held_records = 0
        self._timeout_s = timeout_s
        self.ready: deque[Message] = deque()
        self.asks: dict[Ask, None] = {}
        self._under_way: dict[tuple[int, int], Ask] = {}  # by endpoint and id
        self._wake_at = inf
        self.gaps: deque[Gap] = deque(maxlen=GAPS_KEPT)
        self.gap_count = self.records_missed = self.duplicates = self.restarts = 0
        self.healed = self.joined = self.overlapped = 0

    def topic(self, name: str, endpoint: int) -> Topic:
        """A topic of which nothing is known."""
        return Topic(name, endpoint, not ((self.join_records or self.join_from_ns) and self._can_ask[endpoint]))

    def join(self, topic: Topic, now: float) -> None:
        """Ask for the past of a topic, if that is wanted; until it is answered, messages are held."""
        if not topic.joined and topic.ask is None:
            self._ask(topic, 0, 0, now)

    def take(self, topic: Topic, part: Part, now: float) -> Message | None:
        """Judge a message that is not simply the next one; returns what to hand out now, if that is anything."""
        if not topic.joined:
            self.join(topic, now)
        if topic.held is not None:
            self._hold(topic, part, now)
            return None
        return self._order(topic, part, now)

    def _order(self, topic: Topic, part: Part, now: float) -> Message | None:
        ring, number, records, newest_ns = part
        expected = topic.expected
        if expected and number > expected:
            if self._can_ask[topic.endpoint] and not is_meant(records):
                self._ask(topic, expected, number, now)
                self._hold(topic, part, now)
                return None
            self._lose(topic, number)
        elif expected and number < expected:
            if newest_ns > topic.newest_ns:
                self.restarts += 1
            else:
                known = min(len(records), expected - number)
                self._count_known(topic, number, number + known)
                if known == len(records):
                    return None
                records, number = records[known:], expected
        return self._next(topic, ring, number, records, newest_ns)

    def _count_known(self, topic: Topic, first: int, end: int) -> None:
        """Records [first, end) of the stream are known: from joining, or they came twice.

        On joining, the subscription and the question race: what is published between them is in both.
        """
        overlap = max(0, min(end, topic.joined_end) - max(first, topic.live_end))
        topic.live_end = max(topic.live_end, min(end, topic.joined_end))
        self.overlapped += overlap
        self.duplicates += end - first - overlap

    def _next(self, topic: Topic, ring: int, number: int, records: np.ndarray, newest_ns: int) -> Message:
        topic.expected = number + len(records)
        topic.newest_ns = max(topic.newest_ns, newest_ns)
        gap, topic.gap = topic.gap, None
        topic.plain = topic.held is None and topic.joined
        return Message(topic.name, ring, number, records, gap)

    def _lose(self, topic: Topic, until: int) -> None:
        """What is missing before `until` is lost: report it with the next message."""
        gap = Gap(topic.name, topic.expected, until)
        self.gaps.append(gap)
        self.gap_count += 1
        self.records_missed += until - topic.expected
        if topic.gap is not None and topic.gap.to_sequence == topic.expected:
            gap = Gap(topic.name, topic.gap.from_sequence, until)
        topic.expected, topic.gap, topic.plain = until, gap, False

    def _ask(self, topic: Topic, first: int, end: int, now: float) -> None:
        topic.ask = Ask(topic, first, end, now)
        self.asks[topic.ask] = None
        self._wake_at = min(self._wake_at, now)
        topic.plain = False
        if topic.held is None:
            topic.held = deque()

    def _hold(self, topic: Topic, part: Part, now: float) -> None:
        assert topic.held is not None
        topic.held.append(part)
        self._held_records += len(part.records)
        if self.join_from_ns and not topic.joined:  # the past goes on until now: what is dropped is in it
            while self._held_records > self._held_limit and len(topic.held) > 1:
                self._held_records -= len(topic.held.popleft().records)
        elif self._held_records > self._held_limit and topic.ask is not None:
            self.give_up(topic.ask, now)

    def due(self, now: float) -> list[Ask]:
        """Questions to send now (again); those whose time is over are given up first."""
        if now < self._wake_at:
            return []
        for ask in [ask for ask in self.asks if ask.deadline <= now]:
            self._refuse(ask, "timeout", "no answer")
            self.give_up(ask, now)
        room = UNDER_WAY - len(self._under_way)
        chosen = [ask for ask in self.asks if ask.send_at <= now and (ask.number or (room := room - 1) >= 0)]
        self._wake_at = min((min(ask.send_at, ask.deadline) for ask in self.asks if ask not in chosen), default=inf)
        if room < 0:
            self._wake_at = max(self._wake_at, now + RETRY_S)
        return chosen

    def sent(self, ask: Ask, number: int, now: float) -> None:
        """A question went out with that id; 0: it could not, for want of a connection."""
        self._forget(ask)
        ask.number = number
        if number:
            self._under_way[ask.topic.endpoint, number] = ask
        ask.deadline = min(ask.deadline, now + self._timeout_s)
        ask.send_at = now + (RESEND_S if number else RETRY_S)
        self._wake_at = min(self._wake_at, ask.send_at, ask.deadline)

    def _forget(self, ask: Ask) -> None:
        self._under_way.pop((ask.topic.endpoint, ask.number), None)
        ask.number = 0

    def next_at(self) -> float | None:
        """When `due` has something next; None if nothing is open."""
        return self._wake_at if self.asks else None

    def answer(self, endpoint: int, header: dict[str, Any], frames: list[Any], now: float) -> None:
        """An answer has come; frames as workers.replay_client.Answer has them. Answers to nothing open are ignored."""
        number = header.get("id")
        ask = self._under_way.get((endpoint, number)) if isinstance(number, int) else None
        if ask is None:
            return
        if header.get("kind") == "error":
            if header.get("code") == "busy":
                self._forget(ask)
                ask.send_at = now + RETRY_S
                self._wake_at = min(self._wake_at, ask.send_at)
                return
            if header.get("code") == "unknown_symbol" and not ask.end:
                ask.topic.expected = 1  # of a symbol that nobody knows yet, nothing has been published
                ask.topic.joined = True
            self._refuse(ask, str(header.get("code")), str(header.get("error")))
            self.give_up(ask, now)
            return
        if header.get("kind") == "time":
            self._tell(ask, header, frames, now)
        else:
            self._fill(ask, header, frames, now)

    def _refuse(self, ask: Ask, code: str, why: str) -> None:
        """Remember that a past by time, which was asked for in so many words, can't be had."""
        if self.join_from_ns and not ask.topic.joined and code != "other_shard":
            self.refused.append((code, f"{ask.topic.name}: {why}"))
            ask.topic.joined = True  # without its past

    def _tell(self, ask: Ask, header: dict[str, Any], frames: list[Any], now: float) -> None:
        """Part of the past by time: hand it out; after the last part the stream goes on at the number after it."""
        topic = ask.topic
        for wire, records in frames:
            self.ready.append(Message(topic.name, wire.ring, 0, records, None))
            self.joined += len(records)
        self.since_ns.setdefault(topic.name, int(header["since_ns"]))
        self.past_gaps.extend(PastGap(topic.name, *span) for span in header["unavailable"])
        if header["next"] is not None:
            del self.asks[ask]
            self._forget(ask)
            self._ask(topic, 0, 0, now)
            assert topic.ask is not None
            topic.ask.next = header["next"]
            return
        topic.joined, topic.expected = True, int(header["topic_sequences"][0]) + 1
        topic.joined_end = topic.expected
        topic.newest_ns = max(topic.newest_ns, int(header["as_of_ns"]))
        self.give_up(ask, now)

    def _fill(self, ask: Ask, header: dict[str, Any], frames: list[Any], now: float) -> None:
        topic, end, last = ask.topic, ask.end, int(header.get("topic_sequence", 0))
        settled = int(header.get("to", 0))
        if not end:
            topic.joined, end = True, last + 1
            topic.joined_end = end
            topic.newest_ns = max(topic.newest_ns, int(header.get("as_of_ns", 0)))
            settled = settled if header.get("records") else end
        for wire, records in frames:
            number = wire.topic_sequence
            if number == 0 or not len(records):
                continue  # a snapshot's records without a number
            if topic.expected and number > topic.expected:
                self._lose(topic, number)
            elif topic.expected and number < topic.expected:
                break  # not what was asked for
            newest_ns = int(records.view(np.uint64).reshape(-1, RECORD_SIZE_BYTES // 8)[-1, _TS_PUBLISH_WORD])
            self.ready.append(self._next(topic, wire.ring, number, records, newest_ns))
            if ask.end:
                self.healed += len(records)
            else:
                self.joined += len(records)
        if topic.expected == 0:
            topic.expected = end
        elif settled > topic.expected:
            self._lose(topic, min(settled, end))
        if ask.first < settled < end and settled <= last:
            del self.asks[ask]
            self._forget(ask)
            self._ask(topic, settled, end, now)
        else:
            self.give_up(ask, now)

    def give_up(self, ask: Ask, now: float) -> None:
        """Ask no further: what is still missing is lost, and what was held is handed out."""
        del self.asks[ask]
        self._forget(ask)
        topic, held = ask.topic, ask.topic.held
        topic.ask = topic.held = None
        if topic.expected and topic.expected < ask.end:
            self._lose(topic, ask.end)
        if held:
            topic.joined = True  # a topic whose past can't be had begins with its first message
        topic.plain = topic.joined and topic.gap is None
        if held:
            self._release(topic, held, now)

    def _release(self, topic: Topic, held: deque[Part], now: float) -> None:
        """Judge what was held; at another hole the rest goes on waiting."""
        while held:
            part = held.popleft()
            self._held_records -= len(part.records)
            message = self._order(topic, part, now)
            if message is not None:
                self.ready.append(message)
            if topic.held is not None:
                topic.held.extend(held)
                if self._held_records > self._held_limit and topic.ask is not None:
                    self.give_up(topic.ask, now)
                return
