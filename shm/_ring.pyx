# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The ring as C types: what `shm.ring` wraps. Here are headers and reader lines; the writer, the reader and how one waits
have files of their own, which this one takes in. Every ordering decision is in shm/ring.h; nothing here stores or loads
shared memory but through it. Hot methods (publish, publish_batch, poll, read) allocate nothing and log nothing."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from shm.ring_h cimport *

from shm.errors import BadArgument, LayoutMismatch, SegmentMissing
from shm.layout import Flag, schema_hash


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


include "ring_wait.pxi"
include "ring_writer.pxi"
include "ring_reader.pxi"
