/* CME MDP 3.0: packets of simple binary messages -> records.
 *
 * Layouts: CME's published message schema (id 1), versions 5 to 13; all little-endian. A packet is a sequence number (u32),
 * the sending time (u64 ns) and messages: size (u16, itself included), root length, template, schema id, version (u16 each), the
 * root, then groups: entry length (u16) and count (u8 behind it, or at byte 7 of an 8-byte head). Lengths on the wire rule, so
 * that what later versions append is stepped over. Prices are i64 in 1e-9, in templates before 45 in 1e-7, as sent: no display
 * factor is applied.
 *
 *   32 46 64 book           -> level2 of the real book; what falls out of the market depth is deleted; J, and 4 channel
 *                              reset: CLEAR. With `orders` instead: level2 of the orders behind the entries
 *   43 47 order book        -> with `orders` level2 of each order, source_sequence = order id
 *   42 48 65 trades         -> trade; changed or cancelled ones flagged CORRECTED
 *   38 52 69 snapshot       -> CLEAR and ADDs flagged SNAPSHOT, unless it says nothing new of a book that is whole
 *   44 53 order snapshot    -> the same of orders with `orders`; CLEAR with the first chunk
 *   27 29 41 54-58 63       -> definitions: the symbol and market depth of a security id
 *   30 security status      -> status of trading of an instrument; of a group: one without an instrument that names it, then
 *                              one for each of its instruments that anything was said of. source_sequence is the packet's
 *   33-35 37 49-51 66 67    -> counted; so are 15 16 39 59-62 68, and 12 (heartbeat)
 *
 * Levels of implied books (E, F) and of w, x stay out. Numbers are followed for each port; lower numbers of later packets
 * begin a new loop (snapshots, definitions) or week. Quotes (`book`) come with what ends an event's quotes and are flagged
 * INCOMPLETE from a gap on until the next snapshot of their instrument. */
#ifndef TK_DECODERS_MDP3_H
#define TK_DECODERS_MDP3_H

#include "workers/decoders/book.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"
#include "workers/decoders/trading_status.h"

enum { MDP3_PACKET_BYTES = 12, MDP3_HEAD_BYTES = 10, MDP3_SCHEMA = 1, MDP3_STREAMS = 64, MDP3_TEMPLATES = 70,
       MDP3_OTHER = 255, MDP3_DEPTH = 10, MDP3_TOUCHED = 256, MDP3_ENTRIES = 256, MDP3_SYMBOL_AT = 35, MDP3_SYMBOL_BYTES = 20,
       MDP3_SECURITY_AT = 55, MDP3_GROUP_AT = 23, MDP3_GROUP_BYTES = 6, MDP3_STATUS_ROOT = 30 };
enum { MDP3_LAST_QUOTE = 0x04, MDP3_END = 0x80 };  /* match event indicator */
enum mdp3_kind { MDP3_UNKNOWN, MDP3_COUNTED, MDP3_HEARTBEAT, MDP3_RESET, MDP3_DEFINITION, MDP3_STATUS, MDP3_STATISTICS, MDP3_BOOK,
                 MDP3_TRADE, MDP3_ORDERS, MDP3_SNAPSHOT, MDP3_ORDER_SNAPSHOT };

/* Bytes of root and entry that must be there, and where in an entry things stand. */
struct mdp3_layout {
    uint8_t kind, root, entry, price, size, wide /* size is u64 */, security, report, orders, level, action, type;
};

