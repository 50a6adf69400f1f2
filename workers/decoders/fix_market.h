/* A FIX feed's market: the books of its sessions, what an entry of a message does to them, and the records that this gives.
 *
 * Called by fix.h with entries whose instruments are known. An entry is found by its name, else by price, else by place;
 * each level that changes is told, and once a message each best that changed (`fix_quotes`). It reads no bytes. */
#ifndef TK_DECODERS_FIX_MARKET_H
#define TK_DECODERS_FIX_MARKET_H

#include "workers/decoders/fix_book.h"
#include "workers/decoders/fix_message.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"

enum { FIX_WANTS_QUOTE = 1, FIX_WANTS_TRADE = 2, FIX_WANTS_LEVEL2 = 4 };
enum { FIX_MAX_REQUESTS = 65536, FIX_MAX_SESSIONS = 64 };

struct fix {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols, requests;  /* symbol -> instrument; MDReqID or QuoteSetID -> instrument */
    struct fix_books session[FIX_MAX_SESSIONS], *books;  /* a recording may hold several, each with books of its own */
    uint64_t session_key[FIX_MAX_SESSIONS];
    size_t sessions;
    struct fix_message message;           /* the one in hand */
    uint32_t *touched;                    /* instruments whose books it changed */
    size_t touches, touch_capacity;
    int wants, top;
    int64_t ts_receive;
    uint64_t made;                        /* records of the message in hand */
};

static void fix_touch(struct fix *s, struct fix_book *book, uint32_t id, int64_t ts_event, const char venue[8]) {
    if (venue[0]) memcpy(book->venue, venue, 8);
    if (ts_event > book->ts_event || !book->touched) book->ts_event = ts_event;
    if (book->touched) return;
    if (s->touches == s->touch_capacity) {
        size_t capacity = s->touch_capacity ? s->touch_capacity * 2 : 64;
        uint32_t *grown = realloc(s->touched, capacity * sizeof *grown);
        if (!grown) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
        s->touched = grown;
        s->touch_capacity = capacity;
    }
    s->touched[s->touches++] = id;
    book->touched = 1;
}

/* A change of something that is not there. Where the book lacks things anyway, its records say so. */
static void fix_unknown(struct fix *s, const struct fix_book *book) {
    if (book->known) sink_refuse(&s->sink, TK_UNKNOWN_ORDER);
}

static struct tk_record *fix_record(struct fix *s, unsigned type, uint32_t id, int64_t ts_event, const char venue[8]) {
    struct tk_record *record = sink_next(&s->sink, type, id, ts_event, s->ts_receive);
    record->flags |= s->message.flags;
    record->source_sequence = s->message.seq;
    if (venue[0]) memcpy(record->venue, venue, 8);
    else if (s->message.venue[0]) memcpy(record->venue, s->message.venue, 8);
    s->made++;
    return record;
}

static void fix_say_level(struct fix *s, struct fix_book *book, const struct fix_entry *entry, unsigned side, double price,
                          const struct fix_level *level, unsigned action, uint32_t rank) {
    fix_touch(s, book, entry->id, entry->ts_event, entry->venue);
    if (!(s->wants & FIX_WANTS_LEVEL2)) return;
    struct tk_record *record = fix_record(s, TK_TYPE_LEVEL2, entry->id, entry->ts_event, entry->venue);
    set_level2(record, side ? TK_SIDE_SELL : TK_SIDE_BUY, price, level ? fix_size(level->size) : 0.0, action);
    record->level2.order_count = level ? level->count : 0;
    record->level2.level = rank < TK_LEVEL_UNKNOWN ? (uint16_t)rank : TK_LEVEL_UNKNOWN;
    struct fix_level bid = fix_best(&book->side[0]), ask = fix_best(&book->side[1]);
    record->level2.best_bid = bid.count ? bid.price : NAN;
    record->level2.best_ask = ask.count ? ask.price : NAN;
    if (!book->known) record->flags |= TK_FLAG_INCOMPLETE;
}

