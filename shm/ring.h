/* The ring: one writer, any number of readers, and the writer never waits (unless a reader asked to be waited for).
 *
 * Plain C11 (and C++11), without Python.h and without system calls, so that a compiler for any target and a model checker
 * can take it as it is. Used by shm/_ring.pyx, by every native kernel that touches shared memory, and by readers in C
 * through shm/include/tickengine.h. Sleeping and waking live in shm/futex.h.
 *
 * Words used here (shm/README.md has the glossary)
 *   slot      128 bytes that hold one record; a ring has `depth` of them, a power of two
 *   sequence  number of a record in its ring, from 1; record n lives in slot n & (depth - 1)
 *   stamp     first word of a slot: n when record n is complete there, n - 1 while it is being written (the mark)
 *   lap       the writer comes round to a slot again, `depth` records later
 *   overrun   a reader finds that the record it wanted has been lapped; a result, not an error
 *   cursor    next sequence that a reader will read, published by it for others to see
 *   epoch     how many writers the ring has had
 *
 * The segment
 *
 *        0  header   struct tk_ring_header     written by the creator and by the writer; readers map it read-only
 *    16384  readers  struct tk_ring_readers    written by readers (each its own lines) and by the writer (its marked fields)
 *    32768  slots    depth x 128 bytes         written by the writer; readers map them read-only
 *
 * Ordering: who relies on what
 *
 *        writer, record n                              reader, record n
 *
 *    W1  stamp  := n - 1         relaxed           R1  q := stamp             relaxed, then acquire fence F3
 *    F1  release fence                                 q - n < 0 : empty      (signed: marks and old laps are below n)
 *    W2  words 1..15             relaxed               q - n > 0 : overrun
 *    F2  release fence                             R2  words 1..15            relaxed
 *    W3  stamp  := n             relaxed           F4  acquire fence
 *                                                  R3  stamp == n ? ok : overrun
 *
 *   pair PUBLISH  F2/W3 -> R1/F3  a reader that sees the stamp n sees the words of record n, not older ones
 *   pair LAP      F1/W2 -> R2/F4  a reader that has seen any word of a later record sees that record's mark in R3
 *
 * Without F1 or F4 AArch64 returns torn records; x86 never shows it, so only reasoning and a model checker protect them.
 * A batch of N writes N marks, F1, N payloads, F2, N stamps in order. A reader of a batch looks at the N stamps, F3,
 * copies, F4, and checks again the *oldest* slot only: the writer comes to the oldest first, and every payload word of a
 * later lap stands behind an F1 that covers the oldest slot's mark. (Checking the newest would miss a writer that has come
 * half way through the batch.) The marks of one batch have no order among themselves, so a reader may copy the mark of a
 * newer slot while the oldest still looks whole: therefore the reader writes each record's sequence itself, and takes only
 * words 1..15 on trust.
 *
 * Copying words. TK_COPY_WORDS is the reference: relaxed atomic 8-byte words, no data race in C11's terms. On x86-64 and
 * AArch64 an opaque vector copy does the same work in fewer instructions (figures in shm/README.md). It is sound for three
 * reasons: it stands between the same fences, which order all memory accesses on these machines, vector ones included
 * (x86 write-back stores are TSO and `rep`/non-temporal forms are not used; DMB orders SIMD&FP loads and stores as any
 * other); the compiler can neither see into it nor move it (asm volatile with a memory clobber); and a value it reads
 * while the slot is overwritten is never used, because R3 throws it away -- so tearing inside the copy does not matter.
 * Stamps are never touched by it on the writer's side.
 */
