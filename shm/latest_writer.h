/* The latest-value table, the writer's side: private working states, lanes, commit, recovery after a kill.
 *
 * Plain C11. Exactly one process writes a table (shm/latest.py holds the lock that sees to it). The writer works on private
 * states and makes them public in commits:
 *
 *    tk_work(id)  ->  change the private state, tk_touch the lines  ->  tk_append history  ->  ...  ->  tk_commit
 *
 * Between two commits readers see the entries as the last commit left them. Rules that make a kill at any point harmless:
 *   1. a current copy is never written, only the spare one (W2 of shm/latest.h);
 *   2. record slots at or above a lane's committed count belong to the writer alone;
 *   3. a chunk is given a new use only after the floor of its old owner has been raised past it (W4, F5, W5);
 *   4. which chunks are free is not stored: it follows from the floors and committed counts, and is worked out at open.
 *
 * When the pool is empty a lane that wants another chunk takes the oldest one of a lane that has at least two more than
 * itself (probing PROBES lanes from where the last search ended), else it recycles its own oldest. So lanes share a pool that
 * is too small evenly instead of by order of arrival, and a lane without any chunk, whose records are not kept, only stays
 * so in a pool with fewer chunks than lanes.
 */
#ifndef TICKENGINE_LATEST_WRITER_H
#define TICKENGINE_LATEST_WRITER_H

#include <stdlib.h>
#include <string.h>

#include "shm/latest.h"

struct tk_lane {
    char *next;         /* slot of the next record */
    uint32_t left;      /* slots left in the newest chunk */
    uint32_t spare;
    uint64_t first;     /* oldest logical chunk owned */
    uint64_t end;       /* one past the newest; end - first chunks are owned */
    uint64_t committed; /* the count that readers see */
};

struct tk_latest_writer {
    struct tk_latest table;
    char *work;               /* instruments x state_lines x 64 bytes, 64-byte aligned */
    void *work_memory;        /* what `work` lies in; zero pages until touched */
    struct tk_lane *lanes;    /* instruments x 2 */
    uint64_t *versions;       /* per instrument: its entry's version */
    uint32_t *dirty;          /* per instrument: bit per line changed since the last commit */
    uint32_t *dirty_before;   /* per instrument: bit per line changed in the last commit: the spare copy lacks these too */
    uint32_t *dirty_ids;      /* instruments with dirty != 0 */
    uint32_t *free_chunks;    /* stack */
    uint32_t dirty_count, free_count, hand, instruments_end;
    uint64_t work_bytes;      /* of one state */
    uint64_t uncommitted_max; /* most records that one lane has got since the last commit */
    uint64_t records_applied, records_skipped, l1_no_room, not_kept, chunks_taken, instruments_seen;
};

static inline struct tk_state *tk_work(const struct tk_latest_writer *w, uint32_t id) {
    return (struct tk_state *)(w->work + id * w->work_bytes);
}

/* Say that `lines` (a bit each) of the working state of `id` have changed. */
static inline void tk_touch(struct tk_latest_writer *w, uint32_t id, uint32_t lines) {
    if (w->dirty[id] == 0) w->dirty_ids[w->dirty_count++] = id;
    w->dirty[id] |= lines;
}

static inline void tk_latest_writer_close(struct tk_latest_writer *w) {
    free(w->work_memory);
    free(w->lanes);
    free(w->versions);
    free(w->dirty);
    free(w->dirty_before);
    free(w->dirty_ids);
    free(w->free_chunks);
    memset(w, 0, sizeof *w);
}

/* Take back the working state and the lanes of one instrument from what the last writer committed. `used` marks chunks. */
static inline void tk_latest_recover(struct tk_latest_writer *w, uint32_t id, uint8_t *used) {
    const struct tk_latest *t = &w->table;
    struct tk_latest_entry *entry = tk_latest_entry(t, id);
    struct tk_state *state = tk_work(w, id);
    uint64_t v = tk_load_acquire(&entry->version);
    if (v == 0 && tk_load_relaxed(&entry->floor[0]) == 0 && tk_load_relaxed(&entry->floor[1]) == 0) return;
    w->versions[id] = v;
    w->dirty_before[id] = (1u << t->state_lines) - 1; /* what the spare copy holds is unknown after a kill */
    if (v != 0) {
        tk_words_out((uint64_t *)state, tk_latest_copy(t, id, v), t->state_lines * TK_LATEST_LINE_WORDS);
        w->instruments_seen++;
        w->instruments_end = id + 1;
    }
    for (int lane = 0; lane < TK_LATEST_LANES; lane++) {
        struct tk_lane *l = &w->lanes[id * TK_LATEST_LANES + lane];
        uint64_t floor = tk_load_relaxed(&entry->floor[lane]), n = t->chunk_records;
        if (state->count[lane] < floor) state->count[lane] = floor; /* killed when nothing committed was left */
        uint64_t count = state->count[lane];
        l->first = floor / n;
        l->end = (count + n - 1) / n;
        l->committed = count;
        for (uint64_t k = l->first; k < l->end; k++) {
            uint32_t chunk = tk_half_load(tk_latest_chunk(t, id, lane, k));
            used[chunk] = 1;
            if (k == l->end - 1 && count % n) {
                l->next = tk_latest_slots(t, chunk) + count % n * TK_RECORD_BYTES;
                l->left = (uint32_t)(n - count % n);
            }
        }
    }
}

