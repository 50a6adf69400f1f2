/* The native reader of perf/latency.py, written against the public header alone: spins on a ring and notes how old each
 * record is when it has been read.
 *
 *     latency_reader SEGMENT COUNT CPU FILE
 *
 * Attaches, says "ready" on its standard output, then reads COUNT records from the one after the newest on. FILE gets COUNT
 * int64: CLOCK_REALTIME right after the record was copied out, minus its ts_publish, ns; nothing is subtracted for the
 * clock. Exit status 3 after an overrun, 4 after a wrong record, 2 if something else is wrong.
 */
#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tickengine.h"

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const long count = atol(argv[2]);
#ifdef __linux__
    if (atoi(argv[3]) >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(atoi(argv[3]), &set);
        sched_setaffinity(0, sizeof set, &set);
    }
#endif
    struct tk_ring ring;
    if (tk_attach(argv[1], &ring) != 0) return 2;
    int64_t *taken_ns = malloc((size_t)count * 8);
    if (!taken_ns) return 2;
    for (long i = 0; i < count; i++) taken_ns[i] = 0; /* page faults happen now */

    struct tk_record record;
    uint64_t next = tk_newest(&ring), lost;
    puts("ready");
    fflush(stdout);
    for (long i = 0; i < count; i++) {
        while (tk_read_next(&ring, &next, &record, 1, &lost) == 0) { }
        const int64_t read_ns = now_ns();
        if (lost) return 3;
        if (record.source_sequence != (uint64_t)i + 1) return 4;
        taken_ns[i] = read_ns - record.ts_publish;
    }

    FILE *file = fopen(argv[4], "wb");
    if (!file || fwrite(taken_ns, 8, (size_t)count, file) != (size_t)count || fclose(file) != 0) return 2;
    return 0;
}
