# cython: boundscheck=False, wraparound=False
"""Shell of the ITCH kernel (`itch.h`): MoldUDP64 packets, or runs of length-framed messages, in; records out."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.stdlib cimport free
from workers.decoders._decoder cimport *


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


cdef extern from "workers/decoders/itch.h" nogil:
    enum:
        ITCH_UNKNOWN_LOCATE

    ctypedef struct itch_state "struct itch":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        tk_orders orders
        tk_books books
        int book
        int packets
        int fixed_day
        int64_t midnight_ns
        int64_t day_from_ns
        int64_t day_last_ns
        uint32_t locate[65536]

    int itch_run(itch_state *state)
    unsigned itch_length(uint8_t type)


DAY_NS = 86_400_000_000_000
LATEST_NS = 9_200_000_000_000_000_000  # 2261: int64 ns end the year after


def midnight_ns(day):
    """Midnight of a session day in New York, ns since the epoch: what an ITCH time counts from."""
    return int(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo("America/New_York")).timestamp()) * 1_000_000_000


cdef class ItchDecoder(NativeDecoder):
    """`packets`: frames are MoldUDP64 packets; else each is a run of 2-byte length-framed messages.

    ITCH times count from midnight in New York. `session_date` (datetime.date) says of which day; without it the day is
    that of each frame's receive time, and where that is unknown (0, or in January 1970, as captures without a clock
    have it) times stay ns since midnight, that is on 1970-01-01 UTC. `max_orders` bounds the live orders kept.
    `book`: keep order books and make quotes of their best prices.
    """

    VENUE = b"XNAS"
    cdef itch_state state

    def __cinit__(self, *args, **kwargs):
        cdef int i
        self.attach(&self.state.sink, &self.state.frames)
        for i in range(65536):
            self.state.locate[i] = ITCH_UNKNOWN_LOCATE

    def __init__(self, intern, *, packets=True, session_date=None, max_orders=1 << 27, book=False, **stamp):
        super().__init__(intern, **stamp)
        self.state.packets = packets
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
        return itch_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        if stop == TK_MISS:
            return self.learn(&self.state.symbols)
        cdef int64_t ts_receive = self.state.frames.frame[self.state.frames.index].ts_receive
        if ts_receive < 31 * DAY_NS or ts_receive > LATEST_NS:  # no clock that could be believed
            self.state.midnight_ns = 0
            self.state.day_from_ns = INT64_MIN if ts_receive < 31 * DAY_NS else LATEST_NS + 1
            self.state.day_last_ns = 31 * DAY_NS - 1 if ts_receive < 31 * DAY_NS else INT64_MAX
            return 0
        day = datetime.fromtimestamp(ts_receive // 1_000_000_000, ZoneInfo("America/New_York")).date()
        self.state.midnight_ns = self.state.day_from_ns = midnight_ns(day)
        self.state.day_last_ns = midnight_ns(day + timedelta(days=1)) - 1
        return 0


def message_length(int message_type):
    """Bytes of an ITCH 5.0 message of that type, its type byte included; 0 = there is no such type."""
    return itch_length(<uint8_t>message_type)