/* `size` and `count` more (or, negative, less) at a price; a level without entries is gone. */
static void fix_apply(struct fix *s, struct fix_book *book, const struct fix_entry *entry, unsigned side, double price,
                      fix_units size, int count, int absolute) {
    struct fix_side *levels = &book->side[side];
    uint32_t at = fix_seek(levels, side == 0, price);
    int there = fix_there(levels, at, price);
    if (!there) {
        if (count <= 0) { fix_unknown(s, book); return; }
        if (!fix_insert(levels, at, price)) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
    }
    struct fix_level *level = &levels->level[at];
    int64_t left = absolute ? count : (int64_t)level->count + count;
    level->size = absolute ? size : level->size + size;
    level->count = left > 0 ? (uint32_t)left : 0;
    uint32_t rank = levels->count - 1 - at;
    if (!level->count) {
        fix_erase(levels, at);
        fix_say_level(s, book, entry, side, price, NULL, TK_ACTION_DELETE, rank);
        return;
    }
    struct fix_level said = *level;
    fix_say_level(s, book, entry, side, price, &said, there ? TK_ACTION_MODIFY : TK_ACTION_ADD, rank);
}

static void fix_take(struct fix *s, struct fix_book *book, const struct fix_entry *entry, const struct fix_order *order) {
    fix_apply(s, book, entry, order->side, order->price, -order->size, -1, 0);
}

/* An entry that has a name: what it was goes, what it is now comes. */
static void fix_named(struct fix *s, struct fix_book *book, struct fix_entry *entry) {
    int quote = entry->action == FIX_SET;
    uint64_t seed = quote ? fix_key(entry->old.p, entry->old.size, entry->id) ^ entry->type : entry->id;
    const struct fix_text *before = !quote && entry->old.size ? &entry->old : &entry->name;
    uint64_t key = fix_key(before->p, before->size, seed);
    struct fix_order *order = fix_order_find(s->books, key), was = {0};
    int known = order && order->life == book->life;
    if (known) was = *order;
    unsigned side = entry->type ? entry->type == '1' : was.side;
    if (entry->action == FIX_DELETE || (quote && (entry->has & FIX_HAS_SIZE) && entry->size == 0)) {
        if (known) {
            fix_order_drop(s->books, order);
            fix_take(s, book, entry, &was);
        } else if (!quote) {
            fix_unknown(s, book);
        }
        return;
    }
    if (!known && (!(entry->has & FIX_HAS_PRICE) || !(entry->type == '0' || entry->type == '1'))) {
        if (!quote) fix_unknown(s, book);
        return;
    }
    double price = entry->has & FIX_HAS_PRICE ? entry->price : was.price;
    fix_units size = entry->has & FIX_HAS_SIZE ? fix_units_of(entry->size) : was.size;
    if (known && was.price == price && was.side == side) {
        fix_apply(s, book, entry, side, price, size - was.size, 0, 0);
    } else {
        if (known) fix_take(s, book, entry, &was);
        fix_apply(s, book, entry, side, price, size, 1, 0);
    }
    if (before != &entry->name && entry->name.size) {  /* it goes on under another name */
        if (known) fix_order_drop(s->books, fix_order_find(s->books, key));
        key = fix_key(entry->name.p, entry->name.size, seed);
        order = fix_order_find(s->books, key);
    }
    if (!order && !(order = fix_order_add(s->books, key))) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
    order->book = entry->id;
    order->life = book->life;
    order->price = price;
    order->size = size;
    order->side = (uint8_t)side;
}

