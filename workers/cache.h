/* What the cache does with a batch of records: latest values, history, bars. One call a batch, no allocation, no system call.
 *
 * Plain C11. Called by workers/_cache.pyx with the GIL released, in the one process that writes the table. Results: working
 * states and history in shm/latest_writer.h (not yet visible), finished bars in `out` (not yet published). The caller then
 * publishes the bars, feeds them back as records of the bar ring, commits, and stores how far each ring is complete, in this
 * order; workers/cache.py says why.
 *
 * Time of a record: ts_event; ts_receive instead where ts_event is unknown (<= 0), or where a live record claims to be from
 * more than AHEAD_MAX_NS in the future (counted): one bad clock must not shift an instrument's bars for hours.
 *
 * Stream clock: per feed, the latest time of its trades, ticks, quotes and book updates. It is a clock of a feed and not of a
 * ring or an engine, because one worker may replay files of different days. For a live feed the wall clock carries it on
 * while the feed is silent: stream now = clock + (wall now - ts_receive of the record that set it), free of the venue's offset.
 */
#ifndef TICKENGINE_CACHE_H
#define TICKENGINE_CACHE_H

#include "shm/latest_writer.h"
#include "workers/bars.h"

#define TK_TYPE_TICK 1
#define TK_TYPE_QUOTE 2
#define TK_TYPE_BAR 3
#define TK_TYPE_TRADE 4
#define TK_TYPE_LEVEL2 5
#define TK_TYPE_STATUS 7
#define TK_CODE_END_OF_REPLAY 7
#define TK_FLAG_OUTLIER 0x0001u
#define TK_DAY_NS INT64_C(86400000000000)

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

struct tk_cache {
    struct tk_latest_writer writer;
    struct tk_bars_out out;
    struct tk_feed *feeds;   /* by feed_id */
    uint16_t *feeds_seen;    /* feed ids in use */
    int64_t *due_ns;         /* per instrument: end of the open bar that ends first; INT64_MAX = none is open */
    uint32_t feed_count, ids_end;
    uint32_t ring_gaps[TK_LATEST_RINGS];
    int64_t interval_ns[TK_LATEST_INTERVALS_MAX];
    int64_t grace_ns;
    int bar_ring, exclude_outliers;
    uint64_t late_trades, lost_trades, bad_prices, future_times, bars;
};

enum {
    TK_CACHE_FEEDS = 65536,
    TK_CACHE_UNCOMMITTED_MAX = 256, /* records of one lane in a commit: recycling must not run far ahead of what is visible */
};
#define TK_AHEAD_MAX_NS INT64_C(60000000000)
#define TK_LINES_APPLIED(ring) (1u << ((ring) / TK_LATEST_LINE_WORDS))
#define TK_LINE_QUOTE 4u
#define TK_LINE_TRADE 8u
#define TK_LINE_DAY 16u
#define TK_LINES_INTERVAL(k) (7u << (TK_STATE_LINES + TK_STATE_INTERVAL_LINES * (k)))

static inline void tk_cache_due(struct tk_cache *c, uint32_t id, const struct tk_state *state) {
    int64_t due = INT64_MAX;
    for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
        const struct tk_bar *open = &state->interval[k].open;
        if (open->trade_count && open->start_ns + c->interval_ns[k] < due) due = open->start_ns + c->interval_ns[k];
    }
    c->due_ns[id] = due;
}

static inline struct tk_feed *tk_cache_feed(struct tk_cache *c, uint16_t feed_id) {
    struct tk_feed *feed = &c->feeds[feed_id];
    if (!feed->seen) {
        feed->seen = 1;
        feed->clock_ns = INT64_MIN;
        c->feeds_seen[c->feed_count++] = feed_id;
    }
    return feed;
}

static inline int64_t tk_cache_time(struct tk_cache *c, const struct tk_cache_record *r) {
    if (r->ts_event <= 0) return r->ts_receive;
    if (!(r->flags & (TK_FLAG_REPLAYED | TK_FLAG_SYNTHETIC)) && r->ts_receive > 0 &&
        r->ts_event - r->ts_receive > TK_AHEAD_MAX_NS) {
        c->future_times++;
        return r->ts_receive;
    }
    return r->ts_event;
}

