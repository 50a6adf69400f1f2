# Part of workers/_redundancy.pyx: the keys of a group, found by record: what is known of each and of each member, who publishes
# it, and when a record tells of an event that lies beyond another.

cdef enum:
    KINDS = 8                  # record types, 0 unused
    MEMBERS = 8
    FOLLOWS = 255              # the key's publisher is the group's
    ID_LIMIT = 1 << 24         # beyond any instrument table: such ids share one key a type
    LENGTHS = 16               # of bars of one instrument; those of further ones share a key
    BELIEVE_AFTER = 64         # trade ids behind the mark in a row: the venue has begun to count again

cdef int64_t ID_SPAN_NS = 60000000000     # a trade id says nothing about trades that are further apart than this
cdef int64_t QUOTE_SPAN_NS = 1000000000   # nor a sequence number about quotes: it might be its connection's alone
cdef int64_t FUTURE_NS = 5000000000       # an event time further ahead of the clock than this is no mark

MAX_MEMBERS = MEMBERS
FOLLOW = FOLLOWS

cdef extern from "workers/group_book.h" nogil:
    struct group_book:
        uint8_t whole

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

cdef struct Trait:             # what a member is
    uint64_t slots             # of all its books
    uint16_t feed_id
    uint8_t source
    uint8_t asks               # it is polled: its pauses say nothing
    uint8_t orders             # its level2 records are single orders
    uint8_t kinds              # bit t: it has subscribed to record type t; 0 = nobody knows

cdef struct Keys:
    Key *key
    int64_t *pending           # parallel to `key`: when a standby had its second unanswered event; 0 = never
    uint32_t count, room
    uint32_t owing             # keys with `pending`
    uint32_t generation        # of the last switch
    int active                 # the member that publishes every key that has no publisher of its own
    uint32_t indexed           # instruments
    uint32_t *index            # instrument id * KINDS + type -> key + 1
    uint32_t index_none[KINDS] # the same beyond ID_LIMIT


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


cdef inline int owner_of(const Keys *keys, const Key *key) noexcept nogil:
    """The member that publishes it."""
    return key.active if key.active != FOLLOWS else keys.active


cdef inline Key *find_key(Keys *keys, const tk_record *record) noexcept nogil:
    """The record's key, made when first met, whereby others may move in memory; NULL = no memory. Hot."""
    cdef uint32_t kind = record.record_type & (KINDS - 1)
    cdef uint32_t *entry
    if record.instrument_id < ID_LIMIT:
        if record.instrument_id >= keys.indexed and not grow_index(keys, record.instrument_id):
            return NULL
        entry = &keys.index[<size_t>record.instrument_id * KINDS + kind]
    else:
        entry = &keys.index_none[kind]
    if entry[0] == 0 and not make_key(keys, entry, record, <uint8_t>kind):
        return NULL
    if kind == TK_TYPE_BAR and keys.key[entry[0] - 1].interval_s != record.bar.interval_s:
        return find_length(keys, entry[0] - 1, record)
    return &keys.key[entry[0] - 1]


cdef bint grow_index(Keys *keys, uint32_t instrument_id) noexcept nogil:
    """Room for the instrument; False = no memory."""
    cdef uint32_t wanted = keys.indexed if keys.indexed else 256
    cdef uint32_t *grown
    while wanted <= instrument_id:
        wanted *= 2
    grown = <uint32_t *>realloc(keys.index, <size_t>wanted * KINDS * sizeof(uint32_t))
    if grown == NULL:
        return False
    memset(grown + <size_t>keys.indexed * KINDS, 0, <size_t>(wanted - keys.indexed) * KINDS * sizeof(uint32_t))
    keys.index = grown
    keys.indexed = wanted
    return True


cdef Key *find_length(Keys *keys, uint32_t at, const tk_record *record) noexcept nogil:
    """The key of a bar, behind the one of another length."""
    cdef uint32_t made = 0
    cdef int lengths = 1
    while keys.key[at].longer and keys.key[at].interval_s != record.bar.interval_s:
        at = keys.key[at].longer - 1
        lengths += 1
    if keys.key[at].interval_s == record.bar.interval_s or lengths == LENGTHS:
        return &keys.key[at]
    if not make_key(keys, &made, record, TK_TYPE_BAR):
        return NULL
    keys.key[at].longer = made
    return &keys.key[made - 1]


cdef bint make_key(Keys *keys, uint32_t *entry, const tk_record *record, uint8_t kind) noexcept nogil:
    """A new key for the record; its number + 1 goes into `entry`. False = no memory."""
    cdef uint32_t room
    cdef void *grown
    cdef Key *key
    if keys.count == keys.room:
        room = keys.room * 2 if keys.room else 64
        grown = realloc(keys.key, room * sizeof(Key))
        if grown == NULL:
            return False
        keys.key = <Key *>grown
        grown = realloc(keys.pending, room * sizeof(int64_t))
        if grown == NULL:
            return False
        keys.pending = <int64_t *>grown
        keys.room = room
    key = &keys.key[keys.count]
    memset(key, 0, sizeof(Key))
    key.mark_ts = key.fence_ts = key.fresh_ts = key.lost_ts = INT64_MIN
    key.instrument_id = record.instrument_id
    key.kind = kind
    key.interval_s = record.bar.interval_s if kind == TK_TYPE_BAR else 0
    key.active = FOLLOWS
    keys.pending[keys.count] = 0
    keys.count += 1
    entry[0] = keys.count
    return True


cdef inline void move_mark(Key *key, const tk_record *record, int64_t now_ns) noexcept nogil:
    """The record is published."""
    cdef int64_t ts = event_ns(record)
    cdef uint64_t identity = identity_of(record), venue
    if ts > now_ns + FUTURE_NS:
        ts = now_ns + FUTURE_NS
    if ts > key.mark_ts:
        key.mark_ts = ts
    if identity == 0:
        return
    venue = venue_of(record)
    if venue != key.mark_venue or identity > key.mark_id:
        key.mark_venue, key.mark_id, key.back_run = venue, identity, 0
        return
    key.back_run += 1
    if key.back_run >= BELIEVE_AFTER:
        key.mark_id, key.back_run = identity, 0


cdef inline void free_keys(Keys *keys) noexcept nogil:
    free(keys.key)
    free(keys.pending)
    free(keys.index)
