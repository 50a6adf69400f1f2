# cython: boundscheck=False, wraparound=False
"""Shell of the Cboe PITCH kernel (`pitch.h`): multicast datagrams in, records out. `capture` makes it."""

from libc.stdlib cimport free
from workers.decoders._decoder cimport *

from workers.decoders._itch import midnight_ns


cdef extern from "workers/decoders/orders.h" nogil:
    ctypedef struct tk_order "struct tk_order":
        pass

    ctypedef struct tk_orders "struct tk_orders":
        tk_order *entry
        size_t count
        size_t limit


cdef extern from "workers/decoders/book.h" nogil:
    ctypedef struct tk_books "struct tk_books":
        pass

    void books_clear(tk_books *books)


cdef extern from "workers/decoders/pitch.h" nogil:
    enum:
        PITCH_OSI_BYTES

    ctypedef struct pitch_state "struct pitch":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        tk_orders orders
        tk_books books
        int book
        int fixed_day
        int64_t midnight_ns
        uint8_t *mapped_name

    int pitch_run(pitch_state *state)
    int pitch_map(pitch_state *state, uint32_t instrument_id)
    int pitch_recognise(const uint8_t *payload, size_t size)


cdef class PitchDecoder(NativeDecoder):
    """Frames are datagrams of one exchange, each a unit header and messages.

    `session_date` (datetime.date): whole seconds count from New York's midnight of that day; without it from the midnight that
    the receive time tells, and where that is unknown (0, or in January 1970) from 1970-01-01 UTC. `max_orders` bounds
    the live orders kept. `book`: keep order books and make quotes of their best prices.
    """

    NAMES = {
        0x20: "time", 0x21: "add order long", 0x22: "add order short", 0x23: "order executed",
        0x24: "order executed at price", 0x25: "reduce size long", 0x26: "reduce size short",
        0x27: "modify order long", 0x28: "modify order short", 0x29: "delete order", 0x2A: "trade long",
        0x2B: "trade short", 0x2C: "trade break", 0x2D: "end of session", 0x2E: "symbol mapping",
        0x2F: "add order expanded", 0x30: "trade expanded", 0x31: "trading status", 0x95: "auction update",
        0x96: "auction summary", 0x97: "unit clear", 0x98: "retail price improvement",
    }  # fmt: skip
    VENUE = b"CBOE"
    cdef pitch_state state

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, *, session_date=None, max_orders=1 << 27, book=False, **stamp):
        super().__init__(intern, **stamp)
        self.state.book = book
        self.state.orders.limit = max_orders
        if session_date is not None:
            self.state.fixed_day = True
            self.state.midnight_ns = midnight_ns(session_date)

    def __dealloc__(self):
        free(self.state.symbols.entry)
        free(self.state.orders.entry)
        books_clear(&self.state.books)

    @property
    def live_orders(self):
        """Orders added and not yet gone."""
        return self.state.orders.count

    cdef int run(self) noexcept nogil:
        return pitch_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        if stop == TK_MISS:
            return self.learn(&self.state.symbols)
        cdef bytes name = (<const char *>self.state.mapped_name)[:PITCH_OSI_BYTES]
        if not pitch_map(&self.state, self.resolve(name.decode("utf-8", "replace"))):
            raise MemoryError("symbol table of a decoder")
        return 0


def is_pitch(const uint8_t[::1] payload not None):
    """Is this datagram PITCH that tells of orders or trades, to the last byte? Heartbeats and times alone are not."""
    return payload.shape[0] > 0 and pitch_recognise(&payload[0], payload.shape[0]) != 0
