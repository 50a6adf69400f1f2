/* CME's market: the books of its instruments, what a message's entries do to them, and the records that this gives.
 *
 * Called by mdp3.h with entries that are whole and whose instruments are known. Each level that changes is told; quotes of
 * the instruments touched wait for `mdp3_quotes`, at the end of their event. It knows no packet and finds no gap: what is in
 * doubt follows from `epoch`, which mdp3.h moves. */
#ifndef TK_DECODERS_MDP3_MARKET_H
#define TK_DECODERS_MDP3_MARKET_H

#include "workers/decoders/book.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/mdp3_message.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"
#include "workers/decoders/trading_status.h"

enum { MDP3_STREAMS = 64, MDP3_DEPTH = 10, MDP3_TOUCHED = 256, MDP3_ENTRIES = 256 };

struct mdp3_stream {
    uint32_t port;
    int beat, doubt, carries;  /* the last packet was a heartbeat; increments may be missing; it has carried any */
    uint64_t expected, sent_ns;
};

struct mdp3 {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols;  /* by security id; last: report number, epoch of its whole book | seen, depth << 32 | number */
    struct tk_books books;      /* by that number */
    struct mdp3_stream stream[MDP3_STREAMS];
    uint32_t touched[MDP3_TOUCHED + MDP3_ENTRIES];  /* security ids whose quotes are due with their event's last */
    unsigned streams, replace, channels, touched_count;  /* channels: streams that carry increments */
    int book, orders;           /* quotes of the best prices; level2 of orders instead of prices */
    int mapped;                 /* the shell has taken this definition */
    int listed;                 /* the shell has listed the instruments of this status' group in `group` */
    uint32_t *group;            /* instruments */
    size_t group_count;
    uint64_t epoch, all_whole;  /* grows with each gap; books were whole then, all of them */
};

static inline struct tk_symbol *mdp3_symbol(struct mdp3 *s, const uint8_t *security) {
    uint64_t key[4] = {le32(security), 0, 0, 0};
    return symbols_find(&s->symbols, key);
}

static inline int mdp3_whole(const struct mdp3 *s, const struct tk_symbol *symbol) {
    return symbol->last[1] >> 1 == s->epoch || s->all_whole == s->epoch;
}

static struct tk_record *mdp3_level2(struct mdp3 *s, const struct tk_symbol *symbol, int64_t ts_event, int64_t ts_receive,
                                     unsigned side, double price, uint64_t size, unsigned action, uint64_t sequence) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_LEVEL2, symbol->id, ts_event, ts_receive);
    set_level2(record, side, price, (double)size, action);
    record->source_sequence = sequence;
    return record;
}

static void mdp3_clear(struct book *book) { book->bid.count = book->ask.count = 0; }

/* A quote of each instrument whose best prices, sizes or counts are others than said last. */
static void mdp3_quotes(struct mdp3 *s, int64_t ts_event, int64_t ts_receive) {
    for (unsigned i = 0; i < s->touched_count; i++) {
        uint64_t key[4] = {s->touched[i], 0, 0, 0};
        struct tk_symbol *symbol = symbols_find(&s->symbols, key);
        struct book *book = symbol ? books_find(&s->books, (uint32_t)symbol->last[2]) : NULL;
        if (!book || symbol->id == TK_REFUSED || !book_changed(book)) continue;
        const struct book_level *bid = &book->said_bid, *ask = &book->said_ask;
        struct tk_record *record = sink_next(&s->sink, TK_TYPE_QUOTE, symbol->id, ts_event, ts_receive);
        set_quote(record, bid->size ? (double)bid->price / 1e9 : NAN, (double)bid->size,
                  ask->size ? (double)ask->price / 1e9 : NAN, (double)ask->size);
        record->quote.bid_count = bid->orders;
        record->quote.ask_count = ask->orders;
        record->source_sequence = symbol->last[0];
        if (!mdp3_whole(s, symbol)) record->flags |= TK_FLAG_INCOMPLETE;
    }
    s->touched_count = 0;
}

