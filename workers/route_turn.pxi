# Part of _route.pyx: the turn: which topics its records have, where each record goes, and what it changes.
#
#     count_topics   records -> buckets, one a topic; who of the shard's records has none
#     lay_out        buckets -> raw frames, the list for encoders, the list of what is held back
#     commit_turn    numbers and cursor into the topic table
#
# Hot: every loop here is once a record or once a topic; nothing is allocated.

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


# The turn in hand, and what of it outlives it: who wants what, what is marked, where numbers are.
cdef struct Turn:
    char *records           # of the last scan
    uint32_t count
    uint32_t shard, shards
    uint32_t topic_of_code[256]   # of status records
    Bucket *bucket
    uint32_t buckets
    uint32_t unresolved     # of these
    uint32_t mine           # records of this shard; what the batch topic carries
    uint32_t *bucket_of     # [TOPICS] 1 + index into bucket; 0 = not in this turn
    uint32_t *bucket_of_record
    uint64_t unroutable     # records so far that no topic has
    uint8_t *wanted         # [TOPICS], as the two below
    uint8_t *marks
    uint16_t *rings_of
    tk_word *words          # the topic table
    uint64_t topics_word, block_word
    uint32_t *encode_index
    uint32_t *encode_topic
    uint64_t *encode_number
    uint32_t encode
    uint32_t *held_index
    uint32_t *held_topic
    uint64_t *held_number
    uint32_t held


cdef inline uint64_t number_word(const Turn *turn, uint32_t topic) noexcept nogil:
    if topic < SYMBOL_TOPICS:
        return turn.topics_word + topic
    return turn.block_word + SHARD_TOPIC_WORD + (topic - SYMBOL_TOPICS)


cdef void count_topics(Turn *turn) noexcept nogil:
    cdef const char *at = <const char *>turn.records
    cdef const Head *head
    cdef Bucket *bucket
    cdef uint32_t i, topic, slot, instrument, kind, unresolved = 0, buckets = 0, mine = 0
    cdef uint32_t shards = turn.shards, count = <uint32_t>turn.count
    cdef uint64_t unroutable = 0
    for i in range(turn.buckets):  # of a turn that was scanned and never routed
        turn.bucket_of[turn.bucket[i].topic] = 0
    for i in range(count):
        head = <const Head *>at
        at += RECORD_BYTES
        turn.bucket_of_record[i] = NOWHERE
        instrument = head.instrument_id
        kind = head.record_type
        if shards > 1:
            if instrument == NO_INSTRUMENT:
                if turn.shard != 0:
                    continue
            elif instrument % shards != turn.shard:
                continue
        mine += 1
        turn.bucket_of_record[i] = NOWHERE - 1
        if kind - 1 < 6 and instrument < INSTRUMENTS:
            topic = (kind - 1) * INSTRUMENTS + instrument
        elif kind == 7:
            topic = turn.topic_of_code[head.code if head.code < 256 else 255]
        else:
            unroutable += 1
            continue
        slot = turn.bucket_of[topic]
        if slot == 0:
            bucket = &turn.bucket[buckets]
            buckets += 1
            slot = buckets
            turn.bucket_of[topic] = slot
            bucket.topic = topic
            bucket.count = 1
            bucket.first = i
            bucket.tier = head.priority
            unresolved += turn.wanted[topic] == 0
        else:
            bucket = &turn.bucket[slot - 1]
            bucket.count += 1
            if head.priority < bucket.tier:
                bucket.tier = head.priority
        turn.bucket_of_record[i] = slot - 1
    turn.buckets = buckets
    turn.unresolved = unresolved
    turn.unroutable += unroutable
    turn.mine = mine


cdef inline bint is_held(const Turn *turn, const Bucket *bucket, uint32_t hold) noexcept nogil:
    """Whether the records of a topic are to wait."""
    cdef uint32_t kind = bucket.topic // INSTRUMENTS + 1
    if not bucket.wanted & (W_RAW | W_ENCODED) or (kind != 2 and kind != 3 and kind != 5):
        return False
    if turn.marks[bucket.topic] == MARK_HELD:
        return True
    return hold >> (bucket.tier if bucket.tier < LOWEST_TIER else LOWEST_TIER) & 1


