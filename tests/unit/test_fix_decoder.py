"""FIX messages into records: the captured sample against simplefix, books by id, price and place, logs, garbage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplefix

from shm.layout import RECORD, Action, Flag, RecordType, Side, concatenate, empty
from workers.decoders._fix import FixDecoder, FixReader, parse_timestamp
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.detection import detect
from workers.decoders.fix_log import line_time
from workers.decoders.protocol import UnknownFormatError, one_frame

TIME = "20230124-13:30:46.130"
AT = 1_674_567_046_130_000_000


def message(kind: str, *body: tuple[int, object], seq: int = 2, begin: str = "FIX.4.4", **head: str) -> bytes:
    made = simplefix.FixMessage()
    made.append_pair(8, begin)
    made.append_pair(35, kind)
    made.append_pair(34, seq)
    made.append_pair(49, head.get("sender", "V"))
    made.append_pair(56, "C")
    made.append_pair(52, head.get("time", TIME))
    for tag, value in body:
        made.append_pair(tag, str(value))
    encoded: bytes = made.encode()
    return encoded


class Decoded:
    """A decoder and what it has made."""

    def __init__(self, **options: object) -> None:
        self.names: dict[str, int] = {}
        self.decoder = FixDecoder(
            lambda name: self.names.setdefault(name, len(self.names)),
            **options,  # type: ignore[arg-type]
        )
        self.records = empty(0)

    def feed(self, *messages: bytes, room: int = 64) -> np.ndarray:
        """The records of these messages."""
        out, found = empty(room), [empty(0)]
        for one in messages:
            self.decoder.feed(*one_frame(one, 5))
            while count := self.decoder.decode(out):
                found.append(out[:count].copy())
        fresh = concatenate(found)
        self.records = concatenate([self.records, fresh])
        return fresh


def kinds(records: np.ndarray) -> list[str]:
    return [RecordType(kind).name.lower() for kind in records["record_type"]]


def levels(records: np.ndarray) -> list[tuple[str, str, float, float]]:
    rows = records[records["record_type"] == RecordType.LEVEL2]
    return [
        (Side(row["side"]).name, Action(row["action"]).name, float(row["price"]), float(row["size"])) for row in rows
    ]


def quotes(records: np.ndarray) -> list[tuple[float, float, float, float]]:
    rows = records[records["record_type"] == RecordType.QUOTE]
    found: list[tuple[float, float, float, float]] = rows[["bid", "bid_size", "ask", "ask_size"]].tolist()
    return found


def bytes_of(path: Path, chunk: int) -> np.ndarray:
    """The sample's records, read in pieces of `chunk` bytes."""
    reader, decoded, data = FixReader(log=True), Decoded(), path.read_bytes()
    out, found = empty(5), [empty(0)]
    for at in range(0, len(data), chunk):
        batch = reader.feed(data[at : at + chunk])
        decoded.decoder.feed(batch.buffer, batch.frames)
        while count := decoded.decoder.decode(out):
            found.append(out[:count].copy())
    assert (reader.garbled, reader.finish()) == (0, 0)
    return concatenate(found)


