# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""What waits to be sent while fan-out is overloaded, as a Python type: workers/conflate.h does the work and says how.

Called by workers/fanout.py: `hold` once a turn, for the records that the router has numbered and left out; `begin_pass` and
`take` as there is time. It knows tiers, topics by index and numbers; it sends nothing and looks at no clock.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

import numpy as np

from shm.errors import BadArgument
from shm.layout import empty
from workers import wire as _wire
from workers.record cimport tk_record


cdef extern from "workers/conflate.h" nogil:
    cdef struct tk_conflate:
        uint32_t waiting
        uint32_t waiting_topics
        uint64_t offered[3]
        uint64_t conflated[3]
        uint64_t shed[3]
        uint64_t taken[3]

    int TK_FRAME_HEADER
    int TK_CONFLATE_FRAME
    int TK_CONFLATE_KEYS
    int TK_MARK_HOLE
    int TK_MARK_HELD
    int tk_conflate_open(tk_conflate *, uint32_t, uint32_t, uint8_t *)
    void tk_conflate_close(tk_conflate *)
    void tk_conflate_hold(tk_conflate *, const tk_record *, uint32_t, uint64_t, uint16_t, int64_t, uint32_t, int)
    void tk_conflate_begin_pass(tk_conflate *)
    uint32_t tk_conflate_take(tk_conflate *, uint32_t, tk_record *, char *, uint32_t *, uint64_t *, uint16_t)
    int64_t tk_conflate_since(const tk_conflate *)


KEYS = TK_CONFLATE_KEYS
assert TK_FRAME_HEADER == _wire.HEADER_SIZE_BYTES
cdef enum:
    INSTRUMENTS = 65536


