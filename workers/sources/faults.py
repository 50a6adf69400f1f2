"""Faults on purpose: raw messages of a replay lost, doubled, late, out of order or damaged, before they are decoded.

    container --frames--> FaultInjector.apply --frames--> decoder

What happens to a message depends on the seed, the file's place in the replay and the message's number alone: the same
settings give the same faults, however the input is cut, and a killed worker's successor meets them again. Every fault
is counted. Pure: no clock, no I/O. Used by workers/sources/replay.py through `open_capture(faults=...)`; a replay
without the option does not come here.

Messages are what the wire carries: a WebSocket message, a datagram, a line, a DBN record, an ITCH message of a
length-framed file. Notes of a capture about connections and snapshots are left alone.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, fields
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from workers.decoders.protocol import FRAME, NOTE, Batch
from workers.errors import SettingsError
from workers.source import SourceContext

Share = Annotated[float, Meta(ge=0, le=1)]
_DRAWS: Final = 8  # random words a message, whatever becomes of it: drop, double, delay, swap, damage, and how: 3
_UNIT: Final = 2.0**-53
_MAX_FLIPS: Final = 4  # bytes of a damaged message


class FaultOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Option `faults` of source "replay": shares of the messages, 0 to 1."""

    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 1
    drop: Share = 0.0  # it never comes
    duplicate: Share = 0.0  # it comes twice, one behind the other
    delay: Share = 0.0  # it comes `delay_ms` later, behind what came meanwhile; where messages have times of receipt
    delay_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 50.0
    reorder: Share = 0.0  # it changes places with the one after it
    corrupt: Share = 0.0  # one to four of its bytes are others


@dataclass
class FaultCounts:
    """What was done so far."""

    messages: int = 0  # seen
    dropped: int = 0
    duplicated: int = 0
    delayed: int = 0
    reordered: int = 0
    corrupted: int = 0

    def add(self, other: FaultCounts) -> None:
        """The sum of both."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def __str__(self) -> str:
        parts = [f"{getattr(self, one.name):,} {one.name}" for one in fields(self)[1:] if getattr(self, one.name)]
        return f"{', '.join(parts) or 'none'} of {self.messages:,} messages"


class _Message(NamedTuple):
    data: bytes
    port: int
    kind: int
    ts_receive: int


def parse_faults(text: str) -> FaultOptions:
    """`drop=0.01,seed=3` as options. SettingsError names the word that can't be."""
    given: dict[str, object] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or name not in FaultOptions.__struct_fields__:
            known = ", ".join(FaultOptions.__struct_fields__)
            raise SettingsError(f"faults: {word!r}: expected NAME=VALUE, with a name of {known}")
        try:
            given[name] = int(value) if name == "seed" else float(value)
        except ValueError:
            raise SettingsError(f"faults: {word!r}: {value!r} is no number") from None
    try:
        return msgspec.convert(given, FaultOptions)
    except msgspec.ValidationError as error:
        raise SettingsError(f"faults: {error}") from None


