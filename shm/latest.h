/* The latest-value table: per instrument a state that is never torn, and its last records. Layout and the readers' side.
 *
 * Plain C11 without Python.h. Used by shm/_latest.pyx (readers) and, through shm/latest_writer.h, by the one writer: the
 * cache process (workers/_cache.pyx). A reader maps the segment read-only and writes nothing, ever.
 *
 * Words used here
 *   entry     what the table holds of one instrument; its index is the instrument id
 *   state     last trade, last quote, day, bars, and how far each ring has been applied: plain values, see tk_state
 *   copy      an entry has two copies of its state; the one that `version & 1` names is current, the other one spare
 *   flip      the writer has filled the spare copy and makes it current by adding 1 to `version`
 *   lane      an instrument's history: lane 0 everything but bars, lane 1 bars
 *   position  number of a record in its lane, from 0; only ever grows
 *   chunk     a fixed run of record slots in the pool; a lane owns chunks, newest last, drawn when it needs them
 *   floor     first position of a lane that is still there; only ever grows
 *
 * The segment
 *
 *        0         header   struct tk_latest_header
 *        1024      entries  instruments x entry_bytes:  head 64 | chunk numbers of lane 0, of lane 1 | copy 0 | copy 1
 *        pool      chunks x chunk_records x 128 bytes
 *
 * Ordering: who relies on what
 *
 *        writer, one commit                            reader, one state
 *
 *    W1  fence release                  F1         R1  v := version             acquire F3
 *    W2  spare copy := state  relaxed                  0: never seen
 *    W3  version := v + 1     release   F2         R2  copy (v & 1)             relaxed
 *                                                  F4  fence acquire
 *                                                  R3  version == v ? ok : again
 *
 *   pair FLIP    F2/W3 -> R1/F3   a reader that sees version v sees all of the copy that v names, and every history record
 *                                 and chunk number that its counts admit (they were stored before W3)
 *   pair REFILL  F1/W2 -> R2/F4   the copy that a reader of v reads is written again only for v + 2. A reader that has seen a
 *                                 word of that refill sees in R3 at least v + 1, which was stored before F1: it goes again
 *
 *        writer, a chunk is used again                 reader, one lane (after R3 gave it the count)
 *
 *    W4  floor := first position kept   relaxed    R4  chunk numbers, record words   relaxed
 *    F5  fence release                             F6  fence acquire
 *    W5  chunk number, record words     relaxed    R5  floor; what is below it is dropped
 *
 *   pair RECYCLE F5/W5 -> R4/F6   a reader that has seen a word of a chunk's next use sees in R5 the floor that says so
 *
 *        writer                                        reader
 *
 *    W6  complete[ring] := n  release   F7         R6  complete[ring]           acquire, before R1
 *
 *   pair COMPLETE F7/W6 -> R6     every flip that records up to n caused is visible to who reads n. So an entry read after
 *                                 complete[ring] = n holds its instrument's records up to max(n, applied[ring]) exactly.
 *
 * A kill -9 stops the writer between two of its stores: the current copy and the records below its counts are whole at every
 * such point, because W2, W4 and W5 touch only what no current copy admits.
 */
#ifndef TICKENGINE_LATEST_H
#define TICKENGINE_LATEST_H

#include "shm/ring.h"

#define TK_LATEST_MAGIC UINT64_C(0x315453414c544b54) /* the bytes T K T L A S T 1 */
#define TK_LATEST_VERSION 1
#define TK_LATEST_ENTRIES_OFFSET 1024
#define TK_LATEST_RINGS 16
#define TK_LATEST_LANES 2
#define TK_LATEST_INTERVALS_MAX 8
#define TK_LATEST_LINE_WORDS 8 /* the writer tracks what changed in lines of 64 bytes */
#define TK_LATEST_STATE_LINES_MAX (5 + 3 * TK_LATEST_INTERVALS_MAX)

/* tk_state.marks */
#define TK_MARK_TRADE 1u        /* a trade or tick was seen: the trade fields mean something */
#define TK_MARK_QUOTE 2u        /* a quote was seen */
#define TK_MARK_TRADE_ENDED 4u  /* the replay that sent the last trade has ended */
#define TK_MARK_QUOTE_ENDED 8u  /* the replay that sent the last quote has ended */
#define TK_MARK_LIVE 16u        /* the last trade was not a replayed one: the wall clock may close its bars */

/* One bar: 64 bytes. trade_count 0 = no bar. `flags`: record flags in the low half, TK_BAR_* above. */
struct tk_bar {
    int64_t start_ns; /* a multiple of the interval */
    double open, high, low, close;
    double volume;   /* sum of sizes */
    double notional; /* sum of price x size */
    uint32_t trade_count;
    uint32_t flags;
};
#define TK_BAR_FORCED 0x10000u  /* closed by a stop before its time was over: a later trade of it opens it again */
#define TK_BAR_PARTIAL 0x20000u /* trades of it were lost, or came before we listened */

