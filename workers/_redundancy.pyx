# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""What a redundancy group does with each record: publish, withhold, or drop as told already. For workers/redundancy.py alone.

A *key* is one record type of one instrument, of bars those of one length. For each the board knows who publishes it, the
newest event published (the *mark*), the mark at the last switch (the *fence*), and which events a standby has had that the
publisher has not answered.

    record of the publisher    not beyond the fence: dropped, the feed before it has told that. Else kept; moves the mark.
                               A correction is kept whatever its time
    record of another member   into that member's backlog, a ring: the oldest goes when it is full
    level2, of any member      into that member's book of the instrument (workers/group_book.h), and not into a backlog: what
                               one feed says of levels means nothing in the book of another. After a switch the book is
                               due: it goes out whole (`pictures`), and until then changes go into it alone
    status record of a feed    published, whoever says it; an instrument's trading status is a record type like any
                               other, but whoever does not tell it owes no answer: not every feed carries it
    beyond a mark or fence     by trade id where both have the same venue and ids, else by event time; quotes to which
                               their venue gives no time (it is that of receipt then) by its sequence number, for a second

It decides nothing and reads no clock: who publishes is set from outside, times are passed in (ns).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport exp2
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from workers.record cimport *

from shm.layout import empty

include "redundancy_keys.pxi"


