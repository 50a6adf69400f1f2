"""Who gets which topic, and what a late join lets through."""

from __future__ import annotations

import random

from shm.errors import BadArgument
from shm.layout import NO_INSTRUMENT, RecordType, StatusCode, empty
from workers.audience import (
    ALERT_KEY,
    ERROR_KEY,
    INSTRUMENTS,
    NO_KEY,
    SOMEBODY,
    STATUS_KEY,
    TRADING_KEY,
    UNRESOLVED,
    Audience,
    key_parts,
    topic_keys,
)
from workers.backlog import Message
from workers.late_join import LateJoin
from workers.stream import Pattern, parse_topic
from workers.wire import symbol_topic


class Symbols:
    """A symbol table that grows."""

    def __init__(self, *symbols: str) -> None:
        self.known = list(symbols)

    def find(self, symbol: str) -> int | None:
        return self.known.index(symbol) if symbol in self.known else None

    def symbol(self, instrument_id: int) -> str:
        if instrument_id >= len(self.known):
            raise BadArgument("unknown")
        return self.known[instrument_id]


def clients_of(audience: Audience[str], key: int) -> set[str]:
    if audience.wanted[key] == UNRESOLVED:
        audience.resolve(key)
    found = list(audience.clients(key)) if audience.wanted[key] == SOMEBODY else []
    assert len(found) == len(set(found))
    return set(found)


def test_every_record_has_the_key_of_its_topic() -> None:
    records = empty(7)
    records["record_type"] = [RecordType.TICK, RecordType.NEWS, *[RecordType.STATUS] * 3, RecordType.QUOTE, 0]
    records["instrument_id"] = [3, 65535, 0, 0, 0xFFFFFFFF, 65536, 1]
    records["code"][2:5] = [StatusCode.REJECTED, StatusCode.LATENCY_ALERT, 250]
    keys = topic_keys(records).tolist()
    tick, news = 3 + (RecordType.TICK - 1) * INSTRUMENTS, 65535 + (RecordType.NEWS - 1) * INSTRUMENTS
    assert keys == [tick, news, ERROR_KEY, ALERT_KEY, STATUS_KEY, NO_KEY, NO_KEY]


def test_trading_status_has_a_key_for_each_instrument_and_the_topic_of_status() -> None:
    records = empty(4)
    records["record_type"], records["code"] = RecordType.STATUS, StatusCode.TRADING_STATUS
    records["instrument_id"] = [0, 1, 65535, NO_INSTRUMENT]
    assert topic_keys(records).tolist() == [TRADING_KEY, TRADING_KEY + 1, TRADING_KEY + 65535, STATUS_KEY]
    audience: Audience[str] = Audience(Symbols("A", "AB"))
    wants = {
        "all": "marketdata.*", "status": "marketdata.feed.status", "any": "marketdata.*.A", "a": "marketdata.status.A",
        "start": "marketdata.status.A*", "trade": "marketdata.trade.A",
    }  # fmt: skip
    for client, topic in wants.items():
        audience.add(client, parse_topic(topic, ""))
    assert clients_of(audience, TRADING_KEY) == {"all", "status", "any", "a", "start"}
    assert clients_of(audience, TRADING_KEY + 1) == {"all", "status", "start"}
    assert clients_of(audience, STATUS_KEY) == {"all", "status"}
    assert (audience.names[TRADING_KEY], audience.symbol_of[TRADING_KEY]) == (b"marketdata.feed.status", "A")
    for client in ("all", "status", "start"):
        audience.remove(client, parse_topic(wants[client], ""))
    assert clients_of(audience, TRADING_KEY) == {"any", "a"}
    audience.remove("a", parse_topic(wants["a"], ""))
    audience.remove("any", parse_topic(wants["any"], ""))
    assert clients_of(audience, TRADING_KEY) == set()
    audience.add("late", parse_topic("marketdata.status.AB", ""))
    assert clients_of(audience, TRADING_KEY + 1) == {"late"}


