"""Python's door to shm/status.h: counters, gauges, histograms and process slots at their addresses.

Called by shm/status.py and shm/instruments.py only, which check every argument: the functions here trust the addresses
that they are given. Each object keeps the mapping it points into alive (`keep`), so a counter that outlives its block
still counts into valid memory. Nothing here waits, locks or opens.
"""

cimport cython

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t


cdef extern from "shm/status.h" nogil:
    ctypedef struct word "_Atomic uint64_t":
        pass
    ctypedef struct half "_Atomic uint32_t":
        pass
    ctypedef struct signed_word "_Atomic int64_t":
        pass
    ctypedef struct tk_histogram:
        word sum_ns
        word min_ns_plus_1
        word max_ns
        word buckets[1]
    ctypedef char tk_status_name[48]
    ctypedef struct tk_status_process:
        word used
        char label[32]
        char role[32]
        word pid
        word started_ns
        signed_word core
        half counters_count
        half gauges_count
        half histograms_count
        word placement
        word heartbeat_ns
        half state
        word restarts
        word retired
        word counters[1]
        word gauges[1]
        tk_histogram histograms[1]
        tk_status_name counter_names[1]
        tk_status_name gauge_names[1]
        tk_status_name histogram_names[1]
    ctypedef struct tk_status_ring:
        word label
        word role
    ctypedef struct tk_status_header:
        uint32_t version
        uint32_t process_slots
        uint64_t process_bytes
        uint64_t total_bytes
        word control_pid
        word started_ns
        word config_digest
        half shutdown
        word facts
        tk_status_ring rings[1]

    uint64_t TK_STATUS_MAGIC
    uint32_t TK_STATUS_VERSION
    uint32_t TK_STATUS_RINGS
    uint32_t TK_STATUS_COUNTERS
    uint32_t TK_STATUS_GAUGES
    uint32_t TK_STATUS_HISTOGRAMS
    uint32_t TK_STATUS_NAME_BYTES
    uint32_t TK_STATUS_FACTS_BYTES
    uint32_t TK_HIST_BUCKETS

    uint64_t tk_status_size_bytes(uint32_t process_slots)
    void tk_status_init(void *base, uint32_t process_slots)
    uint64_t tk_status_magic(const void *base)
    tk_status_process *tk_status_slot(void *base, uint32_t index)
    void tk_status_text_write(void *field, uint32_t words, const char *text, uint32_t length)
    uint32_t tk_status_text_read(const void *field, uint32_t words, char *out)
    int tk_status_slot_used(const tk_status_process *process)
    void tk_status_slot_take(tk_status_process *process, const char *label, uint32_t label_length, const char *role,
                             uint32_t role_length)
    int32_t tk_status_register(tk_status_name *names, half *counted, uint32_t capacity, const char *name, uint32_t length)
    uint32_t tk_status_names_count(const half *counted)
    uint64_t tk_counter_get(const word *counter)
    void tk_counter_set(word *counter, uint64_t value)
    void tk_counter_add(word *counter, uint64_t n)
    double tk_gauge_get(const word *gauge)
    void tk_gauge_set(word *gauge, double value)
    void tk_histogram_record(tk_histogram *histogram, int64_t ns)
    uint64_t tk_histogram_upper(uint32_t bucket)
    uint32_t tk_histogram_bucket(uint64_t value)
    uint64_t tk_table_count(const word *count)
    void tk_table_publish(word *count, uint64_t value)


cdef extern from "<stdatomic.h>" nogil:
    uint32_t load_half "atomic_load"(const half *at)
    void store_half "atomic_store"(half *at, uint32_t value)
    int64_t load_signed "atomic_load"(const signed_word *at)
    void store_signed "atomic_store"(signed_word *at, int64_t value)


MAGIC = TK_STATUS_MAGIC
VERSION = TK_STATUS_VERSION
RINGS = TK_STATUS_RINGS
COUNTERS = TK_STATUS_COUNTERS
GAUGES = TK_STATUS_GAUGES
HISTOGRAMS = TK_STATUS_HISTOGRAMS
NAME_BYTES = TK_STATUS_NAME_BYTES
FACTS_BYTES = TK_STATUS_FACTS_BYTES
BUCKETS = TK_HIST_BUCKETS
PROCESS_BYTES = sizeof(tk_status_process)

