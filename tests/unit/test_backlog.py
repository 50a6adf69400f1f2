"""What waits for a slow client: in order, then the newest of each topic, within bounds, and every loss told."""

from __future__ import annotations

import json
import random

from workers.backlog import ANSWER, ANSWERS_LIMIT, Backlog, Message
from workers.stream import answer_frame, data_frame


def message(key: int, sequence: int, ring: int = 2) -> Message:
    topic = f"marketdata.tick.S{key}"
    return Message(key, ring, sequence, topic, data_frame(topic, {"sequence": sequence}))


def answer(number: int) -> Message:
    return Message(ANSWER, 0, 0, "", answer_frame("pong", number))


def texts(frames: list[bytes]) -> list[dict[str, object]]:
    return [json.loads(frame[frame.index(b"{") :]) for frame in frames]


def take_all(backlog: Backlog) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    while len(backlog):
        frames, messages = backlog.take(100)
        assert messages > 0
        found += texts(frames)
    return found


def test_up_to_the_limit_everything_waits_in_order() -> None:
    backlog = Backlog(10, 100)
    for sequence in range(10):
        assert backlog.push(message(sequence % 3, sequence))
    assert not backlog.conflating
    assert [m["data"]["sequence"] for m in take_all(backlog)] == list(range(10))  # type: ignore[index]
    assert backlog.conflated == 0


def test_beyond_it_the_newest_of_each_topic_waits_and_a_gap_tells_of_the_others() -> None:
    backlog = Backlog(10, 100)
    for sequence in range(100, 121):
        assert backlog.push(message(sequence % 3, sequence))
    assert backlog.conflating
    assert len(backlog) == 3
    found = take_all(backlog)
    assert [m["type"] for m in found] == ["gap", "data"] * 3
    for gap, data in zip(found[::2], found[1::2], strict=True):
        first, to = gap["from"], gap["to"]
        assert to == data["data"]["sequence"]  # type: ignore[index]
        assert gap["count"] == len(range(first, to, 3)) == 6  # type: ignore[call-overload]
        assert gap["topic"] == data["topic"]
    assert backlog.conflated == 18
    assert backlog.push(message(0, 200))
    assert not backlog.conflating


def test_rings_are_conflated_apart_because_their_sequences_are() -> None:
    backlog = Backlog(1, 100)
    for sequence in range(5):
        backlog.push(message(0, sequence, ring=2))
        backlog.push(message(0, sequence, ring=3))
    assert len(backlog) == 2


def test_answers_are_never_conflated_and_too_many_are_too_many() -> None:
    backlog = Backlog(4, 100)
    for number in range(ANSWERS_LIMIT):
        assert backlog.push(answer(number))
        assert backlog.push(message(1, number))
    found = take_all(backlog)
    assert [m["id"] for m in found if m["type"] == "pong"] == list(range(ANSWERS_LIMIT))
    for number in range(ANSWERS_LIMIT):
        assert backlog.push(answer(number))
    assert not backlog.push(answer(0))


def test_too_many_topics_are_no_longer_kept() -> None:
    backlog = Backlog(4, 10)
    assert all(backlog.push(message(key, key)) for key in range(10))
    assert not backlog.push(message(10, 10))


def test_whatever_comes_and_goes_each_message_arrives_or_is_counted_in_a_gap() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        backlog = Backlog(chance.randint(1, 20), 50)
        pushed: dict[str, list[int]] = {}
        out: list[dict[str, object]] = []
        for sequence in range(300):
            key = chance.randrange(5)
            pushed.setdefault(f"marketdata.tick.S{key}", []).append(sequence)
            assert backlog.push(message(key, sequence))
            if chance.random() < 0.1:
                out += texts(backlog.take(chance.randint(1, 2000))[0])
        out += take_all(backlog)
        for topic, sequences in pushed.items():
            mine = [m for m in out if m["topic"] == topic]
            got = [m["data"]["sequence"] for m in mine if m["type"] == "data"]  # type: ignore[index]
            gaps = [m for m in mine if m["type"] == "gap"]
            missing = [s for s in sequences if any(g["from"] <= s < g["to"] for g in gaps)]  # type: ignore[operator]
            assert sorted(got + missing) == sequences, seed
            assert got == sorted(got), seed
            assert sum(g["count"] for g in gaps) == len(missing), seed  # type: ignore[misc]
