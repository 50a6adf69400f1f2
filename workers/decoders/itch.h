/* NASDAQ TotalView-ITCH 5.0, in MoldUDP64 packets or as 2-byte length-framed blocks -> records.
 *
 * Layouts: "NASDAQ TotalView-ITCH 5.0", section 1 (big-endian; prices u32 in 1e-4; time u48 ns since midnight, US
 * Eastern); "MoldUDP64 Protocol Specification" 1.00, Downstream Packet (20-byte header).
 *
 *   A F add order               -> level2 ADD
 *   E C executed                -> level2 EXECUTE (size = shares left), and a trade, aggressor = other side than the
 *                                  order's; C not printable makes no trade: the cross that follows reports the volume
 *   X cancel, D delete          -> level2 MODIFY / DELETE (size = shares left)
 *   U replace                   -> level2 DELETE of the old order, ADD of the new one
 *   P non-displayed, Q cross    -> trade (a cross of no shares makes none)
 *   B broken trade              -> trade flagged CORRECTED; the message names only the match number: price is NaN
 *   H stock trading action      -> status: H halted, P paused, Q quote only, T trading, with the venue's reason
 *   h operational halt          -> status: H halted; T as the trading action said last
 *   S R Y L V W K J I N O       -> counted: the record has no body for them; R, and whatever names its stock, teaches
 *                                  the locate code
 * With `book`: after what changed the best prices, their sizes or counts, a quote of them (source_sequence: the order's
 * reference), and best_bid and best_ask of level2 records. Books start empty; joined late, or after a gap, they lack orders until
 * the next start of messages: their quotes are flagged INCOMPLETE.
 * A level2 record's source_sequence is the order reference; a trade's is the match number; a status' that of its message (0
 * where messages have no numbers). One message's records end with
 * LAST_OF_BATCH. E C X D U of an order that was not seen (a capture that starts late) are counted as "unknown order". */
#ifndef TK_DECODERS_ITCH_H
#define TK_DECODERS_ITCH_H

#include "workers/decoders/book.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/orders.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"
#include "workers/decoders/trading_status.h"

enum { MOLD_HEADER_BYTES = 20, MOLD_STREAMS = 64, MOLD_END_OF_SESSION = 0xFFFF };
#define ITCH_UNKNOWN_LOCATE 0xFFFFFFFEu

struct mold_stream { uint8_t session[10]; uint64_t expected; };

struct itch {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols;
    struct tk_orders orders;
    struct mold_stream stream[MOLD_STREAMS];
    struct tk_books books;
    struct book *touched;             /* the book that this message changed */
    int book, doubt;                  /* books are kept; they may lack orders */
    unsigned streams, replace;
    int packets;                      /* frames are MoldUDP64 packets; 0 = runs of length-framed blocks */
    int fixed_day;                    /* midnight_ns was given; 0 = follows the receive time */
    int64_t midnight_ns;              /* of the session day, ns since the epoch */
    int64_t day_from_ns, day_last_ns; /* receive times to which midnight_ns applies, both included */
    uint64_t skip, left;              /* messages of this packet: had before; not decoded yet */
    uint64_t end;                     /* the number after its last message; 0 = messages have no numbers */
    uint32_t epoch;                   /* of `status` */
    uint32_t locate[65536];           /* stock locate code -> instrument id */
    uint32_t status[65536];           /* ... -> what was said of its trading (trading_status.h) */
};

/* Bytes of each message type, 0 = unknown. */
static inline unsigned itch_length(uint8_t type) {
    static const uint8_t length[128] = {
        ['S'] = 12, ['R'] = 39, ['H'] = 25, ['Y'] = 20, ['L'] = 26, ['V'] = 35, ['W'] = 12, ['K'] = 28, ['J'] = 35,
        ['h'] = 21, ['A'] = 36, ['F'] = 40, ['E'] = 31, ['C'] = 36, ['X'] = 23, ['D'] = 19, ['U'] = 35, ['P'] = 44,
        ['Q'] = 40, ['B'] = 19, ['I'] = 50, ['N'] = 20, ['O'] = 48};
    return type < 128 ? length[type] : 0;
}

/* Where the stock symbol stands, 0 = the message does not name it. */
static inline unsigned itch_stock_at(uint8_t type) {
    static const uint8_t at[128] = {
        ['R'] = 11, ['H'] = 11, ['Y'] = 11, ['L'] = 15, ['K'] = 11, ['J'] = 11, ['h'] = 11, ['A'] = 24, ['F'] = 24,
        ['P'] = 24, ['Q'] = 19, ['I'] = 28, ['N'] = 11, ['O'] = 11};
    return type < 128 ? at[type] : 0;
}