cdef class Conflator:
    """The newest records of topics that wait. Not for several threads.

    Attributes:
        marks: shape (topics,), uint8, as given: 0 nothing, 1 (HOLE) the newest record was shed, 2 (HELD) it waits.
        ranked: shape (65536,), uint8, by instrument id: 1 = what it has to send goes first, and low counts as normal.
        records: shape (take_records,), dtype RECORD: what the last `take` gave.
    """

    cdef tk_conflate _store
    cdef bint _open
    cdef uint32_t _topics, _limit
    cdef uint8_t *_ranked
    cdef tk_record *_records
    cdef char *_frames
    cdef uint32_t *_topic
    cdef uint64_t *_number
    cdef object _arrays, _frames_view
    cdef readonly object marks
    cdef readonly object ranked
    cdef readonly object records

    def __cinit__(self):
        self._open = False

    def __init__(self, marks, *, uint32_t capacity=16384, uint32_t take_records=64):
        """Room for `capacity` records (some 170 bytes each); `marks` are the router's, one byte a topic."""
        if capacity < 1 or take_records < 1:
            raise BadArgument(f"capacity is {capacity}, take_records {take_records}: both must be at least 1")
        self._topics, self._limit = len(marks), take_records
        self.marks = marks
        self.ranked = np.zeros(INSTRUMENTS, np.uint8)
        self.records = empty(take_records)
        frames = np.zeros(take_records * TK_CONFLATE_FRAME, np.uint8)
        self._arrays = topic, number, _ = (
            np.zeros(take_records, np.uint32), np.zeros(take_records, np.uint64), frames
        )
        self._frames_view = memoryview(frames)
        self._ranked = <uint8_t *><uintptr_t>self.ranked.ctypes.data
        self._records = <tk_record *><uintptr_t>self.records.ctypes.data
        self._frames = <char *><uintptr_t>frames.ctypes.data
        self._topic = <uint32_t *><uintptr_t>topic.ctypes.data
        self._number = <uint64_t *><uintptr_t>number.ctypes.data
        if tk_conflate_open(&self._store, capacity, self._topics, <uint8_t *><uintptr_t>marks.ctypes.data) != 0:
            raise MemoryError("no memory for records that wait")
        self._open = True

    def __dealloc__(self):
        if self._open:
            tk_conflate_close(&self._store)

    def hold(self, records, index, topic, number, Py_ssize_t count, uint16_t ring, int64_t now_ns, uint32_t shed=0):
        """Let records[index[i]], i < count, wait, which have number[i] in topic[i]; numbers of a topic ascend.

        Args:
            records: contiguous RECORD array.
            index, topic, number: arrays of uint32, uint32, uint64, as the router has them.
            ring: where the records come from.
            shed: bit t set: what is of tier t and not `ranked` is shed.
        """
        cdef Py_buffer batch, at, of, numbers
        cdef Py_ssize_t i
        cdef const tk_record *record
        PyObject_GetBuffer(records, &batch, PyBUF_SIMPLE)
        PyObject_GetBuffer(index, &at, PyBUF_SIMPLE)
        PyObject_GetBuffer(topic, &of, PyBUF_SIMPLE)
        PyObject_GetBuffer(number, &numbers, PyBUF_SIMPLE)
        try:
            if count * 4 > at.len or count * 4 > of.len or count * 8 > numbers.len:
                raise BadArgument(f"count is {count}, an array is shorter")
            for i in range(count):
                if (<uint32_t *>at.buf)[i] >= batch.len // sizeof(tk_record) or (<uint32_t *>of.buf)[i] >= self._topics:
                    raise BadArgument(f"entry {i}: no such record or topic")
            with nogil:
                for i in range(count):
                    record = <const tk_record *>batch.buf + (<uint32_t *>at.buf)[i]
                    tk_conflate_hold(
                        &self._store, record, (<uint32_t *>of.buf)[i], (<uint64_t *>numbers.buf)[i], ring, now_ns, shed,
                        record.instrument_id < INSTRUMENTS and self._ranked[record.instrument_id],
                    )
        finally:
            PyBuffer_Release(&batch)
            PyBuffer_Release(&at)
            PyBuffer_Release(&of)
            PyBuffer_Release(&numbers)

    def begin_pass(self):
        """Topics that wait now will be given by `take`, of each class for which it has none left."""
        tk_conflate_begin_pass(&self._store)

    def take(self):
        """Up to take_records records of this pass, into `records`: [(index in `records`, topic, number), ...].

        Ascending within each topic; Flag.GAP_BEFORE is set where numbers are missing before.
        """
        cdef uint32_t i, count
        count = tk_conflate_take(
            &self._store, self._limit, self._records, self._frames, self._topic, self._number, _wire.WIRE_VERSION
        )
        return [(i, self._topic[i], self._number[i]) for i in range(count)]

    def frame(self, Py_ssize_t index):
        """Record `index` of the last `take` as a raw frame; a view that the next one changes."""
        if not 0 <= index < self._limit:
            raise BadArgument(f"index is {index}, a take has up to {self._limit} records")
        return self._frames_view[index * TK_CONFLATE_FRAME : (index + 1) * TK_CONFLATE_FRAME]

    @property
    def waiting(self):
        """Records that wait."""
        return self._store.waiting

    @property
    def waiting_topics(self):
        """Topics that wait."""
        return self._store.waiting_topics

    @property
    def since_ns(self):
        """Since when the topic does that has waited longest, as `hold` was told; 0 = none waits."""
        return tk_conflate_since(&self._store)

    @property
    def offered(self):
        """Records that came so far, by tier (shm.layout.Priority)."""
        return tuple(self._store.offered[tier] for tier in range(3))

    @property
    def conflated(self):
        """Records that a newer one has replaced, by tier."""
        return tuple(self._store.conflated[tier] for tier in range(3))

    @property
    def shed(self):
        """Records that were not kept, by tier."""
        return tuple(self._store.shed[tier] for tier in range(3))

    @property
    def taken(self):
        """Records that `take` has given, by tier."""
        return tuple(self._store.taken[tier] for tier in range(3))
