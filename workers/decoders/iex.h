/* IEX-TP segments with TOPS 1.6 and DEEP 1.0 messages -> records.
 *
 * Layouts: "IEX Transport Protocol Specification" 1.25, Outbound Segment (40-byte header, little-endian);
 * "TOPS Specification" 1.6, Message Formats; "DEEP Specification" 1.0, Price Level Update. Prices are i64 in 1e-4.
 *
 *   Q quote update      -> quote; a side with size 0 has no quote: NaN
 *   T trade report      -> trade; conditions = sale condition flags, condition = their letters (F T I 8 X)
 *   B trade break       -> trade flagged CORRECTED, with the broken trade's id, price and size
 *   X official price    -> tick of size 0, condition Q (opening) or M (closing)
 *   8, 5 price level    -> level2 of the buy or sell side; last of an event: LAST_OF_BATCH
 *   H trading status    -> status: H halted, P paused, O auction (orders are accepted), T trading, with the venue's reason
 *   O operational halt  -> status: O halted; N as trading status said last
 *   S D P A I E         -> counted: the record has no body for them
 *
 * source_sequence of a status is the number of its message in the session.
 *
 * With `book`, price levels are kept: level2 records carry best_bid and best_ask, and the last one of an event is followed by a quote
 * if the best prices or sizes have changed. A new session of a channel starts with empty books. Joined late, or after a gap,
 * levels may be missing or stale until then: such quotes are flagged INCOMPLETE.
 */
#ifndef TK_DECODERS_IEX_H
#define TK_DECODERS_IEX_H

#include "workers/decoders/book.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"
#include "workers/decoders/trading_status.h"

enum { IEX_HEADER_BYTES = 40, IEX_STREAMS = 64, IEX_TOPS = 0x8003, IEX_DEEP = 0x8004 };

struct iex_stream { uint64_t key, expected; };  /* channel << 32 | session; sequence of the next message */

struct iex {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols;
    struct iex_stream stream[IEX_STREAMS];
    struct tk_books books;
    int book, doubt;    /* books are kept; they may lack levels */
    unsigned streams, replace;
    uint64_t skip;      /* messages of this segment that were had before */
    uint64_t end;       /* the number after its last message */
    uint32_t left;      /* messages of this segment not decoded yet */
    uint32_t epoch;     /* of what symbols' `last[0]` says of their trading status */
};

/* Bytes of each message type, 0 = unknown. */
static inline unsigned iex_length(uint8_t type) {
    switch (type) {
    case 'Q': return 42;
    case 'T': case 'B': return 38;
    case 'H': return 22;
    case 'O': case 'I': case 'E': return 18;
    case 'P': return 19;
    case 'A': return 80;
    case 'D': return 31;
    case 'S': return 10;
    case 'X': return 26;
    case '8': case '5': return 30;
    default: return 0;
    }
}

static inline double iex_price(const uint8_t *p) { return (double)(int64_t)le64(p) / 1e4; }

static void iex_trade(struct tk_record *record, const uint8_t *m) {
    static const char letters[5] = {'F', 'T', 'I', '8', 'X'};  /* bits 7 to 3 of the sale condition flags */
    set_trade(record, iex_price(m + 22), le32(m + 18), le64(m + 30), TK_SIDE_NONE);
    record->conditions = m[1];
    for (unsigned bit = 0, n = 0; bit < 5; bit++)
        if (m[1] & 0x80u >> bit) record->tick.condition[n++] = letters[bit];
}

/* A price level into its book; a quote if the event is over and the best has changed. */
static void iex_level(struct iex *s, struct tk_record *record, const uint8_t *m, uint32_t id, int64_t ts_event,
                      int64_t ts_receive) {
    struct book *book = books_find(&s->books, id);
    if (!book || !book_set(book, record->side, (int64_t)le64(m + 22), le32(m + 18))) {
        sink_refuse(&s->sink, TK_NO_MEMORY);
        return;
    }
    book_stamp(record, book, 1e4);
    if (!(m[1] & 1) || !book_changed(book)) return;
    book_quote(&s->sink, book, id, ts_event, ts_receive, 0, 1e4);
    if (s->doubt) sink_last(&s->sink)->flags |= TK_FLAG_INCOMPLETE;
}

