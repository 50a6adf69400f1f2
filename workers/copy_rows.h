/* Rows of the table market_data in PostgreSQL's binary COPY format, from records. Used by workers/_copy_rows.pyx alone.
 *
 * Formats: PostgreSQL documentation, "COPY", section "Binary Format" (all numbers big-endian), and the sources
 * numeric.c (numeric_recv: count of base-10000 digits, weight, sign, display scale, digits) and jsonb.c (jsonb_recv: a
 * version byte, then the JSON text). A column of -1 bytes is NULL.
 *
 * A double becomes the shortest decimal that reads back as the same double. Nearly all prices have at most 15 digits,
 * for which that is found by scaling with an exact power of ten: r / 10^k is correctly rounded where both are exact
 * doubles, so that r / 10^k == value proves it. The few others take printf and strtod.
 */
#ifndef TK_COPY_ROWS_H
#define TK_COPY_ROWS_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/include/tickengine.h"

enum {
    TK_ROW_MAX = 1280,      /* bytes of the longest row, with room to spare */
    TK_ROW_TEXT_MAX = 64,   /* of symbol, type, source, engine each; callers cut longer ones */
};

static const int64_t TK_POSTGRES_EPOCH_US = INT64_C(946684800000000); /* 2000-01-01 */

static inline char *tk_put16(char *at, uint32_t value)
{
    at[0] = (char)(value >> 8), at[1] = (char)value;
    return at + 2;
}

static inline char *tk_put32(char *at, uint32_t value)
{
    return tk_put16(tk_put16(at, value >> 16), value & 0xFFFF);
}

static inline char *tk_put64(char *at, uint64_t value)
{
    return tk_put32(tk_put32(at, (uint32_t)(value >> 32)), (uint32_t)value);
}

static inline char *tk_put_bytes(char *at, const void *bytes, size_t length)
{
    memcpy(at, bytes, length);
    return at + length;
}

static inline char *tk_put_text(char *at, const char *text, size_t length)
{
    return tk_put_bytes(tk_put32(at, (uint32_t)length), text, length);
}

static inline char *tk_put_null(char *at)
{
    return tk_put32(at, UINT32_MAX);
}

/* |value| = digits / 10^scale, the shortest such decimal; scale may be negative. value must be finite. */
static inline void tk_decimal(double value, uint64_t *digits, int *scale)
{
    static const double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12};
    double size = fabs(value);
    for (int k = 0; k < (int)(sizeof POWERS / sizeof *POWERS); ++k) {
        double scaled = size * POWERS[k];
        if (scaled >= 1e15)
            break;
        double whole = nearbyint(scaled);
        if (whole / POWERS[k] == size) {
            *digits = (uint64_t)whole;
            *scale = k;
            return;
        }
    }
    /* Digits after the first; numbers near the smallest there are have fewer than 15 that count. Where the exact value
     * lies half-way between two decimals, printf's choice may be the one that does not read back, and the next does. */
    uint64_t found = 0;
    int exponent = 0;
    for (int precision = size < 1e-290 ? 0 : 14; precision <= 16; ++precision) {
        char text[40];
        snprintf(text, sizeof text, "%.*e", precision, size);
        const char *at = text;
        for (found = 0; *at && *at != 'e'; ++at)
            if (*at >= '0' && *at <= '9')
                found = found * 10 + (uint64_t)(*at - '0');
        exponent = atoi(at + 1) - precision;
        if (precision == 16 || strtod(text, NULL) == size)
            break;
        snprintf(text, sizeof text, "%llue%d", (unsigned long long)found + 1, exponent);
        if (strtod(text, NULL) == size) {
            ++found;
            break;
        }
    }
    for (; found && found % 10 == 0; ++exponent)
        found /= 10;
    *digits = found;
    *scale = -exponent;
}

