# Part of shm/_ring.pyx: the reading side, and waiting on several rings at a time. A reader stores nothing that others
# wait for but its own line of the reader table.

cdef class Reader:
    """The reading side: a position in one ring. One thread at a time."""

    cdef tk_ring ring
    cdef object held
    cdef tk_ring_reader *line   # NULL: not registered
    cdef int index
    cdef uint64_t next
    cdef uint64_t gap_from, gap_to
    cdef uint64_t lost_, polling, reading, reads
    cdef object out             # the array of the last read, whose buffer stays bound
    cdef Py_buffer view
    cdef bint bound
    cdef public int64_t spin_ns
    """How long `wait` spins before it sleeps, ns."""

    def __cinit__(self):
        self.bound = False
        self.line = NULL
        self.index = -1
        self.spin_ns = 20_000

    def __dealloc__(self):
        if self.bound:
            PyBuffer_Release(&self.view)

    def _map(self, header, readers, slots):
        self.ring = map_ring(header, readers, slots)
        self.held = (header, readers, slots)

    def _claim(self, int index, bytes label, uint64_t pid, bint reliable):
        """Enter this reader into the table; the caller holds lock 1 + index."""
        cdef tk_ring_reader *line = &self.ring.readers.reader[index]
        cdef char *name = label
        tk_fetch_and(&self.ring.readers.reliable, ~(<uint64_t>1 << index))
        memset(line, 0, sizeof(tk_ring_reader))
        memcpy(line.label, name, min(len(label), TK_LABEL_BYTES))
        tk_store_relaxed(&line.cursor, self.next)
        tk_store_relaxed(&line.pid, pid)
        tk_store_relaxed(&line.attached_ns, tk_now_ns())
        tk_store_release(&line.state, 2 if reliable else 1)
        self.line = line
        self.index = index
        if reliable:
            tk_fetch_or(&self.ring.readers.reliable, <uint64_t>1 << index)
            tk_fetch_add(&self.ring.readers.changes, 1)

    def _leave(self):
        if self.line != NULL:
            tk_fetch_and(&self.ring.readers.reliable, ~(<uint64_t>1 << self.index))
            tk_store_release(&self.line.state, 0)
            self.line = NULL
        if self.bound:
            PyBuffer_Release(&self.view)
            self.bound = False
        self.out = None
        self.held = None
        memset(&self.ring, 0, sizeof(self.ring))

    cdef int check_open(self) except -1:
        if self.held is None:
            raise BadArgument("the reader is closed")
        return 0

    def _set_position(self, uint64_t sequence):
        self.next = sequence
        self.gap_from = self.gap_to = 0
        if self.line != NULL:
            tk_store_release(&self.line.cursor, sequence)
            if tk_load_relaxed(&self.line.state) == 2:
                tk_fetch_add(&self.ring.readers.changes, 1)

    def _is_stamped(self, uint64_t sequence):
        """Whether the writer has stamped that record, lately or laps ago; `published` follows a moment later."""
        self.check_open()
        return tk_poll(&self.ring, sequence) != 0

    @property
    def sequence(self):
        """Sequence of the next record to read."""
        return self.next

    @property
    def published(self):
        """Sequence of the newest record in the ring; 0 for none."""
        self.check_open()
        return tk_load_acquire(&self.ring.header.published)

    @property
    def lag(self):
        """Records published and not read yet."""
        cdef uint64_t published = self.published
        return published + 1 - self.next if published + 1 > self.next else 0

    @property
    def epoch(self):
        """How many writers the ring has had."""
        self.check_open()
        return tk_load_acquire(&self.ring.header.epoch)

    @property
    def depth_slots(self):
        """Number of slots of the ring."""
        return self.ring.depth

    @property
    def lost(self):
        """Records overrun, in all, since this reader attached."""
        return self.lost_

    @property
    def overruns_polling(self):
        """How often the wanted record was gone before it was copied."""
        return self.polling

    @property
    def overruns_reading(self):
        """How often the writer came round while a batch was being copied."""
        return self.reading

    @property
    def demoted(self):
        """True if this reader was reliable and the writer stopped waiting for it."""
        return self.line != NULL and tk_load_relaxed(&self.line.demoted) != 0

    @property
    def gap(self):
        """The gap just before the first record of the last read: (from, to), `to` not included, or None."""
        if self.gap_to == self.gap_from:
            return None
        return self.gap_from, self.gap_to

    def poll(self):
        """Whether `read` would return something now (records, or news of a gap). Costs one load."""
        self.check_open()
        return tk_poll(&self.ring, self.next) != 0

    def holds(self, uint64_t sequence):
        """Whether the ring still holds that record whole. To read in place: look at it, then ask this, then believe it."""
        self.check_open()
        return tk_holds(&self.ring, sequence) != 0

    cdef int bind(self, object out) except -1:
        if self.bound:
            PyBuffer_Release(&self.view)
            self.bound = False
            self.out = None
        itemsize = getattr(out, "itemsize", 1)
        if itemsize != 128 and itemsize != 1:
            raise BadArgument(f"out has items of {itemsize} bytes, a record has 128")
        take_buffer(out, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE, "out")
        if self.view.len < 128:
            PyBuffer_Release(&self.view)
            raise BadArgument("out has less than 128 bytes, room for no record")
        self.bound = True
        self.out = out
        return 0

    def read(self, out, int64_t limit=-1):
        """Copy the next records into `out`; returns how many, 0 if there is nothing new. Never waits.

        Args:
            out: contiguous, writable RECORD array owned by the caller, shape (n,). The same array again is fastest.
            limit: at most that many; -1 = as many as fit.

        If records were overrun before the first one returned, `gap` is (from, to), they are counted in `lost`, reading
        has gone on at half a ring behind the writer, and out[0] has Flag.GAP_BEFORE. The copy runs without the
        interpreter lock. Raises BadArgument for a buffer that can't be used.
        """
        cdef int64_t got
        cdef uint64_t room, resume
        cdef uint16_t flags
        cdef char *to
        self.check_open()
        if not self.bound or out is not self.out:
            self.bind(out)
        room = <uint64_t>self.view.len // 128
        if 0 <= limit < <int64_t>room:
            room = limit
        self.gap_from = self.gap_to = 0
        if room == 0 or tk_poll(&self.ring, self.next) == 0:
            return 0
        if room > self.ring.depth:
            room = self.ring.depth
        to = <char *>self.view.buf
        while True:
            if room > 16:
                with nogil:
                    got = tk_read_batch(&self.ring, self.next, to, room)
            else:
                got = tk_read_batch(&self.ring, self.next, to, room)
            if got >= 0:
                break
            if got == -1:
                self.polling += 1
            else:
                self.reading += 1
            resume = tk_resume(&self.ring, self.next)
            if self.gap_to == 0:
                self.gap_from = self.next
            self.gap_to = resume
            self.next = resume
        if self.gap_to != 0:
            self.lost_ += self.gap_to - self.gap_from
            if got > 0:
                memcpy(&flags, to + 38, 2)
                flags |= GAP_BEFORE
                memcpy(to + 38, &flags, 2)
        self.next += got
        self.reads += 1
        if self.line != NULL:
            tk_store_release(&self.line.cursor, self.next)                     # pair CURSOR
            tk_store_relaxed(&self.line.reads, self.reads)
            if self.gap_to != 0:
                tk_store_relaxed(&self.line.lost, self.lost_)
                tk_store_relaxed(&self.line.overruns_polling, self.polling)
                tk_store_relaxed(&self.line.overruns_reading, self.reading)
        return got

    def wait(self, double timeout_s):
        """Wait until there is something to read: spin, then yield, then sleep. Whether there is. Bounded by `timeout_s`."""
        cdef tk_ring *ring = &self.ring
        self.check_open()
        return wait_rings(&ring, &self.next, 1, self.spin_ns, timeout_s)


def wait_any(readers, double timeout_s):
    """Wait until one of at most 16 readers has something to read; True if so, False after `timeout_s` seconds.

    As `Reader.wait`; it spins for the first reader's `spin_ns`.
    """
    cdef tk_ring *rings[TK_SLEEP_RINGS_MAX]
    cdef uint64_t next[TK_SLEEP_RINGS_MAX]
    cdef int count = len(readers), i
    cdef Reader reader
    if count == 0 or count > TK_SLEEP_RINGS_MAX:
        raise BadArgument(f"waiting on {count} rings, from 1 to {TK_SLEEP_RINGS_MAX} can be waited on")
    for i in range(count):
        reader = readers[i]
        reader.check_open()
        rings[i] = &reader.ring
        next[i] = reader.next
    reader = readers[0]
    return wait_rings(rings, next, count, reader.spin_ns, timeout_s)
