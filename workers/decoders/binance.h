/* Binance market streams, the hot messages in native code: trade, aggTrade, bookTicker, depthUpdate; raw or in the
 * combined-stream wrapper, spot and futures.
 *
 * Layouts: Binance "WebSocket Streams" (spot) and "Websocket Market Streams" (USD-M futures). The kernel accepts a strict
 * subset of JSON -- no white space, no escapes, ASCII, integers of at most 18 digits, each key once -- with the keys in
 * any order, and only messages that are right in every field. Anything else is TK_SLOW: the shell gives it to msgspec,
 * which decides what is well formed, and emits through the functions below. So both paths make the same records.
 *
 *   trade, aggTrade -> trade; m (the buyer is the maker) means a seller came in
 *   bookTicker      -> quote; source_sequence = u; spot sends no time: ts_event = ts_receive
 *   depthUpdate     -> level2 for each price, size 0 = DELETE; the last one LAST_OF_BATCH; source_sequence = u
 *   REST snapshot   -> level2 CLEAR, then ADD of each price, all flagged SNAPSHOT (made by the shell)
 * Gaps: trade ids and aggregate trade ids count by one for each symbol; a depthUpdate's U follows the u before it (futures: pu
 * repeats it). What was had before is dropped and counted as duplicate. */
#ifndef TK_DECODERS_BINANCE_H
#define TK_DECODERS_BINANCE_H

#include "workers/decoders/decimal.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"

enum binance_kind {
    BINANCE_OTHER, BINANCE_TRADE, BINANCE_AGG_TRADE, BINANCE_BOOK_TICKER, BINANCE_DEPTH, BINANCE_SNAPSHOT, BINANCE_KLINE,
    BINANCE_REPLY, BINANCE_KINDS
};
static const char *const binance_kind_names[BINANCE_KINDS] = {
    "other", "trade", "aggTrade", "bookTicker", "depthUpdate", "depth snapshot", "kline", "reply"};

enum { LAST_TRADE, LAST_AGG_TRADE, LAST_DEPTH };  /* tk_symbol.last */

struct binance_level { double price, size; uint32_t side; };

struct binance {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols;
    struct binance_level *level;    /* of the depthUpdate being read */
    size_t levels, levels_capacity;
    int native;                     /* 0 = everything by the slow path; tests compare the two */
};

enum json_kind { JSON_STRING = 1, JSON_INTEGER, JSON_TRUE, JSON_FALSE, JSON_NULL, JSON_LEVELS };
struct json_field { const uint8_t *p; uint32_t size; uint8_t kind; };
enum { KEY_PU = 58, KEYS = 59 };
struct json_object { uint64_t seen; struct json_field field[KEYS]; };
#define KEY(c) ((c) - 'A')

/* ms or us since the epoch -> ns; a stream opened with timeUnit=MICROSECOND sends the latter. -1 = out of range. */
static inline int64_t binance_time(int64_t value) {
    if (value < 0 || value > 9000000000000000) return -1;
    return value < 100000000000000 ? value * 1000000 : value * 1000;
}

/* ---- emission: the same for both paths ---------------------------------------------------------------------------- */

static void binance_trade(struct binance *s, struct tk_symbol *symbol, enum binance_kind kind, int64_t ts_event,
                          int64_t ts_receive, double price, double size, uint64_t id, int buyer_is_maker) {
    struct tk_sink *sink = &s->sink;
    uint64_t *last = &symbol->last[kind == BINANCE_TRADE ? LAST_TRADE : LAST_AGG_TRADE];
    if (*last && id <= *last) { sink->counts->duplicates++; return; }
    if (*last && id > *last + 1) sink_gap(sink, symbol->id, *last + 1, id, symbol->id, ts_event, ts_receive);
    *last = id;
    set_trade(sink_next(sink, TK_TYPE_TRADE, symbol->id, ts_event, ts_receive), price, size, id,
              buyer_is_maker ? TK_SIDE_SELL : TK_SIDE_BUY);
}