def test_the_sample_decodes_to_what_simplefix_reads(samples: Path) -> None:
    """Every price and size of the snapshots and mass quotes, and the best of each, by another parser."""
    path = samples / "fix/valid-soh.fix"
    found = describe_capture(path)
    assert found["messages"] == {"W": 4, "X": 4, "Y": 1, "i": 2}
    assert (found["malformed"], found["passed_over"], found["error"]) == ({}, {}, "")
    assert found["format"] == "FIX messages"
    records = bytes_of(path, 1 << 20)
    parser = simplefix.FixParser()
    parser.append_buffer(path.read_bytes())
    parsed = []
    while (one := parser.get_message()) is not None:
        parsed.append(one)
    for one in parsed:
        kind, seq = one.get(35).decode(), int(one.get(34))
        mine = records[(records["source_sequence"] == seq) & (records["ts_event"] // 10**12 > 0)]
        if kind == "W":
            prices = [float(value) for tag, value in one.pairs if int(tag) == 270]
            sizes = [float(value) for tag, value in one.pairs if int(tag) == 271]
            rows = mine[(mine["record_type"] == RecordType.LEVEL2) & (mine["action"] == Action.ADD)]
            rows = rows[(rows["flags"] & Flag.SNAPSHOT) != 0]
            assert list(zip(rows["price"].tolist(), rows["size"].tolist(), strict=True)) == list(
                zip(prices, sizes, strict=True)
            )
        elif kind == "i":
            bids = [float(value) for tag, value in one.pairs if int(tag) == 188]
            asks = [float(value) for tag, value in one.pairs if int(tag) == 190]
            rows = mine[(mine["record_type"] == RecordType.LEVEL2) & ((mine["flags"] & Flag.SNAPSHOT) == 0)]
            for side, wanted in ((Side.BUY, bids), (Side.SELL, asks)):
                added = rows[(rows["side"] == side) & np.isin(rows["action"], (Action.ADD, Action.MODIFY))]
                assert added["price"].tolist()[: len(wanted)] == wanted
    assert records["ts_event"][0] == parse_timestamp(b"20210316-14:58:50.329")
    last = records[records["record_type"] == RecordType.QUOTE][-1]
    assert [last[name] for name in ("bid", "bid_size", "ask", "ask_size")] == [1.37215, 2500000.0, 1.37224, 2503200.0]


@pytest.mark.parametrize("chunk", [1, 7, 100, 4096])
def test_any_cut_gives_the_same_records(samples: Path, chunk: int) -> None:
    path = samples / "fix/valid-soh.fix"
    whole, cut = bytes_of(path, 1 << 20), bytes_of(path, chunk)
    assert len(whole) == len(cut) == 184
    assert (whole.view(np.uint8) == cut.view(np.uint8)).all()


def test_a_byte_more_or_less_is_no_message_yet_and_the_next_is_found() -> None:
    one, two = message("0"), message("X", (268, 0), seq=3)
    for cut in range(len(one)):
        reader = FixReader()
        assert len(reader.feed(one[:cut]).frames) == 0
        assert len(reader.feed(one[cut:] + two[:5]).frames) == 1
        assert len(reader.feed(two[5:]).frames) == 1
        assert reader.heads["seq"].tolist() == [3]
        assert reader.garbled == 0


@pytest.mark.parametrize(
    "bad",
    [
        message("0")[:-2] + b"9\x01",
        message("0").replace(b"\x019=", b"\x019=1"),
        message("0").replace(b"9=45", b"9=44"),
        message("0")[:40],
        b"8=FIX.4.4\x019=abc\x01",
        b"8=FIX.4.4\x0110=000\x01",
        b"8=FIX.4.4\x019=99999999999\x01",
        message("0").replace(b"35=0", b"36=0"),
    ],
)
def test_garbled_messages_are_passed_over_and_counted(bad: bytes) -> None:
    assert bad != message("0")
    reader = FixReader()
    batch = reader.feed(bad + message("1", (112, "x"), seq=9) + message("0", seq=10))
    assert reader.heads["seq"].tolist() == [9, 10]
    assert len(batch.frames) == 2
    assert reader.garbled == 1


def test_a_wrong_length_does_not_swallow_what_follows_it() -> None:
    reader = FixReader()
    long = message("0").replace(b"\x019=", b"\x019=9")
    seen = []
    for part in (long, message("0", seq=3), message("0", seq=4)):
        reader.feed(part)
        seen += reader.heads["seq"].tolist()
    assert seen == [3, 4]


def test_heads_say_what_a_session_must_know() -> None:
    reader = FixReader()
    reader.feed(
        message("X", (268, 0), seq=7) + message("AE", (1, 2), seq=8, begin="FIX.4.2") + message("0", (43, "Y"), seq=9)
    )
    assert reader.heads["type"].tolist() == [ord("X"), ord("A") | ord("E") << 8, ord("0")]
    assert reader.heads["version"].tolist() == [44, 42, 44]
    assert reader.heads["possdup"].tolist() == [0, 0, 1]


def test_entries_with_ids_that_share_a_price_make_one_level() -> None:
    one = Decoded()
    one.feed(message("W", (55, "A"), (268, 1), (269, 0), (270, 9), (271, 1), (278, "z")))
    made = one.feed(
        message("X", (268, 2), (279, 0), (269, 0), (278, "a"), (55, "A"), (270, 10.5), (271, 3),
                (279, 0), (269, 0), (278, "b"), (270, 10.5), (271, 0.1)),
        message("X", (268, 1), (279, 1), (278, "a"), (55, "A"), (271, 0.2)),
        message("X", (268, 1), (279, 2), (278, "b"), (55, "A")),
        message("X", (268, 1), (279, 1), (278, "a"), (55, "A"), (270, 10.25), (269, 0)),
        message("X", (268, 1), (279, 2), (280, "a"), (55, "A")),
        message("X", (268, 1), (279, 2), (278, "z"), (55, "A")),
    )  # fmt: skip
    assert levels(made) == [
        ("BUY", "ADD", 10.5, 3.0),
        ("BUY", "MODIFY", 10.5, 3.1),
        ("BUY", "MODIFY", 10.5, 0.3),
        ("BUY", "MODIFY", 10.5, 0.2),
        ("BUY", "DELETE", 10.5, 0.0),
        ("BUY", "ADD", 10.25, 0.2),
        ("BUY", "DELETE", 10.25, 0.0),
        ("BUY", "DELETE", 9.0, 0.0),
    ]
    assert [quote[:2] for quote in quotes(made)][:4] == [(10.5, 3.1), (10.5, 0.3), (10.5, 0.2), (10.25, 0.2)]
    assert not one.decoder.counters.malformed


def test_levels_are_found_by_price_and_by_place() -> None:
    one = Decoded()
    one.feed(message("W", (55, "A"), (268, 3), (269, 1), (270, 11), (271, 1), (269, 1), (270, 12), (271, 2),
                     (269, 1), (270, 13), (271, 3)))  # fmt: skip
    made = one.feed(
        message("X", (268, 1), (279, 1), (269, 1), (55, "A"), (270, 12), (271, 5), (290, 2)),
        message("X", (268, 1), (279, 0), (269, 1), (55, "A"), (270, 11.5), (271, 9), (290, 2)),
        message("X", (268, 1), (279, 2), (269, 1), (55, "A"), (290, 1)),
        message("X", (268, 1), (279, 1), (269, 1), (55, "A"), (290, 1), (271, 4)),
        message("X", (268, 1), (279, 1), (269, 1), (55, "A"), (290, 3), (270, 14), (271, 1)),
        message("X", (268, 1), (279, 2), (269, 1), (55, "A"), (270, 12)),
    )
    assert levels(made) == [
        ("SELL", "MODIFY", 12.0, 5.0),
        ("SELL", "ADD", 11.5, 9.0),
        ("SELL", "DELETE", 11.0, 0.0),
        ("SELL", "MODIFY", 11.5, 4.0),
        ("SELL", "DELETE", 13.0, 0.0),
        ("SELL", "ADD", 14.0, 1.0),
        ("SELL", "DELETE", 12.0, 0.0),
    ]
    rows = made[made["record_type"] == RecordType.LEVEL2]
    assert rows["level"].tolist()[:2] == [1, 1]


def test_of_the_best_prices_alone_a_new_one_takes_the_place_of_the_old() -> None:
    one = Decoded(top=True, wants=("quote",))
    made = one.feed(
        message("W", (55, "A"), (268, 2), (269, 0), (270, 10), (271, 1), (269, 1), (270, 11), (271, 1)),
        message("X", (268, 1), (279, 1), (269, 0), (55, "A"), (270, 9), (271, 2)),
        message("X", (268, 1), (279, 0), (269, 0), (55, "A"), (270, 9), (271, 3)),
        message("X", (268, 1), (279, 2), (269, 0), (55, "A"), (270, 9)),
    )
    assert kinds(made) == ["quote"] * 4
    assert quotes(made)[:3] == [(10, 1, 11, 1), (9, 2, 11, 1), (9, 3, 11, 1)]
    assert np.isnan(quotes(made)[3][0])


def test_trades_have_id_side_condition_and_what_the_session_says() -> None:
    one = Decoded()
    made = one.feed(
        message("X", (268, 4), (279, 0), (269, "B"), (55, "A"), (271, 1000), (279, 0), (269, 9), (55, "A"), (270, 10.1),
                (279, 0), (269, 2), (278, 77), (55, "A"), (270, 10.5), (271, 3), (54, 2), (277, "AB"), (275, "XLON"),
                (272, 20230124), (273, "13:30:45.123456789"),
                (279, 2), (269, 2), (278, 76), (55, "A")),
    )  # fmt: skip
    trade, bust = made
    assert kinds(made) == ["trade", "trade"]
    assert [trade[name] for name in ("price", "size", "trade_id", "volume", "vwap")] == [10.5, 3, 77, 1000, 10.1]
    assert (trade["side"], trade["condition"], trade["venue"]) == (Side.SELL, b"AB", b"XLON")
    assert trade["ts_event"] == AT // 10**9 * 10**9 - 10**9 + 123_456_789
    assert trade["source_sequence"] == 2
    assert bust["flags"] & Flag.CORRECTED
    assert bust["flags"] & Flag.LAST_OF_BATCH
    assert bust["trade_id"] == 76


def test_times_come_from_entry_transaction_or_sending() -> None:
    one = Decoded(wants=("trade",))
    trade = ((269, 2), (55, "A"), (270, 1), (271, 1))
    made = one.feed(
        message("X", (268, 1), (279, 0), *trade),
        message("X", (60, "20230124-13:30:40.5"), (268, 1), (279, 0), *trade),
        message("X", (268, 1), (279, 0), *trade, (273, "23:59:59.9"), time="20230125-00:00:00.100"),
        message("X", (268, 1), (279, 0), *trade, (273, "00:00:00.1"), time="20230124-23:59:59.900"),
        message("X", (268, 1), (279, 0), *trade, (272, "20230101"), (273, "00:00:01")),
    )
    assert made["ts_event"].tolist() == [
        AT,
        parse_timestamp(b"20230124-13:30:40.5"),
        parse_timestamp(b"20230124-23:59:59.9"),
        parse_timestamp(b"20230125-00:00:00.1"),
        parse_timestamp(b"20230101-00:00:01"),
    ]
    assert parse_timestamp(b"20161231-23:59:60") == 1_483_228_800 * 10**9


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"20230124",
        b"20230124 13:30:46",
        b"20231324-13:30:46",
        b"20230124-24:30:46",
        b"20230124-13:30:46.",
        b"x" * 30,
    ],
)
def test_what_is_no_time_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a UTC timestamp"):
        parse_timestamp(text)


