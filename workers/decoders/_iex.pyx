# cython: boundscheck=False, wraparound=False
"""Shell of the IEX kernel (`iex.h`): IEX-TP datagrams with TOPS 1.6 or DEEP 1.0 messages in, records out."""

from libc.stdlib cimport free
from workers.decoders._decoder cimport *


cdef extern from "workers/decoders/book.h" nogil:
    ctypedef struct tk_books "struct tk_books":
        pass

    void books_clear(tk_books *books)


cdef extern from "workers/decoders/iex.h" nogil:
    ctypedef struct iex_state "struct iex":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        tk_books books
        int book

    int iex_run(iex_state *state)


cdef class IexDecoder(NativeDecoder):
    """Frames are UDP payloads. Gaps are found per channel and session; the test environment's data carries IEXG too.

    `book`: keep DEEP's price levels and make quotes of the best ones.
    """

    VENUE = b"IEXG"
    cdef iex_state state

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, *, book=False, **stamp):
        super().__init__(intern, **stamp)
        self.state.book = book

    def __dealloc__(self):
        free(self.state.symbols.entry)
        books_clear(&self.state.books)

    cdef int run(self) noexcept nogil:
        return iex_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        return self.learn(&self.state.symbols)
