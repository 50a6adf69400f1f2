"""Halts, pauses and resumptions: what each format's codes become, in the same words, and what the samples hold."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import NO_INSTRUMENT, TRADING_STATES, Flag, Priority, RecordType, StatusCode, empty
from shm.message import payload
from tests import mdp3
from tests.decoding import Names, drain
from tests.mdp3 import status as cme
from tests.unit import test_fix_decoder as fix
from tests.unit import test_pitch_decoder as pitch
from tests.unit.test_decode_dbn import dbn
from tests.unit.test_decode_samples import of_type, read
from tests.unit.test_decode_venues import blocks, itch, packet, segment
from workers.decoders._dbn import DbnDecoder
from workers.decoders._decoder import NativeDecoder
from workers.decoders._iex import IexDecoder
from workers.decoders._itch import ItchDecoder
from workers.decoders._mdp3 import Mdp3Decoder
from workers.decoders._pitch import PitchDecoder
from workers.quality import Quality
from workers.spec import QualitySettings

ROOT = Path(__file__).resolve().parent.parent.parent


def texts(records: np.ndarray) -> list[str]:
    """Of the trading status among the records, which is checked to be whole."""
    found = records[records["code"] == StatusCode.TRADING_STATUS]
    found = found[found["record_type"] == RecordType.STATUS]
    assert all(found["flags"] & Flag.LAST_OF_BATCH)
    assert not any(found["from_sequence"])
    assert not any(found["to_sequence"])
    assert set(found["priority"]) <= {Priority.HIGH}
    told = [text.decode() for text in found["text"].tolist()]
    assert {text.partition(": ")[0] for text in told} <= set(TRADING_STATES)
    return told


def action(state: bytes, reason: bytes = b"", stock: bytes = b"AAPL", locate: int = 1) -> bytes:
    """ITCH H."""
    return itch(b"H", struct.pack(">8scc4s", stock.ljust(8), state, b" ", reason.ljust(4)), locate=locate)


def operational(state: bytes, market: bytes = b"Q", stock: bytes = b"AAPL", locate: int = 1) -> bytes:
    """ITCH h."""
    return itch(b"h", stock.ljust(8) + market + state, locate=locate)


def iex_status(state: bytes, reason: bytes = b"", symbol: bytes = b"ZIEXT") -> bytes:
    return b"H" + state + struct.pack("<q8s4s", 123, symbol.ljust(8), reason.ljust(4))


def iex_operational(state: bytes, symbol: bytes = b"ZIEXT") -> bytes:
    return b"O" + state + struct.pack("<q8s", 123, symbol.ljust(8))


# ---- the words ----------------------------------------------------------------------------------------------------


def test_one_letter_tells_the_states_apart_and_documents_name_them_all() -> None:
    assert len({word[0] for word in TRADING_STATES}) == len(TRADING_STATES) == 7
    documented = (ROOT / "shm/README.md").read_text()
    for word, meaning in TRADING_STATES.items():
        assert f"| `{word}` | {meaning} |" in documented


def test_a_message_names_state_detail_and_exchange() -> None:
    (record,) = drain(ItchDecoder(Names(), packets=False), [blocks(action(b"H", b"T1"))])
    data = payload(record, "AAPL")["data"]
    assert (data["code"], data["state"], data["detail"]) == ("trading_status", "halted", "ITCH H, reason T1")
    assert (data["text"], data["exchange"]) == ("halted: ITCH H, reason T1", "XNAS")


def test_quality_lets_trading_status_through_untouched_and_of_high_priority() -> None:
    records = drain(ItchDecoder(Names(), packets=False), [blocks(action(b"H", b"T1"))])
    before = records.tobytes()
    assert Quality(QualitySettings()).check(records, 1) == 1
    assert (records.tobytes(), int(records["priority"][0])) == (before, Priority.HIGH)


# ---- ITCH and IEX: two states -------------------------------------------------------------------------------------


def test_itch_trading_actions() -> None:
    decoder = ItchDecoder(Names())
    records = drain(
        decoder,
        [
            packet(
                7, action(b"H", b"T1"), action(b"Q", b"T3"), action(b"T"), action(b"P", b"LUDP"), action(b"X", b"\x01")
            )
        ],
    )
    assert texts(records) == [
        "halted: ITCH H, reason T1",
        "quote only: ITCH Q, reason T3",
        "trading: ITCH T",
        "paused: ITCH P, reason LUDP",
        "unknown: ITCH X, reason ?",
    ]
    assert records["source_sequence"].tolist() == [7, 8, 9, 10, 11]
    assert set(records["ts_event"]) == {5}
    assert set(records["venue"]) == {b"XNAS"}
    assert decoder.counters.records == {"status": 5}


def test_a_stock_stays_halted_until_both_kinds_of_halt_are_over() -> None:
    told = texts(
        drain(
            ItchDecoder(Names()),
            [
                packet(1, operational(b"H"), action(b"T"), operational(b"T")),
                packet(4, action(b"H", b"T1"), operational(b"T", b"B"), action(b"T", stock=b"MSFT", locate=2)),
                packet(7, operational(b"T", stock=b"NEW", locate=3)),
            ],
        )
    )
    assert told == [
        "halted: ITCH operational H, market Q",
        "halted: ITCH T, operational halt",
        "trading: ITCH operational T, market Q",
        "halted: ITCH H, reason T1",
        "halted: ITCH operational T, market B",
        "trading: ITCH T",
        "unknown: ITCH operational T, market Q",
    ]


def test_what_was_said_before_a_gap_or_another_day_is_not_believed() -> None:
    decoder = ItchDecoder(Names())
    start = itch(b"S", b"O", locate=0)
    told = texts(
        drain(
            decoder,
            [
                packet(1, action(b"T"), operational(b"H")),
                packet(9, operational(b"T")),  # a gap before it
                packet(10, action(b"T"), start, operational(b"T")),
            ],
        )
    )
    assert told[2:] == [
        "unknown: ITCH operational T, market Q",
        "trading: ITCH T",
        "unknown: ITCH operational T, market Q",
    ]


def test_iex_trading_status_and_operational_halts() -> None:
    names = Names()
    decoder = IexDecoder(names)
    records = drain(
        decoder,
        [
            segment(
                11, iex_operational(b"N"), iex_status(b"H", b"T1"), iex_operational(b"N"), iex_status(b"O", b"IPOD")
            ),
            segment(15, iex_status(b"P", b"LUDP"), iex_status(b"T"), iex_operational(b"O"), iex_operational(b"N")),
            segment(19, iex_operational(b"X"), iex_status(b"T", symbol=b"NEW")),
        ],
    )
    assert texts(records) == [
        "unknown: IEX operational N",
        "halted: IEX H, reason T1",
        "halted: IEX operational N",
        "auction: IEX O, reason IPOD",
        "paused: IEX P, reason LUDP",
        "trading: IEX T",
        "halted: IEX operational O",
        "trading: IEX operational N",
        "trading: IEX T",
    ]
    assert records["source_sequence"].tolist() == [11, 12, 13, 14, 15, 16, 17, 18, 20]
    assert records["instrument_id"].tolist() == [0] * 8 + [1]
    assert (set(records["ts_event"]), set(records["venue"])) == ({123}, {b"IEXG"})
    assert decoder.counters.malformed == {"bad value": 1}


class Model:
    """What holds for each instrument: the word of trading status, and whether it is halted besides."""

    def __init__(self) -> None:
        self.word: dict[int, str] = {}
        self.halted: set[int] = set()

    def step(self, instrument: int, kind: str, code: str) -> str:
        if kind == "gap":
            self.word.clear()
            self.halted.clear()
        elif kind == "operational":
            (self.halted.add if code == "H" else self.halted.discard)(instrument)
        else:
            self.word[instrument] = {"H": "halted", "P": "paused", "T": "trading"}[code]
        return "halted" if instrument in self.halted else self.word.get(instrument, "unknown")


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(("status", "status", "operational", "operational", "gap")),
        st.sampled_from("HPT"),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(max_examples=150, deadline=None)
def test_the_words_of_itch_and_iex_follow_a_model(steps: list[tuple[int, str, str]]) -> None:
    expected: list[str] = []
    packets: list[bytes] = []
    segments: list[bytes] = []
    model, number = Model(), 1
    for instrument, kind, code in steps:
        told = "H" if kind == "operational" and code == "P" else code
        word = model.step(instrument, kind, told)
        if kind == "gap":
            number += 3
            continue
        name = b"S%d" % instrument
        if kind == "operational":
            packets.append(packet(number, operational(told.encode(), stock=name, locate=instrument)))
            segments.append(segment(number, iex_operational(b"O" if told == "H" else b"N", name)))
        else:
            packets.append(packet(number, action(told.encode(), stock=name, locate=instrument)))
            segments.append(segment(number, iex_status(told.encode(), symbol=name)))
        expected.append(word)
        number += 1
    for decoder, datagrams in ((ItchDecoder(Names()), packets), (IexDecoder(Names()), segments)):
        found = texts(drain(decoder, datagrams, size=3)) if datagrams else []
        assert [text.partition(": ")[0] for text in found] == expected


def test_refused_symbols_are_counted_and_make_no_record() -> None:
    made: list[tuple[NativeDecoder, bytes]] = [
        (ItchDecoder(Names(("AAPL",))), packet(1, action(b"H"))),
        (IexDecoder(Names(("ZIEXT",))), segment(1, iex_status(b"H"))),
    ]
    for decoder, datagram in made:
        assert len(drain(decoder, [datagram])) == 0
        assert decoder.counters.malformed == {"bad symbol": 1}


# ---- PITCH, DBN, FIX, CME -----------------------------------------------------------------------------------------


def test_pitch_trading_status() -> None:
    decoder = PitchDecoder(Names())

    def status(code: bytes, symbol: bytes) -> bytes:
        return pitch.message(0x31, "I8scc2s", 9, symbol, code, b"0", b"XX")

    stock, option = b"AAPL    ", b"010GaZ\0\0"
    told = [status(code, stock) for code in (b"A", b"H", b"Q", b"S", b"R", b"T", b"Z")]
    records = pitch.read(decoder, pitch.packet(5, pitch.second(), *told, status(b"H", option), pitch.add(1)))
    assert texts(records) == [
        "auction: PITCH A",
        "halted: PITCH H",
        "quote only: PITCH Q",
        "halted: PITCH S",
        "auction: PITCH R",
        "trading: PITCH T",
        "unknown: PITCH Z",
        "halted: PITCH H",
    ]
    assert records["source_sequence"][:8].tolist() == list(range(6, 14))
    assert set(records["ts_event"][:8]) == {pitch.OPEN + 9}
    assert records["instrument_id"].tolist() == [0] * 7 + [1, 0]
    assert decoder.counters.malformed == {}
    cleared = pitch.read(decoder, pitch.packet(15, pitch.message(0x97, "I", 10)))
    assert cleared["instrument_id"].tolist() == [0]  # the option had no order: its book is not heard of


def dbn_status(code: int, reason: int = 1, event: int = 0, trading: bytes = b"N") -> bytes:
    return dbn(0x12, struct.pack("<QHHHccc7x", 2000, code, reason, event, trading, b"Y", b"~"))


def test_dbn_status_actions() -> None:
    decoder = DbnDecoder(Names())
    told = texts(drain(decoder, [b"".join(dbn_status(code) for code in range(17))], size=5))
    words = [text.partition(": ")[0] for text in told]
    auction, closed = "auction", "closed"
    assert words == [
        auction, auction, "quote only", auction, auction, auction, "trading", "halted", "paused", "halted", auction,
        closed, closed, closed, "unknown",
    ]  # fmt: skip
    assert decoder.counters.messages == {"status": 17}
    one = drain(decoder, [dbn_status(6, 30, 1, b"Y")])
    assert texts(one) == ["trading: DBN 6, reason 30, event 1"]
    assert (one["ts_event"][0], one["ts_receive"][0], one["source_sequence"][0]) == (1000, 2000, 0)
    assert len(drain(decoder, [dbn(0x12, bytes(20))])) == 0
    assert decoder.counters.malformed == {"bad length": 1}


def test_fix_security_status() -> None:
    decoded = fix.Decoded()
    at = (60, "20230124-13:30:40.500")
    halt = fix.message("f", (324, "r1"), (55, "IBM"), at, (326, 2), (327, "P"), (207, "XNYS"), seq=41)
    records = decoded.feed(halt, fix.message("f", (48, "77"), (326, 17), seq=42))
    assert texts(records) == ["halted: FIX 2, reason P", "trading: FIX 17"]
    assert records["ts_event"].tolist() == [fix.AT - 5_630_000_000, fix.AT]
    assert records["source_sequence"].tolist() == [41, 42]
    assert records["venue"].tolist() == [b"XNYS", b"FIX"]
    assert decoded.names == {"IBM": 0, "77": 1}
    words = {
        code: [text.partition(": ")[0] for text in texts(decoded.feed(fix.message("f", (55, "IBM"), (326, code))))]
        for code in (1, 3, 4, 7, 18, 20, 21, 25, 103, 9999)
    }
    assert words == {
        1: ["halted"], 3: ["trading"], 4: ["closed"], 7: [], 18: ["closed"], 20: ["unknown"], 21: ["auction"],
        25: ["auction"], 103: [], 9999: ["unknown"],
    }  # fmt: skip
    assert len(decoded.feed(fix.message("f", (55, "IBM")))) == 0
    assert decoded.decoder.counters.malformed == {}
    assert len(decoded.feed(fix.message("f", (326, 2)), fix.message("f", (55, "IBM"), (326, "halt")))) == 0
    assert decoded.decoder.counters.malformed == {"no symbol": 1, "bad value": 1}


def test_cme_status_of_an_instrument_and_of_a_group() -> None:
    names = Names()
    decoder = Mdp3Decoder(names)
    defined = [mdp3.definition(54, number, f"ESZ{number}") for number in (5, 6, 7)]
    prices = mdp3.book(mdp3.level(5, 10**9, 1), mdp3.level(6, 10**9, 1))
    records = drain(
        decoder,
        [
            mdp3.packet(1, *defined, prices),
            mdp3.packet(2, cme(2, 5), cme(2, 99, reason=5, event=1)),
            mdp3.packet(3, cme(21), cme(103), cme(17, group=b"NQ"), cme(4, asset=b"EW")),
        ],
        size=2,
    )
    told = of_type(records, RecordType.STATUS)
    assert texts(told) == [
        "halted: CME 2, reason 1",
        "halted: CME 2, reason 5, event 1",
        *["auction: CME 21, group ES, reason 1"] * 3,
        "trading: CME 17, group NQ, reason 1",
        "closed: CME 4, group ES, reason 1",
    ]
    known = {number: name for name, number in names.numbers.items()} | {NO_INSTRUMENT: ""}
    of = [known[number] for number in told["instrument_id"].tolist()]
    assert of == ["ESZ5", "id-99", "", "ESZ5", "ESZ6", "", ""]  # nothing was said of ESZ7 but its definition
    assert told["source_sequence"].tolist() == [2, 2, 3, 3, 3, 3, 3]
    assert decoder.counters.messages["status"] == 6
    assert decoder.counters.malformed == {}


def test_what_does_not_fit_into_the_text_is_left_out_whole() -> None:
    names = Names()
    (record,) = drain(Mdp3Decoder(names), [mdp3.packet(1, cme(202, group=b"ABCDEF", reason=200, event=200))])
    assert texts(np.array([record])) == ["unknown: CME 202, group ABCDEF"]


# ---- samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4096, 7])
def test_every_status_of_the_iex_sample_is_a_record(samples: Path, size: int) -> None:
    records, summary, symbols = read(samples / "iex/TOPS16.pcapng.gz", size=size)
    told = records[records["code"] == StatusCode.TRADING_STATUS]
    told = of_type(told, RecordType.STATUS)
    assert summary["records"]["status"] == len(told) == 7_803 + 7_801
    found = Counter(texts(told))
    assert found == {
        "trading: IEX T": 7_800,
        "unknown: IEX operational N": 7_799,
        "halted: IEX H, reason NA": 3,
        "halted: IEX operational O": 1,
        "trading: IEX operational N": 1,
    }
    assert len(set(told["instrument_id"])) == len(symbols) == 7_799
    assert np.all(np.diff(told["source_sequence"].astype(np.int64)) > 0)
    halted = told[[text.startswith(b"halted: IEX H") for text in told["text"].tolist()]]
    after = told[np.isin(told["instrument_id"], halted["instrument_id"])]
    assert texts(after)[-1] == "trading: IEX T"


def test_the_status_records_of_the_itch_samples(samples: Path) -> None:
    folder = samples / "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0"
    records, _, symbols = read(folder / "StockTradingActionMessage.pcap")
    assert (texts(records), symbols) == (["trading: ITCH T"], {0: "AMC"})
    assert records["source_sequence"].tolist() == [0x0209_0E79]
    records, _, symbols = read(samples / "itch/bekele-first1000-start-of-day.itch")
    assert texts(records) == ["trading: ITCH T"] * 3
    assert [symbols[number] for number in records["instrument_id"].tolist()] == ["A", "AA", "AAAU"]


def test_dbn_status_agrees_with_databentos_own_decoder(samples: Path) -> None:
    databento_dbn = pytest.importorskip("databento_dbn")
    path = samples / "dbn/databento-python/GLBX.MDP3/test_data.status.dbn.zst"
    decoder = databento_dbn.DBNDecoder()
    decoder.write(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read())
    theirs: list[Any] = [one for one in decoder.decode() if hasattr(one, "action")]
    records, _, symbols = read(path)
    assert (len(theirs), symbols) == (4, {0: "ESH1"})
    assert records["ts_event"].tolist() == [one.ts_event for one in theirs]
    assert records["ts_receive"].tolist() == [one.ts_recv for one in theirs]
    for text, one in zip(texts(records), theirs, strict=True):
        parts = [f"DBN {int(one.action)}", f"reason {int(one.reason)}"]
        if int(one.trading_event):
            parts.append(f"event {int(one.trading_event)}")
        assert text.partition(": ")[2] == ", ".join(parts)
        assert text.startswith("trading") == one.is_trading


def test_empty_records_are_no_trading_status() -> None:
    assert texts(empty(3)) == []
