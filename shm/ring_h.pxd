# The ring's C headers (ring.h, futex.h) as Cython sees them: names only, every offset and value is the C compiler's.

from libc.stdint cimport int64_t, uint32_t, uint64_t


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

    enum:
        TK_SLEEP_RINGS_MAX

    uint64_t TK_RING_MAGIC
    uint64_t TK_NO_LIMIT
    int TK_RING_VERSION
    int TK_RING_READERS_OFFSET
    int TK_RING_SLOTS_OFFSET
    int TK_RING_READERS_MAX
    int TK_LABEL_BYTES

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
