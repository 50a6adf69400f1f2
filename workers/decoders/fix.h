/* FIX 4.2 and 4.4 market data -> records: W (snapshot), X (incremental refresh), i (mass quote), f (security status); the rest is
 * counted.
 *
 * Layouts: FIX 4.4 with Errata 20030618, volume 3, "Market Data" and "Quote". One frame is one whole message; who cuts
 * the stream has looked at length and checksum (fix_wire.h); reading it is in fix_message.h, books and records in fix_market.h.
 *
 *   MDEntryType 0, 1   -> the book (fix_book.h): level2 for each level that changed, one quote if the best has changed
 *   2                  -> trade; deleted (a bust): flagged CORRECTED
 *   J                  -> level2 CLEAR
 *   B, 9               -> session volume and VWAP of the trades that follow
 *   i                  -> each quote entry is a level of both sides, named by QuoteSetID and QuoteEntryID
 *   f                  -> status of trading, by SecurityTradingStatus; indications and imbalances are counted
 *   W                  -> level2 CLEAR, then ADD of each price, flagged SNAPSHOT
 * An entry is found by MDEntryID (or MDEntryRefID), else by price, else by MDEntryPositionNo; with `top`
 * there is one entry a side. Symbol: of the entry, of the one before it, of the message, of what MDReqID or QuoteSetID was
 * said to be of. Time: MDEntryDate and MDEntryTime, else TransactTime, else SendingTime. source_sequence: MsgSeqNum.
 * Books that did not begin with a snapshot, or may lack something since, give records flagged INCOMPLETE.
 *
 * A message is read whole before anything is done about it: one that is wrong anywhere leaves no trace but its count. */
#ifndef TK_DECODERS_FIX_H
#define TK_DECODERS_FIX_H

#include "workers/decoders/fix_market.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/trading_status.h"

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
    while (at < s->sessions && s->session_key[at] != s->message.session_hash) at++;
    if (at == FIX_MAX_SESSIONS) at--;
    else if (at == s->sessions) s->session_key[s->sessions++] = s->message.session_hash;
    s->books = &s->session[at];
}

/* Key of a request in its session; 0 = none can be made. */
static int fix_request_key(const struct fix *s, uint64_t key[4], const struct fix_text *number) {
    if (!symbols_key(key, number->p, number->size)) return 0;
    key[3] ^= s->message.session_hash;
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
    struct tk_symbol *request = fix_request(s, &s->message.request);
    if (request) by_request = request->id;
    if (s->message.symbol.size) {
        if ((found = fix_look_up(s, &s->message.symbol, &last)) != -1) return found;
        if (type == 'W') {  /* what comes later for this request may lack the symbol */
            if (request) request->id = last;
            else if (s->requests.count < FIX_MAX_REQUESTS && fix_request_key(s, key, &s->message.request))
                if (!symbols_add(&s->requests, key, last)) return TK_NO_MEMORY;
        }
    } else if (by_request != TK_REFUSED) {
        last = by_request;
    }
    for (size_t i = 0; i < s->message.entries; i++) {
        struct fix_entry *entry = &s->message.entry[i];
        if (type == 'i') {
            struct fix_text *set = &entry->old;
            if (entry->symbol.size) {
                if ((found = fix_look_up(s, &entry->symbol, &last)) != -1) return found;
            } else if ((request = fix_request(s, set))) {
                last = request->id;
            } else if (!s->message.symbol.size) {  /* nobody says of what: a name of its own */
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
    if (!s->message.entries && type == 'W') {
        if (last == TK_REFUSED) return TK_NO_SYMBOL;
        if (!fix_book_of(s->books, last)) return TK_NO_MEMORY;
    }
    return -1;
}

/* When an entry was made: a time without a date is the one nearest to the sending. */
static int64_t fix_when(const struct fix *s, const struct fix_entry *entry) {
    const int64_t day = INT64_C(86400000000000);
    if (entry->time >= 0) {
        if (entry->date >= 0) return entry->date + entry->time;
        int64_t ts = s->message.sending - s->message.sending % day + entry->time;
        return ts - s->message.sending > day / 2 ? ts - day : s->message.sending - ts > day / 2 ? ts + day : ts;
    }
    return entry->ts_event >= 0 ? entry->ts_event : s->message.transact >= 0 ? s->message.transact : s->message.sending;
}

static void fix_emit(struct fix *s, uint16_t type) {
    if (type == 'W') {
        int whole = !s->message.entries;
        for (size_t i = 0; i < s->message.entries; i++) {
            uint8_t kind = s->message.entry[i].type;
            whole |= kind == '0' || kind == '1' || kind == 'J';
        }
        s->message.flags |= TK_FLAG_SNAPSHOT;
        if (whole) {
            struct fix_text none = {0};
            uint32_t id = s->message.entries ? s->message.entry[0].id : TK_REFUSED;
            if (id == TK_REFUSED && fix_look_up(s, s->message.symbol.size ? &s->message.symbol : &none, &id) != -1) {
                struct tk_symbol *request = fix_request(s, &s->message.request);
                if (!request) return;
                id = request->id;
            }
            int64_t ts_event = s->message.entries ? fix_when(s, &s->message.entry[0]) : s->message.sending;
            fix_empty(s, s->books->book[id], id, ts_event, s->message.venue);
        }
    }
    for (size_t i = 0; i < s->message.entries; i++) {
        struct fix_entry *entry = &s->message.entry[i];
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

/* A security status. -1, FIX_MISS, or a reason. */
static int fix_status(struct fix *s) {
    const struct fix_message *m = &s->message;
    uint32_t id;
    int64_t code = fix_digits(m->trading.p, m->trading.size);
    if (!m->trading.size) return -1;  /* of something else: what is said of its corporate actions, its session */
    if (code < 0) return TK_BAD_VALUE;
    enum tk_state state = state_of_fix326(code > UINT32_MAX ? 0 : (uint32_t)code);
    if (state == TK_NO_CHANGE) return -1;
    if (!m->symbol.size) return TK_NO_SYMBOL;
    int found = fix_look_up(s, &m->symbol, &id);
    if (found != -1) return found;
    struct tk_said text;
    struct tk_record *record = sink_trading_status(&s->sink, &text, state, "FIX ", id, m->transact >= 0 ? m->transact : m->sending,
                                                   s->ts_receive);
    record->flags |= m->flags;
    record->source_sequence = m->seq;
    if (m->venue[0]) memcpy(record->venue, m->venue, 8);
    said_code(&text, "", m->trading.p, m->trading.size);
    said_code(&text, ", reason ", m->reason.p, m->reason.size);
    return -1;
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
        if (type == 'W' || type == 'X' || type == 'i' || type == 'f') {
            fix_message_begin(&s->message);
            s->made = 0;
            s->ts_receive = frame->ts_receive;
            reason = fix_read(&s->message, q, end, type);
            if (reason == -1 && type == 'f') {
                reason = fix_status(s);
            } else if (reason == -1) {
                fix_select(s);
                reason = fix_resolve(s, type);
            }
            if (reason == FIX_MISS) return TK_MISS;
            if (reason == -1 && type != 'f') fix_emit(s, type);
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
