"""Packets of several lines in one capture, decoded as a live feed does it: the first copy wins, holes wait for another.

    frames, whichever line brought them --> Arbiter, holes by the packets' own times --> decoder --> records

A decoder alone drops copies, too, but takes a packet that one line lost for missing although the other line's copy
comes a moment later. With this it waits `gap_wait_ms` of capture time, as source "multicast" does, so a capture of
lines A and B gives the records that the feed gave. Used by `capture` where its option `arbitrate` says so: every packet
of the file must be of the same stream. Sans-I/O.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from workers._arbitration import Arbiter
from workers.arbitration import HolePolicy, Recovery
from workers.decoders.frame_queue import FrameQueue
from workers.decoders.protocol import Counters

SLOT_BYTES: Final = 9216  # a jumbo frame; longer datagrams are refused and counted
WINDOW: Final = 4096  # packets that may wait behind holes, as source "multicast" has it
_BATCH: Final = 256
_IEX_TOPS: Final = b"\x03\x80"


class ArbitratedDecoder(FrameQueue):
    """A `Decoder` before a `Decoder`. `protocol` is "itch" or "iex", as `capture` calls them."""

    def __init__(self, decoder: Any, protocol: str, gap_wait_ms: float) -> None:
        """Takes the decoder over."""
        super().__init__()
        self._decoder = decoder
        self._protocol = protocol
        self._policy = HolePolicy(gap_wait_ns=round(gap_wait_ms * 1e6))
        self._arbiter: Arbiter | None = None  # made when the first packet says which of IEX's protocols it is
        self._recovery: Recovery
        self._now_ns = 0
        self._too_long = 0

    def decode(self, out: np.ndarray) -> int:
        """See `Decoder.decode`."""
        filled = 0
        while filled < len(out):
            got = self._decoder.decode(out[filled:])
            filled += got
            if not got and not self._advance():
                break
        return filled

    def finish(self) -> None:
        """The capture is over: what waits behind holes is handed on, what is missing is missing."""
        if self._arbiter is None:
            return
        self._arbiter.recycle()
        while self._arbiter.held:
            for stream, *_ in self._arbiter.holes():
                self._arbiter.give_up(stream)
        self._decoder.feed(self._arbiter, self._arbiter.frames)

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`; copies that did not win are duplicates, strangers malformed."""
        counters: Counters = self._decoder.counters
        if self._arbiter is not None:
            line = self._arbiter.line(0)
            counters.duplicates += line["duplicates"] + line["late"]
            refused = self._arbiter.refused + self._too_long
            if refused:
                counters.malformed["refused"] = counters.malformed.get("refused", 0) + refused
        return counters

    def _advance(self) -> bool:
        """The next frames that are in order; False = all that were fed are done with."""
        arbiter = self._arbiter
        if arbiter is not None:
            arbiter.recycle()
        while (head := self._head()) is not None and (arbiter is None or arbiter.free_slots):
            data = self._pop()
            if arbiter is None:
                arbiter = self._arbiter = self._open(data)
            if head.size > SLOT_BYTES:
                self._too_long += 1
                continue
            self._now_ns = max(self._now_ns, head.ts_receive)
            if arbiter.held:  # the time has come before the packet has
                self._recovery.step(self._now_ns)
            arbiter.offer(0, data, head.ts_receive, self._now_ns)
        if arbiter is None or not len(arbiter.frames):
            return False
        self._decoder.feed(arbiter, arbiter.frames)
        return True

    def _open(self, first: bytes) -> Arbiter:
        framing = "mold" if self._protocol == "itch" else "iex-tops" if first[2:4] == _IEX_TOPS else "iex-deep"
        arbiter = Arbiter(framing, window=WINDOW, batch=_BATCH, slot_bytes=SLOT_BYTES)
        self._recovery = Recovery(arbiter, self._policy)
        return arbiter
