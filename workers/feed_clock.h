/* What time it is in each feed: the stream clocks that close bars, and what is known of gaps in the stream.
 *
 * Pure C11: no clock of its own, no I/O, no shared memory; records and the wall time come from the caller. Called by
 * workers/cache.h. It never changes a bar.
 *
 * Time of a record: ts_event; ts_receive instead where ts_event is unknown (<= 0), or where a live record claims to be from
 * more than TK_AHEAD_MAX_NS in the future (counted): one bad clock must not shift an instrument's bars for hours.
 *
 * Stream clock: per feed, the latest time of its trades, ticks, quotes and book updates. It is a clock of a feed and not of a
 * ring or an engine, because one worker may replay files of different days. For a live feed the wall clock carries it on
 * while the feed is silent: stream now = clock + (wall now - ts_receive of the record that set it), free of the venue's offset.
 */
#ifndef TICKENGINE_FEED_CLOCK_H
#define TICKENGINE_FEED_CLOCK_H

#include <stdlib.h>
#include <string.h>

#include "shm/latest.h"
#include "workers/bars.h"

#define TK_TYPE_TICK 1
#define TK_TYPE_QUOTE 2
#define TK_TYPE_BAR 3
#define TK_TYPE_TRADE 4
#define TK_TYPE_LEVEL2 5
#define TK_TYPE_STATUS 7
#define TK_CODE_END_OF_REPLAY 7
#define TK_CODE_TRADING_STATUS 13
#define TK_CODE_NO_INSTRUMENT 0xFFFFFFFFu
#define TK_FLAG_OUTLIER 0x0001u

/* The fields of a record that are used here; shm/layout.py has the table. */
struct tk_cache_record {
    uint64_t sequence;
    int64_t ts_event, ts_receive, ts_publish;
    uint32_t instrument_id;
    uint8_t record_type, source;
    uint16_t flags;
    uint64_t source_sequence;
    uint16_t feed_id;
    uint8_t priority, side;
    uint32_t conditions;
    uint64_t venue;
    union {
        struct { double price, size; uint64_t trade_id; } trade;
        struct { double bid, ask, bid_size, ask_size; } quote;
        struct { double open, high, low, close, volume, vwap; uint32_t interval_s, trade_count; } bar;
        struct { uint32_t code; } status;
        uint64_t words[8];
    } body;
};
TK_ASSERT(sizeof(struct tk_cache_record) == TK_RECORD_BYTES, "a record is 128 bytes");
TK_ASSERT(offsetof(struct tk_cache_record, body) == 64, "the head is 64 bytes");

struct tk_feed {
    int64_t clock_ns;   /* latest time seen */
    int64_t receive_ns; /* ts_receive of the record that set it */
    int64_t gap_ns;     /* bars that start at or before this have lost trades */
    uint32_t gap_flags;
    uint32_t ring_gaps; /* gaps of its ring that gap_ns accounts for */
    uint8_t seen, live;
};

struct tk_clocks {
    struct tk_feed *feeds;    /* by feed_id */
    uint16_t *feeds_seen;     /* feed ids in use, feed_count of them */
    uint32_t feed_count;
    uint32_t ring_gaps[TK_LATEST_RINGS]; /* overruns per ring */
    uint64_t future_times;
};
enum { TK_FEEDS = 65536 };
#define TK_AHEAD_MAX_NS INT64_C(60000000000)

static inline void tk_clocks_close(struct tk_clocks *clocks) {
    free(clocks->feeds);
    free(clocks->feeds_seen);
    memset(clocks, 0, sizeof *clocks);
}

/* No feed has been seen. 0, or -1 without memory. */
static inline int tk_clocks_open(struct tk_clocks *clocks) {
    memset(clocks, 0, sizeof *clocks);
    clocks->feeds = (struct tk_feed *)calloc(TK_FEEDS, sizeof *clocks->feeds); /* zero pages, until touched */
    clocks->feeds_seen = (uint16_t *)calloc(TK_FEEDS, sizeof *clocks->feeds_seen);
    if (clocks->feeds && clocks->feeds_seen) return 0;
    tk_clocks_close(clocks);
    return -1;
}