cdef void lay_out(Turn *turn, Frames *raw, uint16_t ring, uint32_t hold) noexcept nogil:
    cdef const char *records = <const char *>turn.records
    cdef Bucket *bucket
    cdef uint32_t i, slot, some, most = raw.most, count = <uint32_t>turn.count, encode = 0
    cdef uint64_t done
    cdef char *to
    cdef bint copies = False, holes = False, held = False
    begin_frames(raw)
    for i in range(turn.buckets):
        bucket = &turn.bucket[i]
        bucket.wanted = turn.wanted[bucket.topic]
        bucket.held = False
        turn.rings_of[bucket.topic] |= <uint16_t>(1 << ring)
        bucket.number = tk_load_relaxed(turn.words + number_word(turn, bucket.topic)) + 1
        bucket.to = NULL
        if is_held(turn, bucket, hold):
            bucket.held = held = True
            bucket.wanted = 0
            continue
        copies |= bucket.wanted & (W_RAW | W_ENCODED)
        if bucket.wanted & (W_RAW | W_ENCODED) and turn.marks[bucket.topic] == MARK_HOLE:
            holes = True
        if bucket.wanted & W_RAW:
            bucket.to = add_frames(raw, bucket.topic, ring, bucket.count, bucket.number)
            bucket.room = most
    if copies:
        for i in range(count):
            slot = turn.bucket_of_record[i]
            if slot >= NOWHERE - 1:
                continue
            bucket = &turn.bucket[slot]
            if bucket.to != NULL:
                if bucket.room == 0:  # the next frame of this topic starts right behind
                    bucket.to += HEADER_BYTES
                    bucket.room = most
                memcpy(bucket.to, records + <uint64_t>i * RECORD_BYTES, RECORD_BYTES)
                bucket.to += RECORD_BYTES
                bucket.room -= 1
            if bucket.wanted & W_ENCODED:
                turn.encode_index[encode] = i
                turn.encode_topic[encode] = bucket.topic
                turn.encode_number[encode] = bucket.number
                bucket.number += 1
                encode += 1
    turn.encode = encode
    turn.held = 0
    if held:
        list_held(turn)
    if turn.mine and turn.wanted[BATCH] & W_RAW:
        to = add_frames(raw, BATCH, ring, turn.mine,
                        tk_load_relaxed(turn.words + number_word(turn, BATCH)) + 1)
        if turn.mine == count:
            done = 0
            while done < count:
                some = most if count - done > most else <uint32_t>(count - done)
                memcpy(to, records + done * RECORD_BYTES, <uint64_t>some * RECORD_BYTES)
                to += <uint64_t>some * RECORD_BYTES + HEADER_BYTES
                done += some
        else:
            some = most
            for i in range(count):
                if turn.bucket_of_record[i] == NOWHERE:
                    continue
                if some == 0:
                    to += HEADER_BYTES
                    some = most
                memcpy(to, records + <uint64_t>i * RECORD_BYTES, RECORD_BYTES)
                to += RECORD_BYTES
                some -= 1
    if holes:
        flag_holes(turn, raw)

cdef void list_held(Turn *turn) noexcept nogil:
    """Note the records that are numbered and kept back, in order."""
    cdef Bucket *bucket
    cdef uint32_t i, slot, held = 0
    for i in range(<uint32_t>turn.count):
        slot = turn.bucket_of_record[i]
        if slot >= NOWHERE - 1 or not turn.bucket[slot].held:
            continue
        bucket = &turn.bucket[slot]
        turn.held_index[held] = i
        turn.held_topic[held] = bucket.topic
        turn.held_number[held] = bucket.number
        bucket.number += 1
        held += 1
    turn.held = held

cdef void flag_holes(Turn *turn, Frames *raw) noexcept nogil:
    """Records were shed before the first of these topics: say so in its raw copy, and in the turn for encoders.

    The batch topic has its copies by now: nothing is missing there.
    """
    cdef Bucket *bucket
    cdef Head *head
    cdef uint32_t i, frame = 0
    for i in range(turn.buckets):
        bucket = &turn.bucket[i]
        if bucket.held:
            continue
        if turn.marks[bucket.topic] == MARK_HOLE and bucket.wanted & (W_RAW | W_ENCODED):
            turn.marks[bucket.topic] = 0
            head = <Head *>(<char *>turn.records + <uint64_t>bucket.first * RECORD_BYTES)
            head.flags |= GAP_BEFORE
            if bucket.wanted & W_RAW:
                (<Head *>(raw.out + raw.at[frame] + HEADER_BYTES)).flags |= GAP_BEFORE
        if bucket.wanted & W_RAW:
            frame += (bucket.count + raw.most - 1) // raw.most


cdef void commit_turn(Turn *turn, Redo *redo, uint16_t ring, uint64_t cursor, int announce) noexcept nogil:
    """The new cursor and numbers, all or none of them, whenever this process is killed (workers/topics.py)."""
    cdef uint64_t word
    cdef uint32_t i
    if cursor:
        note(redo, turn.block_word + ring, cursor)
    if turn.count:
        note_turn(redo, <const Head *>turn.records, <uint64_t>turn.count, ring, cursor, announce)
    if turn.mine:
        turn.rings_of[BATCH] |= <uint16_t>(1 << ring)
        word = number_word(turn, BATCH)
        note(redo, word, tk_load_relaxed(turn.words + word) + turn.mine)
    for i in range(turn.buckets):
        word = number_word(turn, turn.bucket[i].topic)
        note(redo, word, tk_load_relaxed(turn.words + word) + turn.bucket[i].count)
        turn.bucket_of[turn.bucket[i].topic] = 0
    turn.buckets = 0
    commit(redo)
