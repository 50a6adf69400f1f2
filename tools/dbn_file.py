"""Writes recorded records as a Databento DBN file (version 3 metadata by databento_dbn; records laid out here).

Called by `tickengine export --format dbn`. Which schema a record type becomes:

    trade, tick -> trades       quote -> mbp-1       bar of 1 s, 1 min, 1 h, 1 day -> ohlcv-1s, -1m, -1h, -1d

DBN has prices as whole numbers of 1e-9 and sizes as whole numbers: what does not fit is refused and not rounded in
silence. Layouts: the dbn crate, `record.rs`. The publisher id is 0, "unknown"; times of receipt are `ts_receive`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from shm.layout import RecordType, Side

_UNDEFINED_PRICE: Final = np.iinfo(np.int64).max
_F_LAST: Final = 1 << 7
_HEAD: Final = [
    ("length", "u1"),
    ("rtype", "u1"),
    ("publisher_id", "<u2"),
    ("instrument_id", "<u4"),
    ("ts_event", "<u8"),
]
_EVENT: Final = [
    ("price", "<i8"),
    ("size", "<u4"),
    ("action", "S1"),
    ("side", "S1"),
    ("flags", "u1"),
    ("depth", "u1"),
    ("ts_recv", "<u8"),
    ("ts_in_delta", "<i4"),
    ("sequence", "<u4"),
]
_LEVEL: Final = [
    ("bid_px", "<i8"),
    ("ask_px", "<i8"),
    ("bid_sz", "<u4"),
    ("ask_sz", "<u4"),
    ("bid_ct", "<u4"),
    ("ask_ct", "<u4"),
]
_BAR: Final = [("open", "<i8"), ("high", "<i8"), ("low", "<i8"), ("close", "<i8"), ("volume", "<u8")]
_BARS: Final = {1: (0x20, "ohlcv-1s"), 60: (0x21, "ohlcv-1m"), 3600: (0x22, "ohlcv-1h"), 86400: (0x23, "ohlcv-1d")}
_MBP_0: Final = 0x00
_MBP_1: Final = 0x01


class DbnError(ValueError):
    """The records can not be written as DBN; the message says which value and why."""


def write_dbn(path: Path, table: Any, record_type: RecordType) -> None:
    """Write a table of workers.history (sorted by symbol and time, not empty) as a DBN file, in order of time.

    Raises:
        DbnError: a type, price, size or interval that DBN does not have.
    """
    if record_type in (RecordType.TRADE, RecordType.TICK):
        schema, records = "trades", _trades(table)
    elif record_type is RecordType.QUOTE:
        schema, records = "mbp-1", _quotes(table)
    elif record_type is RecordType.BAR:
        schema, records = _bars(table)
    else:
        raise DbnError(f"DBN can hold trades, ticks, quotes and bars here, not {record_type.name.lower()}")
    symbols, ids = np.unique(_numpy(table, "symbol").astype(str), return_inverse=True)
    times = _int_times(table, "ts_event")
    records["length"] = records.dtype.itemsize // 4
    records["instrument_id"] = ids + 1
    records["ts_event"] = times
    records = records[np.argsort(times, kind="stable")]
    with path.open("wb") as file:
        file.write(_metadata(schema, [str(symbol) for symbol in symbols], int(times.min()), int(times.max())))
        file.write(records.tobytes())


def _metadata(schema: str, symbols: list[str], first_ns: int, last_ns: int) -> bytes:
    from databento_dbn import Metadata, Schema, SType

    start = datetime.fromtimestamp(first_ns // 10**9, UTC).date()
    end = datetime.fromtimestamp(last_ns // 10**9, UTC).date() + timedelta(days=1)
    mappings = [
        SimpleNamespace(
            raw_symbol=symbol, intervals=[SimpleNamespace(start_date=start, end_date=end, symbol=str(number))]
        )
        for number, symbol in enumerate(symbols, 1)
    ]
    made = Metadata(
        dataset="TICKENGINE",
        start=first_ns,
        end=last_ns + 1,
        stype_in=SType.from_str("raw_symbol"),
        stype_out=SType.from_str("instrument_id"),
        schema=Schema.from_str(schema),
        symbols=symbols,
        partial=[],
        not_found=[],
        mappings=mappings,
        ts_out=False,
    )
    return bytes(made.encode())


def _trades(table: Any) -> np.ndarray:
    records = _events(table, np.dtype([*_HEAD, *_EVENT]), _MBP_0, b"T")
    records["price"] = _prices(table, "price")
    records["size"] = _sizes(table, "size", "<u4")
    sides = _numpy(table, "side")
    # DBN says which side was the aggressor's as ours does: B = a buyer lifted the ask.
    records["side"] = np.where(sides == Side.BUY, b"B", np.where(sides == Side.SELL, b"A", b"N"))
    return records


def _quotes(table: Any) -> np.ndarray:
    records = _events(table, np.dtype([*_HEAD, *_EVENT, *_LEVEL]), _MBP_1, b"M")
    records["price"], records["side"] = _UNDEFINED_PRICE, b"N"
    for theirs, ours in (("bid_px", "bid"), ("ask_px", "ask")):
        records[theirs] = _prices(table, ours)
    for theirs, ours in (("bid_sz", "bid_size"), ("ask_sz", "ask_size")):
        records[theirs] = _sizes(table, ours, "<u4")
    for theirs, ours in (("bid_ct", "bid_count"), ("ask_ct", "ask_count")):
        records[theirs] = _numpy(table, ours)
    return records


def _bars(table: Any) -> tuple[str, np.ndarray]:
    intervals = np.unique(_numpy(table, "interval_s")).tolist()
    if len(intervals) != 1 or intervals[0] not in _BARS:
        raise DbnError(
            f"bars of {intervals} s: a DBN file has bars of one length out of {sorted(_BARS)} s; use --interval"
        )
    rtype, schema = _BARS[intervals[0]]
    records = np.zeros(table.num_rows, np.dtype([*_HEAD, *_BAR]))
    records["rtype"] = rtype
    for name in ("open", "high", "low", "close"):
        records[name] = _prices(table, name)
    records["volume"] = _sizes(table, "volume", "<u8")
    return schema, records


def _events(table: Any, dtype: np.dtype, rtype: int, action: bytes) -> np.ndarray:
    records = np.zeros(table.num_rows, dtype)
    records["rtype"], records["action"], records["flags"] = rtype, action, _F_LAST
    records["ts_recv"] = _int_times(table, "ts_receive")
    records["sequence"] = _numpy(table, "source_sequence") & 0xFFFF_FFFF
    return records


def _prices(table: Any, name: str) -> np.ndarray:
    values = _numpy(table, name)
    undefined = np.isnan(values)
    if np.any(np.abs(values[~undefined]) >= _UNDEFINED_PRICE / 1e9):
        raise DbnError(f"column {name} has a price of 9.2e9 or more, which DBN can not hold")
    scaled = np.rint(np.where(undefined, 0.0, values) * 1e9).astype(np.int64)
    scaled[undefined] = _UNDEFINED_PRICE
    return scaled


def _sizes(table: Any, name: str, kind: str) -> np.ndarray:
    values = np.nan_to_num(_numpy(table, name))
    wrong = (values != np.floor(values)) | (values < 0) | (values > np.iinfo(np.dtype(kind)).max)
    if wrong.any():
        raise DbnError(f"column {name} has {values[wrong][0]:g}, but DBN has whole sizes; use parquet, csv or arrow")
    return np.asarray(values.astype(kind))


def _int_times(table: Any, name: str) -> np.ndarray:
    return np.asarray(table[name].cast("int64").to_numpy())


def _numpy(table: Any, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy())
