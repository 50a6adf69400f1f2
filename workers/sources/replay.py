"""Captured market data as a feed: files through the decoders that live feeds use, paced as they were recorded.

The ingest worker polls it (`workers.source.Source`); the bytes are read and decoded by workers.decoders.capture, one
file by `replay_file.py`.
Records keep their original ts_event and ts_receive and carry flag REPLAYED.

Order: all files as one stream, by the time that also paces it (`merge.py`); which begins when is found out first, a few
files a poll. With `merge = false` one after the other, as listed. After the last file of each pass, and after one whose
successor as listed begins earlier than it ended, comes a status record END_OF_REPLAY (text: the name of the file that
ended last; to_sequence - from_sequence: records since the one before), at which consumers close what is open, such as
bars.

Pace: a record is due when as much time (divided by `speed`) has passed since the first one was delivered as lay between
the two in the recording; by ts_receive, or ts_event where the file has no times of receipt. Records slightly out of
order do not stretch it; a jump back of more than a second, within a file or between two, sets the clock anew. A replay
that falls behind catches up.

`position` counts every record handed out, END_OF_REPLAY included, over all passes. `skip` decodes and throws away, a
bounded amount a poll, so that the worker's heart goes on beating.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta

from shm.layout import (
    NO_INSTRUMENT,
    Flag,
    Priority,
    RecordType,
    Source,
    StatusCode,
    empty,
)
from workers.capture_files import chains
from workers.decoders.tick_files import without_books
from workers.errors import SourceError
from workers.source import SourceContext, read_options
from workers.sources.faults import FaultOptions, ReplayFaults
from workers.sources.merge import merge_by_time
from workers.sources.replay_file import ReplayFile, first_recorded_ns, recorded_ns
from workers.sources.selection import Selection

log = logging.getLogger("replay")

CHUNK_SLOTS: Final = 4096
SKIP_CHUNKS_PER_POLL: Final = 16
LOOKS_PER_POLL: Final = 4  # files whose first record is looked for in one poll
JUMP_BACK_NS: Final = 1_000_000_000
PAUSE_BETWEEN_PASSES_NS: Final = 1_000_000_000


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of source "replay"."""

    files: Annotated[tuple[str, ...], Meta(min_length=1)]
    speed: Annotated[float, Meta(gt=0, le=1e6)] | Literal["max"] = 1.0  # times the recorded pace
    loop: bool = False  # begin again after the last file (paced: after a second)
    max_gap_s: Annotated[float, Meta(ge=0)] = 0.0  # longer pauses in the recording are shortened to this; 0 = kept
    merge: bool = True  # several files as one stream, by time; false: one after the other, as listed
    decoder: dict[str, Any] = {}  # options of the decoder, see workers/decoders/capture_options.py
    faults: FaultOptions | str = ""  # done to raw messages before they are decoded; a table, or "drop=0.01,seed=3"


