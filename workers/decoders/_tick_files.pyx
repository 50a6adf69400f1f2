# cython: boundscheck=False, wraparound=False
"""Shells of the kernels for files of ticks that vendors sell or give away: `bi5.h`, `truefx.h`, `lobster.h`.

Such a file is of one instrument and counts from a day or hour that only its name says: whoever opens it
(`tick_files.py`) passes both in. It has no time of receipt: `ts_receive` is 0.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from workers.decoders._decoder cimport *

from shm.errors import BadArgument


cdef extern from "workers/decoders/bi5.h" nogil:
    ctypedef struct bi5_state "struct bi5":
        tk_frames frames
        tk_sink sink
        uint32_t id
        bint candles
        int64_t begin_ns
        double units

    int bi5_run(bi5_state *state)


cdef extern from "workers/decoders/truefx.h" nogil:
    ctypedef struct truefx_state "struct truefx":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        uint32_t id

    int truefx_run(truefx_state *state)


cdef extern from "workers/decoders/lobster.h" nogil:
    ctypedef struct lobster_book "struct lobster_book":
        pass

    ctypedef struct lobster_state "struct lobster":
        tk_frames frames
        tk_sink sink
        uint32_t id
        int64_t midnight_ns
        unsigned levels
        lobster_book *was
        lobster_book *now

    int lobster_run(lobster_state *state)


cdef uint32_t known(NativeDecoder decoder, str symbol) except? 0xFFFFFFFF:
    """The id of the file's instrument; BadArgument if it can't have that name."""
    cdef uint32_t found = decoder.resolve(symbol)
    if found == TK_REFUSED:
        raise BadArgument(f"no instrument can be called {symbol!r}")
    return found


cdef class Bi5Decoder(NativeDecoder):
    """Frames are runs of Dukascopy's ticks, or of its candles of a minute.

    `begin_ns`: the hour of ticks or day of candles; `units`: how many price units make 1.
    """

    NAMES = {0: "tick", 1: "candle"}
    VENUE = b"DUKASCPY"
    cdef bi5_state state

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, symbol, begin_ns, *, units=100_000.0, candles=False, **stamp):
        super().__init__(intern, **stamp)
        self.state.id = known(self, symbol)
        self.state.begin_ns = begin_ns
        self.state.units = units
        self.state.candles = candles

    cdef int run(self) noexcept nogil:
        return bi5_run(&self.state)


cdef class TrueFxDecoder(NativeDecoder):
    """Frames are runs of whole lines. `symbol` is the instrument of lines that name none."""

    NAMES = {0: "quote", 1: "header"}
    cdef truefx_state state

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, symbol, **stamp):
        super().__init__(intern, **stamp)
        self.state.id = known(self, symbol) if symbol else TK_REFUSED

    def __dealloc__(self):
        free(self.state.symbols.entry)

    cdef int run(self) noexcept nogil:
        return truefx_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        return self.learn(&self.state.symbols)


cdef class LobsterDecoder(NativeDecoder):
    """Frames are runs of whole lines, each an event and the book after it. `midnight_ns`: that of the day in New York."""

    NAMES = {
        49: "new order", 50: "reduction", 51: "deletion", 52: "execution", 53: "hidden execution", 54: "cross trade",
        55: "halt",
    }
    VENUE = b"XNAS"
    cdef lobster_state state

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)
        self.state.was = <lobster_book *>calloc(1, sizeof(lobster_book))
        self.state.now = <lobster_book *>calloc(1, sizeof(lobster_book))
        if self.state.was == NULL or self.state.now == NULL:
            raise MemoryError("books of a LOBSTER decoder")

    def __init__(self, intern, symbol, midnight_ns, **stamp):
        super().__init__(intern, **stamp)
        self.state.id = known(self, symbol)
        self.state.midnight_ns = midnight_ns

    def __dealloc__(self):
        free(self.state.was)
        free(self.state.now)

    cdef int run(self) noexcept nogil:
        return lobster_run(&self.state)
