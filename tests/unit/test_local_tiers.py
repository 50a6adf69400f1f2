"""Journal and Parquet as tiers: one symbol's records by key, as a slow look at all of them finds them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from shm.layout import DTYPE_OF_TYPE, RecordType, concatenate, empty  # after the check for pyarrow
from tests.journals import HOUR, NOW, STREAM, symbols, trades
from workers.bulk import to_file
from workers.journal import Journal
from workers.journal_reader import list_segments
from workers.journal_tier import JournalTier
from workers.parquet import schema_of, seal
from workers.parquet_tier import ParquetTier
from workers.tier import Key, TierDown, Wanted
from workers.tier_order import choose, key_of

ROOT = Path(__file__).resolve().parents[2]
ANY = Wanted("S0", None, None, None, None, 1_000_000)


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Three hours, two of them sealed, with times out of order across the hours; and all the records."""
    chance = np.random.default_rng(4)
    journal = Journal(tmp_path / "journal", fsync="none")
    journal.follow_symbols(symbols())
    batches = []
    for number in range(60):
        batch = trades(1 + number * 50, 50)
        batch["ts_publish"] = NOW + batch["sequence"] * 1000
        batch["ts_event"] = NOW + chance.integers(0, 3 * HOUR, 50)
        batch["ts_event"][::7] = NOW  # ties, in all blocks
        batch["record_type"][::3] = RecordType.QUOTE
        batches.append(batch)
        journal.append(2, STREAM, 1, batch, NOW + number // 20 * HOUR)
    journal.close()
    for segment in list_segments(tmp_path / "journal")[:2]:
        assert seal(tmp_path, [segment.path.name]) is not None
    return tmp_path, concatenate(batches)


def sealed(records: np.ndarray) -> np.ndarray:
    """What the archive has of them."""
    return records[records["sequence"] <= 2000]


def of_symbol(records: np.ndarray, symbol: str) -> np.ndarray:
    return records[records["instrument_id"] == symbols().index(symbol)]


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether they are the same records, byte by byte, but for the instrument's number."""
    one, other = found.copy(), wanted.copy()
    one["instrument_id"] = other["instrument_id"] = 0
    return bool(np.array_equal(one.view(np.uint8), other.view(np.uint8)))


def test_any_question_is_answered_as_by_looking_at_everything(recorded: tuple[Path, np.ndarray]) -> None:
    folder, records = recorded
    chance = random.Random(11)
    tiers = (
        (JournalTier(folder / "journal"), records),
        (ParquetTier(folder / "parquet"), sealed(records)),
    )
    for _ in range(150):
        symbol = chance.choice(symbols())
        mine = of_symbol(records, symbol)
        times = [None, *(int(t) for t in chance.choices(mine["ts_event"].tolist(), k=2))]
        wanted = Wanted(
            symbol,
            chance.choice([None, RecordType.TRADE, RecordType.QUOTE, RecordType.NEWS]),
            chance.choice(times),
            chance.choice(times),
            chance.choice([None, key_of(mine[chance.randrange(len(mine))])]),
            chance.choice([1, 5, 60, 100_000]),
        )
        for tier, held in tiers:
            assert same(tier.read(wanted), choose(of_symbol(held, symbol), wanted)), (tier.name, wanted)
    for tier, _ in tiers:
        assert len(tier.read(ANY._replace(symbol="NONE"))) == 0
        tier.close()
        tier.close()


@pytest.mark.parametrize("tier", [JournalTier, ParquetTier])
def test_a_folder_that_is_not_there_has_nothing(tier: type[JournalTier] | type[ParquetTier], tmp_path: Path) -> None:
    assert len(tier(tmp_path / "nowhere").read(ANY)) == 0


def test_the_journal_is_followed_while_it_grows_and_loses_its_oldest(tmp_path: Path) -> None:
    tier = JournalTier(tmp_path)
    journal = Journal(tmp_path, fsync="none", segment_bytes=50 * 128)
    journal.follow_symbols(["S0"])
    for first in range(1, 500, 20):
        journal.append(2, STREAM, 1, trades(first, 20, instruments=1), NOW)
        assert tier.read(ANY)["sequence"].tolist() == list(range(1, first + 20))
        assert tier.holds(2, NOW + (first + 19) * 1000)
        assert not tier.holds(2, NOW + (first + 20) * 1000)
    journal.follow_symbols(["S0", "LATE"])
    journal.append(2, STREAM, 1, trades(501, 1, instruments=1), NOW)
    late = trades(502, 1, instruments=1)
    late["instrument_id"] = 1
    journal.append(2, STREAM, 1, late, NOW)
    assert tier.read(ANY._replace(symbol="LATE"))["sequence"].tolist() == [502]
    oldest = list_segments(tmp_path)[0]
    oldest.path.unlink()
    left = tier.read(ANY)["sequence"].tolist()
    assert left[-1] == 501
    assert 1 not in left
    journal.close()


def test_a_damaged_block_is_left_out_and_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, fsync="none")
    journal.follow_symbols(["S0"])
    for first in (1, 11, 21):
        journal.append(2, STREAM, 1, trades(first, 10, instruments=1), NOW)
    journal.close()
    path = list_segments(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    data[128 * 11 + 128 + 64] ^= 1  # in the second block's first record
    path.write_bytes(data)
    tier = JournalTier(tmp_path)
    for _ in range(2):
        assert tier.read(ANY)["sequence"].tolist() == [*range(1, 11), *range(21, 31)]
        assert tier.damaged == 1


def test_a_store_that_takes_too_long_is_down(recorded: tuple[Path, np.ndarray]) -> None:
    folder, _ = recorded
    for tier in (JournalTier(folder / "journal", timeout_s=-1.0), ParquetTier(folder / "parquet", timeout_s=-1.0)):
        with pytest.raises(TierDown, match="took longer"):
            tier.read(ANY)


def test_a_damaged_file_of_the_archive_is_told(recorded: tuple[Path, np.ndarray]) -> None:
    folder, _ = recorded
    for path in (folder / "parquet").rglob("quote.parquet"):
        path.write_bytes(b"PAR1 not any more")
    tier = ParquetTier(folder / "parquet")
    with pytest.raises(TierDown, match="Arrow"):
        tier.read(ANY)
    assert len(tier.read(ANY._replace(kind=RecordType.TRADE)))


def test_every_field_of_every_type_comes_back_from_parquet(tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    records = empty(70)
    for number, record_type in enumerate(RecordType):
        mine = records[number * 10 : number * 10 + 10]
        mine["record_type"] = record_type
        for name in DTYPE_OF_TYPE[record_type].names or ():
            kind = records.dtype[name]
            if kind.kind == "f":
                mine[name] = chance.normal(size=10)
            elif kind.kind == "S":
                mine[name] = [f"ä{index}"[: kind.itemsize - 1].encode() for index in range(10)]
            elif name not in ("record_type", "instrument_id"):
                mine[name] = chance.integers(0, np.iinfo(kind).max // 2, 10)
    records["instrument_id"] = symbols().index("S0")
    records["sequence"] = np.arange(1, 71)
    journal = Journal(tmp_path / "journal", fsync="none")
    journal.follow_symbols(symbols())
    journal.append(2, STREAM, 1, records, NOW)
    journal.close()
    assert seal(tmp_path, [segment.path.name for segment in list_segments(tmp_path / "journal")]) is not None
    assert same(ParquetTier(tmp_path / "parquet").read(ANY), choose(records, ANY))


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize("kind", [RecordType.TRADE, None])
def test_records_become_a_file_with_the_columns_of_the_archive(form: str, kind: RecordType | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = trades(1, 50, instruments=1)
    if kind is None:
        records["record_type"][::2] = RecordType.QUOTE
        records["bid"][::2] = 7.5
    data = to_file(records, "S0", kind, form)  # type: ignore[arg-type]
    table = pa.ipc.open_stream(data).read_all() if form == "arrow" else pq.read_table(pa.BufferReader(data))
    assert table["sequence"].to_pylist() == list(range(1, 51))
    assert set(table["symbol"].to_pylist()) == {"S0"}
    assert table["ts_event"].cast(pa.int64()).to_pylist() == records["ts_event"].tolist()
    assert table["ring"].null_count == table["stream"].null_count == 50
    if kind is not None:
        assert table.schema.names == schema_of(kind).names
        assert table["price"].to_pylist() == records["price"].tolist()
    else:
        assert table["data_type"].to_pylist() == ["quote", "trade"] * 25
        assert table["bid"].to_pylist() == [7.5, None] * 25
        assert {name for each in RecordType for name in schema_of(each).names} <= set(table.schema.names)


def test_an_empty_answer_is_a_file_too() -> None:
    import pyarrow as pa

    assert pa.ipc.open_stream(to_file(empty(0), "S0", RecordType.BAR, "arrow")).read_all().num_rows == 0
    assert pa.ipc.open_stream(to_file(empty(0), "S0", None, "arrow")).read_all().num_rows == 0


def test_keys_are_compared_as_numbers_of_64_bits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, fsync="none")
    journal.follow_symbols(["S0"])
    journal.append(2, STREAM, 1, trades(1, 3, instruments=1, event_ns=-(1 << 62)), NOW)
    journal.close()
    tier = JournalTier(tmp_path)
    edge = Key((1 << 63) - 1, (1 << 63) - 1, (1 << 64) - 1)
    assert len(tier.read(ANY._replace(before=edge))) == 3
    assert len(tier.read(ANY._replace(before=Key(-(1 << 63), 0, 0)))) == 0


def test_the_historian_imports_no_heavy_library_before_it_is_asked() -> None:
    code = "import sys, workers.historian; print(*(m for m in ('pyarrow', 'duckdb', 'pandas') if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == ""
