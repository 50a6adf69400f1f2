"""What has been sealed: the parts of the Parquet archive, and which journal segments they stand for.

    parquet/20261121T05-0001/manifest.json      the part: its segments, and for each file rows, bytes, times
                             trade.parquet      one file a record type, sorted by symbol and time
                             quote.parquet ...

A part is a folder that came into being whole, by one rename (workers/parquet.py), and never changes. The segments that
its manifest names are in it, record for record: who reads parts and journal together leaves those segments out. An hour
has one part, more if it was too much to be sealed at once or something came late. Used by everybody who reads or looks
after the archive; needs no pyarrow.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

MANIFEST: Final = "manifest.json"
HIDDEN_NEW: Final = ".new-"  # a part being written
HIDDEN_GONE: Final = ".gone-"  # a part being removed

_NAME: Final = re.compile(r"(\d{8}T\d\d)-(\d{4,})")


class FileFacts(msgspec.Struct, frozen=True):
    """One Parquet file of a part; times are `ts_event`, ns."""

    rows: int
    size_bytes: int
    event_min_ns: int
    event_max_ns: int


class Manifest(msgspec.Struct, frozen=True):
    """What a part says about itself."""

    hour: int  # hours since the Unix epoch, by the wall clock at recording
    segments: tuple[str, ...]
    raw_bytes: int  # of the records, 128 each
    files: dict[str, FileFacts]  # record type -> file TYPE.parquet
    gaps: tuple[tuple[int, int, int, int], ...] = ()  # (ring, stream, from, to): what the rings lost


class Part(msgspec.Struct, frozen=True):
    """A part that exists."""

    path: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(facts.size_bytes for facts in self.manifest.files.values())

    def file(self, type_name: str) -> Path:
        """The file of a record type, which `manifest.files` must have."""
        return self.path / f"{type_name}.parquet"


class Archive:
    """The parts under one folder; remembers manifests, which never change."""

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist."""
        self.folder = folder
        self._known: dict[str, Part] = {}

    def parts(self) -> list[Part]:
        """Every part, oldest hour first."""
        names = sorted(path.name for path in self.folder.glob("*-*") if _NAME.fullmatch(path.name))
        known, self._known = self._known, {}
        for name in names:
            part = known.get(name) or read_part(self.folder / name)
            if part is not None:
                self._known[name] = part
        return list(self._known.values())

    def sealed(self) -> set[str]:
        """File names of the journal segments that are in some part."""
        return {segment for part in self.parts() for segment in part.manifest.segments}

    def next_path(self, hour: int) -> Path:
        """Where the next part of an hour goes."""
        stem = datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y%m%dT%H")
        numbers = [int(m[2]) for path in self.folder.glob(f"{stem}-*") if (m := _NAME.fullmatch(path.name))]
        return self.folder / f"{stem}-{max(numbers, default=0) + 1:04}"

    def remove(self, part: Part) -> None:
        """Remove a part: gone for readers at once, whatever happens meanwhile."""
        hidden = part.path.with_name(HIDDEN_GONE + part.path.name)
        part.path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def clean(self) -> None:
        """Remove what was left half-written or half-removed by a crash. Only while nobody is sealing."""
        for path in [*self.folder.glob(f"{HIDDEN_NEW}*"), *self.folder.glob(f"{HIDDEN_GONE}*")]:
            shutil.rmtree(path, ignore_errors=True)


def read_part(path: Path) -> Part | None:
    """The part in a folder; None if it has just gone."""
    try:
        return Part(path, msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest))
    except FileNotFoundError:
        return None