#ifndef TICKENGINE_RING_H
#define TICKENGINE_RING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <atomic>
#define TK_ATOMIC(T) std::atomic<T>
#define TK_ORDER(o) std::memory_order_##o
#define TK_ASSERT(c, m) static_assert(c, m)
#define tk_c11_load(p, o) std::atomic_load_explicit(p, o)
#define tk_c11_store(p, v, o) std::atomic_store_explicit(p, v, o)
#define tk_c11_add(p, v, o) std::atomic_fetch_add_explicit(p, v, o)
#define tk_c11_or(p, v, o) std::atomic_fetch_or_explicit(p, v, o)
#define tk_c11_and(p, v, o) std::atomic_fetch_and_explicit(p, v, o)
#define tk_c11_swap(p, v, o) std::atomic_exchange_explicit(p, v, o)
#define tk_c11_fence(o) std::atomic_thread_fence(o)
#define tk_c11_signal_fence(o) std::atomic_signal_fence(o)
#else
#include <stdatomic.h>
#define TK_ATOMIC(T) _Atomic(T)
#define TK_ORDER(o) memory_order_##o
#define TK_ASSERT(c, m) _Static_assert(c, m)
#define tk_c11_load(p, o) atomic_load_explicit(p, o)
#define tk_c11_store(p, v, o) atomic_store_explicit(p, v, o)
#define tk_c11_add(p, v, o) atomic_fetch_add_explicit(p, v, o)
#define tk_c11_or(p, v, o) atomic_fetch_or_explicit(p, v, o)
#define tk_c11_and(p, v, o) atomic_fetch_and_explicit(p, v, o)
#define tk_c11_swap(p, v, o) atomic_exchange_explicit(p, v, o)
#define tk_c11_fence(o) atomic_thread_fence(o)
#define tk_c11_signal_fence(o) atomic_signal_fence(o)
#endif

typedef TK_ATOMIC(uint64_t) tk_word;
typedef TK_ATOMIC(uint32_t) tk_half;

/* ---- words of shared memory, for this and every other table of the package -------------------------------------- */

static inline uint64_t tk_load_relaxed(const tk_word *p) { return tk_c11_load((tk_word *)p, TK_ORDER(relaxed)); }
static inline uint64_t tk_load_acquire(const tk_word *p) { return tk_c11_load((tk_word *)p, TK_ORDER(acquire)); }
static inline void tk_store_relaxed(tk_word *p, uint64_t v) { tk_c11_store(p, v, TK_ORDER(relaxed)); }
static inline void tk_store_release(tk_word *p, uint64_t v) { tk_c11_store(p, v, TK_ORDER(release)); }
static inline uint64_t tk_fetch_or(tk_word *p, uint64_t v) { return tk_c11_or(p, v, TK_ORDER(seq_cst)); }
static inline uint64_t tk_fetch_and(tk_word *p, uint64_t v) { return tk_c11_and(p, v, TK_ORDER(seq_cst)); }
static inline uint64_t tk_fetch_add(tk_word *p, uint64_t v) { return tk_c11_add(p, v, TK_ORDER(seq_cst)); }
static inline uint32_t tk_half_load(const tk_half *p) { return tk_c11_load((tk_half *)p, TK_ORDER(relaxed)); }
static inline void tk_half_store(tk_half *p, uint32_t v) { tk_c11_store(p, v, TK_ORDER(relaxed)); }
static inline uint32_t tk_half_add(tk_half *p, uint32_t v) { return tk_c11_add(p, v, TK_ORDER(seq_cst)); }
static inline uint32_t tk_half_swap(tk_half *p, uint32_t v) { return tk_c11_swap(p, v, TK_ORDER(seq_cst)); }
static inline void tk_fence_acquire(void) { tk_c11_fence(TK_ORDER(acquire)); }
static inline void tk_fence_release(void) { tk_c11_fence(TK_ORDER(release)); }
static inline void tk_fence_seq_cst(void) { tk_c11_fence(TK_ORDER(seq_cst)); }

/* Shared -> private and private -> shared, `count` words, relaxed. The private side may be unaligned. */
static inline void tk_words_out(uint64_t *to, const tk_word *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint64_t v = tk_load_relaxed(from + i);
        __builtin_memcpy(to + i, &v, 8);
    }
}
static inline void tk_words_in(tk_word *to, const uint64_t *from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint64_t v;
        __builtin_memcpy(&v, from + i, 8);
        tk_store_relaxed(to + i, v);
    }
}

static inline void tk_pause(void) { /* tell the core that this is a spin loop */
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield is a no-op on most ARM64 cores; isb waits some 10 ns */
#endif
}

/* ---- layout ------------------------------------------------------------------------------------------------------ */

#define TK_RECORD_BYTES 128
#define TK_RECORD_WORDS 16
#define TK_WORD_TS_PUBLISH 3
#define TK_RING_MAGIC UINT64_C(0x31474e4952454b54) /* the bytes T K E R I N G 1 */
#define TK_RING_VERSION 1
#define TK_RING_HEADER_OFFSET 0
#define TK_RING_READERS_OFFSET 16384
#define TK_RING_SLOTS_OFFSET 32768
#define TK_RING_READERS_MAX 63
#define TK_LABEL_BYTES 40
#define TK_NO_LIMIT UINT64_MAX