/* Columns: kind, root, entry, price, size, wide, security, report, orders, level (or trade id), action, type (or aggressor). */
static const struct mdp3_layout mdp3_layouts[MDP3_TEMPLATES] = {
    [4] = {MDP3_RESET, 9}, [12] = {MDP3_HEARTBEAT}, [15] = {MDP3_COUNTED}, [16] = {MDP3_COUNTED},
    [30] = {MDP3_STATUS, MDP3_STATUS_ROOT},
    [39] = {MDP3_COUNTED}, [59] = {MDP3_COUNTED}, [60] = {MDP3_COUNTED}, [61] = {MDP3_COUNTED}, [62] = {MDP3_COUNTED},
    [68] = {MDP3_COUNTED},
    [27] = {MDP3_DEFINITION, 59}, [29] = {MDP3_DEFINITION, 59}, [41] = {MDP3_DEFINITION, 59}, [54] = {MDP3_DEFINITION, 59},
    [55] = {MDP3_DEFINITION, 59}, [56] = {MDP3_DEFINITION, 59}, [57] = {MDP3_DEFINITION, 59}, [58] = {MDP3_DEFINITION, 59},
    [63] = {MDP3_DEFINITION, 59},
    [33] = {MDP3_STATISTICS, 11, 20, 0, 8, 0, 12, 16}, [49] = {MDP3_STATISTICS, 11, 20, 0, 8, 0, 12, 16},
    [34] = {MDP3_STATISTICS, 11, 32, 0, 0, 0, 24, 28}, [50] = {MDP3_STATISTICS, 11, 32, 0, 0, 0, 24, 28},
    [35] = {MDP3_STATISTICS, 11, 16, 0, 0, 0, 8, 12}, [51] = {MDP3_STATISTICS, 11, 16, 0, 0, 0, 8, 12},
    [37] = {MDP3_STATISTICS, 11, 12, 0, 0, 0, 4, 8}, [66] = {MDP3_STATISTICS, 11, 16, 0, 0, 1, 8, 12},
    [67] = {MDP3_STATISTICS, 11, 24, 0, 8, 1, 16, 20},
    [32] = {MDP3_BOOK, 11, 27, 0, 8, 0, 12, 16, 20, 24, 25, 26}, [46] = {MDP3_BOOK, 11, 27, 0, 8, 0, 12, 16, 20, 24, 25, 26},
    [64] = {MDP3_BOOK, 11, 31, 0, 8, 1, 16, 20, 24, 28, 29, 30},
    [42] = {MDP3_TRADE, 11, 26, 0, 8, 0, 12, 16, 20, 26, 25, 24}, [48] = {MDP3_TRADE, 11, 26, 0, 8, 0, 12, 16, 20, 26, 25, 24},
    [65] = {MDP3_TRADE, 11, 34, 0, 8, 1, 16, 20, 24, 28, 33, 32},
    [43] = {MDP3_ORDERS, 11, 34, 16, 24, 0, 28, 0, 0, 0, 32, 33}, [47] = {MDP3_ORDERS, 11, 34, 16, 24, 0, 28, 0, 0, 0, 32, 33},
    [38] = {MDP3_SNAPSHOT, 24, 22, 0, 8, 0, 0, 0, 12, 16, 0, 21}, [52] = {MDP3_SNAPSHOT, 24, 22, 0, 8, 0, 0, 0, 12, 16, 0, 21},
    [69] = {MDP3_SNAPSHOT, 24, 23, 0, 8, 1, 0, 0, 16, 20, 0, 22},
    [44] = {MDP3_ORDER_SNAPSHOT, 28, 29, 16, 24, 0, 0, 0, 0, 0, 0, 28},
    [53] = {MDP3_ORDER_SNAPSHOT, 28, 29, 16, 24, 0, 0, 0, 0, 0, 0, 28}};

struct mdp3_stream {
    uint32_t port;
    int beat, doubt, carries;  /* the last packet was a heartbeat; increments may be missing; it has carried any */
    uint64_t expected, sent_ns;
};
struct mdp3_group { const uint8_t *entry; unsigned length, count; };

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

static inline unsigned mdp3_template(const uint8_t *m) { return le16(m + 4); }

static inline const struct mdp3_layout *mdp3_layout_of(unsigned template) {
    static const struct mdp3_layout unknown = {MDP3_UNKNOWN};
    return template < MDP3_TEMPLATES ? &mdp3_layouts[template] : &unknown;
}

