/* Question: which form of ring.h is the fastest on this machine? Prints one line a figure; shm/README.md quotes them.
 *
 *     gcc -std=c11 -O3 -pthread -I. tests/c/variants.c -o variants && ./variants                      vector copy
 *     gcc -std=c11 -O3 -pthread -I. -DTK_COPY_WORDS tests/c/variants.c -o variants && ./variants      C11 words
 *
 * write, read   one thread, batches of 1024 in a ring of 65536: best of 20 passes over the ring, records a second
 * round trip    two threads on two rings, one record to and fro, spinning: ns, the best median of 9 runs
 *     publish   as ring.h does: the mark goes into the slot that is written next, so a spinning reader loses its line twice
 *     ahead     the rejected variant: while record n is published, slot n + 2 gets its mark; sound, but the
 *               effective depth shrinks by 2
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "shm/ring.h"

enum { DEPTH = 65536, BATCH = 1024, ROUNDS = 20000, AHEAD = 2 };

typedef void publisher(const struct tk_ring *, uint64_t, const void *, uint64_t);

static void publish_ahead(const struct tk_ring *r, uint64_t n, const void *record, uint64_t ts_publish) {
    tk_word *slot = tk_slot(r, n);
    tk_store_relaxed(tk_slot(r, n + AHEAD), n + AHEAD - 1);
    tk_fence_release();
    tk_record_in(slot, record);
    tk_store_relaxed(slot + TK_WORD_TS_PUBLISH, ts_publish);
    tk_store_release(slot, n);
    tk_store_release(&r->header->published, n);
}

static int64_t now_ns(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct tk_ring new_ring(void) {
    struct tk_ring ring = {NULL, NULL, NULL, DEPTH, DEPTH - 1};
    const size_t words = (TK_RING_SLOTS_OFFSET + DEPTH * TK_RECORD_BYTES) / 8;
    uint64_t *memory = (uint64_t *)aligned_alloc(TK_RECORD_BYTES, words * 8);
    if (memory == NULL) exit(2);
    for (size_t i = 0; i < words; i++) memory[i] = 0;
    ring.header = (struct tk_ring_header *)(void *)memory;
    ring.slots = (tk_word *)(void *)(memory + TK_RING_SLOTS_OFFSET / 8);
    return ring;
}

static void copy_rates(void) {
    static char records[BATCH * TK_RECORD_BYTES];
    const struct tk_ring ring = new_ring();
    int64_t best_write = INT64_MAX, best_read = INT64_MAX;
    uint64_t n = 1;
    for (int pass = 0; pass < 20; pass++) {
        const uint64_t first = n;
        int64_t start = now_ns();
        for (int i = 0; i < DEPTH / BATCH; i++, n += BATCH) tk_publish_batch(&ring, n, records, BATCH, 1);
        int64_t took = now_ns() - start;
        if (took < best_write) best_write = took;
        start = now_ns();
        for (uint64_t at = first; at < n; at += BATCH)
            if (tk_read_batch(&ring, at, records, BATCH) != BATCH) exit(3);
        took = now_ns() - start;
        if (took < best_read) best_read = took;
    }
    printf("write %.0f M/s  read %.0f M/s\n", DEPTH * 1e3 / (double)best_write, DEPTH * 1e3 / (double)best_read);
}

struct side {
    struct tk_ring in, out;
    publisher *publish;
};

static void wait_for(const struct tk_ring *ring, uint64_t n, void *record) {
    while (tk_read(ring, n, record) != 1) tk_pause();
}

static void *answer(void *argument) {
    const struct side *side = (const struct side *)argument;
    uint64_t record[TK_RECORD_WORDS];
    for (uint64_t n = 1; n <= ROUNDS; n++) {
        wait_for(&side->in, n, record);
        side->publish(&side->out, n, record, 0);
    }
    return NULL;
}

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t round_trip(publisher *publish) {
    static int64_t times[ROUNDS];
    int64_t best = INT64_MAX;
    for (int run = 0; run < 9; run++) {
        struct side here = {new_ring(), new_ring(), publish};
        struct side there = {here.out, here.in, publish};
        uint64_t record[TK_RECORD_WORDS] = {0};
        pthread_t thread;
        if (pthread_create(&thread, NULL, answer, &there) != 0) exit(2);
        for (uint64_t n = 1; n <= ROUNDS; n++) {
            const int64_t start = now_ns();
            publish(&here.out, n, record, 0);
            wait_for(&here.in, n, record);
            times[n - 1] = now_ns() - start;
        }
        pthread_join(thread, NULL);
        free(here.in.header);
        free(here.out.header);
        qsort(times, ROUNDS, sizeof times[0], by_size);
        if (times[ROUNDS / 2] < best) best = times[ROUNDS / 2];
    }
    return best;
}

int main(void) {
    copy_rates();
    printf("round trip publish %" PRId64 " ns  ahead %" PRId64 " ns\n", round_trip(tk_publish), round_trip(publish_ahead));
    return 0;
}