static void binance_quote(struct binance *s, const struct tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, uint64_t update,
                          double bid, double bid_size, double ask, double ask_size) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_QUOTE, symbol->id, ts_event, ts_receive);
    set_quote(record, bid, bid_size, ask, ask_size);
    record->source_sequence = update;
}

/* Whether the update is new; makes the gap record where one is due. `previous` = pu, or -1 where the venue sends none. */
static int binance_depth_begin(struct binance *s, struct tk_symbol *symbol, int64_t ts_event, int64_t ts_receive,
                               uint64_t first, uint64_t final, int64_t previous) {
    uint64_t *last = &symbol->last[LAST_DEPTH];
    if (*last && final <= *last) { s->sink.counts->duplicates++; return 0; }
    uint64_t from = *last + 1, to = previous >= 0 ? (uint64_t)previous + 1 : first;
    if (*last && to > from) sink_gap(&s->sink, symbol->id, from, to, symbol->id, ts_event, ts_receive);
    *last = final;
    return 1;
}

static void binance_level(struct binance *s, const struct tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, uint64_t update,
                          unsigned side, double price, double size, int snapshot) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_LEVEL2, symbol->id, ts_event, ts_receive);
    set_level2(record, side, price, size, size == 0 ? TK_ACTION_DELETE : snapshot ? TK_ACTION_ADD : TK_ACTION_MODIFY);
    record->source_sequence = update;
    if (snapshot) record->flags |= TK_FLAG_SNAPSHOT;
}

static void binance_depth_end(struct binance *s) { sink_last(&s->sink)->flags |= TK_FLAG_LAST_OF_BATCH; }

/* ---- reading ------------------------------------------------------------------------------------------------------ */

/* From after the opening quote to the closing one; NULL = something that only the slow path may judge. */
static inline const uint8_t *json_string(const uint8_t *p, const uint8_t *end) {
    while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\') p++;
    return p < end && *p == '"' ? p : NULL;
}

static int binance_push(struct binance *s, unsigned side, double price, double size) {
    if (s->levels == s->levels_capacity) {
        size_t capacity = s->levels_capacity ? s->levels_capacity * 2 : 1024;
        struct binance_level *grown = realloc(s->level, capacity * sizeof *grown);
        if (!grown) return 0;
        s->level = grown;
        s->levels_capacity = capacity;
    }
    s->level[s->levels++] = (struct binance_level){price, size, side};
    return 1;
}

static inline const uint8_t *json_decimal(const uint8_t *p, const uint8_t *end, double *value) {
    if (p == end || *p != '"') return NULL;
    const uint8_t *close = json_string(p + 1, end);
    if (!close || decimal_parse(p + 1, (size_t)(close - p - 1), value) != TK_DECIMAL_EXACT || *value < 0) return NULL;
    return close + 1;
}

/* [["price","size"],...] from its opening bracket; returns what follows it. */
static const uint8_t *json_levels(struct binance *s, const uint8_t *p, const uint8_t *end, unsigned side) {
    if (++p < end && *p == ']') return p + 1;
    for (;;) {
        double price, size;
        if (end - p < 8 || *p != '[') return NULL;
        if (!(p = json_decimal(p + 1, end, &price)) || p == end || *p != ',') return NULL;
        if (!(p = json_decimal(p + 1, end, &size)) || p == end || *p != ']') return NULL;
        if (!binance_push(s, side, price, size)) return NULL;
        if (++p == end) return NULL;
        if (*p == ']') return p + 1;
        if (*p++ != ',') return NULL;
    }
}