/* The group that begins at *at, and *at behind it; 0 = it does not fit, or its entries are too short. */
static int mdp3_group_at(const uint8_t *m, size_t size, size_t *at, unsigned head, unsigned wanted, struct mdp3_group *group) {
    if (size - *at < head) return 0;
    *group = (struct mdp3_group){m + *at + head, le16(m + *at), m[*at + head - 1]};
    size_t bytes = (size_t)group->length * group->count;
    if ((group->count && group->length < wanted) || bytes > size - *at - head) return 0;
    *at += head + bytes;
    return 1;
}

/* The first group of a message of that layout, which was found to be long enough. */
static inline int mdp3_entries(const struct mdp3_layout *layout, const uint8_t *m, size_t size, size_t *at,
                               struct mdp3_group *group) {
    *at = MDP3_HEAD_BYTES + (size_t)le16(m + 2);
    return mdp3_group_at(m, size, at, 3, layout->entry, group);
}

/* 1: a bid, 2: an offer, of the real book; 3: the book is reset; 0: anything else. */
static inline unsigned mdp3_side(uint8_t type) {
    return type == '0' ? TK_SIDE_BUY : type == '1' ? TK_SIDE_SELL : type == 'J' ? 3 : 0;
}

static inline uint64_t mdp3_size(const struct mdp3_layout *layout, const uint8_t *e) {
    if (layout->wide) return le64(e + layout->size) == UINT64_MAX ? 0 : le64(e + layout->size);
    int32_t size = (int32_t)le32(e + layout->size);
    return size == INT32_MAX || size < 0 ? 0 : (uint64_t)size;
}

static inline uint32_t mdp3_orders(const struct mdp3_layout *layout, const uint8_t *e) {
    int32_t orders = (int32_t)le32(e + layout->orders);
    return orders > 0 && orders != INT32_MAX ? (uint32_t)orders : 0;
}

static inline struct tk_symbol *mdp3_symbol(struct mdp3 *s, const uint8_t *security) {
    uint64_t key[4] = {le32(security), 0, 0, 0};
    return symbols_find(&s->symbols, key);
}

static inline int mdp3_whole(const struct mdp3 *s, const struct tk_symbol *symbol) {
    return symbol->last[1] >> 1 == s->epoch || s->all_whole == s->epoch;
}

static inline double mdp3_scale(unsigned template) { return template < 45 ? 1e7 : 1e9; }
/* Books keep prices of all templates in 1e-9; INT64_MAX = there is none. */
static inline int64_t mdp3_price9(unsigned template, int64_t price) {
    int64_t wide;
    if (template >= 45) return price;
    return __builtin_mul_overflow(price, (int64_t)100, &wide) ? INT64_MAX : wide;
}

/* May this message make records? Then it, and not the one before it, ends its event. */
static int mdp3_tells(const struct mdp3 *s, const uint8_t *m, size_t size) {
    const struct mdp3_layout *layout = mdp3_layout_of(mdp3_template(m));
    struct mdp3_group group;
    size_t at;
    if (layout->kind < MDP3_BOOK || le16(m + 2) < layout->root || !mdp3_entries(layout, m, size, &at, &group)) return 0;
    if (layout->kind == MDP3_TRADE) return group.count > 0;
    if (layout->kind == MDP3_ORDERS && !s->orders) return 0;
    if (layout->kind == MDP3_ORDER_SNAPSHOT && !s->orders) return 0;
    if (layout->kind != MDP3_BOOK && layout->kind != MDP3_ORDERS) return 1;
    unsigned prices = layout->kind == MDP3_ORDERS || !s->orders || s->book;  /* or only orders and resets tell */
    struct mdp3_group orders;
    if (!prices && mdp3_group_at(m, size, &at, 8, 22, &orders) && orders.count) return 1;
    for (unsigned i = 0; i < group.count; i++) {
        unsigned side = mdp3_side(group.entry[(size_t)i * group.length + layout->type]);
        if (side == 3 || (side && prices)) return 1;
    }
    return 0;
}

