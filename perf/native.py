"""C programs of the benchmarks, compiled when needed, by the system's compiler, against the headers of this tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from perf.errors import Skipped

_ROOT = Path(__file__).resolve().parent.parent


@cache
def program(source: str) -> str:
    """Path of the program made from perf/`source`; it lies in a temporary folder that goes with this process."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Skipped("no C compiler (cc) to build the native side with")
    target = Path(_folder().name) / Path(source).stem
    libraries = ["-lpthread"] if sys.platform == "darwin" else ["-lpthread", "-lrt"]
    headers = [f"-I{_ROOT}", f"-I{_ROOT / 'shm' / 'include'}"]
    command = [compiler, "-std=c11", "-O2", *headers, str(_ROOT / "perf" / source), "-o", str(target), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Skipped(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")
    return str(target)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tickengine-perf-")