/* H and O: whether the instrument is traded. */
static void iex_status(struct iex *s, struct tk_symbol *symbol, const uint8_t *m, int64_t ts_event, int64_t ts_receive) {
    int operational = m[0] == 'O';
    uint32_t memory = (uint32_t)symbol->last[0];
    enum tk_state state, told = m[1] == 'T' ? TK_TRADING : m[1] == 'H' ? TK_HALTED : m[1] == 'P' ? TK_PAUSED
                                : m[1] == 'O' ? TK_AUCTION : TK_UNKNOWN;
    if (operational && m[1] != 'O' && m[1] != 'N') { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    state = operational ? state_operational(&memory, s->epoch, m[1] == 'O') : state_said(&memory, s->epoch, told);
    symbol->last[0] = memory;
    struct tk_said text;
    struct tk_record *record = sink_trading_status(&s->sink, &text, state, "IEX ", symbol->id, ts_event, ts_receive);
    record->source_sequence = s->end - s->left;
    said_code(&text, operational ? "operational " : "", m + 1, 1);
    if (operational) return;
    said_code(&text, ", reason ", m + 18, 4);
    if (state != told) said(&text, ", operational halt", 18);
}

/* One message. TK_MISS asks for its symbol and changes nothing; anything else consumes it. */
static inline enum tk_stop iex_message(struct iex *s, const uint8_t *m, size_t size, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    unsigned wanted = size ? iex_length(m[0]) : 0;
    if (!wanted || size < wanted) {
        if (size) sink->counts->messages[m[0]]++;
        sink_refuse(sink, !size ? TK_TRUNCATED : wanted ? TK_BAD_LENGTH : TK_UNKNOWN_TYPE);
        return TK_DONE;
    }
    struct tk_symbol *symbol = NULL;
    switch (m[0]) {
    case 'Q': case 'T': case 'B': case 'X': case '8': case '5': case 'H': case 'O': {
        uint64_t key[4] = {le64(m + 10), 0, 0, 0};
        symbol = symbols_find(&s->symbols, key);
        if (!symbol) return TK_MISS;
        if (symbol->id == TK_REFUSED) {
            sink->counts->messages[m[0]]++;
            sink_refuse(sink, TK_BAD_SYMBOL);
            return TK_DONE;
        }
        break;
    }
    default: break;
    }
    sink->counts->messages[m[0]]++;
    if (!symbol) return TK_DONE;
    int64_t ts_event = (int64_t)le64(m + 2);
    struct tk_record *record;
    switch (m[0]) {
    case 'Q': {
        uint32_t bid_size = le32(m + 18), ask_size = le32(m + 38);
        record = sink_next(sink, TK_TYPE_QUOTE, symbol->id, ts_event, ts_receive);
        set_quote(record, bid_size ? iex_price(m + 22) : NAN, bid_size, ask_size ? iex_price(m + 30) : NAN, ask_size);
        record->conditions = m[1];
        break;
    }
    case 'T': case 'B':
        record = sink_next(sink, TK_TYPE_TRADE, symbol->id, ts_event, ts_receive);
        iex_trade(record, m);
        if (m[0] == 'B') record->flags |= TK_FLAG_CORRECTED;
        break;
    case 'X':
        record = sink_next(sink, TK_TYPE_TICK, symbol->id, ts_event, ts_receive);
        set_trade(record, iex_price(m + 18), 0.0, 0, TK_SIDE_NONE);
        record->tick.condition[0] = (char)m[1];
        break;
    case 'H': case 'O': iex_status(s, symbol, m, ts_event, ts_receive); break;
    default: {
        uint32_t shares = le32(m + 18);
        record = sink_next(sink, TK_TYPE_LEVEL2, symbol->id, ts_event, ts_receive);
        set_level2(record, m[0] == '8' ? TK_SIDE_BUY : TK_SIDE_SELL, iex_price(m + 22), shares,
                   shares ? TK_ACTION_MODIFY : TK_ACTION_DELETE);
        if (m[1] & 1) record->flags |= TK_FLAG_LAST_OF_BATCH;
        if (s->book) iex_level(s, record, m, symbol->id, ts_event, ts_receive);
        break;
    }
    }
    return TK_DONE;
}

static struct iex_stream *iex_stream_of(struct iex *s, uint64_t key) {
    for (unsigned i = 0; i < s->streams; i++)
        if (s->stream[i].key == key) return &s->stream[i];
    struct iex_stream *stream;
    if (s->streams < IEX_STREAMS) stream = &s->stream[s->streams++];
    else stream = &s->stream[s->replace++ % IEX_STREAMS];  /* damaged input only: a host joins a handful of channels */
    *stream = (struct iex_stream){key, 0};
    for (unsigned i = 0; i < s->streams && s->book; i++)
        if (&s->stream[i] != stream && s->stream[i].key >> 32 == key >> 32) {
            books_clear(&s->books);
            s->doubt = 0;
            break;
        }
    s->epoch++;
    return stream;
}

/* Reads the segment header. 0 = the segment is not usable and was counted. */
static int iex_segment(struct iex *s, const uint8_t *p, size_t size, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    s->left = 0;
    s->skip = 0;
    if (size < IEX_HEADER_BYTES) return sink_refuse(sink, TK_TRUNCATED), 0;
    uint16_t protocol = le16(p + 2);
    if (p[0] != 1 || (protocol != IEX_TOPS && protocol != IEX_DEEP)) return sink_refuse(sink, TK_FOREIGN), 0;
    uint32_t count = le16(p + 14);
    uint64_t first = le64(p + 24);
    if (first > INT64_MAX) return sink_refuse(sink, TK_BAD_HEADER), 0;
    if ((size_t)le16(p + 12) + IEX_HEADER_BYTES < size) sink_refuse(sink, TK_TRAILING);
    struct iex_stream *stream = iex_stream_of(s, (uint64_t)le32(p + 4) << 32 | le32(p + 8));
    if (!count) sink->counts->heartbeats++;
    if (!stream->expected && first > 1) s->doubt = 1;
    if (stream->expected && first > stream->expected) {
        sink_gap(sink, le32(p + 8), stream->expected, first, TK_NO_INSTRUMENT, (int64_t)le64(p + 32), ts_receive);
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

static enum tk_stop iex_run(struct iex *s) {
    struct tk_frames *frames = &s->frames;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) {
            if (sink_full(&s->sink)) return TK_FULL;
            frame_count(frames, s->sink.counts);
            if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
            if (!iex_segment(s, p, frame->size, frame->ts_receive)) continue;
            frames->at = IEX_HEADER_BYTES;
        }
        /* the payload ends where its header says, or with the datagram if that comes first */
        size_t end = IEX_HEADER_BYTES + (size_t)le16(p + 12);
        if (end > frame->size) end = frame->size;
        for (; s->left; s->left--) {
            if (sink_full(&s->sink)) return TK_FULL;
            if (frames->at + 2 > end) { sink_refuse(&s->sink, TK_TRUNCATED); break; }
            size_t size = le16(p + frames->at);
            if (size > end - frames->at - 2) { sink_refuse(&s->sink, TK_TRUNCATED); break; }
            if (s->skip) s->skip--;
            else if (iex_message(s, p + frames->at + 2, size, frame->ts_receive) == TK_MISS) return TK_MISS;
            frames->at += 2 + size;
        }
    }
    return TK_DONE;
}

#endif
