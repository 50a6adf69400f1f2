"""Record layout v1: the table of fields is consistent with itself, and does not change by accident."""

from __future__ import annotations

import numpy as np
import pytest

from shm.layout import (
    BAR,
    BODIES,
    DTYPE_OF_TYPE,
    FIELDS,
    HEAD_SIZE_BYTES,
    LAYOUT_VERSION,
    LEVEL2,
    NEWS,
    QUOTE,
    RECORD,
    RECORD_SIZE_BYTES,
    STATUS,
    TICK,
    TYPE_NAMES,
    Flag,
    RecordType,
    concatenate,
    empty,
    schema_hash,
)


def test_layout_of_version_1_is_pinned() -> None:
    # Rings, journals and raw frames out there hold this layout: a change of any field needs a new LAYOUT_VERSION.
    assert (LAYOUT_VERSION, schema_hash()) == (1, 0xC219_4A46_1B20_3CD1)


@pytest.mark.parametrize(
    ("name", "offset", "dtype"),
    [
        ("sequence", 0, "<u8"),
        ("ts_event", 8, "<i8"),
        ("ts_receive", 16, "<i8"),
        ("ts_publish", 24, "<i8"),
        ("instrument_id", 32, "<u4"),
        ("record_type", 36, "u1"),
        ("source", 37, "u1"),
        ("flags", 38, "<u2"),
        ("source_sequence", 40, "<u8"),
        ("feed_id", 48, "<u2"),
        ("priority", 50, "u1"),
        ("side", 51, "u1"),
        ("conditions", 52, "<u4"),
        ("venue", 56, "S8"),
    ],
)
def test_head_stands_where_the_design_says(name: str, offset: int, dtype: str) -> None:
    for record in (RECORD, *DTYPE_OF_TYPE.values()):
        assert (record.fields or {})[name][:2] == (np.dtype(dtype), offset)


@pytest.mark.parametrize(
    ("dtype", "offsets"),
    [
        (TICK, {"price": 64, "size": 72, "trade_id": 80, "condition": 88, "volume": 96, "vwap": 104}),
        (QUOTE, {"bid": 64, "ask": 72, "bid_size": 80, "ask_size": 88, "mid": 96, "spread": 104, "bid_count": 112}),
        (BAR, {"open": 64, "high": 72, "low": 80, "close": 88, "volume": 96, "vwap": 104, "interval_s": 112}),
        (LEVEL2, {"price": 64, "size": 72, "order_count": 80, "level": 84, "action": 86, "depth": 87, "best_bid": 88}),
        (NEWS, {"headline": 64}),
        (STATUS, {"code": 64, "from_sequence": 72, "to_sequence": 80, "text": 88}),
    ],
)
def test_bodies_stand_where_the_design_says(dtype: np.dtype, offsets: dict[str, int]) -> None:
    fields = dtype.fields or {}
    assert {name: fields[name][1] for name in offsets} == offsets
    assert dtype.itemsize == RECORD_SIZE_BYTES


def test_fields_of_one_body_are_aligned_ordered_and_do_not_overlap() -> None:
    for body in ("head", *BODIES):
        end = 0 if body == "head" else HEAD_SIZE_BYTES
        for field in (one for one in FIELDS if one.body == body):
            assert field.offset >= end, field
            assert field.type[0] == "S" or field.offset % field.dtype.itemsize == 0, field
            end = field.offset + field.dtype.itemsize
        assert end <= (HEAD_SIZE_BYTES if body == "head" else RECORD_SIZE_BYTES)


def test_name_that_two_bodies_share_means_the_same_place_and_type() -> None:
    seen: dict[str, tuple[int, str]] = {}
    for field in FIELDS:
        assert seen.setdefault(field.name, (field.offset, field.type)) == (field.offset, field.type), field


def test_every_type_has_a_name_and_a_view_of_the_record() -> None:
    assert len(TYPE_NAMES) == len(RecordType) + 1
    assert [TYPE_NAMES[one] for one in RecordType] == [one.name.lower() for one in RecordType]
    records = empty(1)
    records["price"], records["size"] = 1.5, 2.0
    assert records.view(DTYPE_OF_TYPE[RecordType.TRADE])["price"][0] == 1.5
    assert records.view(DTYPE_OF_TYPE[RecordType.QUOTE])["ask"][0] == 2.0


def test_flags_are_single_bits_of_a_16_bit_word() -> None:
    assert sorted(int(flag) for flag in Flag) == [1 << bit for bit in range(16)]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_empty_records_are_zeroed_and_aligned(count: int) -> None:
    records = empty(count)
    assert (records.shape, records.dtype) == ((count,), RECORD)
    assert count == 0 or records.ctypes.data % RECORD_SIZE_BYTES == 0
    assert not records.view(np.uint8).any()


def test_concatenate_keeps_every_byte_where_numpy_repacks() -> None:
    records = empty(3)
    records.view(np.uint8)[:] = np.arange(3 * RECORD_SIZE_BYTES, dtype=np.uint8)
    joined = concatenate([records[:1], records[1:]])
    assert joined.dtype == RECORD
    assert joined.tobytes() == records.tobytes()
