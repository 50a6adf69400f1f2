/* Sleeping on a word of shared memory and waking those who do: one ring's bell, or several rings' at once.
 *
 * No atomics here (they are in shm/ring.h), only the system's calls. Linux: futex and, for several words, futex_waitv
 * (5.16 and later). macOS: os_sync_wait_on_address (14.4 and later) for one word. Where a call is missing the sleep is a
 * short nap, so a caller always polls again after it: a return never means that something is there.
 */
#ifndef TICKENGINE_FUTEX_H
#define TICKENGINE_FUTEX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <time.h>

#include "shm/ring.h"

#define TK_NAP_NS 200000
#define TK_SLEEP_RINGS_MAX 16

static inline int64_t tk_now_ns(void) { /* CLOCK_REALTIME: every timestamp of a record */
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t tk_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if !defined(__linux__)
static inline int tk_barrier_register(void) { return 0; }
static inline int tk_barrier_everywhere(void) { return 0; }
#endif

static inline void tk_nap(int64_t timeout_ns) {
    int64_t ns = timeout_ns < TK_NAP_NS ? timeout_ns : TK_NAP_NS;
    struct timespec t = {0, (long)(ns > 0 ? ns : 0)};
    nanosleep(&t, NULL);
}

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

#ifndef SYS_membarrier
#define SYS_membarrier -1
#endif

/* Writer: take part in tk_barrier_everywhere. 1 = it does, 0 = the system has no such thing. (membarrier(2):
 * MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED is 4, MEMBARRIER_CMD_GLOBAL_EXPEDITED is 2; Linux 4.16.) */
static inline int tk_barrier_register(void) { return syscall(SYS_membarrier, 4, 0, 0) == 0; }

/* Sleeper: have every core that runs a registered process pass a full barrier. 1 = done. Some 3 us. */
static inline int tk_barrier_everywhere(void) { return syscall(SYS_membarrier, 2, 0, 0) == 0; }

struct tk_futex_waitv { /* struct futex_waitv of linux/futex.h, absent from older headers */
    uint64_t value;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};

static inline void tk_wake(tk_half *bell) { syscall(SYS_futex, bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

static inline void tk_sleep(tk_half *bell, uint32_t seen, int64_t timeout_ns) {
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    syscall(SYS_futex, bell, FUTEX_WAIT, seen, &t, NULL, 0);
}

/* Sleep until one of `count` (1..TK_SLEEP_RINGS_MAX) bells is not what was seen, or the time is over. */
static inline void tk_sleep_any(tk_half **bells, const uint32_t *seen, int count, int64_t timeout_ns) {
    struct tk_futex_waitv waiters[TK_SLEEP_RINGS_MAX];
    if (count == 1) {
        tk_sleep(bells[0], seen[0], timeout_ns);
        return;
    }
    for (int i = 0; i < count; i++) {
        waiters[i].value = seen[i];
        waiters[i].address = (uint64_t)(uintptr_t)bells[i];
        waiters[i].flags = 2; /* FUTEX_32, shared */
        waiters[i].reserved = 0;
    }
    int64_t until = tk_monotonic_ns() + timeout_ns;
    struct timespec t = {until / 1000000000, until % 1000000000};
    if (syscall(SYS_futex_waitv, waiters, count, 0, &t, CLOCK_MONOTONIC) < 0 && errno == ENOSYS) tk_nap(timeout_ns);
}

#elif defined(__APPLE__) && defined(__has_include) && __has_include(<os/os_sync_wait_on_address.h>)
#include <os/os_sync_wait_on_address.h>

static inline void tk_wake(tk_half *bell) {
    os_sync_wake_by_address_all((void *)bell, 4, OS_SYNC_WAKE_BY_ADDRESS_SHARED);
}

static inline void tk_sleep(tk_half *bell, uint32_t seen, int64_t timeout_ns) {
    os_sync_wait_on_address_with_timeout((void *)bell, seen, 4, OS_SYNC_WAIT_ON_ADDRESS_SHARED,
                                         OS_CLOCK_MACH_ABSOLUTE_TIME, (uint64_t)timeout_ns);
}

static inline void tk_sleep_any(tk_half **bells, const uint32_t *seen, int count, int64_t timeout_ns) {
    if (count == 1) tk_sleep(bells[0], seen[0], timeout_ns);
    else tk_nap(timeout_ns); /* no call waits on several addresses */
}

#else
static inline void tk_wake(tk_half *bell) { (void)bell; }
static inline void tk_sleep(tk_half *bell, uint32_t seen, int64_t timeout_ns) {
    (void)bell;
    (void)seen;
    tk_nap(timeout_ns);
}
static inline void tk_sleep_any(tk_half **bells, const uint32_t *seen, int count, int64_t timeout_ns) {
    (void)bells;
    (void)seen;
    (void)count;
    tk_nap(timeout_ns);
}
#endif

#endif
