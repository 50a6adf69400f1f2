/* Decimal text -> the nearest double, exactly as strtod would round it.
 *
 * A mantissa of at most 2^53 and a power of ten of at most 10^22 are both exact doubles, and IEEE division of two exact
 * values rounds once: the quotient is the correctly rounded value (Clinger, "How to Read Floating Point Numbers
 * Accurately", 1990, the fast path). Whatever is longer, or has an exponent, is left to the slow path. */
#ifndef TK_DECODERS_DECIMAL_H
#define TK_DECODERS_DECIMAL_H

#include <stddef.h>
#include <stdint.h>

enum tk_decimal { TK_DECIMAL_BAD, TK_DECIMAL_EXACT, TK_DECIMAL_LONG };

static const double tk_power_of_ten[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                           1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static inline int tk_is_digit(uint8_t c) { return (uint8_t)(c - '0') < 10; }

/* Grammar: -?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?  LONG = follows the grammar, `value` is not set. */
static inline enum tk_decimal decimal_parse(const uint8_t *p, size_t size, double *value) {
    const uint8_t *end = p + size;
    int negative = p < end && *p == '-';
    p += negative;
    if (p == end || !tk_is_digit(*p)) return TK_DECIMAL_BAD;
    uint64_t mantissa = 0;
    int longer = 0;
    for (; p < end && tk_is_digit(*p); p++) {
        if (mantissa >= 900719925474099200u) longer = 1;  /* 100 * 2^53: too large already, and far from overflow */
        else mantissa = mantissa * 10 + (*p - '0');
    }
    size_t places = 0;
    if (p < end && *p == '.') {
        const uint8_t *first = ++p;
        if (p == end || !tk_is_digit(*p)) return TK_DECIMAL_BAD;
        size_t zeros = 0;  /* trailing so far: "61837.63000000" is 6183763 / 10^2 */
        for (; p < end && tk_is_digit(*p); p++) {
            if (*p == '0') { zeros++; continue; }
            for (zeros++; zeros; zeros--) {
                if (mantissa >= 900719925474099200u) longer = 1;
                else mantissa = mantissa * 10;
            }
            mantissa += longer ? 0 : (uint64_t)(*p - '0');
            places = (size_t)(p - first) + 1;
        }
    }
    if (p < end && (*p | 0x20) == 'e') {
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        if (p == end || !tk_is_digit(*p)) return TK_DECIMAL_BAD;
        while (p < end && tk_is_digit(*p)) p++;
        longer = 1;
    }
    if (p != end) return TK_DECIMAL_BAD;
    if (longer || mantissa > (uint64_t)1 << 53 || places > 22) return TK_DECIMAL_LONG;
    double result = (double)mantissa / tk_power_of_ten[places];
    *value = negative ? -result : result;
    return TK_DECIMAL_EXACT;
}

#endif
