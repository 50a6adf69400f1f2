/* Bars from trades: what one trade, or the passing of time, does to the bars of one interval of one instrument.
 *
 * Pure C11: no clock, no I/O, no shared memory; state in, state and finished bars out. Called by workers/cache.h for each
 * trade and interval. It never sees the ring that the bars go to.
 *
 * A trade at time t belongs to the bar that starts at floor(t / interval) x interval. Per interval an instrument has at most
 * one open bar and remembers the bar it closed last:
 *
 *      nothing --trade--> OPEN --later trade, clock, end of replay, stop--> CLOSED (emitted) --trade of a later bar--> OPEN
 *                                                                             |
 *                                                                             +--late trade of this bar--> emitted again,
 *                                                                                flag CORRECTED
 *
 *   late trade of ...                            what happens
 *   the bar closed last                          it is added there, the bar is emitted again with CORRECTED
 *   a bar between that one and the open bar      nobody traded in it so far: a bar of its own, emitted at once with LATE
 *   an older bar                                 counted (lost_trades), in no bar
 *   the bar closed last by a stop (FORCED)       while no other is open: the bar opens again and is later emitted CORRECTED
 *
 * Within a bar open and close go by the trades' times, and by arrival where times are equal. A bar without trades is not
 * emitted. A bar whose key (start) and trade_count the bar ring holds already is not emitted again: so a process that was
 * killed between publishing and committing does not publish twice.
 */
#ifndef TICKENGINE_BARS_H
#define TICKENGINE_BARS_H

#include <math.h>
#include <string.h>

#include "shm/latest.h"

#define TK_FLAG_LATE 0x0008u
#define TK_FLAG_INCOMPLETE 0x0080u
#define TK_FLAG_CORRECTED 0x0100u
#define TK_FLAG_BACKFILLED 0x0200u
#define TK_FLAG_REPLAYED 0x0400u
#define TK_FLAG_SYNTHETIC 0x0800u
#define TK_FLAG_GAP_BEFORE 0x2000u
#define TK_BAR_INHERITS (TK_FLAG_BACKFILLED | TK_FLAG_REPLAYED | TK_FLAG_SYNTHETIC) /* from the trades of a bar */

struct tk_trade {
    int64_t t_ns;
    double price;    /* finite */
    double size;     /* finite, >= 0 */
    uint32_t flags;  /* TK_BAR_INHERITS of the record, and what is known about a gap in front of it */
    int64_t gap_ns;  /* bars that start at or before this time have lost trades ... */
    uint32_t gap_flags;  /* ... and get these flags; 0 = none have */
};

/* Finished bars, in the order of their end; room for `capacity`. The caller empties it when it is nearly full. */
struct tk_bars_out {
    struct tk_bar_record {
        struct tk_bar bar;
        uint32_t instrument_id;
        uint16_t interval; /* index into the configured intervals */
        uint16_t flags;    /* of the record */
        int64_t receive_ns;
        uint64_t venue;
        uint16_t feed_id;
        uint8_t source;
        uint8_t spare[5];
    } *items;
    uint32_t count, capacity;
};

static inline int64_t tk_floor_to(int64_t t_ns, int64_t interval_ns) {
    int64_t rest = t_ns % interval_ns;
    return t_ns - (rest < 0 ? rest + interval_ns : rest);
}

static inline void tk_bar_begin(struct tk_bar *bar, int64_t *first_ns, int64_t *last_ns, int64_t start_ns,
                                const struct tk_trade *trade) {
    bar->start_ns = start_ns;
    bar->open = bar->high = bar->low = bar->close = trade->price;
    bar->volume = trade->size;
    bar->notional = trade->price * trade->size;
    bar->trade_count = 1;
    bar->flags = trade->flags;
    if (trade->gap_flags && start_ns <= trade->gap_ns) bar->flags |= trade->gap_flags;
    *first_ns = *last_ns = trade->t_ns;
}