/* field              written by             read by            when it may be believed
 * line 0  magic      creator, last          all, at attach     acquire; every other field of line 0 is constant after it
 * line 1  epoch...   writer, at open        all                any time; changes when a writer takes over
 * line 2  published  writer, each publish   late joiners, lag  acquire; every record up to it is stamped
 */
struct tk_ring_header {
    tk_word magic; /* line 0 */
    uint32_t version;
    uint32_t record_bytes;
    uint64_t schema_hash;
    uint64_t depth;
    uint32_t ring_id;
    uint32_t wakeups; /* 1: the writer looks for sleepers after each publish */
    int64_t created_ns;
    uint64_t block_ns; /* how long the writer waits for a reliable reader before it demotes it */
    uint8_t spare0[72];
    tk_word epoch; /* line 1 */
    tk_word writer_pid;
    tk_word writer_started_ns;
    tk_word asymmetric; /* 1: the writer publishes without the fence of pair SLEEP, sleepers make up for it */
    uint8_t spare1[96];
    tk_word published; /* line 2 */
    uint8_t spare2[120];
};

/* One reader: two lines, the first written by the reader only, the second by the writer only. */
struct tk_ring_reader {
    tk_word cursor;            /* next sequence it reads; stored with release after the copy: pair CURSOR */
    tk_word lost;              /* records overrun, in all */
    tk_word overruns_polling;  /* overruns found before copying */
    tk_word overruns_reading;  /* overruns found after copying */
    tk_word state;             /* 0 free, 1 lossy, 2 reliable */
    tk_word pid;
    tk_word attached_ns;
    tk_word reads;             /* batches that returned records */
    char label[TK_LABEL_BYTES]; /* NUL padded, written before `state` */
    uint8_t spare0[24];
    tk_word demoted; /* line 1, writer: 1 = was reliable, the writer stopped waiting for it */
    uint8_t spare1[120];
};

struct tk_ring_readers {
    tk_word reliable; /* line 0: bit i set = the writer waits for reader i; set by the reader, cleared by either side */
    tk_word changes;  /* counts cursors that came or went back; written by readers, tells the writer to look again */
    uint8_t spare0[112];
    tk_half sleepers; /* line 1: 1 = somebody sleeps on `bell`; set by readers, swapped to 0 by the writer that rings */
    tk_half bell;     /* futex word: counts rings */
    uint8_t spare1[120];
    struct tk_ring_reader reader[TK_RING_READERS_MAX];
};

TK_ASSERT(sizeof(struct tk_ring_header) == 384, "ring header is three lines");
TK_ASSERT(offsetof(struct tk_ring_header, epoch) == 128, "writer's line");
TK_ASSERT(offsetof(struct tk_ring_header, published) == 256, "published has a line of its own");
TK_ASSERT(sizeof(struct tk_ring_reader) == 256, "a reader is two lines");
TK_ASSERT(sizeof(struct tk_ring_readers) == 16384, "reader table is one region");

/* A mapped ring. `readers` is NULL where the table could not be mapped for writing. */
struct tk_ring {
    struct tk_ring_header *header;
    struct tk_ring_readers *readers;
    tk_word *slots;
    uint64_t depth;
    uint64_t mask;
};

static inline tk_word *tk_slot(const struct tk_ring *r, uint64_t n) {
    return r->slots + (n & r->mask) * TK_RECORD_WORDS;
}

/* ---- copying one record ------------------------------------------------------------------------------------------ */

/* TK_COPY_WORDS selects the C11 words everywhere: the form that model checkers and sanitizers understand. */
#if !defined(TK_COPY_WORDS) && !(defined(__x86_64__) || defined(__aarch64__))
#define TK_COPY_WORDS 1
#endif

