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

from workers.record cimport *


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
    TIERS = 65536             # entries of the table of instruments with a tier of their own

# A snapshot, a correction and a backfilled record speak of an earlier time by their nature, and their flag says so.
cdef uint16_t OUT_OF_SEQUENCE = TK_FLAG_SNAPSHOT | TK_FLAG_CORRECTED | TK_FLAG_BACKFILLED

# What `check` does with a record of each type: which state it uses, and its priority.
cdef uint8_t KIND_OF_TYPE[8]
cdef uint8_t PRIORITY_OF_TYPE[8]
# by record type:      (none)            tick              quote               bar
KIND_OF_TYPE[:] = [    3,                0,                1,                  3,
                       0,                2,                3,                  3]
PRIORITY_OF_TYPE[:] = [TK_PRIORITY_LOW,  TK_PRIORITY_HIGH, TK_PRIORITY_NORMAL, TK_PRIORITY_LOW,
                       TK_PRIORITY_HIGH, TK_PRIORITY_LOW,  TK_PRIORITY_HIGH,   TK_PRIORITY_HIGH]
#                      trade             level2            news                status

REJECT_REASONS = ("unknown record type", "print without a price", "impossible value")

assert sizeof(State) == 64


cdef inline bint finite(double value) noexcept nogil:
    return value - value == 0.0  # false for NaN and for both infinities