/* An entry without a name: found by its price, or by its place. */
static void fix_unnamed(struct fix *s, struct fix_book *book, const struct fix_entry *entry) {
    unsigned side = entry->type == '1';
    struct fix_side *levels = &book->side[side];
    int priced = entry->has & FIX_HAS_PRICE, gone = entry->action == FIX_DELETE;
    double price = entry->price;
    if (!priced && entry->position && entry->position <= levels->count && entry->action != FIX_NEW) {
        price = levels->level[levels->count - entry->position].price;
        priced = 1;
    }
    int there = priced && fix_there(levels, fix_seek(levels, side == 0, price), price);
    if (s->top) {
        while (levels->count && (gone || !there || levels->count > 1)) {
            double other = levels->level[levels->count - 1].price;
            if (!gone && there && other == price) other = levels->level[0].price;
            fix_apply(s, book, entry, side, other, 0, 0, 1);
        }
        if (gone) return;
    } else if (!there && entry->position && entry->position <= levels->count && entry->action != FIX_NEW) {
        fix_apply(s, book, entry, side, levels->level[levels->count - entry->position].price, 0, 0, 1);
        if (gone) return;
    }
    if (!priced || (gone && !there)) { fix_unknown(s, book); return; }
    fix_apply(s, book, entry, side, price, gone ? 0 : fix_units_of(entry->size),
              gone ? 0 : entry->orders ? (int)(entry->orders & 0x7FFFFFFF) : 1, 1);
}

static void fix_empty(struct fix *s, struct fix_book *book, uint32_t id, int64_t ts_event, const char venue[8]) {
    book->side[0].count = book->side[1].count = 0;
    book->life++;
    book->known = 1;
    fix_touch(s, book, id, ts_event, venue);
    if (!(s->wants & FIX_WANTS_LEVEL2)) return;
    struct tk_record *record = fix_record(s, TK_TYPE_LEVEL2, id, ts_event, venue);
    set_level2(record, TK_SIDE_NONE, NAN, 0.0, TK_ACTION_CLEAR);
}

static void fix_trade(struct fix *s, struct fix_book *book, const struct fix_entry *entry) {
    if (!(s->wants & FIX_WANTS_TRADE)) return;
    int bust = entry->action == FIX_DELETE;
    if (!bust && !(entry->has & FIX_HAS_PRICE)) { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    uint64_t id = entry->trade_id;
    if (!id) {
        int64_t number = fix_digits(entry->name.p, entry->name.size);
        id = number > 0 ? (uint64_t)number : 0;
    }
    struct tk_record *record = fix_record(s, TK_TYPE_TRADE, entry->id, entry->ts_event, entry->venue);
    set_trade(record, entry->has & FIX_HAS_PRICE ? entry->price : NAN, entry->size, id, entry->side);
    record->source_sequence = s->message.seq;
    memcpy(record->tick.condition, entry->condition, 8);
    record->tick.volume = book->volume;
    record->tick.vwap = book->vwap;
    if (bust || entry->action == FIX_CHANGE) record->flags |= TK_FLAG_CORRECTED;
}

static void fix_quotes(struct fix *s) {
    for (size_t i = 0; i < s->touches; i++) {
        struct fix_book *book = s->books->book[s->touched[i]];
        book->touched = 0;
        struct fix_level bid = fix_best(&book->side[0]), ask = fix_best(&book->side[1]);
        if (fix_same(&bid, &book->said[0]) && fix_same(&ask, &book->said[1])) continue;
        book->said[0] = bid;
        book->said[1] = ask;
        if (!(s->wants & FIX_WANTS_QUOTE)) continue;
        const char *venue = s->message.venue[0] ? s->message.venue : book->venue;
        struct tk_record *record = fix_record(s, TK_TYPE_QUOTE, s->touched[i], book->ts_event, venue);
        set_quote(record, bid.count ? bid.price : NAN, bid.count ? fix_size(bid.size) : 0.0,
                  ask.count ? ask.price : NAN, ask.count ? fix_size(ask.size) : 0.0);
        record->quote.bid_count = bid.count;
        record->quote.ask_count = ask.count;
        if (!book->known) record->flags |= TK_FLAG_INCOMPLETE;
    }
    s->touches = 0;
}

#endif
