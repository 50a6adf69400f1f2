"""What a polled feed has published is known again, by the next process too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag
from workers.decoders.observations import Bar, Observations, bars
from workers.errors import SourceError
from workers.sources import observed
from workers.sources.observed import Observed

BACK, FIXED = int(Flag.BACKFILLED), int(Flag.CORRECTED)


def answer(*values: float, start: int = 0) -> Observations:
    return bars([Bar(start + number, value, value, value, value, 1.0) for number, value in enumerate(values)], 60)


def publish(memory: Observed, found: Observations, *, history: bool = False) -> list[tuple[float, int]]:
    """Sift an answer, and keep what it brings; returns (close, flags) of that."""
    rows, flags = memory.sift("MSFT bar", found, history=history)
    memory.published("MSFT bar", found.records[rows], found.keys[rows].tolist(), found.vintages[rows].tolist())
    return list(zip(found.records["close"][rows].tolist(), flags.tolist(), strict=True))


def test_new_corrected_filled_in(tmp_path: Path) -> None:
    memory = Observed(tmp_path, "feed")
    assert memory.is_new("MSFT bar")
    assert publish(memory, answer(1.0, 2.0, start=-5), history=True) == [(1.0, BACK), (2.0, BACK)]
    assert not memory.is_new("MSFT bar")
    assert publish(memory, answer(1.0, 2.0, start=-5)) == []
    assert publish(memory, answer(1.0, 2.5, 3.0, start=-5)) == [(2.5, FIXED), (3.0, 0)]
    assert publish(memory, answer(0.5, 1.0, 2.0, start=-6)) == [(0.5, BACK), (2.0, FIXED | BACK)]
    memory.close()
    again = Observed(tmp_path, "feed")
    assert not again.is_new("MSFT bar")
    assert publish(again, answer(0.5, 1.0, 2.0, 3.0, start=-6)) == []
    assert publish(again, answer(3.0, 4.0, start=-3)) == [(4.0, 0)]
    assert again.is_new("IBM bar")


def test_what_was_not_kept_comes_again(tmp_path: Path) -> None:
    memory = Observed(tmp_path, "feed")
    found = answer(1.0, 2.0)
    assert len(memory.sift("MSFT bar", found)[0]) == 2
    assert len(memory.sift("MSFT bar", found)[0]) == 2


def test_names_of_feeds_make_files_of_their_own(tmp_path: Path) -> None:
    names = ["fred a/b", "fred a_b", "fred ../../x", "fred " + "y" * 64]
    paths = {Observed(tmp_path, name).path for name in names}
    assert len(paths) == len(names)
    assert {path.parent for path in paths} == {tmp_path}


def test_memory_is_bounded_and_forgets_the_earliest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "MAX_KEPT", 100)
    memory = Observed(tmp_path, "feed")
    publish(memory, answer(*np.arange(100.0)))
    publish(memory, answer(*np.arange(10.0), start=100))
    again = Observed(tmp_path, "feed")
    for one in (memory, again):
        rows, _ = one.sift("MSFT bar", answer(*np.arange(100.0), *np.arange(10.0)))
        assert rows.tolist() == list(range(20))


def test_a_file_that_is_no_memory_is_said(tmp_path: Path) -> None:
    path = Observed(tmp_path, "feed").path
    for file in tmp_path.iterdir():
        file.unlink()
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(SourceError, match="memory of what was published"):
        Observed(tmp_path, "feed")
