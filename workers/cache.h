/* What the cache does with a batch of records: latest values, history, bars. One call a batch, no allocation, no system call.
 *
 * Plain C11. Called by workers/_cache.pyx with the GIL released, in the one process that writes the table. Results: working
 * states and history in shm/latest_writer.h (not yet visible), finished bars in `out` (not yet published). The caller then
 * publishes the bars, feeds them back as records of the bar ring, commits, and stores how far each ring is complete, in this
 * order; workers/cache.py says why.
 *
 * What time it is for a bar is said in workers/feed_clock.h.
 */
#ifndef TICKENGINE_CACHE_H
#define TICKENGINE_CACHE_H

#include "shm/latest_writer.h"
#include "workers/bars.h"
#include "workers/feed_clock.h"

#define TK_DAY_NS INT64_C(86400000000000)

struct tk_cache {
    struct tk_latest_writer writer;
    struct tk_bars_out out;
    struct tk_clocks clocks;
    int64_t *due_ns; /* per instrument: end of the open bar that ends first; INT64_MAX = none is open */
    uint32_t ids_end;
    int64_t interval_ns[TK_LATEST_INTERVALS_MAX];
    int64_t grace_ns;
    int bar_ring, exclude_outliers;
    uint64_t late_trades, lost_trades, bad_prices, bars;
};

enum {
    TK_CACHE_UNCOMMITTED_MAX = 256, /* records of one lane in a commit: recycling must not run far ahead of what is visible */
};
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
    if (r->flags & TK_FLAG_CORRECTED) return 0; /* the venue takes a trade back: kept in the history, it is no new one */
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
        const struct tk_feed *clock = &c->clocks.feeds[state->trade_feed];
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
    struct tk_feed *feed = &c->clocks.feeds[r->feed_id];
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
        if (r->record_type == TK_TYPE_STATUS) { /* about a feed or an engine; of an instrument: kept among its last records */
            if (r->body.status.code == TK_CODE_END_OF_REPLAY && ring != c->bar_ring) {
                if (!tk_cache_end(c, ring, r)) return i;
                return i + 1; /* publish and commit before a next run may take the clock back */
            }
            if (r->body.status.code != TK_CODE_TRADING_STATUS || id == TK_CODE_NO_INSTRUMENT) continue;
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
            int64_t t_ns = tk_record_time(&c->clocks, r);
            lines |= tk_cache_trade(c, id, state, r, t_ns, tk_clock_move(&c->clocks, ring, r, t_ns));
        } else if (r->record_type == TK_TYPE_QUOTE) {
            int64_t t_ns = tk_record_time(&c->clocks, r);
            tk_clock_move(&c->clocks, ring, r, t_ns);
            tk_cache_quote(state, r, t_ns);
        } else if (r->record_type == TK_TYPE_LEVEL2) {
            tk_clock_move(&c->clocks, ring, r, tk_record_time(&c->clocks, r));
        }
        tk_touch(w, id, lines);
        tk_append(w, id, lane, state, r);
        w->records_applied++;
    }
    return to;
}

/* Records of `ring` were overrun: the open bars of its instruments have lost trades. */
static inline void tk_cache_gap(struct tk_cache *c, int ring) {
    c->clocks.ring_gaps[ring]++;
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
    int64_t newest = tk_clocks_newest(&c->clocks, wall_ns);
    for (uint32_t id = 0; id < c->ids_end; id++) {
        if (c->due_ns[id] == INT64_MAX || (!all && (newest == INT64_MIN || c->due_ns[id] > newest - c->grace_ns))) continue;
        struct tk_state *state = tk_work(&c->writer, id);
        const struct tk_feed *feed = &c->clocks.feeds[state->trade_feed];
        int64_t now = tk_clock_now(feed, wall_ns), receive = now > feed->clock_ns ? wall_ns : feed->receive_ns;
        if (c->out.count + c->writer.table.intervals > c->out.capacity) return 0;
        if (now == INT64_MIN && !all) continue;
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
        r.priority = 2; /* TK_PRIORITY_LOW */
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

/* What was traded of each instrument on its newest day, by id, into arrays of `limit`; returns how many there are. */
static inline uint32_t tk_cache_activity(const struct tk_cache *c, uint32_t limit, int64_t *day, uint64_t *trades,
                                         double *notional, double *price) {
    uint32_t n = c->ids_end < limit ? c->ids_end : limit;
    for (uint32_t id = 0; id < n; id++) {
        const struct tk_state *state = tk_work(&c->writer, id);
        day[id] = state->day;
        trades[id] = state->day_trades;
        notional[id] = state->day_trades ? state->day_notional : 0;
        price[id] = state->marks & TK_MARK_TRADE ? state->price : 0;
    }
    return n;
}

static inline void tk_cache_close_all(struct tk_cache *c) {
    tk_latest_writer_close(&c->writer);
    free(c->out.items);
    tk_clocks_close(&c->clocks);
    free(c->due_ns);
    memset(c, 0, sizeof *c);
}

/* Become the writer of the table at `base`, taking over what a predecessor committed. 0, or -1 without memory. */
static inline int tk_cache_open(struct tk_cache *c, void *base, uint64_t pid, uint32_t bars_capacity, int bar_ring,
                                int64_t grace_ns, int exclude_outliers) {
    memset(c, 0, sizeof *c);
    if (tk_latest_writer_open(&c->writer, base, pid) != 0) return -1;
    const struct tk_latest *t = &c->writer.table;
    c->out.items = (struct tk_bar_record *)calloc(bars_capacity, sizeof *c->out.items);
    c->out.capacity = bars_capacity;
    c->due_ns = (int64_t *)calloc(t->instruments, sizeof *c->due_ns);
    if (tk_clocks_open(&c->clocks) != 0 || !c->out.items || !c->due_ns) {
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
            tk_clock_restore(&c->clocks, state->trade_feed, state->trade_ns, state->trade_receive_ns);
            c->clocks.feeds[state->trade_feed].live = (state->marks & TK_MARK_LIVE) != 0;
        }
        if ((state->marks & TK_MARK_QUOTE) && !(state->marks & TK_MARK_QUOTE_ENDED))
            tk_clock_restore(&c->clocks, state->quote_feed, state->quote_ns, 0);
    }
    return 0;
}

#endif