static inline void tk_bar_add(struct tk_bar *bar, int64_t *first_ns, int64_t *last_ns, const struct tk_trade *trade) {
    double notional = trade->price * trade->size; /* a statement of its own: no fused multiply-add, same sums everywhere */
    if (trade->t_ns < *first_ns) {
        *first_ns = trade->t_ns;
        bar->open = trade->price;
    }
    if (trade->t_ns >= *last_ns) {
        *last_ns = trade->t_ns;
        bar->close = trade->price;
    }
    if (trade->price > bar->high) bar->high = trade->price;
    if (trade->price < bar->low) bar->low = trade->price;
    bar->volume += trade->size;
    bar->notional += notional;
    bar->trade_count++;
    bar->flags |= trade->flags;
}

/* Put a bar out, unless the bar ring holds it already. The caller has seen to it that there is room. */
static inline void tk_bar_emit(struct tk_bars_out *out, const struct tk_state *state, uint32_t id, uint32_t k,
                               const struct tk_bar *bar, int64_t receive_ns) {
    const struct tk_interval *interval = &state->interval[k];
    if (interval->emitted_count &&
        (bar->start_ns < interval->emitted_start_ns ||
         (bar->start_ns == interval->emitted_start_ns && bar->trade_count <= interval->emitted_count)))
        return;
    struct tk_bar_record *item = &out->items[out->count++];
    memset(item, 0, sizeof *item);
    item->bar = *bar;
    item->instrument_id = id;
    item->interval = (uint16_t)k;
    item->flags = (uint16_t)(bar->flags | (bar->flags & (TK_BAR_FORCED | TK_BAR_PARTIAL) ? TK_FLAG_INCOMPLETE : 0));
    item->receive_ns = receive_ns;
    item->venue = state->venue;
    item->feed_id = state->trade_feed;
    item->source = state->source;
}

/* The open bar is over: emit it and remember it. `extra`: 0 or TK_BAR_FORCED. */
static inline void tk_bar_close(struct tk_bars_out *out, struct tk_state *state, uint32_t id, uint32_t k, uint32_t extra,
                                int64_t receive_ns) {
    struct tk_interval *interval = &state->interval[k];
    interval->open.flags |= extra;
    interval->closed = interval->open;
    interval->closed_first_ns = interval->open_first_ns;
    interval->closed_last_ns = interval->open_last_ns;
    interval->open.trade_count = 0;
    tk_bar_emit(out, state, id, k, &interval->closed, receive_ns);
}

/* One trade into interval `k`, at most two bars out. Returns 0 in time, 1 late but in a bar, 2 late and in none. */
static inline int tk_bars_trade(struct tk_bars_out *out, struct tk_state *state, uint32_t id, uint32_t k, int64_t interval_ns,
                                const struct tk_trade *trade, int64_t receive_ns) {
    struct tk_interval *interval = &state->interval[k];
    struct tk_bar *open = &interval->open, *closed = &interval->closed;
    int64_t start = tk_floor_to(trade->t_ns, interval_ns);

    if (open->trade_count) {
        if (start == open->start_ns) {
            tk_bar_add(open, &interval->open_first_ns, &interval->open_last_ns, trade);
            return 0;
        }
        if (start > open->start_ns) {
            tk_bar_close(out, state, id, k, 0, receive_ns);
            tk_bar_begin(open, &interval->open_first_ns, &interval->open_last_ns, start, trade);
            return 0;
        }
    } else if (!closed->trade_count || start > closed->start_ns) {
        tk_bar_begin(open, &interval->open_first_ns, &interval->open_last_ns, start, trade);
        return 0;
    }
    if (closed->trade_count && start < closed->start_ns) return 2;
    if (closed->trade_count && start == closed->start_ns) {
        closed->flags |= TK_FLAG_CORRECTED;
        if ((closed->flags & TK_BAR_FORCED) && !open->trade_count) {
            *open = *closed;
            interval->open_first_ns = interval->closed_first_ns;
            interval->open_last_ns = interval->closed_last_ns;
            open->flags &= ~TK_BAR_FORCED;
            tk_bar_add(open, &interval->open_first_ns, &interval->open_last_ns, trade);
            return 0;
        }
        tk_bar_add(closed, &interval->closed_first_ns, &interval->closed_last_ns, trade);
    } else {
        tk_bar_begin(closed, &interval->closed_first_ns, &interval->closed_last_ns, start, trade);
        closed->flags |= TK_FLAG_LATE;
    }
    tk_bar_emit(out, state, id, k, closed, receive_ns);
    return 1;
}

#endif