def test_symbols_come_from_the_entry_the_one_before_the_request_or_the_security_id() -> None:
    one = Decoded(alone=True)
    assert one.decoder.request(b"7", "E")
    entry = ((279, 0), (269, 2), (270, 1), (271, 1))
    one.feed(
        message("X", (268, 3), *entry, (55, "A"), *entry, *entry, (55, "B")),
        message("X", (262, 7), (268, 1), *entry),
        message("X", (268, 1), *entry, (48, "ID-1"), (22, 8)),
        message("X", (268, 1), *entry, (48, "ID-1"), (55, "C")),
        message("W", (55, "D"), (262, "r"), (268, 1), *entry[1:]),
        message("X", (262, "r"), (268, 1), *entry),
        message("X", (268, 1), *entry),
    )
    by_id = {number: name for name, number in one.names.items()}
    assert [by_id[number] for number in one.records["instrument_id"].tolist()] == [
        "A", "A", "B", "E", "ID-1", "C", "D", "D",
    ]  # fmt: skip
    assert one.decoder.counters.malformed == {"no symbol": 1}


def test_a_mass_quote_changes_only_what_it_states() -> None:
    one = Decoded(alone=True, wants=("quote",))
    one.decoder.request(b"5", "EUR/USD")
    first = message("i", (117, 1), (296, 1), (302, 5), (295, 1), (299, 0), (132, 1.1), (133, 1.2), (134, 10), (135, 20))
    price = message("i", (296, 1), (302, 5), (295, 1), (299, 0), (188, 1.15))
    gone = message("i", (296, 1), (302, 5), (295, 1), (299, 0), (135, 0))
    made = one.feed(first, price, gone)
    assert quotes(made)[:2] == [(1.1, 10, 1.2, 20), (1.15, 10, 1.2, 20)]
    assert quotes(made)[2][:2] == (1.15, 10)
    assert np.isnan(quotes(made)[2][2])
    assert list(one.names) == ["EUR/USD"]