/* Move the clock of the record's feed; note a gap in front of it, or that a live feed was joined under way. */
static inline struct tk_feed *tk_cache_clock(struct tk_cache *c, int ring, const struct tk_cache_record *r, int64_t t_ns) {
    int fresh = !c->feeds[r->feed_id].seen;
    struct tk_feed *feed = tk_cache_feed(c, r->feed_id);
    if (fresh) {
        feed->ring_gaps = c->ring_gaps[ring];
        if (!(r->flags & (TK_FLAG_REPLAYED | TK_FLAG_SYNTHETIC))) {
            feed->gap_ns = t_ns;
            feed->gap_flags = TK_BAR_PARTIAL;
        }
    } else if (feed->ring_gaps != c->ring_gaps[ring]) {
        feed->ring_gaps = c->ring_gaps[ring];
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

/* Close the open bars of `id` that ended at or before `now_ns`. There is room for one bar an interval. */
static inline void tk_cache_close(struct tk_cache *c, uint32_t id, struct tk_state *state, int64_t now_ns, int64_t receive_ns) {
    for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
        const struct tk_bar *open = &state->interval[k].open;
        if (open->trade_count && open->start_ns + c->interval_ns[k] <= now_ns) {
            tk_bar_close(&c->out, state, id, k, 0, receive_ns);
            tk_touch(&c->writer, id, TK_LINES_INTERVAL(k));
        }
    }
    tk_cache_due(c, id, state);
}

/* Forget bars and day: a replay that had ended starts again at an earlier time. What is known of the bar ring is kept where
 * it is about the new run: bars of it that a predecessor had published when it was killed. */
static inline uint32_t tk_cache_restart(struct tk_cache *c, struct tk_state *state) {
    uint32_t lines = TK_LINE_DAY;
    state->day_trades = 0;
    for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
        struct tk_interval *interval = &state->interval[k];
        int64_t start_ns = interval->emitted_start_ns;
        uint64_t count = interval->emitted_count;
        int old = start_ns == interval->closed.start_ns && count == interval->closed.trade_count;
        memset(interval, 0, sizeof *interval);
        if (!old) {
            interval->emitted_start_ns = start_ns;
            interval->emitted_count = count;
        }
        lines |= TK_LINES_INTERVAL(k);
    }
    return lines;
}

static inline int tk_cache_day(struct tk_state *state, const struct tk_trade *trade, int newest) {
    int64_t day = tk_floor_to(trade->t_ns, TK_DAY_NS) / TK_DAY_NS;
    double notional = trade->price * trade->size;
    if (state->day_trades == 0 || day > state->day) {
        state->day = day;
        state->day_open = state->day_high = state->day_low = state->day_close = trade->price;
        state->day_volume = trade->size;
        state->day_notional = notional;
        state->day_trades = 1;
        return 1;
    }
    if (day < state->day) return 0;
    if (trade->price > state->day_high) state->day_high = trade->price;
    if (trade->price < state->day_low) state->day_low = trade->price;
    if (newest) state->day_close = trade->price;
    state->day_volume += trade->size;
    state->day_notional += notional;
    state->day_trades++;
    return 1;
}