def size_bytes(uint32_t process_slots):
    """Bytes of a status block with that many process slots."""
    return tk_status_size_bytes(process_slots)


def bucket_uppers():
    """Largest value of every histogram bucket, ns: uint64, shape (BUCKETS,)."""
    uppers = np.empty(TK_HIST_BUCKETS, dtype=np.uint64)
    cdef uint64_t[::1] view = uppers
    cdef uint32_t bucket
    for bucket in range(TK_HIST_BUCKETS):
        view[bucket] = tk_histogram_upper(bucket)
    return uppers


def bucket_of(uint64_t value):
    """Bucket that counts `value` ns."""
    return tk_histogram_bucket(value)


cdef _text(const void *field, uint32_t words):
    cdef char buffer[1024]
    cdef uint32_t length = tk_status_text_read(field, words, buffer)
    return buffer[:length].decode("utf-8", "replace")


cdef _names(const tk_status_name *names, uint32_t start, uint32_t end):
    cdef uint32_t index
    return [(<const char *>names[index]).decode("utf-8", "replace") for index in range(start, end)]


cdef class Counter:
    """A u64 that its process counts up; every reader sees it whole. One writing thread."""

    cdef word *_at
    cdef object _keep

    def __init__(self):
        raise TypeError("counters come from ProcessStatus.counter(name)")

    def add(self, uint64_t n=1):
        """Add `n`."""
        tk_counter_add(self._at, n)

    def set(self, uint64_t value):
        """Replace the value, e.g. by a sequence or a time in ns."""
        tk_counter_set(self._at, value)

    @property
    def value(self):
        """The value now."""
        return tk_counter_get(self._at)

    @property
    def address(self):
        """Address of the word, for native code that counts by itself (tk_counter_add); valid while this object is."""
        return <uintptr_t>self._at


cdef class Gauge:
    """A float64 that its process sets. One writing thread."""

    cdef word *_at
    cdef object _keep

    def __init__(self):
        raise TypeError("gauges come from ProcessStatus.gauge(name)")

    def set(self, double value):
        """Replace the value."""
        tk_gauge_set(self._at, value)

    @property
    def value(self):
        """The value now."""
        return tk_gauge_get(self._at)


cdef class RawHistogram:
    """Log-linear histogram of durations in ns. One recording thread."""

    cdef tk_histogram *_at
    cdef object _keep

    def __init__(self):
        raise TypeError("histograms come from ProcessStatus.histogram(name)")

    def record(self, int64_t ns):
        """Count one duration; negative ones count as 0."""
        tk_histogram_record(self._at, ns)

    @cython.boundscheck(False)  # the loop's bound is the array's own length
    @cython.wraparound(False)
    def record_many(self, const int64_t[:] durations_ns):
        """Count every duration of an int64 array, shape (n,); the GIL is released."""
        cdef Py_ssize_t index
        with nogil:
            for index in range(durations_ns.shape[0]):
                tk_histogram_record(self._at, durations_ns[index])

    @property
    def address(self):
        """Address of the tk_histogram, for native code that records by itself; valid while this object is."""
        return <uintptr_t>self._at

    @cython.boundscheck(False)  # the array is made here, as long as the loop
    @cython.wraparound(False)
    def raw(self):
        """(bucket counts uint64 of shape (BUCKETS,), sum_ns, min_ns, max_ns); min_ns is -1 when nothing was recorded."""
        counts = np.empty(TK_HIST_BUCKETS, dtype=np.uint64)
        cdef uint64_t[::1] view = counts
        cdef uint32_t bucket
        cdef uint64_t total_ns, least, most
        with nogil:
            total_ns = tk_counter_get(&self._at.sum_ns)
            least = tk_counter_get(&self._at.min_ns_plus_1)
            most = tk_counter_get(&self._at.max_ns)
            for bucket in range(TK_HIST_BUCKETS):
                view[bucket] = tk_counter_get(&self._at.buckets[bucket])
        return counts, total_ns, (<object>least) - 1, most


