"""Legacy DBZ: the same records as the same data in DBN 1, and damage named by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import concatenate, empty
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.dbz import SCHEMAS
from workers.decoders.protocol import FramingError, UnknownFormatError

SHARED = ("mbo", "mbp-1", "mbp-10", "tbbo", "trades", "ohlcv-1s", "ohlcv-1m", "ohlcv-1h", "ohlcv-1d")


def records(path: Path, size: int = 64) -> tuple[np.ndarray, dict[str, int], dict[str, Any]]:
    numbers: dict[str, int] = {}
    found = [empty(0)]
    with open_capture(path, intern=lambda name: numbers.setdefault(name, len(numbers))) as capture:
        out = empty(size)
        while count := capture.decode(out):
            found.append(out[:count].copy())
        return concatenate(found), numbers, capture.describe()


@pytest.mark.parametrize("schema", SHARED)
def test_records_are_those_of_the_same_data_in_dbn(samples: Path, schema: str) -> None:
    folder = samples / "dbn/dbn-official"
    old, old_names, summary = records(folder / f"test_data.{schema}.dbz", size=3)
    new, new_names, wanted = records(folder / f"test_data.{schema}.v1.dbn.zst")
    assert old.tobytes() == new.tobytes()
    assert (old_names, summary["messages"]) == (new_names, wanted["messages"])
    assert summary["format"] == f"Databento DBZ {schema}" + (" (zstd)" if len(old) else "")
    assert summary["malformed"] == wanted["malformed"]
    assert (summary["progress"], summary["truncated_bytes"]) == (1.0, 0)
    assert len(old) or schema == "ohlcv-1d"  # which has none in either
    assert set(old_names) == ({"ESH1"} if len(old) else set())


def test_definitions_are_counted(samples: Path) -> None:
    summary = describe_capture(samples / "dbn/dbn-official/test_data.definition.dbz")
    assert (summary["messages"], summary["records"], summary["malformed"]) == ({"definition": 2}, {}, {})


def test_a_damaged_header_is_named_and_no_byte_of_it_crashes(samples: Path, tmp_path: Path) -> None:
    whole = (samples / "dbn/dbn-official/test_data.trades.dbz").read_bytes()
    path = tmp_path / "x.dbz"

    def opened(data: bytes) -> None:
        path.write_bytes(data)
        records(path)

    with pytest.raises(FramingError, match="not DBZ of version 1"):
        opened(whole[:11] + b"\x02" + whole[12:])
    with pytest.raises(FramingError, match=f"schema {len(SCHEMAS)}"):
        opened(whole[:28] + bytes((len(SCHEMAS),)) + whole[29:])
    with pytest.raises(FramingError, match="inside the header"):
        opened(whole[:100])
    with pytest.raises(UnknownFormatError, match="no header of DBZ"):
        opened(whole[:8] + b"ABC" + whole[11:])
    with pytest.raises(FramingError, match="the file ends inside"):
        opened(whole[:-5])
    for at in range(len(whole)):
        for value in (0, 0x7F, 0xFF):
            try:
                opened(whole[:at] + bytes((value,)) + whole[at + 1 :])
            except (FramingError, UnknownFormatError):
                continue
        if at > 12:
            with pytest.raises(FramingError):
                opened(whole[:at])