/* Words 1..15 of a record into its slot; word 0, the stamp, is left alone. */
static inline void tk_record_in(tk_word *slot, const void *record) {
#ifdef TK_COPY_WORDS
    tk_words_in(slot + 1, (const uint64_t *)record + 1, TK_RECORD_WORDS - 1);
#elif defined(__x86_64__)
    __asm__ volatile(
        "movq     8(%1), %%xmm0\n\t"
        "movdqu  16(%1), %%xmm1\n\t"
        "movdqu  32(%1), %%xmm2\n\t"
        "movdqu  48(%1), %%xmm3\n\t"
        "movdqu  64(%1), %%xmm4\n\t"
        "movdqu  80(%1), %%xmm5\n\t"
        "movdqu  96(%1), %%xmm6\n\t"
        "movdqu 112(%1), %%xmm7\n\t"
        "movq   %%xmm0,   8(%0)\n\t"
        "movdqa %%xmm1,  16(%0)\n\t"
        "movdqa %%xmm2,  32(%0)\n\t"
        "movdqa %%xmm3,  48(%0)\n\t"
        "movdqa %%xmm4,  64(%0)\n\t"
        "movdqa %%xmm5,  80(%0)\n\t"
        "movdqa %%xmm6,  96(%0)\n\t"
        "movdqa %%xmm7, 112(%0)"
        :
        : "r"(slot), "r"(record)
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "memory");
#else
    __asm__ volatile(
        "ldr d0, [%1, #8]\n\t"
        "ldr q1, [%1, #16]\n\t"
        "ldp q2, q3, [%1, #32]\n\t"
        "ldp q4, q5, [%1, #64]\n\t"
        "ldp q6, q7, [%1, #96]\n\t"
        "str d0, [%0, #8]\n\t"
        "str q1, [%0, #16]\n\t"
        "stp q2, q3, [%0, #32]\n\t"
        "stp q4, q5, [%0, #64]\n\t"
        "stp q6, q7, [%0, #96]"
        :
        : "r"(slot), "r"(record)
        : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "memory");
#endif
}

/* All 16 words of a slot into private memory; word 0 is whatever stood there (tk_read puts the sequence in its place). */
static inline void tk_record_out(void *record, const tk_word *slot) {
#ifdef TK_COPY_WORDS
    tk_words_out((uint64_t *)record, slot, TK_RECORD_WORDS);
#elif defined(__x86_64__)
    __asm__ volatile(
        "movdqa    (%1), %%xmm0\n\t"
        "movdqa  16(%1), %%xmm1\n\t"
        "movdqa  32(%1), %%xmm2\n\t"
        "movdqa  48(%1), %%xmm3\n\t"
        "movdqa  64(%1), %%xmm4\n\t"
        "movdqa  80(%1), %%xmm5\n\t"
        "movdqa  96(%1), %%xmm6\n\t"
        "movdqa 112(%1), %%xmm7\n\t"
        "movdqu %%xmm0,    (%0)\n\t"
        "movdqu %%xmm1,  16(%0)\n\t"
        "movdqu %%xmm2,  32(%0)\n\t"
        "movdqu %%xmm3,  48(%0)\n\t"
        "movdqu %%xmm4,  64(%0)\n\t"
        "movdqu %%xmm5,  80(%0)\n\t"
        "movdqu %%xmm6,  96(%0)\n\t"
        "movdqu %%xmm7, 112(%0)"
        :
        : "r"(record), "r"(slot)
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "memory");
#else
    __asm__ volatile(
        "ldp q0, q1, [%1]\n\t"
        "ldp q2, q3, [%1, #32]\n\t"
        "ldp q4, q5, [%1, #64]\n\t"
        "ldp q6, q7, [%1, #96]\n\t"
        "stp q0, q1, [%0]\n\t"
        "stp q2, q3, [%0, #32]\n\t"
        "stp q4, q5, [%0, #64]\n\t"
        "stp q6, q7, [%0, #96]"
        :
        : "r"(record), "r"(slot)
        : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "memory");
#endif
}

/* ---- writer ------------------------------------------------------------------------------------------------------ */

/* Stops between the steps of publish, for tests that kill a writer there; not compiled into the product. */
#ifdef TK_TEST_STOPS
extern int tk_stop_at;
void tk_stop_here(void);
#define TK_STOP(step) do { if (tk_stop_at == (step)) tk_stop_here(); } while (0)
#else
#define TK_STOP(step) do { } while (0)
#endif

/* Publish record n. The caller is the ring's only writer, n is one more than the last record published, and there is
 * room (tk_room). `record` is 128 bytes, any alignment; its words 0 and 3 are replaced by n and ts_publish. */
