# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The writer of the latest-value table as a C type: what `workers.cache` drives. The work is in workers/cache.h (records to
values and bars) and shm/latest_writer.h (values to shared memory); nothing here stores to shared memory but through them."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shm._latest import check_table
from shm.errors import BadArgument


cdef extern from "workers/cache.h" nogil:
    ctypedef struct tk_word:
        pass

    cdef struct tk_latest_header:
        tk_word complete[16]
        tk_word late_trades
        tk_word lost_trades
        tk_word bars

    cdef struct tk_latest:
        tk_latest_header *header
        uint32_t intervals

    cdef struct tk_latest_writer:
        tk_latest table
        uint64_t records_applied
        uint64_t records_skipped
        uint64_t l1_no_room
        uint64_t not_kept
        uint64_t instruments_seen

    cdef struct tk_bars_out:
        uint32_t count
        uint32_t capacity

    cdef struct tk_clocks:
        uint64_t future_times

    cdef struct tk_cache:
        tk_clocks clocks
        tk_latest_writer writer
        tk_bars_out out
        uint64_t late_trades
        uint64_t lost_trades
        uint64_t bad_prices
        uint64_t bars

    int TK_RECORD_BYTES
    int TK_LATEST_RINGS
    uint64_t tk_load_relaxed(const tk_word *)
    void tk_store_relaxed(tk_word *, uint64_t)
    int tk_cache_open(tk_cache *, void *, uint64_t, uint32_t, int, int64_t, int)
    void tk_cache_close_all(tk_cache *)
    uint64_t tk_cache_apply(tk_cache *, int, const char *, uint64_t, uint64_t)
    void tk_cache_gap(tk_cache *, int)
    int tk_cache_close_due(tk_cache *, int64_t, int)
    void tk_cache_forget(tk_cache *, int)
    uint32_t tk_cache_activity(const tk_cache *, uint32_t, int64_t *, uint64_t *, double *, double *)
    uint32_t tk_cache_records(const tk_cache *, char *, uint32_t, uint32_t)
    void tk_commit(tk_latest_writer *)
    void tk_complete(tk_latest_writer *, int, uint64_t)


