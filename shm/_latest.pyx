# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The readers' side of the latest-value table as a C type, and making a table: what `shm.latest` wraps.

Every ordering decision is in shm/latest.h. Nothing here writes to a table that exists; `format_table` makes a new one.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memmove

from shm.errors import BadArgument, LayoutMismatch, SegmentMissing, ShmError
from shm.layout import schema_hash


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from "shm/latest.h" nogil:
    ctypedef struct tk_word:
        pass

    cdef struct tk_latest_header:
        tk_word magic
        uint32_t version
        uint32_t record_bytes
        uint64_t schema_hash
        uint64_t segment_bytes
        uint32_t instruments
        uint32_t depth
        uint32_t chunk_records
        uint32_t chunks
        uint32_t lane_chunks
        uint32_t intervals
        uint32_t interval_s[8]
        uint64_t entry_bytes
        uint64_t copies_offset
        uint64_t pool_offset
        int64_t created_ns
        tk_word complete[16]
        tk_word writers
        tk_word writer_pid
        tk_word records_applied
        tk_word records_skipped
        tk_word l1_no_room
        tk_word not_kept
        tk_word chunks_taken
        tk_word chunks_free
        tk_word instruments_seen
        tk_word late_trades
        tk_word lost_trades
        tk_word bars

    cdef struct tk_state:
        uint64_t count[2]

    cdef struct tk_latest_entry:
        tk_word version
        tk_word floor[2]

    cdef struct tk_latest:
        tk_latest_header *header
        uint32_t instruments
        uint32_t depth
        uint32_t state_lines
        uint32_t intervals

    uint64_t TK_LATEST_MAGIC
    int TK_LATEST_VERSION
    int TK_LATEST_RINGS
    int TK_LATEST_INTERVALS_MAX
    int TK_RECORD_BYTES

    uint64_t tk_load_relaxed(const tk_word *)
    uint64_t tk_load_acquire(const tk_word *)
    void tk_store_relaxed(tk_word *, uint64_t)
    void tk_store_release(tk_word *, uint64_t)
    void tk_pause()
    void tk_latest_shape(tk_latest_header *)
    void tk_latest_map(tk_latest *, void *)
    tk_latest_entry *tk_latest_entry_of "tk_latest_entry"(const tk_latest *, uint32_t)
    int tk_latest_try_read(const tk_latest *, uint32_t, tk_state *, uint64_t *)
    uint64_t tk_latest_history(const tk_latest *, uint32_t, int, uint64_t, uint64_t, char *, uint64_t *)


INTERVALS_MAX = TK_LATEST_INTERVALS_MAX
COUNTERS = (
    "writers", "writer_pid", "records_applied", "records_skipped", "l1_no_room", "not_kept", "chunks_taken", "chunks_free",
    "instruments_seen", "late_trades", "lost_trades", "bars",
)


cdef int _shape(tk_latest_header *header, instruments, depth, chunk_records, chunks, interval_s) except -1:
    header.instruments, header.depth, header.chunk_records, header.chunks = instruments, depth, chunk_records, chunks
    header.intervals = len(interval_s)
    for k in range(len(interval_s)):
        header.interval_s[k] = interval_s[k]
    tk_latest_shape(header)
    return 0


cdef tuple _intervals(tk_latest_header *header):
    cdef uint32_t k
    values = []
    for k in range(header.intervals):
        values.append(header.interval_s[k])
    return tuple(values)


def table_bytes(instruments, depth, chunk_records, chunks, interval_s):
    """Bytes that a table of these sizes takes."""
    cdef tk_latest_header header
    _shape(&header, instruments, depth, chunk_records, chunks, interval_s)
    return header.segment_bytes


