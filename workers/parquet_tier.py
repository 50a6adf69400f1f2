"""L3 without PostgreSQL: the records of one symbol out of the Parquet archive, found by manifests and statistics.

Implements workers.tier.Tier; used by the historian. Reads parts that are whole and never change (workers/archive.py),
while others are sealed and old ones removed; changes nothing. pyarrow is imported with the first question that a part
may have an answer to.

Row groups are read from the one with the newest `ts_event` on, until those left can't hold any newer record than the
`limit` that are there. A record comes back as it was but for what no column says: `instrument_id` (0), the bytes
that its type does not use (0), and text that was no whole UTF-8: pieces of a long news item are cut by bytes, and a
character that was cut in two comes back as U+FFFD.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from shm.layout import DTYPE_OF_TYPE, TYPE_NAMES, RecordType, empty
from workers.archive import Archive
from workers.tier import TierDown, Wanted
from workers.tier_order import Gathered

_KNOWN_FOOTERS: Final = 4096  # some 10 KB each
_NOT_COLUMNS: Final = ("instrument_id", "record_type")


class _Group(NamedTuple):
    """A row group that may have wanted records."""

    event_max_ns: int
    path: Path
    number: int
    record_type: RecordType


class ParquetTier:
    """The archive of one engine as a tier."""

    level = "L3"
    name = "parquet"

    def __init__(self, folder: Path, timeout_s: float = 5.0) -> None:
        """`folder` is the archive's own; it need not exist. A question that takes longer gives TierDown."""
        self._archive = Archive(folder)
        self._timeout_s = timeout_s
        self._footers: dict[Path, Any] = {}

    def read(self, wanted: Wanted) -> np.ndarray:
        """See workers.tier.Tier."""
        deadline_s = time.monotonic() + self._timeout_s
        files = self._files(wanted)
        if not files:
            return empty(0)
        try:
            import pyarrow as pa
        except ImportError:
            raise TierDown("pyarrow is not installed: pip install 'tickengine[storage]'") from None
        try:
            return self._read(wanted, self._groups(wanted, files), deadline_s)
        except (pa.ArrowException, OSError) as error:
            raise TierDown(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """See workers.tier.Tier."""
        self._footers.clear()

    def _files(self, wanted: Wanted) -> list[tuple[Path, RecordType]]:
        """Files that may have records of the time, by their manifests."""
        from_ns, to_ns = _range(wanted)
        kinds = tuple(RecordType) if wanted.kind is None else (wanted.kind,)
        try:
            parts = self._archive.parts()
        except OSError as error:
            raise TierDown(f"{error.strerror or error}: {self._archive.folder}") from error
        found = []
        for part in parts:
            for kind in kinds:
                facts = part.manifest.files.get(TYPE_NAMES[kind])
                if facts is None or (from_ns is not None and facts.event_max_ns < from_ns):
                    continue
                if to_ns is None or facts.event_min_ns < to_ns:
                    found.append((part.file(TYPE_NAMES[kind]), kind))
        return found

    def _groups(self, wanted: Wanted, files: list[tuple[Path, RecordType]]) -> list[_Group]:
        """Row groups that may have wanted records, newest first."""
        from_ns, to_ns = _range(wanted)
        found = []
        for path, kind in files:
            footer = self._footer(path)
            if footer is None:
                continue
            for index in range(footer.num_row_groups):
                group = footer.row_group(index)
                symbols, events = group.column(0).statistics, group.column(1).statistics
                if _known(symbols) and not symbols.min <= wanted.symbol <= symbols.max:
                    continue
                low, high = (_ns(events.min_raw), _ns(events.max_raw)) if _known(events) else (-(1 << 63), 1 << 63)
                if (from_ns is None or high >= from_ns) and (to_ns is None or low < to_ns):
                    found.append(_Group(high, path, index, kind))
        return sorted(found, reverse=True)

    def _footer(self, path: Path) -> Any:
        known = self._footers.get(path)
        if known is None:
            import pyarrow.parquet as pq

            try:
                known = pq.read_metadata(path)
            except FileNotFoundError:  # removed by age just now
                return None
            if len(self._footers) >= _KNOWN_FOOTERS:
                self._footers.clear()
            self._footers[path] = known
        return known

    def _read(self, wanted: Wanted, groups: list[_Group], deadline_s: float) -> np.ndarray:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        gathered = Gathered(wanted)
        for group in groups:
            if gathered.floor_ns is not None and group.event_max_ns < gathered.floor_ns:
                break
            if time.monotonic() > deadline_s:
                raise TierDown(f"took longer than {self._timeout_s:g} s")
            try:
                with pq.ParquetFile(group.path, metadata=self._footers.get(group.path), pre_buffer=False) as file:
                    table = file.read_row_group(group.number, use_threads=False)
            except FileNotFoundError:
                continue
            table = table.filter(pc.equal(table["symbol"], wanted.symbol))
            if not table.num_rows:
                continue
            gathered.add(records_of(table, group.record_type))
        return gathered.records()


def records_of(table: Any, record_type: RecordType) -> np.ndarray:
    """The records of a table with the columns of workers.parquet.schema_of; instrument_id is 0."""
    import pyarrow as pa

    records = empty(table.num_rows)
    records["record_type"] = record_type
    for name in DTYPE_OF_TYPE[record_type].names or ():
        if name in _NOT_COLUMNS:
            continue
        column = table[name].combine_chunks()
        kind = records.dtype[name]
        if kind.kind == "S":
            texts = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            known = np.array([text.encode()[: kind.itemsize] for text in texts.dictionary.to_pylist()] or [b""], kind)
            records[name] = known[texts.indices.to_numpy(zero_copy_only=False)]
        elif pa.types.is_timestamp(column.type):
            records[name] = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        else:
            records[name] = column.to_numpy(zero_copy_only=False)
    return records


def _range(wanted: Wanted) -> tuple[int | None, int | None]:
    """[from, to) of `ts_event`, the cursor taken into account."""
    to_ns = wanted.to_ns
    if wanted.before is not None:
        end_ns = wanted.before.ts_event + 1
        to_ns = end_ns if to_ns is None else min(to_ns, end_ns)
    return wanted.from_ns, to_ns


def _known(statistics: Any) -> bool:
    return statistics is not None and bool(statistics.has_min_max)


def _ns(raw: Any) -> int:
    """Statistics of a timestamp column come as int64 ns."""
    return int(raw)
