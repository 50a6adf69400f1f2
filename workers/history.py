"""What was recorded, as tables: the Parquet archive and what of the journal is not in it yet, each record once.

Used by `tickengine export` and `query`, and by anybody with pyarrow: needs no engine, changes nothing, and may run
while the recorder records, seals and removes. Times are `ts_event`, ns since the Unix epoch; ranges are [from, to).

    history = History(Path("~/.local/share/tickengine/main").expanduser())
    table = history.table(RecordType.TRADE, symbol="AAPL", from_ns=..., to_ns=...)

Sealed rows are found through the statistics of the row groups: files are sorted by symbol and time, so that one
symbol's hour is one or two row groups of each file concerned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shm.layout import TYPE_NAMES, RecordType
from workers.archive import Archive, Part
from workers.journal_reader import JournalReader, SegmentFile, list_segments
from workers.parquet import by_symbol_and_time, collect, schema_of, to_table

ORDER: Final = ("symbol", "ts_event", "ring", "sequence")
_KNOWN_FOOTERS: Final = 4096  # some 10 KB each


class History:
    """The recorded data of one engine: its folder, with journal/ and parquet/ in it."""

    def __init__(self, folder: Path) -> None:
        """Nothing is opened yet."""
        self.folder = folder
        self._archive = Archive(folder / "parquet")
        self._footers: dict[Path, pq.FileMetaData] = {}

    def sources(self) -> tuple[list[Part], list[SegmentFile]]:
        """The parts, and the segments that are in none of them: together every record once."""
        # Segments first: one that is sealed between the two looks is then left out as sealed, and not missed.
        segments = list_segments(self.folder / "journal")
        parts = self._archive.parts()
        sealed = {name for part in parts for name in part.manifest.segments}
        return parts, [segment for segment in segments if segment.path.name not in sealed]

    def gaps(self) -> pa.Table:
        """What rings lost before it could be recorded: ring, stream, from_sequence, to_sequence (not included)."""
        parts, segments = self.sources()
        blocks = JournalReader(self.folder / "journal").blocks(segments=segments)
        found = [gap for part in parts for gap in part.manifest.gaps]
        found += [
            (b.header.ring_id, b.header.stream, b.header.first_sequence, b.header.next_sequence)
            for b in blocks
            if b.is_gap
        ]
        names = ("ring", "stream", "from_sequence", "to_sequence")
        columns = zip(*sorted(found), strict=True) if found else ([], [], [], [])
        return pa.table({name: pa.array(column, pa.int64()) for name, column in zip(names, columns, strict=True)})

    def recent(
        self, record_type: RecordType, segments: list[SegmentFile], from_ns: int | None, to_ns: int | None
    ) -> pa.Table:
        """Records of a type in these segments of the journal, sorted; may be empty."""
        pieces = list(self._read_journal(record_type, segments, None, from_ns, to_ns))
        return pieces[0] if pieces else schema_of(record_type).empty_table()

    @staticmethod
    def files_of(parts: list[Part], record_type: RecordType, from_ns: int | None, to_ns: int | None) -> list[Path]:
        """The Parquet files of these parts that may have records of a type in a time range, oldest first."""
        name = TYPE_NAMES[record_type]
        found = []
        for part in parts:
            facts = part.manifest.files.get(name)
            if facts is None:
                continue
            if (from_ns is None or facts.event_max_ns >= from_ns) and (to_ns is None or facts.event_min_ns < to_ns):
                found.append(part.file(name))
        return found

    def table(
        self,
        record_type: RecordType,
        *,
        symbol: str | None = None,
        from_ns: int | None = None,
        to_ns: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Records of a type, sorted by symbol, time, ring and sequence; columns as workers.parquet.schema_of.

        Args:
            symbol: only this one; None = all.
            columns: only these, in this order; None = all.
        """
        parts, segments = self.sources()
        schema = schema_of(record_type)
        needed = None if columns is None else list(dict.fromkeys([*columns, *ORDER]))
        pieces = [
            piece
            for path in self.files_of(parts, record_type, from_ns, to_ns)
            for piece in self._read_sealed(path, symbol, from_ns, to_ns, needed)
        ]
        pieces += self._read_journal(record_type, segments, symbol, from_ns, to_ns, columns=needed)
        if not pieces:
            return schema.empty_table().select(columns or schema.names)
        table = pa.concat_tables(pieces).unify_dictionaries()
        if len(pieces) > 1:
            table = _sorted(table, one_symbol=symbol is not None)
        return table if columns is None else table.select(columns)

    def _read_sealed(
        self, path: Path, symbol: str | None, from_ns: int | None, to_ns: int | None, columns: list[str] | None
    ) -> Iterator[pa.Table]:
        """The rows of one Parquet file; nothing if the file has just been removed."""
        known = self._footers.get(path)
        try:
            file = pq.ParquetFile(path, metadata=known, read_dictionary=["symbol"], pre_buffer=False)
        except FileNotFoundError:
            return
        if known is None:
            if len(self._footers) >= _KNOWN_FOOTERS:
                self._footers.clear()
            self._footers[path] = file.metadata
        with file:
            groups = list(range(file.metadata.num_row_groups))
            if symbol is not None:
                groups = [index for index in groups if _may_have(file.metadata.row_group(index), symbol)]
            if not groups:
                return
            table = file.read_row_groups(groups, columns=columns, use_threads=False)
        if symbol is not None:
            table = table.filter(pc.equal(table["symbol"], symbol))
        table = _within(table, from_ns, to_ns)
        if table.num_rows:
            yield table

    def _read_journal(
        self,
        record_type: RecordType,
        segments: list[SegmentFile],
        symbol: str | None,
        from_ns: int | None,
        to_ns: int | None,
        *,
        columns: list[str] | None = None,
    ) -> Iterator[pa.Table]:
        reader = JournalReader(self.folder / "journal")
        rows = collect(reader, segments, only=record_type, from_ns=from_ns, to_ns=to_ns).get(record_type)
        if rows is None:
            return
        order = by_symbol_and_time(rows)
        if symbol is not None:
            wanted = rows.symbols.index(symbol) if symbol in rows.symbols else -1
            order = order[rows.symbol_rank[order] == wanted]
        if len(order):
            table = _within(to_table(rows, record_type, order), from_ns, to_ns)
            if table.num_rows:
                yield table if columns is None else table.select(columns)


def _sorted(table: pa.Table, *, one_symbol: bool) -> pa.Table:
    """Pieces that are sorted each, sorted together. Those of one symbol mostly follow one another already."""
    times = table["ts_event"].cast(pa.int64()).to_numpy()
    if one_symbol and bool(np.all(times[1:] > times[:-1])):
        return table
    keys = pa.table([table["symbol"].cast(pa.string()), *(table[name] for name in ORDER[1:])], names=list(ORDER))
    return table.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in ORDER]))


def _may_have(row_group: Any, symbol: str) -> bool:
    statistics = row_group.column(0).statistics  # `symbol` is the first column
    return statistics is None or not statistics.has_min_max or bool(statistics.min <= symbol <= statistics.max)


def _within(table: pa.Table, from_ns: int | None, to_ns: int | None) -> pa.Table:
    if from_ns is None and to_ns is None:
        return table
    times = table["ts_event"].cast(pa.int64())
    keep = pa.scalar(True)
    if from_ns is not None:
        keep = pc.greater_equal(times, from_ns)
    if to_ns is not None:
        keep = pc.and_(keep, pc.less(times, to_ns))
    return table.filter(keep)
