"""FIX streams however they are cut and damaged; a session that loses messages against the list of what was sent."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import concatenate, empty
from tests.fix_server import trades
from workers.decoders._fix import FixDecoder, FixReader
from workers.fix_messages import Identity, encode
from workers.fix_numbers import Numbers
from workers.fix_protocol import Deliver, Message, Missed, Send, State
from workers.fix_session import FixSession, Terms

T0 = 1_700_000_000_000_000_000
VENUE = Identity("FIX.4.4", "VENUE", "CLIENT")
BODIES = [one.body for one in trades("A", 12)] + [
    [(268, "1"), (279, "1"), (269, "0"), (55, "B"), (270, "1.5"), (271, "2")]
]
STREAM = [encode(VENUE, "X", seq, T0, body) for seq, body in enumerate(BODIES, 1)]


def decode(pieces: list[bytes], room: int) -> tuple[np.ndarray, FixReader, FixDecoder]:
    names: dict[str, int] = {}
    reader = FixReader(4096)
    decoder = FixDecoder(lambda name: names.setdefault(name, len(names)))
    out, found = empty(room), [empty(0)]
    for piece in pieces:
        batch = reader.feed(piece, 1)
        assert len(batch.frames) == len(reader.heads)
        decoder.feed(batch.buffer, batch.frames)
        while count := decoder.decode(out):
            found.append(out[:count].copy())
    return concatenate(found), reader, decoder


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_any_cut_and_any_room_gives_the_same_records(places: list[int], room: int) -> None:
    data = b"".join(STREAM)
    whole, _, _ = decode([data], 64)
    pieces, reader, _ = decode(cut(data, places), room)
    assert (pieces.view(np.uint8) == whole.view(np.uint8)).all()
    assert (reader.messages, reader.garbled) == (len(STREAM), 0)


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.lists(st.tuples(st.integers(0, len(STREAM)), st.binary(max_size=40)), max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_damage_never_raises_and_harms_only_what_it_hits(
    flips: list[tuple[int, int]], places: list[int], noise: list[tuple[int, bytes]]
) -> None:
    parts = list(STREAM)
    for at, junk in sorted(noise, reverse=True):
        parts.insert(at, junk)
    data = bytearray(b"".join(parts))
    for at, value in flips:
        data[at % len(data)] = value
    _, reader, _ = decode(cut(bytes(data), places), 3)
    found = bytes(data)
    intact = [one for one in STREAM if one in found]
    assert reader.messages >= len(intact) - len(flips) - len(noise)  # noise may begin like a message and take one along
    assert reader.messages <= len(STREAM)


@given(st.binary(max_size=400), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_a_decoder_survives_any_frame(body: bytes, room: int) -> None:
    decoder = FixDecoder(lambda _: 0)
    out = empty(room)
    for kind in (b"X", b"W", b"i"):
        decoder.feed_message(b"8=FIX.4.4\x019=5\x0135=" + kind + b"\x01" + body, 1)
        while decoder.decode(out):
            pass


@st.composite
def books(draw: st.DrawFn) -> list[tuple[int, str, str, int, int]]:
    """Changes (action, side, id, price, size) of one instrument."""
    change = st.tuples(
        st.sampled_from((0, 1, 2)),
        st.sampled_from("01"),
        st.sampled_from("abcdef"),
        st.integers(1, 4),
        st.integers(1, 9),
    )
    return draw(st.lists(change, max_size=60))


@given(books())
@settings(max_examples=150, deadline=None)
def test_books_of_named_entries_equal_a_dictionary(changes: list[tuple[int, str, str, int, int]]) -> None:
    """What level2 records leave behind is what a dictionary of entries sums up to, and so is the last quote."""
    decoder = FixDecoder(lambda _: 0)
    out = empty(64)
    decoder.feed_message(encode(VENUE, "W", 1, T0, [(55, "A"), (268, 0)]), 1)
    decoder.decode(out)
    entries: dict[str, tuple[str, int, int]] = {}
    levels: dict[tuple[int, float], float] = {}
    quote = None
    for action, side, name, price, size in changes:
        body: list[tuple[int, str | int]] = [(268, 1), (279, action), (269, side), (278, name), (55, "A")]
        body += [(270, price), (271, size)] if action < 2 else []
        decoder.feed_message(encode(VENUE, "X", 2, T0, body), 1)
        if action < 2:
            entries[name] = (side, price, size)
        else:
            entries.pop(name, None)
        while count := decoder.decode(out):
            for row in out[:count]:
                if row["record_type"] == 2:
                    quote = (float(row["bid"]), float(row["bid_size"]), float(row["ask"]), float(row["ask_size"]))
                elif row["action"] == 3:
                    del levels[int(row["side"]), float(row["price"])]
                else:
                    levels[int(row["side"]), float(row["price"])] = float(row["size"])
    wanted: dict[tuple[int, float], float] = {}
    for side, price, size in entries.values():
        key = (1 + int(side), float(price))
        wanted[key] = wanted.get(key, 0.0) + size
    assert levels == wanted
    for side, choose, at in ((1, max, 0), (2, min, 2)):
        prices = [price for kind, price in wanted if kind == side]
        if prices and quote is not None:
            assert quote[at : at + 2] == (choose(prices), wanted[side, choose(prices)])


@given(st.sets(st.integers(2, 40)), st.sets(st.integers(2, 40)), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_a_lossy_line_delivers_each_message_once_and_in_order(lost: set[int], refilled: set[int], room: int) -> None:
    """The venue answers each resend request; messages of `refilled` are gap-filled instead of sent again."""
    session = FixSession(Identity("FIX.4.4", "CLIENT", "VENUE"), Numbers(), Terms(max_held=room))
    session.opened(T0)
    session.receive(Message("A", 1, encode(VENUE, "A", 1, T0, [(98, 0), (108, 30)])), T0)
    delivered: list[int] = []
    missed: list[int] = []

    def work(message: Message) -> None:
        waiting = [message]
        while waiting:
            for action in session.receive(waiting.pop(0), T0):
                if isinstance(action, Deliver):
                    delivered.append(action.seq)
                elif isinstance(action, Missed):
                    missed.extend(range(action.first, action.last))
                elif isinstance(action, Send) and b"\x0135=2\x01" in action.data:
                    first, last = (int(action.data.split(tag)[1].split(b"\x01")[0]) for tag in (b"\x017=", b"\x0116="))
                    for seq in range(first, last + 1):
                        if seq in refilled:
                            body = [(123, "Y"), (36, seq + 1)]
                            data = encode(VENUE, "4", seq, T0, body, first_sent_ns=T0)
                            waiting.append(Message("4", seq, data, possdup=True))
                        else:
                            waiting.append(Message("X", seq, b"", possdup=True))

    for seq in range(2, 42):
        if seq not in lost:
            work(Message("X", seq, b""))
    work(Message("X", 42, b""))
    assert session.state is State.ACTIVE
    assert delivered == sorted(set(delivered))
    assert set(range(2, 43)) - set(delivered) <= refilled
    assert set(missed) <= refilled - set(delivered)