def test_books_without_a_snapshot_or_after_a_loss_are_incomplete_until_the_next() -> None:
    one = Decoded()
    level = ((279, 0), (269, 0), (55, "A"), (270, 1), (271, 1))
    unknown = message("X", (268, 1), (279, 2), (269, 0), (55, "A"), (270, 5))
    snapshot = message("W", (55, "A"), (268, 1), (269, 0), (270, 1), (271, 1))
    assert (one.feed(message("X", (268, 1), *level))["flags"] & Flag.INCOMPLETE).all()
    one.feed(unknown)
    assert not one.decoder.counters.malformed
    made = one.feed(snapshot)
    assert not (made["flags"] & Flag.INCOMPLETE).any()
    assert (made["flags"] & Flag.SNAPSHOT).all()
    assert levels(made) == [("NONE", "CLEAR", pytest.approx(np.nan, nan_ok=True), 0.0), ("BUY", "ADD", 1.0, 1.0)]
    one.feed(unknown)
    assert one.decoder.counters.malformed == {"unknown order": 1}
    one.decoder.doubt()
    assert (one.feed(message("X", (268, 1), *level, (346, 4)))["flags"] & Flag.INCOMPLETE).all()
    assert not (one.feed(snapshot)["flags"] & Flag.INCOMPLETE).any()


