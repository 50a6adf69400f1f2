"""Rows of binary COPY, read here by the words of the format: decimals exact, metadata JSON, records as they were."""

from __future__ import annotations

import json
import math
import struct
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shm.layout import RecordType, StatusCode, empty
from shm.source_names import SourceNames, tell
from shm.status import StatusBlock
from tests.journals import NOW, STREAM, symbols, trades
from workers._copy_rows import ROW_MAX_BYTES, put_rows
from workers.journal_follower import Batch, Place
from workers.postgres_rows import RowWriter, records_of
from workers.postgres_schema import Span, span_for

SYMBOLS = tuple(symbols())


def batch_of(records: np.ndarray, names: tuple[str, ...] = SYMBOLS) -> Batch:
    return Batch(Place(2, STREAM), 0, 1, records, names, 0, 0, 0)


def rows_of(batch: Batch) -> bytes:
    return b"".join(map(bytes, RowWriter("e").pieces(batch)))


def fields_of(data: bytes) -> list[list[bytes | None]]:
    """Columns of each row."""
    rows, at = [], 0
    while at < len(data):
        (count,) = struct.unpack_from(">h", data, at)
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if length < 0 else data[at : at + length])
            at += max(0, length)
        rows.append(row)
    return rows


def numeric(data: bytes | None) -> Decimal | None:
    """PostgreSQL's numeric: count, weight, sign, scale, digits to base 10000."""
    if data is None:
        return None
    count, weight, sign, scale = struct.unpack_from(">hhHh", data)
    digits = struct.unpack_from(f">{count}h", data, 8)
    assert len(data) == 8 + 2 * count
    assert all(0 <= digit < 10000 for digit in digits)
    with localcontext(prec=1000):
        value = sum((Decimal(digit).scaleb(4 * (weight - n)) for n, digit in enumerate(digits)), Decimal(0))
        assert value == round(value, scale)
    return -value if sign == 0x4000 else value


def price_column(value: float) -> Decimal | None:
    records = trades(1, 1)
    records["price"] = value
    ((*_, price, _, _, _, _),) = fields_of(rows_of(batch_of(records)))
    return numeric(price)


@given(st.floats(allow_nan=True, allow_infinity=True))
@example(2.0**-24)  # half-way between two decimals of 16 digits
@example(5e-324)
@example(-1.7976931348623157e308)
def test_a_number_is_the_shortest_decimal_that_reads_back_as_it(value: float) -> None:
    wanted = Decimal(repr(value)) if math.isfinite(value) else None
    assert price_column(value) == wanted


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(0, 12))
def test_prices_of_fifteen_digits_are_exact(digits: int, scale: int) -> None:
    text = Decimal(digits).scaleb(-scale)
    assert price_column(float(text)) == text


@given(st.lists(st.binary(min_size=128, max_size=128), min_size=1, max_size=20))
def test_whatever_a_record_holds_its_row_is_whole_and_gives_it_back(raw: list[bytes]) -> None:
    records = empty(len(raw))
    records.view(np.uint8)[:] = np.frombuffer(b"".join(raw), np.uint8)
    rows = fields_of(rows_of(batch_of(records)))
    metadata = []
    for row in rows:
        assert len(row) == 9
        assert row[8] is not None
        assert row[8][0] == 1
        metadata.append(json.loads(row[8][1:]))
    back = records_of(item["packed"] for item in metadata)
    assert sorted(map(bytes, back.view("V128"))) == sorted(raw)
    assert {item["origin"] for item in metadata} == {f"e/2/{STREAM}"}
    assert [item["sequence"] for item in metadata] == back["sequence"].tolist()


def test_a_trading_status_is_a_row_of_its_symbol() -> None:
    records = trades(1, 1)
    records["record_type"], records["code"] = RecordType.STATUS, StatusCode.TRADING_STATUS
    records["instrument_id"], records["text"] = 1, b"halted: ITCH H, reason T1"
    ((_, symbol, kind, _, price, _, _, _, metadata),) = fields_of(rows_of(batch_of(records, ("Z", "A"))))
    assert (symbol, kind, price) == (b"A", b"status", None)
    assert metadata is not None
    assert records_of([json.loads(metadata[1:])["packed"]]).tobytes() == records.tobytes()


def test_rows_come_by_symbol_type_and_time() -> None:
    records = trades(1, 5000, event_ns=NOW)
    records["ts_event"] = NOW - records["ts_event"] % 9000
    records["record_type"] = np.where(np.arange(5000) % 3, RecordType.TRADE, RecordType.QUOTE)
    rows = fields_of(rows_of(batch_of(records, ("Z", "A"))))
    keys = [(row[1], row[2] == b"trade", row[0]) for row in rows]
    known = [key for key in keys if key[0]]
    assert known == sorted(known)
    assert len(known) == sum(instrument < 2 for instrument in records["instrument_id"])


def test_a_buffer_that_may_be_too_small_is_refused() -> None:
    ends = np.zeros(256, np.int32)
    text = np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match=str(3 * ROW_MAX_BYTES)):
        put_rows(
            bytearray(3 * ROW_MAX_BYTES - 1),
            trades(1, 3).view(np.uint8),
            np.arange(3),
            text,
            ends,
            text,
            ends,
            text,
            ends,
            text,
        )


@given(st.lists(st.tuples(st.integers(-100_000, 30_000), st.integers(0, 30_000)), max_size=60), st.integers(0, 5000))
def test_partitions_cover_each_day_once_whenever_they_are_made(asked: list[tuple[int, int]], keep_days: int) -> None:
    spans: list[Span] = []
    for day, today in asked:
        span = span_for(day, spans, today, keep_days)
        if span is None:
            assert any(known.first <= day < known.end for known in spans)
            continue
        assert span.first <= day < span.end
        assert not any(known.first < span.end and span.first < known.end for known in spans)
        if span.end - span.first > 1:
            assert span.end <= today
        spans.append(span)
    assert len({span.name for span in spans}) == len(spans)


def test_long_ago_is_a_year_and_lately_a_day() -> None:
    today = 20_000  # 2024-10-04
    assert span_for(19_990, [], today, 365) == (19_990, 19_991)
    assert span_for(15_500, [], today, 365) == (15_340, 15_706)  # 2012
    assert span_for(15_500, [Span(15_400, 15_401)], today, 365) == (15_492, 15_522)  # June 2012
    assert span_for(15_500, [Span(15_501, 15_502)], today, 365) == (15_500, 15_501)


def test_a_plug_in_that_came_after_the_writer_is_named_too(engine_name: str) -> None:
    block = StatusBlock.create(engine_name, process_slots=2)
    control = block.register("control", "control")
    writer = RowWriter("e", SourceNames(block))
    records = trades(1, 1)
    records["source"] = 64
    tell(control, "linetail", 64)
    assert b"linetail" in b"".join(map(bytes, writer.pieces(batch_of(records))))
    block.close()
