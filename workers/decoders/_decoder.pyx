# cython: boundscheck=True, wraparound=False
"""The shell around every native kernel: batches in, records out, symbols resolved, counters read.

A kernel (a C header of this folder) runs without the GIL until its frames are used up, the caller's array is full, or it
needs Python; `decode` answers that and lets it go on from the same place. The kernels check every length themselves.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from workers.decoders._decoder cimport *

from shm.errors import BadArgument, ShmFull
from shm.layout import TYPE_NAMES, Source
from workers.decoders.protocol import FRAME, Counters, Gap, clean_symbol

REASONS = tuple(tk_reason_names[i].decode() for i in range(TK_REASONS))


cdef class NativeDecoder:
    """Base of the native decoders (`workers.decoders.protocol.Decoder`).

    `intern(symbol) -> id` is called once for each symbol; a symbol that it refuses (BadArgument, ShmFull, ValueError) is
    counted with each of its messages. `source`, `feed_id`, `flags` and `venue` stand on every record.
    """

    NAMES = None  # names of the message types by code; None = the code is the venue's type letter
    VENUE = b""

    def __init__(self, intern, *, source=Source.UNKNOWN, feed_id=0, flags=0, venue=None):
        cdef bytes code = (self.VENUE if venue is None else venue)[:8]
        self._intern = intern
        self.sink.source = source
        self.sink.feed_id = feed_id
        self.sink.flags = flags
        memset(self.sink.venue, 0, 8)
        memcpy(self.sink.venue, <const char *>code, len(code))

    def __dealloc__(self):
        if self.sink != NULL:
            free(self.sink.spare)

    cdef void attach(self, tk_sink *sink, tk_frames *frames):
        self.sink = sink
        self.frames = frames
        sink.counts = &self.counts
        self.counts.first_ns = 0x7FFFFFFFFFFFFFFF
        self.counts.last_ns = -0x7FFFFFFFFFFFFFFF

    cdef int run(self) noexcept nogil:
        return TK_DONE

    cdef int stopped(self, int stop) except -1:
        raise RuntimeError(f"kernel stopped for a reason that {type(self).__name__} does not know: {stop}")

    cdef uint32_t resolve(self, str symbol) except? 0xFFFFFFFF:
        cdef str name = clean_symbol(symbol)
        if not name or not name.isprintable() or "\ufffd" in name:
            return TK_REFUSED
        try:
            return self._intern(name)
        except (BadArgument, ShmFull, ValueError):
            return TK_REFUSED

    cdef int learn(self, tk_symbols *symbols) except -1:
        """Resolves the key that the kernel missed."""
        cdef bytes key = (<const char *>symbols.missed)[:32]
        cdef uint32_t number = self.resolve(key.rstrip(b"\0").decode("utf-8", "replace"))
        if not symbols_add(symbols, symbols.missed, number):
            raise MemoryError("symbol table of a decoder")
        return 0

    cdef void skip_frame(self) noexcept:
        self.frames.index += 1
        self.frames.at = 0
        self.frames.begun = 0

    def feed(self, buffer, frames):
        """Takes a batch: `frames` (dtype FRAME) are spans of `buffer`. Call decode() until it returns 0 before the next."""
        self._idle()
        if frames.dtype != FRAME:
            raise BadArgument(f"frames must have dtype FRAME, not {frames.dtype}")
        self._data = buffer
        self._spans = frames.view("u1")
        self.frames.data = &self._data[0] if self._data.shape[0] else NULL
        self.frames.size = self._data.shape[0]
        self.frames.frame = <const tk_frame *>&self._spans[0] if self._spans.shape[0] else NULL
        self.frames.count = self._spans.shape[0] // sizeof(tk_frame)
        self.frames.index = self.frames.at = self.frames.begun = 0

    def feed_message(self, const uint8_t[::1] message not None, int64_t ts_receive, int port=0):
        """Takes one datagram or text message as a live source has it: `feed` of a single frame, without an array for it."""
        self._idle()
        self._data = message
        self._one.offset = 0
        self._one.size = <uint32_t>message.shape[0]
        self._one.port = <uint16_t>port
        self._one.ts_receive = ts_receive
        self.frames.data = &message[0] if message.shape[0] else NULL
        self.frames.size = message.shape[0]
        self.frames.frame = &self._one
        self.frames.count = 1
        self.frames.index = self.frames.at = self.frames.begun = 0

    cdef int _idle(self) except -1:
        if self.frames.index < self.frames.count or self.sink.spare_count:
            raise RuntimeError("feed() before decode() has returned 0")
        return 0

    def decode(self, out):
        """Fills `out` (dtype RECORD, C-contiguous) from its front; returns the count, 0 = every frame is done with."""
        cdef Py_buffer view
        cdef int stop
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        try:
            if view.len % 128 or not view.len:
                raise BadArgument(f"out must be an array of one or more 128-byte records, not {view.len} bytes")
            self.sink.out = <tk_record *>view.buf
            self.sink.count = 0
            self.sink.capacity = view.len // 128
            sink_drain(self.sink)
            while not sink_full(self.sink):
                with nogil:
                    stop = self.run()
                if stop == TK_DONE or stop == TK_FULL:
                    break
                self.stopped(stop)
            return self.sink.count
        finally:
            self.sink.out = NULL
            self.sink.capacity = 0
            PyBuffer_Release(&view)

    @property
    def records(self):
        """Records made so far; cheaper than `counters`."""
        cdef uint64_t total = 0
        cdef int i
        for i in range(8):
            total += self.counts.records[i]
        return total

    @property
    def errors(self):
        """Malformed messages so far."""
        cdef uint64_t total = 0
        cdef int i
        for i in range(TK_REASONS):
            total += self.counts.malformed[i]
        return total

    @property
    def gaps(self):
        """Gaps so far."""
        return self.counts.gaps

    @property
    def counters(self):
        """Snapshot of everything counted (`workers.decoders.protocol.Counters`)."""
        cdef tk_counts *counts = &self.counts
        cdef int i, kept = min(counts.gaps, TK_GAPS_KEPT)
        names = self.NAMES
        messages = {}
        for i in range(256):
            if counts.messages[i]:
                if names is None:
                    name = chr(i) if 32 < i < 127 else f"0x{i:02x}"
                else:
                    name = names.get(i, f"0x{i:02x}")
                messages[name] = counts.messages[i]
        seen = counts.first_ns <= counts.last_ns
        return Counters(
            messages=messages,
            records={TYPE_NAMES[i]: counts.records[i] for i in range(8) if counts.records[i]},
            malformed={REASONS[i]: counts.malformed[i] for i in range(TK_REASONS) if counts.malformed[i]},
            frames=counts.frames,
            bytes=counts.bytes,
            heartbeats=counts.heartbeats,
            duplicates=counts.duplicates,
            gaps=counts.gaps,
            missing=counts.missing,
            gap_ranges=[Gap(counts.gap[i].stream, counts.gap[i].first, counts.gap[i].last) for i in range(kept)],
            first_ns=counts.first_ns if seen else 0,
            last_ns=counts.last_ns if seen else 0,
        )


cdef tk_symbol *find_symbol(NativeDecoder decoder, tk_symbols *symbols, str name) except? NULL:
    """For decoders that meet symbols as text: the entry of one, learned if new; NULL = refused, and counted."""
    cdef bytes text = name.encode()
    cdef uint64_t key[4]
    cdef tk_symbol *symbol = NULL
    if symbols_key(key, <const uint8_t *><const char *>text, len(text)):
        symbol = symbols_find(symbols, key)
        if symbol == NULL:
            decoder.learn(symbols)
            symbol = symbols_find(symbols, key)
    if symbol == NULL or symbol.id == TK_REFUSED:
        decoder.counts.malformed[TK_BAD_SYMBOL] += 1
        return NULL
    return symbol