static inline struct tk_feed *tk_clock_of(struct tk_clocks *clocks, uint16_t feed_id) {
    struct tk_feed *feed = &clocks->feeds[feed_id];
    if (!feed->seen) {
        feed->seen = 1;
        feed->clock_ns = INT64_MIN;
        clocks->feeds_seen[clocks->feed_count++] = feed_id;
    }
    return feed;
}

static inline int64_t tk_record_time(struct tk_clocks *clocks, const struct tk_cache_record *r) {
    if (r->ts_event <= 0) return r->ts_receive;
    if (!(r->flags & (TK_FLAG_REPLAYED | TK_FLAG_SYNTHETIC)) && r->ts_receive > 0 &&
        r->ts_event - r->ts_receive > TK_AHEAD_MAX_NS) {
        clocks->future_times++;
        return r->ts_receive;
    }
    return r->ts_event;
}

/* Move the clock of the record's feed; note a gap in front of it, or that a live feed was joined under way. */
static inline struct tk_feed *tk_clock_move(struct tk_clocks *clocks, int ring, const struct tk_cache_record *r, int64_t t_ns) {
    int fresh = !clocks->feeds[r->feed_id].seen;
    struct tk_feed *feed = tk_clock_of(clocks, r->feed_id);
    if (fresh) {
        feed->ring_gaps = clocks->ring_gaps[ring];
        if (!(r->flags & (TK_FLAG_REPLAYED | TK_FLAG_SYNTHETIC))) {
            feed->gap_ns = t_ns;
            feed->gap_flags = TK_BAR_PARTIAL;
        }
    } else if (feed->ring_gaps != clocks->ring_gaps[ring]) {
        feed->ring_gaps = clocks->ring_gaps[ring];
        feed->gap_ns = t_ns;
        feed->gap_flags = TK_BAR_PARTIAL | TK_FLAG_GAP_BEFORE;
    }
    feed->live = !(r->flags & TK_FLAG_REPLAYED);
    if (t_ns > feed->clock_ns) {
        feed->clock_ns = t_ns;
        feed->receive_ns = r->ts_receive;
    }
    return feed;
}

/* A clock as far as an instrument's state tells where it stood. `receive_ns` 0 = not known (of quotes it is not kept): the
 * lag of the feed's trades then stands in for it. */
static inline void tk_clock_restore(struct tk_clocks *clocks, uint16_t feed_id, int64_t clock_ns, int64_t receive_ns) {
    struct tk_feed *feed = tk_clock_of(clocks, feed_id);
    int64_t lag_ns = receive_ns ? receive_ns - clock_ns : feed->receive_ns ? feed->receive_ns - feed->clock_ns : 0;
    int known = receive_ns != 0 || feed->receive_ns != 0;
    if (clock_ns > feed->clock_ns) feed->clock_ns = clock_ns;
    else if (feed->receive_ns) return;
    feed->receive_ns = known ? feed->clock_ns + lag_ns : 0;
}

/* What time it is in a feed; INT64_MIN where that is not known. `wall_ns` 0 = the records alone say. */
static inline int64_t tk_clock_now(const struct tk_feed *feed, int64_t wall_ns) {
    if (!feed->live || feed->clock_ns == INT64_MIN || feed->receive_ns <= 0 || wall_ns <= feed->receive_ns) return feed->clock_ns;
    return feed->clock_ns + (wall_ns - feed->receive_ns);
}

static inline int64_t tk_clocks_newest(const struct tk_clocks *clocks, int64_t wall_ns) {
    int64_t newest = INT64_MIN;
    for (uint32_t i = 0; i < clocks->feed_count; i++) {
        int64_t now = tk_clock_now(&clocks->feeds[clocks->feeds_seen[i]], wall_ns);
        if (now > newest) newest = now;
    }
    return newest;
}

#endif
