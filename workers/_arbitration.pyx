# cython: boundscheck=True, wraparound=False
"""Shell of the line arbitration kernel (`arbitration.h`): packets of several lines in, one stream in order out.

`workers/arbitration.py` decides about holes with it; `workers/sources/_multicast.pyx` receives straight into its slots.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.string cimport memcpy
from workers._arbitration cimport *

import numpy as np

from shm.errors import BadArgument
from workers.decoders.protocol import FRAME

MAX_LINES = ARB_LINES - 1  # one more is for answers to re-requests
JOINED = ARB_JOINED  # `reserved` of frames that such an answer brought while its stream joined
PROTOCOLS = {"mold": ARB_MOLD, "iex-tops": ARB_IEX_TOPS, "iex-deep": ARB_IEX_DEEP}


cdef class Arbiter:
    """See the head of arbitration.h. `framing` is a key of PROTOCOLS.

    Sans-I/O: `offer` takes a datagram and the time; `frames` are those to decode now, spans of the buffer that this object
    is (it has the buffer protocol); `recycle` after they have been decoded.
    """

    def __init__(self, str framing, *, int window=4096, int batch=256, int slot_bytes=2048, bint from_start=False):
        if framing not in PROTOCOLS:
            raise BadArgument(f"framing {framing!r}: must be one of {', '.join(PROTOCOLS)}")
        if window < 1 or batch < 1 or slot_bytes < 64:
            raise BadArgument(f"window {window}, batch {batch}, slot_bytes {slot_bytes}: too small")
        if self.state.arena != NULL:
            raise BadArgument("an arbiter is made once")
        if not arb_open(&self.state, PROTOCOLS[framing], window, batch, slot_bytes):
            raise MemoryError(f"{window + batch} slots of {slot_bytes} bytes")
        self.state.from_start = from_start
        view = <char[: self.state.slots * sizeof(arb_frame)]> <char *>self.state.frame
        self._frames = np.frombuffer(view, FRAME)

    def __dealloc__(self):
        arb_close(&self.state)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.state.arena, <Py_ssize_t>self.state.slots * self.state.slot_bytes, 1, flags)

    def offer(self, int line, const uint8_t[::1] datagram not None, int64_t ts_receive, int64_t now_ns):
        """Takes one datagram of line `line`; times in ns. BadArgument if there is no room: recycle first, or too long."""
        cdef uint32_t size = <uint32_t>datagram.shape[0], slot
        if not 0 <= line < ARB_LINES:
            raise BadArgument(f"line {line}: there are {ARB_LINES}")
        if datagram.shape[0] > self.state.slot_bytes:
            raise BadArgument(f"a datagram of {datagram.shape[0]} bytes; slots have {self.state.slot_bytes}")
        if not self.state.free_count:
            raise BadArgument("no slot is free: decode and recycle first")
        self.state.free_count -= 1
        slot = self.state.free_slot[self.state.free_count]
        if size:
            memcpy(arb_slot(&self.state, slot), &datagram[0], size)
        arb_offer(&self.state, <unsigned>line, slot, size, ts_receive, now_ns)

    @property
    def frames(self):
        """What is to be decoded now, dtype FRAME; valid until `recycle`."""
        return self._frames[: self.state.frames]

    def recycle(self):
        """What `frames` gave has been decoded: its slots are free."""
        arb_recycle(&self.state)

    @property
    def free_slots(self):
        """How many datagrams can be taken before `recycle`; at least `batch` after it."""
        return self.state.free_count

    @property
    def held(self):
        """Packets that wait behind holes."""
        return self.state.held

    def holes(self):
        """The first hole of each stream that has one: (stream, key, first, end, since_ns); messages [first, end)."""
        found = []
        cdef int i
        if self.state.held:
            for i in range(ARB_STREAMS):
                s = &self.state.stream[i]
                if s.count:
                    key = (<const char *>s.key)[:ARB_KEY_BYTES]
                    found.append((i, key, s.expected, s.held[0].first, s.hole_since_ns))
        return found

    def give_up(self, int stream):
        """The first hole of that stream is lost: what waits behind it is handed on."""
        if not 0 <= stream < ARB_STREAMS:
            raise BadArgument(f"stream {stream}: there are {ARB_STREAMS}")
        arb_give_up(&self.state, &self.state.stream[stream])

    def rebase(self):
        """Whatever comes next is taken at once, wherever it begins: what lies between is lost and nobody waits for it."""
        cdef int i
        for i in range(ARB_STREAMS):
            if self.state.stream[i].used:
                self.state.stream[i].rebase = True

    def position(self):
        """(key, number of the next message) of the stream that had a packet last; (b"", 0) before the first."""
        cdef int i, newest = 0
        for i in range(1, ARB_STREAMS):
            if self.state.stream[i].used > self.state.stream[newest].used:
                newest = i
        s = &self.state.stream[newest]
        return ((<const char *>s.key)[:ARB_KEY_BYTES], s.expected) if s.used else (b"", 0)

    def line(self, int line):
        """Counters of a line by name; `last_ns` is its last packet's time of receipt."""
        if not 0 <= line < ARB_LINES:
            raise BadArgument(f"line {line}: there are {ARB_LINES}")
        return self.state.line[line]

    @property
    def joining(self):
        """How many messages of streams that were met late are still to come."""
        cdef int i
        cdef uint64_t total = 0
        for i in range(ARB_STREAMS):
            s = &self.state.stream[i]
            if s.used and s.join_to > s.expected:
                total += s.join_to - s.expected
        return total

    @property
    def joins(self):
        """Streams that were met late, and wanted from their start."""
        return self.state.joins

    @property
    def joined(self):
        """Messages of such streams that were asked for and came."""
        return self.state.joined

    @property
    def put_off(self):
        """Packets that found the window full meanwhile: asked for later."""
        return self.state.put_off

    @property
    def lost(self):
        """Messages given up so far."""
        return self.state.lost

    @property
    def overflows(self):
        """How often a hole was given up because the window was full."""
        return self.state.overflows

    @property
    def sessions_over(self):
        """Sessions that said that they are over."""
        return self.state.sessions_over

    @property
    def bytes_received(self):
        """Bytes of all datagrams so far."""
        cdef uint64_t total = 0
        cdef int i
        for i in range(ARB_LINES):
            total += self.state.line[i].bytes
        return total

    @property
    def refused(self):
        """Datagrams that are none of this protocol, or were cut off."""
        cdef uint64_t total = 0
        cdef int i
        for i in range(ARB_LINES):
            total += self.state.line[i].refused
        return total
