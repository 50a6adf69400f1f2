/* FIX 4.2 and 4.4 market data -> records: W (snapshot), X (incremental refresh), i (mass quote); the rest is counted.
 *
 * Layouts: FIX 4.4 with Errata 20030618, volume 3, "Market Data" and "Quote". One frame is one whole message; who cuts
 * the stream has looked at length and checksum (fix_wire.h).
 *
 *   MDEntryType 0, 1   -> the book (fix_book.h): level2 for each level that changed, one quote if the best has changed
 *   2                  -> trade; deleted (a bust): flagged CORRECTED
 *   J                  -> level2 CLEAR
 *   B, 9               -> session volume and VWAP of the trades that follow
 *   i                  -> each quote entry is a level of both sides, named by QuoteSetID and QuoteEntryID
 *   W                  -> level2 CLEAR, then ADD of each price, flagged SNAPSHOT
 * An entry is found by MDEntryID (or MDEntryRefID), else by price, else by MDEntryPositionNo; with `top`
 * there is one entry a side. Symbol: of the entry, of the one before it, of the message, of what MDReqID or QuoteSetID was
 * said to be of. Time: MDEntryDate and MDEntryTime, else TransactTime, else SendingTime. source_sequence: MsgSeqNum.
 * Books that did not begin with a snapshot, or may lack something since, give records flagged INCOMPLETE.
 *
 * A message is read whole before anything is done about it: one that is wrong anywhere leaves no trace but its count. */
#ifndef TK_DECODERS_FIX_H
#define TK_DECODERS_FIX_H

#include "workers/decoders/decimal.h"
#include "workers/decoders/fix_book.h"
#include "workers/decoders/fix_wire.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"

enum { FIX_NEW, FIX_CHANGE, FIX_DELETE, FIX_SET, FIX_ACTIONS };
enum { FIX_HAS_PRICE = 1, FIX_HAS_SIZE = 2, FIX_HAS_ACTION = 4 };
enum { FIX_WANTS_QUOTE = 1, FIX_WANTS_TRADE = 2, FIX_WANTS_LEVEL2 = 4 };
enum { FIX_MAX_REQUESTS = 65536, FIX_MAX_SESSIONS = 64 };

struct fix_text { const uint8_t *p; uint32_t size; };

struct fix_entry {
    uint8_t action, type, has, side;      /* 279, 269, FIX_HAS_*, aggressor */
    uint16_t position;                    /* 290; 0 = not stated */
    uint32_t orders, id;                  /* 346; instrument */
    double price, size;
    int64_t ts_event, date, time;         /* -1 = not stated */
    struct fix_text symbol, name, old;    /* 55 or 48; 278; 280 */
    uint64_t trade_id;
    char venue[8], condition[8];
};

struct fix {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols, requests;  /* symbol -> instrument; MDReqID or QuoteSetID -> instrument */
    struct fix_books session[FIX_MAX_SESSIONS], *books;  /* a recording may hold several, each with books of its own */
    uint64_t session_key[FIX_MAX_SESSIONS], session_hash;
    size_t sessions;
    int alone;                            /* there is one, whatever the headers say: that of a connection */
    struct fix_entry *entry;              /* of the message in hand */
    size_t entries, capacity;
    uint32_t *touched;                    /* instruments whose books it changed */
    size_t touches, touch_capacity;
    int wants, top;
    uint16_t flags;                       /* of this message's records */
    int64_t ts_receive;
    uint64_t seq, made;
    /* of its header and root */
    struct fix_text symbol, request;
    char venue[8];
    int64_t sending, transact;
};

static inline void fix_code(char code[8], const struct fix_field *field) {
    memset(code, 0, 8);
    memcpy(code, field->value, field->size < 8 ? field->size : 8);
}

/* 0 = it is no number. */
static int fix_number(const struct fix_field *field, double *value) {
    enum tk_decimal found = decimal_parse(field->value, field->size, value);
    if (found == TK_DECIMAL_LONG && field->size < 400) {
        char text[400];
        memcpy(text, field->value, field->size);
        text[field->size] = 0;
        *value = strtod(text, NULL);
        return isfinite(*value);
    }
    return found == TK_DECIMAL_EXACT;
}