/* A trade or tick into last trade, day and bars. Returns the lines changed. */
static inline uint32_t tk_cache_trade(struct tk_cache *c, uint32_t id, struct tk_state *state,
                                      const struct tk_cache_record *r, int64_t t_ns, const struct tk_feed *feed) {
    uint32_t lines = 0;
    int newest, late = 0;
    struct tk_trade trade = {.t_ns = t_ns, .price = r->body.trade.price, .size = r->body.trade.size};
    if (!isfinite(trade.price)) {
        c->bad_prices++;
        return 0;
    }
    if (c->exclude_outliers && (r->flags & TK_FLAG_OUTLIER)) return 0;
    if (!isfinite(trade.size) || trade.size < 0) trade.size = 0;
    trade.flags = r->flags & TK_BAR_INHERITS;
    if (r->flags & TK_FLAG_GAP_BEFORE) trade.flags |= TK_FLAG_GAP_BEFORE | TK_BAR_PARTIAL;
    trade.gap_ns = feed->gap_ns;
    trade.gap_flags = feed->gap_flags;

    if (state->marks & TK_MARK_TRADE_ENDED) {
        if (t_ns < state->trade_ns) {
            lines |= tk_cache_restart(c, state);
            state->marks &= ~TK_MARK_TRADE;
        }
        state->marks &= ~TK_MARK_TRADE_ENDED;
        lines |= TK_LINE_QUOTE;
    }
    if (c->due_ns[id] != INT64_MAX) { /* what the timer would have closed, whenever it runs: bars do not depend on it */
        const struct tk_feed *clock = &c->feeds[state->trade_feed];
        if (clock->seen && c->due_ns[id] + c->grace_ns <= clock->clock_ns)
            tk_cache_close(c, id, state, clock->clock_ns - c->grace_ns, r->ts_receive);
    }
    newest = !(state->marks & TK_MARK_TRADE) || t_ns >= state->trade_ns;
    if (!tk_cache_day(state, &trade, newest)) late = 1;
    for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
        int kind = tk_bars_trade(&c->out, state, id, k, c->interval_ns[k], &trade, r->ts_receive);
        lines |= TK_LINES_INTERVAL(k);
        if (kind > late) late = kind;
    }
    c->late_trades += late != 0;
    c->lost_trades += late == 2;
    if (newest) {
        state->price = r->body.trade.price;
        state->size = r->body.trade.size;
        state->trade_ns = t_ns;
        state->trade_receive_ns = r->ts_receive;
        state->trade_id = r->body.trade.trade_id;
        state->venue = r->venue;
        state->source = r->source;
        state->side = r->side;
        state->flags = r->flags;
        state->conditions = r->conditions;
        state->trade_sequence = r->sequence;
        lines |= TK_LINE_TRADE;
    }
    state->trade_feed = r->feed_id;
    state->marks |= TK_MARK_TRADE;
    state->marks = r->flags & TK_FLAG_REPLAYED ? state->marks & ~TK_MARK_LIVE : state->marks | TK_MARK_LIVE;
    tk_cache_due(c, id, state);
    return lines | TK_LINE_QUOTE | TK_LINE_DAY;
}

static inline void tk_cache_quote(struct tk_state *state, const struct tk_cache_record *r, int64_t t_ns) {
    int again = (state->marks & TK_MARK_QUOTE_ENDED) != 0;
    state->marks &= ~TK_MARK_QUOTE_ENDED;
    if ((state->marks & TK_MARK_QUOTE) && !again && t_ns < state->quote_ns) return;
    state->bid = r->body.quote.bid;
    state->ask = r->body.quote.ask;
    state->bid_size = r->body.quote.bid_size;
    state->ask_size = r->body.quote.ask_size;
    state->quote_ns = t_ns;
    state->quote_feed = r->feed_id;
    state->marks |= TK_MARK_QUOTE;
}

/* A bar read back from the bar ring: from now on it is known to be there. Returns the lines changed. */
static inline uint32_t tk_cache_emitted(struct tk_cache *c, struct tk_state *state, const struct tk_cache_record *r) {
    for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
        if (c->interval_ns[k] == (int64_t)r->body.bar.interval_s * 1000000000) {
            state->interval[k].emitted_start_ns = r->ts_event;
            state->interval[k].emitted_count = r->body.bar.trade_count;
            return TK_LINES_INTERVAL(k);
        }
    }
    return 0;
}

/* A feed's replay is over: close the open bars of the instruments that it traded last. 0 = `out` is full, call again. */
static inline int tk_cache_end(struct tk_cache *c, int ring, const struct tk_cache_record *r) {
    const struct tk_latest_writer *w = &c->writer;
    struct tk_feed *feed = &c->feeds[r->feed_id];
    for (uint32_t id = 0; id < c->ids_end; id++) {
        struct tk_state *state = tk_work(w, id);
        uint32_t ended = 0;
        if (w->versions[id] == 0 && w->dirty[id] == 0) continue;
        if (r->sequence <= state->applied[ring]) continue;
        if ((state->marks & TK_MARK_TRADE) && state->trade_feed == r->feed_id) ended |= TK_MARK_TRADE_ENDED;
        if ((state->marks & TK_MARK_QUOTE) && state->quote_feed == r->feed_id) ended |= TK_MARK_QUOTE_ENDED;
        if (!ended) continue;
        if (c->out.count + w->table.intervals > c->out.capacity) return 0;
        if (ended & TK_MARK_TRADE_ENDED) {
            for (uint32_t k = 0; k < w->table.intervals; k++) {
                const struct tk_bar *open = &state->interval[k].open;
                if (!open->trade_count) continue;
                tk_bar_close(&c->out, state, id, k, feed->clock_ns < open->start_ns + c->interval_ns[k] ? TK_BAR_FORCED : 0,
                             r->ts_receive);
                tk_touch(&c->writer, id, TK_LINES_INTERVAL(k));
            }
            c->due_ns[id] = INT64_MAX;
        }
        state->marks |= ended;
        state->applied[ring] = r->sequence;
        tk_touch(&c->writer, id, TK_LINES_APPLIED(ring) | TK_LINE_QUOTE);
    }
    feed->clock_ns = INT64_MIN; /* it may start again, at an earlier time */
    return 1;
}

