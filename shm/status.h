/* status.h -- the status block: what every process of an engine says about itself, readable by anyone at any time.
 *
 * Called by shm/_status.pyx and by native workers that count inside a kernel. Plain C11: compiles without Python.h.
 * It never takes a lock, never calls the kernel, never allocates. (Taking a process slot is serialised by the caller.)
 *
 * Picture
 *
 *   segment   | header 8192 bytes | process 0 | process 1 | ... | process N-1 |
 *   process   | who 128 | placed 128 | pulse 128 | kept 128 | counters | gauges | histograms | their names |
 *
 * Words
 *
 *   slot      the space of one process; taken by label, and the same label finds its old slot again after a restart
 *   owner     the process that holds the slot's file lock; the only writer of nearly everything in the slot
 *   pulse     state and heartbeat, written each turn of the owner's main loop
 *
 * Single writer. Every counter, gauge and histogram has exactly one writing thread, so an update is a relaxed load, an
 * add and a relaxed store: no locked instruction. Two threads that share a counter would lose counts. Readers may be
 * anywhere; they see each 8-byte word whole, and different words at slightly different times.
 *
 * Pairs (search for the label)
 *
 *   ST-MAGIC  creator's last store of a new segment  ->  attach: everything in the header is there
 *   ST-SLOT   `used` of a slot                       ->  label and role of the slot are there
 *   ST-NAMES  a count of names                       ->  the names and values below the count are there
 *   ST-TEXT   version of a text                      ->  the copy it names is whole
 *   ST-COUNT  count of an append-only table          ->  the entries below the count are there (instrument table)
 */
#ifndef TK_STATUS_H
#define TK_STATUS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TK_STATUS_MAGIC UINT64_C(0x3154415453474b54) /* "TKGSTAT1", little-endian */
#define TK_STATUS_VERSION 1u

#define TK_STATUS_HEADER_BYTES 8192u
#define TK_STATUS_RINGS 16u
#define TK_STATUS_COUNTERS 1024u /* per process; nine a feed, of which one ingest worker may host a hundred */
#define TK_STATUS_GAUGES 64u
#define TK_STATUS_HISTOGRAMS 8u
#define TK_STATUS_NAME_BYTES 48u /* of counters, gauges and histograms: 47 characters and a NUL */
#define TK_STATUS_LABEL_BYTES 32u
#define TK_STATUS_FACTS_BYTES 1024u

/* Histogram: 32 sub-buckets per power of two, so a value is known to 1/32 (3 %); 1 ns .. 2^42 ns (73 minutes). */
#define TK_HIST_SUB_BITS 5u
#define TK_HIST_MAX_BITS 42u
#define TK_HIST_BUCKETS ((TK_HIST_MAX_BITS - TK_HIST_SUB_BITS + 1u) << TK_HIST_SUB_BITS) /* 1216 */

typedef char tk_status_name[TK_STATUS_NAME_BYTES];

/* A short text that may be rewritten while it is read. Two copies: the writer fills the one that is not in use, then
 * flips. So readers never wait, neither for a writer that was scheduled away half way nor for one that was killed there
 * (a plain seqlock failed the first of these in the stress test). Writer: the field's owner. Readers: all. */
#define TK_STATUS_TEXT_FIELD(name, bytes)                                                    \
    struct {                                                                                 \
        _Atomic uint64_t version;                      /* copy `version & 1` is the text */  \
        _Atomic uint64_t copies[2 * (1u + (bytes) / 8u)]; /* each: length, then the bytes */ \
    } name

typedef struct {
    TK_STATUS_TEXT_FIELD(label, 32); /* which process writes this ring, e.g. "ingest-0" */
    TK_STATUS_TEXT_FIELD(role, 16);
} tk_status_ring;