cdef inline bint bad_size(double size) noexcept nogil:
    return size < 0 or size == INFINITY


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
    cdef const uint8_t *_tiers        # by instrument id, or NULL
    cdef object _tiers_array
    cdef tk_record _last_rejected
    cdef int _last_reason

    def __cinit__(self, *, bint enabled, bint reject_impossible, int64_t late_after_ns, bint late_when_replayed,
                  double deviations, double floor_fraction, double limit_fraction, double spike_factor,
                  uint32_t warm_up, uint32_t memory, tiers=None):
        cdef const uint8_t[::1] view
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
        self._tiers = NULL
        if tiers is not None:
            view = tiers
            if view.shape[0] < TIERS:
                raise ValueError(f"tiers has {view.shape[0]} entries, must have {TIERS}")
            self._tiers_array, self._tiers = tiers, &view[0]
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

    cdef inline uint16_t _order(self, State *state, const tk_record *record) noexcept nogil:
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
        return TK_FLAG_OUT_OF_ORDER

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
                verdict = TK_FLAG_OUTLIER
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
            verdict = TK_FLAG_VOLUME_SPIKE
            size = self._spike_factor * state.mean_size
        state.mean_size += self._rate(state) * (size - state.mean_size)
        return verdict

    cdef inline int _reject_reason(self, const tk_record *record) noexcept nogil:
        """Why a record is no use to anyone, -1 if it is. Needs no state: a restarted worker judges the same."""
        cdef uint8_t kind = record.record_type
        if kind == 0 or kind > TK_TYPE_STATUS:
            return 0
        if (kind == TK_TYPE_TICK or kind == TK_TYPE_TRADE) and not finite(record.tick.price):
            return 1
        if self._reject_impossible and self._impossible(record):
            return 2
        return -1

    cdef inline bint _impossible(self, const tk_record *record) noexcept nogil:
        """Values that no market has: negative or infinite sizes, infinite prices, a bar upside down."""
        cdef uint8_t kind = record.record_type
        if kind == TK_TYPE_TICK or kind == TK_TYPE_TRADE:
            return bad_size(record.tick.size) or fabs(record.tick.price) == INFINITY
        if kind == TK_TYPE_LEVEL2:
            return bad_size(record.level2.size) or fabs(record.level2.price) == INFINITY
        if kind == TK_TYPE_QUOTE:
            return (bad_size(record.quote.bid_size) or bad_size(record.quote.ask_size)
                    or fabs(record.quote.bid) == INFINITY or fabs(record.quote.ask) == INFINITY)
        if kind == TK_TYPE_BAR:
            return bad_size(record.bar.volume) or record.bar.high < record.bar.low
        return False

    cdef inline uint16_t _judge(self, const tk_record *record, State *state) noexcept nogil:
        """The flags that a record deserves."""
        cdef uint8_t kind = record.record_type
        cdef uint16_t verdict = TK_FLAG_INCOMPLETE if self._impossible(record) else 0
        if state.generation != self._generation:
            memset(state, 0, sizeof(State))
            state.generation = self._generation
        if kind == TK_TYPE_BAR:
            if not (finite(record.bar.open) and finite(record.bar.high) and finite(record.bar.low)
                    and finite(record.bar.close)):
                verdict = TK_FLAG_INCOMPLETE
            return verdict
        if kind == TK_TYPE_NEWS or kind == TK_TYPE_STATUS:
            return 0
        if not record.flags & OUT_OF_SEQUENCE:
            verdict |= self._order(state, record)
            if (self._late_after_ns > 0 and record.ts_event > 0
                    and record.ts_receive - record.ts_event > self._late_after_ns
                    and (self._late_when_replayed or not record.flags & TK_FLAG_REPLAYED)):
                verdict |= TK_FLAG_LATE
        if kind == TK_TYPE_QUOTE:
            verdict |= self._judge_quote(&record.quote, state)
        elif kind == TK_TYPE_LEVEL2:
            if record.level2.best_bid > record.level2.best_ask:
                verdict |= TK_FLAG_CROSSED
            if not finite(record.level2.price) and record.level2.action != TK_ACTION_CLEAR:
                verdict |= TK_FLAG_INCOMPLETE
        else:
            verdict |= self._judge_print(&record.tick, state)
        return verdict

    cdef inline uint16_t _judge_quote(self, const tk_quote *quote, State *state) noexcept nogil:
        cdef uint16_t verdict
        if not (finite(quote.bid) and finite(quote.ask)) or quote.bid == 0 or quote.ask == 0:
            return TK_FLAG_INCOMPLETE
        verdict = self._price(state, 0.5 * (quote.bid + quote.ask))
        return verdict | TK_FLAG_CROSSED if quote.bid > quote.ask else verdict

    cdef inline uint16_t _judge_print(self, const tk_tick *tick, State *state) noexcept nogil:
        cdef uint16_t verdict
        if tick.price == 0 or not finite(tick.size):
            return TK_FLAG_INCOMPLETE
        verdict = self._size(state, tick.size)
        return verdict | self._price(state, tick.price)

    def check(self, records, Py_ssize_t count):
        """Set flags and priority of records[:count], move out what is rejected; returns how many are left, in order.

        `records` is a writable C-contiguous array of 128-byte records. MemoryError if a new instrument finds no room.
        """
        cdef Py_buffer view
        cdef tk_record *batch
        cdef tk_record *record
        cdef Py_ssize_t i, kept = 0
        cdef uint16_t verdict
        cdef int reason, bit
        cdef bint no_room = False
        PyObject_GetBuffer(records, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if count < 0 or count * <Py_ssize_t>sizeof(tk_record) > view.len:
            PyBuffer_Release(&view)
            raise ValueError(f"count is {count}, the array holds {view.len // sizeof(tk_record)} records")
        batch = <tk_record *>view.buf
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
                if (self._tiers != NULL and record.priority != TK_PRIORITY_HIGH and record.instrument_id < TIERS
                        and self._tiers[record.instrument_id] <= TK_PRIORITY_LOW):
                    record.priority = self._tiers[record.instrument_id]
                if self._enabled and record.instrument_id < ID_LIMIT:
                    if record.instrument_id >= self._capacity and not self._grow(record.instrument_id):
                        no_room = True
                        break
                    verdict = self._judge(
                        record, &self._states[<size_t>record.instrument_id * KINDS + KIND_OF_TYPE[record.record_type]]
                    )
                    if verdict:
                        record.flags |= verdict
                        for bit in range(16):
                            self._flagged[bit] += (verdict >> bit) & 1
                if record.record_type == TK_TYPE_STATUS and record.status.code == TK_STATUS_END_OF_REPLAY:
                    self._generation += 1  # what comes next may begin anywhere in time
                if kept != i:
                    memcpy(&batch[kept], record, sizeof(tk_record))
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
        return REJECT_REASONS[self._last_reason], (<char *>&self._last_rejected)[:sizeof(tk_record)]
