# Part of workers/_redundancy.pyx: what is known of each key and of each member, and when a record tells of an event that lies
# beyond another.

cdef enum:
    KINDS = 8                  # record types, 0 unused
    MEMBERS = 8
    FOLLOWS = 255              # the key's publisher is the group's
    ID_LIMIT = 1 << 24         # beyond any instrument table: such ids share one key a type
    LENGTHS = 16               # of bars of one instrument; those of further ones share a key
    BELIEVE_AFTER = 64         # trade ids behind the mark in a row: the venue has begun to count again
    LEARNED_AFTER = 3          # answers after which a member's waits are known

cdef int64_t ID_SPAN_NS = 60000000000     # a trade id says nothing about trades that are further apart than this
cdef int64_t QUOTE_SPAN_NS = 1000000000   # nor a sequence number about quotes: it might be its connection's alone
cdef int64_t FUTURE_NS = 5000000000       # an event time further ahead of the clock than this is no mark
cdef double HALF_LIFE_NS = 300e9
cdef int64_t LONGEST_PAUSE_NS = 10000000000

MAX_MEMBERS = MEMBERS
FOLLOW = FOLLOWS

cdef extern from "workers/group_book.h" nogil:
    struct group_book:
        uint8_t whole
    int group_book_tell(group_book *book, const tk_record *record, int orders, uint64_t *slots, uint64_t limit)
    void group_book_void(group_book *book, uint64_t *slots)
    void group_book_close(group_book *book, uint64_t *slots)
    uint64_t group_book_records(const group_book *book)
    int group_book_picture(const group_book *book, tk_record *out, int before, int64_t now_ns)
    enum:
        SLOT_BYTES "sizeof(struct group_level)"

cdef struct Pulse:             # of one member, for a key or the whole group
    int64_t heard_ns           # its last record
    int64_t learned_ns         # when `longest_ns` was last brought up to date
    double longest_ns          # longest wait for its answer, fading by half in five minutes
    uint32_t answers
    uint32_t spare

cdef struct Key:
    int64_t mark_ts
    uint64_t mark_id
    uint64_t mark_venue
    int64_t fence_ts
    uint64_t fence_id
    uint64_t fence_venue
    int64_t fresh_ts           # newest event of a standby that the publisher has not answered
    int64_t lost_ts            # newest event that a full backlog let go of before anybody published it
    uint32_t instrument_id
    uint32_t generation        # of the last switch that concerned it
    uint32_t interval_s        # of bars
    uint32_t longer            # key + 1 of bars of another length; 0 = there is none
    uint16_t back_run          # trade ids behind the mark, one after the other
    uint8_t unanswered         # events, at most 2 counted
    uint8_t active             # a member, or FOLLOWS
    uint8_t kind
    uint8_t cut                # its next record does not go on where the one before it ended
    uint8_t due                # a book that is to be published whole before its next change
    uint8_t spare[5]
    group_book **books         # of level2: by member, NULL = it has told nothing
    Pulse pulses[MEMBERS]

cdef struct Backlog:
    tk_record *records
    uint64_t written           # since ever
    uint64_t withheld

cdef struct Trait:             # what a member is
    uint64_t slots             # of all its books
    uint16_t feed_id
    uint8_t source
    uint8_t asks               # it is polled: its pauses say nothing
    uint8_t orders             # its level2 records are single orders
    uint8_t kinds              # bit t: it has subscribed to record type t; 0 = nobody knows


cdef inline uint64_t venue_of(const tk_record *record) noexcept nogil:
    cdef uint64_t venue
    memcpy(&venue, record.venue, 8)
    return venue


cdef inline bint is_of_feed(const tk_record *record) noexcept nogil:
    """A status record that is not of an instrument's trading."""
    return record.record_type == TK_TYPE_STATUS and record.status.code != TK_STATUS_TRADING_STATUS


cdef inline int64_t event_ns(const tk_record *record) noexcept nogil:
    return record.ts_event if record.ts_event != 0 else record.ts_receive


cdef inline uint64_t identity_of(const tk_record *record) noexcept nogil:
    if record.record_type == TK_TYPE_TRADE or record.record_type == TK_TYPE_TICK:
        return record.tick.trade_id
    if record.record_type == TK_TYPE_QUOTE and event_ns(record) == record.ts_receive:
        return record.source_sequence
    return 0


cdef inline bint beyond(const tk_record *record, int64_t ts, uint64_t identity, uint64_t venue) noexcept nogil:
    """Whether the record tells of an event after the one described by the other arguments."""
    cdef uint64_t own = identity_of(record)
    cdef int64_t span = QUOTE_SPAN_NS if record.record_type == TK_TYPE_QUOTE else ID_SPAN_NS
    if own != 0 and identity != 0 and venue == venue_of(record) and event_ns(record) <= ts + span:
        return own > identity
    return event_ns(record) > ts


cdef inline void learn(Pulse *pulse, int64_t wait_ns, int64_t now_ns) noexcept nogil:
    if now_ns - pulse.learned_ns > 1000000000:
        if pulse.longest_ns > 0:
            pulse.longest_ns *= exp2(-<double>(now_ns - pulse.learned_ns) / HALF_LIFE_NS)
        pulse.learned_ns = now_ns
    if wait_ns > pulse.longest_ns:
        pulse.longest_ns = <double>wait_ns
    if pulse.answers < LEARNED_AFTER:
        pulse.answers += 1
