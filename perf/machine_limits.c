/* The machine's limits for perf/latency.py: how long a cache line takes from one core to another, and the clock.
 *
 *     machine_limits ROUNDS CPU CPU
 *
 * Two threads, one on each CPU, answer each other through two words on lines of their own. Prints half a round trip, the
 * median of blocks (no protocol between processes on these cores can be faster one way), and the cost of one
 * CLOCK_REALTIME, both in tenths of a ns.
 */
#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct {
    _Alignas(128) _Atomic uint64_t ping;
    _Alignas(128) _Atomic uint64_t pong;
} line;
static uint64_t rounds;
static int cpus[2];

enum { BLOCKS = 1000 };

static void pin(int cpu) {
#ifdef __linux__
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
    (void)cpu;
#endif
}

static void *answer(void *unused) {
    (void)unused;
    pin(cpus[1]);
    for (uint64_t n = 1; n <= rounds; n++) {
        while (atomic_load_explicit(&line.ping, memory_order_acquire) != n) { }
        atomic_store_explicit(&line.pong, n, memory_order_release);
    }
    return NULL;
}

static double elapsed_ns(const struct timespec *from, const struct timespec *to) {
    return (double)(to->tv_sec - from->tv_sec) * 1e9 + (double)(to->tv_nsec - from->tv_nsec);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    rounds = strtoull(argv[1], NULL, 10) / BLOCKS * BLOCKS;
    cpus[0] = atoi(argv[2]);
    cpus[1] = atoi(argv[3]);
    pthread_t other;
    if (pthread_create(&other, NULL, answer, NULL) != 0) return 2;
    pin(cpus[0]);
    struct timespec a, b;
    double halves_ns[BLOCKS];
    for (uint64_t block = 0, n = 1; block < BLOCKS; block++) {
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (uint64_t i = 0; i < rounds / BLOCKS; i++, n++) {
            atomic_store_explicit(&line.ping, n, memory_order_release);
            while (atomic_load_explicit(&line.pong, memory_order_acquire) != n) { }
        }
        clock_gettime(CLOCK_MONOTONIC, &b);
        halves_ns[block] = elapsed_ns(&a, &b) / 2 / (double)(rounds / BLOCKS);
    }
    pthread_join(other, NULL);
    qsort(halves_ns, BLOCKS, sizeof *halves_ns, by_value);
    const double handover_ns = halves_ns[BLOCKS / 2];

    enum { CALLS = 200000 };
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < CALLS; i++) clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_MONOTONIC, &b);
    const double clock_ns = elapsed_ns(&a, &b) / CALLS;
    printf("%.0f %.0f\n", handover_ns * 10, clock_ns * 10);
    return 0;
}
