"""The sealer process: seals segments of the journal into one part of the archive, and ends.

Started by the recorder (workers/keeper.py) as `python -m workers.sealer`, told what to do by one line of JSON on its
standard input. A process of its own, at the lowest priority: neither pyarrow's memory nor its work is the recorder's.
Killed at any moment it leaves nothing behind that counts; the recorder starts the next one.

Exit status: 0 sealed, or there was nothing left to seal; 1 not (the reason is on standard error).
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path

import msgspec


class Job(msgspec.Struct, frozen=True):
    """Segments of one hour, by file name, and the engine's folder with journal/ and parquet/ in it."""

    folder: str
    segments: tuple[str, ...]


def main() -> int:
    """Do the job on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole terminal; the recorder ends this one
    os.nice(19)
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    folder = Path(job.folder)
    try:
        lock = os.open(folder / "journal" / "sealing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder} is being sealed by another process", file=sys.stderr)
            return 1
        from workers.parquet import seal

        seal(folder, job.segments)
    except OSError as error:
        print(f"sealing {folder}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
