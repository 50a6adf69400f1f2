"""GET /data over the tiers: L1 where it may answer alone (engine/l1.py), else the historian with what L1 has.

Called by engine/http_data.py and engine/front.py. Counts, in the control process's slot of the status block,
`tier.LEVEL.hits`, `.misses` and `.down`. A store that is down, or the historian itself, never fails a request that
another tier has something for: the answer then says what is missing. It reads no file and knows no store.

A cursor is the key of the oldest record of a page; the next page has what lies below it. So paging meets every record
exactly once, whatever comes in or moves from tier to tier meanwhile; what comes late for a page that is past is not
seen.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import numpy as np

from engine.archive_client import ArchiveClient, ArchiveUnavailable
from engine.exposition import TIERS
from engine.l1 import L1, Key, View, Wanted, joined, key_of
from shm.instruments import InstrumentTable
from shm.latest import LatestTable
from shm.layout import RECORD, Flag, RecordType
from shm.status import ProcessStatus
from workers.spec import Question

CURSOR_CHARS: Final = 32
CURSOR_PATTERN: Final = rf"^[A-Za-z0-9_-]{{{CURSOR_CHARS}}}$"
_CURSOR: Final = re.compile(CURSOR_PATTERN)
_KEY: Final = struct.Struct("<qqQ")
_PIECES: Final = 64  # of a news item, looked for at a time
_MAX_PIECES: Final = 16_384  # 1 MiB of text; a longer item is cut

Form = Literal["records", "arrow", "parquet"]


class Answer(NamedTuple):
    """What the tiers have."""

    records: np.ndarray  # ascending by key; empty if it is a file
    file: bytes  # Arrow or Parquet, where that was asked for
    length: int
    tiers: tuple[str, ...]  # that records came from
    cursor: str | None
    missing: tuple[str, ...]  # stores that could not be asked, and why
    known: bool  # whether any tier knows the symbol


class Tiers:
    """The tiers of one engine."""

    def __init__(
        self,
        latest: Callable[[], LatestTable],
        instruments: InstrumentTable,
        own: ProcessStatus,
        client: ArchiveClient | None,
        *,
        timeout_s: float,
    ) -> None:
        """`client` is None where nothing is recorded; `timeout_s` is what the tiers below L1 may take together."""
        self.has_archive = client is not None
        self.hole_ns = 0  # up to this moment records are missing from L1 that were published; the owner's to set
        self._latest = latest
        self._instruments = instruments
        self._client = client
        self._timeout_s = timeout_s
        self._l1: L1 | None = None
        self._counters = {
            (level, what): own.counter(f"tier.{level}.{what}") for level in TIERS for what in ("hits", "misses", "down")
        }

    def from_l1(self, symbol: str, wanted: Wanted) -> Answer | None:
        """L1's answer if it may give it alone; counted as a hit only if so. ShmError if it can't be read."""
        instrument_id = self._instruments.find(symbol)
        if instrument_id is None:
            return None
        view = self._view(instrument_id, wanted)
        if not view.alone or (len(view.records) >= wanted.limit and _may_lack_beginning(view.records)):
            return None
        return self._of_l1(view, wanted)

    async def ask(self, symbol: str, wanted: Wanted, form: Form) -> Answer:
        """The answer of all tiers.

        Raises:
            ShmError: L1 can't be read.
            ArchiveUnavailable: the historian can't be asked, and L1 has nothing, or a file was asked for.
            ArchiveRefused: it can't be answered in this form.

        Records that begin within a news item get its beginning too, beyond `limit`: a page never cuts an item.
        """
        answer = await self._ask(symbol, wanted, form)
        if form != "records" or answer.cursor is None or not _may_lack_beginning(answer.records):
            return answer
        pieces = [answer.records]
        while sum(map(len, pieces)) < wanted.limit + _MAX_PIECES:
            before = wanted._replace(kind=RecordType.NEWS, before=key_of(pieces[0][0]), limit=_PIECES)
            found = (await self._ask(symbol, before, form)).records
            ends = np.flatnonzero(found["flags"] & Flag.CONTINUES == 0)
            begun = found[ends[-1] + 1 :] if len(ends) else found
            if len(begun):
                pieces.insert(0, begun)
            if len(begun) < _PIECES:
                break
        records = joined(pieces)
        return answer._replace(records=records, length=len(records), cursor=_cursor_after(records))

    async def _ask(self, symbol: str, wanted: Wanted, form: Form) -> Answer:
        instrument_id = self._instruments.find(symbol)
        applied = {ring: upto for ring, upto in enumerate(self._table().complete()) if upto}
        view = self._view(instrument_id, wanted)
        if self._client is None or (view.alone and form == "records"):
            return self._of_l1(view, wanted)._replace(known=instrument_id is not None)
        question = Question(
            symbol=symbol,
            kind=int(wanted.kind or 0),
            from_ns=wanted.from_ns,
            to_ns=wanted.to_ns,
            before=wanted.before,
            limit=wanted.limit,
            form=form,
            newer=view.records.tobytes(),
            probe=instrument_id is None,
            left_l1_ns=view.unread_ns,
            applied=applied,
            deadline_ns=0,
        )
        try:
            found, body = await self._client.ask(question, self._timeout_s)
        except ArchiveUnavailable as error:
            for level in TIERS[1:]:
                self._count(level, "down")
            if error.busy or form != "records" or not len(view.records):
                raise
            answer = self._of_l1(view, wanted)
            return answer._replace(missing=(f"L2 and L3: {error}",), cursor=_cursor_after(view.records))
        self._count_found(found.gave, found.asked, found.missing)
        full = found.count >= wanted.limit or (found.missing and found.count)
        return Answer(
            records=np.frombuffer(body, RECORD) if form == "records" else np.empty(0, RECORD),
            file=b"" if form == "records" else body,
            length=found.count,
            tiers=found.gave,
            cursor=encode_cursor(found.oldest) if full and found.oldest is not None else None,
            missing=found.missing,
            known=found.known or instrument_id is not None,
        )

    def close(self) -> None:
        """Let go of the line to the historian."""
        if self._client is not None:
            self._client.close()

    def count_snapshot(self, found: bool) -> None:
        """A snapshot was asked for: L1 alone can have it."""
        self._count("L1", "hits" if found else "misses")

    def _table(self) -> LatestTable:
        table = self._latest()
        if self._l1 is None or self._l1.table is not table:
            self._l1 = L1(table)
        return table

    def _view(self, instrument_id: int | None, wanted: Wanted) -> View:
        self._table()
        assert self._l1 is not None
        return self._l1.look(instrument_id, wanted, hole_ns=self.hole_ns)

    def _of_l1(self, view: View, wanted: Wanted) -> Answer:
        records = view.records
        self._count("L1", "hits" if len(records) else "misses")
        full = len(records) >= wanted.limit
        return Answer(
            records=records,
            file=b"",
            length=len(records),
            tiers=("L1",) if len(records) else (),
            cursor=_cursor_after(records) if full else None,
            missing=(),
            known=True,
        )

    def _count_found(self, gave: tuple[str, ...], asked: tuple[str, ...], missing: tuple[str, ...]) -> None:
        self._count("L1", "hits" if gave == ("L1",) else "misses")
        for level in TIERS[1:]:
            if level in gave:
                self._count(level, "hits")
            elif level in asked:
                self._count(level, "misses")
            if any(store.startswith(level) for store in missing):
                self._count(level, "down")

    def _count(self, level: str, what: str) -> None:
        self._counters[level, what].add()


def encode_cursor(key: Key) -> str:
    """A key as the client gets it: opaque, CURSOR_CHARS characters."""
    return base64.urlsafe_b64encode(_KEY.pack(*key)).decode()


def decode_cursor(cursor: str) -> Key:
    """The key in a cursor. ValueError if it is none; every text of CURSOR_PATTERN is one."""
    if not _CURSOR.fullmatch(cursor):
        raise ValueError("it is none that this engine has given; take it from the answer before")
    event, publish, sequence = _KEY.unpack(base64.urlsafe_b64decode(cursor))
    return event, publish, sequence


def _may_lack_beginning(records: np.ndarray) -> bool:
    """Whether the first record could be a piece of a news item that began before."""
    return len(records) > 0 and int(records["record_type"][0]) == RecordType.NEWS


def _cursor_after(records: np.ndarray) -> str | None:
    return encode_cursor(key_of(records[0])) if len(records) else None