/* Become the writer of a mapped, writable table. 0, or -1 without memory. */
static inline int tk_latest_writer_open(struct tk_latest_writer *w, void *base, uint64_t pid) {
    memset(w, 0, sizeof *w);
    struct tk_latest *t = &w->table;
    tk_latest_map(t, base);
    size_t n = t->instruments;
    w->work_bytes = (uint64_t)t->state_lines * 64;
    w->work_memory = calloc(n * w->work_bytes + 64, 1);
    w->work = (char *)(((uintptr_t)w->work_memory + 63) & ~(uintptr_t)63);
    w->lanes = (struct tk_lane *)calloc(n * TK_LATEST_LANES, sizeof *w->lanes);
    w->versions = (uint64_t *)calloc(n, sizeof *w->versions);
    w->dirty = (uint32_t *)calloc(n, sizeof *w->dirty);
    w->dirty_before = (uint32_t *)calloc(n, sizeof *w->dirty_before);
    w->dirty_ids = (uint32_t *)calloc(n, sizeof *w->dirty_ids);
    w->free_chunks = (uint32_t *)calloc((size_t)t->chunks + 1, sizeof *w->free_chunks);
    uint8_t *used = (uint8_t *)calloc((size_t)t->chunks + 1, 1);
    if (!w->work_memory || !w->lanes || !w->versions || !w->dirty || !w->dirty_before || !w->dirty_ids || !w->free_chunks || !used) {
        free(used);
        tk_latest_writer_close(w);
        return -1;
    }
    for (uint32_t id = 0; id < t->instruments; id++) tk_latest_recover(w, id, used);
    for (uint32_t chunk = t->chunks; chunk-- > 0;) /* the lowest on top of the stack: a part-used pool stays dense */
        if (!used[chunk]) w->free_chunks[w->free_count++] = chunk;
    free(used);
    w->records_applied = tk_load_relaxed(&t->header->records_applied);
    w->records_skipped = tk_load_relaxed(&t->header->records_skipped);
    w->l1_no_room = tk_load_relaxed(&t->header->l1_no_room);
    w->not_kept = tk_load_relaxed(&t->header->not_kept);
    w->chunks_taken = tk_load_relaxed(&t->header->chunks_taken);
    tk_store_relaxed(&t->header->writers, tk_load_relaxed(&t->header->writers) + 1);
    tk_store_relaxed(&t->header->writer_pid, pid);
    return 0;
}

/* Give up the oldest chunk of a lane: its number. The floor is raised first, and nothing may be written before F5. */
static inline uint32_t tk_lane_release(struct tk_latest_writer *w, uint32_t id, int lane) {
    const struct tk_latest *t = &w->table;
    struct tk_lane *l = &w->lanes[id * TK_LATEST_LANES + lane];
    uint32_t chunk = tk_half_load(tk_latest_chunk(t, id, lane, l->first));
    l->first++;
    tk_store_relaxed(&tk_latest_entry(t, id)->floor[lane], l->first * t->chunk_records);    /* W4            */
    tk_fence_release();                                                                     /* F5: RECYCLE   */
    return chunk;
}

/* Take the oldest chunk of a lane that owns at least two more than `owned`; -1 if none is met among those probed. */
static inline int64_t tk_lane_take(struct tk_latest_writer *w, uint64_t owned) {
    enum { PROBES = 64 };
    uint32_t lanes = w->table.instruments * TK_LATEST_LANES, best = 0;
    uint64_t most = owned + 1;
    for (uint32_t i = 0; i < PROBES && i < lanes; i++) {
        uint32_t at = w->hand;
        uint64_t has = w->lanes[at].end - w->lanes[at].first;
        w->hand = at + 1 == lanes ? 0 : at + 1;
        if (has > most) {
            most = has;
            best = at;
        }
    }
    if (most == owned + 1) return -1;
    w->chunks_taken++;
    return tk_lane_release(w, best / TK_LATEST_LANES, (int)(best % TK_LATEST_LANES));
}