class FaultInjector:
    """The faults of one file. `counts` are its own; `stream` tells the files (and passes) of a replay apart."""

    def __init__(self, options: FaultOptions, stream: int = 0) -> None:
        """Nothing has been seen."""
        self.counts = FaultCounts()
        self._options = options
        # `random_raw` is promised to stay as it is in numpy's versions, which the methods of a Generator are not.
        self._bits = np.random.Philox(key=[options.seed, stream])
        self._swapped: _Message | None = None  # waits for the message after it
        self._late: list[tuple[int, int, _Message]] = []  # (due, order, message): a heap
        self._order = 0
        self._delay_ns = round(options.delay_ms * 1e6)

    def apply(self, batch: Batch) -> Batch:
        """See the module. The frames of the batch are one message each."""
        frames = batch.frames.tolist()
        count = len(frames)
        words = self._bits.random_raw(count * _DRAWS).reshape(count, _DRAWS)
        options = self._options
        shares = np.array([options.drop, options.duplicate, options.delay, options.reorder, options.corrupt])
        # Words are compared as fractions of 53 bits, so that a share of 1 is every one and of 0 none.
        hit = ((words[:, :5] >> np.uint64(11)) * _UNIT < shares).tolist()
        out: list[_Message] = []
        buffer = batch.buffer
        for number, (offset, size, port, kind, ts_receive) in enumerate(frames):
            message = _Message(bytes(buffer[offset : offset + size]), port, kind, ts_receive)
            if kind == NOTE:
                self._pass(message, out)
                continue
            self.counts.messages += 1
            drop, duplicate, delay, reorder, corrupt = hit[number]
            if drop:
                self.counts.dropped += 1
                self._release(ts_receive, out)
                continue
            if corrupt and size:
                message = self._damaged(message, words[number, 5:].tolist())
            if delay and ts_receive:
                self.counts.delayed += 1
                self._order += 1
                due_ns = ts_receive + self._delay_ns
                heapq.heappush(self._late, (due_ns, self._order, message._replace(ts_receive=due_ns)))
                self._release(ts_receive, out)
                continue
            if reorder and self._swapped is None:
                self._release(ts_receive, out)
                self._swapped = message
                continue
            self._pass(message, out)
            if duplicate:
                self.counts.duplicated += 1
                out.append(message)
        return _batch(out)

    def finish(self) -> Batch:
        """See `workers.decoders.capture.Faults`."""
        out: list[_Message] = []
        swapped, self._swapped = self._swapped, None
        if swapped is not None:
            out.append(swapped)
        while self._late:
            out.append(heapq.heappop(self._late)[2])
        return _batch(out)

    def _release(self, now_ns: int, out: list[_Message]) -> None:
        """What is late and due comes now."""
        while self._late and self._late[0][0] <= now_ns:
            out.append(heapq.heappop(self._late)[2])

    def _pass(self, message: _Message, out: list[_Message]) -> None:
        """This one comes; the one that it changes places with comes after it, each at the other's time."""
        self._release(message.ts_receive, out)
        swapped, self._swapped = self._swapped, None
        if swapped is None:
            out.append(message)
        elif message.kind == NOTE:
            out += (swapped, message)  # the order of notes and messages is not the wire's
        else:
            self.counts.reordered += 1
            out.append(message._replace(ts_receive=swapped.ts_receive))
            out.append(swapped._replace(ts_receive=message.ts_receive))

    def _damaged(self, message: _Message, words: list[int]) -> _Message:
        self.counts.corrupted += 1
        data = bytearray(message.data)
        flips = 1 + words[0] % _MAX_FLIPS
        for number in range(flips):
            place, by = words[1] >> (16 * number) & 0xFFFF, words[2] >> (8 * number) & 0xFF
            data[(place * len(data)) >> 16] ^= by or 0x80
        return message._replace(data=bytes(data))


def _batch(messages: list[_Message]) -> Batch:
    frames = np.zeros(len(messages), FRAME)
    if messages:
        data, ports, kinds, times = zip(*messages, strict=True)
        sizes = np.fromiter(map(len, data), np.uint64, len(data))
        frames["size"] = sizes
        frames["offset"] = np.cumsum(sizes) - sizes
        frames["port"], frames["reserved"], frames["ts_receive"] = ports, kinds, times
        return Batch(b"".join(data), frames)
    return Batch(b"", frames)


class ReplayFaults:
    """The faults of a whole replay: an injector for each file and pass, and what they have counted, for all to see.

    Counters `faults.FEED.dropped` and so on, FEED being the feed's number, where the worker keeps counters.
    """

    def __init__(self, options: FaultOptions | str, context: SourceContext) -> None:
        """SettingsError: what the text says can't be."""
        self._options = parse_faults(options) if isinstance(options, str) else options
        self._done = FaultCounts()  # of files that have ended
        self._open: list[FaultInjector] = []
        prefix = f"faults.{context.spec.feed_id}"
        make = context.counter
        self._counters = {one.name: make(f"{prefix}.{one.name}") for one in fields(FaultCounts)} if make else {}

    def of_file(self, number: int) -> FaultInjector:
        """For another file; `number` tells files, parts of them and passes apart."""
        self._open.append(FaultInjector(self._options, number))
        return self._open[-1]

    def ended(self, injector: FaultInjector) -> None:
        """That file has ended."""
        self._open.remove(injector)
        self._done.add(injector.counts)
        self.show()

    @property
    def counts(self) -> FaultCounts:
        """What was done so far, in all files."""
        total = FaultCounts()
        for counts in (self._done, *(injector.counts for injector in self._open)):
            total.add(counts)
        return total

    def show(self) -> None:
        """Bring the counters up to date."""
        counts = self.counts
        for name, counter in self._counters.items():
            counter.set(getattr(counts, name))
