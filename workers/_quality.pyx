# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The quality checks' inner loop: one pass over a batch, in place. Called by workers/quality.py alone.

State is 64 bytes (one or half a cache line) for each instrument and kind of record, so that a record touches one line of
it. `check` allocates only when an instrument id beyond all earlier ones appears, and logs nothing.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from shm.layout import RECORD_SIZE_BYTES, Action, Flag, Priority, RecordType, StatusCode


# Layout v1 of shm/layout.py; tests/unit/test_quality.py sets every field through the numpy dtype.
cdef struct Record:
    uint64_t sequence
    int64_t ts_event
    int64_t ts_receive
    int64_t ts_publish
    uint32_t instrument_id
    uint8_t record_type
    uint8_t source
    uint16_t flags
    uint64_t source_sequence
    uint16_t feed_id
    uint8_t priority
    uint8_t side
    uint32_t conditions
    char venue[8]
    double body[8]

cdef struct State:
    int64_t ts_event          # newest so far
    uint64_t source_sequence  # highest so far
    double mean               # running mean of the price (prints) or middle (quotes)
    double deviation          # running mean distance from it
    double mean_size          # of prints
    uint32_t seen             # records that went into the means
    uint32_t generation       # of the feed when this was last written; an older one is void
    uint32_t back_run         # records out of order one after the other
    uint32_t spare[3]

cdef enum:
    KINDS = 4                 # prints, quotes, book, other: each has its own sequence numbers at many venues
    BELIEVE_AFTER = 64        # records out of order in a row: the venue has begun to count again
    ID_LIMIT = 1 << 24        # beyond any instrument table; such an id is not state worth keeping
    REASONS = 3

cdef uint8_t TICK = RecordType.TICK
cdef uint8_t QUOTE = RecordType.QUOTE
cdef uint8_t BAR = RecordType.BAR
cdef uint8_t TRADE = RecordType.TRADE
cdef uint8_t LEVEL2 = RecordType.LEVEL2
cdef uint8_t STATUS = RecordType.STATUS
cdef uint8_t CLEAR = Action.CLEAR
cdef uint32_t END_OF_REPLAY = StatusCode.END_OF_REPLAY
cdef uint16_t OUTLIER = Flag.OUTLIER
cdef uint16_t VOLUME_SPIKE = Flag.VOLUME_SPIKE
cdef uint16_t OUT_OF_ORDER = Flag.OUT_OF_ORDER
cdef uint16_t LATE = Flag.LATE
cdef uint16_t CROSSED = Flag.CROSSED
cdef uint16_t INCOMPLETE = Flag.INCOMPLETE
cdef uint16_t REPLAYED = Flag.REPLAYED
# A snapshot, a correction and a backfilled record speak of an earlier time by their nature, and their flag says so.
cdef uint16_t OUT_OF_SEQUENCE = Flag.SNAPSHOT | Flag.CORRECTED | Flag.BACKFILLED

# What `check` does with a record of each type: which state it uses, and its priority.
cdef uint8_t KIND_OF_TYPE[8]
cdef uint8_t PRIORITY_OF_TYPE[8]
KIND_OF_TYPE[:] = [3, 0, 1, 3, 0, 2, 3, 3]
PRIORITY_OF_TYPE[:] = [
    Priority.LOW, Priority.HIGH, Priority.NORMAL, Priority.LOW, Priority.HIGH, Priority.LOW, Priority.HIGH, Priority.HIGH
]

REJECT_REASONS = ("unknown record type", "print without a price", "impossible value")

assert sizeof(Record) == RECORD_SIZE_BYTES and sizeof(State) == 64


cdef inline bint finite(double value) noexcept nogil:
    return value - value == 0.0  # false for NaN and for both infinities