def format_table(buffer, instruments, depth, chunk_records, chunks, interval_s, created_ns):
    """Make a table in a buffer of zeroes, at least `table_bytes` long; its magic is stored last."""
    cdef Py_buffer view
    cdef tk_latest_header *header
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        needed = table_bytes(instruments, depth, chunk_records, chunks, interval_s)
        if view.len < needed:
            raise BadArgument(f"buffer has {view.len} bytes, the table takes {needed}")
        header = <tk_latest_header *>view.buf
        header.version = TK_LATEST_VERSION
        header.record_bytes = TK_RECORD_BYTES
        header.schema_hash = schema_hash()
        header.created_ns = created_ns
        _shape(header, instruments, depth, chunk_records, chunks, interval_s)
        tk_store_relaxed(&header.chunks_free, header.chunks)
        tk_store_release(&header.magic, TK_LATEST_MAGIC)
    finally:
        PyBuffer_Release(&view)


def check_table(name, buffer):
    """Raise SegmentMissing or LayoutMismatch unless `buffer` is a table that this build can read."""
    cdef Py_buffer view
    cdef tk_latest_header *header
    cdef tk_latest_header again
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if view.len < <Py_ssize_t>sizeof(tk_latest_header):
            raise LayoutMismatch(f"segment {name} has {view.len} bytes, the header of a latest table takes {sizeof(tk_latest_header)}")
        header = <tk_latest_header *>view.buf
        magic = tk_load_acquire(&header.magic)
        if magic == 0:
            raise SegmentMissing(f"segment {name} is still being made by its creator, or the creator died over it")
        if magic != TK_LATEST_MAGIC:
            raise LayoutMismatch(f"segment {name} is no latest table: magic {magic:#x}, expected {TK_LATEST_MAGIC:#x}")
        for what, theirs, ours in (
            ("version", header.version, TK_LATEST_VERSION),
            ("record size", header.record_bytes, TK_RECORD_BYTES),
            ("schema hash", header.schema_hash, schema_hash()),
        ):
            if theirs != ours:
                raise LayoutMismatch(f"segment {name}: {what} is {theirs} there and {ours} in this build")
        if header.intervals > TK_LATEST_INTERVALS_MAX or header.chunk_records == 0:
            raise LayoutMismatch(f"segment {name}: {header.intervals} intervals, {header.chunk_records} records a chunk")
        interval_s = _intervals(header)
        _shape(&again, header.instruments, header.depth, header.chunk_records, header.chunks, interval_s)
        for what, theirs, ours in (
            ("entry size", header.entry_bytes, again.entry_bytes),
            ("pool offset", header.pool_offset, again.pool_offset),
            ("size", header.segment_bytes, again.segment_bytes),
        ):
            if theirs != ours:
                raise LayoutMismatch(f"segment {name}: {what} is {theirs} there and {ours} in this build")
        if view.len < <Py_ssize_t>again.segment_bytes:
            raise LayoutMismatch(f"segment {name} has {view.len} bytes, its header says {again.segment_bytes}")
    finally:
        PyBuffer_Release(&view)


