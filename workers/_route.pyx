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


# One topic of the turn.
cdef struct Bucket:
    uint32_t topic
    uint32_t count    # records of this turn
    uint32_t room     # records that still fit into the frame being filled
    uint32_t first    # index of the first of them
    uint8_t wanted
    uint8_t tier      # of the most urgent of them
    bint held         # numbered, and not to be sent now
    char *to          # where the next record goes; NULL: nobody wants it raw
    uint64_t number   # number of the next record


cdef class Router:
    """Routes one shard's records. Not for several threads.

    Attributes:
        wanted: shape (TOPICS,), uint8: RESOLVED plus RAW, MSGPACK, JSON of who wants the topic; 0 = not yet decided.
        unroutable: records so far whose type or instrument no topic has.
        marks: shape (TOPICS,), uint8, shared with a Conflator (workers/conflate.h): topics that wait there, and topics of
            which a record was shed; 0 where none is used.
        held_index, held_topic, held_number: of the first `held_count` entries: index in the turn, topic, topic number.
        rings_of: shape (TOPICS,), uint16: bit r is set if the topic may have records of ring r. Topics that an earlier
            process numbered have every bit.
    """

    cdef tk_word *words
    cdef Py_buffer words_view
    cdef Py_buffer records_view
    cdef bint records_bound, words_bound
    cdef object records           # the array of the last scan, whose buffer stays bound
    cdef Py_ssize_t count
    cdef uint64_t topics_word, block_word
    cdef Redo redo
    cdef Frames raw               # what goes out raw
    cdef uint32_t shard, shards, turn_records
    cdef uint32_t bucket_count, encode_count, unresolved_count, batch_count
    cdef uint8_t *wanted_
    cdef uint16_t *rings_of_
    cdef uint32_t *bucket_of      # [TOPICS] 1 + index into buckets; 0 = not in this turn
    cdef uint32_t *bucket_of_record
    cdef Bucket *buckets
    cdef uint32_t *encode_index
    cdef uint32_t *encode_topic
    cdef uint64_t *encode_number
    cdef uint8_t *marks_
    cdef uint32_t *held_index_
    cdef uint32_t *held_topic_
    cdef uint64_t *held_number_
    cdef uint32_t topic_of_code[256]
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
    cdef readonly uint64_t unroutable
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
        cdef uint64_t turn = table.turn_records
        cdef uint64_t room
        if frame_records < 1:
            raise BadArgument("frame_records is 0, must be at least 1")
        self.block_word = table.block_word(shard)
        self.topics_word = table.topics_word
        self.shard, self.shards = shard, table.shards
        self.turn_records, self.raw.most = turn, frame_records
        PyObject_GetBuffer(table.words, &self.words_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.words_bound = True
        self.words = <tk_word *>self.words_view.buf
        # Twice the turn: its records grouped by topic, and once more in ring order; a header each at the worst.
        room = 2 * turn * (RECORD_BYTES + HEADER_BYTES) + 64
        self.wanted = np.zeros(TOPICS, np.uint8)
        out = np.zeros(room, np.uint8)
        self.arrays = arrays = {
            "bucket_of": np.zeros(TOPICS, np.uint32),
            "bucket_of_record": np.zeros(turn, np.uint32),
            "buckets": np.zeros(turn * sizeof(Bucket), np.uint8),
            "frame_at": np.zeros(2 * turn, np.uint64),
            "frame_topic": np.zeros(2 * turn, np.uint32),
            "frame_bytes": np.zeros(2 * turn, np.uint64),
            "encode_index": np.zeros(turn, np.uint32),
            "encode_topic": np.zeros(turn, np.uint32),
            "encode_number": np.zeros(turn, np.uint64),
            "out": out,
        }
        self.marks = np.zeros(TOPICS, np.uint8)
        self.held_index, self.held_topic = np.zeros(turn, np.uint32), np.zeros(turn, np.uint32)
        self.held_number = np.zeros(turn, np.uint64)
        self.marks_ = <uint8_t *><uintptr_t>self.marks.ctypes.data
        self.held_index_ = <uint32_t *><uintptr_t>self.held_index.ctypes.data
        self.held_topic_ = <uint32_t *><uintptr_t>self.held_topic.ctypes.data
        self.held_number_ = <uint64_t *><uintptr_t>self.held_number.ctypes.data
        self.wanted_ = <uint8_t *><uintptr_t>self.wanted.ctypes.data
        self.bucket_of = <uint32_t *><uintptr_t>arrays["bucket_of"].ctypes.data
        self.bucket_of_record = <uint32_t *><uintptr_t>arrays["bucket_of_record"].ctypes.data
        self.buckets = <Bucket *><uintptr_t>arrays["buckets"].ctypes.data
        self.raw.at = <uint64_t *><uintptr_t>arrays["frame_at"].ctypes.data
        self.raw.topic = <uint32_t *><uintptr_t>arrays["frame_topic"].ctypes.data
        self.raw.bytes = <uint64_t *><uintptr_t>arrays["frame_bytes"].ctypes.data
        self.encode_index = <uint32_t *><uintptr_t>arrays["encode_index"].ctypes.data
        self.encode_topic = <uint32_t *><uintptr_t>arrays["encode_topic"].ctypes.data
        self.encode_number = <uint64_t *><uintptr_t>arrays["encode_number"].ctypes.data
        self.raw.out = <char *><uintptr_t>out.ctypes.data
        begin_frames(&self.raw)
        self.out_view = memoryview(out)
        for code in range(256):
            self.topic_of_code[code] = STATUS
        self.topic_of_code[int(StatusCode.LATENCY_ALERT)] = ALERT
        self.topic_of_code[int(StatusCode.REJECTED)] = ERROR
        self.redo.words, self.redo.words_count = self.words, self.words_view.len // 8
        self.redo.block, self.redo.room = self.words + self.block_word, turn + <uint64_t>_topics.LOG_SPARE
        self.redo.block_word, self.redo.turns_word = self.block_word, table.turns_word(shard)
        self.redo.logged = 0
        recover(&self.redo)
        shard_word = self.block_word + SHARD_TOPIC_WORD
        numbers = np.concatenate((
            table.words[self.topics_word : self.topics_word + SYMBOL_TOPICS], table.words[shard_word : shard_word + 4]
        ))
        self.rings_of = np.where(numbers > 0, 0xFFFF, 0).astype(np.uint16)
        self.rings_of_ = <uint16_t *><uintptr_t>self.rings_of.ctypes.data

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
        self.words = NULL
        self.scanned = False

    cdef uint64_t number_word(self, uint32_t topic) noexcept nogil:
        if topic < SYMBOL_TOPICS:
            return self.topics_word + topic
        return self.block_word + SHARD_TOPIC_WORD + (topic - SYMBOL_TOPICS)

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
            self.records_bound = True
            self.records = records
        if not 0 <= count <= <Py_ssize_t>self.turn_records or count * RECORD_BYTES > self.records_view.len:
            raise BadArgument(
                f"count is {count}, the array has {self.records_view.len // RECORD_BYTES} records, "
                f"a turn takes up to {self.turn_records}"
            )
        if self.words == NULL:
            raise BadArgument("the router is closed")
        self.count = count
        if count > 64:
            with nogil:
                self.count_topics()
        else:
            self.count_topics()
        self.scanned = True
        return self.unresolved_count

    cdef void count_topics(self) noexcept nogil:
        cdef const char *at = <const char *>self.records_view.buf
        cdef const Head *head
        cdef Bucket *bucket
        cdef uint32_t i, topic, slot, instrument, kind, unresolved = 0, buckets = 0, mine = 0
        cdef uint32_t shards = self.shards, count = <uint32_t>self.count
        cdef uint64_t unroutable = 0
        for i in range(self.bucket_count):  # of a turn that was scanned and never routed
            self.bucket_of[self.buckets[i].topic] = 0
        for i in range(count):
            head = <const Head *>at
            at += RECORD_BYTES
            self.bucket_of_record[i] = NOWHERE
            instrument = head.instrument_id
            kind = head.record_type
            if shards > 1:
                if instrument == NO_INSTRUMENT:
                    if self.shard != 0:
                        continue
                elif instrument % shards != self.shard:
                    continue
            mine += 1
            self.bucket_of_record[i] = NOWHERE - 1
            if kind - 1 < 6 and instrument < INSTRUMENTS:
                topic = (kind - 1) * INSTRUMENTS + instrument
            elif kind == 7:
                topic = self.topic_of_code[head.code if head.code < 256 else 255]
            else:
                unroutable += 1
                continue
            slot = self.bucket_of[topic]
            if slot == 0:
                bucket = &self.buckets[buckets]
                buckets += 1
                slot = buckets
                self.bucket_of[topic] = slot
                bucket.topic = topic
                bucket.count = 1
                bucket.first = i
                bucket.tier = head.priority
                unresolved += self.wanted_[topic] == 0
            else:
                bucket = &self.buckets[slot - 1]
                bucket.count += 1
                if head.priority < bucket.tier:
                    bucket.tier = head.priority
            self.bucket_of_record[i] = slot - 1
        self.bucket_count = buckets
        self.unresolved_count = unresolved
        self.unroutable += unroutable
        self.batch_count = mine

    def unresolved(self):
        """The topics of the scanned records that `wanted` says nothing about, as a list of topic indices."""
        cdef uint32_t i
        return [
            self.buckets[i].topic for i in range(self.bucket_count) if self.wanted_[self.buckets[i].topic] == 0
        ]

    @property
    def encoded_records(self):
        """Records of the last scan that somebody wants as messages; of use once `unresolved` has been dealt with."""
        cdef uint32_t i
        cdef uint64_t found = 0
        for i in range(self.bucket_count):
            if self.wanted_[self.buckets[i].topic] & W_ENCODED:
                found += self.buckets[i].count
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
            self.batch_count = 0
        if self.count > 64:
            with nogil:
                self.lay_out(ring, hold)
                self.commit_turn(ring, cursor, announce)
        else:
            self.lay_out(ring, hold)
            self.commit_turn(ring, cursor, announce)
        self.routed += self.batch_count
        return self.raw.count

    cdef bint is_held(self, const Bucket *bucket, uint32_t hold) noexcept nogil:
        """Whether the records of a topic are to wait."""
        cdef uint32_t kind = bucket.topic // INSTRUMENTS + 1
        if not bucket.wanted & (W_RAW | W_ENCODED) or (kind != 2 and kind != 3 and kind != 5):
            return False
        if self.marks_[bucket.topic] == MARK_HELD:
            return True
        return hold >> (bucket.tier if bucket.tier < LOWEST_TIER else LOWEST_TIER) & 1

    cdef void lay_out(self, uint16_t ring, uint32_t hold) noexcept nogil:
        cdef const char *records = <const char *>self.records_view.buf
        cdef Bucket *bucket
        cdef uint32_t i, slot, some, most = self.raw.most, count = <uint32_t>self.count, encode = 0
        cdef uint64_t done
        cdef char *to
        cdef bint copies = False, holes = False, held = False
        begin_frames(&self.raw)
        for i in range(self.bucket_count):
            bucket = &self.buckets[i]
            bucket.wanted = self.wanted_[bucket.topic]
            bucket.held = False
            self.rings_of_[bucket.topic] |= <uint16_t>(1 << ring)
            bucket.number = tk_load_relaxed(self.words + self.number_word(bucket.topic)) + 1
            bucket.to = NULL
            if self.is_held(bucket, hold):
                bucket.held = held = True
                bucket.wanted = 0
                continue
            copies |= bucket.wanted & (W_RAW | W_ENCODED)
            if bucket.wanted & (W_RAW | W_ENCODED) and self.marks_[bucket.topic] == MARK_HOLE:
                holes = True
            if bucket.wanted & W_RAW:
                bucket.to = add_frames(&self.raw, bucket.topic, ring, bucket.count, bucket.number)
                bucket.room = most
        if copies:
            for i in range(count):
                slot = self.bucket_of_record[i]
                if slot >= NOWHERE - 1:
                    continue
                bucket = &self.buckets[slot]
                if bucket.to != NULL:
                    if bucket.room == 0:  # the next frame of this topic starts right behind
                        bucket.to += HEADER_BYTES
                        bucket.room = most
                    memcpy(bucket.to, records + <uint64_t>i * RECORD_BYTES, RECORD_BYTES)
                    bucket.to += RECORD_BYTES
                    bucket.room -= 1
                if bucket.wanted & W_ENCODED:
                    self.encode_index[encode] = i
                    self.encode_topic[encode] = bucket.topic
                    self.encode_number[encode] = bucket.number
                    bucket.number += 1
                    encode += 1
        self.encode_count = encode
        self.held_count = 0
        if held:
            self.list_held()
        if self.batch_count and self.wanted_[BATCH] & W_RAW:
            to = add_frames(&self.raw, BATCH, ring, self.batch_count,
                            tk_load_relaxed(self.words + self.number_word(BATCH)) + 1)
            if self.batch_count == count:
                done = 0
                while done < count:
                    some = most if count - done > most else <uint32_t>(count - done)
                    memcpy(to, records + done * RECORD_BYTES, <uint64_t>some * RECORD_BYTES)
                    to += <uint64_t>some * RECORD_BYTES + HEADER_BYTES
                    done += some
            else:
                some = most
                for i in range(count):
                    if self.bucket_of_record[i] == NOWHERE:
                        continue
                    if some == 0:
                        to += HEADER_BYTES
                        some = most
                    memcpy(to, records + <uint64_t>i * RECORD_BYTES, RECORD_BYTES)
                    to += RECORD_BYTES
                    some -= 1
        if holes:
            self.flag_holes()

    cdef void list_held(self) noexcept nogil:
        """Note the records that are numbered and kept back, in order."""
        cdef Bucket *bucket
        cdef uint32_t i, slot, held = 0
        for i in range(<uint32_t>self.count):
            slot = self.bucket_of_record[i]
            if slot >= NOWHERE - 1 or not self.buckets[slot].held:
                continue
            bucket = &self.buckets[slot]
            self.held_index_[held] = i
            self.held_topic_[held] = bucket.topic
            self.held_number_[held] = bucket.number
            bucket.number += 1
            held += 1
        self.held_count = held

    cdef void flag_holes(self) noexcept nogil:
        """Records were shed before the first of these topics: say so in its raw copy, and in the turn for encoders.

        The batch topic has its copies by now: nothing is missing there.
        """
        cdef Bucket *bucket
        cdef Head *head
        cdef uint32_t i, frame = 0
        for i in range(self.bucket_count):
            bucket = &self.buckets[i]
            if bucket.held:
                continue
            if self.marks_[bucket.topic] == MARK_HOLE and bucket.wanted & (W_RAW | W_ENCODED):
                self.marks_[bucket.topic] = 0
                head = <Head *>(<char *>self.records_view.buf + <uint64_t>bucket.first * RECORD_BYTES)
                head.flags |= GAP_BEFORE
                if bucket.wanted & W_RAW:
                    (<Head *>(self.raw.out + self.raw.at[frame] + HEADER_BYTES)).flags |= GAP_BEFORE
            if bucket.wanted & W_RAW:
                frame += (bucket.count + self.raw.most - 1) // self.raw.most

    cdef void commit_turn(self, uint16_t ring, uint64_t cursor, int announce) noexcept nogil:
        """The new cursor and numbers, all or none of them, whenever this process is killed (workers/topics.py)."""
        cdef Redo *redo = &self.redo
        cdef uint64_t word
        cdef uint32_t i
        if cursor:
            note(redo, self.block_word + ring, cursor)
        if self.count:
            note_turn(redo, <const Head *>self.records_view.buf, <uint64_t>self.count, ring, cursor, announce)
        if self.batch_count:
            self.rings_of_[BATCH] |= <uint16_t>(1 << ring)
            word = self.number_word(BATCH)
            note(redo, word, tk_load_relaxed(self.words + word) + self.batch_count)
        for i in range(self.bucket_count):
            word = self.number_word(self.buckets[i].topic)
            note(redo, word, tk_load_relaxed(self.words + word) + self.buckets[i].count)
            self.bucket_of[self.buckets[i].topic] = 0
        self.bucket_count = 0
        commit(redo)

    def frames(self):
        """What to send raw: a list of (topic index, memoryview of the frame). The views die with the next `scan`."""
        return frame_list(&self.raw, self.out_view)

    def encode_list(self):
        """What to send as msgpack or JSON: a list of (index of the record in the turn, topic index, topic number)."""
        cdef uint32_t i
        return [
            (self.encode_index[i], self.encode_topic[i], self.encode_number[i]) for i in range(self.encode_count)
        ]

    @property
    def frame_records_total(self):
        """Records in the raw frames of the last turn; one that two topics carry counts twice."""
        return (self.raw.to - self.raw.out - HEADER_BYTES * <int64_t>self.raw.count) // RECORD_BYTES

    @property
    def batch_records(self):
        """Records of the last turn that belong to this shard."""
        return self.batch_count

    @property
    def publish_ns(self):
        """ts_publish of the first record of the last scan, ns; what latencies are measured from."""
        return (<const Head *>self.records_view.buf).ts_publish if self.count else 0