cdef class Slot:
    """One process slot of a status block."""

    cdef tk_status_process *_at
    cdef object _keep
    cdef list _counter_names, _gauge_names, _histogram_names

    def __init__(self, uintptr_t base, uint32_t index, keep):
        """Slot `index` of the checked block at address `base`; `keep` is any object that keeps it mapped."""
        self._at = tk_status_slot(<void *>base, index)
        self._keep = keep
        self._counter_names = []
        self._gauge_names = []
        self._histogram_names = []

    @property
    def used(self):
        """Whether a label has this slot."""
        return tk_status_slot_used(self._at) != 0

    def take(self, bytes label, bytes role):
        """First use, under the allocation lock; both at most 31 bytes."""
        tk_status_slot_take(self._at, label, <uint32_t>len(label), role, <uint32_t>len(role))

    @property
    def label(self):
        """Label of a used slot."""
        return (<const char *>self._at.label).decode("utf-8", "replace")

    @property
    def role(self):
        """Role of a used slot."""
        return (<const char *>self._at.role).decode("utf-8", "replace")

    def beat(self, uint64_t now_ns):
        """Write the heartbeat."""
        tk_counter_set(&self._at.heartbeat_ns, now_ns)

    @property
    def heartbeat_ns(self):
        return tk_counter_get(&self._at.heartbeat_ns)

    @property
    def state(self):
        return load_half(&self._at.state)

    @state.setter
    def state(self, uint32_t value):
        store_half(&self._at.state, value)

    @property
    def pid(self):
        return tk_counter_get(&self._at.pid)

    @pid.setter
    def pid(self, uint64_t value):
        tk_counter_set(&self._at.pid, value)

    @property
    def started_ns(self):
        return tk_counter_get(&self._at.started_ns)

    @started_ns.setter
    def started_ns(self, uint64_t value):
        tk_counter_set(&self._at.started_ns, value)

    @property
    def core(self):
        return load_signed(&self._at.core)

    @core.setter
    def core(self, int64_t value):
        store_signed(&self._at.core, value)

    @property
    def placement(self):
        return _text(&self._at.placement, 4)

    def set_placement(self, bytes text):
        """At most 32 bytes."""
        tk_status_text_write(&self._at.placement, 4, text, <uint32_t>len(text))

    @property
    def restarts(self):
        return tk_counter_get(&self._at.restarts)

    @restarts.setter
    def restarts(self, uint64_t value):
        tk_counter_set(&self._at.restarts, value)

    @property
    def retired(self):
        return tk_counter_get(&self._at.retired) != 0

    @retired.setter
    def retired(self, bint value):
        tk_counter_set(&self._at.retired, value)

    def counter(self, bytes name):
        """The counter of that name, added if new; None when the table is full."""
        cdef int32_t index = tk_status_register(
            self._at.counter_names, &self._at.counters_count, TK_STATUS_COUNTERS, name, <uint32_t>len(name)
        )
        if index < 0:
            return None
        cdef Counter counter = Counter.__new__(Counter)
        counter._at = &self._at.counters[index]
        counter._keep = self._keep
        return counter

    def gauge(self, bytes name):
        """The gauge of that name, added if new; None when the table is full."""
        cdef int32_t index = tk_status_register(
            self._at.gauge_names, &self._at.gauges_count, TK_STATUS_GAUGES, name, <uint32_t>len(name)
        )
        if index < 0:
            return None
        cdef Gauge gauge = Gauge.__new__(Gauge)
        gauge._at = &self._at.gauges[index]
        gauge._keep = self._keep
        return gauge

    def histogram(self, type wanted, bytes name):
        """The histogram of that name as a `wanted` (RawHistogram or derived), added if new; None when full."""
        cdef int32_t index = tk_status_register(
            self._at.histogram_names, &self._at.histograms_count, TK_STATUS_HISTOGRAMS, name, <uint32_t>len(name)
        )
        return None if index < 0 else self._histogram(wanted, index)

    cdef _histogram(self, type wanted, uint32_t index):
        cdef RawHistogram histogram = wanted.__new__(wanted)
        histogram._at = &self._at.histograms[index]
        histogram._keep = self._keep
        return histogram

    def counters(self):
        """All counters now: {name: value}."""
        cdef uint32_t index
        cdef uint32_t count = tk_status_names_count(&self._at.counters_count)
        self._counter_names += _names(self._at.counter_names, <uint32_t>len(self._counter_names), count)
        return {self._counter_names[index]: tk_counter_get(&self._at.counters[index]) for index in range(count)}

    def gauges(self):
        """All gauges now: {name: value}."""
        cdef uint32_t index
        cdef uint32_t count = tk_status_names_count(&self._at.gauges_count)
        self._gauge_names += _names(self._at.gauge_names, <uint32_t>len(self._gauge_names), count)
        return {self._gauge_names[index]: tk_gauge_get(&self._at.gauges[index]) for index in range(count)}

    def histograms(self, type wanted):
        """All histograms: {name: a `wanted`}."""
        cdef uint32_t index
        cdef uint32_t count = tk_status_names_count(&self._at.histograms_count)
        self._histogram_names += _names(self._at.histogram_names, <uint32_t>len(self._histogram_names), count)
        return {self._histogram_names[index]: self._histogram(wanted, index) for index in range(count)}