/* A flat object from its opening brace; returns what follows it, NULL = for the slow path. */
static inline const uint8_t *json_object(struct binance *s, const uint8_t *p, const uint8_t *end, struct json_object *object) {
    object->seen = 0;
    s->levels = 0;
    if (p == end || *p++ != '{') return NULL;
    for (;;) {
        if (p == end || *p++ != '"') return NULL;
        const uint8_t *key = p;
        if (!(p = json_string(p, end))) return NULL;
        size_t key_size = (size_t)(p - key);
        if (key_size == 6 && !memcmp(key, "stream", 6)) return NULL;  /* a wrapper of another order */
        unsigned slot = KEYS;
        if (key_size == 1 && ((key[0] | 0x20) >= 'a' && (key[0] | 0x20) <= 'z')) slot = (unsigned)KEY(key[0]);
        else if (key_size == 2 && key[0] == 'p' && key[1] == 'u') slot = KEY_PU;
        if (end - p < 4 || p[1] != ':') return NULL;
        p += 2;
        struct json_field field = {p, 0, 0};
        switch (*p) {
        case '"':
            field.p = ++p;
            if (!(p = json_string(p, end))) return NULL;
            field.size = (uint32_t)(p++ - field.p);
            field.kind = JSON_STRING;
            break;
        case '[':
            if (slot != KEY('a') && (slot != KEY('b') || object->seen >> KEY('a') & 1)) return NULL;  /* bids first */
            if (!(p = json_levels(s, p, end, slot == KEY('b') ? TK_SIDE_BUY : TK_SIDE_SELL))) return NULL;
            field.kind = JSON_LEVELS;
            break;
        case 't':
            if (end - p < 5 || memcmp(p, "true", 4)) return NULL;
            p += 4;
            field.kind = JSON_TRUE;
            break;
        case 'f':
            if (end - p < 6 || memcmp(p, "false", 5)) return NULL;
            p += 5;
            field.kind = JSON_FALSE;
            break;
        default:
            while (p < end && tk_is_digit(*p)) p++;
            field.size = (uint32_t)(p - field.p);
            if (!field.size || field.size > 18 || (field.size > 1 && *field.p == '0')) return NULL;
            field.kind = JSON_INTEGER;
        }
        if (slot < KEYS) {
            if (object->seen >> slot & 1) return NULL;
            object->seen |= (uint64_t)1 << slot;
            object->field[slot] = field;
        }
        if (p == end) return NULL;
        if (*p == '}') return p + 1;
        if (*p++ != ',') return NULL;
    }
}

static inline int json_is(const struct json_object *o, unsigned slot, uint8_t kind) {
    return (o->seen >> slot & 1) && o->field[slot].kind == kind;
}

static inline int64_t json_integer(const struct json_object *o, unsigned slot) {  /* -1 = absent or not an integer */
    if (!json_is(o, slot, JSON_INTEGER)) return -1;
    int64_t value = 0;
    for (uint32_t i = 0; i < o->field[slot].size; i++) value = value * 10 + (o->field[slot].p[i] - '0');
    return value;
}

static inline int json_number(const struct json_object *o, unsigned slot, double *value) {
    return json_is(o, slot, JSON_STRING)
        && decimal_parse(o->field[slot].p, o->field[slot].size, value) == TK_DECIMAL_EXACT && *value >= 0;
}

static inline int json_text(const struct json_object *o, unsigned slot, const char *text, size_t size) {
    return o->field[slot].size == size && !memcmp(o->field[slot].p, text, size);
}

static inline enum binance_kind binance_kind_of(const struct json_object *o) {
    if (json_is(o, KEY('e'), JSON_STRING)) {
        if (json_text(o, KEY('e'), "trade", 5)) return BINANCE_TRADE;
        if (json_text(o, KEY('e'), "aggTrade", 8)) return BINANCE_AGG_TRADE;
        if (json_text(o, KEY('e'), "bookTicker", 10)) return BINANCE_BOOK_TICKER;
        if (json_text(o, KEY('e'), "depthUpdate", 11)) return BINANCE_DEPTH;
        return BINANCE_OTHER;
    }
    return !(o->seen >> KEY('e') & 1) && json_is(o, KEY('B'), JSON_STRING) ? BINANCE_BOOK_TICKER : BINANCE_OTHER;
}

