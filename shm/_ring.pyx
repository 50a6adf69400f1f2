# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The ring's two sides as C types: what `shm.ring` wraps. Every ordering decision is in shm/ring.h; nothing here stores or
loads shared memory but through it. Hot methods (publish, publish_batch, poll, read) allocate nothing and log nothing."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from shm.errors import BadArgument, LayoutMismatch, SegmentMissing
from shm.layout import Flag, schema_hash


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from "shm/futex.h" nogil:
    ctypedef struct tk_word:
        pass
    ctypedef struct tk_half:
        pass

    cdef struct tk_ring_header:
        tk_word magic
        uint32_t version
        uint32_t record_bytes
        uint64_t schema_hash
        uint64_t depth
        uint32_t ring_id
        uint32_t wakeups
        int64_t created_ns
        uint64_t block_ns
        tk_word epoch
        tk_word writer_pid
        tk_word writer_started_ns
        tk_word asymmetric
        tk_word published

    cdef struct tk_ring_reader:
        tk_word cursor
        tk_word lost
        tk_word overruns_polling
        tk_word overruns_reading
        tk_word state
        tk_word pid
        tk_word attached_ns
        tk_word reads
        char label[40]
        tk_word demoted

    cdef struct tk_ring_readers:
        tk_word reliable
        tk_word changes
        tk_half sleepers
        tk_half bell
        tk_ring_reader reader[63]

    cdef struct tk_ring:
        tk_ring_header *header
        tk_ring_readers *readers
        tk_word *slots
        uint64_t depth
        uint64_t mask

    uint64_t TK_RING_MAGIC
    uint64_t TK_NO_LIMIT
    int TK_RING_VERSION
    int TK_RING_READERS_OFFSET
    int TK_RING_SLOTS_OFFSET
    int TK_RING_READERS_MAX
    int TK_LABEL_BYTES
    int TK_SLEEP_RINGS_MAX

    uint64_t tk_load_relaxed(const tk_word *)
    uint64_t tk_load_acquire(const tk_word *)
    void tk_store_relaxed(tk_word *, uint64_t)
    void tk_store_release(tk_word *, uint64_t)
    uint64_t tk_fetch_or(tk_word *, uint64_t)
    uint64_t tk_fetch_and(tk_word *, uint64_t)
    uint64_t tk_fetch_add(tk_word *, uint64_t)
    void tk_pause()
    tk_word *tk_slot(const tk_ring *, uint64_t)
    void tk_publish(const tk_ring *, uint64_t, const void *, uint64_t)
    void tk_publish_batch(const tk_ring *, uint64_t, const char *, uint64_t, uint64_t)
    uint64_t tk_room(const tk_ring *, uint64_t)
    uint64_t tk_recover(const tk_ring *)
    int tk_poll(const tk_ring *, uint64_t)
    int tk_holds(const tk_ring *, uint64_t)
    int64_t tk_read_batch(const tk_ring *, uint64_t, char *, uint64_t)
    uint64_t tk_resume(const tk_ring *, uint64_t)
    uint32_t tk_before_sleep(const tk_ring *, int *)
    int tk_after_publish(tk_ring_readers *, int)
    void tk_enter(const tk_ring *, int)
    int tk_barrier_register()
    int tk_barrier_everywhere()
    void tk_ring_bell(tk_ring_readers *)
    int64_t tk_now_ns()
    int64_t tk_monotonic_ns()
    void tk_wake(tk_half *)
    void tk_nap(int64_t)
    void tk_sleep_any(tk_half **, const uint32_t *, int, int64_t)


cdef extern from *:
    """
    #ifdef TK_TEST_STOPS
    #include <signal.h>
    int tk_stop_at = 0;
    void tk_stop_here(void) { raise(SIGSTOP); }
    static void tk_set_stop(int step) { tk_stop_at = step; }
    #define TK_HAS_STOPS 1
    #else
    static void tk_set_stop(int step) { (void)step; }
    #define TK_HAS_STOPS 0
    #endif
    """
    void tk_set_stop(int step)
    int TK_HAS_STOPS


HAS_STOPS = bool(TK_HAS_STOPS)
READERS_OFFSET_BYTES = TK_RING_READERS_OFFSET
SLOTS_OFFSET_BYTES = TK_RING_SLOTS_OFFSET
READERS_MAX = TK_RING_READERS_MAX
LABEL_BYTES = TK_LABEL_BYTES