static void mdp3_touch(struct mdp3 *s, const struct tk_symbol *symbol) {
    if (!s->book) return;
    for (unsigned i = s->touched_count; i-- > 0;)
        if (s->touched[i] == symbol->key[0]) return;
    s->touched[s->touched_count++] = (uint32_t)symbol->key[0];  /* room is made after each message */
}

struct mdp3_entry {
    struct tk_symbol *symbol;
    unsigned side, level, depth;  /* level counts from 1, 0 = it was not stated; depth of the book in levels */
    int64_t price, ts_event, ts_receive;
    uint64_t sequence;
    unsigned flags;
};

/* One change of a price level, told unless level2 is of orders. */
static void mdp3_tell(struct mdp3 *s, const struct mdp3_entry *entry, const struct book *book, int64_t price, uint64_t size,
                      uint32_t orders, unsigned action, unsigned level) {
    if (s->orders) return;
    struct tk_record *record = mdp3_level2(s, entry->symbol, entry->ts_event, entry->ts_receive, entry->side,
                                           (double)price / 1e9, size, action, entry->sequence);
    record->level2.order_count = orders;
    record->level2.depth = (uint8_t)entry->depth;
    if (level) record->level2.level = (uint16_t)(level - 1);
    record->flags |= (uint16_t)entry->flags;
    if (s->book) book_stamp(record, book, 1e9);
}

