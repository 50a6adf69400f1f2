/* LOBSTER: limit order book reconstructions, a line for each event with the book after it.
 *
 * Layout: LOBSTER "Data Structure". The capture joins the lines of the two files (`capture_file.PairedLines`):
 *
 *   time,type,order id,size,price,direction,ask 1,ask size 1,bid 1,bid size 1,ask 2, ...
 *
 * Time in seconds after midnight in New York, prices in 1/10000, direction 1 = an order to buy. A level that is not there
 * has price +-9999999999 or size 0. As many levels as the first line has.
 *
 *   4 executed, 5 hidden order executed -> trade; the aggressor is on the other side. 6 cross -> trade without side
 *   1 new, 2 reduced, 3 deleted, 4      -> level2 of what differs from the line before; the last one LAST_OF_BATCH
 *   best price or size changed          -> quote, before the levels
 *   7 trading halt, its price says what -> status: -1 halted, 0 quote only, 1 trading
 * The first line is a snapshot: CLEAR, then ADD. source_sequence is the order id. */
#ifndef TK_DECODERS_LOBSTER_H
#define TK_DECODERS_LOBSTER_H

#include "workers/decoders/tick_lines.h"
#include "workers/decoders/trading_status.h"

enum { LOBSTER_MAX_LEVELS = 512 };
#define LOBSTER_ABSENT INT64_C(9999999999)

struct lobster_level { int64_t price, size; };
struct lobster_book { struct lobster_level side[3][LOBSTER_MAX_LEVELS]; }; /* by TK_SIDE_BUY, TK_SIDE_SELL; best first */

struct lobster {
    struct tk_frames frames;
    struct tk_sink sink;
    uint32_t id;
    int64_t midnight_ns;
    unsigned levels;             /* 0 = no line yet */
    struct lobster_book *was;    /* after the line before, and of this line; two, made by the shell */
    struct lobster_book *now;
};

struct lobster_event { int64_t ts_event, order, size, price; unsigned type, side; uint16_t flags; };

static inline double lobster_price(int64_t price) { return (double)price / 10000; }

static inline int lobster_there(const struct lobster_level *level) {
    return level->size > 0 && level->price > -LOBSTER_ABSENT && level->price < LOBSTER_ABSENT;
}

static struct tk_record *lobster_next(struct lobster *s, unsigned type, const struct lobster_event *event) {
    struct tk_record *record = sink_next(&s->sink, type, s->id, event->ts_event, 0);
    record->source_sequence = (uint64_t)event->order;
    record->flags |= event->flags;
    return record;
}

static void lobster_trade(struct lobster *s, const struct lobster_event *event) {
    struct tk_record *record = lobster_next(s, TK_TYPE_TRADE, event);
    unsigned side = event->type == '6' ? TK_SIDE_NONE : event->side == TK_SIDE_BUY ? TK_SIDE_SELL : TK_SIDE_BUY;
    set_trade(record, lobster_price(event->price), (double)event->size, 0, side);
    record->source_sequence = (uint64_t)event->order;
    if (event->type == '5') memcpy(record->tick.condition, "hidden", 6);
    if (event->type == '6') memcpy(record->tick.condition, "cross", 5);
}

static void lobster_status(struct lobster *s, const struct lobster_event *event) {
    enum tk_state state = event->price == -1 ? TK_HALTED : event->price == 0 ? TK_QUOTE_ONLY
                          : event->price == 1 ? TK_TRADING : TK_UNKNOWN;
    struct tk_said text;
    sink_trading_status(&s->sink, &text, state, "LOBSTER 7", s->id, event->ts_event, 0);
    if (state == TK_HALTED) said(&text, ", price -1", 10);
    else if (state != TK_UNKNOWN) said_number(&text, ", price ", (uint32_t)event->price);
}

static double lobster_best(const struct lobster *s, unsigned side) {
    return lobster_there(&s->now->side[side][0]) ? lobster_price(s->now->side[side][0].price) : NAN;
}

static void lobster_quote(struct lobster *s, const struct lobster_event *event) {
    const struct lobster_level *bid = &s->now->side[TK_SIDE_BUY][0], *ask = &s->now->side[TK_SIDE_SELL][0];
    set_quote(lobster_next(s, TK_TYPE_QUOTE, event), lobster_best(s, TK_SIDE_BUY),
              lobster_there(bid) ? (double)bid->size : 0, lobster_best(s, TK_SIDE_SELL),
              lobster_there(ask) ? (double)ask->size : 0);
}

static void lobster_level2(struct lobster *s, const struct lobster_event *event, unsigned side, unsigned rank, int64_t price,
                           int64_t size, unsigned action) {
    struct tk_record *record = lobster_next(s, TK_TYPE_LEVEL2, event);
    set_level2(record, side, lobster_price(price), (double)size, action);
    record->level2.level = (uint16_t)rank;
    record->level2.depth = s->levels < 256 ? (uint8_t)s->levels : 0;
    record->level2.best_bid = lobster_best(s, TK_SIDE_BUY);
    record->level2.best_ask = lobster_best(s, TK_SIDE_SELL);
}

/* The rank of a price among sorted levels, `from` or later; -1 = it is not there. Both states are sorted alike, so a walk
 * over one asks the other in rising order. */