static struct fix_entry *fix_push(struct fix *s) {
    if (s->entries == s->capacity) {
        size_t capacity = s->capacity ? s->capacity * 2 : 64;
        struct fix_entry *grown = realloc(s->entry, capacity * sizeof *grown);
        if (!grown) return NULL;
        s->entry = grown;
        s->capacity = capacity;
    }
    struct fix_entry *entry = &s->entry[s->entries++];
    memset(entry, 0, sizeof *entry);
    entry->ts_event = entry->date = entry->time = -1;
    entry->id = TK_REFUSED;
    return entry;
}

/* The two sides of a quote entry, 132/188 134 and 133/190 135, both named by its set and its own id. */
static int fix_push_quote(struct fix *s, const struct fix_text *set, const struct fix_text *symbol, const struct fix_text *id) {
    for (unsigned side = 0; side < 2; side++) {
        struct fix_entry *entry = fix_push(s);
        if (!entry) return 0;
        entry->action = FIX_SET;
        entry->type = (uint8_t)('0' + side);
        entry->symbol = *symbol;
        entry->old = *set;
        entry->name = *id;
    }
    return 1;
}

/* Reads the fields after the header. Returns -1, or the reason for which the message is refused. */
static int fix_read(struct fix *s, const uint8_t *p, const uint8_t *end, uint16_t type) {
    struct fix_field field;
    struct fix_entry *entry = NULL;
    struct fix_text set = {0}, set_symbol = {0};
    int quotes = type == 'i';
    uint32_t first = type == 'W' ? 269 : type == 'X' ? 279 : 299, count_tag = quotes ? 295 : 268, data = 0;
    int64_t announced = quotes ? 0 : -1, data_size = 0;
    s->entries = 0;
    while (p < end) {
        const uint8_t *from = p;
        if (!(p = fix_next(p, end, &field))) return TK_BAD_VALUE;
        if (data) {
            if (field.tag == data) {  /* its value may hold separators */
                if (data_size < 0 || data_size > end - field.value - 1 || field.value[data_size] != FIX_SOH) return TK_BAD_LENGTH;
                p = field.value + data_size + 1;
            }
            data = 0;
            if (p <= from) return TK_BAD_LENGTH;
            continue;
        }
        if (field.tag == 10) break;
        if (field.tag == first) {
            if (quotes) {
                struct fix_text id = {field.value, field.size};
                if (!fix_push_quote(s, &set, &set_symbol, &id)) return TK_NO_MEMORY;
                entry = &s->entry[s->entries - 2];
            } else if (!(entry = fix_push(s))) {
                return TK_NO_MEMORY;
            }
        }
        struct fix_text text = {field.value, field.size};
        double number;
        switch (field.tag) {
        case 34: {
            int64_t seq = fix_digits(field.value, field.size);
            if (seq < 0) return TK_BAD_HEADER;
            s->seq = (uint64_t)seq;
            break;
        }
        case 43: if (field.size == 1 && field.value[0] == 'Y') s->flags |= TK_FLAG_BACKFILLED; break;
        case 49: case 56:
            if (!s->alone) s->session_hash = fix_key(field.value, field.size, s->session_hash + field.tag);
            break;
        case 52: if ((s->sending = fix_timestamp(field.value, field.size)) < 0) return TK_BAD_HEADER; break;
        case 48: case 55:
            if (field.tag == 48 && (entry ? entry->symbol.size : quotes ? set_symbol.size : s->symbol.size)) break;
            if (!entry) *(quotes && set.size ? &set_symbol : &s->symbol) = text;
            else { entry->symbol = text; if (quotes) entry[1].symbol = text; }
            break;
        case 60: {
            int64_t ts = fix_timestamp(field.value, field.size);
            if (ts < 0) return TK_BAD_VALUE;
            if (!entry) s->transact = ts;
            else { entry->ts_event = ts; if (quotes) entry[1].ts_event = ts; }
            break;
        }
        case 207: case 275:
            if (!entry) fix_code(s->venue, &field);
            else if (field.tag == 207 || !entry->venue[0]) fix_code(entry->venue, &field);
            break;
        case 262: s->request = text; break;
        case 302: if (quotes) { set = text; set_symbol = (struct fix_text){0}; entry = NULL; } break;
        case 311: if (quotes && !entry) set_symbol = text; break;
        case 268: case 295: {
            if (field.tag != count_tag) break;
            int64_t count = fix_digits(field.value, field.size);
            if (count < 0 || (!quotes && announced >= 0)) return TK_BAD_LENGTH;
            announced = quotes ? announced + count : count;
            break;
        }
        case 90: case 93: case 95: case 212: case 348: case 350: case 352: case 354: case 356: case 358: case 360: case 362:
        case 364: case 445: case 618: case 621:
            data = fix_data_tag(field.tag);
            data_size = fix_digits(field.value, field.size);
            break;
        case 132: case 133: case 134: case 135: case 188: case 190: {
            if (!quotes || !entry) break;
            if (!fix_number(&field, &number)) return TK_BAD_VALUE;
            struct fix_entry *side = &entry[field.tag == 133 || field.tag == 135 || field.tag == 190];
            if (field.tag == 134 || field.tag == 135) {
                if (number < 0) return TK_BAD_VALUE;
                side->size = number;
                side->has |= FIX_HAS_SIZE;
            } else {
                side->price = number;
                side->has |= FIX_HAS_PRICE;
            }
            break;
        }
        default:
            if (!entry || quotes) break;
            switch (field.tag) {
            case 269: if (field.size != 1) return TK_BAD_VALUE; entry->type = field.value[0]; break;
            case 279:
                if (field.size != 1 || field.value[0] < '0' || field.value[0] > '5') return TK_BAD_VALUE;
                entry->action = field.value[0] > '2' ? FIX_DELETE : (uint8_t)(field.value[0] - '0');
                entry->has |= FIX_HAS_ACTION;
                break;
            case 270:
                if (!fix_number(&field, &entry->price)) return TK_BAD_VALUE;
                entry->has |= FIX_HAS_PRICE;
                break;
            case 271:
                if (!fix_number(&field, &entry->size) || entry->size < 0) return TK_BAD_VALUE;
                entry->has |= FIX_HAS_SIZE;
                break;
            case 272: if ((entry->date = fix_date(field.value, field.size)) < 0) return TK_BAD_VALUE; break;
            case 273: if ((entry->time = fix_time(field.value, field.size)) < 0) return TK_BAD_VALUE; break;
            case 277: fix_code(entry->condition, &field); break;
            case 278: entry->name = text; break;
            case 280: entry->old = text; break;
            case 1003: {
                int64_t id = fix_digits(field.value, field.size);
                if (id > 0) entry->trade_id = (uint64_t)id;
                break;
            }
            case 290: {
                int64_t position = fix_digits(field.value, field.size);
                if (position < 1) return TK_BAD_VALUE;
                entry->position = position > 65535 ? 65535 : (uint16_t)position;
                break;
            }
            case 346: {
                int64_t orders = fix_digits(field.value, field.size);
                if (orders < 0) return TK_BAD_VALUE;
                entry->orders = orders > 0xFFFFFFFE ? 0xFFFFFFFE : (uint32_t)orders;
                break;
            }
            case 54: case 5797:
                if (field.size == 1) entry->side = field.value[0] == '1' ? TK_SIDE_BUY : field.value[0] == '2' ? TK_SIDE_SELL : 0;
                break;
            default: break;
            }
        }
    }
    if ((uint64_t)announced != s->entries / (quotes ? 2 : 1)) return TK_BAD_LENGTH;
    return s->sending < 0 ? TK_BAD_HEADER : -1;
}

