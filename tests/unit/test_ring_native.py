"""ring.h by itself, without Python: threads hammer it in every form it can be built in (tests/c/ringcheck.c)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.children import ROOT

SOURCE = ROOT / "tests" / "c" / "ringcheck.c"
RECORDS = 300_000


def build(program: str, target: Path, *options: str) -> Path:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    command = [found, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *options, f"-I{ROOT}", str(SOURCE)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=100, check=False)


def check(done: subprocess.CompletedProcess[str], records: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"reader \d: read (\d+) lost (\d+) overruns \d+ broken 0\n", done.stdout)
    assert [int(read) + int(lost) for read, lost in lines] == [records] * 3, done.stdout


@pytest.mark.parametrize("options", [(), ("-DTK_COPY_WORDS",)], ids=["vector copy", "C11 words"])
@pytest.mark.parametrize("depth", [16, 1024])
def test_threads_read_whole_records_or_exact_losses(tmp_path: Path, options: tuple[str, ...], depth: int) -> None:
    program = build("gcc", tmp_path / "ringcheck", *options)
    check(run(program, RECORDS, depth, 7), RECORDS)


def test_sanitizer_finds_no_access_that_is_not_atomic(tmp_path: Path) -> None:
    options = ("-DTK_COPY_WORDS", "-DRINGCHECK_TSAN", "-fsanitize=thread", "-g")
    program = build("gcc", tmp_path / "ringcheck", *options)
    command = ["setarch", "-R", program] if shutil.which("setarch") else [program]  # it dislikes some address layouts
    done = run(*command, 20_000, 64, 3)
    if "unexpected memory mapping" in done.stderr or "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip("the thread sanitizer can't run on this kernel")
    assert "WARNING" not in done.stderr, done.stderr
    check(done, 20_000)


@pytest.mark.parametrize("options", [(), ("-DTK_COPY_WORDS",)], ids=["vector copy", "C11 words"])
def test_arm64_build_reads_whole_records_under_emulation(tmp_path: Path, options: tuple[str, ...]) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-user is not installed")
    program = build("aarch64-linux-gnu-gcc", tmp_path / "ringcheck", "-static", *options)
    check(run(emulator, program, 30_000, 64, 11), 30_000)