/* Give the lane, whose newest chunk is full, another one. 0 if there is none to be had. */
static inline int tk_lane_extend(struct tk_latest_writer *w, uint32_t id, int lane) {
    const struct tk_latest *t = &w->table;
    struct tk_lane *l = &w->lanes[id * TK_LATEST_LANES + lane];
    uint64_t owned = l->end - l->first;
    int64_t chunk;
    if (owned == t->lane_chunks) chunk = tk_lane_release(w, id, lane);
    else if (w->free_count) chunk = w->free_chunks[--w->free_count];
    else if ((chunk = tk_lane_take(w, owned)) < 0) {
        if (owned == 0) return 0;
        chunk = tk_lane_release(w, id, lane);
    }
    tk_half_store(tk_latest_chunk(t, id, lane, l->end), (uint32_t)chunk);                   /* W5            */
    l->end++;
    l->next = tk_latest_slots(t, (uint32_t)chunk);
    l->left = t->chunk_records;
    return 1;
}

/* Append a record (128 bytes, its sequence set) to a lane; visible after the next commit. The caller touches line 2. */
static inline void tk_append(struct tk_latest_writer *w, uint32_t id, int lane, struct tk_state *state, const void *record) {
    struct tk_lane *l = &w->lanes[id * TK_LATEST_LANES + lane];
    if (l->left == 0 && !tk_lane_extend(w, id, lane)) {
        w->not_kept++;
        return;
    }
    uint64_t sequence, pending;
    memcpy(&sequence, record, 8);
    tk_store_relaxed((tk_word *)l->next, sequence);                                         /* W5            */
    tk_record_in((tk_word *)l->next, record);                                               /* W5            */
    l->next += TK_RECORD_BYTES;
    l->left--;
    pending = ++state->count[lane] - l->committed;
    if (pending > w->uncommitted_max) w->uncommitted_max = pending;
}

/* Make everything touched since the last commit visible, each instrument at once. */
static inline void tk_commit(struct tk_latest_writer *w) {
    const struct tk_latest *t = &w->table;
    struct tk_latest_header *h = t->header;
    tk_fence_release();                                                                     /* W1 F1: REFILL */
    for (uint32_t i = 0; i < w->dirty_count; i++) {
        uint32_t id = w->dirty_ids[i], lines = w->dirty[id] | w->dirty_before[id];
        const struct tk_state *state = tk_work(w, id);
        uint64_t v = ++w->versions[id];
        tk_word *copy = tk_latest_copy(t, id, v);
        if (v == 1) lines = w->dirty[id] = (1u << t->state_lines) - 1; /* a kill may have left anything in the copies */
        w->dirty_before[id] = w->dirty[id];
        w->dirty[id] = 0;
        for (; lines; lines &= lines - 1) {
            size_t at = (size_t)__builtin_ctz(lines) * TK_LATEST_LINE_WORDS;
            tk_words_in(copy + at, (const uint64_t *)state + at, TK_LATEST_LINE_WORDS);     /* W2            */
        }
        tk_store_release(&tk_latest_entry(t, id)->version, v);                              /* F2 W3: FLIP   */
        if (v == 1) {
            w->instruments_seen++;
            if (id >= w->instruments_end) w->instruments_end = id + 1;
        }
        w->lanes[id * TK_LATEST_LANES].committed = state->count[0];
        w->lanes[id * TK_LATEST_LANES + 1].committed = state->count[1];
    }
    w->dirty_count = 0;
    w->uncommitted_max = 0;
    tk_store_relaxed(&h->records_applied, w->records_applied);
    tk_store_relaxed(&h->records_skipped, w->records_skipped);
    tk_store_relaxed(&h->l1_no_room, w->l1_no_room);
    tk_store_relaxed(&h->not_kept, w->not_kept);
    tk_store_relaxed(&h->chunks_taken, w->chunks_taken);
    tk_store_relaxed(&h->chunks_free, w->free_count);
    tk_store_relaxed(&h->instruments_seen, w->instruments_seen);
}

/* After a commit: every record of `ring` up to `sequence` is in the table. */
static inline void tk_complete(struct tk_latest_writer *w, int ring, uint64_t sequence) {
    tk_store_release(&w->table.header->complete[ring], sequence);                           /* F7 W6: COMPLETE */
}

#endif