enum { FIX_MISS = -2 };

static int fix_look_up(struct fix *s, const struct fix_text *symbol, uint32_t *id) {
    uint64_t key[4];
    if (!symbols_key(key, symbol->p, symbol->size)) return TK_BAD_SYMBOL;
    struct tk_symbol *found = symbols_find(&s->symbols, key);
    if (!found) return FIX_MISS;
    if (found->id == TK_REFUSED) return TK_BAD_SYMBOL;
    *id = found->id;
    return -1;
}

/* The books of this message's session; beyond FIX_MAX_SESSIONS they share the last ones. */
static void fix_select(struct fix *s) {
    size_t at = 0;
    while (at < s->sessions && s->session_key[at] != s->session_hash) at++;
    if (at == FIX_MAX_SESSIONS) at--;
    else if (at == s->sessions) s->session_key[s->sessions++] = s->session_hash;
    s->books = &s->session[at];
}

/* Key of a request in its session; 0 = none can be made. */
static int fix_request_key(const struct fix *s, uint64_t key[4], const struct fix_text *number) {
    if (!symbols_key(key, number->p, number->size)) return 0;
    key[3] ^= s->session_hash;
    return 1;
}

static struct tk_symbol *fix_request(struct fix *s, const struct fix_text *number) {
    uint64_t key[4];
    return fix_request_key(s, key, number) ? symbols_find(&s->requests, key) : NULL;
}