static inline char *tk_put_numeric(char *at, double value)
{
    if (!isfinite(value))
        return tk_put_null(at);
    static const uint32_t SMALL[] = {1, 10, 100, 1000};
    uint64_t digits;
    int scale, offset;
    tk_decimal(value, &digits, &scale);
    unsigned __int128 whole = digits;
    if (scale >= 0) { /* digits behind the point fill whole groups of four */
        int groups = (scale + 3) / 4;
        whole *= SMALL[groups * 4 - scale];
        offset = -groups;
    } else {
        whole *= SMALL[-scale % 4];
        offset = -scale / 4;
        scale = 0;
    }
    uint16_t group[8];
    int count = 0;
    for (; whole; whole /= 10000)
        group[count++] = (uint16_t)(whole % 10000); /* lowest first */
    int low = 0;
    while (low < count && group[low] == 0)
        ++low;
    int weight = count ? count - 1 + offset : 0;
    at = tk_put32(at, (uint32_t)(8 + 2 * (count - low)));
    at = tk_put16(at, (uint32_t)(count - low));
    at = tk_put16(at, (uint32_t)weight & 0xFFFF);
    at = tk_put16(at, value < 0 && count ? 0x4000 : 0);
    at = tk_put16(at, (uint32_t)scale);
    for (int index = count - 1; index >= low; --index)
        at = tk_put16(at, group[index]);
    return at;
}

static inline char *tk_put_unsigned(char *at, uint64_t value)
{
    char reversed[20];
    int count = 0;
    do
        reversed[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count)
        *at++ = reversed[--count];
    return at;
}

static inline char *tk_put_signed(char *at, int64_t value)
{
    if (value >= 0)
        return tk_put_unsigned(at, (uint64_t)value);
    *at++ = '-';
    return tk_put_unsigned(at, -(uint64_t)value);
}

#define TK_PUT_KEY(at, name) tk_put_bytes(at, ", \"" name "\": ", sizeof(", \"" name "\": ") - 1)

static inline char *tk_json_unsigned(char *at, const char *key, size_t key_bytes, uint64_t value)
{
    return tk_put_unsigned(tk_put_bytes(at, key, key_bytes), value);
}

/* A member of the JSON object; nothing if the value is undefined. */
static inline char *tk_json_double(char *at, const char *key, size_t key_bytes, double value)
{
    uint64_t digits;
    int scale;
    if (!isfinite(value))
        return at;
    at = tk_put_bytes(at, key, key_bytes);
    if (value < 0)
        *at++ = '-';
    tk_decimal(value, &digits, &scale);
    if (scale <= 0 || scale > 12) {
        at = tk_put_unsigned(at, digits);
        if (scale) {
            *at++ = 'e';
            at = tk_put_signed(at, -scale);
        }
        return at;
    }
    uint64_t power = 1;
    for (int k = 0; k < scale; ++k)
        power *= 10;
    at = tk_put_unsigned(at, digits / power);
    *at++ = '.';
    for (uint64_t rest = digits % power; power > 1; rest %= power) {
        power /= 10;
        *at++ = (char)('0' + rest / power);
    }
    return at;
}

static inline char *tk_put_base64(char *at, const unsigned char *bytes, size_t length)
{
    static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (; length >= 3; bytes += 3, length -= 3) {
        uint32_t word = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 8 | bytes[2];
        *at++ = LETTERS[word >> 18], *at++ = LETTERS[word >> 12 & 63];
        *at++ = LETTERS[word >> 6 & 63], *at++ = LETTERS[word & 63];
    }
    if (length) {
        uint32_t word = (uint32_t)bytes[0] << 16 | (length == 2 ? (uint32_t)bytes[1] << 8 : 0);
        *at++ = LETTERS[word >> 18], *at++ = LETTERS[word >> 12 & 63];
        *at++ = length == 2 ? LETTERS[word >> 6 & 63] : '=', *at++ = '=';
    }
    return at;
}

#define TK_JSON_U(at, name, value) tk_json_unsigned(at, ", \"" name "\": ", sizeof(", \"" name "\": ") - 1, value)
#define TK_JSON_F(at, name, value) tk_json_double(at, ", \"" name "\": ", sizeof(", \"" name "\": ") - 1, value)

/* The whole record in few bytes: 16 of bits, one for each of its bytes that is not zero (byte i: bit i % 8 of byte i / 8),
 * then those bytes. ts_receive and ts_publish stand as what of them differs from ts_event (XOR): their high bytes do not.
 * The server looks at each character of the text that this becomes. Returns the bytes written, at most 144. */
