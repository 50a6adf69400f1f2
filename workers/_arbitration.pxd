# The arbiter as other native modules see it; see _arbitration.pyx.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "workers/arbitration.h" nogil:
    enum:
        ARB_LINES
        ARB_JOINED
        ARB_STREAMS
        ARB_KEY_BYTES
        ARB_MOLD
        ARB_IEX_TOPS
        ARB_IEX_DEEP

    ctypedef struct arb_held "struct arb_held":
        uint64_t first

    ctypedef struct arb_stream "struct arb_stream":
        uint8_t *key
        uint64_t expected
        uint64_t join_to
        uint64_t lost_from
        uint64_t lost_to
        uint64_t used
        int64_t hole_since_ns
        arb_held *held
        size_t count
        int over
        int rebase

    ctypedef struct arb_line "struct arb_line":
        uint64_t packets
        uint64_t bytes
        uint64_t messages
        uint64_t duplicates
        uint64_t late
        uint64_t missing
        uint64_t won
        uint64_t refused
        int64_t last_ns

    ctypedef struct arb_frame "struct tk_frame":
        uint64_t offset

    ctypedef struct arbiter_t "struct arbiter":
        int from_start
        uint32_t slots
        uint32_t slot_bytes
        uint32_t held
        uint8_t *arena
        uint32_t *free_slot
        uint32_t free_count
        arb_frame *frame
        uint32_t frames
        arb_stream *stream
        arb_line *line
        uint64_t lost
        uint64_t overflows
        uint64_t sessions_over
        uint64_t reordered
        uint64_t joins
        uint64_t joined
        uint64_t put_off

    bint arb_open(arbiter_t *a, int protocol, uint32_t window, uint32_t batch, uint32_t slot_bytes)
    void arb_close(arbiter_t *a)
    uint8_t *arb_slot(arbiter_t *a, uint32_t slot)
    void arb_give_up(arbiter_t *a, arb_stream *s)
    void arb_offer(arbiter_t *a, unsigned line, uint32_t slot, uint32_t size, int64_t ts_ns, int64_t now_ns)
    void arb_recycle(arbiter_t *a)


cdef class Arbiter:
    cdef arbiter_t state
    cdef object _frames   # FRAME array over state.frame
    cdef Py_ssize_t _shape, _views