/* The instrument of each entry. -1, FIX_MISS, or a reason. */
static int fix_resolve(struct fix *s, uint16_t type) {
    uint64_t key[4];
    uint32_t by_request = TK_REFUSED, last = TK_REFUSED;
    int found = -1;
    struct fix_text seen = {0};
    struct tk_symbol *request = fix_request(s, &s->request);
    if (request) by_request = request->id;
    if (s->symbol.size) {
        if ((found = fix_look_up(s, &s->symbol, &last)) != -1) return found;
        if (type == 'W') {  /* what comes later for this request may lack the symbol */
            if (request) request->id = last;
            else if (s->requests.count < FIX_MAX_REQUESTS && fix_request_key(s, key, &s->request))
                if (!symbols_add(&s->requests, key, last)) return TK_NO_MEMORY;
        }
    } else if (by_request != TK_REFUSED) {
        last = by_request;
    }
    for (size_t i = 0; i < s->entries; i++) {
        struct fix_entry *entry = &s->entry[i];
        if (type == 'i') {
            struct fix_text *set = &entry->old;
            if (entry->symbol.size) {
                if ((found = fix_look_up(s, &entry->symbol, &last)) != -1) return found;
            } else if ((request = fix_request(s, set))) {
                last = request->id;
            } else if (!s->symbol.size) {  /* nobody says of what: a name of its own */
                uint8_t name[32] = "set-";
                if (set->size > 28) return TK_BAD_SYMBOL;
                if (set->size) memcpy(name + 4, set->p, set->size);
                struct fix_text text = {name, set->size + 4};
                if ((found = fix_look_up(s, &text, &last)) != -1) return found;
            }
        } else if (entry->symbol.size && (entry->symbol.size != seen.size || memcmp(entry->symbol.p, seen.p, seen.size))) {
            if ((found = fix_look_up(s, &entry->symbol, &last)) != -1) return found;
            seen = entry->symbol;
        }
        if (last == TK_REFUSED) return TK_NO_SYMBOL;
        entry->id = last;
        if (!fix_book_of(s->books, last)) return TK_NO_MEMORY;
    }
    if (!s->entries && type == 'W') {
        if (last == TK_REFUSED) return TK_NO_SYMBOL;
        if (!fix_book_of(s->books, last)) return TK_NO_MEMORY;
    }
    return -1;
}

/* ---- emission ----------------------------------------------------------------------------------------------------- */

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
    record->flags |= s->flags;
    record->source_sequence = s->seq;
    if (venue[0]) memcpy(record->venue, venue, 8);
    else if (s->venue[0]) memcpy(record->venue, s->venue, 8);
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
    record->source_sequence = s->seq;
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
        struct tk_record *record = fix_record(s, TK_TYPE_QUOTE, s->touched[i], book->ts_event, s->venue[0] ? s->venue : book->venue);
        set_quote(record, bid.count ? bid.price : NAN, bid.count ? fix_size(bid.size) : 0.0,
                  ask.count ? ask.price : NAN, ask.count ? fix_size(ask.size) : 0.0);
        record->quote.bid_count = bid.count;
        record->quote.ask_count = ask.count;
        if (!book->known) record->flags |= TK_FLAG_INCOMPLETE;
    }
    s->touches = 0;
}

/* When an entry was made: a time without a date is the one nearest to the sending. */
static int64_t fix_when(const struct fix *s, const struct fix_entry *entry) {
    const int64_t day = INT64_C(86400000000000);
    if (entry->time >= 0) {
        if (entry->date >= 0) return entry->date + entry->time;
        int64_t ts = s->sending - s->sending % day + entry->time;
        return ts - s->sending > day / 2 ? ts - day : s->sending - ts > day / 2 ? ts + day : ts;
    }
    return entry->ts_event >= 0 ? entry->ts_event : s->transact >= 0 ? s->transact : s->sending;
}

