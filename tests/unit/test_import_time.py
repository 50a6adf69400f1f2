"""`import shm` costs a colocated consumer what it uses and no more. (Milliseconds are measured by perf, not here.)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LEAN = {"shm", "numpy", "posix_ipc"}


def modules_after(statement: str) -> set[str]:
    """Top-level modules outside the standard library that `statement` brings in, in a fresh interpreter."""
    script = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in printed if name not in sys.stdlib_module_names and "cython" not in name}


def test_import_of_shm_alone_brings_in_nothing_else() -> None:
    assert modules_after("import shm") == {"shm"}


@pytest.mark.parametrize("name", ["attach", "RingReader", "RingSet", "RECORD", "Flag", "ShmError"])
def test_reading_needs_numpy_and_posix_ipc_only(name: str) -> None:
    assert modules_after(f"import shm; shm.{name}") <= LEAN


def test_attaching_and_reading_brings_in_nothing_heavy(engine_name: str) -> None:
    from shm.ring import RingWriter

    with RingWriter.create(engine_name, 2, depth_slots=64) as writer:
        writer.publish(bytes(128))
        statement = (
            f"import shm; e = shm.attach({engine_name!r}); s = e.reader(start='oldest')\n"
            "assert [len(batch) for _, batch in s.batches(0.0)] == [1]"
        )
        assert modules_after(statement) <= LEAN


def test_polling_consumer_does_not_pay_for_asyncio() -> None:
    statement = "import shm; shm.attach, shm.RingReader; assert 'asyncio' not in sys.modules; import asyncio"
    assert "shm" in modules_after(statement)


def test_every_public_name_exists() -> None:
    statement = (
        "import shm; missing = [name for name in dir(shm) if getattr(shm, name, None) is None]; assert not missing"
    )
    assert "shm" in modules_after(statement)


def test_unknown_name_is_an_attribute_error() -> None:
    import shm

    with pytest.raises(AttributeError, match="module 'shm' has no attribute 'Rings'"):
        shm.Rings  # noqa: B018  looking it up is the test
