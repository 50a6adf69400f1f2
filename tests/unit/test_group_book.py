"""Books of redundancy groups, native: against a plain list under the sanitizers, with room and without."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 90


@pytest.mark.bare_kernel  # LeakSanitizer
def test_books_are_right_and_stay_in_bounds(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    binary = tmp_path / "groupbook"
    command = [compiler, "-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall"]
    command += ["-Wno-unused-function", f"-I{ROOT}", str(ROOT / "tests/c/groupbook.c"), "-o", str(binary), "-lm"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no sanitizers here")
    assert built.returncode == 0, built.stderr
    assert not built.stderr
    done = subprocess.run([str(binary), "7", str(ROUNDS)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{ROUNDS} rounds\n"), done.stdout + done.stderr
