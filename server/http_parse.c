/* http_parse.c - see http_parse.h. Everything is bounded by the limit on a request's head. */
#include "http_parse.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_alnum(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

static bool only(const char *s, const char *also)
{
    if (!*s)
        return false;
    for (; *s; s++)
        if (!is_alnum(*s) && !strchr(also, *s))
            return false;
    return true;
}

bool dn_is_token(const char *s) { return only(s, "!#$%&'*+-.^_`|~"); }

bool dn_is_request_id(const char *s) { return strlen(s) <= 64 && only(s, "._-"); }

bool dn_is_visible(const char *s)
{
    for (; *s; s++)
        if (*s <= ' ' || *s >= 0x7f)
            return false;
    return true;
}

bool dn_is_length(const char *s)
{
    size_t digits = strspn(s, "0123456789");
    return digits >= 1 && digits <= 18 && !s[digits];
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool dn_percent_decode(char *s, bool plus)
{
    char *to = s;
    for (; *s; s++, to++) {
        *to = plus && *s == '+' ? ' ' : *s;
        if (*s != '%')
            continue;
        int high = hex(s[1]), low = high < 0 ? -1 : hex(s[2]);
        if (low < 0 || high * 16 + low < 0x20 || high * 16 + low == 0x7f)
            return false;
        *to = (char)(high * 16 + low);
        s += 2;
    }
    *to = 0;
    return true;
}

bool dn_host_split(const char *host, char *name, size_t name_size, int *port)
{
    bool v6 = *host == '[';
    const char *from = host + v6, *end = from + strcspn(from, v6 ? "]" : ":"), *after = end + (v6 && *end);
    size_t n = (size_t)(end - from);
    if (n == 0 || n >= name_size || (v6 && *end != ']') || (*after && *after != ':'))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!is_alnum(from[i]) && !strchr(v6 ? ":.%" : "-._", from[i]))
            return false;
        name[i] = (char)tolower((unsigned char)from[i]);
    }
    name[n] = 0;
    *port = -1;
    if (!*after)
        return true;
    size_t digits = strspn(after + 1, "0123456789");
    if (digits < 1 || digits > 5 || after[1 + digits])
        return false;
    *port = atoi(after + 1);
    return *port <= 65535;
}