static inline size_t tk_pack(unsigned char *out, const struct tk_record *r)
{
    uint64_t words[16];
    memcpy(words, r, sizeof words);
    words[2] ^= words[1];
    words[3] ^= words[1];
    unsigned char bytes[128];
    memcpy(bytes, words, sizeof bytes); /* little-endian, as records are */
    size_t length = 16;
    for (size_t group = 0; group < 16; ++group) {
        unsigned bits = 0;
        if (words[group])
            for (size_t bit = 0; bit < 8; ++bit) {
                unsigned char byte = bytes[group * 8 + bit];
                out[length] = byte;
                length += byte != 0;
                bits |= (unsigned)(byte != 0) << bit;
            }
        out[group] = (unsigned char)bits;
    }
    return length;
}

/* The whole record, from which an equal one is made again, and by name some of what the columns leave out. Not all of
 * it: the server takes apart each member of each row (README). `opening` is the text of the member that all records of
 * a batch share, "{" included. */
static inline char *tk_put_metadata(char *at, const struct tk_record *r, const char *opening, size_t opening_bytes)
{
    char *length = at;
    at = tk_put32(at, 0);
    *at++ = 1; /* version of the binary form of jsonb */
    at = tk_put_bytes(at, opening, opening_bytes);
    at = TK_JSON_U(at, "sequence", r->sequence);
    if (r->flags)
        at = TK_JSON_U(at, "flags", r->flags);
    if (r->side == TK_SIDE_BUY)
        at = TK_PUT_KEY(at, "side"), at = tk_put_bytes(at, "\"buy\"", 5);
    else if (r->side == TK_SIDE_SELL)
        at = TK_PUT_KEY(at, "side"), at = tk_put_bytes(at, "\"sell\"", 6);
    if (r->record_type == TK_TYPE_BAR) {
        at = TK_JSON_F(at, "open", r->bar.open);
        at = TK_JSON_F(at, "high", r->bar.high);
        at = TK_JSON_F(at, "low", r->bar.low);
        at = TK_JSON_F(at, "vwap", r->bar.vwap);
        at = TK_JSON_U(at, "interval_s", r->bar.interval_s);
        at = TK_JSON_U(at, "trade_count", r->bar.trade_count);
    }
    unsigned char packed[145]; /* one more than can count: a zero byte is written too, and then overwritten */
    at = TK_PUT_KEY(at, "packed");
    *at++ = '"';
    at = tk_put_base64(at, packed, tk_pack(packed, r));
    *at++ = '"', *at++ = '}';
    tk_put32(length, (uint32_t)(at - length - 4));
    return at;
}

/* One row: time, symbol, data_type, source, price, volume, bid, ask, metadata. Returns one past its last byte. */
static inline char *tk_put_row(char *at, const struct tk_record *r, const char *symbol, size_t symbol_bytes,
                               const char *type, size_t type_bytes, const char *source, size_t source_bytes,
                               const char *opening, size_t opening_bytes)
{
    int64_t us = r->ts_event / 1000 - (r->ts_event % 1000 < 0);
    double price = NAN, volume = NAN, bid = NAN, ask = NAN;
    switch (r->record_type) {
    case TK_TYPE_TICK:
    case TK_TYPE_TRADE:
        price = r->tick.price, volume = r->tick.size;
        break;
    case TK_TYPE_QUOTE:
        bid = r->quote.bid, ask = r->quote.ask;
        break;
    case TK_TYPE_BAR:
        price = r->bar.close, volume = r->bar.volume;
        break;
    case TK_TYPE_LEVEL2:
        price = r->level2.price, volume = r->level2.size, bid = r->level2.best_bid, ask = r->level2.best_ask;
        break;
    }
    at = tk_put16(at, 9);
    at = tk_put64(tk_put32(at, 8), (uint64_t)(us - TK_POSTGRES_EPOCH_US));
    at = tk_put_text(at, symbol, symbol_bytes);
    at = tk_put_text(at, type, type_bytes);
    at = tk_put_text(at, source, source_bytes);
    at = tk_put_numeric(at, price);
    at = tk_put_numeric(at, volume);
    at = tk_put_numeric(at, bid);
    at = tk_put_numeric(at, ask);
    return tk_put_metadata(at, r, opening, opening_bytes);
}

#endif
