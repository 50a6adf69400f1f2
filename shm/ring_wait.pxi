# Part of shm/_ring.pyx: how a reader waits for records. Sleeping and waking themselves are in shm/futex.h, and that no
# record is slept through is argued in shm/ring.h, SLEEP.

cdef bint any_news(tk_ring **rings, const uint64_t *next, int count) noexcept nogil:
    """Whether one of the rings has record `next`, or news of a gap before it."""
    cdef int i
    for i in range(count):
        if tk_poll(rings[i], next[i]) != 0:
            return True
    return False


cdef bint sleep_once(tk_ring **rings, const uint64_t *next, int count, bint *has_bells, int64_t timeout_ns) noexcept nogil:
    """Sleep until a bell rings or `timeout_ns` is over, unless there is news already; naps where there are no bells."""
    cdef tk_half *bells[TK_SLEEP_RINGS_MAX]
    cdef uint32_t seen[TK_SLEEP_RINGS_MAX]
    cdef int barrier = 0, i
    bells[0], seen[0] = NULL, 0
    if has_bells[0]:
        for i in range(count):
            bells[i] = &rings[i].readers.bell
            seen[i] = tk_before_sleep(rings[i], &barrier)
        if barrier and not tk_barrier_everywhere():
            has_bells[0] = False  # a sandbox forbids the call: naps find the record too
    if any_news(rings, next, count):
        return True
    if has_bells[0]:
        tk_sleep_any(bells, seen, count, timeout_ns)
    else:
        tk_nap(timeout_ns)
    return any_news(rings, next, count)


cdef bint wait_rings(
    tk_ring **rings, const uint64_t *next, int count, int64_t spin_ns, double timeout_s
) except -1:
    """Wait until one of `count` rings (1 to 16) has something at its `next`; False after `timeout_s` seconds.

    The ladder: spin for `spin_ns`, give up the core once, sleep on the rings' bells. Where a ring has no bell (made
    without wake-ups, or its reader table is not writable for this user) sleeps are naps of 0.2 ms.
    """
    cdef bint found = False, has_bells = True
    cdef int64_t now, spin_until, deadline
    cdef int turn, i
    if any_news(rings, next, count):
        return True
    if not timeout_s > 0:
        return False
    for i in range(count):
        if rings[i].readers == NULL or not rings[i].header.wakeups:
            has_bells = False
    now = tk_monotonic_ns()
    deadline = now + <int64_t>(min(timeout_s, WAIT_MAX_S) * 1e9)
    spin_until = min(now + spin_ns, deadline)
    with nogil:
        while not found and now < spin_until:
            for turn in range(32):
                found = any_news(rings, next, count)
                if found:
                    break
                tk_pause()
            now = tk_monotonic_ns()
        if not found:
            sched_yield()
    while not found and now < deadline:
        with nogil:
            found = sleep_once(rings, next, count, &has_bells, deadline - now)
            now = tk_monotonic_ns()
        PyErr_CheckSignals()
    return found
