"""The files of one capture: parts that follow one another by size and time, compressed, whole up to the last write.

    NAME-20261121T103000.123Z-0001.jsonl.zst    text: one JSON a line (workers/decoders/jsonl.py reads it)
    NAME-20261121T103000.123Z-0001.pcap         packets: classic pcap, times in ns, raw IP; Wireshark opens it

A write is one zstd frame, or so many whole records: whoever is killed leaves a file that is readable up to its last
whole write. A write that fails (disk full) is taken back, so that the next one follows on a whole one. Used by
workers/capture_log.py, in its thread; never compresses or writes in a feed's own.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from workers.decoders.detection import HEAD_PORT
from workers.errors import SettingsError
from workers.spec import CaptureSettings

log = logging.getLogger("capture")

# Classic pcap: magic of times in ns, version 2.4, snap length, link type 101 = raw IP (tcpdump.org/linktypes).
PCAP_HEAD: Final = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 101)
MAX_HEAD_BYTES: Final = 60_000  # of a datagram about the capture
_HEAD_ADDRESS: Final = bytes((127, 0, 0, 1))
_LEVEL: Final = 3  # of zstd: 300 MB/s and more
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._]+")
_PART: Final = re.compile(r"(?P<capture>.+-\d{8}T\d{6}\.\d{3}Z)-(?P<part>\d{4,})(?P<kind>\.jsonl|\.pcap)(\.zst)?")

Kind = Literal["jsonl", "pcap"]


def pcap_record(payload: bytes, at_ns: int) -> bytes:
    """A datagram from this host to its port "discard", as a record of a pcap file. Layouts: RFC 791, RFC 768."""
    udp = struct.pack(">HHHH", HEAD_PORT, HEAD_PORT, 8 + len(payload), 0) + payload
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 1, 17, 0, _HEAD_ADDRESS, _HEAD_ADDRESS)
    total = sum(struct.unpack(">10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    packet = ip[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + ip[12:] + udp
    return struct.pack("<IIII", at_ns // 10**9, at_ns % 10**9, len(packet), len(packet)) + packet


def follows(path: Path, before: Path) -> bool:
    """Whether `path` is the part that comes after `before`, in the same capture."""
    one, two = _PART.fullmatch(before.name), _PART.fullmatch(path.name)
    if one is None or two is None or path.parent != before.parent:
        return False
    return one["capture"] + one["kind"] == two["capture"] + two["kind"] and int(two["part"]) == int(one["part"]) + 1


def chains(paths: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The files of each capture: a part behind the one before it, whatever is listed between; others are alone."""
    found: list[list[Path]] = []
    for path in paths:
        before = next((chain for chain in found if follows(path, chain[-1])), None)
        if before is not None:
            before.append(path)
        else:
            found.append([path])
    return [tuple(chain) for chain in found]


class CaptureParts:
    """The parts of one feed and kind. `paths` has all that were begun, `bytes_written` what was written to them."""

    def __init__(self, name: str, kind: Kind, settings: CaptureSettings, head: Callable[[int], bytes]) -> None:
        """Nothing is opened yet. `head`: what part number N begins with. SettingsError: zstd is not installed."""
        self._settings = settings
        self._stem = _UNSAFE.sub("_", name)[:64] or "feed"
        self._kind = kind
        self._head = head
        self._compress: Callable[[bytes], bytes] | None = None
        if settings.compress == "zstd" or (settings.compress == "auto" and kind == "jsonl"):
            self._compress = _zstd()
        self.paths: list[Path] = []
        self.bytes_written = 0
        self._fd = -1
        self._size = 0  # of the part in hand
        self._begun_ns = 0
        self._capture = ""  # name of the capture: feed and when it began

    def write(self, data: bytes, now_ns: int) -> None:
        """Whole messages: all of them or none. OSError: nothing of it was written."""
        if self._fd >= 0 and (self._size >= self._settings.part_bytes or self._age_s(now_ns) >= self._settings.part_s):
            self._finish()
        if self._fd < 0:
            self._begin(now_ns)
        self._append(data)

    def close(self) -> None:
        """End the part in hand. Safe to call twice. OSError."""
        if self._fd >= 0:
            self._finish()

    def _age_s(self, now_ns: int) -> float:
        return (now_ns - self._begun_ns) / 1e9

    def _begin(self, now_ns: int) -> None:
        folder = Path(self._settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{self._kind}{'.zst' if self._compress else ''}"
        number = len(self.paths) + 1
        while self._fd < 0:
            at = datetime.fromtimestamp(now_ns // 1_000_000 / 1e3, UTC)
            capture = self._capture or f"{self._stem}-{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}Z"
            path = folder / f"{capture}-{number:04d}{suffix}"
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                if self._capture:
                    raise
                now_ns += 1_000_000  # another capture began in the same millisecond
        self._capture = capture
        self._size, self._begun_ns = 0, now_ns
        try:
            self._append(self._head(number))
        except OSError:
            os.close(self._fd)
            self._fd = -1
            path.unlink(missing_ok=True)
            raise
        self.paths.append(path)
        self._make_room(folder)

    def _make_room(self, folder: Path) -> None:
        """Remove the oldest parts of this feed and kind, of earlier captures too, beyond what may be kept."""
        if not self._settings.keep_bytes:
            return
        found = []
        for path in folder.iterdir():
            part = _PART.fullmatch(path.name)
            if part is not None and part["kind"][1:] == self._kind and part["capture"][:-21] == self._stem:
                found.append(path)
        found.sort()  # the name has the time and the number
        total = sum(path.stat().st_size for path in found)
        while len(found) > 1 and total + self._settings.part_bytes > self._settings.keep_bytes:
            oldest = found.pop(0)
            total -= oldest.stat().st_size
            oldest.unlink()
            log.info("removed %s: the capture may keep %d bytes", oldest.name, self._settings.keep_bytes)

    def _append(self, data: bytes) -> None:
        packed = self._compress(data) if self._compress else data
        done = 0
        try:
            while done < len(packed):
                done += os.write(self._fd, memoryview(packed)[done:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(packed)
        self.bytes_written += len(packed)

    def _finish(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _zstd() -> Callable[[bytes], bytes]:
    try:
        import zstandard
    except ImportError:
        raise SettingsError(
            "compress: zstandard is not installed: pip install 'tickengine[replay]', or choose none"
        ) from None
    compressor: Any = zstandard.ZstdCompressor(level=_LEVEL)
    packed: Callable[[bytes], bytes] = compressor.compress
    return packed