static inline double itch_price(int64_t price) { return (double)price / 1e4; }

static inline void itch_level2(struct itch *s, uint32_t id, int64_t ts_event, int64_t ts_receive, uint64_t reference,
                               unsigned side, int64_t price, uint32_t left, unsigned action, unsigned flags) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_LEVEL2, id, ts_event, ts_receive);
    set_level2(record, side, itch_price(price), left, action);
    record->source_sequence = reference;
    record->flags |= (uint16_t)flags;
    if (s->touched) book_stamp(record, s->touched, 1e4);
}

/* The order's price level grows or shrinks; `orders` 1 = by a whole order. */
static inline void itch_book_add(struct itch *s, uint32_t id, unsigned side, int64_t price, uint32_t shares) {
    if (!s->book) return;
    s->touched = books_find(&s->books, id);
    if (!s->touched || !book_add(s->touched, side, price, shares, 1)) sink_refuse(&s->sink, TK_NO_MEMORY);
}

static inline void itch_book_take(struct itch *s, const struct tk_order *was, uint32_t shares, uint32_t orders) {
    if (!s->book) return;
    s->touched = books_find(&s->books, was->instrument_id);
    if (s->touched) book_take(s->touched, was->side, was->price, shares < was->shares ? shares : was->shares, orders);
}

/* A reference that lives already (after a gap) is about to be another order's. */
static inline void itch_book_replace(struct itch *s, uint64_t reference) {
    const struct tk_order *was = s->book ? orders_find(&s->orders, reference) : NULL;
    if (was) itch_book_take(s, was, was->shares, 1);
}

/* The message is done: a quote, if it changed the best prices. */
static inline void itch_quote(struct itch *s, uint32_t id, int64_t ts_event, int64_t ts_receive, uint64_t reference) {
    if (!s->touched || !book_changed(s->touched)) return;
    book_quote(&s->sink, s->touched, id, ts_event, ts_receive, reference, 1e4);
    if (s->doubt) sink_last(&s->sink)->flags |= TK_FLAG_INCOMPLETE;
}

static inline struct tk_record *itch_trade(struct itch *s, uint32_t id, int64_t ts_event, int64_t ts_receive,
                                           double price, double size, uint64_t match, unsigned side) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_TRADE, id, ts_event, ts_receive);
    set_trade(record, price, size, match, side);
    record->flags |= TK_FLAG_LAST_OF_BATCH;
    return record;
}

/* E, C, X, D and U: they name an order and nothing else. */
static void itch_order(struct itch *s, const uint8_t *m, int64_t ts_event, int64_t ts_receive) {
    struct tk_order *order = orders_find(&s->orders, be64(m + 11));
    if (!order) { sink_refuse(&s->sink, TK_UNKNOWN_ORDER); return; }
    struct tk_order was = *order;
    unsigned side = was.side;
    uint32_t gone = m[0] == 'D' || m[0] == 'U' ? was.shares : be32(m + 19);
    uint32_t left = gone < was.shares ? was.shares - gone : 0;
    if (left) order->shares = left;
    else orders_remove(&s->orders, order);
    itch_book_take(s, &was, gone, !left);
    switch (m[0]) {
    case 'E': case 'C': {
        int printed = m[0] == 'E' || m[31] == 'Y';
        int64_t price = m[0] == 'E' ? was.price : (int64_t)be32(m + 32);
        itch_level2(s, was.instrument_id, ts_event, ts_receive, was.reference, side, was.price, left, TK_ACTION_EXECUTE,
                    printed ? 0 : TK_FLAG_LAST_OF_BATCH);
        if (printed)
            itch_trade(s, was.instrument_id, ts_event, ts_receive, itch_price(price), gone, be64(m + 23),
                       side == TK_SIDE_BUY ? TK_SIDE_SELL : TK_SIDE_BUY);
        break;
    }
    case 'U': {
        uint32_t shares = be32(m + 27);
        int64_t price = be32(m + 31);
        itch_level2(s, was.instrument_id, ts_event, ts_receive, was.reference, side, was.price, 0, TK_ACTION_DELETE, 0);
        itch_book_replace(s, be64(m + 19));
        if (!orders_put(&s->orders, be64(m + 19), was.instrument_id, side, price, shares))
            sink_refuse(&s->sink, TK_NO_MEMORY);
        else itch_book_add(s, was.instrument_id, side, price, shares);
        itch_level2(s, was.instrument_id, ts_event, ts_receive, be64(m + 19), side, price, shares, TK_ACTION_ADD,
                    TK_FLAG_LAST_OF_BATCH);
        break;
    }
    default:
        itch_level2(s, was.instrument_id, ts_event, ts_receive, was.reference, side, was.price, left,
                    left ? TK_ACTION_MODIFY : TK_ACTION_DELETE, TK_FLAG_LAST_OF_BATCH);
    }
    itch_quote(s, was.instrument_id, ts_event, ts_receive, m[0] == 'U' ? be64(m + 19) : was.reference);
}

