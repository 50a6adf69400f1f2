"""A second build of the ring that can stop itself between the steps of publish, for the tests that kill a writer there.

The package's sources are copied to a temporary folder and built there with TICKENGINE_STOPS=1, so that the product's
own build never contains a stop. Children import it by path; the test itself keeps the ordinary build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import ROOT

STEPS = {
    1: "before anything",
    2: "after the marks",
    3: "before the payload, or half-way through a batch's payloads",
    4: "after the payload",
    5: "before the stamp, or half-way through a batch's stamps",
    6: "after the stamps",
    7: "after `published`",
}


def build_stops(folder: Path) -> Path:
    """Build `shm` with stops under `folder`; returns the folder to import it from. Skips without a C compiler."""
    if shutil.which(os.environ.get("CC", "gcc")) is None and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    built = shutil.ignore_patterns("*.so", "_*.c", "__pycache__")
    shutil.copytree(ROOT / "shm", folder / "shm", ignore=built)
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "tests").mkdir()
    for name in ("__init__.py", "records.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    environment = {**os.environ, "TICKENGINE_STOPS": "1", "TICKENGINE_EXT": "shm._ring", "CFLAGS": "-O1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