typedef struct {
    /* line 0. Writer: the creator, once, before magic. Readers: attach. */
    _Atomic uint64_t magic; /* stored last (ST-MAGIC) */
    uint32_t version;
    uint32_t process_slots;
    uint64_t process_bytes; /* sizeof(tk_status_process): the check that both sides have the same limits */
    uint64_t total_bytes;
    uint8_t line0_spare[96];
    /* line 1. Writer: the control process. Readers: all. */
    _Atomic uint64_t control_pid;
    _Atomic uint64_t started_ns;    /* when this run of the engine began */
    _Atomic uint64_t config_digest; /* tells runs with different settings apart; 0 = not said */
    _Atomic uint32_t shutdown;      /* 1 from the moment at which the engine began to stop */
    uint32_t line1_pad;
    uint8_t line1_spare[96];
    /* Writer: the control process. Readers: all. Free text: addresses and ports, JSON by convention. */
    TK_STATUS_TEXT_FIELD(facts, TK_STATUS_FACTS_BYTES);
    uint8_t facts_spare[104];
    /* Writer: the control process. Readers: all. Index = ring id; an empty label = no such ring. */
    tk_status_ring rings[TK_STATUS_RINGS];
} tk_status_header;

typedef struct {
    /* Writer: the owner's recording thread. Readers: all. The count is the sum of the buckets, so it has no field. */
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t min_ns_plus_1; /* 0 = nothing recorded */
    _Atomic uint64_t max_ns;
    uint8_t spare[104];
    _Atomic uint64_t buckets[TK_HIST_BUCKETS];
} tk_histogram;

typedef struct {
    /* who. Writer: the process that first took the slot, under the allocation lock, before `used`. Readers: all. */
    _Atomic uint64_t used; /* ST-SLOT */
    char label[TK_STATUS_LABEL_BYTES];
    char role[TK_STATUS_LABEL_BYTES];
    uint8_t who_spare[56];
    /* placed. Writer: the owner, at its start and when it registers a name. Readers: all. */
    _Atomic uint64_t pid;
    _Atomic uint64_t started_ns;
    _Atomic int64_t core; /* -1 = not pinned */
    _Atomic uint32_t counters_count; /* these three: ST-NAMES */
    _Atomic uint32_t gauges_count;
    _Atomic uint32_t histograms_count;
    uint32_t placed_pad;
    TK_STATUS_TEXT_FIELD(placement, 32);
    /* pulse. Writer: the owner each turn; the supervisor sets `state` of a process that it knows to be dead. Readers: all. */
    _Atomic uint64_t heartbeat_ns;
    _Atomic uint32_t state;
    uint32_t pulse_pad;
    uint8_t pulse_spare[112];
    /* kept. Writer: the supervisor. Readers: all. */
    _Atomic uint64_t restarts;
    _Atomic uint64_t retired; /* 1 = no longer part of the engine; cleared when the label comes back */
    uint8_t kept_spare[112];
    /* values. Writer: the owner. Readers: all. Packed: all words of a line have the same writer. */
    _Atomic uint64_t counters[TK_STATUS_COUNTERS];
    _Atomic uint64_t gauges[TK_STATUS_GAUGES]; /* bits of a float64 */
    tk_histogram histograms[TK_STATUS_HISTOGRAMS];
    /* names. Writer: the owner, once each, before the count that covers it. Readers: all, below the count. */
    tk_status_name counter_names[TK_STATUS_COUNTERS];
    tk_status_name gauge_names[TK_STATUS_GAUGES];
    tk_status_name histogram_names[TK_STATUS_HISTOGRAMS];
} tk_status_process;

_Static_assert(sizeof(tk_status_header) <= TK_STATUS_HEADER_BYTES, "the header fits its page");
_Static_assert(offsetof(tk_status_header, control_pid) == 128, "engine-wide fields start line 1");
_Static_assert(offsetof(tk_status_header, facts) == 256, "facts start line 2");
_Static_assert(offsetof(tk_status_header, rings) % 128 == 0, "rings start on a line");
_Static_assert(offsetof(tk_status_process, pid) == 128, "placed starts line 1");
_Static_assert(offsetof(tk_status_process, heartbeat_ns) == 256, "pulse has its own line");
_Static_assert(offsetof(tk_status_process, restarts) == 384, "the supervisor's fields have their own line");
_Static_assert(offsetof(tk_status_process, counters) == 512, "values start on a line");
_Static_assert(sizeof(tk_histogram) % 128 == 0, "histograms start on lines");
_Static_assert(sizeof(tk_status_process) % 128 == 0, "processes start on lines");

/* ---- segment ------------------------------------------------------------------------------------------------- */

