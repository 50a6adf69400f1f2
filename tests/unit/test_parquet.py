"""Sealing: every record of the journal is in the Parquet files, field by field, in order, once, and small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402  # after the check that it is there

from shm.layout import DTYPE_OF_TYPE, TYPE_NAMES, RecordType, concatenate, empty  # noqa: E402
from tests.journals import NOW, STREAM, symbols, trades, write  # noqa: E402
from workers.archive import Archive  # noqa: E402
from workers.decoders.capture import open_capture  # noqa: E402
from workers.journal import Journal  # noqa: E402
from workers.journal_reader import list_segments  # noqa: E402
from workers.parquet import schema_of, seal  # noqa: E402

SPOT = "websocket/spot_btcusdt_20240808.gz"


def names(folder: Path) -> list[str]:
    return [segment.path.name for segment in list_segments(folder / "journal")]


def test_records_come_back_sorted_by_symbol_and_time(tmp_path: Path) -> None:
    records = trades(1, 1000)
    records["ts_event"][100:200] -= 50_000  # out of order
    write(tmp_path / "journal", records[:600], records[600:])
    part = seal(tmp_path, names(tmp_path))
    assert part is not None
    table = pq.read_table(part.file("trade"))
    assert table.schema.equals(schema_of(RecordType.TRADE))
    read = table.drop_columns(["ts_event", "ts_receive", "ts_publish"]).to_pydict()
    events = table["ts_event"].cast(pa.int64()).to_pylist()
    keys = list(zip(read["symbol"], events, read["sequence"], strict=True))
    assert keys == sorted(keys)
    assert sorted(read["sequence"]) == list(range(1, 1001))
    assert all(
        symbol == symbols()[sequence % 7] for symbol, sequence in zip(read["symbol"], read["sequence"], strict=True)
    )
    assert read["price"] == [float(sequence) for sequence in read["sequence"]]
    assert set(read["venue"]) == {"XTST"}
    assert (set(read["ring"]), set(read["stream"])) == ({2}, {STREAM})


def test_every_field_of_every_type_survives(tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    records = empty(700)
    for number, record_type in enumerate(RecordType):
        mine = records[number * 100 : number * 100 + 100]
        mine.view(np.uint8).reshape(100, 128)[:, :64] = chance.integers(0, 128, (100, 64))
        mine["record_type"] = record_type
        for name in DTYPE_OF_TYPE[record_type].names or ():
            kind = records.dtype[name]
            if kind.kind == "f":
                mine[name] = chance.normal(size=100)
            elif kind.kind == "S":
                mine[name] = [f"x{index % 9}" for index in range(100)]
            elif name not in ("record_type", "instrument_id"):
                mine[name] = chance.integers(0, np.iinfo(kind).max // 2, 100)
    records["instrument_id"] = np.arange(700) % 9  # two more than there are symbols
    records["sequence"] = np.arange(1, 701)
    write(tmp_path / "journal", records)
    part = seal(tmp_path, names(tmp_path))
    assert part is not None
    assert set(part.manifest.files) == set(TYPE_NAMES[1:])
    for record_type in RecordType:
        table = pq.read_table(part.file(TYPE_NAMES[record_type])).sort_by("sequence")
        wanted = records[records["record_type"] == record_type]
        for name in table.column_names:
            column = table[name]
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.int64())
            got = column.to_pylist()
            if name == "symbol":
                assert got == [(*symbols(), "", "")[i] for i in wanted["instrument_id"]]
            elif name not in ("ring", "stream"):
                texts = [v.decode() for v in wanted[name]] if wanted[name].dtype.kind == "S" else wanted[name].tolist()
                assert got == texts, name


def test_sealing_again_or_after_a_crash_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "journal", trades(1, 100))
    (tmp_path / "parquet" / ".new-20260101T00-0001").mkdir(parents=True)
    assert seal(tmp_path, names(tmp_path)) is not None
    assert seal(tmp_path, names(tmp_path)) is None
    assert seal(tmp_path, [*names(tmp_path), "r02-gone.tkj"]) is None
    archive = Archive(tmp_path / "parquet")
    assert [part.manifest.segments for part in archive.parts()] == [tuple(names(tmp_path))]
    assert [path.name for path in archive.folder.iterdir()] == [archive.parts()[0].path.name]


def test_what_comes_late_for_an_hour_becomes_a_part_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "journal", trades(1, 100))
    seal(tmp_path, names(tmp_path))
    write(tmp_path / "journal", trades(101, 50))
    part = seal(tmp_path, names(tmp_path))
    assert part is not None
    assert part.path.name.endswith("-0002")
    assert part.manifest.files["trade"].rows == 50


def test_statistics_tell_which_symbols_are_in_a_row_group(tmp_path: Path) -> None:
    records = trades(1, 200_000)
    write(tmp_path / "journal", records)
    part = seal(tmp_path, names(tmp_path))
    assert part is not None
    metadata = pq.ParquetFile(part.file("trade")).metadata
    ranges = [
        (metadata.row_group(i).column(0).statistics.min, metadata.row_group(i).column(0).statistics.max)
        for i in range(metadata.num_row_groups)
    ]
    assert len(ranges) == 13
    assert ranges == sorted(ranges)
    assert ranges[0] == ("S0", "S0")


def test_captured_trades_keep_their_count_volume_and_value_in_a_fifth_of_the_space(
    samples: Path, tmp_path: Path
) -> None:
    known: dict[str, int] = {}
    capture = open_capture(samples / SPOT, intern=lambda symbol: known.setdefault(symbol, len(known)))
    journal = Journal(tmp_path / "journal", fsync="none")
    batch, first, all_batches = empty(20_000), 1, []
    while count := capture.decode(batch):
        records = batch[:count]
        records["sequence"] = np.arange(first, first + count)
        records["ts_publish"] = NOW + np.arange(first, first + count) * 700
        journal.follow_symbols(list(known))
        journal.append(2, STREAM, 1, records, NOW)
        all_batches.append(records.copy())
        first += count
    journal.close()
    part = seal(tmp_path, names(tmp_path))
    assert part is not None
    table = pq.read_table(part.file("trade"))
    # The figures of the samples' own README, computed by independent parsers.
    assert table.num_rows == 9757
    assert sum(table["size"].to_pylist()) == pytest.approx(212.03315)
    notional = np.dot(table["price"].to_numpy(), table["size"].to_numpy())
    assert notional == pytest.approx(13_084_074.1123886)
    assert sorted(table["trade_id"].to_pylist()) == list(range(3735683259, 3735693016))
    recorded = concatenate(all_batches)
    assert sum(facts.rows for facts in part.manifest.files.values()) == len(recorded)
    assert part.size_bytes <= 0.2 * part.manifest.raw_bytes
