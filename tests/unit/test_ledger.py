"""The ledger of webhook deliveries: what was written is there for the next process, and one process writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentMissing, ShmError, ShmFull, WriterBusy
from shm.ledger import SLOTS, DeliveryState, Ledger, Slot
from tests.children import Child


def test_what_is_written_is_read_by_others_and_later(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "webhooks.ledger"
    ledger = Ledger.open(path)
    slot = ledger.claim(77)
    slot.set(Slot.DELIVERED, 5)
    slot.add(Slot.DELIVERED, 2)
    slot.set(Slot.UNACKED, 123, 3)
    slot.set(Slot.STATE, DeliveryState.PARKED)
    ledger.follow_ring(3, 1_700_000_000_000_000_001, 40)
    ledger.set_read(3, 60)
    ledger.set_read(3, 50)
    other = Ledger.attach(path)
    view = other.view(77)
    assert view is not None
    assert (view.delivered, view.state) == (7, DeliveryState.PARKED)
    assert other.view(78) is None
    with pytest.raises(ValueError, match="read-only"):
        other.claim(78)
    other.close()
    ledger.close()
    again = Ledger.open(path)
    assert again.claim(77).get(Slot.UNACKED, 3) == 123
    assert (again.ring_made_ns(3), again.read(3)) == (1_700_000_000_000_000_001, 60)
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_freed_slot_is_given_out_clean(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "l")
    for key in (1, 2, 3):
        ledger.claim(key).set(Slot.LOST, 9)
    ledger.keep({2})
    assert ledger.slot(1) is None
    assert ledger.claim(4).get(Slot.LOST) == 0
    assert ledger.claim(2).get(Slot.LOST) == 9
    ledger.close()


def test_it_is_bounded(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "l")
    for key in range(1, SLOTS + 1):
        ledger.claim(key)
    with pytest.raises(ShmFull, match=str(SLOTS)):
        ledger.claim(SLOTS + 1)
    with pytest.raises(BadArgument, match="key is 0"):
        ledger.claim(0)
    ledger.close()


def test_one_process_writes_until_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "l"
    script = """
        import sys
        from pathlib import Path
        from shm.ledger import Ledger
        ledger = Ledger.open(Path(sys.argv[1]))
        print("open")
        sys.stdin.readline()
    """
    with Child(script, path) as child:
        child.hear()
        with pytest.raises(WriterBusy, match="another process"):
            Ledger.open(path)
        child.kill()
        Ledger.open(path).close()


@pytest.mark.parametrize("content", [b"", b"something else", os.urandom(1 << 20)])
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(content)
    for open_it in (Ledger.open, Ledger.attach):
        with pytest.raises(LayoutMismatch, match="move it away"):
            open_it(path)


def test_a_folder_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ShmError, match="file"):
        Ledger.open(tmp_path / "file" / "l")
    with pytest.raises(SegmentMissing):
        Ledger.attach(tmp_path / "none")
    with pytest.raises(NotAllowed):
        Ledger.attach(tmp_path / "file" / "l")
