"""What a polled source tells of its wire, and of what came of it: for captures that replay to the same records.

    ask GET ... --> http 200 BODY --> note {"answer": NS, "rows": [[first, count, flags], ...]}  once they are published
                                '--> note {"answer": NS, "why": "..."}                          nothing of it can be had

What of an answer was published depends on all that the feed had published before, which no wire shows; so it is noted,
by the rows of the answer, poll by poll, when the records stand in the ring. A capture that begins in the middle, loses
a part or is cut off by a kill thus says of each answer that it holds what became of it, and of no other.

`answer` is the time of receipt, by which a note finds its answer. Used by workers/sources/polled.py, which tells, and
by workers/sources/polled_replay.py, which reads; without a capture every call returns at once.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
import numpy as np
from msgspec import Meta

from workers.sources.vendor import Job, Request, Vendor
from workers.wire_log import WireLog, secrets_of

Row = Annotated[int, Meta(ge=0, lt=1 << 32)]
Count = Annotated[int, Meta(ge=1, lt=1 << 32)]
Flags = Annotated[int, Meta(ge=0, lt=1 << 16)]


class PolledNote(msgspec.Struct, omit_defaults=True):
    """What became of an answer, or of a part of it.

    Attributes:
        answer: when it was received, ns since the epoch.
        rows: runs of its observations that were published, in that order: first, how many, flags that each was given.
        why: why nothing of it was to be had.
    """

    answer: int
    rows: list[tuple[Row, Count, Flags]] = []
    why: str = ""


class PolledWitness:
    """The one request that is under way, told to a WireLog as it goes."""

    def __init__(self, wire: WireLog | None, vendor: Vendor) -> None:
        """Nothing is under way. The key is hidden before anything is written."""
        self._wire = wire
        self._url = ""  # of the request without an answer; "" = there is none
        self._answer_ns = 0  # of the answer of which nothing was noted; 0 = there is none
        if wire is not None:
            options = vendor.options
            for secret in [*([vendor.key.value] if vendor.key else ()), *secrets_of("", options.headers.values())]:
                wire.hide(secret)

    def asked(self, job: Job, request: Request, at_ns: int) -> None:
        """A request goes out."""
        if self._wire is not None:
            self._url = f"{request.url}?{urlencode(request.query)}"
            self._answer_ns = 0
            self._wire.asked(job.name, self._url, at_ns)

    def answered(self, job: Job, status: int, body: bytes, at_ns: int) -> None:
        """Its answer, as far as it was read."""
        if self._wire is not None:
            url, self._url = self._url, ""
            self._answer_ns = at_ns
            self._wire.answered(job.name, url, status, body, at_ns)

    def failed(self, job: Job, why: str, at_ns: int) -> None:
        """There was no whole answer, or nothing of it can be had; told once."""
        if self._wire is None:
            return
        if self._url:
            self._wire.answered(job.name, self._url, 0, why.encode(), at_ns)
        elif self._answer_ns:
            self._noted(job, PolledNote(self._answer_ns, why=why), at_ns)
        self._url, self._answer_ns = "", 0

    def published(self, job: Job, answer_ns: int, rows: Any, flags: Any, at_ns: int) -> None:
        """These observations of an answer stand in the ring. `rows`, `flags`: integer arrays of one length."""
        if self._wire is not None and len(rows):
            self._noted(job, PolledNote(answer_ns, runs_of(rows, flags)), at_ns)

    def _noted(self, job: Job, note: PolledNote, at_ns: int) -> None:
        assert self._wire is not None
        self._wire.noted(job.name, msgspec.json.encode(note).decode(), at_ns)


def runs_of(rows: np.ndarray, flags: np.ndarray) -> list[tuple[int, int, int]]:
    """Rows that follow one another and have the same flags as (first, how many, flags)."""
    begins = np.flatnonzero((np.diff(rows) != 1) | (np.diff(flags) != 0)) + 1
    starts = np.concatenate([[0], begins])
    counts = np.diff(np.concatenate([starts, [len(rows)]]))
    return list(zip(rows[starts].tolist(), counts.tolist(), flags[starts].tolist(), strict=True))
