/* One writer and three readers, threads of one process, over ring.h alone: nothing torn, every record accounted for.
 *
 *     ringcheck [RECORDS] [DEPTH] [SEED]     prints one line a reader; exits with 0 if all is well
 *
 * tests/unit/test_ring_native.py builds it in several ways: with the vector copy and with TK_COPY_WORDS, for this machine
 * and for AArch64 (run under qemu-user there), and with the thread sanitizer. Each word of record n is derived from n, so
 * any mixture of two records, any stale or misplaced one shows itself.
 *
 * What it can't show is a missing fence. x86 never reorders what these fences order, and qemu-user on x86 inherits that.
 * GCC's thread sanitizer does not model fences at all: for it (RINGCHECK_TSAN) the fences of ring.h become operations on
 * a dummy word, which give it the same happens-before edges and some more; it then still finds any access that is not
 * atomic. What protects the fences is the argument in ring.h, and a model checker over it.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef RINGCHECK_TSAN
#include <stdatomic.h>
static _Atomic(int) fence_word;
#undef atomic_thread_fence
#define atomic_thread_fence(order) atomic_fetch_add_explicit(&fence_word, 0, memory_order_seq_cst)
#endif

#include "shm/ring.h"

enum { READERS = 3, LARGEST = 1024 };

struct reader {
    pthread_t thread;
    int number;
    uint64_t got, lost, overruns, broken;
    uint64_t records[LARGEST][TK_RECORD_WORDS];
};

static struct tk_ring ring;
static uint64_t total, seed;

static uint64_t word_of(uint64_t n, int word) {
    const uint64_t x = (n + seed) * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)word * UINT64_C(0xbf58476d1ce4e5b9);
    return x ^ (x >> 29);
}

static uint64_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

/* ts_publish carries the first sequence of the batch that record n was published in. */
static int is_record(const uint64_t *record, uint64_t n) {
    if (record[0] != n || n - record[TK_WORD_TS_PUBLISH] >= LARGEST) return 0;
    for (int word = 1; word < TK_RECORD_WORDS; word++)
        if (word != TK_WORD_TS_PUBLISH && record[word] != word_of(n, word)) return 0;
    return 1;
}

static void *write_all(void *unused) {
    static uint64_t records[LARGEST][TK_RECORD_WORDS];
    const uint64_t largest = ring.depth / 4 < LARGEST ? ring.depth / 4 : LARGEST;
    uint64_t state = seed;
    (void)unused;
    for (uint64_t n = 1; n <= total;) {
        uint64_t count = next_random(&state) % 4 == 0 ? 1 : next_random(&state) % largest + 1;
        if (count > total + 1 - n) count = total + 1 - n;
        for (uint64_t i = 0; i < count; i++)
            for (int word = 0; word < TK_RECORD_WORDS; word++) records[i][word] = word_of(n + i, word);
        if (count == 1) tk_publish(&ring, n, records[0], n);
        else tk_publish_batch(&ring, n, (const char *)records[0], count, n);
        n += count;
    }
    return NULL;
}

static void *read_all(void *argument) {
    struct reader *me = (struct reader *)argument;
    uint64_t state = seed + (uint64_t)me->number, next = 1;
    while (next <= total) {
        uint64_t limit = me->number == 0 ? LARGEST : next_random(&state) % 40 + 1;
        if (limit > ring.depth) limit = ring.depth;
        const int64_t count = limit == 1 ? tk_read(&ring, next, me->records[0])
                                         : tk_read_batch(&ring, next, (char *)me->records[0], limit);
        if (count < 0) {
            const uint64_t resume = tk_resume(&ring, next);
            me->overruns++;
            me->lost += resume - next;
            next = resume;
            continue;
        }
        for (int64_t i = 0; i < count; i++) me->broken += !is_record(me->records[i], next + (uint64_t)i);
        me->got += (uint64_t)count;
        next += (uint64_t)count;
        if (count == 0) tk_pause();
        if (me->number == 2) /* a slow one */
            for (uint64_t spins = next_random(&state) % 512; spins > 0; spins--) tk_pause();
    }
    return NULL;
}

int main(int count_of_arguments, char **arguments) {
    static struct reader readers[READERS];
    pthread_t writer;
    int bad = 0;
    total = count_of_arguments > 1 ? strtoull(arguments[1], NULL, 10) : 1000000;
    const uint64_t depth = count_of_arguments > 2 ? strtoull(arguments[2], NULL, 10) : 256;
    seed = count_of_arguments > 3 ? strtoull(arguments[3], NULL, 10) : 1;

    char *memory = (char *)aligned_alloc(TK_RECORD_BYTES, TK_RING_SLOTS_OFFSET + depth * TK_RECORD_BYTES);
    if (memory == NULL) return 2;
    for (uint64_t i = 0; i < TK_RING_SLOTS_OFFSET + depth * TK_RECORD_BYTES; i++) memory[i] = 0;
    ring.header = (struct tk_ring_header *)(void *)memory;
    ring.readers = (struct tk_ring_readers *)(void *)(memory + TK_RING_READERS_OFFSET);
    ring.slots = (tk_word *)(void *)(memory + TK_RING_SLOTS_OFFSET);
    ring.depth = depth;
    ring.mask = depth - 1;

    for (int i = 0; i < READERS; i++) {
        readers[i].number = i;
        if (pthread_create(&readers[i].thread, NULL, read_all, &readers[i]) != 0) return 2;
    }
    if (pthread_create(&writer, NULL, write_all, NULL) != 0) return 2;
    pthread_join(writer, NULL);
    for (int i = 0; i < READERS; i++) {
        const struct reader *one = &readers[i];
        pthread_join(one->thread, NULL);
        printf("reader %d: read %" PRIu64 " lost %" PRIu64 " overruns %" PRIu64 " broken %" PRIu64 "\n", i, one->got,
               one->lost, one->overruns, one->broken);
        bad |= one->broken != 0 || one->got + one->lost != total;
    }
    free(memory);
    return bad;
}