static inline uint64_t tk_status_size_bytes(uint32_t process_slots) {
    return TK_STATUS_HEADER_BYTES + (uint64_t)process_slots * sizeof(tk_status_process);
}

/* Make a status block in `base`, zeroed memory of tk_status_size_bytes(process_slots), 128-byte aligned. */
static inline void tk_status_init(void *base, uint32_t process_slots) {
    tk_status_header *header = base;
    header->version = TK_STATUS_VERSION;
    header->process_slots = process_slots;
    header->process_bytes = sizeof(tk_status_process);
    header->total_bytes = tk_status_size_bytes(process_slots);
    atomic_store_explicit(&header->magic, TK_STATUS_MAGIC, memory_order_release); /* ST-MAGIC release */
}

/* 0 = not ready yet, TK_STATUS_MAGIC = a status block, else = something different. */
static inline uint64_t tk_status_magic(const void *base) {
    return atomic_load_explicit(&((const tk_status_header *)base)->magic, memory_order_acquire); /* ST-MAGIC acquire */
}

/* Slot `index` of a checked block; index < process_slots is the caller's duty. */
static inline tk_status_process *tk_status_slot(void *base, uint32_t index) {
    return (tk_status_process *)((char *)base + TK_STATUS_HEADER_BYTES) + index;
}

/* ---- texts --------------------------------------------------------------------------------------------------- */

/* Write `length` bytes (<= words * 8) to a TK_STATUS_TEXT_FIELD of `words` words. One writer. */
static inline void tk_status_text_write(void *field, uint32_t words, const char *bytes, uint32_t length) {
    _Atomic uint64_t *version = field;
    uint64_t next = atomic_load_explicit(version, memory_order_relaxed) + 1u;
    _Atomic uint64_t *copy = version + 1 + (next & 1u) * (1u + words);
    atomic_thread_fence(memory_order_release); /* who sees a word below, sees that this copy went out of use (ST-TEXT) */
    atomic_store_explicit(copy, length, memory_order_relaxed);
    for (uint32_t word = 0; word < words; word++) {
        uint64_t value = 0;
        uint32_t at = word * 8u;
        if (at < length) memcpy(&value, bytes + at, length - at < 8u ? length - at : 8u);
        atomic_store_explicit(copy + 1 + word, value, memory_order_relaxed);
    }
    atomic_store_explicit(version, next, memory_order_release); /* ST-TEXT release */
}

/* Copy the text to `out` (words * 8 bytes); returns its length. Tries again only after a whole rewrite in between. */
static inline uint32_t tk_status_text_read(const void *field, uint32_t words, char *out) {
    const _Atomic uint64_t *version = field;
    for (;;) {
        uint64_t before = atomic_load_explicit(version, memory_order_acquire); /* ST-TEXT acquire */
        const _Atomic uint64_t *copy = version + 1 + (before & 1u) * (1u + words);
        uint64_t length = atomic_load_explicit(copy, memory_order_relaxed);
        for (uint32_t word = 0; word < words; word++) {
            uint64_t value = atomic_load_explicit(copy + 1 + word, memory_order_relaxed);
            memcpy(out + word * 8u, &value, 8u);
        }
        atomic_thread_fence(memory_order_acquire); /* no word after the second look (ST-TEXT) */
        if (atomic_load_explicit(version, memory_order_relaxed) == before)
            return length < words * 8u ? (uint32_t)length : words * 8u;
    }
}

/* ---- slots --------------------------------------------------------------------------------------------------- */

static inline int tk_status_slot_used(const tk_status_process *process) {
    return atomic_load_explicit(&process->used, memory_order_acquire) != 0; /* ST-SLOT acquire */
}

/* First use of a slot, under the allocation lock. */
static inline void tk_status_slot_take(tk_status_process *process, const char *label, uint32_t label_length,
                                       const char *role, uint32_t role_length) {
    memcpy(process->label, label, label_length);
    memcpy(process->role, role, role_length);
    atomic_store_explicit(&process->used, 1u, memory_order_release); /* ST-SLOT release */
}

/* Number of `name` among the first `count` names, or -1. */
static inline int32_t tk_status_find_name(const tk_status_name *names, uint32_t count, const char *name,
                                          uint32_t length) {
    for (uint32_t index = 0; index < count; index++)
        if (memcmp(names[index], name, length) == 0 && names[index][length] == 0) return (int32_t)index;
    return -1;
}