/* A price level as an entry states it. */
static void mdp3_level(struct mdp3 *s, struct mdp3_entry *entry, struct book *book, unsigned action, uint64_t size,
                       uint32_t orders) {
    struct book_side *side = entry->side == TK_SIDE_BUY ? &book->bid : &book->ask;
    unsigned level = entry->level;
    entry->depth = (unsigned)(entry->symbol->last[2] >> 32);
    if (!entry->depth) entry->depth = MDP3_DEPTH;
    if (action == 3 || action == 4) {  /* the whole side; the best `level` levels */
        for (unsigned left = action == 3 ? side->count : level; left && side->count; left--) {
            int64_t price = side->level[--side->count].price;
            mdp3_tell(s, entry, book, price, 0, 0, TK_ACTION_DELETE, 0);
        }
        return;
    }
    if (action > 5 || entry->price == INT64_MAX || (action != 2 && !size)) { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    if (action == 2) {
        book_set(book, entry->side, entry->price, 0);
        mdp3_tell(s, entry, book, entry->price, 0, 0, TK_ACTION_DELETE, level);
        return;
    }
    if (action == 5 && level && level <= side->count && side->level[side->count - level].price != entry->price) {
        int64_t price = side->level[side->count - level].price;
        book_erase(side, side->count - level);
        mdp3_tell(s, entry, book, price, 0, 0, TK_ACTION_DELETE, level);
    }
    uint32_t at = book_seek(side, entry->side == TK_SIDE_BUY, entry->price);
    int there = at < side->count && side->level[at].price == entry->price;
    if (!there && !book_insert(side, at, entry->price)) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
    side->level[at].size = size;
    side->level[at].orders = orders;
    mdp3_tell(s, entry, book, entry->price, size, orders, there ? TK_ACTION_MODIFY : TK_ACTION_ADD, level);
    /* what falls out of the depth is not spoken of again */
    for (; level && at > (level < entry->depth ? entry->depth - level : 0); at--) {
        int64_t price = side->level[0].price;
        book_erase(side, 0);
        mdp3_tell(s, entry, book, price, 0, 0, TK_ACTION_DELETE, 0);
    }
}

static void mdp3_reset_book(struct mdp3 *s, struct tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, unsigned flags) {
    struct book *book = books_find(&s->books, (uint32_t)symbol->last[2]);
    if (book) mdp3_clear(book);
    struct tk_record *record = mdp3_level2(s, symbol, ts_event, ts_receive, TK_SIDE_NONE, NAN, 0, TK_ACTION_CLEAR, symbol->last[0]);
    record->flags |= (uint16_t)flags;
    mdp3_touch(s, symbol);
}

static void mdp3_book(struct mdp3 *s, const struct mdp3_layout *layout, unsigned template, const uint8_t *e, int64_t ts_event,
                      int64_t ts_receive) {
    unsigned side = mdp3_side(e[layout->type]);
    struct tk_symbol *symbol = mdp3_symbol(s, e + layout->security);
    if (!symbol) return;  /* an implied level of an instrument that nothing else was said of */
    symbol->last[0] = le32(e + layout->report);
    symbol->last[1] |= 1;
    if (!side) return;
    if (symbol->id == TK_REFUSED) { sink_refuse(&s->sink, TK_BAD_SYMBOL); return; }
    if (side == 3) {
        symbol->last[1] = s->epoch << 1 | 1;
        mdp3_reset_book(s, symbol, ts_event, ts_receive, 0);
        return;
    }
    struct book *book = books_find(&s->books, (uint32_t)symbol->last[2]);
    if (!book) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
    int64_t price = (int64_t)le64(e + layout->price);
    struct mdp3_entry entry = {symbol, side, e[layout->level], 0, mdp3_price9(template, price), ts_event, ts_receive,
                               symbol->last[0], 0};
    mdp3_level(s, &entry, book, e[layout->action], mdp3_size(layout, e), mdp3_orders(layout, e));
    mdp3_touch(s, symbol);
}

static void mdp3_order(struct mdp3 *s, const struct tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, uint8_t type,
                       double price, int32_t quantity, unsigned action, uint64_t order, unsigned flags) {
    unsigned side = mdp3_side(type);
    if (side == 3) {
        mdp3_level2(s, symbol, ts_event, ts_receive, TK_SIDE_NONE, NAN, 0, TK_ACTION_CLEAR, order);
        return;
    }
    if (!side) return;
    if (action > 2) { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    uint64_t size = action == 2 || quantity < 0 || quantity == INT32_MAX ? 0 : (uint64_t)quantity;
    static const uint8_t actions[3] = {TK_ACTION_ADD, TK_ACTION_MODIFY, TK_ACTION_DELETE};
    mdp3_level2(s, symbol, ts_event, ts_receive, side, price, size, actions[action], order)->flags |= (uint16_t)flags;
}

static void mdp3_trade(struct mdp3 *s, const struct mdp3_layout *layout, unsigned template, const uint8_t *e, unsigned length,
                       int64_t ts_event, int64_t ts_receive) {
    struct tk_symbol *symbol = mdp3_symbol(s, e + layout->security);
    if (!symbol) return;
    symbol->last[0] = le32(e + layout->report);
    if (symbol->id == TK_REFUSED) { sink_refuse(&s->sink, TK_BAD_SYMBOL); return; }
    uint32_t trade = length >= layout->level + 4u ? le32(e + layout->level) : 0;
    unsigned aggressor = e[layout->type];
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_TRADE, symbol->id, ts_event, ts_receive);
    set_trade(record, mdp3_number(template, e + layout->price), (double)mdp3_size(layout, e), trade == UINT32_MAX ? 0 : trade,
              aggressor == 1 ? TK_SIDE_BUY : aggressor == 2 ? TK_SIDE_SELL : TK_SIDE_NONE);
    if (e[layout->action]) record->flags |= TK_FLAG_CORRECTED;
}

/* A snapshot of one instrument; `group` are its entries. */
static void mdp3_snapshot(struct mdp3 *s, const struct mdp3_layout *layout, unsigned template, const uint8_t *root,
                          const struct mdp3_group *group, int64_t ts_receive) {
    struct tk_symbol *symbol = mdp3_symbol(s, root + 8);
    if (symbol->id == TK_REFUSED) { sink_refuse(&s->sink, TK_BAD_SYMBOL); return; }
    uint32_t report = le32(root + 12);
    int seen = symbol->last[1] & 1;
    if (seen && (report < symbol->last[0] || (report == symbol->last[0] && mdp3_whole(s, symbol)))) {
        s->sink.counts->duplicates++;
        return;
    }
    struct book *book = books_find(&s->books, (uint32_t)symbol->last[2]);
    if (!book) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
    int64_t ts_event = (int64_t)le64(root + 16);
    symbol->last[0] = report;
    symbol->last[1] = s->epoch << 1 | 1;
    if (s->orders) mdp3_clear(book), mdp3_touch(s, symbol);
    else mdp3_reset_book(s, symbol, ts_event, ts_receive, TK_FLAG_SNAPSHOT);
    for (unsigned i = 0; i < group->count; i++) {
        const uint8_t *e = group->entry + (size_t)i * group->length;
        unsigned side = mdp3_side(e[layout->type]);
        if (!side || side == 3) continue;
        int64_t price = mdp3_price9(template, (int64_t)le64(e + layout->price));
        struct mdp3_entry entry = {symbol, side, e[layout->level], 0, price, ts_event, ts_receive, report, TK_FLAG_SNAPSHOT};
        mdp3_level(s, &entry, book, 0, mdp3_size(layout, e), mdp3_orders(layout, e));
    }
    mdp3_quotes(s, ts_event, ts_receive);
}

/* Everything that the channel said before is void. Which instruments are its own nobody says: of several channels in one
 * capture all books are emptied, and are in doubt. */
static void mdp3_reset(struct mdp3 *s, int64_t ts_event, int64_t ts_receive) {
    if (s->channels > 1) s->epoch++;
    else s->all_whole = s->epoch;
    for (size_t i = 0; s->symbols.entry && i <= s->symbols.mask; i++) {
        struct tk_symbol *symbol = &s->symbols.entry[i];
        if (!symbol->used) continue;
        symbol->last[0] = symbol->last[1] = 0;
        struct book *book = books_find(&s->books, (uint32_t)symbol->last[2]);
        if (!book || symbol->id == TK_REFUSED || !(book->bid.count || book->ask.count)) continue;
        mdp3_reset_book(s, symbol, ts_event, ts_receive, 0);
        if (s->touched_count >= MDP3_TOUCHED) mdp3_quotes(s, ts_event, ts_receive);
    }
    mdp3_quotes(s, ts_event, ts_receive);
}

/* 30: SecurityGroup at 8, Asset at 14 (6 bytes each), SecurityID at 20, status, halt reason and event (u8) at 27. The group's are
 * listed by now. */
static void mdp3_status(struct mdp3 *s, const uint8_t *root, uint32_t packet, int64_t ts_event, int64_t ts_receive) {
    enum tk_state state = root[27] == UINT8_MAX ? TK_NO_CHANGE : state_of_fix326(root[27]);
    if (state == TK_NO_CHANGE) return;
    int of_one = le32(root + 20) != INT32_MAX;
    const struct tk_symbol *symbol = of_one ? mdp3_symbol(s, root + 20) : NULL;
    if (of_one && symbol->id == TK_REFUSED) { sink_refuse(&s->sink, TK_BAD_SYMBOL); return; }
    for (size_t i = 0; i <= (of_one ? 0 : s->group_count); i++) {
        uint32_t id = of_one ? symbol->id : i ? s->group[i - 1] : TK_NO_INSTRUMENT;
        struct tk_said text;
        struct tk_record *record = sink_trading_status(&s->sink, &text, state, "CME ", id, ts_event, ts_receive);
        record->source_sequence = packet;
        said_number(&text, "", root[27]);
        if (!of_one) said_code(&text, ", group ", root + 8, MDP3_GROUP_BYTES);
        if (root[28] != UINT8_MAX) said_number(&text, ", reason ", root[28]);
        if (root[29] && root[29] != UINT8_MAX) said_number(&text, ", event ", root[29]);
    }
}

#endif