cdef class Board:
    """The keys and backlogs of one group of at most MAX_MEMBERS members, numbered from 0.

    Attributes:
        active: the member that publishes; set by `switch`.
        standby: records withheld so far, duplicates: dropped as told already, lost: let go of by a full backlog before
        anybody had published them, levels_lost: of books, without room.
        due: books that `pictures` has to publish.
    """

    cdef Key *_keys
    cdef int64_t *_pending            # parallel to keys: when a standby had its second unanswered event; 0 = never
    cdef uint32_t _count, _room
    cdef uint32_t *_index             # instrument id * KINDS + type -> key + 1
    cdef uint32_t _indexed            # instruments
    cdef uint32_t _index_none[KINDS]
    cdef Backlog _backlogs[MEMBERS]
    cdef uint32_t _depth
    cdef uint32_t _generation
    cdef Pulse _pulses[MEMBERS]       # of the group
    cdef double _pause_ns[MEMBERS]    # longest pause between two batches of a member, fading
    cdef int64_t _group_pending
    cdef uint8_t _group_unanswered
    cdef uint32_t _pending_keys
    cdef Trait _traits[MEMBERS]
    cdef uint64_t _slots_limit        # of all books of one member
    cdef uint32_t _picture_at         # the key that `pictures` looks at next
    cdef readonly int active
    cdef readonly uint32_t due
    cdef readonly uint64_t standby, duplicates, lost, levels_lost

    def __cinit__(self, *, uint32_t backlog_records, uint64_t book_bytes):
        """`backlog_records`: kept of each standby. `book_bytes`: memory for the books of each member."""
        if backlog_records < 1:
            raise ValueError("backlog_records must be at least 1")
        self._depth = backlog_records
        self._slots_limit = book_bytes // SLOT_BYTES

    def __dealloc__(self):
        cdef int member
        cdef uint32_t at
        for at in range(self._count):
            if self._keys[at].books != NULL:
                for member in range(MEMBERS):
                    self._drop_book(&self._keys[at], member)
                free(self._keys[at].books)
        free(self._keys)
        free(self._pending)
        free(self._index)
        for member in range(MEMBERS):
            free(self._backlogs[member].records)

    cdef Key *_key(self, const tk_record *record) noexcept nogil:
        """The record's key, made when first met; NULL = no memory."""
        cdef uint32_t kind = record.record_type & (KINDS - 1), wanted
        cdef uint32_t *entry
        cdef uint32_t *grown
        if record.instrument_id < ID_LIMIT:
            if record.instrument_id >= self._indexed:
                wanted = self._indexed if self._indexed else 256
                while wanted <= record.instrument_id:
                    wanted *= 2
                grown = <uint32_t *>realloc(self._index, <size_t>wanted * KINDS * sizeof(uint32_t))
                if grown == NULL:
                    return NULL
                memset(grown + <size_t>self._indexed * KINDS, 0,
                       <size_t>(wanted - self._indexed) * KINDS * sizeof(uint32_t))
                self._index = grown
                self._indexed = wanted
            entry = &self._index[<size_t>record.instrument_id * KINDS + kind]
        else:
            entry = &self._index_none[kind]
        if entry[0] == 0 and not self._make(entry, record, <uint8_t>kind):
            return NULL
        if kind == TK_TYPE_BAR and self._keys[entry[0] - 1].interval_s != record.bar.interval_s:
            return self._of_length(entry[0] - 1, record)
        return &self._keys[entry[0] - 1]

    cdef Key *_of_length(self, uint32_t at, const tk_record *record) noexcept nogil:
        cdef uint32_t made = 0
        cdef int lengths = 1
        while self._keys[at].longer and self._keys[at].interval_s != record.bar.interval_s:
            at = self._keys[at].longer - 1
            lengths += 1
        if self._keys[at].interval_s == record.bar.interval_s or lengths == LENGTHS:
            return &self._keys[at]
        if not self._make(&made, record, TK_TYPE_BAR):
            return NULL
        self._keys[at].longer = made
        return &self._keys[made - 1]

    cdef bint _make(self, uint32_t *entry, const tk_record *record, uint8_t kind) noexcept nogil:
        cdef uint32_t room
        cdef void *keys
        cdef void *pending
        cdef Key *key
        if self._count == self._room:
            room = self._room * 2 if self._room else 64
            keys = realloc(self._keys, room * sizeof(Key))
            if keys == NULL:
                return False
            self._keys = <Key *>keys
            pending = realloc(self._pending, room * sizeof(int64_t))
            if pending == NULL:
                return False
            self._pending = <int64_t *>pending
            self._room = room
        key = &self._keys[self._count]
        memset(key, 0, sizeof(Key))
        key.mark_ts = key.fence_ts = key.fresh_ts = key.lost_ts = INT64_MIN
        key.instrument_id = record.instrument_id
        key.kind = kind
        key.interval_s = record.bar.interval_s if kind == TK_TYPE_BAR else 0
        key.active = FOLLOWS
        self._pending[self._count] = 0
        self._count += 1
        entry[0] = self._count
        return True

    cdef inline void _mark(self, Key *key, const tk_record *record, int64_t now_ns) noexcept nogil:
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

    cdef void _drop_book(self, Key *key, int member) noexcept nogil:
        if key.books != NULL and key.books[member] != NULL:
            group_book_close(key.books[member], &self._traits[member].slots)
            free(key.books[member])
            key.books[member] = NULL

    cdef bint _tell_book(self, Key *key, int member, const tk_record *record) noexcept nogil:
        """A level2 record goes into the book of the member that told it; False = no memory for a book."""
        cdef group_book **books = key.books
        if books == NULL:
            books = key.books = <group_book **>calloc(MEMBERS, sizeof(void *))
            if books == NULL:
                return False
        if books[member] == NULL:
            books[member] = <group_book *>calloc(1, sizeof(group_book))
            if books[member] == NULL:
                return False
        if not group_book_tell(books[member], record, self._traits[member].orders, &self._traits[member].slots,
                               self._slots_limit):
            self.levels_lost += 1
        return True

    cdef void _doubt(self, int member, uint32_t instrument_id) noexcept nogil:
        """The member has a hole: its books there may lack something until they begin anew."""
        cdef uint32_t at
        for at in range(self._count):
            if (self._keys[at].books != NULL and self._keys[at].books[member] != NULL
                    and (instrument_id >= ID_LIMIT or self._keys[at].instrument_id == instrument_id)):
                self._keys[at].books[member].whole = 0

    cdef void _make_due(self, Key *key) noexcept nogil:
        if not key.due:
            key.due = 1
            self.due += 1

    cdef inline void _settle(self, Key *key) noexcept nogil:
        """Nothing is unanswered there."""
        cdef Py_ssize_t at = key - self._keys
        if self._pending[at]:
            self._pending[at] = 0
            self._pending_keys -= 1
        key.unanswered = 0
        key.fresh_ts = INT64_MIN

    cdef inline void _answered(self, Key *key, int member, int64_t now_ns) noexcept nogil:
        """The publisher of a key has said something."""
        cdef int64_t pending = self._pending[key - self._keys]
        learn(&key.pulses[member], now_ns - pending if pending else 0, now_ns)
        if key.unanswered:
            self._settle(key)
        if key.active == FOLLOWS:
            learn(&self._pulses[member], now_ns - self._group_pending if self._group_pending else 0, now_ns)
            self._group_unanswered, self._group_pending = 0, 0

    cdef inline void _ahead(self, Key *key, const tk_record *record, int64_t now_ns) noexcept nogil:
        """A standby has an event that the publisher of its key has not told. Of a single one nothing is thought, unless
        the publisher does not carry such records at all."""
        cdef int64_t ts = event_ns(record)
        cdef int owner = key.active if key.active != FOLLOWS else self.active
        cdef Trait *trait = &self._traits[owner]
        if ts <= key.fresh_ts or (trait.asks and key.pulses[owner].heard_ns):
            return  # one that is asked for it has it when it is asked
        key.fresh_ts = ts
        if key.kind == TK_TYPE_STATUS:
            return
        if key.unanswered < 2:
            key.unanswered = 2 if self._lacks(owner, key.kind) else key.unanswered + 1
            if key.unanswered == 2:
                self._pending[key - self._keys] = now_ns
                self._pending_keys += 1
        # What the publisher has never had says nothing of its health, unless it has had nothing at all.
        if not key.pulses[owner].heard_ns and (self._pulses[owner].heard_ns or trait.asks):
            return
        if key.active == FOLLOWS and self._group_unanswered < 2:
            self._group_unanswered += 1
            if self._group_unanswered == 2:
                self._group_pending = now_ns

    cdef inline bint _lacks(self, int member, unsigned kind) noexcept nogil:
        return self._traits[member].kinds != 0 and not self._traits[member].kinds >> kind & 1

    cdef inline bint _withhold(self, int member, const tk_record *record) noexcept nogil:
        cdef Backlog *backlog = &self._backlogs[member]
        cdef tk_record *slot
        cdef Key *key
        if backlog.records == NULL:
            backlog.records = <tk_record *>malloc(<size_t>self._depth * sizeof(tk_record))
            if backlog.records == NULL:
                return False
        slot = &backlog.records[backlog.written % self._depth]
        if backlog.written >= self._depth:
            key = self._key(slot)
            if (key.active if key.active != FOLLOWS else self.active) != member and beyond(
                slot, key.mark_ts, key.mark_id, key.mark_venue
            ):
                self.lost += 1
                if event_ns(slot) > key.lost_ts:
                    key.lost_ts = event_ns(slot)
        memcpy(slot, record, sizeof(tk_record))
        backlog.written += 1
        backlog.withheld += 1
        self.standby += 1
        return True

    def filter(self, records, Py_ssize_t count, int member, int64_t now_ns):
        """What of records[:count], which `member` has delivered, is to be published: moved to the start of the array, in
        order; returns how many. Status records of feeds always are. `records` as for `Checker.check` (workers/_quality.pyx)."""
        cdef Py_buffer view
        cdef tk_record *batch
        cdef tk_record *record
        cdef Key *key
        cdef Py_ssize_t i, kept = 0
        cdef int64_t pause
        cdef int owner
        cdef bint no_room = False, first = True, book
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member}: there are {MEMBERS}")
        PyObject_GetBuffer(records, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if count < 0 or count * <Py_ssize_t>sizeof(tk_record) > view.len:
            PyBuffer_Release(&view)
            raise ValueError(f"count is {count}, the array holds {view.len // sizeof(tk_record)} records")
        batch = <tk_record *>view.buf
        with nogil:
            for i in range(count):
                record = &batch[i]
                if not is_of_feed(record):
                    if first:
                        first = False
                        self._note_pause(member, now_ns)
                        self._traits[member].source = record.source
                    key = self._key(record)
                    if key == NULL:
                        no_room = True
                        break
                    owner = key.active if key.active != FOLLOWS else self.active
                    book = record.record_type == TK_TYPE_LEVEL2
                    if book and not self._tell_book(key, member, record):
                        no_room = True
                        break
                    if owner != member:
                        if (not record.flags & (TK_FLAG_SNAPSHOT | TK_FLAG_BACKFILLED) or self._lacks(owner, key.kind)
                                ) and beyond(record, key.mark_ts, key.mark_id, key.mark_venue):
                            self._ahead(key, record, now_ns)
                        key.pulses[member].heard_ns = now_ns
                        if book:
                            self._backlogs[member].withheld += 1
                            self.standby += 1
                        elif not self._withhold(member, record):
                            no_room = True
                            break
                        continue
                    key.pulses[member].heard_ns = now_ns
                    self._answered(key, member, now_ns)
                    if book:
                        if key.due:
                            if record.level2.action != TK_ACTION_CLEAR:
                                self.duplicates += 1  # the picture that is about to follow tells it
                                continue
                            key.due = 0
                            self.due -= 1
                    elif record.flags & TK_FLAG_CORRECTED:
                        pass
                    elif not beyond(record, key.fence_ts, key.fence_id, key.fence_venue):
                        self.duplicates += 1
                        continue
                    if not record.flags & TK_FLAG_CORRECTED:
                        self._mark(key, record, now_ns)
                    if key.cut:
                        record.flags |= TK_FLAG_GAP_BEFORE
                        key.cut = 0
                elif record.status.code == TK_STATUS_GAP:
                    self._doubt(member, record.instrument_id)
                if kept != i:
                    memcpy(&batch[kept], record, sizeof(tk_record))
                kept += 1
        PyBuffer_Release(&view)
        if no_room:
            raise MemoryError("no memory for the state of a redundancy group")
        return kept

    cdef inline void _note_pause(self, int member, int64_t now_ns) noexcept nogil:
        cdef Pulse *pulse = &self._pulses[member]
        cdef int64_t pause = now_ns - pulse.heard_ns
        if pulse.heard_ns:
            if pause > 1000000000:
                self._pause_ns[member] *= exp2(-<double>pause / HALF_LIFE_NS)
            if pause > LONGEST_PAUSE_NS:
                pause = LONGEST_PAUSE_NS
            if pause > self._pause_ns[member]:
                self._pause_ns[member] = <double>pause
        pulse.heard_ns = now_ns

    def restore(self, records, Py_ssize_t count, int64_t now_ns):
        """records[:count] were published before this process began: move the marks, and fence all keys behind them."""
        cdef Py_buffer view
        cdef tk_record *batch
        cdef Key *key
        cdef Py_ssize_t i
        cdef uint32_t at
        PyObject_GetBuffer(records, &view, PyBUF_SIMPLE)
        batch = <tk_record *>view.buf
        try:
            if count < 0 or count * <Py_ssize_t>sizeof(tk_record) > view.len:
                raise ValueError(f"count is {count}, the array holds {view.len // sizeof(tk_record)} records")
            for i in range(count):
                if is_of_feed(&batch[i]):
                    continue
                key = self._key(&batch[i])
                if key == NULL:
                    raise MemoryError("no memory for the state of a redundancy group")
                self._mark(key, &batch[i], now_ns)
        finally:
            PyBuffer_Release(&view)
        for at in range(self._count):
            self._fence(&self._keys[at])

    cdef int _fence(self, Key *key) noexcept nogil:
        """What comes next of the key must lie beyond what was published. Returns 1 if something before it is lost.

        Of a book nothing is dropped: its feed's changes are needed whatever their time.
        """
        cdef int hole = key.lost_ts > key.mark_ts
        key.generation = self._generation
        key.lost_ts = INT64_MIN
        self._settle(key)
        if key.kind == TK_TYPE_LEVEL2:
            key.cut = key.mark_ts != INT64_MIN
            return 0
        key.fence_ts, key.fence_id, key.fence_venue = key.mark_ts, key.mark_id, key.mark_venue
        key.cut = hole
        return hole

    cdef int _hand_over(self, Key *key) noexcept nogil:
        """Another member publishes the key from now on."""
        if key.kind == TK_TYPE_LEVEL2:
            self._make_due(key)
        return self._fence(key)

    def refence(self):
        """The publisher has connected anew: what it tells again is not published again."""
        cdef uint32_t at
        for at in range(self._count):
            if self._keys[at].active == FOLLOWS:
                self._fence(&self._keys[at])
        self._group_unanswered, self._group_pending = 0, 0

    def switch(self, int member):
        """From now on `member` publishes every key that has no publisher of its own.

        Returns of how many keys events are lost that no backlog holds any more. Call `release(member)` next, and
        `pictures` until no book is due.
        """
        cdef uint32_t at
        cdef int holes = 0
        cdef Key *key
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member}: there are {MEMBERS}")
        self._generation += 1
        for at in range(self._count):
            key = &self._keys[at]
            if key.active == member:
                key.active = FOLLOWS  # it has published this all along
                self._settle(key)
            elif key.active == FOLLOWS and self.active != member:
                holes += self._hand_over(key)
        self.active = member
        self._group_unanswered, self._group_pending = 0, 0
        return holes

    def begin(self):
        """Some keys are about to get other publishers (`assign`), each released afterwards."""
        self._generation += 1

    def assign(self, uint32_t number, int member):
        """A key's publisher is `member` from now on; FOLLOW = the group's. Returns 1 if something of it is lost."""
        cdef Key *key
        cdef int before, after, hole = 0
        if number >= self._count:
            raise IndexError(f"key {number}: there are {self._count}")
        if not (0 <= member < MEMBERS or member == FOLLOWS):
            raise ValueError(f"member {member}: there are {MEMBERS}")
        key = &self._keys[number]
        before = key.active if key.active != FOLLOWS else self.active
        after = member if member != FOLLOWS else self.active
        key.active = <uint8_t>(FOLLOWS if after == self.active else after)
        if before != after:
            hole = self._hand_over(key)
        return hole

    def release(self, int member, int64_t now_ns):
        """What `member` has withheld of the keys that the last switch gave to it, and lies beyond their fences.

        A RECORD array, in order of arrival, flagged BACKFILLED; it counts as published now.
        """
        cdef Backlog *backlog
        cdef uint64_t first, at
        cdef uint32_t found = 0
        cdef tk_record *record
        cdef tk_record *target
        cdef Py_buffer view
        cdef Key *key
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member}: there are {MEMBERS}")
        backlog = &self._backlogs[member]
        first = backlog.written - self._depth if backlog.written > self._depth else 0
        for at in range(first, backlog.written):
            found += self._is_due(member, &backlog.records[at % self._depth])
        out = empty(found)
        if not found:
            return out
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        target = <tk_record *>view.buf
        for at in range(first, backlog.written):
            record = &backlog.records[at % self._depth]
            if self._is_due(member, record):
                memcpy(target, record, sizeof(tk_record))
                target.flags |= TK_FLAG_BACKFILLED
                key = self._key(record)
                if key.cut:
                    target.flags |= TK_FLAG_GAP_BEFORE
                    key.cut = 0
                self._mark(key, record, now_ns)
                target += 1
        PyBuffer_Release(&view)
        return out

    def pictures(self, uint64_t most, int64_t now_ns):
        """Books that are due, each as its publisher has it: a RECORD array of SNAPSHOT records, CLEAR first.

        Whole books only, as many as make `most` records, but one at least; call again while `due`. A book of which its
        publisher has told nothing, or not since its connection was lost, is a CLEAR alone, flagged INCOMPLETE.
        """
        cdef Py_buffer view
        cdef tk_record *target
        cdef uint32_t looked = 0, taken = 0, at, first
        cdef uint64_t records = 0, more
        cdef Key *key
        cdef bint failed = False
        if not self._count:
            return empty(0)
        first = self._picture_at % self._count
        while looked < self._count and taken < self.due:
            key = &self._keys[(first + looked) % self._count]
            if key.due:
                more = self._picture_records(key)
                if taken and records + more > most:
                    break
                records += more
                taken += 1
            looked += 1
        out = empty(records)
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        target = <tk_record *>view.buf
        for at in range(looked):
            key = &self._keys[(first + at) % self._count]
            if not key.due:
                continue
            more = self._picture_records(key)
            if more:
                if not self._paint(key, target, now_ns):
                    failed = True
                    break
                target += more
                key.cut = 0
            key.due = 0
            self.due -= 1
        PyBuffer_Release(&view)
        self._picture_at = first + looked
        if failed:
            raise MemoryError("no memory for the book of a redundancy group")
        return out

    cdef group_book *_book(self, Key *key) noexcept nogil:
        """As its publisher has it; NULL = it has told nothing."""
        cdef int owner = key.active if key.active != FOLLOWS else self.active
        return key.books[owner] if key.books != NULL else NULL

    cdef uint64_t _picture_records(self, Key *key) noexcept nogil:
        cdef group_book *book = self._book(key)
        if book == NULL:
            return 1 if key.mark_ts != INT64_MIN else 0
        return group_book_records(book)

    cdef bint _paint(self, Key *key, tk_record *target, int64_t now_ns) noexcept nogil:
        cdef int owner = key.active if key.active != FOLLOWS else self.active
        cdef group_book *book = self._book(key)
        cdef group_book none
        if book == NULL:
            memset(&none, 0, sizeof(group_book))
            book = &none
        if not group_book_picture(book, target, key.cut, now_ns):
            return False
        target.instrument_id = key.instrument_id
        target.feed_id, target.source = self._traits[owner].feed_id, self._traits[owner].source
        self._mark(key, target, now_ns)
        return True

    def introduce(self, int member, int feed_id, bint asks, bint orders, int kinds):
        """What a member is: polled, of single orders, which record types it has subscribed to (bits; 0 = unknown)."""
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member}: there are {MEMBERS}")
        cdef Trait *trait = &self._traits[member]
        if trait.orders != orders:
            self.void(member)
        trait.feed_id, trait.asks, trait.orders, trait.kinds = feed_id, asks, orders, kinds

    def void(self, int member):
        """The member's connection is lost: its books are not known any more, until it tells them anew."""
        cdef uint32_t at
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member}: there are {MEMBERS}")
        for at in range(self._count):
            if self._keys[at].books != NULL and self._keys[at].books[member] != NULL:
                group_book_void(self._keys[at].books[member], &self._traits[member].slots)

    def book_bytes(self, int member):
        """Memory of the member's books."""
        return self._traits[member & (MEMBERS - 1)].slots * SLOT_BYTES

    cdef bint _is_due(self, int member, const tk_record *record) noexcept nogil:
        cdef Key *key = self._key(record)
        cdef int owner = key.active if key.active != FOLLOWS else self.active
        return (owner == member and key.generation == self._generation
                and beyond(record, key.fence_ts, key.fence_id, key.fence_venue))

    def forget(self, int member):
        """The member has left; its number may be another's next. Returns the keys that it had published by itself."""
        cdef uint32_t at
        found = []
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member}: there are {MEMBERS}")
        for at in range(self._count):
            memset(&self._keys[at].pulses[member], 0, sizeof(Pulse))
            self._drop_book(&self._keys[at], member)
            if self._keys[at].active == member:
                found.append(at)
        memset(&self._pulses[member], 0, sizeof(Pulse))
        self._pause_ns[member] = 0
        free(self._backlogs[member].records)
        memset(&self._backlogs[member], 0, sizeof(Backlog))
        memset(&self._traits[member], 0, sizeof(Trait))
        return found

    def late(self, int64_t now_ns, int64_t least_ns, int64_t unlearned_ns):
        """Keys whose publisher owes an answer for too long.

        [(key, instrument, type, seconds of a bar, publisher, who has it, waited ns)].

        Too long: twice its longest wait lately and at least `least_ns`; `unlearned_ns` where that is not known yet.
        `who has it` has a bit for each member heard of since the publisher.
        """
        cdef uint32_t at
        cdef int owner, member, who
        cdef Key *key
        cdef Pulse *pulse
        cdef int64_t allowed
        found = []
        if not self._pending_keys:
            return found
        for at in range(self._count):
            if not self._pending[at] or now_ns - self._pending[at] <= least_ns:
                continue
            key = &self._keys[at]
            owner = key.active if key.active != FOLLOWS else self.active
            pulse = &key.pulses[owner]
            allowed = self._allowed(pulse, least_ns, unlearned_ns)
            if now_ns - self._pending[at] <= allowed:
                continue
            who = 0
            for member in range(MEMBERS):
                if key.pulses[member].heard_ns > pulse.heard_ns:
                    who |= 1 << member
            found.append((at, key.instrument_id, key.kind, key.interval_s, owner, who, now_ns - self._pending[at]))
        return found

    cdef inline int64_t _allowed(self, Pulse *pulse, int64_t least_ns, int64_t unlearned_ns) noexcept nogil:
        cdef int64_t usual = <int64_t>(2 * pulse.longest_ns)
        if pulse.answers < LEARNED_AFTER:
            return unlearned_ns
        return usual if usual > least_ns else least_ns

    def overdue_ns(self, int64_t now_ns, int64_t least_ns, int64_t unlearned_ns):
        """For how long the group's publisher owes an answer, whatever the key; 0 = not for too long. See `late`."""
        if not self._group_pending:
            return 0
        waited = now_ns - self._group_pending
        return waited if waited > self._allowed(&self._pulses[self.active], least_ns, unlearned_ns) else 0

    @property
    def owed(self):
        """Whether any publisher owes an answer."""
        return self._group_pending != 0 or self._pending_keys != 0

    def heard_ns(self, int member):
        """When the member delivered last, ns; 0 = never."""
        return self._pulses[member & (MEMBERS - 1)].heard_ns

    def pause_ns(self, int member):
        """Its longest pause lately, ns, at most ten seconds."""
        return self._pause_ns[member & (MEMBERS - 1)]

    def withheld(self, int member):
        """How many of its records were withheld."""
        return self._backlogs[member & (MEMBERS - 1)].withheld

    def key_heard_ns(self, uint32_t number, int member):
        """When the member last delivered a record of the key, ns; 0 = never."""
        if number >= self._count:
            raise IndexError(f"key {number}: there are {self._count}")
        return self._keys[number].pulses[member & (MEMBERS - 1)].heard_ns

    def key_allowed_ns(self, uint32_t number, int member, int64_t least_ns, int64_t unlearned_ns):
        """How long the member may owe an answer there."""
        if number >= self._count:
            raise IndexError(f"key {number}: there are {self._count}")
        return self._allowed(&self._keys[number].pulses[member & (MEMBERS - 1)], least_ns, unlearned_ns)

    def mark(self, uint32_t instrument_id, int kind):
        """(event time, trade id or 0) of the newest that was published of an instrument and type; None = nothing."""
        cdef uint32_t at
        for at in range(self._count):
            if self._keys[at].instrument_id == instrument_id and self._keys[at].kind == kind:
                if self._keys[at].mark_ts == INT64_MIN:
                    return None
                return self._keys[at].mark_ts, self._keys[at].mark_id
        return None