/* Number of `name`, added if new; -1 = the table is full. The owner only; length < TK_STATUS_NAME_BYTES. */
static inline int32_t tk_status_register(tk_status_name *names, _Atomic uint32_t *counted, uint32_t capacity,
                                         const char *name, uint32_t length) {
    uint32_t count = atomic_load_explicit(counted, memory_order_relaxed);
    int32_t found = tk_status_find_name((const tk_status_name *)names, count, name, length);
    if (found >= 0) return found;
    if (count == capacity) return -1;
    memset(names[count], 0, TK_STATUS_NAME_BYTES); /* a killed owner may have left half a name */
    memcpy(names[count], name, length);
    atomic_store_explicit(counted, count + 1u, memory_order_release); /* ST-NAMES release */
    return (int32_t)count;
}

static inline uint32_t tk_status_names_count(const _Atomic uint32_t *counted) {
    return atomic_load_explicit(counted, memory_order_acquire); /* ST-NAMES acquire */
}

/* ---- values: hot, single writer ------------------------------------------------------------------------------ */

static inline uint64_t tk_counter_get(const _Atomic uint64_t *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static inline void tk_counter_set(_Atomic uint64_t *counter, uint64_t value) {
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

static inline void tk_counter_add(_Atomic uint64_t *counter, uint64_t n) {
    tk_counter_set(counter, tk_counter_get(counter) + n);
}

static inline double tk_gauge_get(const _Atomic uint64_t *gauge) {
    uint64_t bits = tk_counter_get(gauge);
    double value;
    memcpy(&value, &bits, 8u);
    return value;
}

static inline void tk_gauge_set(_Atomic uint64_t *gauge, double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8u);
    tk_counter_set(gauge, bits);
}

/* Bucket of a value: exact below 2 * 32, then 32 buckets per power of two; the last bucket takes all that is larger. */
static inline uint32_t tk_histogram_bucket(uint64_t value) {
    if (value < (UINT64_C(1) << TK_HIST_SUB_BITS)) return (uint32_t)value;
    if (value >> TK_HIST_MAX_BITS) return TK_HIST_BUCKETS - 1u;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - TK_HIST_SUB_BITS;
    return (shift << TK_HIST_SUB_BITS) + (uint32_t)(value >> shift);
}

/* Largest value of a bucket (inclusive); the last bucket's real limit is the recorded maximum. */
static inline uint64_t tk_histogram_upper(uint32_t bucket) {
    if (bucket < (2u << TK_HIST_SUB_BITS)) return bucket;
    uint32_t shift = (bucket >> TK_HIST_SUB_BITS) - 1u;
    uint64_t top = (bucket & ((1u << TK_HIST_SUB_BITS) - 1u)) + (1u << TK_HIST_SUB_BITS);
    return ((top + 1u) << shift) - 1u;
}

/* Record one duration; negative ones (a clock that was set back) count as 0. Hot: one clz, five relaxed words. */
static inline void tk_histogram_record(tk_histogram *histogram, int64_t ns) {
    uint64_t value = ns < 0 ? 0u : (uint64_t)ns;
    tk_counter_add(&histogram->buckets[tk_histogram_bucket(value)], 1u);
    tk_counter_add(&histogram->sum_ns, value);
    uint64_t least = tk_counter_get(&histogram->min_ns_plus_1);
    if (least == 0 || value + 1u < least) tk_counter_set(&histogram->min_ns_plus_1, value + 1u);
    if (value > tk_counter_get(&histogram->max_ns)) tk_counter_set(&histogram->max_ns, value);
}

/* ---- append-only tables --------------------------------------------------------------------------------------- */

/* Entries below this count are complete. */
static inline uint64_t tk_table_count(const _Atomic uint64_t *count) {
    return atomic_load_explicit(count, memory_order_acquire); /* ST-COUNT acquire */
}

/* Publish the entries below `value`; the writer holds the table's lock. */
static inline void tk_table_publish(_Atomic uint64_t *count, uint64_t value) {
    atomic_store_explicit(count, value, memory_order_release); /* ST-COUNT release */
}

#endif