/* Apply records[from..to) of `ring`, in order. Returns where it stopped: at `to`, or earlier because the bars have to be
 * published or the states committed first; the caller does both and calls again. */
static inline uint64_t tk_cache_apply(struct tk_cache *c, int ring, const char *records, uint64_t from, uint64_t to) {
    enum { FAR = 12, NEAR = 5 };
    struct tk_latest_writer *w = &c->writer;
    const uint32_t instruments = w->table.instruments, most = 2 * w->table.intervals;
    for (uint64_t i = from; i < to; i++) {
        const struct tk_cache_record *r = (const struct tk_cache_record *)(const void *)(records + i * TK_RECORD_BYTES);
        const uint32_t id = r->instrument_id;
        struct tk_state *state;
        uint32_t lines;
        int lane = 0;

        if (c->out.count + most > c->out.capacity || w->uncommitted_max >= TK_CACHE_UNCOMMITTED_MAX) return i;
        if (i + FAR < to) { /* 1000 instruments do not fit into the L1 cache: ask for the lines early */
            uint32_t far = (r + FAR)->instrument_id, near = (r + NEAR)->instrument_id;
            if (far < instruments) {
                const char *work = (const char *)tk_work(w, far);
                for (uint32_t line = 0; line < w->table.state_lines; line++) __builtin_prefetch(work + line * 64, 1);
                __builtin_prefetch(&w->lanes[far * TK_LATEST_LANES], 1);
            }
            if (near < instruments) {
                __builtin_prefetch(w->lanes[near * TK_LATEST_LANES].next, 1);
                __builtin_prefetch(w->lanes[near * TK_LATEST_LANES].next + 64, 1);
            }
        }
        if (r->record_type == TK_TYPE_STATUS) { /* about a feed or an engine, not about an instrument */
            if (r->body.status.code == TK_CODE_END_OF_REPLAY && ring != c->bar_ring) {
                if (!tk_cache_end(c, ring, r)) return i;
                return i + 1; /* publish and commit before a next run may take the clock back */
            }
            continue;
        }
        if (id >= instruments) {
            w->l1_no_room++;
            continue;
        }
        state = tk_work(w, id);
        if (r->sequence <= state->applied[ring]) {
            w->records_skipped++;
            continue;
        }
        if (id >= c->ids_end) c->ids_end = id + 1;
        state->applied[ring] = r->sequence;
        lines = TK_LINES_APPLIED(ring) | TK_LINE_QUOTE; /* the quote line holds the counts of the lanes too */
        if (r->record_type == TK_TYPE_BAR) {
            lane = 1;
            if (ring == c->bar_ring) lines |= tk_cache_emitted(c, state, r);
        } else if (r->record_type == TK_TYPE_TRADE || r->record_type == TK_TYPE_TICK) {
            int64_t t_ns = tk_cache_time(c, r);
            lines |= tk_cache_trade(c, id, state, r, t_ns, tk_cache_clock(c, ring, r, t_ns));
        } else if (r->record_type == TK_TYPE_QUOTE) {
            int64_t t_ns = tk_cache_time(c, r);
            tk_cache_clock(c, ring, r, t_ns);
            tk_cache_quote(state, r, t_ns);
        } else if (r->record_type == TK_TYPE_LEVEL2) {
            tk_cache_clock(c, ring, r, tk_cache_time(c, r));
        }
        tk_touch(w, id, lines);
        tk_append(w, id, lane, state, r);
        w->records_applied++;
    }
    return to;
}