def test_sessions_of_a_recording_have_books_of_their_own() -> None:
    one = Decoded()
    body = ((55, "A"), (268, 1), (269, 0), (270, 1), (271, 1))
    made = one.feed(message("W", *body, sender="V1"), message("W", *body, sender="V2"))
    assert levels(made)[1::2] == [("BUY", "ADD", 1.0, 1.0)] * 2
    assert len(quotes(made)) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (((268, 2), (279, 0), (269, 0), (55, "A"), (270, 1), (271, 1)), "bad length"),
        (((268, 1), (279, 0), (269, 0), (55, "A"), (270, "x"), (271, 1)), "bad value"),
        (((268, 1), (279, 0), (269, 0), (55, "A"), (270, 1), (271, -1)), "bad value"),
        (((268, 1), (279, 9), (269, 0), (55, "A"), (270, 1), (271, 1)), "bad value"),
        (((268, 1), (279, 0), (269, 0), (55, "A" * 40), (270, 1), (271, 1)), "bad symbol"),
        (((268, 1), (279, 0), (269, 0), (270, 1), (271, 1)), "no symbol"),
        (((268, 1), (279, 0), (269, 2), (55, "A"), (271, 1)), "bad value"),
        (((268, 1), (279, 0), (269, 2), (55, "A"), (270, 1), (273, "25:00:00")), "bad value"),
    ],
)
def test_a_message_that_is_wrong_makes_no_record_and_is_counted(
    body: tuple[tuple[int, object], ...], reason: str
) -> None:
    one = Decoded()
    assert len(one.feed(message("X", *body))) == 0
    assert one.decoder.counters.malformed == {reason: 1}


def test_data_fields_may_hold_separators() -> None:
    one = Decoded(wants=("trade",))
    made = one.feed(
        message("X", (354, 5), (355, "a\x0155b"), (268, 1), (279, 0), (269, 2), (55, "A"), (270, 1), (271, 1))
    )
    assert len(made) == 1


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (b"20230124-13:30:46.130 : ", AT),
        (b"2023-01-24T13:30:46.130Z IN ", AT),
        (b"2023-01-24 15:30:46,130+02:00 [main] INFO <- ", AT),
        (b"[20230124-13:30:46.130123456] ", AT + 123_456),
        (b"1674567046130 ", AT),
        (b"1674567046130000000 ", AT),
        (b"1674567046.13 ", AT),
        (b"<FIX.4.4:A->B, incoming> (", 0),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("separator", [b"\x01", b"|", b"^A"])
@pytest.mark.parametrize("closed", [True, False])
def test_logs_may_begin_their_lines_with_a_time(
    tmp_path: Path, line: bytes, at: int, separator: bytes, *, closed: bool
) -> None:
    assert line_time(line) == at
    trade = message("X", (268, 1), (279, 0), (269, 2), (55, "A"), (270, 1), (271, 1))
    path = tmp_path / "messages.log"
    lines = [one if closed else one[:-1] for one in (message("A"), trade, trade)]
    path.write_bytes(b"".join(line + one.replace(b"\x01", separator) + b"\n" for one in lines))
    names: dict[str, int] = {}
    out = empty(8)
    with open_capture(path, intern=lambda name: names.setdefault(name, len(names))) as capture:
        assert capture.decode(out) == 2
        assert out["ts_receive"][:2].tolist() == [at, at]
        assert out["ts_event"][:2].tolist() == [AT, AT]
        assert (out["flags"][:2] & Flag.REPLAYED).all()
        assert capture.counters.messages == {"A": 1, "X": 2}


def test_a_log_is_recognised_by_its_first_lines() -> None:
    nowhere = Path("messages.log")
    assert detect(b"FIX log of today\n2023-01-24 13:30:46 8=FIX.4.4\x019=12\x0135=0\x01", nowhere) == "fix"
    assert detect(b"8=FIXT.1.1|9=12|35=0|", nowhere) == "fix"
    with pytest.raises(UnknownFormatError):
        detect(b"8=FIX but not really", nowhere)


def test_a_record_holds_what_the_layout_says() -> None:
    one = Decoded(source=8, feed_id=3, venue=b"LMAX")
    (record,) = one.feed(message("X", (268, 1), (279, 0), (269, 2), (55, "A"), (270, 1), (271, 1), (43, "Y")))
    assert (record["source"], record["feed_id"], record["venue"], record["ts_receive"]) == (8, 3, b"LMAX", 5)
    assert record.dtype == RECORD


def test_a_symbol_that_is_refused_is_counted() -> None:
    def refuse(_: str) -> int:
        raise ValueError("no room")

    decoder = FixDecoder(refuse)
    decoder.feed(*one_frame(message("X", (268, 1), (279, 0), (269, 2), (55, "A"), (270, 1), (271, 1))))
    assert decoder.decode(empty(4)) == 0
    assert decoder.counters.malformed == {"bad symbol": 1}
