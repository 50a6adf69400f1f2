# Part of workers/_redundancy.pyx: the backlogs of a group: what each standby has delivered lately, in a ring each, so that a
# switch leaves no hole. A full one lets go of its oldest, which is counted and remembered if nobody has published it. Books
# are not kept here (workers/redundancy_books.pxi).

cdef struct Backlog:
    tk_record *records
    uint64_t written           # since ever
    uint64_t withheld          # books' records too

cdef struct Backlogs:
    Backlog of[MEMBERS]
    uint32_t depth             # records each
    uint64_t standby           # withheld so far, of all
    uint64_t lost              # let go of before anybody had published them


cdef inline void count_withheld(Backlogs *backlogs, int member) noexcept nogil:
    backlogs.of[member].withheld += 1
    backlogs.standby += 1


cdef inline bint withhold(Backlogs *backlogs, Keys *keys, int member, const tk_record *record) noexcept nogil:
    """Keep a record; False = no memory."""
    cdef Backlog *backlog = &backlogs.of[member]
    cdef tk_record *slot
    cdef Key *key
    if backlog.records == NULL:
        backlog.records = <tk_record *>malloc(<size_t>backlogs.depth * sizeof(tk_record))
        if backlog.records == NULL:
            return False
    slot = &backlog.records[backlog.written % backlogs.depth]
    if backlog.written >= backlogs.depth:
        key = find_key(keys, slot)
        if owner_of(keys, key) != member and beyond(slot, key.mark_ts, key.mark_id, key.mark_venue):
            backlogs.lost += 1
            if event_ns(slot) > key.lost_ts:
                key.lost_ts = event_ns(slot)
    memcpy(slot, record, sizeof(tk_record))
    backlog.written += 1
    count_withheld(backlogs, member)
    return True


cdef inline uint64_t oldest_kept(const Backlogs *backlogs, int member) noexcept nogil:
    cdef uint64_t written = backlogs.of[member].written
    return written - backlogs.depth if written > backlogs.depth else 0


cdef inline bint is_released(Keys *keys, int member, const tk_record *record) noexcept nogil:
    """Whether the last switch gave its key to the member, and it lies beyond the fence."""
    cdef Key *key = find_key(keys, record)
    return (owner_of(keys, key) == member and key.generation == keys.generation
            and beyond(record, key.fence_ts, key.fence_id, key.fence_venue))


cdef uint32_t count_released(const Backlogs *backlogs, Keys *keys, int member) noexcept nogil:
    cdef const Backlog *backlog = &backlogs.of[member]
    cdef uint64_t at
    cdef uint32_t found = 0
    for at in range(oldest_kept(backlogs, member), backlog.written):
        found += is_released(keys, member, &backlog.records[at % backlogs.depth])
    return found


cdef void copy_released(const Backlogs *backlogs, Keys *keys, int member, tk_record *target, int64_t now_ns) noexcept nogil:
    """What `count_released` has counted, in order of arrival, flagged BACKFILLED; it counts as published."""
    cdef const Backlog *backlog = &backlogs.of[member]
    cdef const tk_record *record
    cdef uint64_t at
    cdef Key *key
    for at in range(oldest_kept(backlogs, member), backlog.written):
        record = &backlog.records[at % backlogs.depth]
        if is_released(keys, member, record):
            memcpy(target, record, sizeof(tk_record))
            target.flags |= TK_FLAG_BACKFILLED
            key = find_key(keys, record)
            if key.cut:
                target.flags |= TK_FLAG_GAP_BEFORE
                key.cut = 0
            move_mark(key, record, now_ns)
            target += 1


cdef inline void drop_backlog(Backlogs *backlogs, int member) noexcept nogil:
    free(backlogs.of[member].records)
    memset(&backlogs.of[member], 0, sizeof(Backlog))
