"""Records as Arrow tables and Parquet files: the columns of each record type, and how an hour of journal is sealed.

Called by workers/sealer.py (a process of its own) and by whoever reads the journal as tables. Needs pyarrow (the extra
`storage`). Columns have the names of the record's fields; `symbol` stands for the instrument id, "" where a record
concerns no instrument. `ring`, `stream` (when the ring was made, ns) and `sequence` together name a record for good.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shm.layout import DTYPE_OF_TYPE, RECORD, RECORD_SIZE_BYTES, TYPE_NAMES, RecordType
from workers.archive import HIDDEN_NEW, MANIFEST, Archive, FileFacts, Manifest, Part
from workers.journal_format import parse_name
from workers.journal_reader import JournalReader, SegmentFile

ROW_GROUP_ROWS: Final = 16384  # what one symbol's hour is found and read by
_CHUNK_ROWS: Final = 8 * ROW_GROUP_ROWS  # made into columns at once

_TIMES: Final = ("ts_event", "ts_receive", "ts_publish")
_LEADING: Final = ("symbol", *_TIMES, "ring", "stream", "sequence")
_NOT_COLUMNS: Final = ("sequence", "instrument_id", "record_type", *_TIMES)
_TIMESTAMP: Final = pa.timestamp("ns", "UTC")
# Counted up or nearly so: differences are small. All else has few different values in a row group, or compresses.
_DELTAS: Final = (*_TIMES, "sequence", "source_sequence", "trade_id")


class Rows(NamedTuple):
    """Records of one type from any number of rings: shape (n,) each."""

    records: np.ndarray  # dtype RECORD
    symbol_rank: np.ndarray  # uint32, index into `symbols`
    ring: np.ndarray  # uint8
    stream: np.ndarray  # int64
    symbols: list[str]  # sorted


def schema_of(record_type: RecordType) -> pa.Schema:
    """The columns of a record type."""
    fields = [pa.field("symbol", pa.dictionary(pa.int32(), pa.string()))]
    fields += [pa.field(name, _TIMESTAMP) for name in _TIMES]
    fields += [pa.field("ring", pa.uint8()), pa.field("stream", pa.int64()), pa.field("sequence", pa.uint64())]
    dtype = DTYPE_OF_TYPE[record_type]
    for name in dtype.names or ():
        if name not in _NOT_COLUMNS:
            kind = dtype[name]
            fields.append(pa.field(name, pa.string() if kind.kind == "S" else pa.from_numpy_dtype(kind)))
    return pa.schema(fields)


def to_table(rows: Rows, record_type: RecordType, order: np.ndarray | None = None) -> pa.Table:
    """Rows as a table; `order` (indices) chooses and sorts them."""
    if order is None:
        records, rank, ring, stream = rows.records, rows.symbol_rank, rows.ring, rows.stream
    else:
        records = _take(rows.records, order)
        rank, ring, stream = rows.symbol_rank[order], rows.ring[order], rows.stream[order]
    # Only the symbols that occur, so that the statistics of a row group say what is in it.
    used, codes = _few(rank)
    symbols = pa.array([rows.symbols[index] for index in used], pa.string())
    given: dict[str, Any] = {
        "symbol": pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), symbols),
        "ring": pa.array(ring),
        "stream": pa.array(stream),
    }
    schema = schema_of(record_type)
    columns = [given[f.name] if f.name in given else _column(records[f.name], f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _take(records: np.ndarray, order: np.ndarray) -> np.ndarray:
    """records[order], as words: indexing with a dtype of overlapping fields copies field by field."""
    words = records.view(np.uint64).reshape(len(records), RECORD_SIZE_BYTES // 8)
    return words.take(order, axis=0).reshape(-1).view(records.dtype)


def _few(rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values that occur, ascending; index of each element in them)."""
    present = np.zeros(int(rank.max(initial=0)) + 1, bool)
    present[rank] = True
    used = np.flatnonzero(present)
    position = np.zeros(len(present), np.int32)
    position[used] = np.arange(len(used), dtype=np.int32)
    return used, position[rank]