class ReplaySource:
    """See `workers.source.Source`. Finishes after the last file, unless it loops."""

    def __init__(self, context: SourceContext) -> None:
        """Check the options; files are opened by the polls. SettingsError for what can't work."""
        self._options = read_options(context.spec, ReplayOptions)
        self._context = context
        self._files = chains(without_books([Path(name) for name in self._options.files]))
        self._faults = ReplayFaults(self._options.faults, context) if self._options.faults != "" else None
        self._opened_before = 0  # files of the passes before this one
        self._selection = Selection(context)
        self.errors = 0
        self.gaps = 0
        self.bytes_received = 0
        self.position: int | None = 0
        self.next_due_ns: int | None = 0
        self._open: list[ReplayFile] = []
        self._done = 0  # files of the pass that have ended
        self._last_ended = self._files[-1][-1]
        self._first_ns: list[int] = []  # when the first record of each file was recorded, as far as that is known
        self._to_look = self._files if self._options.merge and len(self._files) > 1 else []
        self._begun_share = 0.0  # of the pass, before the batch in hand
        self._batches = self._passes()
        self._chunk = empty(CHUNK_SLOTS)
        self._into = self._chunk  # where the next batch is decoded to
        self._batch = self._chunk[:0]  # what has been decoded and not been handed out: from `_next` on
        self._next = 0
        self._to_skip = 0
        self._clock = _Clock(self._options)
        self._due_ns = np.zeros(0, dtype=np.int64)  # of each record of `_batch`, where there is a pace
        self._last_poll_ns = 0

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """See `Source.poll`. SourceError or OSError when a file can't be read."""
        self._last_poll_ns = now_ns
        if len(self._first_ns) < len(self._to_look):
            self._look_at_some(now_ns)
            return 0
        if self._to_skip:
            self._skip_some(now_ns)
            return 0
        count = self._poll_unpaced(out, now_ns) if self._options.speed == "max" else self._poll_paced(out, now_ns)
        assert self.position is not None
        self.position += count
        return count

    def _poll_unpaced(self, out: np.ndarray, now_ns: int) -> int:
        count = 0
        while count < len(out):
            if self._next < len(self._batch):
                count += self._hand_out(out[count:], len(self._batch))
                continue
            self._into = out[count:]
            batch = next(self._batches, None)
            if batch is None:
                self.next_due_ns = None
                return count
            if not len(batch):
                break
            if batch.base is self._into.base and batch.ctypes.data == self._into.ctypes.data:
                count += len(batch)
            else:
                self._batch, self._next = batch, 0
        self.next_due_ns = now_ns
        return count

    def _poll_paced(self, out: np.ndarray, now_ns: int) -> int:
        count = 0
        while True:
            if self._next == len(self._batch) and not self._decode_batch(now_ns):
                self.next_due_ns = None
                return count
            if not len(self._batch):
                self.next_due_ns = now_ns
                return count
            due = int(np.searchsorted(self._due_ns, now_ns, side="right"))
            count += self._hand_out(out[count:], due)
            if self._next < len(self._batch):
                self.next_due_ns = int(self._due_ns[self._next])
                return count

    def _hand_out(self, out: np.ndarray, end: int) -> int:
        """Copy the batch in hand up to record `end`, as far as there is room."""
        count = max(0, min(end - self._next, len(out)))
        _copy(out[:count], self._batch[self._next : self._next + count])
        self._next += count
        return count

    def _decode_batch(self, now_ns: int) -> bool:
        """The next batch, with the times when its records are due; False at the end."""
        self._into = self._chunk
        self._begun_share = self._decoded_share
        batch = next(self._batches, None)
        if batch is None:
            return False
        self._batch, self._next = batch, 0
        self._due_ns = self._clock.schedule(recorded_ns(batch), now_ns)
        return True

    def _look_at_some(self, now_ns: int) -> None:
        """Find out when files begin, a few at a time, so that the worker's heart goes on beating."""
        self.next_due_ns = now_ns
        for parts in self._to_look[len(self._first_ns) :][:LOOKS_PER_POLL]:
            self._first_ns.append(first_recorded_ns(parts[0], self._options.decoder))

    def skip(self, records: int) -> None:
        """See `Source.skip`; done by the next polls, which return 0 meanwhile."""
        self._to_skip += records

    def _skip_some(self, now_ns: int) -> None:
        assert self.position is not None
        self.next_due_ns = now_ns
        self._into = self._chunk
        for _ in range(SKIP_CHUNKS_PER_POLL):
            if self._next == len(self._batch):
                batch = next(self._batches, None)
                if batch is None:
                    self._to_skip = 0
                    self.next_due_ns = None
                    return
                self._batch, self._next = batch, 0
                if not len(batch):
                    return
            count = min(self._to_skip, len(self._batch) - self._next)
            self._next += count
            self._to_skip -= count
            self.position += count
            if not self._to_skip:
                # The pace begins with the first record that is delivered.
                self._clock = _Clock(self._options)
                self._batch, self._next = self._batch[self._next :], 0
                self._due_ns = self._clock.schedule(recorded_ns(self._batch), now_ns)
                return

    def resume(self, now_ns: int) -> None:
        """See `Source.resume`."""
        if self._last_poll_ns:
            self._due_ns += now_ns - self._last_poll_ns
            self._clock.postpone(now_ns - self._last_poll_ns)
            self._last_poll_ns = now_ns

    def close(self) -> None:
        """Close the files in hand."""
        for file in self._open:
            file.close()
        self._open.clear()

    @property
    def progress(self) -> float:
        """Share of the pass that has been handed out, 0 to 1, every file counting the same."""
        begin, end = min(self._begun_share, self._decoded_share), self._decoded_share
        return begin + (end - begin) * (self._next / len(self._batch) if len(self._batch) else 1.0)

    @property
    def _decoded_share(self) -> float:
        return (self._done + sum(file.progress for file in self._open)) / len(self._files)

    # -- from files to batches

    def _passes(self) -> Iterator[np.ndarray]:
        """Batches in order, each valid until the next is asked for; most stand at the start of `_into`.

        An empty one leaves the poll, so that the worker's heart goes on beating.
        """
        while True:
            total = 0
            since_end = 0
            end = _end_record(self._context.spec.feed_id)
            self._done = 0
            for batch, begins in self._merged() if self._to_look else self._listed():
                if not len(batch):
                    yield batch
                    continue
                if begins and since_end and recorded_ns(batch[:1])[0] < recorded_ns(end)[0]:
                    yield _finish(end, self._last_ended, since_end)
                    since_end = 0
                for field in ("ts_event", "ts_receive"):
                    end[field] = batch[field][-1]
                total += len(batch)
                since_end += len(batch)
                yield batch
            yield _finish(end, self._last_ended, since_end)
            if self._faults is not None:
                log.warning("feed %s: faults on purpose: %s", self._context.spec.name, self._faults.counts)
            if not self._options.loop:
                return
            if total == 0:
                raise SourceError("nothing to loop over: the files hold no record")
            self._opened_before += len(self._files)
            self._clock.pause(PAUSE_BETWEEN_PASSES_NS)

    def _listed(self) -> Iterator[tuple[np.ndarray, bool]]:
        """One file after the other, and whether a batch is the first of its file, for which END may have to wait."""
        for number in range(len(self._files)):
            file = self._open_file(number)
            begins = True
            while not file.ended:
                batch = file.read(empty(CHUNK_SLOTS) if begins else self._into)
                if len(batch) or not file.ended:
                    yield batch, begins
                begins = begins and not len(batch)

    def _merged(self) -> Iterator[tuple[np.ndarray, bool]]:
        """All files by time."""
        for batch in merge_by_time(self._first_ns, self._open_file, lambda: self._into):
            yield batch, False

    def _open_file(self, number: int) -> ReplayFile:
        file = ReplayFile(
            self._files[number],
            self._context,
            self._selection,
            self._options.decoder,
            number=self._opened_before + number,
            faults=self._faults,
            counted=self._count,
            ended=self._file_ended,
        )
        self._open.append(file)
        return file

    def _file_ended(self, file: ReplayFile) -> None:
        self._open.remove(file)
        self._done += 1
        self._last_ended = file.path

    def _count(self, errors: int, gaps: int, bytes_received: int) -> None:
        """What a file's decoder has counted since it did so last."""
        self.errors += errors
        self.gaps += gaps
        self.bytes_received += bytes_received