/* One interval of one instrument: 3 lines. */
struct tk_interval {
    struct tk_bar open;
    int64_t open_first_ns, open_last_ns;     /* times of the trades that gave open.open and open.close */
    int64_t closed_first_ns, closed_last_ns; /* the same of `closed` */
    int64_t emitted_start_ns;                /* newest bar that was read back from the bar ring: it is there already */
    uint64_t emitted_count;                  /* its trade_count; 0 = none yet */
    uint64_t spare[2];
    struct tk_bar closed; /* the bar closed last, kept to be corrected */
};

/* The state. All zero is an instrument that was never seen. The first `TK_STATE_LINES` lines are always there, then one
 * tk_interval for each configured interval. */
struct tk_state {
    uint64_t applied[TK_LATEST_RINGS]; /* per ring: the last sequence of this instrument that is in here; lines 0, 1 */
    double bid, ask, bid_size, ask_size; /* line 2 */
    int64_t quote_ns;
    uint64_t count[TK_LATEST_LANES]; /* per lane: first position not yet written */
    uint32_t marks;
    uint16_t trade_feed, quote_feed;
    double price, size; /* line 3: last trade or tick */
    int64_t trade_ns, trade_receive_ns;
    uint64_t trade_id;
    uint64_t venue;
    uint8_t source, side;
    uint16_t flags;
    uint32_t conditions;
    uint64_t trade_sequence; /* its sequence in its ring */
    int64_t day;             /* line 4: days since 1970-01-01 UTC */
    double day_open, day_high, day_low, day_close, day_volume, day_notional;
    uint64_t day_trades;
    struct tk_interval interval[TK_LATEST_INTERVALS_MAX];
};
#define TK_STATE_LINES 5
#define TK_STATE_INTERVAL_LINES 3

TK_ASSERT(sizeof(struct tk_bar) == 64, "a bar is one line");
TK_ASSERT(sizeof(struct tk_interval) == 192, "an interval is three lines");
TK_ASSERT(offsetof(struct tk_state, bid) == 128, "quote line");
TK_ASSERT(offsetof(struct tk_state, price) == 192, "trade line");
TK_ASSERT(offsetof(struct tk_state, day) == 256, "day line");
TK_ASSERT(offsetof(struct tk_state, interval) == 320, "interval lines");

/* field            written by          when it may be believed
 * line 0, 1        creator             after an acquire load of `magic`, which is stored last; constant
 * complete         writer, commit      acquire; pair COMPLETE
 * counters         writer, commit      any time, each by itself
 */
struct tk_latest_header {
    tk_word magic; /* line 0 */
    uint32_t version;
    uint32_t record_bytes;
    uint64_t schema_hash;
    uint64_t segment_bytes;
    uint32_t instruments;   /* entries */
    uint32_t depth;         /* records that a lane keeps, if the pool lets it */
    uint32_t chunk_records; /* records in a chunk */
    uint32_t chunks;        /* chunks in the pool */
    uint32_t lane_chunks;   /* most chunks of a lane: one more than the depth needs, because the newest is partly filled */
    uint32_t intervals;     /* configured bar intervals */
    uint32_t interval_s[TK_LATEST_INTERVALS_MAX];
    uint64_t entry_bytes;
    uint64_t copies_offset; /* of copy 0, within an entry */
    uint64_t pool_offset;
    int64_t created_ns;
    uint8_t spare0[8];
    tk_word complete[TK_LATEST_RINGS]; /* line 1 */
    tk_word writers;                   /* line 2: how many processes have opened the table for writing */
    tk_word writer_pid;
    tk_word records_applied;
    tk_word records_skipped; /* applied before a restart: seen again and left out */
    tk_word l1_no_room;      /* of instruments beyond the last entry */
    tk_word not_kept;        /* history: no chunk to be had */
    tk_word chunks_taken;    /* history: chunks that one lane took from another because the pool was empty */
    tk_word chunks_free;
    tk_word instruments_seen;
    tk_word late_trades;
    tk_word lost_trades;
    tk_word bars;
    tk_word spare1[4];
};
TK_ASSERT(offsetof(struct tk_latest_header, complete) == 128, "complete has its own line");
TK_ASSERT(offsetof(struct tk_latest_header, writers) == 256, "counters have their own line");
TK_ASSERT(sizeof(struct tk_latest_header) <= TK_LATEST_ENTRIES_OFFSET, "the header fits");

struct tk_latest_entry {
    tk_word version; /* 0 = never seen */
    tk_word floor[TK_LATEST_LANES];
    uint64_t spare[5];
};
TK_ASSERT(sizeof(struct tk_latest_entry) == 64, "an entry's head is one line");

/* A mapped table; constants of the header, held privately. */
struct tk_latest {
    struct tk_latest_header *header;
    char *entries, *pool;
    uint64_t entry_bytes, copies_offset;
    uint32_t instruments, depth, chunk_records, chunks, lane_chunks, intervals, state_lines;
};

static inline uint32_t tk_latest_state_lines(uint32_t intervals) {
    return TK_STATE_LINES + TK_STATE_INTERVAL_LINES * intervals;
}