def _column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    contiguous = np.ascontiguousarray(values)
    if contiguous.dtype.kind != "S":
        return pa.array(contiguous).cast(kind) if pa.types.is_timestamp(kind) else pa.array(contiguous, kind)
    width = contiguous.dtype.itemsize
    raw = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(contiguous), [None, pa.py_buffer(contiguous.view(np.uint8))]
    ).dictionary_encode()
    texts = [value.rstrip(b"\0").decode("utf-8", "replace") for value in raw.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(raw.indices, pa.array(texts, pa.string())).cast(kind)


def collect(
    reader: JournalReader, segments: Sequence[SegmentFile], only: RecordType | None = None, **choice: Any
) -> dict[RecordType, Rows]:
    """The records of these segments by type, or `only` of one; `choice` as in JournalReader.blocks."""
    blocks = [b for b in reader.blocks(segments=segments, **choice) if not b.is_gap]
    tables = {block.header.table for block in blocks}
    symbols = sorted({"", *(symbol for table in tables for symbol in reader.symbols(table))})
    rank_of = {symbol: rank for rank, symbol in enumerate(symbols)}
    ranks = {
        table: np.array([*(rank_of[symbol] for symbol in reader.symbols(table)), 0], np.uint32) for table in tables
    }
    counts = np.zeros(256, np.int64)
    for block in blocks:
        counts += np.bincount(block.records["record_type"], minlength=256)
    found = {}
    for record_type in RecordType if only is None else (only,):
        count = int(counts[record_type])
        if not count:
            continue
        rows = Rows(
            np.empty(count, RECORD),
            np.empty(count, np.uint32),
            np.empty(count, np.uint8),
            np.empty(count, np.int64),
            symbols,
        )
        words = rows.records.view(np.uint64).reshape(count, RECORD_SIZE_BYTES // 8)
        at = 0
        for block in blocks:
            mine = np.flatnonzero(block.records["record_type"] == record_type)
            end = at + len(mine)
            if end == at:
                continue
            theirs = block.records.view(np.uint64).reshape(-1, RECORD_SIZE_BYTES // 8)
            words[at:end] = theirs if len(mine) == len(theirs) else theirs.take(mine, axis=0)
            known = ranks[block.header.table]  # its last entry stands for every id that the table does not have
            rows.symbol_rank[at:end] = known[np.minimum(rows.records["instrument_id"][at:end], len(known) - 1)]
            rows.ring[at:end], rows.stream[at:end] = block.header.ring_id, block.header.stream
            at = end
        found[record_type] = rows
    return found


def by_symbol_and_time(rows: Rows) -> np.ndarray:
    """Indices that sort rows by symbol, then `ts_event`, then as recorded."""
    events = rows.records["ts_event"]
    rank = rows.symbol_rank if len(rows.symbols) > 0xFFFF else rows.symbol_rank.astype(np.uint16)  # a radix sort
    if np.all(events[1:] >= events[:-1]):
        return np.argsort(rank, kind="stable")
    order = np.argsort(events, kind="stable")
    return order[np.argsort(rank[order], kind="stable")]


def write_file(path: Path, rows: Rows, record_type: RecordType) -> FileFacts:
    """Write rows, sorted, as one Parquet file, and bring it to the disk."""
    order = by_symbol_and_time(rows)
    schema = schema_of(record_type)
    writer = pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in schema.names if name not in _DELTAS],
        column_encoding={name: "DELTA_BINARY_PACKED" for name in schema.names if name in _DELTAS},
        write_statistics=["symbol", "sequence", *_TIMES],
        sorting_columns=pq.SortingColumn.from_ordering(schema, [("symbol", "ascending"), ("ts_event", "ascending")]),
    )
    with writer:
        for start in range(0, len(order), _CHUNK_ROWS):
            table = to_table(rows, record_type, order[start : start + _CHUNK_ROWS])
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    _sync(path)
    events = rows.records["ts_event"]
    return FileFacts(len(order), path.stat().st_size, int(events.min()), int(events.max()))


def seal(folder: Path, names: Sequence[str]) -> Part | None:
    """Seal segments of one hour into a part; None if nothing is left to seal of them. Only one process at a time.

    `folder` is the engine's, with journal/ and parquet/ in it. Killed at any moment, either the part is there whole or
    it is not there, and the same call does it again.

    Raises:
        OSError: no room, no permission; nothing has changed but a hidden folder that the next call removes.
    """
    archive, reader = Archive(folder / "parquet"), JournalReader(folder / "journal")
    archive.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    archive.clean()
    done = archive.sealed()
    segments = [
        SegmentFile(name, reader.folder / file_name)
        for file_name in sorted(names)
        if file_name not in done
        and (name := parse_name(Path(file_name))) is not None
        and (reader.folder / file_name).exists()
    ]
    if not segments:
        return None
    hour = segments[0].name.hour
    final = archive.next_path(hour)
    hidden = final.with_name(HIDDEN_NEW + final.name)
    hidden.mkdir(mode=0o750)
    files: dict[str, FileFacts] = {}
    rows_by_type = collect(reader, segments)
    raw_bytes = sum(len(rows.records) for rows in rows_by_type.values()) * RECORD_SIZE_BYTES
    for record_type in list(rows_by_type):
        kind = TYPE_NAMES[record_type]
        files[kind] = write_file(hidden / f"{kind}.parquet", rows_by_type.pop(record_type), record_type)
    headers = [block.header for block in reader.blocks(segments=segments) if block.is_gap]
    gaps = tuple((h.ring_id, h.stream, h.first_sequence, h.next_sequence) for h in headers)
    manifest = Manifest(hour, tuple(segment.path.name for segment in segments), raw_bytes, files, gaps)
    (hidden / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    _sync(hidden / MANIFEST)
    _sync(hidden)
    hidden.rename(final)
    _sync(archive.folder)
    return Part(final, manifest)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
