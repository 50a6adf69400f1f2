/* One FIX market data message, read whole: its header and root, and an entry for each member of its repeating group.
 *
 * Called by fix.h once a message of type W, X, i or f. It checks what can be checked of a message by itself -- numbers, times,
 * the announced count, data fields that may hold separators -- and knows no instrument and no book. Texts point into the
 * message's bytes. A quote entry of a mass quote becomes two, one a side. */
#ifndef TK_DECODERS_FIX_MESSAGE_H
#define TK_DECODERS_FIX_MESSAGE_H

#include "workers/decoders/decimal.h"
#include "workers/decoders/fix_wire.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"

enum { FIX_NEW, FIX_CHANGE, FIX_DELETE, FIX_SET, FIX_ACTIONS };
enum { FIX_HAS_PRICE = 1, FIX_HAS_SIZE = 2, FIX_HAS_ACTION = 4 };

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

struct fix_message {
    struct fix_entry *entry;
    size_t entries, capacity;
    int alone;                            /* there is one session, whatever the headers say: that of a connection */
    uint64_t session_hash;
    uint16_t flags;                       /* of this message's records */
    uint64_t seq;
    struct fix_text symbol, request;      /* of the root */
    struct fix_text trading, reason;      /* 326; 327 */
    char venue[8];
    int64_t sending, transact;            /* -1 = not stated */
};

/* From the message before to this one. */
static void fix_message_begin(struct fix_message *m) {
    m->symbol = m->request = m->trading = m->reason = (struct fix_text){0};
    memset(m->venue, 0, 8);
    m->sending = m->transact = -1;
    m->seq = m->session_hash = 0;
    m->flags = 0;
}

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

static struct fix_entry *fix_push(struct fix_message *m) {
    if (m->entries == m->capacity) {
        size_t capacity = m->capacity ? m->capacity * 2 : 64;
        struct fix_entry *grown = realloc(m->entry, capacity * sizeof *grown);
        if (!grown) return NULL;
        m->entry = grown;
        m->capacity = capacity;
    }
    struct fix_entry *entry = &m->entry[m->entries++];
    memset(entry, 0, sizeof *entry);
    entry->ts_event = entry->date = entry->time = -1;
    entry->id = TK_REFUSED;
    return entry;
}

/* The two sides of a quote entry, 132/188 134 and 133/190 135, both named by its set and its own id. */
static int fix_push_quote(struct fix_message *m, const struct fix_text *set, const struct fix_text *symbol,
                          const struct fix_text *id) {
    for (unsigned side = 0; side < 2; side++) {
        struct fix_entry *entry = fix_push(m);
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
static int fix_read(struct fix_message *m, const uint8_t *p, const uint8_t *end, uint16_t type) {
    struct fix_field field;
    struct fix_entry *entry = NULL;
    struct fix_text set = {0}, set_symbol = {0};
    int quotes = type == 'i';
    int status = type == 'f';
    uint32_t first = type == 'W' ? 269 : type == 'X' ? 279 : status ? 0 : 299, count_tag = quotes ? 295 : 268, data = 0;
    int64_t announced = quotes ? 0 : -1, data_size = 0;
    m->entries = 0;
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
                if (!fix_push_quote(m, &set, &set_symbol, &id)) return TK_NO_MEMORY;
                entry = &m->entry[m->entries - 2];
            } else if (!(entry = fix_push(m))) {
                return TK_NO_MEMORY;
            }
        }
        struct fix_text text = {field.value, field.size};
        double number;
        switch (field.tag) {
        case 34: {
            int64_t seq = fix_digits(field.value, field.size);
            if (seq < 0) return TK_BAD_HEADER;
            m->seq = (uint64_t)seq;
            break;
        }
        case 43: if (field.size == 1 && field.value[0] == 'Y') m->flags |= TK_FLAG_BACKFILLED; break;
        case 49: case 56:
            if (!m->alone) m->session_hash = fix_key(field.value, field.size, m->session_hash + field.tag);
            break;
        case 52: if ((m->sending = fix_timestamp(field.value, field.size)) < 0) return TK_BAD_HEADER; break;
        case 48: case 55:
            if (field.tag == 48 && (entry ? entry->symbol.size : quotes ? set_symbol.size : m->symbol.size)) break;
            if (!entry) *(quotes && set.size ? &set_symbol : &m->symbol) = text;
            else { entry->symbol = text; if (quotes) entry[1].symbol = text; }
            break;
        case 60: {
            int64_t ts = fix_timestamp(field.value, field.size);
            if (ts < 0) return TK_BAD_VALUE;
            if (!entry) m->transact = ts;
            else { entry->ts_event = ts; if (quotes) entry[1].ts_event = ts; }
            break;
        }
        case 207: case 275:
            if (!entry) fix_code(m->venue, &field);
            else if (field.tag == 207 || !entry->venue[0]) fix_code(entry->venue, &field);
            break;
        case 262: m->request = text; break;
        case 326: m->trading = text; break;
        case 327: m->reason = text; break;
        case 302: if (quotes) { set = text; set_symbol = (struct fix_text){0}; entry = NULL; } break;
        case 311: if (quotes && !entry) set_symbol = text; break;
        case 268: case 295: {
            if (field.tag != count_tag || status) break;
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
    if (!status && (uint64_t)announced != m->entries / (quotes ? 2 : 1)) return TK_BAD_LENGTH;
    return m->sending < 0 ? TK_BAD_HEADER : -1;
}

#endif