def test_random_subscriptions_reach_exactly_whom_their_patterns_match() -> None:
    topics = ["marketdata.*", "marketdata.*.*", "marketdata.tick.*", "marketdata.quote.A*", "marketdata.*.AA"]
    topics += ["marketdata.tick.AA", "marketdata.quote.B", "marketdata.tick.NEW", "marketdata.error"]
    patterns = [parse_topic(topic, "") for topic in topics]
    for seed in range(60):
        chance = random.Random(seed)
        symbols = Symbols("A", "AA", "B", "B.C")
        audience: Audience[str] = Audience(symbols)
        wants: dict[str, set[Pattern]] = {client: set() for client in "xyz"}
        for step in range(60):
            client, pattern = chance.choice("xyz"), chance.choice(patterns)
            if pattern in wants[client]:
                audience.remove(client, pattern)
                wants[client].discard(pattern)
            else:
                audience.add(client, pattern)
                wants[client].add(pattern)
            if step == 30:
                symbols.known.append("NEW")
            assert audience.subscriptions == sum(map(len, wants.values()))
            for key in [kind * INSTRUMENTS + n for kind in range(3) for n in range(len(symbols.known))] + [ERROR_KEY]:
                parts = key_parts(key, symbols)
                expected = {c for c, found in wants.items() if any(p.matches(*parts) for p in found)}
                assert clients_of(audience, key) == expected, (seed, step, key)


def test_a_number_that_nobody_interned_concerns_nobody_until_it_is() -> None:
    symbols = Symbols()
    audience: Audience[str] = Audience(symbols)
    audience.add("x", parse_topic("marketdata.*", ""))
    assert clients_of(audience, 0) == set()
    symbols.known.append("A")
    assert clients_of(audience, 0) == {"x"}


def tick(instrument: int, sequence: int, ring: int = 2) -> Message:
    return Message(instrument, ring, sequence, symbol_topic(RecordType.TICK, f"S{instrument}"), b"")


def test_a_late_join_is_exact_wherever_the_values_end() -> None:
    """The gateway has read up to 10; the values end at 8 (too early), or anywhere from 10 to 30; 30 messages come."""
    for floor in range(10, 31):
        for values_after in range(10, 31):
            join = LateJoin([parse_topic("marketdata.tick.*", "")], [], {2: 10}, [0])
            assert not join.covered_by({2: 8})
            assert not join.covered_by({})
            assert join.covered_by({2: floor})
            got: list[int] = []
            for sequence in range(11, 31):
                if sequence == values_after + 1:
                    got += [m.sequence for m in join.release(0, {2: floor})]
                if join.passes(tick(0, sequence), RecordType.TICK, "S0"):
                    got.append(sequence)
            if values_after == 30:
                got += [m.sequence for m in join.release(0, {2: floor})]
            assert got == list(range(floor + 1, 31)), (floor, values_after)
            assert join.held == 0
            assert join.is_over({2: 30})
            assert join.is_over({2: floor - 1}) is (floor <= 9)


def test_a_late_join_leaves_alone_what_it_did_not_add() -> None:
    join = LateJoin([parse_topic("marketdata.*.*", "")], [parse_topic("marketdata.tick.*", "")], {2: 5}, [0, 1])
    assert join.passes(tick(0, 6), RecordType.TICK, "S0")
    quote = Message(INSTRUMENTS, 2, 7, symbol_topic(RecordType.QUOTE, "S0"), b"")
    assert not join.passes(quote, RecordType.QUOTE, "S0")
    assert join.passes(Message(STATUS_KEY, 2, 8, "marketdata.feed.status", b""), 0, "")
    assert join.passes(tick(9, 9), RecordType.TICK, "S9")  # an instrument that came later
    join.forget([parse_topic("marketdata.*.*", "")])
    assert join.held == 0
    assert join.release(0, {2: 5}) == []
    assert join.passes(quote, RecordType.QUOTE, "S0")
