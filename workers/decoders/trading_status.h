/* Trading status: halts, pauses and resumptions of any venue as status records of one kind.
 *
 * The text is STATE: VENUE'S OWN, e.g. "halted: ITCH H, reason T1". STATE is a word of shm/layout.py (TRADING_STATES), which every
 * format maps its codes to; after the colon stand the format, its code and what else it says. What no longer fits into the
 * text is left out, whole. Each such record is an event of its own: LAST_OF_BATCH.
 *
 * Where a venue tells operational halts apart from trading status (ITCH h, IEX O), both are kept, so that the word is what
 * holds after the message: `halted` until the operational halt is lifted, then what trading status said last. */
#ifndef TK_DECODERS_TRADING_STATUS_H
#define TK_DECODERS_TRADING_STATUS_H

#include "workers/decoders/sink.h"

enum tk_state {
    TK_UNKNOWN, TK_TRADING, TK_HALTED, TK_PAUSED, TK_QUOTE_ONLY, TK_AUCTION, TK_CLOSED, TK_STATES,
    TK_NO_CHANGE = TK_STATES /* of a mapping: the message says nothing about the state, and makes no record */
};

/* The text of a record as it grows. */
struct tk_said { char *at, *end; };

static inline void said(struct tk_said *text, const char *piece, size_t size) {
    if (size > (size_t)(text->end - text->at)) {
        text->end = text->at;
        return;
    }
    memcpy(text->at, piece, size);
    text->at += size;
}

/* `label` and a code of the venue, up to `size` characters that end with a blank or NUL; nothing if there are none. */
static inline void said_code(struct tk_said *text, const char *label, const uint8_t *code, size_t size) {
    char piece[40];
    size_t at = strlen(label), begin = at;
    memcpy(piece, label, at);
    for (size_t i = 0; i < size && at < sizeof piece && code[i] && code[i] != ' '; i++)
        piece[at++] = code[i] > ' ' && code[i] < 0x7F ? (char)code[i] : '?';
    if (at > begin) said(text, piece, at);
}

static inline void said_number(struct tk_said *text, const char *label, uint32_t number) {
    char piece[40], digits[10];
    size_t at = strlen(label), count = 0;
    memcpy(piece, label, at);
    do digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count) piece[at++] = digits[--count];
    said(text, piece, at);
}

/* A trading status record; more may be said with `text`. `format`: its name and a blank. Never NULL. */
static inline struct tk_record *sink_trading_status(struct tk_sink *sink, struct tk_said *text, enum tk_state state,
                                                    const char *format, uint32_t instrument_id, int64_t ts_event,
                                                    int64_t ts_receive) {
    static const char words[TK_STATES][16] = {
        TK_STATE_UNKNOWN ": ", TK_STATE_TRADING ": ", TK_STATE_HALTED ": ", TK_STATE_PAUSED ": ", TK_STATE_QUOTE_ONLY ": ",
        TK_STATE_AUCTION ": ", TK_STATE_CLOSED ": "};
    static const uint8_t sizes[TK_STATES] = {
        sizeof TK_STATE_UNKNOWN, sizeof TK_STATE_TRADING, sizeof TK_STATE_HALTED, sizeof TK_STATE_PAUSED,
        sizeof TK_STATE_QUOTE_ONLY, sizeof TK_STATE_AUCTION, sizeof TK_STATE_CLOSED};
    struct tk_record *record = sink_next(sink, TK_TYPE_STATUS, instrument_id, ts_event, ts_receive);
    record->flags |= TK_FLAG_LAST_OF_BATCH;
    record->status.code = TK_STATUS_TRADING_STATUS;
    if (ts_event < sink->counts->first_ns) sink->counts->first_ns = ts_event;
    if (ts_event > sink->counts->last_ns) sink->counts->last_ns = ts_event;
    memcpy(record->status.text, words[state], sizeof words[state]);
    *text = (struct tk_said){record->status.text + sizes[state] + 1, record->status.text + sizeof record->status.text};
    said(text, format, strlen(format));
    return record;
}

/* ---- two states of one instrument -------------------------------------------------------------------------------- */

/* What was said of an instrument, in one word of the decoder's: 0 = nothing yet. It holds within one epoch, which a decoder
 * ends where it may have missed messages. Bits 0-3: trading status; bit 4: operationally halted; above: the epoch. */
enum { TK_OPERATIONAL = 1 << 4, TK_EPOCH_SHIFT = 5 };

static inline uint32_t state_of_epoch(uint32_t memory, uint32_t epoch) {
    return memory >> TK_EPOCH_SHIFT == (epoch & UINT32_MAX >> TK_EPOCH_SHIFT) ? memory : epoch << TK_EPOCH_SHIFT | TK_UNKNOWN;
}

/* The state that holds. */
static inline enum tk_state state_held(uint32_t memory) {
    return memory & TK_OPERATIONAL ? TK_HALTED : (enum tk_state)(memory & 15);
}

/* Trading status says `state`. Returns the one that holds. */
static inline enum tk_state state_said(uint32_t *memory, uint32_t epoch, enum tk_state state) {
    *memory = (state_of_epoch(*memory, epoch) & ~(uint32_t)15) | (uint32_t)state;
    return state_held(*memory);
}

/* An operational halt begins, or is lifted. Returns the state that holds. */
static inline enum tk_state state_operational(uint32_t *memory, uint32_t epoch, int halted) {
    uint32_t was = state_of_epoch(*memory, epoch) & ~(uint32_t)TK_OPERATIONAL;
    *memory = halted ? was | TK_OPERATIONAL : was;
    return state_held(*memory);
}

/* ---- codes that several formats share ---------------------------------------------------------------------------- */

/* SecurityTradingStatus, tag 326: FIX 4.4 with Errata 20030618, volume 6, and CME's MDP 3.0 schema. */
static inline enum tk_state state_of_fix326(uint32_t code) {
    switch (code) {
    case 1: case 2: return TK_HALTED;              /* opening delay, halt */
    case 3: case 17: case 23: return TK_TRADING;   /* resume, ready to trade, fast market */
    case 5: case 15: case 21: case 22: case 24: case 25:
        return TK_AUCTION;                         /* price indications, pre-open, rotation, crosses */
    case 4: case 18: case 19: case 26: return TK_CLOSED;  /* no open or close, not available, not traded, post-close */
    case 6: case 7: case 8: case 9: case 10: case 11: case 12: case 13: case 14: case 16:
        return TK_NO_CHANGE;                       /* indications and imbalances */
    case 103: return TK_NO_CHANGE;                 /* CME says so */
    default: return TK_UNKNOWN;
    }
}

#endif
