"""How fast do FIX incremental refreshes get from a socket's bytes into a ring, on one core?

    fix_decode        35=X with 11 entries at the mean into level2 records and quotes   peer: simplefix, parsing alone

        this process, pinned
        bytes, 64 KiB at a time --> FixReader (length, checksum) --> FixSession (numbers) --> FixDecoder (books)
            --> batch of 2048 records --> publish_batch --> ring, nobody reads

The messages are made in the form of a captured feed of currencies: entries with ids, new ones and deletions of older
ones, 25, 18, 2 and 1 in a message by turns as in the capture, of 20 symbols. The peer splits the same messages into
fields, one at a time, which suits it best; it checks no checksum, makes no number of any text, and keeps no book.

Verified: before anything is timed, the books that the records leave behind equal a dictionary of the entries; in each
round as many messages and records as then, nothing malformed or garbled, no gap, and the ring's newest sequence equal
to the records.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Final, NamedTuple

from perf.errors import PeerMissing, require
from perf.process import pinned, scratch_engine
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING
from shm.instruments import InstrumentTable
from shm.layout import Action, RecordType, empty
from shm.ring import RingWriter
from workers.decoders._fix import FixDecoder, FixReader

BATCH: Final = 2048
PIECE_BYTES: Final = 65536  # what one read of a socket brings when it is busy
ENTRIES: Final = (25, 18, 2, 1)  # of the captured refreshes
SYMBOLS: Final = 20
LIVE: Final = 40  # entries of a symbol's book
PEER_SHARE: Final = 20

Books = dict[str, dict[tuple[int, float], float]]


class Stream(NamedTuple):
    """Messages as they come over the wire, and the books after all of them: symbol -> (side, price) -> size."""

    messages: list[bytes]
    books: Books


def decode(plan: Plan) -> Row:
    """Incremental refreshes a second."""
    stream = make(plan.amount(60_000))
    data = b"".join(stream.messages)
    with pinned(0):
        records = verify(stream, data)
        ours, theirs = alternate(plan, lambda: _rate(stream, data, records), lambda: _simplefix_rate(stream))
    size = len(data) / len(stream.messages)
    note = f"{size:.0f} bytes, {records / len(stream.messages):.1f} records a message"
    note += f"; runs {ours.spread('{:.0f}', 1e3)} k/s"
    return compare("fix_decode", "messages/s", ours, "simplefix", theirs, target=Target(100e3, "higher"), note=note)


def make(count: int) -> Stream:
    """`count` messages; the same ones each time."""
    dice = random.Random(11)
    live: list[deque[tuple[int, int, float, int]]] = [deque() for _ in range(SYMBOLS)]
    messages, number = [], 2_291_660_000
    for turn in range(count):
        symbol = dice.randrange(SYMBOLS)
        book, entries = live[symbol], []
        for _ in range(ENTRIES[turn % len(ENTRIES)]):
            if len(book) > LIVE or (len(book) > LIVE // 2 and dice.random() < 0.5):
                gone = book.popleft()[0]
                entries.append(f"279=2|278={gone}|55=S{symbol}|")
                continue
            number += 1
            side, size = dice.randrange(2), 50_000 * dice.randrange(1, 400)
            price = round(1.08 + symbol + (1 if side else -1) * dice.randrange(1, 60) / 1e5, 5)
            book.append((number, side, price, size))
            entries.append(f"279=0|269={side}|278={number}|55=S{symbol}|270={price}|271={size}|")
        head = f"35=X|34={turn + 2}|49=cServer|50=QUOTE|52=20230124-13:30:46.130|56=demo.client|"
        messages.append(_wire(f"{head}268={len(entries)}|{''.join(entries)}"))
    books: Books = {}
    for symbol, book in enumerate(live):
        levels = books.setdefault(f"S{symbol}", {})
        for _, side, price, size in book:
            levels[1 + side, price] = levels.get((1 + side, price), 0.0) + size
    return Stream(messages, books)


def _wire(body: str) -> bytes:
    text = body.replace("|", "\x01").encode()
    whole = b"8=FIX.4.4\x019=%d\x01" % len(text) + text
    return whole + b"10=%03d\x01" % (sum(whole) % 256)


def verify(stream: Stream, data: bytes) -> int:
    """Decode once, not timed: the books must be right. Returns how many records there are."""
    names: dict[str, int] = {}
    decoder = FixDecoder(lambda name: names.setdefault(name, len(names)), alone=True)
    reader, out, count = FixReader(), empty(BATCH), 0
    found: dict[int, dict[tuple[int, float], float]] = {}
    for at in range(0, len(data), PIECE_BYTES):
        batch = reader.feed(data[at : at + PIECE_BYTES], 1)
        decoder.feed(batch.buffer, batch.frames)
        while got := decoder.decode(out):
            count += got
            rows = out[:got][out["record_type"][:got] == RecordType.LEVEL2]
            for row in rows[["instrument_id", "side", "price", "size", "action"]].tolist():
                book = found.setdefault(row[0], {})
                if row[4] == Action.DELETE:
                    del book[row[1], row[2]]
                else:
                    book[row[1], row[2]] = row[3]
    require({name: found[number] for name, number in names.items()} == stream.books, "the books are wrong")
    return count


def _rate(stream: Stream, data: bytes, records: int) -> float:
    from workers.fix_messages import Identity, encode
    from workers.fix_numbers import Numbers
    from workers.fix_protocol import Message
    from workers.fix_session import FixSession, Terms

    venue, us = Identity("FIX.4.4", "cServer", "demo.client"), Identity("FIX.4.4", "demo.client", "cServer")
    numbers = Numbers()
    session = FixSession(us, numbers, Terms())
    session.opened(1)
    session.receive(Message("A", 1, encode(venue, "A", 1, 1, [(98, 0), (108, 30)])), 1)
    reader, out = FixReader(), empty(BATCH)
    with scratch_engine() as engine, RingWriter.create(engine, RING) as writer:
        instruments = InstrumentTable.create(engine)
        decoder = FixDecoder(instruments.intern, alone=True, feed_id=1)
        publish, feed, fill = writer.publish_batch, reader.feed, decoder.decode
        start = time.perf_counter_ns()
        for at in range(0, len(data), PIECE_BYTES):
            batch = feed(data[at : at + PIECE_BYTES], start)
            taken = session.take(reader.heads, 0, start)
            decoder.feed(batch.buffer, batch.frames[:taken])
            while got := fill(out):
                publish(out, got)
        elapsed_ns = time.perf_counter_ns() - start
        published = writer.next_sequence - 1
        instruments.close()
    counters = decoder.counters
    require(counters.messages == {"X": len(stream.messages)}, f"{counters.messages} messages were decoded")
    require(session.expected == len(stream.messages) + 2, "numbers were lost")
    require(not counters.malformed and not reader.garbled, f"refused: {counters.malformed}, garbled {reader.garbled}")
    require(published == records, f"{published} records are in the ring, not {records}")
    return len(stream.messages) / elapsed_ns * 1e9


def _simplefix_rate(stream: Stream) -> float:
    try:
        import simplefix
    except ImportError as error:
        raise PeerMissing(str(error)) from error
    messages = stream.messages[: len(stream.messages) // PEER_SHARE]  # it is that much slower
    parser = simplefix.FixParser()
    fields = 0
    start = time.perf_counter_ns()
    for message in messages:
        parser.append_buffer(message)
        fields += len(parser.get_message().pairs)
    elapsed_ns = time.perf_counter_ns() - start
    require(fields == sum(message.count(b"\x01") for message in messages), "simplefix lost fields")
    return len(messages) / elapsed_ns * 1e9
