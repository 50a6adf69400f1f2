# Part of workers/_redundancy.pyx: who owes an answer. A standby has had two events that are newer than anything published of a
# key, and the key's publisher nothing since: from then on it is waited for, for the key and, if the key has no publisher of
# its own, for the whole group. How long each member's answers take is learned here; what is too long, and what comes of it,
# is for workers/redundancy.py to say.

cdef enum:
    LEARNED_AFTER = 3          # answers after which a member's waits are known

cdef double HALF_LIFE_NS = 300e9
cdef int64_t LONGEST_PAUSE_NS = 10000000000

cdef struct Waits:             # of the whole group
    Pulse pulses[MEMBERS]
    double pause_ns[MEMBERS]   # longest pause between two batches of a member, fading
    int64_t pending            # when a standby had its second unanswered event; 0 = never
    uint8_t unanswered         # events, at most 2 counted


cdef inline void learn(Pulse *pulse, int64_t wait_ns, int64_t now_ns) noexcept nogil:
    if now_ns - pulse.learned_ns > 1000000000:
        if pulse.longest_ns > 0:
            pulse.longest_ns *= exp2(-<double>(now_ns - pulse.learned_ns) / HALF_LIFE_NS)
        pulse.learned_ns = now_ns
    if wait_ns > pulse.longest_ns:
        pulse.longest_ns = <double>wait_ns
    if pulse.answers < LEARNED_AFTER:
        pulse.answers += 1


cdef inline void note_pause(Waits *waits, int member, int64_t now_ns) noexcept nogil:
    """The member has delivered a batch."""
    cdef Pulse *pulse = &waits.pulses[member]
    cdef int64_t pause = now_ns - pulse.heard_ns
    if pulse.heard_ns:
        if pause > 1000000000:
            waits.pause_ns[member] *= exp2(-<double>pause / HALF_LIFE_NS)
        if pause > LONGEST_PAUSE_NS:
            pause = LONGEST_PAUSE_NS
        if pause > waits.pause_ns[member]:
            waits.pause_ns[member] = <double>pause
    pulse.heard_ns = now_ns


cdef inline void settle(Keys *keys, Key *key) noexcept nogil:
    """Nothing is unanswered there."""
    cdef Py_ssize_t at = key - keys.key
    if keys.pending[at]:
        keys.pending[at] = 0
        keys.owing -= 1
    key.unanswered = 0
    key.fresh_ts = INT64_MIN


cdef inline void settle_group(Waits *waits) noexcept nogil:
    waits.unanswered, waits.pending = 0, 0


cdef inline void answered(Waits *waits, Keys *keys, Key *key, int member, int64_t now_ns) noexcept nogil:
    """The publisher of a key has said something."""
    cdef int64_t pending = keys.pending[key - keys.key]
    learn(&key.pulses[member], now_ns - pending if pending else 0, now_ns)
    if key.unanswered:
        settle(keys, key)
    if key.active == FOLLOWS:
        learn(&waits.pulses[member], now_ns - waits.pending if waits.pending else 0, now_ns)
        settle_group(waits)


cdef inline bint lacks(const Trait *trait, unsigned kind) noexcept nogil:
    return trait.kinds != 0 and not trait.kinds >> kind & 1


cdef inline void ahead(Waits *waits, Keys *keys, Key *key, const Trait *traits, const tk_record *record,
                       int64_t now_ns) noexcept nogil:
    """A standby has an event that the publisher of its key has not told. Of a single one nothing is thought, unless
    the publisher does not carry such records at all."""
    cdef int64_t ts = event_ns(record)
    cdef int owner = owner_of(keys, key)
    cdef const Trait *trait = &traits[owner]
    if ts <= key.fresh_ts or (trait.asks and key.pulses[owner].heard_ns):
        return  # one that is asked for it has it when it is asked
    key.fresh_ts = ts
    if key.kind == TK_TYPE_STATUS:
        return
    if key.unanswered < 2:
        key.unanswered = 2 if lacks(trait, key.kind) else key.unanswered + 1
        if key.unanswered == 2:
            keys.pending[key - keys.key] = now_ns
            keys.owing += 1
    # What the publisher has never had says nothing of its health, unless it has had nothing at all.
    if not key.pulses[owner].heard_ns and (waits.pulses[owner].heard_ns or trait.asks):
        return
    if key.active == FOLLOWS and waits.unanswered < 2:
        waits.unanswered += 1
        if waits.unanswered == 2:
            waits.pending = now_ns


cdef inline int64_t allowed_ns(const Pulse *pulse, int64_t least_ns, int64_t unlearned_ns) noexcept nogil:
    """How long it may owe an answer: twice its longest wait lately and at least `least_ns`; unlearned_ns: not known yet."""
    cdef int64_t usual = <int64_t>(2 * pulse.longest_ns)
    if pulse.answers < LEARNED_AFTER:
        return unlearned_ns
    return usual if usual > least_ns else least_ns


cdef inline int heard_since(const Key *key, int owner) noexcept nogil:
    """A bit for each member that was heard of there since its publisher."""
    cdef int member, who = 0
    for member in range(MEMBERS):
        if key.pulses[member].heard_ns > key.pulses[owner].heard_ns:
            who |= 1 << member
    return who