/* H and h: whether the instrument is traded. */
static void itch_status(struct itch *s, uint32_t id, const uint8_t *m, int64_t ts_event, int64_t ts_receive) {
    int operational = m[0] == 'h';
    uint8_t code = m[operational ? 20 : 19];
    uint32_t *memory = &s->status[be16(m + 1)];
    enum tk_state state, told = code == 'T' ? TK_TRADING : code == 'H' ? TK_HALTED : code == 'P' ? TK_PAUSED
                                : code == 'Q' ? TK_QUOTE_ONLY : TK_UNKNOWN;
    if (operational && code != 'H' && code != 'T') { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    state = operational ? state_operational(memory, s->epoch, code == 'H') : state_said(memory, s->epoch, told);
    struct tk_said text;
    struct tk_record *record = sink_trading_status(&s->sink, &text, state, "ITCH ", id, ts_event, ts_receive);
    record->source_sequence = s->end ? s->end - s->left : 0;
    said_code(&text, operational ? "operational " : "", &code, 1);
    said_code(&text, operational ? ", market " : ", reason ", m + (operational ? 19 : 21), operational ? 1 : 4);
    if (!operational && state != told) said(&text, ", operational halt", 18);
}

/* One message. TK_MISS asks for its symbol and changes nothing; anything else consumes it. */
static inline enum tk_stop itch_message(struct itch *s, const uint8_t *m, size_t size, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    unsigned wanted = size ? itch_length(m[0]) : 0;
    if (!wanted || size != wanted) {
        if (size) sink->counts->messages[m[0]]++;
        sink_refuse(sink, !size ? TK_TRUNCATED : wanted ? TK_BAD_LENGTH : TK_UNKNOWN_TYPE);
        return TK_DONE;
    }
    uint16_t locate = be16(m + 1);
    uint32_t id = s->locate[locate];
    unsigned at = itch_stock_at(m[0]);
    if (at && (id == ITCH_UNKNOWN_LOCATE || m[0] == 'R')) {
        uint64_t key[4] = {le64(m + at), 0, 0, 0};
        const struct tk_symbol *symbol = symbols_find(&s->symbols, key);
        if (!symbol) return TK_MISS;
        if (symbol->id != id) s->status[locate] = 0;
        s->locate[locate] = id = symbol->id;
    }
    sink->counts->messages[m[0]]++;
    if (at && id == TK_REFUSED) return sink_refuse(sink, TK_BAD_SYMBOL), TK_DONE;
    int64_t ts_event = s->midnight_ns + (int64_t)be48(m + 5);
    s->touched = NULL;
    switch (m[0]) {
    case 'A': case 'F': {
        unsigned side = m[19] == 'B' ? TK_SIDE_BUY : TK_SIDE_SELL;
        if (m[19] != 'B' && m[19] != 'S') return sink_refuse(sink, TK_BAD_VALUE), TK_DONE;
        itch_book_replace(s, be64(m + 11));
        if (!orders_put(&s->orders, be64(m + 11), id, side, be32(m + 32), be32(m + 20)))
            sink_refuse(sink, TK_NO_MEMORY);
        else itch_book_add(s, id, side, be32(m + 32), be32(m + 20));
        itch_level2(s, id, ts_event, ts_receive, be64(m + 11), side, be32(m + 32), be32(m + 20), TK_ACTION_ADD,
                    TK_FLAG_LAST_OF_BATCH);
        itch_quote(s, id, ts_event, ts_receive, be64(m + 11));
        break;
    }
    case 'E': case 'C': case 'X': case 'D': case 'U': itch_order(s, m, ts_event, ts_receive); break;
    case 'P':  /* the side is that of the hidden order, and since 2014 always B: it says nothing */
        itch_trade(s, id, ts_event, ts_receive, itch_price(be32(m + 32)), be32(m + 20), be64(m + 36), TK_SIDE_NONE);
        break;
    case 'Q':
        if (be64(m + 11))
            itch_trade(s, id, ts_event, ts_receive, itch_price(be32(m + 27)), (double)be64(m + 11), be64(m + 31),
                       TK_SIDE_NONE)->tick.condition[0] = (char)m[39];
        break;
    case 'B':
        if (id < ITCH_UNKNOWN_LOCATE)
            itch_trade(s, id, ts_event, ts_receive, NAN, 0.0, be64(m + 11), TK_SIDE_NONE)->flags |= TK_FLAG_CORRECTED;
        else sink_refuse(sink, TK_NO_SYMBOL);
        break;
    case 'H': case 'h': itch_status(s, id, m, ts_event, ts_receive); break;
    case 'S':
        if (m[11] == 'O') {  /* start of messages: a new day, references start again */
            s->epoch++;
            orders_clear(&s->orders);
            books_clear(&s->books);
            s->doubt = 0;
        }
        break;
    default: break;
    }
    return TK_DONE;
}

static struct mold_stream *mold_stream_of(struct itch *s, const uint8_t *session) {
    for (unsigned i = 0; i < s->streams; i++)
        if (!memcmp(s->stream[i].session, session, 10)) return &s->stream[i];
    struct mold_stream *stream;
    if (s->streams < MOLD_STREAMS) stream = &s->stream[s->streams++];
    else stream = &s->stream[s->replace++ % MOLD_STREAMS];  /* damaged input only */
    memcpy(stream->session, session, 10);
    stream->expected = 0;
    return stream;
}

static uint64_t mold_session_number(const uint8_t *session) {  /* session as a number where it is one, for gap lists */
    uint64_t number = 0;
    for (int i = 0; i < 10; i++)
        if (session[i] >= '0' && session[i] <= '9') number = number * 10 + (session[i] - '0');
    return number;
}

/* Reads the packet header. 0 = nothing to decode in it. */
static int mold_packet(struct itch *s, const uint8_t *p, size_t size, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    s->left = s->skip = 0;
    if (size < MOLD_HEADER_BYTES) return sink_refuse(sink, TK_TRUNCATED), 0;
    uint64_t first = be64(p + 10);
    uint32_t count = be16(p + 18);
    if (first > INT64_MAX) return sink_refuse(sink, TK_BAD_HEADER), 0;
    struct mold_stream *stream = mold_stream_of(s, p);
    if (count == 0 || count == MOLD_END_OF_SESSION) {  /* names the next sequence number, carries nothing */
        sink->counts->heartbeats++;
        count = 0;
    }
    if (!stream->expected && first > 1) s->doubt = 1;
    if (stream->expected && first > stream->expected) {
        sink_gap(sink, mold_session_number(p), stream->expected, first, TK_NO_INSTRUMENT, ts_receive, ts_receive);
        s->doubt = 1;
        s->epoch++;
    }
    if (stream->expected && first < stream->expected) {
        s->skip = stream->expected - first < count ? stream->expected - first : count;
        sink->counts->duplicates += s->skip;
    }
    if (first + count > stream->expected) stream->expected = first + count;
    s->left = count;
    s->end = first + count;
    return 1;
}

static enum tk_stop itch_run(struct itch *s) {
    struct tk_frames *frames = &s->frames;
    struct tk_sink *sink = &s->sink;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) {
            if (sink_full(sink)) return TK_FULL;
            if (!s->fixed_day && (frame->ts_receive < s->day_from_ns || frame->ts_receive > s->day_last_ns))
                return TK_NEW_DAY;
            frame_count(frames, sink->counts);
            if (!p) { sink_refuse(sink, TK_TRUNCATED); continue; }
            s->left = UINT64_MAX;
            if (s->packets) {
                if (!mold_packet(s, p, frame->size, frame->ts_receive)) continue;
                frames->at = MOLD_HEADER_BYTES;
            }
        }
        while (s->left) {
            if (!s->packets && frames->at == frame->size) break;
            if (sink_full(sink)) return TK_FULL;
            if (frames->at + 2 > frame->size) { sink_refuse(sink, TK_TRUNCATED); break; }
            size_t size = be16(p + frames->at);
            if (size > frame->size - frames->at - 2) { sink_refuse(sink, TK_TRUNCATED); break; }
            const uint8_t *next = p + frames->at + 2 + size;  /* its order reference, if it has one, stands at 2 + 11 */
            if (frame->size - frames->at - 2 - size >= 21) orders_prefetch(&s->orders, be64(next + 13));
            if (s->skip) s->skip--;
            else if (itch_message(s, p + frames->at + 2, size, frame->ts_receive) == TK_MISS) return TK_MISS;
            frames->at += 2 + size;
            s->left--;
        }
        if (s->packets && !s->left && frames->at < frame->size) sink_refuse(sink, TK_TRAILING);
    }
    return TK_DONE;
}

#endif
