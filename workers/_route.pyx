"""Routing: a batch of records from one ring becomes ready-to-send raw frames, one topic each, numbered without a hole.

Called by workers/fanout.py, once a turn:

    scan(records, count)    which topics are in it; how many of them nobody has decided about (`unresolved`)
    route(ring, cursor)     frames laid out, topic numbers and cursor committed to the topic table (workers/topics.py)
    frames(), encode_list() what to send now: nothing before `route` has returned
    held_count, held_*      what was numbered and is not to be sent now: under overload, see workers/conflate.h

A turn in pictures, for topics A B C of which B is wanted by nobody and the batch topic by somebody:

    records   A1 B1 A2 C1 B2 A3
    out       |hdr A1 A2 A3|hdr C1|    batch: |hdr A1 B1 A2 C1 B2 A3|

Every record of the shard advances its topic's number, wanted or not. Within a topic, records keep their order. It never
sends, never waits, never allocates memory per record (the list of frames is Python's). Hot: two passes over the record
heads' cache lines, and one 128-byte copy for each record that is wanted.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

import numpy as np

from shm.errors import BadArgument
from shm.layout import Flag, StatusCode
from workers import topics as _topics
from workers import wire as _wire


cdef extern from "shm/ring.h" nogil:
    ctypedef struct tk_word:
        pass
    uint64_t tk_load_acquire(const tk_word *)
    uint64_t tk_load_relaxed(const tk_word *)
    void tk_store_relaxed(tk_word *, uint64_t)
    void tk_store_release(tk_word *, uint64_t)
    void tk_fence_release()


cdef extern from *:
    """
    #ifdef TK_TEST_STOPS
    #include <signal.h>
    static int tk_route_stop = 0;
    static void tk_route_stop_at(int step) { tk_route_stop = step; }
    #define TK_ROUTE_STOP(step) do { if (tk_route_stop == (step)) raise(SIGSTOP); } while (0)
    #define TK_ROUTE_HAS_STOPS 1
    #else
    static void tk_route_stop_at(int step) { (void)step; }
    #define TK_ROUTE_STOP(step) do { } while (0)
    #define TK_ROUTE_HAS_STOPS 0
    #endif
    """
    void tk_route_stop_at(int) nogil
    void TK_ROUTE_STOP(int) nogil
    int TK_ROUTE_HAS_STOPS


# Bits of `Router.wanted`.
RAW = 1
MSGPACK = 2
JSON = 4
RESOLVED = 128

HAS_STOPS = bool(TK_ROUTE_HAS_STOPS)

cdef enum:
    NO_INSTRUMENT = 0xFFFFFFFF
    INSTRUMENTS = 65536
    SYMBOL_TOPICS = 6 * 65536
    BATCH = SYMBOL_TOPICS
    STATUS = SYMBOL_TOPICS + 1
    ERROR = SYMBOL_TOPICS + 2
    ALERT = SYMBOL_TOPICS + 3
    TOPICS = SYMBOL_TOPICS + 4
    NOWHERE = 0xFFFFFFFF
    MARK_HOLE = 1             # as workers/conflate.h has them
    MARK_HELD = 2
    LOWEST_TIER = 2
    W_RAW = 1
    W_ENCODED = 6
    W_RESOLVED = 128
    HEADER_BYTES = 16
    RECORD_BYTES = 128
    WIRE_VERSION = 1

assert TOPICS == _topics.TOPICS and SYMBOL_TOPICS == _topics.SYMBOL_TOPICS
assert WIRE_VERSION == _wire.WIRE_VERSION and HEADER_BYTES == _wire.HEADER_SIZE_BYTES

cdef uint32_t SHARD_TOPIC_WORD = _topics.SHARD_TOPIC_WORD


def set_stop(int step):
    """Stop this process (SIGSTOP) at step 1..4 of the commit; 0 = never. Only in builds made for the kill tests."""
    if not TK_ROUTE_HAS_STOPS:
        raise BadArgument("this build has no stops: build with TICKENGINE_STOPS=1")
    tk_route_stop_at(step)


# The fields of a record that routing looks at (shm/layout.py, offsets pinned by tests/unit/test_route.py).
cdef packed struct Head:
    uint64_t sequence
    int64_t ts_event
    int64_t ts_receive
    int64_t ts_publish
    uint32_t instrument_id
    uint8_t record_type
    uint8_t source
    uint16_t flags
    char rest[10]
    uint8_t priority
    char more[13]
    uint32_t code
    uint32_t pad
    uint64_t from_sequence
    uint64_t to_sequence


include "route_commit.pxi"
include "route_frames.pxi"
include "route_turn.pxi"


cdef class Router:
    """Routes one shard's records. Not for several threads.

    Attributes:
        wanted: shape (TOPICS,), uint8: RESOLVED plus RAW, MSGPACK, JSON of who wants the topic; 0 = not yet decided.
        marks: shape (TOPICS,), uint8, shared with a Conflator (workers/conflate.h): topics that wait there, and topics of
            which a record was shed; 0 where none is used.
        held_index, held_topic, held_number: of the first `held_count` entries: index in the turn, topic, topic number.
        rings_of: shape (TOPICS,), uint16: bit r is set if the topic may have records of ring r. Topics that an earlier
            process numbered have every bit.
    """

    cdef Turn turn
    cdef Redo redo
    cdef Frames raw               # what goes out raw
    cdef Py_buffer words_view
    cdef Py_buffer records_view
    cdef bint records_bound, words_bound
    cdef object records           # the array of the last scan, whose buffer stays bound
    cdef uint32_t turn_records
    cdef object arrays            # owns every buffer above
    cdef object out_view
    cdef bint scanned
    cdef readonly object wanted
    cdef readonly object rings_of
    cdef readonly object marks
    cdef readonly object held_index
    cdef readonly object held_topic
    cdef readonly object held_number
    cdef readonly uint32_t held_count
    cdef readonly uint64_t routed

    def __cinit__(self):
        self.words_bound = False
        self.records_bound = False

    def __init__(self, table, int shard, *, uint32_t frame_records=256):
        """Route for one shard of `table` (workers.topics.TopicTable, attached for writing and claimed).

        Args:
            shard: takes the instruments whose id modulo `table.shards` is this; records of no instrument go to shard 0.
            frame_records: most records a raw frame has; what a subscriber may lose or wait for as a piece.

        A redo log that a killed process left behind is applied here.
        """
        cdef uint64_t most = table.turn_records
        cdef uint64_t room
        if frame_records < 1:
            raise BadArgument("frame_records is 0, must be at least 1")
        self.turn.block_word = table.block_word(shard)
        self.turn.topics_word = table.topics_word
        self.turn.shard, self.turn.shards = shard, table.shards
        self.turn_records, self.raw.most = most, frame_records
        PyObject_GetBuffer(table.words, &self.words_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.words_bound = True
        self.turn.words = <tk_word *>self.words_view.buf
        # Twice a turn: its records grouped by topic, and once more in ring order; a header each at the worst.
        room = 2 * most * (RECORD_BYTES + HEADER_BYTES) + 64
        self.wanted = np.zeros(TOPICS, np.uint8)
        out = np.zeros(room, np.uint8)
        self.arrays = arrays = {
            "bucket_of": np.zeros(TOPICS, np.uint32),
            "bucket_of_record": np.zeros(most, np.uint32),
            "buckets": np.zeros(most * sizeof(Bucket), np.uint8),
            "frame_at": np.zeros(2 * most, np.uint64),
            "frame_topic": np.zeros(2 * most, np.uint32),
            "frame_bytes": np.zeros(2 * most, np.uint64),
            "encode_index": np.zeros(most, np.uint32),
            "encode_topic": np.zeros(most, np.uint32),
            "encode_number": np.zeros(most, np.uint64),
            "out": out,
        }
        self.marks = np.zeros(TOPICS, np.uint8)
        self.held_index, self.held_topic = np.zeros(most, np.uint32), np.zeros(most, np.uint32)
        self.held_number = np.zeros(most, np.uint64)
        self.turn.marks = <uint8_t *><uintptr_t>self.marks.ctypes.data
        self.turn.held_index = <uint32_t *><uintptr_t>self.held_index.ctypes.data
        self.turn.held_topic = <uint32_t *><uintptr_t>self.held_topic.ctypes.data
        self.turn.held_number = <uint64_t *><uintptr_t>self.held_number.ctypes.data
        self.turn.wanted = <uint8_t *><uintptr_t>self.wanted.ctypes.data
        self.turn.bucket_of = <uint32_t *><uintptr_t>arrays["bucket_of"].ctypes.data
        self.turn.bucket_of_record = <uint32_t *><uintptr_t>arrays["bucket_of_record"].ctypes.data
        self.turn.bucket = <Bucket *><uintptr_t>arrays["buckets"].ctypes.data
        self.raw.at = <uint64_t *><uintptr_t>arrays["frame_at"].ctypes.data
        self.raw.topic = <uint32_t *><uintptr_t>arrays["frame_topic"].ctypes.data
        self.raw.bytes = <uint64_t *><uintptr_t>arrays["frame_bytes"].ctypes.data
        self.turn.encode_index = <uint32_t *><uintptr_t>arrays["encode_index"].ctypes.data
        self.turn.encode_topic = <uint32_t *><uintptr_t>arrays["encode_topic"].ctypes.data
        self.turn.encode_number = <uint64_t *><uintptr_t>arrays["encode_number"].ctypes.data
        self.raw.out = <char *><uintptr_t>out.ctypes.data
        begin_frames(&self.raw)
        self.out_view = memoryview(out)
        for code in range(256):
            self.turn.topic_of_code[code] = STATUS
        self.turn.topic_of_code[int(StatusCode.LATENCY_ALERT)] = ALERT
        self.turn.topic_of_code[int(StatusCode.REJECTED)] = ERROR
        self.redo.words, self.redo.words_count = self.turn.words, self.words_view.len // 8
        self.redo.block, self.redo.room = self.turn.words + self.turn.block_word, most + <uint64_t>_topics.LOG_SPARE
        self.redo.block_word, self.redo.turns_word = self.turn.block_word, table.turns_word(shard)
        self.redo.logged = 0
        recover(&self.redo)
        shard_word = self.turn.block_word + SHARD_TOPIC_WORD
        numbers = np.concatenate((
            table.words[table.topics_word : table.topics_word + SYMBOL_TOPICS], table.words[shard_word : shard_word + 4]
        ))
        self.rings_of = np.where(numbers > 0, 0xFFFF, 0).astype(np.uint16)
        self.turn.rings_of = <uint16_t *><uintptr_t>self.rings_of.ctypes.data

    def __dealloc__(self):
        if self.words_bound:
            PyBuffer_Release(&self.words_view)
        if self.records_bound:
            PyBuffer_Release(&self.records_view)

    def close(self):
        """Let go of the table's memory. The router is of no use afterwards."""
        if self.words_bound:
            PyBuffer_Release(&self.words_view)
            self.words_bound = False
        self.turn.words = NULL
        self.scanned = False

    def scan(self, records, Py_ssize_t count):
        """Look at `records[:count]`; returns how many of their topics are unresolved (see `unresolved`).

        Args:
            records: contiguous RECORD array; must stay as it is until the turn is sent. The same array again is fastest.
            count: 1 to the table's turn_records.
        """
        if records is not self.records:
            if self.records_bound:
                PyBuffer_Release(&self.records_view)
                self.records_bound = False
                self.records = None
            if getattr(records, "itemsize", 0) != RECORD_BYTES:
                raise BadArgument("records must be a RECORD array (128 bytes each)")
            PyObject_GetBuffer(records, &self.records_view, PyBUF_SIMPLE)
            self.turn.records = <char *>self.records_view.buf
            self.records_bound = True
            self.records = records
        if not 0 <= count <= <Py_ssize_t>self.turn_records or count * RECORD_BYTES > self.records_view.len:
            raise BadArgument(
                f"count is {count}, the array has {self.records_view.len // RECORD_BYTES} records, "
                f"a turn takes up to {self.turn_records}"
            )
        if self.turn.words == NULL:
            raise BadArgument("the router is closed")
        self.turn.count = <uint32_t>count
        if count > 64:
            with nogil:
                count_topics(&self.turn)
        else:
            count_topics(&self.turn)
        self.scanned = True
        return self.turn.unresolved

    def unresolved(self):
        """The topics of the scanned records that `wanted` says nothing about, as a list of topic indices."""
        cdef uint32_t i
        cdef Turn *turn = &self.turn
        return [turn.bucket[i].topic for i in range(turn.buckets) if turn.wanted[turn.bucket[i].topic] == 0]

    @property
    def unroutable(self):
        """Records so far whose type or instrument no topic has."""
        return self.turn.unroutable

    @property
    def encoded_records(self):
        """Records of the last scan that somebody wants as messages; of use once `unresolved` has been dealt with."""
        cdef uint32_t i
        cdef uint64_t found = 0
        for i in range(self.turn.buckets):
            if self.turn.wanted[self.turn.bucket[i].topic] & W_ENCODED:
                found += self.turn.bucket[i].count
        return found

    def route(self, uint16_t ring, uint64_t cursor, int announce=0, uint32_t hold=0):
        """Lay out the scanned records as frames and commit them; returns the number of raw frames.

        Args:
            ring: the ring they came from.
            cursor: sequence that is read next from it, which a restarted process will go on with; 0 = leave it alone.
            announce: above 0: the records are fan-out's own, not the ring's, and stay out of the batch topic; the kind of
                the turn log's entry (workers.topics.ANNOUNCED or one of OVERLOADED).
            hold: bit t set: quotes, bars and levels of tier t are numbered, listed in `held_*` and not sent; so are those
                of topics that wait already. Never trades, ticks, news and status.

        Topics still unresolved are treated as wanted by nobody.
        """
        if not self.scanned:
            raise BadArgument("route without scan")
        if ring >= 16:
            raise BadArgument(f"ring is {ring}, must be 0 to 15")
        self.scanned = False
        if announce:
            self.turn.mine = 0
        if self.turn.count > 64:
            with nogil:
                lay_out(&self.turn, &self.raw, ring, hold)
                commit_turn(&self.turn, &self.redo, ring, cursor, announce)
        else:
            lay_out(&self.turn, &self.raw, ring, hold)
            commit_turn(&self.turn, &self.redo, ring, cursor, announce)
        self.held_count = self.turn.held
        self.routed += self.turn.mine
        return self.raw.count

    def frames(self):
        """What to send raw: a list of (topic index, memoryview of the frame). The views die with the next `scan`."""
        return frame_list(&self.raw, self.out_view)

    def encode_list(self):
        """What to send as msgpack or JSON: a list of (index of the record in the turn, topic index, topic number)."""
        cdef uint32_t i
        cdef Turn *turn = &self.turn
        return [(turn.encode_index[i], turn.encode_topic[i], turn.encode_number[i]) for i in range(turn.encode)]

    @property
    def frame_records_total(self):
        """Records in the raw frames of the last turn; one that two topics carry counts twice."""
        return (self.raw.to - self.raw.out - HEADER_BYTES * <int64_t>self.raw.count) // RECORD_BYTES

    @property
    def batch_records(self):
        """Records of the last turn that belong to this shard."""
        return self.turn.mine

    @property
    def publish_ns(self):
        """ts_publish of the first record of the last scan, ns; what latencies are measured from."""
        return (<const Head *>self.turn.records).ts_publish if self.turn.count else 0
