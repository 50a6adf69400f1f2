"""What messages of DBN files become: orders followed, symbols by their days, damage told from the end."""

from __future__ import annotations

import struct

import numpy as np

from shm.layout import Action, Flag, RecordType, Side
from tests.decoding import Names, drain, shown
from workers.decoders._dbn import DbnDecoder, DbnReader, DbnSymbols

# ---- DBN ----------------------------------------------------------------------------------------------------------


def dbn(rtype: int, body: bytes, number: int = 118, ts_event: int = 1000) -> bytes:
    return struct.pack("<BBHIQ", (16 + len(body)) // 4, rtype, 1, number, ts_event) + body


def mbo(reference: int, action: bytes, side: bytes = b"B", size: int = 10, flags: int = 128) -> bytes:
    return dbn(0xA0, struct.pack("<QqIBBccQiI", reference, 10**9, size, flags, 0, action, side, 2000, 0, 1))


def test_dbn_mbo_keeps_what_is_left_of_each_order() -> None:
    decoder = DbnDecoder(Names())
    records = drain(
        decoder,
        [
            mbo(5, b"A"),
            mbo(5, b"T", size=4, flags=0),
            mbo(5, b"F", size=4, flags=0),
            mbo(5, b"C", size=4),
            mbo(5, b"M", size=3),
            mbo(5, b"C", size=3),
            mbo(6, b"C"),
            mbo(0, b"R", b"N"),
        ],
    )
    level = RecordType.LEVEL2
    assert shown(records)[:5] == [
        (level, Side.BUY, 1.0, 10.0, Action.ADD),
        (RecordType.TRADE, Side.BUY, 1.0, 4.0, None),
        (level, Side.BUY, 1.0, 6.0, Action.MODIFY),
        (level, Side.BUY, 1.0, 3.0, Action.MODIFY),
        (level, Side.BUY, 1.0, 0.0, Action.DELETE),
    ]
    assert records["flags"][5] & Flag.INCOMPLETE  # of order 6 nothing is known but that it was there
    assert np.isnan(records["size"][5])
    assert records["action"][6] == Action.CLEAR
    assert set(records["venue"]) == {b"GLBX"}
    assert decoder.counters.messages == {"mbo": 8}


def test_dbn_instrument_ids_mean_the_symbol_of_their_day() -> None:
    symbols = DbnSymbols()
    day = 86_400 * 10**9
    symbols._intervals[118] = [(0, day - 1, "OLD"), (day, 2 * day, "NEW")]
    names = Names()
    trade = struct.pack("<qIccBBQiI", 10**9, 1, b"T", b"A", 0, 0, 0, 0, 1)
    bodies = [trade[:16] + struct.pack("<Q", ts) + trade[24:] for ts in (5, day + 5, day + 6, 7)]
    records = drain(DbnDecoder(names, symbols), [dbn(0, body) for body in bodies] + [dbn(0, bodies[0], number=3)])
    by_id = {number: name for name, number in names.numbers.items()}
    assert [by_id[int(number)] for number in records["instrument_id"]] == ["OLD", "NEW", "NEW", "OLD", "id-3"]


def test_dbn_symbols_that_the_engine_cannot_hold_get_names_that_it_can() -> None:
    names = Names(refused=("X" * 40,))
    symbols = DbnSymbols()
    symbols.set(1, "X" * 40)
    symbols.set(2, "SPX   240119C04800000")
    trade = struct.pack("<qIccBBQiI", 10**9, 1, b"T", b"A", 0, 0, 5, 0, 1)
    drain(DbnDecoder(names, symbols), [dbn(0, trade, number=1), dbn(0, trade, number=2)])
    assert sorted(names.numbers) == ["SPX_240119C04800000", "id-1"]


def test_dbn_damage_is_a_framing_error_and_a_wrong_header_too() -> None:
    good = mbo(1, b"A")
    reader = DbnReader(fragment=True)
    batch = reader.feed(good + good + b"\x01" + bytes(30))
    assert int(batch.frames["size"][0]) == 2 * len(good)
    assert reader.error is not None
    assert reader.error.offset == 2 * len(good)
    headed = DbnReader()
    headed.feed(b"DBN\x09" + bytes(10))
    assert headed.error is not None
