"""What waits for one slow client: in order while it is short, then the newest of each topic, never more than a bound.

Pure: messages in, messages out, no clock and no socket. `ws_client.py` has one for each client that can't take what
comes, and none for the others.

    QUEUEING     every message waits in order, up to `limit` of them
        | one more
    CONFLATING   per topic and ring the newest message; each that it replaces is counted and becomes part of a gap
        |        message that goes out before it. A topic keeps its place, so that a busy one starves no other
        | `take` has emptied it: QUEUEING again
    overflow     more than `topics_limit` topics, or `answers_limit` answers to requests of its own: `push` says False,
                 and the client has to be cut

The frames are shared by all clients; a backlog holds references.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, NamedTuple

from workers.stream import gap_frame

ANSWER: Final = -1  # key of a message that is no topic's: answers and gaps; never conflated
ANSWERS_LIMIT: Final = 256


class Message(NamedTuple):
    """One frame for any number of clients. `key` is the topic's number, or ANSWER; `sequence` that of its ring."""

    key: int
    ring: int
    sequence: int
    topic: str
    frame: bytes


class _Waiting:
    """The newest message of a topic, and what it stands for."""

    __slots__ = ("dropped", "dropped_from", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.dropped = 0
        self.dropped_from = message.sequence


class Backlog:
    """What waits for one client."""

    __slots__ = ("_answers", "_limit", "_queue", "_serial", "_topics", "_topics_limit", "conflated")

    def __init__(self, limit: int, topics_limit: int) -> None:
        """`limit` messages wait in order; beyond it, up to `topics_limit` topics with one message each."""
        self._limit = limit
        self._topics_limit = topics_limit
        self._queue: deque[Message] = deque()
        self._topics: OrderedDict[tuple[int, int], _Waiting] = OrderedDict()
        self._answers = 0
        self._serial = 0  # tells answers apart
        self.conflated = 0  # messages that a newer one has replaced

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._queue) + len(self._topics)

    @property
    def conflating(self) -> bool:
        """Whether only the newest of each topic is kept."""
        return bool(self._topics)

    def push(self, message: Message) -> bool:
        """Let a message wait. False: there is no room even so; the client has to go."""
        if message.key == ANSWER:
            self._answers += 1
            if self._answers > ANSWERS_LIMIT:
                return False
        if not self._topics:
            if len(self._queue) < self._limit:
                self._queue.append(message)
                return True
            for waiting in self._queue:
                self._conflate(waiting)
            self._queue.clear()
        self._conflate(message)
        return len(self._topics) <= self._topics_limit + self._answers

    def _conflate(self, message: Message) -> None:
        if message.key == ANSWER:
            self._serial += 1
            self._topics[ANSWER, self._serial] = _Waiting(message)
            return
        key = (message.key, message.ring)
        waiting = self._topics.get(key)
        if waiting is None:
            self._topics[key] = _Waiting(message)
            return
        waiting.message = message
        waiting.dropped += 1
        self.conflated += 1

    def take(self, limit_bytes: int) -> tuple[list[bytes], int]:
        """(frames, messages) that may go now: at least one message if any waits, and not much above `limit_bytes`."""
        frames: list[bytes] = []
        size, messages = 0, 0
        while size < limit_bytes:
            if self._queue:
                message = self._queue.popleft()
            elif self._topics:
                _, waiting = self._topics.popitem(last=False)
                message = waiting.message
                if waiting.dropped:
                    gap = gap_frame(
                        message.topic,
                        message.ring,
                        (waiting.dropped_from, message.sequence),
                        waiting.dropped,
                        "conflated",
                    )
                    frames.append(gap)
                    size += len(gap)
            else:
                break
            if message.key == ANSWER:
                self._answers -= 1
            frames.append(message.frame)
            size += len(message.frame)
            messages += 1
        return frames, messages

    def clear(self) -> None:
        """Forget everything that waits."""
        self._queue.clear()
        self._topics.clear()
        self._answers = 0
