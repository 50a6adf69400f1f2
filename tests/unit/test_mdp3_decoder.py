"""CME MDP 3.0: what the samples hold, and each template by bytes made by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side, concatenate, empty
from tests import mdp3
from tests.decoding import Names, drain, shown
from tests.mdp3 import book, definition, level, packet, snapshot, snapshot_level, trade, trades
from tests.unit.test_decode_bounds import payloads
from tests.unit.test_decode_samples import iso, of_type, read
from tools.cli import main
from workers.decoders._mdp3 import Mdp3Decoder, is_packet, market_depth
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.detection import protocol_of
from workers.decoders.protocol import Gap, many_frames
from workers.errors import SettingsError

FOLDER = "pcap/Cme/Mdp3.Sbe.v1.9"
BUY, SELL, NONE = Side.BUY, Side.SELL, Side.NONE
LEVEL2, TRADE, QUOTE = RecordType.LEVEL2, RecordType.TRADE, RecordType.QUOTE
ADD, MODIFY, DELETE, CLEAR = Action.ADD, Action.MODIFY, Action.DELETE, Action.CLEAR
P = 1_000_000_000  # one unit of price


def decoded(*packets: bytes, **options: Any) -> tuple[list[tuple[Any, ...]], Mdp3Decoder]:
    decoder = Mdp3Decoder(Names(), **options)
    return shown(drain(decoder, list(packets))), decoder


def from_ports(decoder: Mdp3Decoder, packets: list[tuple[int, bytes]]) -> np.ndarray:
    """Records of packets that were sent to these ports."""
    batch = many_frames([data for _, data in packets], [10] * len(packets))
    batch.frames["port"] = [port for port, _ in packets]
    decoder.feed(*batch)
    out = empty(4096)
    return concatenate([out[: decoder.decode(out)], empty(0)])


def ends(records: np.ndarray) -> list[bool]:
    return (records["flags"] & Flag.LAST_OF_BATCH != 0).tolist()


# ---- samples ------------------------------------------------------------------------------------------------------


def test_a_sample_of_a_trade_gives_its_price_size_and_aggressor(samples: Path) -> None:
    records, summary, symbols = read(samples / FOLDER / "MdIncrementalRefreshTradeSummary.pcap")
    assert shown(records) == [(TRADE, SELL, 12_952.0, 2.0, None), (LEVEL2, BUY, 12_952.0, 3.0, ADD)]
    assert (records["trade_id"][0], symbols) == (341_412, {0: "id-170506"})
    assert iso(records["ts_event"][0]) == "2018-09-12T13:55:35.670166278"
    assert summary["messages"] == {"trades": 1, "volume": 1, "orders": 1, "book": 2}
    assert (summary["format"], summary["malformed"], summary["gaps"]) == ("CME MDP 3.0 in pcap", {}, 0)
    assert ends(records) == [False, True]
    assert set(records["venue"]) == {b"GLBX"}


def test_a_sample_of_a_book_gives_every_level_of_its_23_entries(samples: Path) -> None:
    records, summary, symbols = read(samples / FOLDER / "MdIncrementalRefreshBook.pcap")
    assert (len(records), summary["messages"]) == (23, {"book": 2})
    assert len(symbols) == 14
    assert np.bincount(records["action"], minlength=4).tolist() == [0, 8, 0, 15]
    assert records["source_sequence"][:3].tolist() == [411, 412, 593]
    assert shown(records)[:2] == [(LEVEL2, SELL, 15_230.0, 0.0, DELETE), (LEVEL2, SELL, 15_250.0, 1.0, ADD)]
    assert ends(records) == [False] * 22 + [True]  # an empty message tells the end of the event
    orders, _, _ = read(samples / FOLDER / "MdIncrementalRefreshBook.pcap", orders=True)
    assert len(orders) == 16
    assert (orders["source_sequence"][0], float(orders["price"][0])) == (563_189_401_446, 15_250.0)


def test_a_sample_of_orders_makes_records_only_if_asked(samples: Path) -> None:
    path = samples / FOLDER / "MdIncrementalRefreshOrderBook.pcap"
    assert len(read(path)[0]) == 0
    records, _, _ = read(path, orders=True)
    assert shown(records) == [(LEVEL2, SELL, 12_068.0, 4.0, ADD)]
    assert records["source_sequence"].tolist() == [76_662_054_355]
    assert ends(records) == [True]


def test_a_sample_with_two_events_ends_each_and_quotes_them(samples: Path) -> None:
    records, summary, _ = read(samples / FOLDER / "MdIncrementalRefreshVolume.pcap", book=True)
    assert summary["messages"] == {"volume": 2, "book": 4, "trades": 1}
    assert [RecordType(kind) for kind in records["record_type"]] == [LEVEL2, QUOTE, TRADE, LEVEL2, QUOTE]
    assert ends(records) == [False, True, False, False, True]
    assert (records["bid"][1], records["bid_size"][1]) == (1.0, 9.0)
    assert np.isnan(records["bid"][4])
    assert np.all(of_type(records, QUOTE)["flags"] & Flag.INCOMPLETE)  # the capture joins in the middle of a week


def test_every_message_and_group_of_the_samples_ends_where_its_lengths_say(samples: Path) -> None:
    groups = {46: (3, 8), 48: (3, 8), 47: (3,), 37: (3,)}
    seen = set()
    for path in sorted((samples / FOLDER).glob("*.pcap")):
        for data in payloads(path.read_bytes()):
            assert is_packet(data)
            at = 12
            while at < len(data):
                size, root, template, schema, version = struct.unpack_from("<HHHHH", data, at)
                inside = at + 10 + root
                for head in groups[template]:
                    length, count = struct.unpack_from("<H", data, inside)[0], data[inside + head - 1]
                    inside += head + length * count
                assert at + size - inside in range(8), path.name  # filled up to a multiple of eight bytes
                assert (schema, version) == (1, 9)
                seen.add(template)
                at += size
            assert at == len(data)
    assert seen == {37, 46, 47, 48}


# ---- each template ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "unit", "long"), [(32, 10**7, False), (46, 10**9, False), (64, 10**9, True)])
def test_book_templates_give_levels(template: int, unit: int, long: bool) -> None:
    entries = [level(5, 100 * unit, 3, orders=2, report=8, long=long), level(5, 101 * unit, 4, kind=b"1", long=long)]
    changed = level(5, 100 * unit, 9, action=1, long=long)
    found, decoder = decoded(packet(1, book(*entries, template=template)), packet(2, book(changed, template=template)))
    assert found == [(LEVEL2, BUY, 100.0, 3.0, ADD), (LEVEL2, SELL, 101.0, 4.0, ADD), (LEVEL2, BUY, 100.0, 9.0, MODIFY)]
    assert decoder.counters.malformed == {}


def test_a_level_says_rank_depth_orders_and_report_number() -> None:
    records = drain(Mdp3Decoder(Names()), [packet(1, book(level(5, P, 3, rank=2, orders=4, report=77)))])
    record = records[0]
    assert (record["level"], record["depth"], record["order_count"], record["source_sequence"]) == (1, 10, 4, 77)
    assert record["ts_event"] == mdp3.TIME_NS


@pytest.mark.parametrize(("template", "unit", "long"), [(42, 10**7, False), (48, 10**9, False), (65, 10**9, True)])
def test_trade_templates_give_trades(template: int, unit: int, long: bool) -> None:
    entries = [
        trade(5, 99 * unit, 3, long=long),
        trade(5, -2 * unit, 1, aggressor=2, trade_id=8, long=long),
        trade(5, 99 * unit, 3, aggressor=0, action=2, long=long),
    ]
    records = drain(Mdp3Decoder(Names()), [packet(1, trades(*entries, template=template))])
    sides = [(TRADE, BUY, 99.0, 3.0, None), (TRADE, SELL, -2.0, 1.0, None), (TRADE, NONE, 99.0, 3.0, None)]
    assert shown(records) == sides
    assert records["trade_id"].tolist() == [7, 8, 7]
    assert (records["flags"] & Flag.CORRECTED != 0).tolist() == [False, False, True]
    assert ends(records) == [False, False, True]


def test_a_trade_entry_of_an_early_version_has_no_trade_id() -> None:
    entry = trade(5, P, 3)[:26]
    records = drain(Mdp3Decoder(Names()), [packet(1, mdp3.message(42, mdp3.root(), mdp3.group([entry]), version=5))])
    assert (records["price"][0], records["trade_id"][0]) == (100.0, 0)


@pytest.mark.parametrize(("template", "unit"), [(43, 10**7), (47, 10**9)])
def test_order_templates_give_orders_if_asked(template: int, unit: int) -> None:
    sent = mdp3.orders(
        mdp3.order(5, 11, 7 * unit, 3),
        mdp3.order(5, 11, 7 * unit, 2, action=1),
        mdp3.order(5, 12, 8 * unit, mdp3.NULL_I32, kind=b"1", action=2),
        template=template,
    )
    assert decoded(packet(1, sent))[0] == []
    found, _ = decoded(packet(1, sent), orders=True)
    assert found == [(LEVEL2, BUY, 7.0, 3.0, ADD), (LEVEL2, BUY, 7.0, 2.0, MODIFY), (LEVEL2, SELL, 8.0, 0.0, DELETE)]


def test_orders_of_a_book_message_have_price_and_side_of_its_entries() -> None:
    behind = [
        mdp3.book_order(21, 4, 2),
        mdp3.book_order(22, 0, 1, action=2),
        mdp3.book_order(23, 1, 3),
        mdp3.book_order(24, 1, 0),
    ]
    sent = book(level(5, P, 3), level(5, 2 * P, 4, kind=b"1"), orders=behind)
    found, decoder = decoded(packet(1, sent), orders=True)
    assert found == [(LEVEL2, SELL, 2.0, 4.0, ADD), (LEVEL2, BUY, 1.0, 0.0, DELETE)]
    assert decoder.counters.malformed == {"bad value": 2}
    assert decoded(packet(1, sent))[0] == [(LEVEL2, BUY, 1.0, 3.0, ADD), (LEVEL2, SELL, 2.0, 4.0, ADD)]


@pytest.mark.parametrize(("template", "unit", "long"), [(38, 10**7, False), (52, 10**9, False), (69, 10**9, True)])
def test_snapshot_templates_clear_and_state_a_book(template: int, unit: int, long: bool) -> None:
    levels = [
        snapshot_level(10 * unit, 3, b"0", 1, long=long),
        snapshot_level(11 * unit, 4, b"1", 1, long=long),
        snapshot_level(10 * unit, 1, b"2", 0, long=long),  # the last trade: no level
    ]
    decoder = Mdp3Decoder(Names())
    records = drain(decoder, [packet(1, snapshot(5, 9, *levels, template=template))])
    assert shown(records)[1:] == [(LEVEL2, BUY, 10.0, 3.0, ADD), (LEVEL2, SELL, 11.0, 4.0, ADD)]
    assert records["action"][0] == CLEAR
    assert np.all(records["flags"] & Flag.SNAPSHOT)
    assert ends(records) == [False, False, True]


@pytest.mark.parametrize(("template", "unit"), [(44, 10**7), (53, 10**9)])
def test_order_snapshots_come_in_chunks(template: int, unit: int) -> None:
    def chunk(n: int) -> bytes:
        return mdp3.order_snapshot(5, n, 2, mdp3.snapshot_order(n, 10 * unit, n), template=template)

    decoder = Mdp3Decoder(Names(), orders=True)
    records = drain(decoder, [packet(1, chunk(1)), packet(2, chunk(2))])
    assert [Action(action) for action in records["action"]] == [CLEAR, ADD, ADD]
    assert shown(records)[1:] == [(LEVEL2, BUY, 10.0, 1.0, ADD), (LEVEL2, BUY, 10.0, 2.0, ADD)]
    assert records["source_sequence"].tolist() == [0, 1, 2]
    assert ends(records) == [False, False, True]
    assert decoded(packet(1, chunk(1)))[0] == []


@pytest.mark.parametrize("template", [27, 29, 41, 54, 55, 56, 57, 58, 63])
def test_definitions_name_instruments(template: int) -> None:
    names = Names()
    decoder = Mdp3Decoder(names)
    drain(
        decoder,
        [packet(1, definition(template, 5, "ESU8 C2900"), definition(template, 6, "ESZ8"), book(level(5, P, 1)))],
    )
    assert names.calls == ["ESU8_C2900"]  # those of which nothing else comes are not asked for
    assert sum(decoder.counters.messages.values()) == 3
    assert decoder.counters.malformed == {}


def test_an_instrument_changes_its_name_with_its_definition_and_keeps_its_book() -> None:
    names = Names()
    decoder = Mdp3Decoder(names, book=True)
    records = drain(
        decoder,
        [packet(1, book(level(5, P, 1))), packet(2, definition(54, 5, "ESU8"), book(level(5, 2 * P, 1, kind=b"1")))],
    )
    assert names.calls == ["id-5", "ESU8"]
    quote = of_type(records, QUOTE)[-1]
    assert (quote["instrument_id"], quote["bid"], quote["ask"]) == (names.numbers["ESU8"], 1.0, 2.0)


def test_a_number_that_becomes_another_instruments_begins_a_new_book() -> None:
    decoder = Mdp3Decoder(Names(), book=True)
    first = packet(1, definition(54, 5, "ESU8"), book(level(5, P, 1)))
    records = drain(decoder, [first, packet(2, definition(54, 5, "NQZ8"), book(level(5, 2 * P, 1, kind=b"1")))])
    quotes = of_type(records, QUOTE)
    assert quotes["instrument_id"].tolist() == [0, 1]
    assert np.isnan(quotes["bid"][1])


def test_a_name_that_is_refused_becomes_the_number() -> None:
    names = Names(refused=("BAD",))
    assert len(drain(Mdp3Decoder(names), [packet(1, definition(54, 5, "BAD"), book(level(5, P, 1)))])) == 1
    assert names.calls == ["BAD", "id-5"]
    decoder = Mdp3Decoder(Names(refused=("id-5",)))
    assert len(drain(decoder, [packet(1, book(level(5, P, 1), level(6, P, 1)), trades(trade(5, P, 1)))])) == 1
    assert decoder.counters.malformed == {"bad symbol": 2}


@pytest.mark.parametrize("template", [33, 34, 35, 37, 49, 50, 51, 66, 67])
def test_statistics_and_volume_are_counted_and_move_the_report_number(template: int) -> None:
    decoder = Mdp3Decoder(Names())
    old = snapshot(5, 39, snapshot_level(P, 1, b"0", 1))
    found = drain(
        decoder, [packet(1, book(level(5, P, 1))), packet(2, mdp3.statistics(template, 5, 40)), packet(3, old)]
    )
    assert len(found) == 1
    assert decoder.counters.duplicates == 1
    assert sum(decoder.counters.messages.values()) == 3


def test_the_rest_is_counted_by_name_or_number() -> None:
    known = [mdp3.message(number, bytes(40)) for number in (15, 16, 39, 59, 60, 61, 62, 68)]
    decoder = Mdp3Decoder(Names())
    sent = [*known, mdp3.heartbeat(), mdp3.message(99, b""), mdp3.message(300, b"x"), mdp3.message(46, b"", schema=2)]
    assert len(drain(decoder, [packet(1, *sent)])) == 0
    messages = decoder.counters.messages
    assert (messages["logout"], messages["quote-request"], messages["heartbeat"]) == (1, 1, 1)
    assert (messages["template-99"], messages["template-255-or-more"]) == (1, 1)
    assert decoder.counters.heartbeats == 1
    assert decoder.counters.malformed == {"unknown type": 2, "other protocol": 1}


# ---- books --------------------------------------------------------------------------------------------------------


def test_what_falls_out_of_the_market_depth_is_deleted() -> None:
    first = definition(54, 5, "ESU8", depth=2)
    assert market_depth(first) == 2
    levels = book(level(5, 10 * P, 1, rank=1), level(5, 9 * P, 1, rank=2), level(5, 11 * P, 1, rank=1))
    found, _ = decoded(packet(1, first, levels))
    assert found[-2:] == [(LEVEL2, BUY, 11.0, 1.0, ADD), (LEVEL2, BUY, 9.0, 0.0, DELETE)]


def test_overlay_delete_thru_delete_from_and_reset() -> None:
    three = [level(5, price * P, 1, rank=11 - price) for price in (10, 9, 8)]
    overlay, replaced = level(5, 7 * P, 2, rank=3, action=5), level(5, 10 * P, 5, rank=1, action=5)
    best_two, whole_side, empty_book = (
        level(5, 0, 0, rank=2, action=4),
        level(5, 0, 0, action=3),
        level(5, 0, 0, kind=b"J"),
    )
    found, _ = decoded(packet(1, book(*three, overlay, replaced, best_two, whole_side, level(5, P, 1), empty_book)))
    prices = [(price, size, action) for _, _, price, size, action in found[3:-1]]
    assert prices == [
        (8.0, 0.0, DELETE),
        (7.0, 2.0, ADD),
        (10.0, 5.0, MODIFY),
        (10.0, 0.0, DELETE),
        (9.0, 0.0, DELETE),
        (7.0, 0.0, DELETE),
        (1.0, 1.0, ADD),
    ]
    assert found[-1][4] == CLEAR


def test_implied_levels_stay_out_and_values_that_cannot_be_are_counted() -> None:
    entries = [level(5, P, 1, kind=kind) for kind in (b"E", b"F", b"w", b"x")]
    bad = [level(6, mdp3.NULL_PRICE, 1), level(6, P, mdp3.NULL_I32), level(6, P, 1, action=9)]
    found, decoder = decoded(packet(1, book(*entries), book(*bad)))
    assert found == []
    assert decoder.counters.malformed == {"bad value": 3}
    overflowing, decoder = decoded(packet(1, book(level(6, 2**62, 1), template=32)))
    assert (overflowing, decoder.counters.malformed) == ([], {"bad value": 1})


def test_quotes_come_with_the_last_quote_of_an_event_and_only_if_the_best_changed() -> None:
    decoder = Mdp3Decoder(Names(), book=True)
    records = drain(
        decoder,
        [
            packet(1, book(level(5, 10 * P, 3, orders=2), indicator=0)),
            packet(2, book(level(5, 11 * P, 4, kind=b"1"), level(6, P, 1), indicator=mdp3.LAST_QUOTE)),
            packet(3, book(level(5, 9 * P, 4, rank=2))),
        ],
    )
    assert [RecordType(kind) for kind in records["record_type"]] == [LEVEL2, LEVEL2, LEVEL2, QUOTE, QUOTE, LEVEL2]
    quote = records[3]
    assert (quote["bid"], quote["bid_size"], quote["bid_count"]) == (10.0, 3.0, 2)
    assert (quote["ask"], quote["ask_size"]) == (11.0, 4.0)
    assert not np.any(of_type(records, QUOTE)["flags"] & Flag.INCOMPLETE)
    assert records["best_bid"][5] == 10.0
    assert ends(records) == [False] * 5 + [True]


def test_the_end_of_an_event_is_on_its_last_record_whatever_follows_without_one() -> None:
    sent = packet(
        1,
        trades(trade(5, P, 1), indicator=1),
        mdp3.statistics(37, 5, 2)[:18] + b"\2" + mdp3.statistics(37, 5, 2)[19:],
        book(level(5, P, 1), indicator=0),
        mdp3.orders(mdp3.order(5, 1, P, 1), indicator=0),
        book(level(5, P, 1, kind=b"E"), indicator=mdp3.END),
        book(level(5, P, 2, action=1), indicator=0),
    )
    assert ends(drain(Mdp3Decoder(Names()), [sent])) == [False, True, False]
    with_orders = drain(Mdp3Decoder(Names(), orders=True), [sent])
    assert ends(with_orders) == [False, True]


def test_a_snapshot_is_taken_if_it_says_more_or_the_book_is_in_doubt() -> None:
    shot = snapshot(5, 2, snapshot_level(10 * P, 1, b"0", 1), snapshot_level(11 * P, 1, b"1", 1))
    newer = snapshot(5, 3, snapshot_level(9 * P, 1, b"0", 1))
    decoder = Mdp3Decoder(Names(), book=True)
    live = [packet(n, book(level(5, 10 * P, n, report=n, action=1))) for n in (1, 2, 4)]
    records = from_ports(
        decoder,
        [
            (1, live[0]),
            (1, live[1]),
            (2, packet(1, shot)),
            (2, packet(1, newer, sent_ns=mdp3.TIME_NS + 9)),
            (1, live[2]),
        ],
    )
    quotes = of_type(records, QUOTE)
    assert decoder.counters.duplicates == 1  # the first said nothing new
    assert decoder.counters.gap_ranges == [Gap(1, 3, 4)]
    assert quotes["bid"].tolist() == [10.0, 10.0, 9.0, 10.0]
    assert (quotes["flags"] & Flag.INCOMPLETE != 0).tolist() == [False, False, False, True]
    again = from_ports(
        decoder, [(2, packet(1, snapshot(5, 4, snapshot_level(10 * P, 7, b"0", 1)), sent_ns=mdp3.TIME_NS + 99))]
    )
    assert not again["flags"][-1] & Flag.INCOMPLETE
    assert (again["record_type"][-1], again["bid_size"][-1]) == (QUOTE, 7.0)


def test_a_channel_reset_clears_every_book() -> None:
    decoder = Mdp3Decoder(Names(), book=True)
    records = drain(
        decoder,
        [packet(7, book(level(5, P, 1), level(6, P, 1))), packet(8, mdp3.reset()), packet(9, book(level(5, P, 1)))],
    )
    cleared = records[(records["record_type"] == LEVEL2) & (records["action"] == CLEAR)]
    assert sorted(cleared["instrument_id"].tolist()) == [0, 1]
    quotes = of_type(records, QUOTE)
    assert (quotes["flags"] & Flag.INCOMPLETE != 0).tolist() == [True, True, False, False, False]
    assert np.isnan(quotes["bid"][2:4]).all()


def test_a_channel_reset_among_several_channels_leaves_all_books_in_doubt() -> None:
    decoder = Mdp3Decoder(Names(), book=True)
    one, two = packet(1, book(level(5, P, 1))), packet(1, book(level(6, P, 1)))
    records = from_ports(
        decoder, [(1, one), (2, two), (1, packet(2, mdp3.reset())), (1, packet(3, book(level(5, P, 1))))]
    )
    quotes = of_type(records, QUOTE)
    assert (quotes["flags"] & Flag.INCOMPLETE != 0).tolist() == [False, False, True, True, True]


# ---- packets ------------------------------------------------------------------------------------------------------


def test_gaps_and_copies_are_found_for_each_port() -> None:
    decoder = Mdp3Decoder(Names())
    one, two, five = (packet(n, trades(trade(5, P, 1, trade_id=n))) for n in (1, 2, 5))
    records = from_ports(decoder, [(100, one), (200, five), (100, one), (100, two), (100, five)])
    assert of_type(records, TRADE)["trade_id"].tolist() == [1, 5, 2, 5]
    assert records["flags"][-1] & Flag.GAP_BEFORE
    assert decoder.counters.gap_ranges == [Gap(100, 3, 5)]
    assert (decoder.counters.duplicates, decoder.counters.missing) == (1, 2)


def test_lower_numbers_of_later_packets_begin_a_new_loop() -> None:
    decoder = Mdp3Decoder(Names())
    sent = [
        packet(n, definition(54, n, f"S{n}"), sent_ns=time)
        for n, time in ((1, 10), (2, 20), (1, 30), (2, 40), (2, 50), (3, 60))
    ]
    drain(decoder, sent)
    assert (decoder.counters.duplicates, decoder.counters.gap_ranges) == (0, [Gap(0, 1, 2)])


@pytest.mark.parametrize("next_number", [2, 3])
def test_heartbeats_may_use_up_a_number_or_not(next_number: int) -> None:
    decoder = Mdp3Decoder(Names())
    sent = [
        packet(1, book(level(5, P, 1))),
        packet(2, mdp3.heartbeat()),
        packet(next_number, book(level(5, P, 2)), sent_ns=mdp3.TIME_NS + 9),
    ]
    assert len(drain(decoder, sent)) == 2
    assert (decoder.counters.gaps, decoder.counters.duplicates) == (0, 0)


def test_newer_versions_are_read_by_what_is_known_of_them() -> None:
    entry = level(5, P, 3) + b"more"
    sent = mdp3.message(46, mdp3.root() + b"more", mdp3.group([entry, entry]) + mdp3.group([b"new"] * 3), version=40)
    found, decoder = decoded(packet(1, sent, trades(trade(5, P, 1))))
    assert [kind for kind, *_ in found] == [LEVEL2, LEVEL2, TRADE]
    assert decoder.counters.malformed == {}


def test_lengths_that_do_not_fit_are_counted_and_the_rest_is_read() -> None:
    good = book(level(5, P, 1))
    short_root = mdp3.message(46, mdp3.root()[:9], mdp3.group([level(5, P, 1)]))
    short_entry = mdp3.message(46, mdp3.root(), mdp3.group([level(5, P, 1)[:20]]))
    no_group = mdp3.message(46, mdp3.root())
    too_many = mdp3.message(46, mdp3.root(), struct.pack("<HB", 32, 200) + level(5, P, 1))
    long_root = good[:2] + struct.pack("<H", 500) + good[4:]
    found, decoder = decoded(packet(1, short_root, short_entry, no_group, too_many, long_root, good))
    assert len(found) == 1
    assert decoder.counters.malformed == {"bad length": 5}
    found, decoder = decoded(
        packet(1, good)[:-1], packet(2, good) + b"x", packet(3, b"\5\0" + good), b"short", packet(4)
    )
    assert len(found) == 1
    assert decoder.counters.malformed == {"truncated": 4}


def test_any_size_of_the_array_gives_the_same_records_of_every_template() -> None:
    for options in ({}, {"book": True}, {"orders": True}, {"book": True, "orders": True}):
        whole = drain(Mdp3Decoder(Names(), **options), mdp3.one_of_each(), size=4096)
        assert len(whole) > 15
        for size in (1, 2, 3, 7):
            assert drain(Mdp3Decoder(Names(), **options), mdp3.one_of_each(), size=size).tobytes() == whole.tobytes()


def test_every_cut_and_every_flipped_byte_of_a_packet_is_survived() -> None:
    for data in mdp3.one_of_each():
        for cut in range(0, len(data), 3):
            drain(Mdp3Decoder(Names(), book=True), [data[:cut]])
        for at in range(0, len(data), 2):
            for orders in (False, True):
                decoder = Mdp3Decoder(Names(), book=True, orders=orders)
                drain(decoder, [data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]])
                assert decoder.records == sum(decoder.counters.records.values())


# ---- captures -----------------------------------------------------------------------------------------------------


def test_packets_are_recognised_by_their_lengths_and_schema() -> None:
    data = packet(1, book(level(5, P, 1)), mdp3.heartbeat())
    assert protocol_of(data) == "mdp3"
    for other in (data[:-1], data + b"x", packet(1), packet(1, mdp3.message(46, b"", schema=8)), b"", bytes(40)):
        assert protocol_of(other) == ""


def test_replay_info_and_options_of_cme_captures(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = samples / FOLDER / "MdIncrementalRefreshTradeSummary.pcap"
    summary = describe_capture(path, options={"protocol": "mdp3", "book": True})
    assert summary["records"] == {"trade": 1, "level2": 1, "quote": 1}
    assert (summary["symbols"], summary["error"]) == (["id-170506"], "")
    assert main(["replay-info", "--orders", "true", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["records"] == {"trade": 1, "level2": 2}
    with pytest.raises(SettingsError, match="option arbitrate = true: not for CME"):
        open_capture(path, intern=Names(), options={"arbitrate": True})
    with pytest.raises(SettingsError, match="option orders = 1: true or false"):
        open_capture(path, intern=Names(), options={"orders": 1})
