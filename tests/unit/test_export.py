"""`tickengine export` and `query`: what they write and say, from a journal and an archive made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("duckdb")
import pyarrow as pa  # after the check that it is there
import pyarrow.csv
import pyarrow.parquet as pq

from shm.layout import RecordType, empty
from tests.journals import NOW, symbols, trades, write
from tools.cli import main
from tools.recorded import RecordedError, time_ns
from workers.decoders.capture import open_capture
from workers.journal_reader import list_segments
from workers.parquet import seal


def quotes(first: int, count: int) -> np.ndarray:
    records = trades(first, count)
    records["record_type"] = RecordType.QUOTE
    records["bid"], records["ask"] = 100.25, 100.5
    records["bid_size"], records["ask_size"] = 3, 4
    records["bid_count"], records["ask_count"] = 1, 2
    return records


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    """Options that name the data: 700 trades sealed, 700 quotes and 70 trades in the journal."""
    folder = tmp_path / "data" / "t"
    write(folder / "journal", trades(1, 700))
    seal(folder, [segment.path.name for segment in list_segments(folder / "journal")])
    write(folder / "journal", quotes(701, 700), trades(1401, 70))
    return ["--name", "t", "--data-dir", str(tmp_path / "data")]


@pytest.mark.parametrize("form", ["parquet", "csv", "arrow"])
def test_a_symbol_is_written_in_full(where: list[str], tmp_path: Path, form: str) -> None:
    path = tmp_path / f"out.{form}"
    symbol = symbols()[2]
    options = ["--type", "trade", "--format", form, "-o", str(path)]
    assert main(["export", symbol, *options, *where]) == 0
    if form == "parquet":
        table = pq.read_table(path)
    elif form == "csv":
        table = pyarrow.csv.read_csv(path)
    else:
        table = pa.ipc.open_file(path).read_all()
    wanted = [sequence for sequence in (*range(1, 701), *range(1401, 1471)) if sequence % 7 == 2]
    assert table["sequence"].to_pylist() == wanted
    assert set(table["symbol"].to_pylist()) == {symbol}


def decoded(path: Path) -> tuple[np.ndarray, list[str]]:
    known: list[str] = []

    def intern(symbol: str) -> int:
        if symbol not in known:
            known.append(symbol)
        return known.index(symbol)

    out = empty(10_000)
    capture = open_capture(path, intern=intern)
    count = capture.decode(out)
    records = out[:count].copy()
    capture.close()
    return records, known


def test_dbn_is_read_back_by_the_engines_own_decoder(where: list[str], tmp_path: Path) -> None:
    pytest.importorskip("databento_dbn")
    path = tmp_path / "out.dbn"
    assert main(["export", "*", "--type", "trade", "--format", "dbn", "-o", str(path), *where]) == 0
    records, known = decoded(path)
    assert sorted(known) == sorted(symbols())
    assert records["price"].tolist() == [float(n) for n in (*range(1, 701), *range(1401, 1471))]
    assert [known[i] for i in records["instrument_id"]] == [symbols()[int(price) % 7] for price in records["price"]]
    assert records["ts_event"].tolist() == [NOW + int(price) * 1000 for price in records["price"]]
    assert main(["export", "S0", "--type", "quote", "--format", "dbn", "-o", str(path), *where]) == 0
    records, known = decoded(path)
    assert (known, len(records)) == (["S0"], 100)
    names = ("bid", "ask", "bid_size", "ask_size", "bid_count", "ask_count")
    assert [records[name][0] for name in names] == [100.25, 100.5, 3, 4, 1, 2]


def test_dbn_refuses_what_it_can_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = trades(1, 10)
    records["size"] = 0.5
    write(tmp_path / "t" / "journal", records)
    options = ["--name", "t", "--data-dir", str(tmp_path), "-o", str(tmp_path / "x.dbn")]
    assert main(["export", "S0", "--format", "dbn", *options]) == 1
    assert "whole sizes" in capsys.readouterr().err


def test_several_types_must_be_chosen_from(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "S0", *where]) == 1
    assert "quote (100), trade (110)" in capsys.readouterr().err


def test_nothing_recorded_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["export", "S0"], ["query", "SELECT 1"]):
        assert main([*command, "--name", "t", "--data-dir", str(tmp_path)]) == 1
        assert "--data-dir" in capsys.readouterr().err


def test_sql_sees_archive_and_journal_once_and_within_the_time_asked_for(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(sql: str, *options: str) -> list[dict[str, object]]:
        assert main(["query", sql, "--format", "json", *options, *where]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert rows("SELECT type, count(*) AS n, sum(sequence) AS s FROM ticks GROUP BY type ORDER BY type") == [
        {"type": "quote", "n": 700, "s": sum(range(701, 1401))},
        {"type": "trade", "n": 770, "s": sum((*range(1, 701), *range(1401, 1471)))},
    ]
    bounds = ("--from", str(NOW + 600_000), "--to", str(NOW + 1_450_000))
    assert rows("SELECT count(*) AS n FROM trade", *bounds) == [{"n": 101 + 49}]
    assert rows("SELECT ts_event FROM trade WHERE sequence = 1")[0]["ts_event"].startswith("2025-06-15 15:06:40.000001")  # type: ignore[attr-defined]
    assert rows("SELECT count(*) AS n FROM gaps") == [{"n": 0}]
    assert main(["query", "SELECT nonsense FROM trade", *where]) == 1
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-15", 1_749_945_600_000_000_000),
        ("2025-06-15T15:06:40", NOW),
        ("2025-06-15T15:06:40.000001500", NOW + 1500),
        ("2025-06-15T17:06:40.5+02:00", NOW + 500_000_000),
        ("2025-06-15T15:06:40Z", NOW),
        (str(NOW), NOW),
    ],
)
def test_times_are_understood(text: str, expected: int) -> None:
    assert time_ns(text) == expected


@pytest.mark.parametrize("text", ["yesterday", "2025-13-01", "2025-06-15T10:00:00.", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecordedError):
        time_ns(text)