bool dn_host_is_loopback(const char *name)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (strcmp(name, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, name, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, name, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

bool dn_origin_is_host(const char *origin, const char *host)
{
    bool tls = strncasecmp(origin, "https://", 8) == 0;
    if (!tls && strncasecmp(origin, "http://", 7) != 0)
        return false;
    char a[256], b[256];
    int port_a, port_b, port_default = tls ? 443 : 80;
    if (!dn_host_split(origin + (tls ? 8 : 7), a, sizeof a, &port_a) || !dn_host_split(host, b, sizeof b, &port_b))
        return false;
    return strcmp(a, b) == 0 && (port_a < 0 ? port_default : port_a) == (port_b < 0 ? port_default : port_b);
}

/* ---- media types ----------------------------------------------------------------------------------------- */

/* The range from..end without blanks, in lower case. */
static bool copy_trimmed(char *out, size_t out_size, const char *from, const char *end)
{
    while (from < end && (*from == ' ' || *from == '\t'))
        from++;
    while (end > from && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    size_t n = (size_t)(end - from);
    if (n >= out_size)
        return false;
    for (size_t i = 0; i < n; i++)
        out[i] = (char)tolower((unsigned char)from[i]);
    out[n] = 0;
    return true;
}

/* The value of parameter `name` in ";a=b; c=d" (lower-cased, unquoted) into out; 0 absent, 1 there, -1 malformed. */
static int media_parameter(const char *s, const char *end, const char *name, char *out, size_t out_size)
{
    size_t name_len = strlen(name);
    while (s < end) {
        const char *from = s + 1, *next = memchr(from, ';', (size_t)(end - from));
        s = next ? next : end;
        char text[64];
        if (!copy_trimmed(text, sizeof text, from, s) || strncmp(text, name, name_len) != 0 || text[name_len] != '=')
            continue;
        const char *value = text + name_len + 1;
        size_t n = strlen(value);
        if (n >= 2 && value[0] == '"' && value[n - 1] == '"')
            value++, n -= 2;
        if (n >= out_size)
            return -1;
        memcpy(out, value, n);
        out[n] = 0;
        return 1;
    }
    return 0;
}

bool dn_media_type(const char *header, char *out, size_t out_size)
{
    const char *end = header + strlen(header), *semicolon = header + strcspn(header, ";");
    char type[128], charset[32];
    if (!copy_trimmed(type, sizeof type, header, semicolon) || strlen(type) >= out_size)
        return false;
    char *slash = strchr(type, '/');
    if (!slash || strchr(slash + 1, '/'))
        return false;
    *slash = 0;
    bool good = dn_is_token(type) && dn_is_token(slash + 1);
    *slash = '/';
    int has_charset = media_parameter(semicolon, end, "charset", charset, sizeof charset);
    if (!good || has_charset < 0 || (has_charset && strcmp(charset, "utf-8") != 0))
        return false;
    strcpy(out, type);
    return true;
}

/* The i-th word of a blank-separated list, or NULL. */
static const char *word_at(const char *list, int i, size_t *n)
{
    for (;; i--) {
        list += strspn(list, " ");
        *n = strcspn(list, " ");
        if (*n == 0)
            return NULL;
        if (i == 0)
            return list;
        list += *n;
    }
}

bool dn_media_listed(const char *list, const char *type)
{
    size_t n;
    const char *word;
    for (int i = 0; (word = word_at(list, i, &n)); i++)
        if (n == strlen(type) && memcmp(word, type, n) == 0)
            return true;
    return false;
}

/* How specific a match of `range` to `type` is: 3 exact, 2 type, 1 anything, 0 none. */
static int match(const char *range, const char *type)
{
    if (strcmp(range, "*/*") == 0)
        return 1;
    size_t n = strlen(range);
    if (n > 2 && strcmp(range + n - 2, "/*") == 0)
        return strncmp(range, type, n - 1) == 0 ? 2 : 0;
    return strcmp(range, type) == 0 ? 3 : 0;
}

/* The quality that Accept gives to `type`: the most specific range decides. */
static double quality(const char *accept, const char *type)
{
    int best = 0;
    double q = 0;
    while (*accept) {
        const char *end = accept + strcspn(accept, ","), *semicolon = accept + strcspn(accept, ";,");
        char range[128], text[16];
        if (copy_trimmed(range, sizeof range, accept, semicolon) && match(range, type) > best) {
            best = match(range, type);
            int has_q = media_parameter(semicolon, end, "q", text, sizeof text);
            q = has_q == 0 ? 1 : has_q < 0 ? 0 : strtod(text, NULL);
        }
        accept = *end ? end + 1 : end;
    }
    return q > 0 && q <= 1 ? q : q > 1 ? 1 : 0;
}

bool dn_accept_best(const char *accept, const char *gives, char *out, size_t out_size)
{
    double best = 0;
    size_t n;
    const char *word;
    for (int i = 0; (word = word_at(gives, i, &n)); i++) {
        char type[64];
        if (!copy_trimmed(type, sizeof type, word, word + n))
            continue;
        double q = accept ? quality(accept, type) : 1;
        if (q > best && n < out_size) {
            best = q;
            memcpy(out, type, n + 1);
        }
    }
    return best > 0;
}

bool dn_accept_is_specific(const char *accept)
{
    while (*accept) {
        const char *end = accept + strcspn(accept, ","), *semicolon = accept + strcspn(accept, ";,");
        char range[128];
        if (!copy_trimmed(range, sizeof range, accept, semicolon) || (*range && strcmp(range, "*/*") != 0))
            return true;
        accept = *end ? end + 1 : end;
    }
    return false;
}