static inline void tk_publish(const struct tk_ring *r, uint64_t n, const void *record, uint64_t ts_publish) {
    tk_word *slot = tk_slot(r, n);

    TK_STOP(1);  tk_store_relaxed(slot, n - 1);                              /* W1 mark                 */
    TK_STOP(2);  tk_fence_release();                                         /* F1: LAP                 */
    TK_STOP(3);  tk_record_in(slot, record);                                 /* W2 payload              */
    TK_STOP(4);  tk_store_relaxed(slot + TK_WORD_TS_PUBLISH, ts_publish);    /* W2                      */
    TK_STOP(5);  tk_store_release(slot, n);                                  /* F2 W3 stamp: PUBLISH    */
    TK_STOP(6);  tk_store_release(&r->header->published, n);                 /* for late joiners        */
    TK_STOP(7);
}

/* Publish `count` records n .. n + count - 1, 1 <= count <= depth / 4, under the same conditions as tk_publish. */
static inline void tk_publish_batch(const struct tk_ring *r, uint64_t n, const char *records, uint64_t count,
                                    uint64_t ts_publish) {
    TK_STOP(1);
    for (uint64_t i = 0; i < count; i++) tk_store_relaxed(tk_slot(r, n + i), n + i - 1); /* W1 marks    */
    TK_STOP(2);
    tk_fence_release();                                                                  /* F1: LAP     */
    for (uint64_t i = 0; i < count; i++) {                                               /* W2 payloads */
        if (i == count / 2) TK_STOP(3);
        tk_word *slot = tk_slot(r, n + i);
        tk_record_in(slot, records + i * TK_RECORD_BYTES);
        tk_store_relaxed(slot + TK_WORD_TS_PUBLISH, ts_publish);
    }
    TK_STOP(4);
    tk_fence_release();                                                                  /* F2: PUBLISH */
    for (uint64_t i = 0; i < count; i++) {                                               /* W3 stamps   */
        if (i == count / 2) TK_STOP(5);
        tk_store_relaxed(tk_slot(r, n + i), n + i);
    }
    TK_STOP(6);
    tk_store_release(&r->header->published, n + count - 1);
    TK_STOP(7);
}

/* First sequence that may not be written yet for the sake of reliable readers: the smallest cursor among `mask` plus
 * depth; TK_NO_LIMIT without any. Acquire, pair CURSOR: what a reader has copied, it has copied before we overwrite it. */
static inline uint64_t tk_room(const struct tk_ring *r, uint64_t mask) {
    uint64_t limit = TK_NO_LIMIT;
    for (int i = 0; mask != 0; i++, mask >>= 1) {
        if (mask & 1) {
            uint64_t bound = tk_load_acquire(&r->readers->reader[i].cursor) + r->depth;
            if (bound < limit) limit = bound;
        }
    }
    return limit;
}

/* The first sequence that no writer has stamped, from `published` on: where a new writer goes on after a kill. Stamps are
 * laid in order, so everything before it is whole; a half-written record after it is written again. */
static inline uint64_t tk_recover(const struct tk_ring *r) {
    uint64_t n = tk_load_acquire(&r->header->published) + 1;
    while (tk_load_acquire(tk_slot(r, n)) == n) n++;
    return n;
}

/* ---- reader ------------------------------------------------------------------------------------------------------ */

/* Is record n there? 1 yes, 0 not yet, -1 overrun. Acquire: pair PUBLISH. */
static inline int tk_poll(const struct tk_ring *r, uint64_t n) {
    int64_t ahead = (int64_t)(tk_load_acquire(tk_slot(r, n)) - n);
    return ahead == 0 ? 1 : ahead < 0 ? 0 : -1;
}

/* Is record n still whole, after its words were read in place? Acquire fence first: pair LAP, as F4 and R3 of tk_read. */
static inline int tk_holds(const struct tk_ring *r, uint64_t n) {
    tk_fence_acquire();
    return tk_load_relaxed(tk_slot(r, n)) == n;
}

/* Read record n into 128 private bytes. 1 read, 0 not there yet, -1 overrun found while polling, -2 while reading. */
static inline int tk_read(const struct tk_ring *r, uint64_t n, void *record) {
    const tk_word *slot = tk_slot(r, n);
    int there = tk_poll(r, n);                                               /* R1 F3: PUBLISH          */
    if (there != 1) return there;
    tk_record_out(record, slot);                                             /* R2                      */
    __builtin_memcpy(record, &n, 8);
    tk_fence_acquire();                                                      /* F4: LAP                 */
    return tk_load_relaxed(slot) == n ? 1 : -2;                              /* R3                      */
}