/* Fill the constants of `h` that follow from the wishes in it (instruments, depth, chunk_records, chunks, intervals). */
static inline void tk_latest_shape(struct tk_latest_header *h) {
    uint64_t numbers_bytes, copy_bytes = (uint64_t)tk_latest_state_lines(h->intervals) * 64;
    h->lane_chunks = (h->depth + h->chunk_records - 1) / h->chunk_records + 1;
    numbers_bytes = ((uint64_t)TK_LATEST_LANES * h->lane_chunks * sizeof(uint32_t) + 63) / 64 * 64;
    h->copies_offset = sizeof(struct tk_latest_entry) + numbers_bytes;
    h->entry_bytes = (h->copies_offset + 2 * copy_bytes + 127) / 128 * 128;
    h->pool_offset = (TK_LATEST_ENTRIES_OFFSET + h->instruments * h->entry_bytes + 4095) / 4096 * 4096;
    h->segment_bytes = h->pool_offset + (uint64_t)h->chunks * h->chunk_records * TK_RECORD_BYTES;
}

static inline void tk_latest_map(struct tk_latest *t, void *base) {
    struct tk_latest_header *h = (struct tk_latest_header *)base;
    t->header = h;
    t->entries = (char *)base + TK_LATEST_ENTRIES_OFFSET;
    t->pool = (char *)base + h->pool_offset;
    t->entry_bytes = h->entry_bytes;
    t->copies_offset = h->copies_offset;
    t->instruments = h->instruments;
    t->depth = h->depth;
    t->chunk_records = h->chunk_records;
    t->chunks = h->chunks;
    t->lane_chunks = h->lane_chunks;
    t->intervals = h->intervals;
    t->state_lines = tk_latest_state_lines(h->intervals);
}

static inline struct tk_latest_entry *tk_latest_entry(const struct tk_latest *t, uint32_t id) {
    return (struct tk_latest_entry *)(t->entries + id * t->entry_bytes);
}

static inline tk_word *tk_latest_copy(const struct tk_latest *t, uint32_t id, uint64_t version) {
    uint64_t copy_bytes = (uint64_t)t->state_lines * 64;
    return (tk_word *)(t->entries + id * t->entry_bytes + t->copies_offset + (version & 1) * copy_bytes);
}

/* Where the chunk number of logical chunk `k` (position / chunk_records) of a lane is kept. */
static inline tk_half *tk_latest_chunk(const struct tk_latest *t, uint32_t id, int lane, uint64_t k) {
    tk_half *numbers = (tk_half *)(t->entries + id * t->entry_bytes + sizeof(struct tk_latest_entry));
    return numbers + (uint64_t)lane * t->lane_chunks + k % t->lane_chunks;
}

static inline char *tk_latest_slots(const struct tk_latest *t, uint32_t chunk) {
    return t->pool + (uint64_t)chunk * t->chunk_records * TK_RECORD_BYTES;
}

/* Try once to read the state of `id` < instruments into `state`. 1 read, 0 never seen, -1 the writer was there: try again. */
static inline int tk_latest_try_read(const struct tk_latest *t, uint32_t id, struct tk_state *state, uint64_t *version) {
    const struct tk_latest_entry *entry = tk_latest_entry(t, id);
    uint64_t v = tk_load_acquire(&entry->version);                                          /* R1 F3: FLIP   */
    if (v == 0) return 0;
    tk_words_out((uint64_t *)state, tk_latest_copy(t, id, v), t->state_lines * TK_LATEST_LINE_WORDS); /* R2  */
    tk_fence_acquire();                                                                     /* F4: REFILL    */
    if (tk_load_relaxed(&entry->version) != v) return -1;                                   /* R3            */
    *version = v;
    return 1;
}

/* Copy the newest `limit` <= depth records below position `count` (from a state just read) of one lane to `out`, oldest
 * first. Returns how many there are to be copied; the first `*dropped` of them were recycled meanwhile and are not valid. */
static inline uint64_t tk_latest_history(const struct tk_latest *t, uint32_t id, int lane, uint64_t count, uint64_t limit,
                                         char *out, uint64_t *dropped) {
    const struct tk_latest_entry *entry = tk_latest_entry(t, id);
    uint64_t floor = tk_load_relaxed(&entry->floor[lane]);
    uint64_t from = count > limit ? count - limit : 0;
    if (from < floor) from = floor < count ? floor : count;
    for (uint64_t p = from; p < count;) {
        uint64_t k = p / t->chunk_records, end = (k + 1) * t->chunk_records;
        uint32_t chunk = tk_half_load(tk_latest_chunk(t, id, lane, k));                     /* R4            */
        if (end > count) end = count;
        if (chunk < t->chunks) {
            const char *slot = tk_latest_slots(t, chunk) + (p - k * t->chunk_records) * TK_RECORD_BYTES;
            for (uint64_t i = p; i < end; i++, slot += TK_RECORD_BYTES)
                tk_record_out(out + (i - from) * TK_RECORD_BYTES, (const tk_word *)slot);   /* R4            */
        }
        p = end;
    }
    tk_fence_acquire();                                                                     /* F6: RECYCLE   */
    floor = tk_load_relaxed(&entry->floor[lane]);                                           /* R5            */
    *dropped = floor <= from ? 0 : floor < count ? floor - from : count - from;
    return count - from;
}

#endif