cdef class Applier:
    """Applies batches to a table that is mapped writable. One a table: the caller holds the table's writer lock.

    Order of one turn: `apply`; publish `take_bars` and apply them as records of the bar ring; `commit`; `set_complete`.
    """

    cdef tk_cache _cache
    cdef Py_buffer _view
    cdef bint _open

    def __cinit__(self):
        self._open = False

    def __init__(self, buffer, *, pid, bar_ring_id, grace_ns, bars_capacity=4096, exclude_outliers=False):
        """Take over the table in `buffer`. `bars_capacity` >= 64 bars between two calls of `take_bars`.

        Raises:
            LayoutMismatch: it is no table of this build.
            MemoryError: no room for the private states (a table's entries once more).
        """
        if bars_capacity < 64:
            raise BadArgument(f"bars_capacity is {bars_capacity}, must be at least 64")
        check_table("given", buffer)
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if tk_cache_open(&self._cache, self._view.buf, pid, bars_capacity, bar_ring_id, grace_ns, exclude_outliers) != 0:
            PyBuffer_Release(&self._view)
            raise MemoryError("no memory for the private states of the latest table")
        self._open = True

    def __dealloc__(self):
        self.close()

    cpdef close(self):
        """Let go of the table, with whatever was not committed. Safe to call twice."""
        if self._open:
            self._open = False
            tk_cache_close_all(&self._cache)
            PyBuffer_Release(&self._view)

    cdef int _ring(self, ring_id) except -1:
        if not self._open:
            raise BadArgument("this applier is closed")
        if not 0 <= ring_id < TK_LATEST_RINGS:
            raise BadArgument(f"ring_id is {ring_id}, must be 0 to {TK_LATEST_RINGS - 1}")
        return ring_id

    def apply(self, ring_id, records, Py_ssize_t begin, Py_ssize_t end):
        """Apply records[begin:end] (dtype RECORD, C-contiguous) of a ring, in order. Returns where it stopped.

        Less than `end`: publish the bars and commit, then call again from there. The GIL is released.
        """
        cdef Py_buffer view
        cdef int ring = self._ring(ring_id)
        cdef uint64_t stopped
        PyObject_GetBuffer(records, &view, PyBUF_SIMPLE)
        try:
            if not 0 <= begin <= end <= view.len // TK_RECORD_BYTES or <uint64_t>view.buf % 8:
                raise BadArgument(f"records {begin} to {end} of {view.len // TK_RECORD_BYTES}, which must be 8-byte aligned")
            with nogil:
                stopped = tk_cache_apply(&self._cache, ring, <const char *>view.buf, begin, end)
        finally:
            PyBuffer_Release(&view)
        return stopped

    @property
    def bar_count(self):
        """Finished bars that wait for `take_bars`."""
        return self._cache.out.count

    def take_bars(self, out):
        """Move up to len(out) finished bars into `out` (dtype RECORD); all of them must fit. Returns how many."""
        cdef Py_buffer view
        cdef uint32_t count
        self._ring(0)
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if view.len // TK_RECORD_BYTES < self._cache.out.count:
                raise BadArgument(f"out has room for {view.len // TK_RECORD_BYTES} bars of {self._cache.out.count}")
            count = tk_cache_records(&self._cache, <char *>view.buf, 0, self._cache.out.count)
        finally:
            PyBuffer_Release(&view)
        self._cache.out.count = 0
        self._cache.bars += count
        return count

    def commit(self):
        """Make what was applied visible to readers, each instrument at once."""
        cdef tk_latest_header *header
        self._ring(0)
        header = self._cache.writer.table.header
        with nogil:
            tk_commit(&self._cache.writer)
            tk_store_relaxed(&header.late_trades, self._cache.late_trades)
            tk_store_relaxed(&header.lost_trades, self._cache.lost_trades)
            tk_store_relaxed(&header.bars, self._cache.bars)

    def set_complete(self, ring_id, sequence):
        """After `commit`: say that every record of the ring up to `sequence` is in the table."""
        cdef int ring = self._ring(ring_id)
        tk_complete(&self._cache.writer, ring, sequence)

    def complete(self, ring_id):
        """The sequence up to which the ring is in the table."""
        cdef int ring = self._ring(ring_id)
        return tk_load_relaxed(&self._cache.writer.table.header.complete[ring])

    def gap(self, ring_id):
        """Records of the ring were overrun: mark the open bars of its instruments, and those that are under way."""
        tk_cache_gap(&self._cache, self._ring(ring_id))

    def forget_ring(self, ring_id):
        """The ring was made anew, its sequences start again: forget what was applied of it. Commit before set_complete(0)."""
        tk_cache_forget(&self._cache, self._ring(ring_id))

    def close_due(self, wall_ns=0):
        """Close the bars that are over by their feed's stream clock and the grace time.

        `wall_ns`: the time now, which carries the clocks of live feeds on while they are silent; 0 where records wait to
        be applied. False: publish the bars, commit and call again.
        """
        self._ring(0)
        return tk_cache_close_due(&self._cache, wall_ns, 0) != 0

    def close_all(self, wall_ns):
        """Close every open bar, flagged INCOMPLETE where its time is not over. False: publish, commit and call again."""
        self._ring(0)
        return tk_cache_close_due(&self._cache, wall_ns, 1) != 0

    def activity(self, int64_t[::1] day not None, uint64_t[::1] trades not None, double[::1] notional not None,
                 double[::1] price not None):
        """What was traded of each instrument on its newest day, into arrays of one length; returns how many there are."""
        cdef uint32_t limit = min(day.shape[0], trades.shape[0], notional.shape[0], price.shape[0])
        self._ring(0)
        if limit == 0:
            return 0
        return tk_cache_activity(&self._cache, limit, &day[0], &trades[0], &notional[0], &price[0])

    @property
    def counters(self):
        """What was counted: since the table was made, except bad_prices and future_times (since this writer began)."""
        return {
            "records_applied": self._cache.writer.records_applied,
            "records_skipped": self._cache.writer.records_skipped,
            "l1_no_room": self._cache.writer.l1_no_room,
            "l1_not_kept": self._cache.writer.not_kept,
            "instruments": self._cache.writer.instruments_seen,
            "bars_published": self._cache.bars,
            "late_trades": self._cache.late_trades,
            "lost_trades": self._cache.lost_trades,
            "bad_prices": self._cache.bad_prices,
            "future_times": self._cache.clocks.future_times,
        }