/* Is the message that ends before `at` the last of its event that makes records? Looks through the rest of the packet. */
static int mdp3_ends_event(const struct mdp3 *s, const uint8_t *p, size_t at, size_t end, unsigned indicator) {
    while (!(indicator & MDP3_END)) {
        if (end - at < MDP3_HEAD_BYTES) return 0;
        const uint8_t *m = p + at;
        size_t size = le16(m), root = le16(m + 2);
        if (size < MDP3_HEAD_BYTES || size > end - at || root > size - MDP3_HEAD_BYTES || mdp3_tells(s, m, size)) return 0;
        unsigned kind = mdp3_layout_of(mdp3_template(m))->kind;
        indicator = (kind == MDP3_BOOK || kind == MDP3_ORDERS || kind == MDP3_TRADE || kind == MDP3_STATISTICS) && root >= 9
                        ? m[MDP3_HEAD_BYTES + 8] : 0;
        at += size;
    }
    return 1;
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

static inline double mdp3_number(unsigned template, const uint8_t *p) {
    int64_t price = (int64_t)le64(p);
    return price == INT64_MAX ? NAN : (double)price / mdp3_scale(template);
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

static inline uint64_t mdp3_made(const struct mdp3 *s) { return (uint64_t)s->sink.count + s->sink.spare_count; }

/* One message that lies whole in its packet. TK_MISS, TK_MAPPING and TK_SLOW change nothing; anything else consumes it. */
static enum tk_stop mdp3_message(struct mdp3 *s, const uint8_t *p, size_t begin, size_t end, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    const uint8_t *m = p + begin, *root = m + MDP3_HEAD_BYTES;
    size_t size = le16(m), at;
    unsigned template = mdp3_template(m), code = template < MDP3_OTHER ? template : MDP3_OTHER;
    const struct mdp3_layout *layout = mdp3_layout_of(template);
    struct mdp3_group group = {NULL, 0, 0}, orders = {NULL, 0, 0};
    enum tk_reason wrong = TK_REASONS;
    if (le16(m + 6) != MDP3_SCHEMA) wrong = TK_FOREIGN;
    else if (layout->kind == MDP3_UNKNOWN) wrong = TK_UNKNOWN_TYPE;
    else if (le16(m + 2) > size - MDP3_HEAD_BYTES || le16(m + 2) < layout->root) wrong = TK_BAD_LENGTH;
    else if (layout->kind >= MDP3_STATISTICS && !mdp3_entries(layout, m, size, &at, &group)) wrong = TK_BAD_LENGTH;
    else if (layout->kind == MDP3_BOOK && s->orders && at < size && !mdp3_group_at(m, size, &at, 8, 22, &orders))
        wrong = TK_BAD_LENGTH;
    if (wrong != TK_REASONS) {
        sink->counts->messages[code]++;
        sink_refuse(sink, wrong);
        return TK_DONE;
    }
    if (layout->kind == MDP3_DEFINITION && !s->mapped) return TK_MAPPING;
    if (layout->kind == MDP3_SNAPSHOT || (layout->kind == MDP3_ORDER_SNAPSHOT && s->orders)) {
        if (!mdp3_symbol(s, root + 8)) return TK_MISS;
    } else if (layout->kind == MDP3_STATUS) {
        if (le32(root + 20) != INT32_MAX ? !mdp3_symbol(s, root + 20) : !s->listed)
            return le32(root + 20) != INT32_MAX ? TK_MISS : TK_SLOW;
    } else if (layout->kind == MDP3_TRADE || layout->kind == MDP3_BOOK || (layout->kind == MDP3_ORDERS && s->orders)) {
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            if (layout->kind != MDP3_TRADE && !mdp3_side(e[layout->type])) continue;
            if (!mdp3_symbol(s, e + layout->security)) return TK_MISS;
        }
    }
    s->mapped = s->listed = 0;
    sink->counts->messages[code]++;
    if (layout->kind == MDP3_HEARTBEAT) sink->counts->heartbeats++;
    if (layout->kind == MDP3_STATUS) mdp3_status(s, root, le32(p), (int64_t)le64(root), ts_receive);
    if (layout->kind < MDP3_STATISTICS && layout->kind != MDP3_RESET) return TK_DONE;
    int64_t ts_event = (int64_t)le64(root);
    uint64_t before = mdp3_made(s);
    int ends = 0;
    switch (layout->kind) {
    case MDP3_STATISTICS:
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            struct tk_symbol *symbol = mdp3_symbol(s, e + layout->security);
            if (symbol) symbol->last[0] = le32(e + layout->report);
        }
        break;
    case MDP3_RESET: mdp3_reset(s, ts_event, ts_receive); ends = 1; break;
    case MDP3_SNAPSHOT: mdp3_snapshot(s, layout, template, root, &group, ts_receive); ends = 1; break;
    case MDP3_ORDER_SNAPSHOT: {
        if (!s->orders) break;
        struct tk_symbol *symbol = mdp3_symbol(s, root + 8);
        if (symbol->id == TK_REFUSED) { sink_refuse(sink, TK_BAD_SYMBOL); break; }
        ts_event = (int64_t)le64(root + 20);
        if (le32(root + 16) <= 1)
            mdp3_level2(s, symbol, ts_event, ts_receive, TK_SIDE_NONE, NAN, 0, TK_ACTION_CLEAR, 0)->flags |= TK_FLAG_SNAPSHOT;
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            mdp3_order(s, symbol, ts_event, ts_receive, e[layout->type], mdp3_number(template, e + layout->price),
                       (int32_t)le32(e + layout->size), 0, le64(e), TK_FLAG_SNAPSHOT);
        }
        ends = le32(root + 16) == le32(root + 12);
        break;
    }
    default:
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            if (layout->kind == MDP3_BOOK) mdp3_book(s, layout, template, e, ts_event, ts_receive);
            else if (layout->kind == MDP3_TRADE) mdp3_trade(s, layout, template, e, group.length, ts_event, ts_receive);
            else if (s->orders && mdp3_side(e[layout->type])) {
                struct tk_symbol *symbol = mdp3_symbol(s, e + layout->security);
                if (symbol->id == TK_REFUSED) sink_refuse(sink, TK_BAD_SYMBOL);
                else mdp3_order(s, symbol, ts_event, ts_receive, e[layout->type], mdp3_number(template, e + layout->price),
                                (int32_t)le32(e + layout->size), e[layout->action], le64(e), 0);
            }
        }
        for (unsigned i = 0; i < orders.count; i++) {  /* orders of a book message point at its entries */
            const uint8_t *o = orders.entry + (size_t)i * orders.length;
            if (!o[20] || o[20] > group.count) { sink_refuse(sink, TK_BAD_VALUE); continue; }
            const uint8_t *e = group.entry + (size_t)(o[20] - 1) * group.length;
            struct tk_symbol *symbol = mdp3_side(e[layout->type]) ? mdp3_symbol(s, e + layout->security) : NULL;
            if (symbol && symbol->id != TK_REFUSED)
                mdp3_order(s, symbol, ts_event, ts_receive, e[layout->type], mdp3_number(template, e + layout->price),
                           (int32_t)le32(o + 16), o[21], le64(o), 0);
        }
        ends = (s->touched_count || mdp3_made(s) != before) && mdp3_ends_event(s, p, begin + size, end, root[8]);
        if (ends || root[8] & MDP3_LAST_QUOTE || s->touched_count >= MDP3_TOUCHED) mdp3_quotes(s, ts_event, ts_receive);
    }
    if (ends && mdp3_made(s) != before) sink_last(sink)->flags |= TK_FLAG_LAST_OF_BATCH;
    return TK_DONE;
}

