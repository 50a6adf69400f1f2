/* Quotes of currencies as lines of text: TrueFX, HistData, and tables with a header.
 *
 *   EUR/USD,20090501 00:00:00.247,1.3228,1.32289      TrueFX: the pair in each line, UTC
 *   20200101 170000065,1.121200,1.121720,0            HistData: New York's winter time all year (UTC-5), a volume
 *   timestamp,bid,ask                                 a header is counted; the columns have this order
 *   2013-01-01 22:00:00.295000+00:00,86.655,86.728    ISO 8601; without an offset UTC
 *
 * Each line -> quote. These venues state no sizes: NaN. What follows the ask is ignored. */
#ifndef TK_DECODERS_TRUEFX_H
#define TK_DECODERS_TRUEFX_H

#include "workers/decoders/symbols.h"
#include "workers/decoders/tick_lines.h"

enum truefx_kind { TRUEFX_QUOTE, TRUEFX_HEADER };

struct truefx {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols;
    uint32_t id;             /* of lines that name no pair */
};

static const int64_t TRUEFX_EST_NS = INT64_C(5) * 3600 * 1000000000;

static inline int truefx_letter(uint8_t c) { return (uint8_t)((c | 0x20) - 'a') < 26; }

/* HH:MM:SS[.fraction] or HHMMSSmmm as ns of the day; 0 = it is neither. `left` is what follows of the text. */
static int truefx_clock(struct tk_span text, int64_t *ns, struct tk_span *left) {
    int spaced = text.size >= 8 && text.p[2] == ':' && text.p[5] == ':', step = spaced ? 3 : 2;
    if (text.size < (spaced ? 8u : 9u)) return 0;
    int hours = fixed_digits(text.p, 2), minutes = fixed_digits(text.p + step, 2), seconds = fixed_digits(text.p + 2 * step, 2);
    if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59 || seconds < 0 || seconds > 59) return 0;
    int64_t fraction = 0;
    size_t used = spaced ? 8 : 9;
    if (!spaced) {
        int ms = fixed_digits(text.p + 6, 3);
        if (ms < 0) return 0;
        fraction = (int64_t)ms * 1000000;
    } else if (text.size > 8 && text.p[8] == '.') {
        for (used = 9; used < text.size && tk_is_digit(text.p[used]); used++) {}
        if (!fraction_ns((struct tk_span){text.p + 9, used - 9}, &fraction)) return 0;
    }
    *ns = ((int64_t)hours * 3600 + minutes * 60 + seconds) * 1000000000 + fraction;
    *left = (struct tk_span){text.p + used, text.size - used};
    return 1;
}

/* "", Z, +HH:MM, +HHMM or +HH as ns east of UTC; 0 = it is none of these. */
static int truefx_offset(struct tk_span text, int64_t *ns) {
    *ns = 0;
    if (!text.size || (text.size == 1 && *text.p == 'Z')) return 1;
    int minutes = 0, hours = text.size >= 3 ? fixed_digits(text.p + 1, 2) : -1;
    if (text.size == 6 && text.p[3] == ':') minutes = fixed_digits(text.p + 4, 2);
    else if (text.size == 5) minutes = fixed_digits(text.p + 3, 2);
    else if (text.size != 3) return 0;
    if ((*text.p != '+' && *text.p != '-') || hours < 0 || hours > 23 || minutes < 0 || minutes > 59) return 0;
    *ns = ((int64_t)hours * 60 + minutes) * 60000000000 * (*text.p == '-' ? -1 : 1);
    return 1;
}

static int truefx_time(struct tk_span text, int64_t *ns) {
    int dashed = text.size >= 10 && text.p[4] == '-' && text.p[7] == '-', step = dashed ? 1 : 0;
    size_t date = dashed ? 10 : 8;
    if (text.size < date + 2 || (text.p[date] != ' ' && text.p[date] != 'T')) return 0;
    int64_t days = days_from_civil(fixed_digits(text.p, 4), fixed_digits(text.p + 4 + step, 2),
                                   fixed_digits(text.p + 6 + 2 * step, 2));
    struct tk_span clock = {text.p + date + 1, text.size - date - 1}, left;
    int64_t of_day, offset = 0;
    if (days < 0 || !truefx_clock(clock, &of_day, &left) || !truefx_offset(left, &offset)) return 0;
    if (clock.p[2] != ':') offset = left.size ? offset : -TRUEFX_EST_NS;
    *ns = days * 86400000000000 + of_day - offset;
    return 1;
}

static int truefx_price(struct tk_span text, double *value) {
    return decimal_parse(text.p, text.size, value) == TK_DECIMAL_EXACT && *value >= 0;
}

/* One line; TK_MISS asks for its symbol and changes nothing, anything else is done with it. */
static enum tk_stop truefx_line(struct truefx *s, struct tk_span line) {
    uint32_t id = s->id;
    if (truefx_letter(*line.p)) {
        struct tk_span symbol = next_column(&line);
        if (!memchr(symbol.p, '/', symbol.size)) {
            s->sink.counts->messages[TRUEFX_HEADER]++;
            return TK_DONE;
        }
        uint64_t key[4];
        if (!line.p || !symbols_key(key, symbol.p, symbol.size)) {
            sink_refuse(&s->sink, TK_BAD_SYMBOL);
            return TK_DONE;
        }
        const struct tk_symbol *found = symbols_find(&s->symbols, key);
        if (!found) return TK_MISS;
        id = found->id;
    }
    struct tk_span columns[3];
    for (int i = 0; i < 3; i++) {
        if (!line.p) { sink_refuse(&s->sink, TK_BAD_LENGTH); return TK_DONE; }
        columns[i] = next_column(&line);
    }
    int64_t ts_event;
    double bid, ask;
    if (!truefx_time(columns[0], &ts_event) || !truefx_price(columns[1], &bid) || !truefx_price(columns[2], &ask)) {
        sink_refuse(&s->sink, TK_BAD_VALUE);
        return TK_DONE;
    }
    s->sink.counts->messages[TRUEFX_QUOTE]++;
    if (id == TK_REFUSED) { sink_refuse(&s->sink, TK_BAD_SYMBOL); return TK_DONE; }
    set_quote(sink_next(&s->sink, TK_TYPE_QUOTE, id, ts_event, 0), bid, NAN, ask, NAN);
    return TK_DONE;
}

static enum tk_stop truefx_run(struct truefx *s) {
    struct tk_frames *frames = &s->frames;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        size_t end = frames->frame[frames->index].size;
        if (!frames->begun) frame_count(frames, s->sink.counts);
        if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
        while (frames->at < end) {
            if (sink_full(&s->sink)) return TK_FULL;
            size_t behind = frames->at;
            struct tk_span line = next_line(p, end, &behind);
            if (line.size && truefx_line(s, line) == TK_MISS) return TK_MISS;
            frames->at = behind;
        }
    }
    return TK_DONE;
}

#endif
