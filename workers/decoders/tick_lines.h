/* What the kernels of text tables share: the lines of a frame, the columns of a line, whole numbers, calendar days.
 *
 * A frame is a run of whole lines. Nothing is copied; a column is a span of the frame. */
#ifndef TK_DECODERS_TICK_LINES_H
#define TK_DECODERS_TICK_LINES_H

#include "workers/decoders/decimal.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"

struct tk_span { const uint8_t *p; size_t size; };

/* The line that begins at `at` of the frame, without its end ("\n", "\r\n", or the frame's); moves `at` behind it. */
static inline struct tk_span next_line(const uint8_t *p, size_t end, size_t *at) {
    const uint8_t *newline = memchr(p + *at, '\n', end - *at);
    struct tk_span line = {p + *at, newline ? (size_t)(newline - p) - *at : end - *at};
    *at += line.size + (newline != NULL);
    if (line.size && line.p[line.size - 1] == '\r') line.size--;
    return line;
}

/* Takes the first column off the line. The last one leaves the line's pointer NULL: there is no more. */
static inline struct tk_span next_column(struct tk_span *line) {
    const uint8_t *comma = line->size ? memchr(line->p, ',', line->size) : NULL;
    struct tk_span column = {line->p, comma ? (size_t)(comma - line->p) : line->size};
    if (comma) *line = (struct tk_span){comma + 1, line->size - column.size - 1};
    else *line = (struct tk_span){NULL, 0};
    return column;
}

/* -?[0-9]{1,18}; 0 = it is not. */
static inline int whole_number(struct tk_span text, int64_t *value) {
    size_t sign = text.size && *text.p == '-';
    if (text.size == sign || text.size - sign > 18) return 0;
    int64_t found = 0;
    for (size_t i = sign; i < text.size; i++) {
        if (!tk_is_digit(text.p[i])) return 0;
        found = found * 10 + (text.p[i] - '0');
    }
    *value = sign ? -found : found;
    return 1;
}

/* Exactly `digits` digits as a number; -1 = they are not all digits. */
static inline int fixed_digits(const uint8_t *p, int digits) {
    int found = 0;
    for (int i = 0; i < digits; i++) {
        if (!tk_is_digit(p[i])) return -1;
        found = found * 10 + (p[i] - '0');
    }
    return found;
}

/* The digits after a decimal point as nanoseconds; what is finer is cut off. 0 = they are not all digits. */
static inline int fraction_ns(struct tk_span digits, int64_t *ns) {
    if (!digits.size) return 0;
    int64_t found = 0, scale = 1000000000;
    for (size_t i = 0; i < digits.size; i++) {
        if (!tk_is_digit(digits.p[i])) return 0;
        if (scale > 1) { scale /= 10; found += (digits.p[i] - '0') * scale; }
    }
    *ns = found;
    return 1;
}

/* Days from 1970-01-01 of the Gregorian calendar, 1 <= month <= 12; -1 = there is no such day from 1970 to 2261. Counted
 * with years that begin in March, so that a leap day is the last of its year. */
static inline int64_t days_from_civil(int year, int month, int day) {
    static const uint8_t length[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1970 || year > 2261 || month < 1 || month > 12) return -1;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day < 1 || day > length[month - 1] + (leap && month == 2)) return -1;
    int years = year - (month <= 2), months = (month + 9) % 12;
    return (int64_t)years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719468;
}

#endif