/* Records of `ring` were overrun: the open bars of its instruments have lost trades. */
static inline void tk_cache_gap(struct tk_cache *c, int ring) {
    c->ring_gaps[ring]++;
    for (uint32_t id = 0; id < c->ids_end; id++) {
        struct tk_state *state = tk_work(&c->writer, id);
        if (c->due_ns[id] == INT64_MAX || state->applied[ring] == 0) continue;
        for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
            state->interval[k].open.flags |= TK_BAR_PARTIAL | TK_FLAG_GAP_BEFORE; /* begin replaces them where none is open */
            tk_touch(&c->writer, id, TK_LINES_INTERVAL(k));
        }
    }
}

/* Close what is over by the stream clocks. `wall_ns` carries on the clocks of live feeds; 0 = records alone count, because
 * there are some that were not read yet. With `all`, close every bar, over or not. 0 = `out` is full, call again. */
static inline int tk_cache_close_due(struct tk_cache *c, int64_t wall_ns, int all) {
    int64_t newest = INT64_MIN;
    for (uint32_t i = 0; i < c->feed_count; i++) {
        const struct tk_feed *feed = &c->feeds[c->feeds_seen[i]];
        int64_t now = feed->clock_ns;
        if (wall_ns && feed->live && now != INT64_MIN && wall_ns > feed->receive_ns && feed->receive_ns > 0)
            now += wall_ns - feed->receive_ns;
        if (now > newest) newest = now;
    }
    for (uint32_t id = 0; id < c->ids_end; id++) {
        if (c->due_ns[id] == INT64_MAX || (!all && (newest == INT64_MIN || c->due_ns[id] > newest - c->grace_ns))) continue;
        struct tk_state *state = tk_work(&c->writer, id);
        const struct tk_feed *feed = &c->feeds[state->trade_feed];
        int64_t now = feed->clock_ns, receive = feed->receive_ns;
        if (c->out.count + c->writer.table.intervals > c->out.capacity) return 0;
        if (now == INT64_MIN && !all) continue;
        if (wall_ns && feed->live && now != INT64_MIN && receive > 0 && wall_ns > receive) {
            now += wall_ns - receive;
            receive = wall_ns;
        }
        if (!all) {
            tk_cache_close(c, id, state, now - c->grace_ns, receive);
            continue;
        }
        for (uint32_t k = 0; k < c->writer.table.intervals; k++) {
            const struct tk_bar *open = &state->interval[k].open;
            if (!open->trade_count) continue;
            tk_bar_close(&c->out, state, id, k, now < open->start_ns + c->interval_ns[k] ? TK_BAR_FORCED : 0, receive);
            tk_touch(&c->writer, id, TK_LINES_INTERVAL(k));
        }
        c->due_ns[id] = INT64_MAX;
    }
    return 1;
}

/* `ring` was made anew since its records were applied: what is known of its sequences is void. */
static inline void tk_cache_forget(struct tk_cache *c, int ring) {
    for (uint32_t id = 0; id < c->ids_end; id++) {
        struct tk_state *state = tk_work(&c->writer, id);
        if (state->applied[ring] == 0) continue;
        state->applied[ring] = 0;
        tk_touch(&c->writer, id, TK_LINES_APPLIED(ring));
    }
}

/* The bars of `out` from `from` on as records, at most `limit`. Sequence and ts_publish are the ring's to fill. */
static inline uint32_t tk_cache_records(const struct tk_cache *c, char *records, uint32_t from, uint32_t limit) {
    uint32_t n = c->out.count - from < limit ? c->out.count - from : limit;
    for (uint32_t i = 0; i < n; i++) {
        const struct tk_bar_record *item = &c->out.items[from + i];
        struct tk_cache_record r;
        memset(&r, 0, sizeof r);
        r.ts_event = item->bar.start_ns;
        r.ts_receive = item->receive_ns;
        r.instrument_id = item->instrument_id;
        r.record_type = TK_TYPE_BAR;
        r.source = item->source;
        r.flags = item->flags;
        r.feed_id = item->feed_id;
        r.priority = 1;
        r.venue = item->venue;
        r.body.bar.open = item->bar.open;
        r.body.bar.high = item->bar.high;
        r.body.bar.low = item->bar.low;
        r.body.bar.close = item->bar.close;
        r.body.bar.volume = item->bar.volume;
        r.body.bar.vwap = item->bar.volume > 0 ? item->bar.notional / item->bar.volume : NAN;
        r.body.bar.interval_s = (uint32_t)(c->interval_ns[item->interval] / 1000000000);
        r.body.bar.trade_count = item->bar.trade_count;
        memcpy(records + (uint64_t)i * TK_RECORD_BYTES, &r, sizeof r);
    }
    return n;
}

