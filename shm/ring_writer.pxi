# Part of shm/_ring.pyx: the writing side. What it may do and in which order is in shm/ring.h; segments and locks are
# shm/ring.py's.

cdef class Writer:
    """The writing side. One thread at a time; the process holds the writer's lock (shm.ring.RingWriter sees to both)."""

    cdef tk_ring ring
    cdef object held           # keeps the mapping alive
    cdef uint64_t next         # sequence of the next record
    cdef uint64_t reliable     # mask of reliable readers as of the last look
    cdef uint64_t changes      # the readers' count of changes as of that look
    cdef uint64_t limit        # first sequence that may not be written before looking again
    cdef uint64_t max_batch
    cdef bint wakeups
    cdef bint asymmetric       # sleepers see to the barrier (shm/ring.h, SLEEP)
    cdef bint closed

    def __cinit__(self):
        self.closed = True

    def _map(self, buffer):
        self.ring = map_ring(buffer, buffer[TK_RING_READERS_OFFSET:], buffer[TK_RING_SLOTS_OFFSET:])
        self.held = buffer
        self.next = tk_recover(&self.ring)
        self.reliable = 0
        self.changes = 0
        self.limit = 0             # look before the first record
        self.max_batch = self.ring.depth // 4
        self.wakeups = self.ring.header.wakeups
        self.closed = False

    def _take_over(self, uint64_t pid, uint64_t started_ns, bint asymmetric):
        """Enter this process as the writer. Returns (earlier epoch, earlier pid); pid 0 = that writer closed in order."""
        cdef tk_ring_header *h = self.ring.header
        epoch = tk_load_acquire(&h.epoch)
        earlier = tk_load_relaxed(&h.writer_pid)
        tk_store_release(&h.published, self.next - 1)
        tk_store_relaxed(&h.writer_pid, pid)
        tk_store_relaxed(&h.writer_started_ns, started_ns)
        tk_store_release(&h.epoch, epoch + 1)
        self.asymmetric = asymmetric and tk_barrier_register()
        tk_enter(&self.ring, self.asymmetric)
        tk_ring_bell(self.ring.readers)
        tk_wake(&self.ring.readers.bell)
        return epoch, earlier

    def _leave(self):
        if not self.closed:
            tk_store_relaxed(&self.ring.header.writer_pid, 0)
            self.closed = True
            self.held = None

    @property
    def next_sequence(self):
        """Sequence that the next record gets; all before it are published."""
        return self.next

    @property
    def depth_slots(self):
        """Number of slots."""
        return self.ring.depth

    @property
    def epoch(self):
        """How many writers the ring has had, this one included."""
        return 0 if self.closed else tk_load_relaxed(&self.ring.header.epoch)

    def publish(self, record):
        """Publish one record; returns its sequence.

        Args:
            record: 128 bytes in record layout v1: bytes (fastest), or any contiguous buffer such as a RECORD array of
                one. `sequence` and `ts_publish` are set in the ring; the caller's bytes are not changed.

        Raises:
            BadArgument: not 128 bytes, or the writer is closed.
        """
        cdef Py_buffer view
        cdef uint64_t n
        if PyBytes_CheckExact(record):
            if PyBytes_GET_SIZE(record) != 128:
                raise BadArgument(f"record has {len(record)} bytes, a record has 128")
            return self.commit(PyBytes_AS_STRING(record))
        take_buffer(record, &view, PyBUF_SIMPLE, "record")
        try:
            if view.len != 128:
                raise BadArgument(f"record has {view.len} bytes, a record has 128")
            n = self.commit(<const char *>view.buf)
        finally:
            PyBuffer_Release(&view)
        return n

    cdef uint64_t commit(self, const char *record) except 0:
        cdef uint64_t n = self.next
        if self.closed:
            raise BadArgument("the writer is closed")
        if n >= self.limit or tk_load_relaxed(&self.ring.readers.changes) != self.changes:
            self.make_room()
        tk_publish(&self.ring, n, record, tk_now_ns())
        self.next = n + 1
        if self.wakeups and tk_after_publish(self.ring.readers, self.asymmetric):
            tk_wake(&self.ring.readers.bell)
        return n

    def publish_batch(self, records, Py_ssize_t count=-1):
        """Publish `records[:count]`, all of them by default; returns the sequence of the first (0 if there was none).

        Args:
            records: contiguous RECORD array of shape (n,), or a buffer of n * 128 bytes. It is not changed.
            count: how many; any number up to n. More than a quarter of the ring goes in several steps.

        The interpreter lock is released meanwhile. Raises BadArgument as `publish` does.
        """
        cdef Py_buffer view
        cdef uint64_t first = self.next
        if self.closed:
            raise BadArgument("the writer is closed")
        itemsize = getattr(records, "itemsize", 128)
        if itemsize != 128 and itemsize != 1:
            raise BadArgument(f"records have {itemsize} bytes each, a record has 128 (np.concatenate repacks a RECORD "
                              "array: use shm.layout.concatenate)")
        take_buffer(records, &view, PyBUF_SIMPLE, "records")
        try:
            if view.len % 128:
                raise BadArgument(f"records have {view.len} bytes in all, not a multiple of 128")
            if count < 0:
                count = view.len // 128
            elif count > view.len // 128:
                raise BadArgument(f"count is {count}, but records holds {view.len // 128}")
            if count:
                self.commit_batch(<const char *>view.buf, count)
        finally:
            PyBuffer_Release(&view)
        return first if count else 0

    cdef int commit_batch(self, const char *records, uint64_t count) except -1:
        cdef uint64_t done = 0, step
        while done < count:
            step = count - done
            if step > self.max_batch:
                step = self.max_batch
            if self.next + step > self.limit or tk_load_relaxed(&self.ring.readers.changes) != self.changes:
                self.make_room()
                if self.next + step > self.limit:
                    step = self.limit - self.next
            with nogil:
                tk_publish_batch(&self.ring, self.next, records + done * 128, step, tk_now_ns())
                if self.wakeups and tk_after_publish(self.ring.readers, self.asymmetric):
                    tk_wake(&self.ring.readers.bell)
            self.next += step
            done += step
        return 0

    cdef int make_room(self) except -1:
        """Wait until at least the next record has room, at most `block_ns`; then stop waiting for whoever is in the way."""
        cdef tk_ring *ring = &self.ring
        cdef int64_t start = 0, reaped = 0, now
        cdef int spins
        while True:
            self.changes = tk_load_acquire(&ring.readers.changes)
            self.reliable = tk_load_acquire(&ring.readers.reliable)
            self.limit = tk_room(ring, self.reliable)
            if self.next < self.limit:
                return 0
            now = tk_monotonic_ns()
            if start == 0:
                start = reaped = now
            if now - start > <int64_t>ring.header.block_ns:
                self.demote()
                continue
            if now - reaped > REAP_EVERY_NS:
                reaped = now
                self._reap()
                PyErr_CheckSignals()
            with nogil:
                for spins in range(64):
                    tk_pause()
                if now - start > 20000:
                    sched_yield()

    cdef void demote(self) noexcept:
        cdef tk_ring_readers *readers = self.ring.readers
        cdef int i
        for i in range(TK_RING_READERS_MAX):
            if self.reliable >> i & 1 and tk_load_acquire(&readers.reader[i].cursor) + self.ring.depth <= self.next:
                tk_store_relaxed(&readers.reader[i].demoted, 1)
                tk_fetch_and(&readers.reliable, ~(<uint64_t>1 << i))

    def _reap(self):
        """Overridden by shm.ring: drop reliable readers whose process is gone."""