class _Clock:
    """From recorded times to times when records are due."""

    def __init__(self, options: ReplayOptions) -> None:
        self._speed = 1.0 if options.speed == "max" else options.speed
        self._max_gap_ns = round(options.max_gap_s * 1e9)
        self._newest_ns = 0  # recorded time up to which records have been scheduled; 0 = none yet
        self._due_ns = 0  # when the record of that time is due
        self._pause_ns = 0

    def schedule(self, recorded_ns: np.ndarray, now_ns: int) -> np.ndarray:
        """When each record is due, int64 ns, never decreasing; the very first one is due now."""
        due_ns = np.empty(len(recorded_ns), dtype=np.int64)
        start = 0
        while start < len(recorded_ns):
            if not self._newest_ns:
                self._newest_ns = int(recorded_ns[start])
                self._due_ns = now_ns
            elif self._pause_ns or recorded_ns[start] < self._newest_ns - JUMP_BACK_NS:
                self._newest_ns = int(recorded_ns[start])
            self._due_ns += self._pause_ns
            self._pause_ns = 0
            # Times so far, each no earlier than the one before; up to where the recording jumps back.
            reached = np.maximum.accumulate(np.concatenate([[self._newest_ns], recorded_ns[start:]]))
            jumps = np.flatnonzero(recorded_ns[start:] < reached[1:] - JUMP_BACK_NS)
            count = int(jumps[0]) if len(jumps) else len(recorded_ns) - start
            gaps = np.diff(reached[: count + 1])
            if self._max_gap_ns:
                gaps = np.minimum(gaps, self._max_gap_ns)
            due_ns[start : start + count] = self._due_ns + (np.cumsum(gaps) / self._speed).astype(np.int64)
            self._newest_ns = int(reached[count])
            self._due_ns = int(due_ns[start + count - 1])
            start += count
        return due_ns

    def pause(self, pause_ns: int) -> None:
        """What comes next begins anywhere in recorded time, and is due that much later than what came last."""
        self._pause_ns = pause_ns

    def postpone(self, by_ns: int) -> None:
        """Everything that has not been scheduled yet is due that much later."""
        self._due_ns += by_ns


def _copy(target: np.ndarray, records: np.ndarray) -> None:
    """Copy whole records: assigning arrays of a dtype with overlapping fields would go field by field."""
    target.view(np.uint8)[:] = records.view(np.uint8)


def _end_record(feed_id: int) -> np.ndarray:
    """An END_OF_REPLAY that still lacks its times, name and count."""
    end = empty(1)
    end["instrument_id"] = NO_INSTRUMENT
    end["record_type"] = RecordType.STATUS
    end["source"] = Source.REPLAY
    end["flags"] = Flag.REPLAYED | Flag.LAST_OF_BATCH
    end["feed_id"] = feed_id
    end["priority"] = Priority.HIGH
    end["code"] = StatusCode.END_OF_REPLAY
    return end


def _finish(end: np.ndarray, path: Path, records: int) -> np.ndarray:
    finished = empty(1)
    _copy(finished, end)
    finished["to_sequence"] = records
    finished["text"] = path.name.encode()[:40].decode(errors="ignore").encode()
    return finished
