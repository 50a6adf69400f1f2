# Part of workers/_route.pyx: what a turn changes in the topic table, all of it or nothing, whenever this process is killed
# (workers/topics.py tells why). `note` what is to change, value by value, `note_turn` what the turn log says of it, then
# `commit`; a process that starts on a shard calls `recover` first. Nothing else writes the table once a shard is claimed.

cdef enum:  # of the turn log (workers/topics.py)
    TURNS = 32768
    TURN_WORDS = 4
    KIND_NUMBERED = 0
    KIND_AFTER_GAP = 1
    KIND_ANNOUNCED = 2
    KIND_CUT = 4

assert (TURNS, TURN_WORDS) == (_topics.TURNS, _topics.TURN_WORDS)
assert (KIND_NUMBERED, KIND_AFTER_GAP, KIND_ANNOUNCED) == (_topics.NUMBERED, _topics.AFTER_GAP, _topics.ANNOUNCED)
assert KIND_CUT == _topics.CUT

cdef uint32_t LOGGED_WORD = _topics.LOGGED_WORD
cdef uint32_t LOG_WORD = _topics.LOG_WORD
cdef uint32_t TURNS_MADE_WORD = _topics.TURNS_MADE_WORD
cdef uint64_t COUNT_MASK = (<uint64_t>1 << 48) - 1
cdef uint16_t GAP_BEFORE = int(Flag.GAP_BEFORE)


# One shard's redo log, in its block of the topic table.
cdef struct Redo:
    tk_word *words          # the whole table
    uint64_t words_count
    tk_word *block          # the shard's block in it, which begins at words[block_word]
    uint64_t block_word
    uint64_t turns_word     # where the shard's turn log begins
    uint64_t room           # entries that the log has room for: one a record of the largest turn, and LOG_SPARE
    uint64_t logged         # entries noted for the turn that is not committed yet


cdef void apply(Redo *redo, uint64_t logged) noexcept nogil:
    """Store the first `logged` values where they belong; doing it again changes nothing."""
    cdef tk_word *log = redo.block + LOG_WORD
    cdef uint64_t i, word
    for i in range(logged):
        word = tk_load_relaxed(log + 2 * i)
        if word < redo.words_count:
            tk_store_relaxed(redo.words + word, tk_load_relaxed(log + 2 * i + 1))


cdef void recover(Redo *redo) noexcept nogil:
    """Apply the log that a killed process declared valid."""
    cdef uint64_t logged = tk_load_acquire(redo.block + LOGGED_WORD)  # pair REDO
    if logged <= redo.room:
        apply(redo, logged)
    empty_log(redo)


cdef void empty_log(Redo *redo) noexcept nogil:
    """After every value is applied, and before the next turn's are noted."""
    tk_store_release(redo.block + LOGGED_WORD, 0)
    tk_fence_release()


cdef void note(Redo *redo, uint64_t word, uint64_t value) noexcept nogil:
    """`words[word]` will be `value`."""
    cdef tk_word *log = redo.block + LOG_WORD
    tk_store_relaxed(log + 2 * redo.logged, word)
    tk_store_relaxed(log + 2 * redo.logged + 1, value)
    redo.logged += 1


cdef void note_turn(
    Redo *redo, const Head *head, uint64_t count, uint16_t ring, uint64_t cursor, int announce
) noexcept nogil:
    """Enter a turn of `count` records, `head` the first, into the turn log: with the entry before it if it goes on where
    that ended, else by itself."""
    cdef uint64_t made = tk_load_relaxed(redo.block + TURNS_MADE_WORD)
    cdef uint64_t at = redo.turns_word + made % TURNS * TURN_WORDS
    cdef uint64_t first = 0, end = 0, time_ns = 0
    cdef uint64_t last, meta, kind = KIND_CUT
    if announce:
        kind, first, end, time_ns = announce, head.from_sequence, head.to_sequence, head.ts_publish
    elif cursor > count:
        first = cursor - count
        kind = KIND_AFTER_GAP if head.flags & GAP_BEFORE else KIND_NUMBERED
        if made and kind == KIND_NUMBERED:
            last = redo.turns_word + (made - 1) % TURNS * TURN_WORDS
            meta = tk_load_relaxed(redo.words + last + 1)
            if (
                meta >> 56 <= KIND_AFTER_GAP
                and (meta >> 48 & 0xFF) == ring
                and tk_load_relaxed(redo.words + last) + (meta & COUNT_MASK) == first
            ):
                note(redo, last + 1, meta + count)
                return
    note(redo, at, first)
    note(redo, at + 1, count | <uint64_t>ring << 48 | kind << 56)
    note(redo, at + 2, end)
    note(redo, at + 3, time_ns)
    note(redo, redo.block_word + TURNS_MADE_WORD, made + 1)


cdef void commit(Redo *redo) noexcept nogil:
    """Make what was noted so: killed before the first store it never was, killed after it `recover` completes it."""
    TK_ROUTE_STOP(1)
    tk_store_release(redo.block + LOGGED_WORD, redo.logged)  # valid from here on: pair REDO, with `recover`
    tk_fence_release()                                       # and no value is applied before it is
    TK_ROUTE_STOP(2)
    if TK_ROUTE_HAS_STOPS:
        apply(redo, redo.logged // 2)
        TK_ROUTE_STOP(3)
    apply(redo, redo.logged)
    TK_ROUTE_STOP(4)
    empty_log(redo)
    redo.logged = 0