cdef class Checker:
    """State and thresholds of one feed. Fractions are of the running mean; 0 turns a check off."""

    cdef State *_states
    cdef uint32_t _capacity           # instruments
    cdef uint32_t _generation
    cdef bint _enabled, _reject_impossible, _late_when_replayed
    cdef int64_t _late_after_ns
    cdef double _deviations, _floor_fraction, _limit_fraction, _spike_factor
    cdef uint32_t _warm_up, _memory
    cdef double _running_rate
    cdef uint64_t _rejected[REASONS]
    cdef uint64_t _flagged[16]
    cdef Record _last_rejected
    cdef int _last_reason

    def __cinit__(self, *, bint enabled, bint reject_impossible, int64_t late_after_ns, bint late_when_replayed,
                  double deviations, double floor_fraction, double limit_fraction, double spike_factor,
                  uint32_t warm_up, uint32_t memory):
        self._enabled = enabled
        self._reject_impossible = reject_impossible
        self._late_after_ns = late_after_ns
        self._late_when_replayed = late_when_replayed
        self._deviations = deviations
        self._floor_fraction = floor_fraction
        self._limit_fraction = limit_fraction
        self._spike_factor = spike_factor
        self._warm_up = warm_up
        self._memory = memory
        self._running_rate = 1.0 / memory
        self._generation = 1
        self._last_reason = -1
        if not self._grow(1023):
            raise MemoryError()

    def __dealloc__(self):
        free(self._states)

    cdef bint _grow(self, uint32_t instrument_id) noexcept nogil:
        cdef uint32_t wanted = self._capacity if self._capacity else 1024
        cdef State *grown
        while wanted <= instrument_id:
            wanted *= 2
        grown = <State *>realloc(self._states, <size_t>wanted * KINDS * sizeof(State))
        if grown == NULL:
            return False
        memset(grown + <size_t>self._capacity * KINDS, 0, <size_t>(wanted - self._capacity) * KINDS * sizeof(State))
        self._states = grown
        self._capacity = wanted
        return True

    cdef inline uint16_t _order(self, State *state, const Record *record) noexcept nogil:
        cdef bint back = False
        if record.source_sequence != 0:
            if record.source_sequence < state.source_sequence:
                back = True
            else:
                state.source_sequence = record.source_sequence
        if record.ts_event != 0:
            if record.ts_event < state.ts_event:
                back = True
            else:
                state.ts_event = record.ts_event
        if not back:
            state.back_run = 0
            return 0
        state.back_run += 1
        if state.back_run >= BELIEVE_AFTER:
            state.back_run = 0
            state.source_sequence = record.source_sequence
            state.ts_event = record.ts_event
        return OUT_OF_ORDER

    cdef inline double _rate(self, State *state) noexcept nogil:
        # A plain mean at first, a running one once there are enough records.
        if state.seen < self._memory:
            return 1.0 / (<double>state.seen + 1.0)
        return self._running_rate

    cdef inline uint16_t _price(self, State *state, double price) noexcept nogil:
        """Judge a price by the running mean, then let it move the mean: an outlier by no more than the limit, so that one
        print can't shift it and a real change of level is believed after a few dozen."""
        cdef double away = price - state.mean
        cdef double limit = INFINITY
        cdef double rate
        cdef uint16_t verdict = 0
        if state.seen >= self._warm_up:
            if self._deviations > 0:
                limit = max(self._deviations * state.deviation, self._floor_fraction * fabs(state.mean))
            if self._limit_fraction > 0:
                limit = min(limit, self._limit_fraction * fabs(state.mean))
            if fabs(away) > limit:
                verdict = OUTLIER
                away = limit if away > 0 else -limit
        if state.seen == 0:
            state.mean = price
        else:
            rate = self._rate(state)
            state.mean += rate * away
            state.deviation += rate * (fabs(away) - state.deviation)
        if state.seen < 0x7FFFFFFF:
            state.seen += 1
        return verdict

    cdef inline uint16_t _size(self, State *state, double size) noexcept nogil:
        """Judge a size; called before `_price` counts the record."""
        cdef uint16_t verdict = 0
        if self._spike_factor > 0 and state.seen >= self._warm_up and size > self._spike_factor * state.mean_size:
            verdict = VOLUME_SPIKE
            size = self._spike_factor * state.mean_size
        state.mean_size += self._rate(state) * (size - state.mean_size)
        return verdict

    cdef inline int _reject_reason(self, const Record *record) noexcept nogil:
        """Why a record is no use to anyone, -1 if it is. Needs no state: a restarted worker judges the same."""
        cdef uint8_t kind = record.record_type
        if kind == 0 or kind > STATUS:
            return 0
        if (kind == TICK or kind == TRADE) and not finite(record.body[0]):
            return 1
        if self._reject_impossible and self._impossible(record):
            return 2
        return -1

    cdef inline bint _impossible(self, const Record *record) noexcept nogil:
        """Values that no market has: negative or infinite sizes, infinite prices."""
        cdef const double *body = <const double *>record.body
        cdef uint8_t kind = record.record_type
        if kind == TICK or kind == TRADE or kind == LEVEL2:
            return body[1] < 0 or body[1] == INFINITY or fabs(body[0]) == INFINITY
        if kind == QUOTE:
            return (body[2] < 0 or body[3] < 0 or body[2] == INFINITY or body[3] == INFINITY
                    or fabs(body[0]) == INFINITY or fabs(body[1]) == INFINITY)
        if kind == BAR:
            return body[4] < 0 or body[1] < body[2]
        return False

    cdef inline uint16_t _verdict(self, const Record *record, State *state) noexcept nogil:
        cdef const double *body = <const double *>record.body
        cdef uint8_t kind = record.record_type
        cdef uint16_t verdict = 0
        if state.generation != self._generation:
            memset(state, 0, sizeof(State))
            state.generation = self._generation
        if kind == BAR:
            if not (finite(body[0]) and finite(body[1]) and finite(body[2]) and finite(body[3])):
                return INCOMPLETE
            return INCOMPLETE if self._impossible(record) else 0
        if kind != TICK and kind != QUOTE and kind != TRADE and kind != LEVEL2:
            return 0  # news and status
        if not record.flags & OUT_OF_SEQUENCE:
            verdict = self._order(state, record)
            if (self._late_after_ns > 0 and record.ts_event > 0
                    and record.ts_receive - record.ts_event > self._late_after_ns
                    and (self._late_when_replayed or not record.flags & REPLAYED)):
                verdict |= LATE
        if kind == QUOTE:
            if finite(body[0]) and finite(body[1]) and body[0] != 0 and body[1] != 0:
                if body[0] > body[1]:
                    verdict |= CROSSED
                verdict |= self._price(state, 0.5 * (body[0] + body[1]))
            else:
                verdict |= INCOMPLETE
        elif kind == LEVEL2:
            if body[3] > body[4]:
                verdict |= CROSSED
            if not finite(body[0]) and (<const uint8_t *>record)[86] != CLEAR:
                verdict |= INCOMPLETE
        elif body[0] == 0 or not finite(body[1]):
            verdict |= INCOMPLETE
        else:
            verdict |= self._size(state, body[1])
            verdict |= self._price(state, body[0])
        if self._impossible(record):
            verdict |= INCOMPLETE
        return verdict

    def check(self, records, Py_ssize_t count):
        """Set flags and priority of records[:count], move out what is rejected; returns how many are left, in order.

        `records` is a writable C-contiguous array of 128-byte records. MemoryError if a new instrument finds no room.
        """
        cdef Py_buffer view
        cdef Record *batch
        cdef Record *record
        cdef Py_ssize_t i, kept = 0
        cdef uint16_t verdict
        cdef uint32_t code
        cdef int reason, bit
        cdef bint no_room = False
        PyObject_GetBuffer(records, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if count < 0 or count * <Py_ssize_t>sizeof(Record) > view.len:
            PyBuffer_Release(&view)
            raise ValueError(f"count is {count}, the array holds {view.len // sizeof(Record)} records")
        batch = <Record *>view.buf
        with nogil:
            for i in range(count):
                record = &batch[i]
                reason = self._reject_reason(record)
                if reason >= 0:
                    self._rejected[reason] += 1
                    self._last_reason = reason
                    self._last_rejected = record[0]
                    continue
                record.priority = PRIORITY_OF_TYPE[record.record_type]
                if self._enabled and record.instrument_id < ID_LIMIT:
                    if record.instrument_id >= self._capacity and not self._grow(record.instrument_id):
                        no_room = True
                        break
                    verdict = self._verdict(
                        record, &self._states[<size_t>record.instrument_id * KINDS + KIND_OF_TYPE[record.record_type]]
                    )
                    if verdict:
                        record.flags |= verdict
                        for bit in range(16):
                            self._flagged[bit] += (verdict >> bit) & 1
                if record.record_type == STATUS:
                    memcpy(&code, record.body, sizeof(code))
                    if code == END_OF_REPLAY:
                        self._generation += 1  # what comes next may begin anywhere in time
                if kept != i:
                    memcpy(&batch[kept], record, sizeof(Record))
                kept += 1
        PyBuffer_Release(&view)
        if no_room:
            raise MemoryError("no memory for the state of a new instrument")
        return kept

    def forget(self):
        """Begin again: what the feed sends next is not compared with what it sent before."""
        self._generation += 1

    @property
    def rejected(self):
        """Records rejected so far, for each of REJECT_REASONS."""
        return tuple(self._rejected[reason] for reason in range(REASONS))

    @property
    def flagged(self):
        """How often each flag bit (0 to 15) was set here so far."""
        return tuple(self._flagged[bit] for bit in range(16))

    @property
    def last_rejected(self):
        """(reason, the record as 128 bytes) of the newest rejection; None if there was none."""
        if self._last_reason < 0:
            return None
        return REJECT_REASONS[self._last_reason], (<char *>&self._last_rejected)[:sizeof(Record)]