cdef uint16_t GAP_BEFORE = int(Flag.GAP_BEFORE)
cdef uint64_t SCHEMA_HASH = schema_hash()
cdef int64_t REAP_EVERY_NS = 1_000_000
cdef uint64_t DEPTH_MIN = 16
cdef uint64_t DEPTH_MAX = 1 << 26
cdef double WAIT_MAX_S = 1e8


def set_stop(int step):
    """Stop this process (SIGSTOP) at step 1..7 of publish; 0 = never. Only in builds made for the kill tests."""
    if not TK_HAS_STOPS:
        raise BadArgument("this build has no stops: build with TICKENGINE_STOPS=1")
    tk_set_stop(step)


def now_ns():
    """Wall clock as records carry it: ns since the Unix epoch, UTC."""
    return tk_now_ns()


cdef tk_ring map_ring(object header, object readers, object slots) except *:
    """Point a tk_ring at three mapped buffers (any may be None) and check the header against this build."""
    cdef tk_ring ring
    cdef Py_buffer view
    memset(&ring, 0, sizeof(ring))
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    ring.header = <tk_ring_header *>view.buf
    PyBuffer_Release(&view)
    if readers is not None:
        PyObject_GetBuffer(readers, &view, PyBUF_SIMPLE)
        ring.readers = <tk_ring_readers *>view.buf
        PyBuffer_Release(&view)
    if slots is not None:
        PyObject_GetBuffer(slots, &view, PyBUF_SIMPLE)
        ring.slots = <tk_word *>view.buf
        PyBuffer_Release(&view)
    ring.depth = ring.header.depth
    ring.mask = ring.depth - 1
    return ring


def format_ring(buffer, int ring_id, uint64_t depth, bint wakeups, uint64_t block_ns):
    """Write the header of a new ring into a zeroed, writable buffer; the magic goes last, so nobody sees half of it."""
    cdef tk_ring ring = map_ring(buffer, None, None)
    cdef tk_ring_header *h = ring.header
    h.version = TK_RING_VERSION
    h.record_bytes = 128
    h.schema_hash = SCHEMA_HASH
    h.depth = depth
    h.ring_id = ring_id
    h.wakeups = wakeups
    h.created_ns = tk_now_ns()
    h.block_ns = block_ns
    tk_store_release(&h.magic, TK_RING_MAGIC)


cdef int take_buffer(object owner, Py_buffer *view, int flags, str what) except -1:
    try:
        PyObject_GetBuffer(owner, view, flags)
    except (BufferError, TypeError, ValueError) as error:
        raise BadArgument(f"{what} must be contiguous memory in record layout: {error}") from error
    return 0


def check_ring(str name, buffer, segment_bytes=None):
    """Raise SegmentMissing (still being made) or LayoutMismatch (names both sides) unless this build can use the ring.

    `buffer` holds at least the header; `segment_bytes` is the size of the whole segment where that is more.
    """
    cdef tk_ring ring = map_ring(buffer, None, None)
    cdef tk_ring_header *h = ring.header
    cdef uint64_t magic = tk_load_acquire(&h.magic)
    cdef uint64_t size_bytes
    cdef uint64_t have_bytes = len(buffer) if segment_bytes is None else segment_bytes
    if magic == 0:
        raise SegmentMissing(f"ring {name} is being created: its header is not complete yet")
    wanted = {"magic": TK_RING_MAGIC, "version": TK_RING_VERSION, "record size": 128, "schema hash": SCHEMA_HASH}
    found = {"magic": magic, "version": h.version, "record size": h.record_bytes, "schema hash": h.schema_hash}
    for what in wanted:
        if wanted[what] != found[what]:
            raise LayoutMismatch(f"ring {name}: its {what} is {found[what]:#x}, this build has {wanted[what]:#x}")
    if not DEPTH_MIN <= h.depth <= DEPTH_MAX or h.depth & (h.depth - 1):
        raise LayoutMismatch(f"ring {name}: its depth is {h.depth}, this build knows powers of two from {DEPTH_MIN} to "
                             f"{DEPTH_MAX}")
    size_bytes = TK_RING_SLOTS_OFFSET + h.depth * 128
    if have_bytes < size_bytes:
        raise LayoutMismatch(f"ring {name}: {h.depth} slots need {size_bytes} bytes, the segment has {have_bytes}")