/* One text frame. */
static inline enum tk_stop binance_message(struct binance *s, const uint8_t *p, size_t size, int64_t ts_receive) {
    const uint8_t *end = p + size;
    struct tk_sink *sink = &s->sink;
    struct json_object o;
    int wrapped = size > 11 && !memcmp(p, "{\"stream\":\"", 11);
    if (wrapped) {
        p = json_string(p + 11, end);
        if (!p || end - p < 10 || memcmp(p, "\",\"data\":", 9)) return TK_SLOW;
        p += 9;
    }
    p = json_object(s, p, end, &o);
    if (!p || (wrapped && (p == end || *p++ != '}')) || p != end) return TK_SLOW;
    enum binance_kind kind = binance_kind_of(&o);
    uint64_t key[4];
    if (kind == BINANCE_OTHER || !json_is(&o, KEY('s'), JSON_STRING)) return TK_SLOW;
    if (!symbols_key(key, o.field[KEY('s')].p, o.field[KEY('s')].size)) return TK_SLOW;
    int64_t event_time = json_integer(&o, KEY('E')), trade_time = json_integer(&o, KEY('T'));
    if (((o.seen >> KEY('E') & 1) && binance_time(event_time) < 0) || ((o.seen >> KEY('T') & 1) && binance_time(trade_time) < 0))
        return TK_SLOW;
    double a, b, c, d;
    int64_t id = -1, first = -1, previous = -1;
    switch (kind) {
    case BINANCE_TRADE: case BINANCE_AGG_TRADE:
        id = json_integer(&o, kind == BINANCE_TRADE ? KEY('t') : KEY('a'));
        if (id < 0 || trade_time < 0 || !json_number(&o, KEY('p'), &a) || !json_number(&o, KEY('q'), &b)) return TK_SLOW;
        if (!json_is(&o, KEY('m'), JSON_TRUE) && !json_is(&o, KEY('m'), JSON_FALSE)) return TK_SLOW;
        break;
    case BINANCE_BOOK_TICKER:
        id = json_integer(&o, KEY('u'));
        if (id < 0 || !json_number(&o, KEY('b'), &a) || !json_number(&o, KEY('B'), &b) || !json_number(&o, KEY('a'), &c)
            || !json_number(&o, KEY('A'), &d))
            return TK_SLOW;
        break;
    default:
        id = json_integer(&o, KEY('u'));
        first = json_integer(&o, KEY('U'));
        previous = json_integer(&o, KEY_PU);
        if (id < 0 || first < 0 || event_time < 0 || !json_is(&o, KEY('b'), JSON_LEVELS) || !json_is(&o, KEY('a'), JSON_LEVELS))
            return TK_SLOW;
        if ((o.seen >> KEY_PU & 1) && previous < 0) return TK_SLOW;
    }
    struct tk_symbol *symbol = symbols_find(&s->symbols, key);
    if (!symbol) return TK_MISS;
    sink->counts->messages[kind]++;
    if (symbol->id == TK_REFUSED) return sink_refuse(sink, TK_BAD_SYMBOL), TK_DONE;
    int64_t ts_event = trade_time >= 0 ? binance_time(trade_time) : event_time >= 0 ? binance_time(event_time) : ts_receive;
    if (kind == BINANCE_BOOK_TICKER) {
        binance_quote(s, symbol, ts_event, ts_receive, (uint64_t)id, a, b, c, d);
    } else if (kind == BINANCE_DEPTH) {
        if (!binance_depth_begin(s, symbol, ts_event, ts_receive, (uint64_t)first, (uint64_t)id, previous)) return TK_DONE;
        for (size_t i = 0; i < s->levels; i++)
            binance_level(s, symbol, ts_event, ts_receive, (uint64_t)id, s->level[i].side, s->level[i].price, s->level[i].size, 0);
        if (s->levels) binance_depth_end(s);
    } else {
        binance_trade(s, symbol, kind, ts_event, ts_receive, a, b, (uint64_t)id, json_is(&o, KEY('m'), JSON_TRUE));
    }
    return TK_DONE;
}

static enum tk_stop binance_run(struct binance *s) {
    struct tk_frames *frames = &s->frames;
    for (; frames->index < frames->count; frames->index++, frames->begun = 0) {
        if (sink_full(&s->sink)) return TK_FULL;
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) frame_count(frames, s->sink.counts);
        if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
        enum tk_stop stop = s->native ? binance_message(s, p, frame->size, frame->ts_receive) : TK_SLOW;
        if (stop != TK_DONE) return stop;
    }
    return TK_DONE;
}

#endif