cdef class Header:
    """The engine-wide part of a status block."""

    cdef tk_status_header *_at
    cdef object _keep

    def __init__(self, uintptr_t base, keep):
        """The block at address `base`; `keep` is any object that keeps it mapped."""
        self._at = <tk_status_header *>base
        self._keep = keep

    def create(self, uint32_t process_slots):
        """Make a new block in zeroed memory of size_bytes(process_slots)."""
        tk_status_init(self._at, process_slots)

    @property
    def magic(self):
        """0 while the creator is at work, MAGIC for a status block, else of another kind."""
        return tk_status_magic(self._at)

    @property
    def layout(self):
        """(version, process_slots, process_bytes, total_bytes) as the creator wrote them."""
        return self._at.version, self._at.process_slots, self._at.process_bytes, self._at.total_bytes

    @property
    def control_pid(self):
        return tk_counter_get(&self._at.control_pid)

    @control_pid.setter
    def control_pid(self, uint64_t value):
        tk_counter_set(&self._at.control_pid, value)

    @property
    def started_ns(self):
        return tk_counter_get(&self._at.started_ns)

    @started_ns.setter
    def started_ns(self, uint64_t value):
        tk_counter_set(&self._at.started_ns, value)

    @property
    def config_digest(self):
        return tk_counter_get(&self._at.config_digest)

    @config_digest.setter
    def config_digest(self, uint64_t value):
        tk_counter_set(&self._at.config_digest, value)

    @property
    def shutdown(self):
        return load_half(&self._at.shutdown) != 0

    @shutdown.setter
    def shutdown(self, bint value):
        store_half(&self._at.shutdown, value)

    @property
    def facts(self):
        return _text(&self._at.facts, TK_STATUS_FACTS_BYTES // 8)

    def set_facts(self, bytes text):
        """At most FACTS_BYTES bytes."""
        tk_status_text_write(&self._at.facts, TK_STATUS_FACTS_BYTES // 8, text, <uint32_t>len(text))

    def ring(self, uint32_t ring_id):
        """(label, role) of a ring; ("", "") where none is."""
        return _text(&self._at.rings[ring_id].label, 4), _text(&self._at.rings[ring_id].role, 2)

    def set_ring(self, uint32_t ring_id, bytes label, bytes role):
        """At most 32 and 16 bytes."""
        tk_status_text_write(&self._at.rings[ring_id].role, 2, role, <uint32_t>len(role))
        tk_status_text_write(&self._at.rings[ring_id].label, 4, label, <uint32_t>len(label))


def table_count(uintptr_t address):
    """Number of complete entries of an append-only table whose count is at `address`."""
    return tk_table_count(<const word *>address)


def publish_table_count(uintptr_t address, uint64_t count):
    """Make the entries below `count` visible to readers; the caller holds the table's lock."""
    tk_table_publish(<word *>address, count)
