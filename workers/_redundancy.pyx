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
include "redundancy_waits.pxi"
include "redundancy_books.pxi"
include "redundancy_backlog.pxi"


cdef inline int checked(int member) except -1:
    if not 0 <= member < MEMBERS:
        raise ValueError(f"member {member}: there are {MEMBERS}")
    return member


cdef class Board:
    """The keys, books and backlogs of one group of at most MAX_MEMBERS members, numbered from 0.

    Attributes:
        duplicates: records dropped so far, as told already.
    """

    cdef Keys _keys
    cdef Waits _waits
    cdef Books _books
    cdef Backlogs _backlogs
    cdef Trait _traits[MEMBERS]
    cdef readonly uint64_t duplicates

    def __cinit__(self, *, uint32_t backlog_records, uint64_t book_bytes):
        """`backlog_records`: kept of each standby. `book_bytes`: memory for the books of each member."""
        if backlog_records < 1:
            raise ValueError("backlog_records must be at least 1")
        self._backlogs.depth = backlog_records
        self._books.slots_limit = book_bytes // SLOT_BYTES

    def __dealloc__(self):
        cdef int member
        free_books(&self._keys, self._traits)
        free_keys(&self._keys)
        for member in range(MEMBERS):
            drop_backlog(&self._backlogs, member)

    @property
    def active(self):
        """The member that publishes what has no publisher of its own; set by `switch`."""
        return self._keys.active

    @property
    def due(self):
        """Books that `pictures` has to publish."""
        return self._books.due

    @property
    def standby(self):
        """Records withheld so far."""
        return self._backlogs.standby

    @property
    def lost(self):
        """Records that a full backlog let go of before anybody had published them."""
        return self._backlogs.lost

    @property
    def levels_lost(self):
        """Levels of books that found no room."""
        return self._books.lost

    def filter(self, records, Py_ssize_t count, int member, int64_t now_ns):
        """What of records[:count], which `member` has delivered, is to be published: moved to the start of the array, in
        order; returns how many. Status records of feeds always are. `records` as for `Checker.check` (workers/_quality.pyx)."""
        cdef Py_buffer view
        cdef tk_record *batch
        cdef tk_record *record
        cdef Key *key
        cdef Py_ssize_t i, kept = 0
        cdef int owner
        cdef bint no_room = False, first = True, book
        checked(member)
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
                        note_pause(&self._waits, member, now_ns)
                        self._traits[member].source = record.source
                    key = find_key(&self._keys, record)
                    if key == NULL:
                        no_room = True
                        break
                    owner = owner_of(&self._keys, key)
                    book = record.record_type == TK_TYPE_LEVEL2
                    if book and not tell_book(&self._books, key, member, &self._traits[member], record):
                        no_room = True
                        break
                    if owner != member:
                        if (not record.flags & (TK_FLAG_SNAPSHOT | TK_FLAG_BACKFILLED)
                                or lacks(&self._traits[owner], key.kind)
                                ) and beyond(record, key.mark_ts, key.mark_id, key.mark_venue):
                            ahead(&self._waits, &self._keys, key, self._traits, record, now_ns)
                        key.pulses[member].heard_ns = now_ns
                        if book:
                            count_withheld(&self._backlogs, member)
                        elif not withhold(&self._backlogs, &self._keys, member, record):
                            no_room = True
                            break
                        continue
                    key.pulses[member].heard_ns = now_ns
                    answered(&self._waits, &self._keys, key, member, now_ns)
                    if book:
                        if key.due:
                            if record.level2.action != TK_ACTION_CLEAR:
                                self.duplicates += 1  # the picture that is about to follow tells it
                                continue
                            make_told(&self._books, key)
                    elif record.flags & TK_FLAG_CORRECTED:
                        pass
                    elif not beyond(record, key.fence_ts, key.fence_id, key.fence_venue):
                        self.duplicates += 1
                        continue
                    if not record.flags & TK_FLAG_CORRECTED:
                        move_mark(key, record, now_ns)
                    if key.cut:
                        record.flags |= TK_FLAG_GAP_BEFORE
                        key.cut = 0
                elif record.status.code == TK_STATUS_GAP:
                    doubt_books(&self._keys, member, record.instrument_id)
                if kept != i:
                    memcpy(&batch[kept], record, sizeof(tk_record))
                kept += 1
        PyBuffer_Release(&view)
        if no_room:
            raise MemoryError("no memory for the state of a redundancy group")
        return kept

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
                key = find_key(&self._keys, &batch[i])
                if key == NULL:
                    raise MemoryError("no memory for the state of a redundancy group")
                move_mark(key, &batch[i], now_ns)
        finally:
            PyBuffer_Release(&view)
        for at in range(self._keys.count):
            self._fence(&self._keys.key[at])

    cdef int _fence(self, Key *key) noexcept nogil:
        """What comes next of the key must lie beyond what was published. Returns 1 if something before it is lost.

        Of a book nothing is dropped: its feed's changes are needed whatever their time.
        """
        cdef int hole = key.lost_ts > key.mark_ts
        key.generation = self._keys.generation
        key.lost_ts = INT64_MIN
        settle(&self._keys, key)
        if key.kind == TK_TYPE_LEVEL2:
            key.cut = key.mark_ts != INT64_MIN
            return 0
        key.fence_ts, key.fence_id, key.fence_venue = key.mark_ts, key.mark_id, key.mark_venue
        key.cut = hole
        return hole

    cdef int _hand_over(self, Key *key) noexcept nogil:
        """Another member publishes the key from now on."""
        if key.kind == TK_TYPE_LEVEL2:
            make_due(&self._books, key)
        return self._fence(key)

    def refence(self):
        """The publisher has connected anew: what it tells again is not published again."""
        cdef uint32_t at
        for at in range(self._keys.count):
            if self._keys.key[at].active == FOLLOWS:
                self._fence(&self._keys.key[at])
        settle_group(&self._waits)

    def switch(self, int member):
        """From now on `member` publishes every key that has no publisher of its own.

        Returns of how many keys events are lost that no backlog holds any more. Call `release(member)` next, and
        `pictures` until no book is due.
        """
        cdef uint32_t at
        cdef int holes = 0
        cdef Key *key
        checked(member)
        self._keys.generation += 1
        for at in range(self._keys.count):
            key = &self._keys.key[at]
            if key.active == member:
                key.active = FOLLOWS  # it has published this all along
                settle(&self._keys, key)
            elif key.active == FOLLOWS and self._keys.active != member:
                holes += self._hand_over(key)
        self._keys.active = member
        settle_group(&self._waits)
        return holes

    def begin(self):
        """Some keys are about to get other publishers (`assign`), each released afterwards."""
        self._keys.generation += 1

    def assign(self, uint32_t number, int member):
        """A key's publisher is `member` from now on; FOLLOW = the group's. Returns 1 if something of it is lost."""
        cdef Key *key = self._numbered(number)
        cdef int before, after, hole = 0
        if member != FOLLOWS:
            checked(member)
        before = owner_of(&self._keys, key)
        after = member if member != FOLLOWS else self._keys.active
        key.active = <uint8_t>(FOLLOWS if after == self._keys.active else after)
        if before != after:
            hole = self._hand_over(key)
        return hole

    def release(self, int member, int64_t now_ns):
        """What `member` has withheld of the keys that the last switch gave to it, and lies beyond their fences.

        A RECORD array, in order of arrival, flagged BACKFILLED; it counts as published now.
        """
        cdef Py_buffer view
        out = empty(count_released(&self._backlogs, &self._keys, checked(member)))
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        copy_released(&self._backlogs, &self._keys, member, <tk_record *>view.buf, now_ns)
        PyBuffer_Release(&view)
        return out

    def pictures(self, uint64_t most, int64_t now_ns):
        """Books that are due, each as its publisher has it: a RECORD array of SNAPSHOT records, CLEAR first.

        Whole books only, as many as make `most` records, but one at least; call again while `due`. A book of which its
        publisher has told nothing, or not since its connection was lost, is a CLEAR alone, flagged INCOMPLETE.
        """
        cdef Py_buffer view
        cdef uint64_t records = 0
        cdef uint32_t looked = choose_pictures(&self._books, &self._keys, most, &records)
        cdef bint painted
        out = empty(records)
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        painted = paint_pictures(&self._books, &self._keys, self._traits, looked, <tk_record *>view.buf, now_ns)
        PyBuffer_Release(&view)
        if not painted:
            raise MemoryError("no memory for the book of a redundancy group")
        return out

    def introduce(self, int member, int feed_id, bint asks, bint orders, int kinds):
        """What a member is: polled, of single orders, which record types it has subscribed to (bits; 0 = unknown)."""
        cdef Trait *trait = &self._traits[checked(member)]
        if trait.orders != orders:
            self.void(member)
        trait.feed_id, trait.asks, trait.orders, trait.kinds = feed_id, asks, orders, kinds

    def void(self, int member):
        """The member's connection is lost: its books are not known any more, until it tells them anew."""
        void_books(&self._keys, checked(member), &self._traits[member])

    def book_bytes(self, int member):
        """Memory of the member's books."""
        return self._traits[member & (MEMBERS - 1)].slots * SLOT_BYTES

    def forget(self, int member):
        """The member has left; its number may be another's next. Returns the keys that it had published by itself."""
        cdef uint32_t at
        cdef Key *key
        found = []
        checked(member)
        for at in range(self._keys.count):
            key = &self._keys.key[at]
            memset(&key.pulses[member], 0, sizeof(Pulse))
            drop_book(key, member, &self._traits[member])
            if key.active == member:
                found.append(at)
        memset(&self._waits.pulses[member], 0, sizeof(Pulse))
        self._waits.pause_ns[member] = 0
        drop_backlog(&self._backlogs, member)
        memset(&self._traits[member], 0, sizeof(Trait))
        return found

    def late(self, int64_t now_ns, int64_t least_ns, int64_t unlearned_ns):
        """Keys whose publisher owes an answer for too long.

        [(key, instrument, type, seconds of a bar, publisher, who has it, waited ns)].

        Too long: twice its longest wait lately and at least `least_ns`; `unlearned_ns` where that is not known yet.
        `who has it` has a bit for each member heard of since the publisher.
        """
        cdef uint32_t at
        cdef int owner
        cdef int64_t waited
        cdef Key *key
        found = []
        if not self._keys.owing:
            return found
        for at in range(self._keys.count):
            waited = now_ns - self._keys.pending[at]
            if not self._keys.pending[at] or waited <= least_ns:
                continue
            key = &self._keys.key[at]
            owner = owner_of(&self._keys, key)
            if waited > allowed_ns(&key.pulses[owner], least_ns, unlearned_ns):
                found.append((at, key.instrument_id, key.kind, key.interval_s, owner, heard_since(key, owner), waited))
        return found

    def overdue_ns(self, int64_t now_ns, int64_t least_ns, int64_t unlearned_ns):
        """For how long the group's publisher owes an answer, whatever the key; 0 = not for too long. See `late`."""
        if not self._waits.pending:
            return 0
        waited = now_ns - self._waits.pending
        return waited if waited > allowed_ns(&self._waits.pulses[self._keys.active], least_ns, unlearned_ns) else 0

    @property
    def owed(self):
        """Whether any publisher owes an answer."""
        return self._waits.pending != 0 or self._keys.owing != 0

    def heard_ns(self, int member):
        """When the member delivered last, ns; 0 = never."""
        return self._waits.pulses[member & (MEMBERS - 1)].heard_ns

    def pause_ns(self, int member):
        """Its longest pause lately, ns, at most ten seconds."""
        return self._waits.pause_ns[member & (MEMBERS - 1)]

    def withheld(self, int member):
        """How many of its records were withheld."""
        return self._backlogs.of[member & (MEMBERS - 1)].withheld

    def key_heard_ns(self, uint32_t number, int member):
        """When the member last delivered a record of the key, ns; 0 = never."""
        return self._numbered(number).pulses[member & (MEMBERS - 1)].heard_ns

    def key_allowed_ns(self, uint32_t number, int member, int64_t least_ns, int64_t unlearned_ns):
        """How long the member may owe an answer there."""
        return allowed_ns(&self._numbered(number).pulses[member & (MEMBERS - 1)], least_ns, unlearned_ns)

    def mark(self, uint32_t instrument_id, int kind):
        """(event time, trade id or 0) of the newest that was published of an instrument and type; None = nothing."""
        cdef uint32_t at
        cdef Key *key
        for at in range(self._keys.count):
            key = &self._keys.key[at]
            if key.instrument_id == instrument_id and key.kind == kind:
                return (key.mark_ts, key.mark_id) if key.mark_ts != INT64_MIN else None
        return None

    cdef Key *_numbered(self, uint32_t number) except NULL:
        if number >= self._keys.count:
            raise IndexError(f"key {number}: there are {self._keys.count}")
        return &self._keys.key[number]
