"""What the stress tests share: the build with stops, and a seed that is printed so that a failure can be run again."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.stress.stops import build_stops


@pytest.fixture(scope="session")
def stops_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder from which a child imports a `shm` that can stop itself between the steps of publish."""
    return build_stops(tmp_path_factory.mktemp("stops"))


@pytest.fixture
def seed() -> int:
    """Seed of this run: `$TICKENGINE_SEED`, or a new one. Shown when the test fails."""
    value = int(os.environ.get("TICKENGINE_SEED") or secrets.randbits(32))
    print(f"seed {value} (set TICKENGINE_SEED={value} to repeat)")
    return value