static struct mdp3_stream *mdp3_stream_of(struct mdp3 *s, uint32_t port) {
    for (unsigned i = 0; i < s->streams; i++)
        if (s->stream[i].port == port) return &s->stream[i];
    struct mdp3_stream *stream;
    if (s->streams < MDP3_STREAMS) stream = &s->stream[s->streams++];
    else stream = &s->stream[s->replace++ % MDP3_STREAMS];
    *stream = (struct mdp3_stream){.port = port};
    return stream;
}

/* Does a packet hold increments, by its first message? */
static int mdp3_increments(const uint8_t *p, size_t size) {
    if (size < MDP3_PACKET_BYTES + MDP3_HEAD_BYTES) return 0;
    unsigned template = mdp3_template(p + MDP3_PACKET_BYTES), kind = mdp3_layout_of(template)->kind;
    return (kind >= MDP3_STATISTICS && kind <= MDP3_ORDERS) || template == 4 || template == 30 || template == 39;
}

/* Reads the packet header. 0 = nothing to decode in it. */
static int mdp3_packet(struct mdp3 *s, const uint8_t *p, size_t size, uint32_t port, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    if (!s->epoch) s->epoch = s->all_whole = 1;
    if (size < MDP3_PACKET_BYTES) return sink_refuse(sink, TK_TRUNCATED), 0;
    uint64_t number = le32(p), sent_ns = le64(p + 4);
    if (sent_ns > INT64_MAX) return sink_refuse(sink, TK_BAD_HEADER), 0;
    struct mdp3_stream *stream = mdp3_stream_of(s, port);
    int beat = size >= MDP3_PACKET_BYTES + MDP3_HEAD_BYTES && mdp3_template(p + MDP3_PACKET_BYTES) == 12;
    if (stream->beat && number + 1 == stream->expected) stream->expected = number;  /* heartbeats may have used up no number */
    if (stream->expected && number < stream->expected) {
        if (sent_ns <= stream->sent_ns) {
            sink->counts->duplicates++;
            return 0;
        }
        stream->expected = 1;  /* a loop or a week begins again */
    }
    if (!stream->expected && number > 1) stream->doubt = 1;
    if (stream->expected && number > stream->expected) {
        sink_gap(sink, port, stream->expected, number, TK_NO_INSTRUMENT, (int64_t)sent_ns, ts_receive);
        stream->doubt = 1;
    }
    if (mdp3_increments(p, size)) {  /* gaps among snapshots and definitions leave books as they are */
        s->epoch += stream->doubt != 0;
        s->channels += !stream->carries;
        stream->carries = 1;
        stream->doubt = 0;
    }
    stream->expected = number + 1;
    stream->sent_ns = sent_ns;
    stream->beat = beat;
    return 1;
}

static enum tk_stop mdp3_run(struct mdp3 *s) {
    struct tk_frames *frames = &s->frames;
    struct tk_sink *sink = &s->sink;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) {
            if (sink_full(sink)) return TK_FULL;
            frame_count(frames, sink->counts);
            if (!p) { sink_refuse(sink, TK_TRUNCATED); continue; }
            if (!mdp3_packet(s, p, frame->size, frame->port, frame->ts_receive)) continue;
            frames->at = MDP3_PACKET_BYTES;
        }
        while (frames->at < frame->size) {
            if (sink_full(sink)) return TK_FULL;
            size_t left = frame->size - frames->at;
            size_t size = left >= 2 ? le16(p + frames->at) : 0;
            if (left < MDP3_HEAD_BYTES || size < MDP3_HEAD_BYTES || size > left) { sink_refuse(sink, TK_TRUNCATED); break; }
            enum tk_stop stop = mdp3_message(s, p, frames->at, frame->size, frame->ts_receive);
            if (stop != TK_DONE) return stop;
            frames->at += size;
        }
    }
    return TK_DONE;
}

#endif