cdef class Table:
    """Read access to a mapped table. Writes nothing; any number of threads may use it."""

    cdef tk_latest _table
    cdef Py_buffer _view
    cdef bint _mapped

    def __dealloc__(self):
        self._leave()

    def _map(self, buffer):
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE)
        self._mapped = True
        tk_latest_map(&self._table, self._view.buf)

    cpdef _leave(self):
        if self._mapped:
            self._mapped = False
            PyBuffer_Release(&self._view)

    cdef int _check(self, instrument_id) except -1:
        if not self._mapped:
            raise ShmError("this latest table is closed")
        if not 0 <= instrument_id < self._table.instruments:
            return 0
        return 1

    @property
    def shape(self):
        """Constants of the header, by name."""
        self._check(0)
        cdef tk_latest_header *h = self._table.header
        return {
            "instruments": h.instruments, "depth_records": h.depth, "chunk_records": h.chunk_records, "chunks": h.chunks,
            "lane_chunks": h.lane_chunks, "bar_intervals_s": _intervals(h),
            "entry_bytes": h.entry_bytes, "pool_offset": h.pool_offset, "segment_bytes": h.segment_bytes,
            "created_ns": h.created_ns,
        }

    @property
    def counters(self):
        """Counters of the header, by name, each as it is at this moment."""
        self._check(0)
        cdef tk_word *first = &self._table.header.writers
        cdef Py_ssize_t i, count = len(COUNTERS)
        values = []
        for i in range(count):
            values.append(tk_load_relaxed(first + i))
        return dict(zip(COUNTERS, values))

    def complete(self):
        """Per ring, the sequence up to which every record is in the table: list of 16."""
        self._check(0)
        cdef int ring
        values = []
        for ring in range(TK_LATEST_RINGS):
            values.append(tk_load_acquire(&self._table.header.complete[ring]))
        return values

    cdef int _read(self, uint32_t id, char *state, uint64_t *version) except -2:
        """One state, however often it takes: a flip is as quick as a read, so two misses in a row are rare already."""
        cdef int got, tries
        with nogil:
            for tries in range(1000000):
                got = tk_latest_try_read(&self._table, id, <tk_state *>state, version)
                if got >= 0:
                    break
                if tries % 64 == 63:
                    sched_yield()
                else:
                    tk_pause()
        if got < 0:
            raise ShmError(f"instrument {id}: the cache changed its entry faster than it can be read")
        return got

    def read(self, instrument_id):
        """(version, state as bytes), or None for an instrument never seen."""
        cdef char state[2048]
        cdef uint64_t version
        if not self._check(instrument_id) or not self._read(instrument_id, state, &version):
            return None
        return version, PyBytes_FromStringAndSize(state, self._table.state_lines * 64)

    def read_lanes(self, instrument_id, out0, out1):
        """(version, state as bytes, records in out0, records in out1), all of one moment; None for one never seen.

        Fills the arrays with the newest records of lane 0 and lane 1, oldest first, as many as fit. What the writer recycles
        meanwhile is fetched again, at last left out; so fewer records than there are only under a writer at full speed.
        """
        cdef char state[2048]
        cdef uint64_t version, limit, count, dropped
        cdef uint64_t counts[2]
        cdef Py_buffer views[2]
        cdef uint32_t id
        cdef int lane, tries, whole
        if not self._check(instrument_id):
            return None
        id = instrument_id
        PyObject_GetBuffer(out0, &views[0], PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(out1, &views[1], PyBUF_SIMPLE | PyBUF_WRITABLE)
        except BaseException:
            PyBuffer_Release(&views[0])
            raise
        try:
            for tries in range(8):
                if not self._read(id, state, &version):
                    return None
                whole = 1
                with nogil:
                    for lane in range(2):
                        limit = views[lane].len // TK_RECORD_BYTES
                        if limit > self._table.depth:
                            limit = self._table.depth
                        count = tk_latest_history(
                            &self._table, id, lane, (<tk_state *>state).count[lane], limit, <char *>views[lane].buf, &dropped
                        )
                        if dropped:
                            whole = 0
                            count -= dropped
                            memmove(
                                views[lane].buf, <char *>views[lane].buf + dropped * TK_RECORD_BYTES, count * TK_RECORD_BYTES
                            )
                        counts[lane] = count
                if whole:
                    break
            return version, PyBytes_FromStringAndSize(state, self._table.state_lines * 64), counts[0], counts[1]
        finally:
            PyBuffer_Release(&views[0])
            PyBuffer_Release(&views[1])

    def records_held(self):
        """Records that readers can get at this moment, over all lanes. Looks at every entry: for statistics only."""
        cdef char state[2048]
        cdef uint64_t version, records = 0, floor, count, kept
        cdef uint32_t id
        cdef int lane
        self._check(0)
        for id in range(self._table.instruments):
            if tk_load_relaxed(&tk_latest_entry_of(&self._table, id).version) == 0:
                continue
            if not self._read(id, state, &version):
                continue
            for lane in range(2):
                floor = tk_load_relaxed(&tk_latest_entry_of(&self._table, id).floor[lane])
                count = (<tk_state *>state).count[lane]
                kept = count - floor if count > floor else 0
                records += kept if kept < self._table.depth else self._table.depth
        return records