static void fix_emit(struct fix *s, uint16_t type) {
    if (type == 'W') {
        int whole = !s->entries;
        for (size_t i = 0; i < s->entries; i++) {
            uint8_t kind = s->entry[i].type;
            whole |= kind == '0' || kind == '1' || kind == 'J';
        }
        s->flags |= TK_FLAG_SNAPSHOT;
        if (whole) {
            struct fix_text none = {0};
            uint32_t id = s->entries ? s->entry[0].id : TK_REFUSED;
            if (id == TK_REFUSED && fix_look_up(s, s->symbol.size ? &s->symbol : &none, &id) != -1) {
                struct tk_symbol *request = fix_request(s, &s->request);
                if (!request) return;
                id = request->id;
            }
            fix_empty(s, s->books->book[id], id, s->entries ? fix_when(s, &s->entry[0]) : s->sending, s->venue);
        }
    }
    for (size_t i = 0; i < s->entries; i++) {
        struct fix_entry *entry = &s->entry[i];
        struct fix_book *book = s->books->book[entry->id];
        entry->ts_event = fix_when(s, entry);
        if (type == 'i') {
            book->known = 1;  /* a mass quote needs no snapshot */
            if (entry->has) fix_named(s, book, entry);
            continue;
        }
        switch (entry->type) {
        case '0': case '1':
            if ((entry->name.size || entry->old.size) && !s->top) {
                fix_named(s, book, entry);
            } else {
                fix_unnamed(s, book, entry);
            }
            break;
        case '2': fix_trade(s, book, entry); break;
        case 'J': if (type != 'W') fix_empty(s, book, entry->id, entry->ts_event, entry->venue); break;
        case 'B': if (entry->has & FIX_HAS_SIZE) book->volume = entry->size; break;
        case '9': if (entry->has & FIX_HAS_PRICE) book->vwap = entry->price; break;
        case 0:
            if (type == 'X' && entry->action != FIX_NEW && (entry->name.size || entry->old.size)) fix_named(s, book, entry);
            else sink_refuse(&s->sink, TK_BAD_VALUE);
            break;
        default: break;  /* prices of a session and indices: no record has a place for them */
        }
    }
    fix_quotes(s);
}

static int fix_run(struct fix *s) {
    struct tk_frames *frames = &s->frames;
    struct tk_counts *counts = s->sink.counts;
    for (; frames->index < frames->count; frames->index++, frames->begun = 0) {
        if (sink_full(&s->sink)) return TK_FULL;
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) frame_count(frames, counts);
        if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
        const uint8_t *end = p + frame->size;
        struct fix_field field;
        /* 8, 9 and 35 are the first three, in this order */
        const uint8_t *q = fix_next(p, end, &field);
        if (q && field.tag == 8 && (q = fix_next(q, end, &field)) && field.tag == 9) q = fix_next(q, end, &field);
        else q = NULL;
        if (!q || field.tag != 35 || field.size < 1 || field.size > 2) { sink_refuse(&s->sink, TK_BAD_HEADER); continue; }
        uint16_t type = (uint16_t)(field.value[0] | (field.size == 2 ? field.value[1] << 8 : 0));
        int reason = -1;
        if (type == 'W' || type == 'X' || type == 'i') {
            s->symbol = s->request = (struct fix_text){0};
            memset(s->venue, 0, 8);
            s->sending = s->transact = -1;
            s->seq = s->made = s->session_hash = 0;
            s->flags = 0;
            s->ts_receive = frame->ts_receive;
            reason = fix_read(s, q, end, type);
            if (reason == -1) {
                fix_select(s);
                reason = fix_resolve(s, type);
            }
            if (reason == FIX_MISS) return TK_MISS;
            if (reason == -1) fix_emit(s, type);
            if (s->made) sink_last(&s->sink)->flags |= TK_FLAG_LAST_OF_BATCH;
        } else if (type == '0') {
            counts->heartbeats++;
        }
        counts->messages[type < 256 ? type : '?']++;
        if (reason >= 0) sink_refuse(&s->sink, reason);
    }
    return TK_DONE;
}

/* From now on books may lack something: until the next snapshot of each. */
static void fix_doubt(struct fix *s) {
    for (size_t n = 0; n < s->sessions; n++)
        for (size_t i = 0; i < s->session[n].books; i++)
            if (s->session[n].book[i]) s->session[n].book[i]->known = 0;
}

#endif
