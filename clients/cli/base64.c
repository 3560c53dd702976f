/* base64.c - see base64.h. */
#include "base64.h"

#include <stdlib.h>

static int digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Four characters into three bytes; `n` of them are digits, the rest padding. False when they are no digits, or when
 * bits that are thrown away are set. */
static int decode_group(unsigned char out[3], const char *text, int n)
{
    unsigned v = 0;
    for (int i = 0; i < 4; i++) {
        int d = i < n ? digit(text[i]) : 0;
        if (d < 0)
            return 0;
        v = v << 6 | (unsigned)d;
    }
    out[0] = (unsigned char)(v >> 16);
    out[1] = (unsigned char)(v >> 8);
    out[2] = (unsigned char)v;
    return (n == 4) | (n == 3 && !out[2]) | (n == 2 && !out[1] && !out[2]);
}

unsigned char *dn_base64_decode(size_t *out_len, const char *text, size_t len)
{
    if (len % 4)
        return NULL;
    size_t pad = len && text[len - 1] == '=' ? text[len - 2] == '=' ? 2 : 1 : 0;
    unsigned char *out = malloc(len / 4 * 3 + 1), *end = out;
    for (size_t i = 0; out && i < len; i += 4, end += 3) {
        if (!decode_group(end, text + i, i + 4 == len ? 4 - (int)pad : 4)) {
            free(out);
            return NULL;
        }
    }
    *out_len = len / 4 * 3 - pad;
    return out;
}
