"""The sequence numbers of a FIX session in a small mapped file, so that a killed worker's successor goes on with them.

Words of 8 bytes, each stored whole: magic (last, when the rest is there), version, `next_in`, `next_out`, `reset_ns`.
A number is stored before what it stands for is done (`next_out`: before the message is sent) or after it (`next_in`:
after the message's records are in the ring), and a kill between two instructions loses neither. A power cut may take
back what was not synced; `sync` is called at logon and at the end. One process has a session at a time: the file is
locked.

Used by workers/sources/fix.py. It knows no messages.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
from pathlib import Path
from typing import Final

from workers.errors import SourceError

_MAGIC: Final = 0x3158494653544B54  # "TKTSFIX1", little-endian
_VERSION: Final = 1
_WORDS: Final = 8
_NEXT_IN, _NEXT_OUT, _RESET_NS, _SETTLED_NS = 2, 3, 4, 5


class Numbers:
    """The numbers of one session; kept in memory alone where no file is given.

    Attributes:
        next_in: MsgSeqNum of the first message whose records are not all published.
        next_out: MsgSeqNum of the next message to send.
        reset_ns: since when both count; 0 = since the file was made.
        settled_ns: when `next_in` was stored: what was published before is of messages below it.
    """

    def __init__(self, path: Path | None = None, now_ns: int = 0) -> None:
        """Open the file, or make it (at `now_ns`). SourceError: it can't be used, or another feed has this session."""
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._words = memoryview(bytearray(8 * _WORDS)).cast("q")
        self.path = path
        if path is not None:
            self._open(path, now_ns)
        else:
            self._begin(now_ns)

    def _open(self, path: Path, now_ns: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SourceError(f"another feed has this FIX session open ({path.name})") from None
            if os.fstat(self._fd).st_size < 8 * _WORDS:
                os.posix_fallocate(self._fd, 0, 8 * _WORDS) if hasattr(os, "posix_fallocate") else os.ftruncate(
                    self._fd, 8 * _WORDS
                )
            self._map = mmap.mmap(self._fd, 8 * _WORDS)
        except (OSError, SourceError) as error:
            self.close()
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"sequence numbers: {path}: {error.strerror or error}") from None
        self._words = memoryview(self._map).cast("q")
        if not self._words[0]:
            self._begin(now_ns)
        if self._words[0] != _MAGIC or self._words[1] != _VERSION or min(self.next_in, self.next_out) < 1:
            self.close()
            raise SourceError(f"sequence numbers: {path} is damaged or of another version; remove it to begin from 1")

    def _begin(self, now_ns: int) -> None:
        words = self._words
        words[_SETTLED_NS] = now_ns
        words[1], words[_NEXT_IN], words[_NEXT_OUT], words[_RESET_NS] = _VERSION, 1, 1, 0
        words[0] = _MAGIC

    @property
    def next_in(self) -> int:
        """See the class."""
        return self._words[_NEXT_IN]

    def settle(self, next_in: int, now_ns: int) -> None:
        """Everything below `next_in` is published."""
        self._words[_NEXT_IN] = next_in
        self._words[_SETTLED_NS] = now_ns

    @property
    def settled_ns(self) -> int:
        """See the class."""
        return self._words[_SETTLED_NS]

    @property
    def next_out(self) -> int:
        """See the class."""
        return self._words[_NEXT_OUT]

    @next_out.setter
    def next_out(self, number: int) -> None:
        self._words[_NEXT_OUT] = number

    @property
    def reset_ns(self) -> int:
        """See the class."""
        return self._words[_RESET_NS]

    def reset(self, now_ns: int, *, next_in: int = 1, next_out: int = 1) -> None:
        """Both sides count from 1 again. What the ring has from before means nothing from now on."""
        self._words[_RESET_NS] = now_ns
        self._words[_NEXT_IN], self._words[_NEXT_OUT] = next_in, next_out

    def sync(self) -> None:
        """To the disk."""
        if self._map is not None:
            self._map.flush()

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        words = bytearray(self._words.tobytes())
        self._words.release()
        self._words = memoryview(words).cast("q")
        if self._map is not None:
            self._map.flush()
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def numbers_path(folder: str, begin: str, sender: str, target: str) -> Path | None:
    """Where the numbers of a session stand below an engine's data folder; None without one."""
    if not folder:
        return None
    parts = (re.sub(r"[^A-Za-z0-9.]", lambda found: f"_{ord(found[0]):x}_", part) for part in (begin, sender, target))
    return Path(folder) / "fix" / f"{'-'.join(parts)}.seq"
