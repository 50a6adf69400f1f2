# cython: boundscheck=False, wraparound=False
"""FIX natively: `FixReader` cuts a byte stream or a log into messages, `FixDecoder` is the shell of the kernel `fix.h`.

The reader judges length and checksum; what is garbled is counted and passed over, as FIX asks, and the next message is looked
for. In a log, what stands before a message in its line may be its time. Beside the frames it gives what a session must
know of each message (`workers.decoders.fix_log.HEAD`).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memchr, memset
from workers.decoders._decoder cimport *

import numpy as np

from workers.decoders.fix_log import HEAD, OPEN_END, TIME_BYTES, line_time, separator_of
from workers.decoders.protocol import FRAME, Batch


cdef extern from "workers/decoders/fix_wire.h" nogil:
    ctypedef struct fix_head "struct fix_head":
        pass

    enum:
        FIX_WHOLE
        FIX_PARTIAL
        FIX_NOT_HERE
        FIX_LENGTH
        FIX_CHECKSUM

    int fix_cut(const uint8_t *p, const uint8_t *end, size_t limit, size_t *size, fix_head *head)
    int64_t fix_timestamp(const uint8_t *p, size_t size)


cdef extern from "workers/decoders/fix.h" nogil:
    ctypedef struct fix_entry "struct fix_entry":
        pass

    ctypedef struct fix_message "struct fix_message":
        fix_entry *entry
        int alone

    ctypedef struct fix_books "struct fix_books":
        pass

    enum:
        FIX_WANTS_QUOTE
        FIX_WANTS_TRADE
        FIX_WANTS_LEVEL2

    ctypedef struct fix_state "struct fix":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        tk_symbols requests
        fix_books session[64]
        size_t sessions
        fix_message message
        uint32_t *touched
        int wants
        int top

    int fix_run(fix_state *state)
    void fix_doubt(fix_state *state)
    void fix_books_clear(fix_books *books)


def parse_timestamp(const uint8_t[::1] text not None):
    """ns since the epoch of a UTCTimestamp; ValueError if it is none."""
    cdef int64_t ts = fix_timestamp(&text[0], text.shape[0]) if text.shape[0] else -1
    if ts < 0:
        raise ValueError("not a UTC timestamp")
    return ts


cdef class FixReader:
    """Cuts a stream into messages (`workers.decoders.protocol.Container`). `heads`: of the batch given last.

    `max_message_bytes`: longer ones are garbled. `log`: a recording, in which lines may begin with a time and the separator
    may be `|` or `^A`; otherwise a socket's bytes, stamped with `feed`'s `ts_receive`.
    """

    cdef bytes _rest
    cdef size_t _limit
    cdef bint _log
    cdef bytes _separator
    cdef public object heads
    cdef readonly uint64_t garbled_length, garbled_checksum, junk_bytes, messages

    def __init__(self, max_message_bytes=1 << 20, *, log=False):
        self._rest = b""
        self._limit = max_message_bytes
        self._log = log
        self._separator = b"" if log else b"\x01"
        self.heads = np.zeros(0, HEAD)

    @property
    def error(self):
        """Nothing on the wire ends it."""
        return None

    @property
    def garbled(self):
        """Messages passed over because of their length or checksum."""
        return self.garbled_length + self.garbled_checksum

    def counts(self):
        """What was passed over."""
        found = {"garbled messages (length)": self.garbled_length, "garbled messages (checksum)": self.garbled_checksum,
                 "bytes between messages": 0 if self._log else self.junk_bytes}
        return {name: count for name, count in found.items() if count}

    @property
    def unfinished(self):
        """Bytes at the end of what was fed that are no message yet, and no garbage either."""
        return len(self._rest)

    def finish(self):
        """Bytes of an unfinished message."""
        return len(self._rest) if self._rest.startswith(b"8=FIX") else 0

    def clear(self):
        """The stream begins anew: what was unfinished is dropped."""
        self._rest = b""

    def feed(self, bytes data not None, int64_t ts_receive=0):
        """Messages that are whole now."""
        cdef bytes buffer = self._rest + data if self._rest else data
        if self._log:
            buffer = self._plain(buffer)
        cdef size_t total = len(buffer)
        if not total:
            self.heads = np.zeros(0, HEAD)
            return Batch(b"", np.zeros(0, FRAME))
        cdef const uint8_t *base = <const uint8_t *><const char *>buffer
        cdef size_t most = buffer.count(b"8=FIX") + 1
        frames = np.zeros(most, FRAME)
        heads = np.zeros(most, HEAD)
        cdef uint8_t[::1] raw = frames.view("u1"), raw_heads = heads.view("u1")
        cdef tk_frame *out = <tk_frame *>&raw[0]
        cdef fix_head *head = <fix_head *>&raw_heads[0]
        cdef size_t at = 0, next_at, size = 0, written = 0, begun = 0, line
        cdef int found
        cdef int64_t ts = ts_receive
        with nogil:
            while at < total:
                found = fix_cut(base + at, base + total, self._limit, &size, &head[written])
                if found == FIX_WHOLE:
                    if self._log:
                        with gil:
                            ts = self._time(buffer, begun, at)
                    out[written].offset = at
                    out[written].size = <uint32_t>size
                    out[written].ts_receive = ts
                    written += 1
                    at += size
                    begun = at
                elif found == FIX_PARTIAL:
                    next_at = self._swallowed(base, at, total)
                    if next_at == total:
                        break
                    self.garbled_length += 1
                    self.junk_bytes += next_at - at
                    at = next_at
                elif found == FIX_CHECKSUM:
                    self.garbled_checksum += 1
                    at += size
                    begun = at
                else:
                    if found == FIX_LENGTH:
                        self.garbled_length += 1
                    next_at = _seek(base, at + 1, total)
                    self.junk_bytes += next_at - at
                    at = next_at
        memset(&head[written], 0, (most - written) * sizeof(fix_head))
        self.messages += written
        # In a log the line of an unfinished message goes with it, for its time.
        if self._log and at > begun:
            line = <size_t>(buffer.rfind(b"\n", begun, at) + 1)
            if at - max(line, begun) <= TIME_BYTES:
                at = max(line, begun)
        self._rest = buffer[at:]
        self.heads = heads[:written]
        return Batch(buffer, frames[:written])

    cdef size_t _swallowed(self, const uint8_t *base, size_t at, size_t total) noexcept nogil:
        """Where a whole message stands behind one that lacks bytes, which therefore has a wrong length; `total` = nowhere."""
        cdef fix_head head
        cdef size_t size
        at = _seek(base, at + 1, total)
        while at < total:
            if fix_cut(base + at, base + total, self._limit, &size, &head) == FIX_WHOLE:
                return at
            at = _seek(base, at + 1, total)
        return total

    cdef int64_t _time(self, bytes buffer, size_t begun, size_t at) except? -1:
        cdef size_t line = <size_t>(buffer.rfind(b"\n", begun, at) + 1)
        return line_time(buffer[max(line, begun):at]) if at > max(line, begun) else 0

    cdef bytes _plain(self, bytes buffer):
        """The text with SOH between fields and at the end, however the log writes that."""
        if not self._separator:
            self._separator = separator_of(buffer) or b""
        if len(self._separator) and self._separator != b"\x01":
            buffer = buffer.replace(self._separator, b"\x01")
        return OPEN_END.sub(b"\\1\x01", buffer)


cdef size_t _seek(const uint8_t *base, size_t at, size_t total) noexcept nogil:
    """Where "8=FIX" may begin, from `at` on; `total` if it does not."""
    cdef const uint8_t *found
    cdef size_t i
    while at < total:
        found = <const uint8_t *>memchr(base + at, 56, total - at)
        if found == NULL:
            return total
        at = found - base
        i = 0
        while i < 5 and at + i < total and base[at + i] == <uint8_t>(b"8=FIX"[i]):
            i += 1
        if i == 5 or at + i == total:
            return at
        at += 1
    return total


cdef class FixDecoder(NativeDecoder):
    """Frames are whole messages. `wants`: of quote, trade and level2, those to make; `top`: one entry a side;
    `alone`: all messages are of one session, that of a connection.
    """

    VENUE = b"FIX"
    cdef fix_state state

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, *, wants=("quote", "trade", "level2"), top=False, alone=False, **stamp):
        super().__init__(intern, **stamp)
        bits = {"quote": FIX_WANTS_QUOTE, "trade": FIX_WANTS_TRADE, "level2": FIX_WANTS_LEVEL2}
        self.state.wants = sum(bits[name] for name in set(wants))
        self.state.top = top
        self.state.message.alone = alone

    def __dealloc__(self):
        free(self.state.symbols.entry)
        free(self.state.requests.entry)
        free(self.state.message.entry)
        free(self.state.touched)
        cdef size_t i
        for i in range(self.state.sessions):
            fix_books_clear(&self.state.session[i])

    cdef int run(self) noexcept nogil:
        return fix_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        return self.learn(&self.state.symbols)

    def request(self, bytes number not None, str symbol not None):
        """With `alone`: MDReqID (or QuoteSetID) `number` is of this symbol, where messages do not say. False: it can't be."""
        cdef uint64_t key[4]
        cdef tk_symbol *found
        cdef uint32_t instrument = self.resolve(symbol)
        if instrument == TK_REFUSED or not symbols_key(key, <const uint8_t *><const char *>number, len(number)):
            return False
        found = symbols_find(&self.state.requests, key)
        if found != NULL:
            found.id = instrument
        elif not symbols_add(&self.state.requests, key, instrument):
            raise MemoryError("requests of a decoder")
        return True

    def doubt(self):
        """Something was missed: books may be wrong until their next snapshots, and their records are flagged INCOMPLETE."""
        fix_doubt(&self.state)