static inline int lobster_find(const struct lobster *s, const struct lobster_level *levels, unsigned side, int64_t price,
                               unsigned *from) {
    for (; *from < s->levels && lobster_there(&levels[*from]); (*from)++) {
        if (levels[*from].price == price) return (int)*from;
        if (side == TK_SIDE_BUY ? levels[*from].price < price : levels[*from].price > price) return -1;
    }
    return -1;
}

static void lobster_side(struct lobster *s, const struct lobster_event *event, unsigned side) {
    const struct lobster_level *was = s->was->side[side], *now = s->now->side[side];
    unsigned from = 0;
    for (unsigned i = 0; i < s->levels && lobster_there(&was[i]); i++)
        if (lobster_find(s, now, side, was[i].price, &from) < 0)
            lobster_level2(s, event, side, i, was[i].price, 0, TK_ACTION_DELETE);
    from = 0;
    for (unsigned i = 0; i < s->levels && lobster_there(&now[i]); i++) {
        int before = lobster_find(s, was, side, now[i].price, &from);
        if (before < 0) lobster_level2(s, event, side, i, now[i].price, now[i].size, TK_ACTION_ADD);
        else if (was[before].size != now[i].size)
            lobster_level2(s, event, side, i, now[i].price, now[i].size, TK_ACTION_MODIFY);
    }
}

/* How many levels the rest of a line has; they go to `now`. 0 = none, too many, or something that is no number. */
static unsigned lobster_levels(struct lobster *s, struct tk_span line) {
    unsigned levels = 0;
    while (line.p) {
        for (unsigned side = TK_SIDE_SELL; side >= TK_SIDE_BUY; side--) {
            struct lobster_level *level = &s->now->side[side][levels];
            if (levels == LOBSTER_MAX_LEVELS || !line.p || !whole_number(next_column(&line), &level->price) || !line.p ||
                !whole_number(next_column(&line), &level->size))
                return 0;
        }
        levels++;
    }
    return levels;
}

/* One line; a wrong one is counted and changes nothing. */
static void lobster_line(struct lobster *s, struct tk_span line) {
    struct lobster_event event = {0};
    int64_t type = 0, direction = 0, seconds = 0, fraction = 0;
    struct tk_span time = next_column(&line), whole = time;
    const uint8_t *point = memchr(time.p, '.', time.size);
    if (point) whole.size = (size_t)(point - time.p);
    int right = whole_number(whole, &seconds) && seconds >= 0 && seconds <= 86400;
    if (point) right = right && fraction_ns((struct tk_span){point + 1, time.size - whole.size - 1}, &fraction);
    int64_t *const fields[] = {&type, &event.order, &event.size, &event.price, &direction};
    for (unsigned i = 0; i < 5; i++) right = right && line.p && whole_number(next_column(&line), fields[i]);
    if (!right || type < 1 || type > 7 || event.size < 0 || (direction != 1 && direction != -1)) {
        sink_refuse(&s->sink, TK_BAD_VALUE);
        return;
    }
    unsigned levels = line.p ? lobster_levels(s, line) : 0;
    if (!levels || (s->levels && levels != s->levels)) {
        sink_refuse(&s->sink, TK_BAD_LENGTH);
        return;
    }
    event.type = (unsigned)type + '0';
    event.side = direction == 1 ? TK_SIDE_BUY : TK_SIDE_SELL;
    event.ts_event = s->midnight_ns + seconds * 1000000000 + fraction;
    s->sink.counts->messages[event.type]++;
    if (type >= 4 && type <= 6) lobster_trade(s, &event);
    if (type == 7) lobster_status(s, &event);
    uint64_t before = s->sink.counts->records[TK_TYPE_LEVEL2];
    if (!s->levels) {
        s->levels = levels;
        memset(s->was, 0, sizeof *s->was);
        event.flags = TK_FLAG_SNAPSHOT;
        lobster_level2(s, &event, TK_SIDE_NONE, TK_LEVEL_UNKNOWN, 0, 0, TK_ACTION_CLEAR);
        sink_last(&s->sink)->level2.price = NAN;
    }
    for (unsigned side = TK_SIDE_BUY; side <= TK_SIDE_SELL; side++)
        if (memcmp(&s->was->side[side][0], &s->now->side[side][0], sizeof s->now->side[side][0])) {
            lobster_quote(s, &event);
            break;
        }
    lobster_side(s, &event, TK_SIDE_BUY);
    lobster_side(s, &event, TK_SIDE_SELL);
    if (s->sink.counts->records[TK_TYPE_LEVEL2] != before) sink_last(&s->sink)->flags |= TK_FLAG_LAST_OF_BATCH;
    struct lobster_book *spare = s->was;
    s->was = s->now;
    s->now = spare;
}

static enum tk_stop lobster_run(struct lobster *s) {
    struct tk_frames *frames = &s->frames;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        size_t end = frames->frame[frames->index].size;
        if (!frames->begun) frame_count(frames, s->sink.counts);
        if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
        while (frames->at < end) {
            if (sink_full(&s->sink)) return TK_FULL;
            struct tk_span line = next_line(p, end, &frames->at);
            if (line.size) lobster_line(s, line);
        }
    }
    return TK_DONE;
}

#endif