/* Read up to `limit` records from n on, limit <= depth, into `records` (limit x 128 bytes). Returns how many, 0 for none
 * yet, -1 or -2 for an overrun of record n as in tk_read. Works in strides that stay in the L1 cache: stamps, fence, copy. */
static inline int64_t tk_read_batch(const struct tk_ring *r, uint64_t n, char *records, uint64_t limit) {
    const uint64_t stride = 32;
    uint64_t have = 0;
    int there = tk_poll(r, n);
    if (there != 1) return there;
    while (have < limit) {
        uint64_t want = limit - have < stride ? limit - have : stride, ready = 0;
        while (ready < want && tk_load_relaxed(tk_slot(r, n + have + ready)) == n + have + ready) ready++;  /* R1 */
        tk_fence_acquire();                                                  /* F3: PUBLISH             */
        for (uint64_t i = 0; i < ready; i++) {                               /* R2                      */
            uint64_t sequence = n + have + i;
            char *record = records + (have + i) * TK_RECORD_BYTES;
            tk_record_out(record, tk_slot(r, sequence));
            __builtin_memcpy(record, &sequence, 8); /* not the slot's word 0: it may be a later lap's mark already */
        }
        have += ready;
        if (ready < want) break;
    }
    tk_fence_acquire();                                                      /* F4: LAP                 */
    return tk_load_relaxed(tk_slot(r, n)) == n ? (int64_t)have : -2;         /* R3: the oldest slot     */
}

/* Where a reader goes on after an overrun: half a ring behind the writer, far from both ends. */
static inline uint64_t tk_resume(const struct tk_ring *r, uint64_t n) {
    uint64_t published = tk_load_acquire(&r->header->published);
    uint64_t resume = published > r->depth / 2 ? published - r->depth / 2 : 1;
    return resume > n ? resume : n;
}

/* ---- sleeping: both sides need the seq_cst fence, else each may miss the other (store buffering) ------------------
 *
 * The writer's fence comes after every publish and waits until its stores have left the core, for lines that readers have
 * just pulled away: the dearest instruction of the writer, for somebody who sleeps once in a while. Where the system can
 * make all cores that run a writer pass a full barrier (Linux: membarrier, GLOBAL_EXPEDITED), the sleeper asks for that
 * instead, and the writer has only to keep the compiler from reordering. `asymmetric` says so. It is read after the
 * sleeper's own fence and stored before a new writer's fence (tk_enter), so one of the two always sees the other.
 */

/* Reader: announce that it will sleep; then, if `*barrier` was set, make every core pass a barrier (tk_barrier_everywhere
 * in shm/futex.h); then poll once more; and only then sleep while `bell` has the returned value. */
static inline uint32_t tk_before_sleep(const struct tk_ring *r, int *barrier) {
    uint32_t bell = tk_half_load(&r->readers->bell);
    tk_half_store(&r->readers->sleepers, 1);
    tk_fence_seq_cst();                                                      /* pair SLEEP              */
    if (tk_load_relaxed(&r->header->asymmetric)) *barrier = 1;
    return bell;
}

/* A new writer, before its first record: how it will wake. */
static inline void tk_enter(const struct tk_ring *r, int asymmetric) {
    tk_store_relaxed(&r->header->asymmetric, asymmetric != 0);
    tk_fence_seq_cst();                                                      /* pair SLEEP              */
}

/* A new writer, before its first record: its predecessor may have died between publishing and ringing. The caller wakes. */
static inline void tk_ring_bell(struct tk_ring_readers *readers) { tk_half_add(&readers->bell, 1); }

/* Writer, after publishing: must somebody be woken? If so the bell has been rung and the caller wakes the futex. */
static inline int tk_after_publish(struct tk_ring_readers *readers, int asymmetric) {
    if (asymmetric) tk_c11_signal_fence(TK_ORDER(seq_cst));                  /* pair SLEEP              */
    else tk_fence_seq_cst();                                                 /* pair SLEEP              */
    if (tk_half_load(&readers->sleepers) == 0) return 0;
    tk_half_swap(&readers->sleepers, 0);
    tk_half_add(&readers->bell, 1);
    return 1;
}

#endif
