"""Order books of the decoders against a slow model: quotes after each message, best prices in each level2 record."""

from __future__ import annotations

import math
import random
import struct
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import Action, Flag, RecordType, Side, empty
from tests.multicast import iex, mold
from workers.decoders._iex import IexDecoder
from workers.decoders._itch import ItchDecoder

STOCKS = (b"AAA     ", b"BBB     ")
Best = tuple[float, float, int]  # price, size, orders
NONE: Best = (math.nan, 0.0, 0)


class Book:
    """One instrument, the slow way."""

    def __init__(self) -> None:
        self.levels: dict[bytes, dict[int, list[int]]] = {b"B": defaultdict(list), b"S": defaultdict(list)}

    def best(self, side: bytes) -> Best:
        prices = [price for price, sizes in self.levels[side].items() if sizes]
        if not prices:
            return NONE
        price = max(prices) if side == b"B" else min(prices)
        return price / 1e4, float(sum(self.levels[side][price])), len(self.levels[side][price])


class Venue:
    """An ITCH venue: says messages, and what the best prices are after each."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.orders: dict[int, list[int]] = {}  # reference -> stock, side, price, shares
        self.next = 1
        self.messages: list[bytes] = []
        self.after: list[tuple[int, Best, Best]] = []  # stock, bid, ask

    def book(self, stock: int) -> tuple[Best, Best]:
        book = Book()
        for at, side, price, shares in self.orders.values():
            if at == stock:
                book.levels[b"B" if side else b"S"][price].append(shares)
        return book.best(b"B"), book.best(b"S")

    def say(self, kind: bytes, stock: int, rest: bytes) -> None:
        self.messages.append(kind + struct.pack(">HH6s", stock, 0, bytes(6)) + rest)
        self.after.append((stock, *self.book(stock)))

    def step(self) -> None:
        dice = self.dice
        kind = dice.choice("AAAAFECXDU") if self.orders else "A"
        if kind in "AF":
            stock, side = dice.randrange(2), dice.randrange(2)
            price, shares = 10_000 + dice.randrange(30) * 100, dice.randrange(1, 500)
            self.orders[self.next] = [stock, side, price, shares]
            rest = struct.pack(">QcI8sI", self.next, b"B" if side else b"S", shares, STOCKS[stock], price)
            self.next += 1
            self.say(kind.encode(), stock, rest + (b"MPID" if kind == "F" else b""))
            return
        reference = dice.choice(list(self.orders))
        stock, side, price, shares = self.orders[reference]
        gone = dice.choice([shares, dice.randrange(1, shares + 1)])
        if kind == "D":
            gone = shares
        if kind != "U":
            self.orders[reference][3] -= gone
            if not self.orders[reference][3]:
                del self.orders[reference]
        if kind == "E":
            self.say(b"E", stock, struct.pack(">QIQ", reference, gone, 7))
        elif kind == "C":
            self.say(b"C", stock, struct.pack(">QIQcI", reference, gone, 7, dice.choice([b"Y", b"N"]), price + 1))
        elif kind == "X":
            self.say(b"X", stock, struct.pack(">QI", reference, gone))
        elif kind == "D":
            self.say(b"D", stock, struct.pack(">Q", reference))
        else:
            del self.orders[reference]
            price, shares = 10_000 + dice.randrange(30) * 100, dice.randrange(1, 500)
            self.orders[self.next] = [stock, side, price, shares]
            self.say(b"U", stock, struct.pack(">QQII", reference, self.next, shares, price))
            self.next += 1


def decode(decoder: ItchDecoder | IexDecoder, packet: bytes, room: int) -> list[np.void]:
    decoder.feed_message(packet, 1)
    found: list[np.void] = []
    out = empty(room)
    while count := decoder.decode(out):
        found += list(out[:count].copy())
    return found


def same(a: Best, b: Best) -> bool:
    return a[1:] == b[1:] and (a[0] == b[0] or (math.isnan(a[0]) and math.isnan(b[0])))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), room=st.integers(1, 5), per_packet=st.integers(1, 4))
def test_itch_quotes_are_those_of_the_orders(seed: int, room: int, per_packet: int) -> None:
    venue = Venue(random.Random(seed))
    for _ in range(150):
        venue.step()
    decoder = ItchDecoder(lambda symbol: STOCKS.index(symbol.encode().ljust(8)), book=True)
    said: dict[int, tuple[Best, Best]] = {0: (NONE, NONE), 1: (NONE, NONE)}
    expected = []
    for stock, bid, ask in venue.after:
        if not (same(said[stock][0], bid) and same(said[stock][1], ask)):
            said[stock] = (bid, ask)
            expected.append((stock, bid, ask))
    records: list[np.void] = []
    for start in range(0, len(venue.messages), per_packet):
        records += decode(decoder, mold(1 + start, venue.messages[start : start + per_packet]), room)
    quotes = [r for r in records if r["record_type"] == RecordType.QUOTE]
    assert len(quotes) == len(expected)
    for quote, (stock, bid, ask) in zip(quotes, expected, strict=True):
        assert quote["instrument_id"] == stock
        assert same((quote["bid"], quote["bid_size"], int(quote["bid_count"])), bid)
        assert same((quote["ask"], quote["ask_size"], int(quote["ask_count"])), ask)
        assert not quote["flags"] & Flag.INCOMPLETE
    assert decoder.errors == 0
    # An event is one message's records: as many ends as messages.
    assert sum(bool(r["flags"] & Flag.LAST_OF_BATCH) for r in records) == len(venue.messages)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), room=st.integers(1, 5))
def test_deep_quotes_are_those_of_the_levels_at_the_end_of_each_event(seed: int, room: int) -> None:
    dice = random.Random(seed)
    levels: dict[int, dict[int, int]] = {0: {}, 1: {}}  # side (1 = buy) -> price -> size
    decoder = IexDecoder(lambda _: 3, book=True)
    said: tuple[Best, Best] = (NONE, NONE)

    def best() -> tuple[Best, Best]:
        bids, asks = levels[1], levels[0]
        return (
            (max(bids) / 1e4, float(bids[max(bids)]), 0) if bids else NONE,
            (min(asks) / 1e4, float(asks[min(asks)]), 0) if asks else NONE,
        )

    for number in range(200):
        side, last = dice.randrange(2), dice.random() < 0.7
        price, size = 10_000 + dice.randrange(40) * 100, dice.choice([0, 100, 200])
        message = struct.pack("<BBq8sIq", ord("8" if side else "5"), int(last), 1, b"ZXZZT   ", size, price)
        if size:
            levels[side][price] = size
        else:
            levels[side].pop(price, None)
        records = decode(decoder, iex(1 + number, [message], protocol=0x8004), room)
        bid, ask = best()
        level2 = records[0]
        assert (level2["record_type"], level2["side"]) == (RecordType.LEVEL2, Side.BUY if side else Side.SELL)
        assert level2["action"] == (Action.MODIFY if size else Action.DELETE)
        assert same((level2["best_bid"], 0.0, 0), (bid[0], 0.0, 0))
        assert same((level2["best_ask"], 0.0, 0), (ask[0], 0.0, 0))
        changed = last and not (same(said[0], bid) and same(said[1], ask))
        assert len(records) == 1 + changed
        if changed:
            said = (bid, ask)
            assert same((records[1]["bid"], records[1]["bid_size"], 0), bid)
            assert same((records[1]["ask"], records[1]["ask_size"], 0), ask)
        assert [bool(r["flags"] & Flag.LAST_OF_BATCH) for r in records] == [False] * changed + [last]


def test_quotes_of_books_that_may_lack_orders_say_so_until_the_next_day() -> None:
    decoder = ItchDecoder(lambda _: 0, book=True)

    def add(reference: int, price: int) -> bytes:
        return struct.pack(">cHH6sQcI8sI", b"A", 0, 0, bytes(6), reference, b"B", 1, STOCKS[0], price)

    def flag_of(first: int, messages: list[bytes]) -> bool:
        records = decode(decoder, mold(first, messages), 8)
        return bool(records[-1]["flags"] & Flag.INCOMPLETE)

    assert not flag_of(1, [add(1, 100)])
    assert flag_of(3, [add(2, 200)])  # message 2 never came
    start = struct.pack(">cHH6sc", b"S", 0, 0, bytes(6), b"O")
    assert not flag_of(4, [start, add(3, 100)])
    late = ItchDecoder(lambda _: 0, book=True)
    records = decode(late, mold(500, [add(1, 100)]), 8)
    assert records[-1]["record_type"] == RecordType.QUOTE
    assert records[-1]["flags"] & Flag.INCOMPLETE


def test_a_reference_used_again_is_one_order_in_the_book() -> None:
    decoder = ItchDecoder(lambda _: 0, book=True)

    def add(reference: int, shares: int, price: int) -> bytes:
        return struct.pack(">cHH6sQcI8sI", b"A", 0, 0, bytes(6), reference, b"B", shares, STOCKS[0], price)

    records = decode(decoder, mold(1, [add(1, 100, 30_000), add(2, 5, 10_000), add(1, 7, 20_000)]), 16)
    assert (records[-1]["bid"], records[-1]["bid_size"], records[-1]["bid_count"]) == (2.0, 7.0, 1)


def test_a_new_session_of_a_deep_channel_starts_with_empty_books() -> None:
    decoder = IexDecoder(lambda _: 0, book=True)

    def level(price: int) -> bytes:
        return struct.pack("<BBq8sIq", ord("8"), 1, 1, b"ZXZZT   ", 100, price)

    decode(decoder, iex(1, [level(20_000)], protocol=0x8004, session=1), 8)
    quote = decode(decoder, iex(1, [level(10_000)], protocol=0x8004, session=2), 8)[-1]
    assert (quote["bid"], bool(quote["flags"] & Flag.INCOMPLETE)) == (1.0, False)


@pytest.mark.parametrize("name", ["itch", "deep"])
def test_without_the_option_there_are_no_books(name: str) -> None:
    if name == "itch":
        message = struct.pack(">cHH6sQcI8sI", b"A", 0, 0, bytes(6), 1, b"B", 1, STOCKS[0], 100)
        (record,) = decode(ItchDecoder(lambda _: 0), mold(1, [message]), 8)
    else:
        message = struct.pack("<BBq8sIq", ord("8"), 1, 1, b"ZXZZT   ", 100, 10_000)
        (record,) = decode(IexDecoder(lambda _: 0), iex(1, [message], protocol=0x8004), 8)
    assert record["record_type"] == RecordType.LEVEL2
    assert math.isnan(record["best_bid"])