def header_fields(buffer):
    """The header of a checked ring as a dict of ints."""
    cdef tk_ring_header *h = map_ring(buffer, None, None).header
    return {
        "ring_id": h.ring_id,
        "depth_slots": h.depth,
        "wakeups": bool(h.wakeups),
        "asymmetric": bool(tk_load_relaxed(&h.asymmetric)),
        "created_ns": h.created_ns,
        "block_ns": h.block_ns,
        "epoch": tk_load_acquire(&h.epoch),
        "writer_pid": tk_load_relaxed(&h.writer_pid),
        "writer_started_ns": tk_load_relaxed(&h.writer_started_ns),
        "published": tk_load_acquire(&h.published),
    }


def reader_fields(buffer):
    """The claimed lines of a reader table: a list of (index, dict)."""
    cdef tk_ring_readers *readers = map_ring(buffer, buffer, None).readers
    cdef tk_ring_reader *one
    found = []
    for index in range(TK_RING_READERS_MAX):
        one = &readers.reader[index]
        state = tk_load_acquire(&one.state)
        if state == 0:
            continue
        found.append((index, {
            "label": one.label[:TK_LABEL_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace"),
            "pid": tk_load_relaxed(&one.pid),
            "cursor": tk_load_relaxed(&one.cursor),
            "lost": tk_load_relaxed(&one.lost),
            "overruns_polling": tk_load_relaxed(&one.overruns_polling),
            "overruns_reading": tk_load_relaxed(&one.overruns_reading),
            "reads": tk_load_relaxed(&one.reads),
            "attached_ns": tk_load_relaxed(&one.attached_ns),
            "reliable": state == 2,
            "demoted": bool(tk_load_relaxed(&one.demoted)),
        }))
    return found


def free_reader(buffer, int index):
    """Clear a reader's line; the caller holds that reader's lock, or the engine is gone."""
    cdef tk_ring_readers *readers = map_ring(buffer, buffer, None).readers
    tk_fetch_and(&readers.reliable, ~(<uint64_t>1 << index))
    tk_store_release(&readers.reader[index].state, 0)


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
        return wait_any([self], timeout_s)


def wait_any(readers, double timeout_s):
    """Wait until one of at most 16 readers has something to read; True if so, False after `timeout_s` seconds.

    The ladder: spin for the first reader's `spin_ns`, give up the core once, sleep on the rings' bells. Where a ring has
    no bell (made without wake-ups, or its reader table is not writable for this user) sleeps are naps of 0.2 ms.
    """
    cdef tk_ring *rings[16]
    cdef uint64_t next[16]
    cdef tk_half *bells[16]
    cdef uint32_t seen[16]
    cdef int count = len(readers), i
    cdef int barrier
    cdef bint bell = True, found = False
    cdef int64_t now, spin_until, deadline, turn
    cdef Reader reader
    if count == 0 or count > TK_SLEEP_RINGS_MAX:
        raise BadArgument(f"waiting on {count} rings, from 1 to {TK_SLEEP_RINGS_MAX} can be waited on")
    for i in range(count):
        reader = readers[i]
        reader.check_open()
        rings[i] = &reader.ring
        next[i] = reader.next
        if reader.ring.readers == NULL or not reader.ring.header.wakeups:
            bell = False
        else:
            bells[i] = &reader.ring.readers.bell
    reader = readers[0]
    for i in range(count):
        if tk_poll(rings[i], next[i]) != 0:
            return True
    now = tk_monotonic_ns()
    if not timeout_s > 0:
        return False
    deadline = now + <int64_t>(min(timeout_s, WAIT_MAX_S) * 1e9)
    spin_until = now + reader.spin_ns
    if spin_until > deadline:
        spin_until = deadline
    with nogil:
        while not found and now < spin_until:
            for turn in range(32):
                for i in range(count):
                    if tk_poll(rings[i], next[i]) != 0:
                        found = True
                        break
                if found:
                    break
                tk_pause()
            now = tk_monotonic_ns()
        if not found:
            sched_yield()
    while not found and now < deadline:
        with nogil:
            if bell:
                barrier = 0
                for i in range(count):
                    seen[i] = tk_before_sleep(rings[i], &barrier)
                if barrier and not tk_barrier_everywhere():
                    bell = False  # a sandbox forbids the call: naps find the record too
            for i in range(count):
                if tk_poll(rings[i], next[i]) != 0:
                    found = True
            if not found:
                if bell:
                    tk_sleep_any(bells, seen, count, deadline - now)
                else:
                    tk_nap(deadline - now)
                for i in range(count):
                    if tk_poll(rings[i], next[i]) != 0:
                        found = True
            now = tk_monotonic_ns()
        PyErr_CheckSignals()
    return found