static inline void tk_cache_close_all(struct tk_cache *c) {
    tk_latest_writer_close(&c->writer);
    free(c->out.items);
    free(c->feeds);
    free(c->feeds_seen);
    free(c->due_ns);
    memset(c, 0, sizeof *c);
}

/* A clock as far as an instrument's state tells where it stood. `receive_ns` 0 = not known (of quotes it is not kept): the
 * lag of the feed's trades then stands in for it. */
static inline void tk_cache_restore(struct tk_cache *c, uint16_t feed_id, int64_t clock_ns, int64_t receive_ns) {
    struct tk_feed *feed = tk_cache_feed(c, feed_id);
    int64_t lag_ns = receive_ns ? receive_ns - clock_ns : feed->receive_ns ? feed->receive_ns - feed->clock_ns : 0;
    int known = receive_ns != 0 || feed->receive_ns != 0;
    if (clock_ns > feed->clock_ns) feed->clock_ns = clock_ns;
    else if (feed->receive_ns) return;
    feed->receive_ns = known ? feed->clock_ns + lag_ns : 0;
}

/* Become the writer of the table at `base`, taking over what a predecessor committed. 0, or -1 without memory. */
static inline int tk_cache_open(struct tk_cache *c, void *base, uint64_t pid, uint32_t bars_capacity, int bar_ring,
                                int64_t grace_ns, int exclude_outliers) {
    memset(c, 0, sizeof *c);
    if (tk_latest_writer_open(&c->writer, base, pid) != 0) return -1;
    const struct tk_latest *t = &c->writer.table;
    c->out.items = (struct tk_bar_record *)calloc(bars_capacity, sizeof *c->out.items);
    c->out.capacity = bars_capacity;
    c->feeds = (struct tk_feed *)calloc(TK_CACHE_FEEDS, sizeof *c->feeds);
    c->feeds_seen = (uint16_t *)calloc(TK_CACHE_FEEDS, sizeof *c->feeds_seen);
    c->due_ns = (int64_t *)calloc(t->instruments, sizeof *c->due_ns);
    if (!c->out.items || !c->feeds || !c->feeds_seen || !c->due_ns) {
        tk_cache_close_all(c);
        return -1;
    }
    c->bar_ring = bar_ring;
    c->grace_ns = grace_ns;
    c->exclude_outliers = exclude_outliers;
    c->ids_end = c->writer.instruments_end;
    c->late_trades = tk_load_relaxed(&t->header->late_trades);
    c->lost_trades = tk_load_relaxed(&t->header->lost_trades);
    c->bars = tk_load_relaxed(&t->header->bars);
    for (uint32_t k = 0; k < t->intervals; k++) c->interval_ns[k] = (int64_t)t->header->interval_s[k] * 1000000000;
    for (uint32_t id = 0; id < t->instruments; id++) c->due_ns[id] = INT64_MAX;
    for (uint32_t id = 0; id < c->ids_end; id++) {
        const struct tk_state *state = tk_work(&c->writer, id);
        tk_cache_due(c, id, state);
        if ((state->marks & TK_MARK_TRADE) && !(state->marks & TK_MARK_TRADE_ENDED)) {
            tk_cache_restore(c, state->trade_feed, state->trade_ns, state->trade_receive_ns);
            c->feeds[state->trade_feed].live = (state->marks & TK_MARK_LIVE) != 0;
        }
        if ((state->marks & TK_MARK_QUOTE) && !(state->marks & TK_MARK_QUOTE_ENDED))
            tk_cache_restore(c, state->quote_feed, state->quote_ns, 0);
    }
    return 0;
}

#endif
