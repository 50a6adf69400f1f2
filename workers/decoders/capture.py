"""A capture file as records: what replay and replay-info read.

    CaptureInput -> decoder -> RECORD arrays
    (frames)        (records)

The format is found by content and, where that does not say it, by name (`detection.py`), the decoder by what the file
begins with (`decoder_choice.py`); options help where neither can tell (`capture_options.py`). Original times are kept,
records are flagged REPLAYED. Reads the file piece by piece; never paces, publishes or reads a clock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import numpy as np

from shm.layout import RECORD
from workers.decoders import tick_files
from workers.decoders.capture_file import CaptureFile, PairedLines
from workers.decoders.capture_input import CaptureInput
from workers.decoders.capture_options import checked
from workers.decoders.decoder_choice import DecoderChoice, Intern
from workers.decoders.protocol import Batch, Container, Counters, Decoder, FramingError
from workers.decoders.single import single_messages
from workers.errors import SettingsError

_PROTOCOL_TITLES: Final = {
    "iex": "IEX TOPS/DEEP",
    "itch": "NASDAQ ITCH 5.0",
    "mdp3": "CME MDP 3.0",
    "pitch": "Cboe PITCH",
}


class Faults(Protocol):
    """Damages what a capture holds before it is decoded (workers/sources/faults.py)."""

    def apply(self, batch: Batch) -> Batch:
        """What becomes of the next frames, each of which is one message."""

    def finish(self) -> Batch:
        """What was still held back at the end of the file."""


class Capture:
    """One file being decoded. Not thread-safe."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        intern: Intern,
        options: Mapping[str, Any],
        feed_id: int,
        *,
        after: Capture | None = None,
        faults: Faults | None = None,
    ) -> None:
        found = checked(options)
        self._faults = faults
        self._symbols: dict[str, int] = {}
        self.done = False  # all records have been handed out
        self._finished = False  # the decoder knows that the input has ended
        self._taken = 0  # bytes of the input in the present call of `decode`
        # Of the batch in hand: from where to where in the file, 0 to 1; its bytes; those decoded before it.
        self._span = (0.0, 0.0, 0, 0)
        self._input = CaptureInput(path, str(found.get("format") or ""))
        try:
            chosen = DecoderChoice(self._input, _remembering(intern, self._symbols), found, feed_id)
            self._decoder = chosen.decoder
            self._protocol, self._schema = chosen.protocol, chosen.schema
            if faults is not None and not getattr(self._decoder, "DAMAGEABLE", True):
                name = self.file.path.name
                raise SettingsError(f"faults: {name} is of a polled feed, whose answers come whole or not at all")
            if after is not None and type(after._decoder) is type(self._decoder):
                self._decoder = after._decoder  # its books, numbering and counters go on
                self._input.truncated_bytes = after._input.truncated_bytes
        except BaseException:
            self._input.file.close()
            raise

    # ---- reading --------------------------------------------------------------------------------------------------

    def decode(self, out: np.ndarray, *, input_bytes: int = 0) -> int:
        """Fills `out` (dtype RECORD) from its front; returns the count, 0 = end of file.

        `input_bytes`: return when more of the unpacked input than that has been decoded, too, with whatever came of it;
        0 is the end then only if `done`. Raises FramingError once, after every record before the damage was handed
        out; from then on it returns 0.
        """
        if out.dtype != RECORD:
            raise SettingsError(f"out must have dtype RECORD, not {out.dtype}")
        filled = 0
        self._taken = 0
        while filled < len(out):
            got = self._decoder.decode(out[filled:] if filled else out)
            if got:
                filled += got
            elif input_bytes and self._taken >= input_bytes:
                break
            elif not self._advance():
                failure = self._input.failure
                self.done = failure is None
                if failure is not None and not filled:
                    self._input.failure = None
                    raise failure
                break
        return filled

    def first_received_ns(self) -> int:
        """When the file's first message was received, ns; 0 = it does not say, or holds none. Only before `decode`."""
        given = self._input
        while True:
            for batch, _ in given.waiting:
                if len(batch.frames):
                    return int(batch.frames["ts_receive"][0])
            if given.container.error is not None or not given.look_ahead():
                return 0

    def _advance(self) -> bool:
        """Gives the decoder its next frames; False = there are no more."""
        given = self._input
        while not given.ended:
            batch, reached = given.next()
            if self._faults is not None and len(batch.frames):
                record_bytes = getattr(given.container, "record_bytes", 0)
                batch = self._faults.apply(single_messages(batch, given.layout, record_bytes))
            if len(batch.frames):
                size = int(batch.frames["size"].sum())
                self._taken += size
                self._span = self._span[1], reached, size, self._decoder.counters.bytes
                self._decoder.feed(batch.buffer, batch.frames)
                return True
            given.ended = given.ended or given.failure is not None
        if self._faults is not None:
            batch = self._faults.finish()
            if len(batch.frames):
                self._decoder.feed(batch.buffer, batch.frames)
                return True
        if not self._finished and hasattr(self._decoder, "finish"):
            self._finished = True
            self._decoder.finish()
            return True
        return False

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def file(self) -> CaptureFile | PairedLines:
        """What is read."""
        return self._input.file

    @property
    def container(self) -> Container:
        """What cuts the file into frames."""
        container: Container = self._input.container
        return container

    @property
    def decoder(self) -> Decoder:
        """What turns the frames into records."""
        decoder: Decoder = self._decoder
        return decoder

    @property
    def format(self) -> str:
        """For people: what the file holds, in what, and how it is packed."""
        layout, container = self._input.layout, self._input.container
        if layout == "pcap":
            text = f"{_PROTOCOL_TITLES[self._protocol]} in {container.layout}"
        elif layout == "dbz":
            text = f"Databento DBZ {self._schema}"
        elif layout in {"dbn", "dbn-fragment"}:
            version = f" v{container.version}" if container.version else ""
            text = f"Databento DBN{version} {container.schema or 'fragment'}".rstrip()
        elif layout == "itch":
            text = "NASDAQ ITCH 5.0, length-framed"
        elif layout == "fix":
            text = "FIX messages"
        elif layout in tick_files.FORMATS:
            text = tick_files.TITLES[layout]
        else:
            venue = getattr(self._decoder, "venue", "").title() or type(self._decoder).__name__.removesuffix("Decoder")
            wire = getattr(self._decoder, "WIRE", "WebSocket messages")
            text = f"{venue} {wire}, {'timed lines' if layout == 'lines' else 'jsonl capture'}"
        return f"{text} ({self.file.compression})" if self.file.compression else text

    @property
    def progress(self) -> float:
        """How much of the file has been decoded, 0 to 1."""
        if self._input.ended:
            return self.file.progress
        begin, end, frame_bytes, before = self._span
        share = (self._decoder.counters.bytes - before) / frame_bytes if frame_bytes else 0.0
        return begin + (end - begin) * min(1.0, share)

    @property
    def counters(self) -> Counters:
        """Snapshot of what was decoded so far."""
        counters: Counters = self._decoder.counters
        if self._input.truncated_bytes:
            counters.malformed["truncated"] = counters.malformed.get("truncated", 0) + 1
        return counters

    @property
    def symbols(self) -> dict[str, int]:
        """Symbols met so far and their instrument ids."""
        return dict(self._symbols)

    def describe(self) -> dict[str, Any]:
        """What was decoded so far, in plain types for replay-info; decode to the end first for the whole file."""
        counters = self.counters
        return {
            "path": str(self.file.path),
            "format": self.format,
            "size_bytes": self.file.size_bytes,
            "progress": self.progress,
            "frames": counters.frames,
            "messages": counters.messages,
            "records": counters.records,
            "first": _iso(counters.first_ns),
            "last": _iso(counters.last_ns),
            "first_ns": counters.first_ns,
            "last_ns": counters.last_ns,
            "symbols": sorted(self._symbols),
            "gaps": counters.gaps,
            "missing": counters.missing,
            "gap_ranges": [tuple(gap) for gap in counters.gap_ranges],
            "duplicates": counters.duplicates,
            "heartbeats": counters.heartbeats,
            "malformed": counters.malformed,
            "truncated_bytes": self._input.truncated_bytes,
            "passed_over": self._input.container.counts(),
        }

    def close(self) -> None:
        """Closes the file; the counters stay. May be called more than once."""
        self._input.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_capture(
    path: str | os.PathLike[str],
    *,
    intern: Intern,
    options: Mapping[str, Any] | None = None,
    feed_id: int = 0,
    after: Capture | None = None,
    faults: Faults | None = None,
) -> Capture:
    """Opens a capture file; `intern(symbol) -> instrument id`; `options`: see capture_options.py.

    `after`: the capture that this one is the next part of (workers.capture_files.follows): its decoder goes on, and
    so do its counters. `faults`: what is done to the messages before they are decoded.

    Raises OSError, SettingsError for an option that cannot be, UnknownFormatError for content without a decoder, and
    FramingError if the file is damaged before its first message.
    """
    return Capture(path, intern, options or {}, feed_id, after=after, faults=faults)


def describe_capture(path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Decodes a whole file and describes it, with the framing error that ended it early, if any, under "error"."""
    numbers: dict[str, int] = {}
    out = np.empty(8192, RECORD)
    with open_capture(path, intern=lambda symbol: numbers.setdefault(symbol, len(numbers)), options=options) as capture:
        error = ""
        try:
            while capture.decode(out):
                pass
        except FramingError as problem:
            error = str(problem)
        return {**capture.describe(), "error": error}


def _remembering(intern: Intern, symbols: dict[str, int]) -> Intern:
    """`intern` that keeps what it was asked for. Not a method: a decoder that held its capture would be a cycle."""

    def remember(symbol: str) -> int:
        number = symbols[symbol] = intern(symbol)
        return number

    return remember


def _iso(time_ns: int) -> str:
    if not time_ns:
        return ""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
