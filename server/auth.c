/* auth.c - reading the token file; looking a token up. */
#include "auth.h"
#include <errno.h>
#include <gnutls/crypto.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 10000, TOKEN_LEN_MIN = 16, TOKEN_LEN_MAX = 256, LINE_MAX_BYTES = 512, DIGEST_BYTES = 32 };

typedef struct entry {
    uint8_t digest[DIGEST_BYTES];
    dn_principal who;
} entry;

struct dn_auth {
    entry *entries;
    size_t n, cap;
};

static void digest_of(uint8_t digest[DIGEST_BYTES], const char *token)
{
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, token, strlen(token), digest) != 0)
        abort(); /* SHA-256 is always there */
}

static bool is_name(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return n >= 1 && n <= 64 && !s[n];
}

static bool is_token_text(const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if (s[i] <= ' ' || s[i] >= 0x7f)
            return false;
    return n >= TOKEN_LEN_MIN && n <= TOKEN_LEN_MAX;
}

/* Fill `e` from one line's words. The message never shows the token. */
static int parse_words(entry *e, char *const word[4], const char *path, int line, dn_error *err)
{
    if (word[3])
        return dn_fail(err, DN_E_FORMAT, "token-file", "%s:%d: more than token, name and scopes", path, line);
    if (!is_token_text(word[0]))
        return dn_fail(err, DN_E_FORMAT, "token-file", "%s:%d: a token is %d to %d visible ASCII characters", path,
                       line, TOKEN_LEN_MIN, TOKEN_LEN_MAX);
    if (word[1] && !is_name(word[1]))
        return dn_fail(err, DN_E_FORMAT, "token-file", "%s:%d: a name is 1 to 64 of A-Z a-z 0-9 . _ -", path, line);
    if (word[2] && strcmp(word[2], "use") != 0 && strcmp(word[2], "use,admin") != 0)
        return dn_fail(err, DN_E_FORMAT, "token-file", "%s:%d: scopes are `use` or `use,admin`", path, line);
    digest_of(e->digest, word[0]);
    if (word[1])
        snprintf(e->who.name, sizeof e->who.name, "%s", word[1]);
    else
        snprintf(e->who.name, sizeof e->who.name, "token%d", line);
    e->who.admin = word[2] && strcmp(word[2], "use,admin") == 0;
    return 0;
}

static int add(dn_auth *auth, const entry *e, const char *path, int line, dn_error *err)
{
    for (size_t i = 0; i < auth->n; i++)
        if (memcmp(auth->entries[i].digest, e->digest, DIGEST_BYTES) == 0)
            return dn_fail(err, DN_E_FORMAT, "token-file", "%s:%d: the same token twice", path, line);
    if (auth->n == TOKENS_MAX)
        return dn_fail(err, DN_E_LIMIT, "token-file", "%s: more than %d tokens", path, TOKENS_MAX);
    if (auth->n == auth->cap) {
        size_t cap = auth->cap ? 2 * auth->cap : 16;
        entry *grown = realloc(auth->entries, cap * sizeof *grown);
        if (!grown)
            return dn_fail(err, DN_E_MEMORY, "token-file", "no memory for %zu tokens", cap);
        auth->entries = grown;
        auth->cap = cap;
    }
    auth->entries[auth->n++] = *e;
    return 0;
}

static int parse_line(dn_auth *auth, char *text, const char *path, int line, dn_error *err)
{
    char *comment = text[strspn(text, " \t\r\n")] == '#' ? text : NULL;
    if (comment)
        return 0;
    char *word[4] = { 0 }, *rest = text;
    for (int i = 0; i < 4; i++)
        if (!(word[i] = strtok_r(i ? NULL : text, " \t\r\n", &rest)))
            break;
    if (!word[0])
        return 0;
    entry e = { 0 };
    int rc = parse_words(&e, word, path, line, err);
    return rc ? rc : add(auth, &e, path, line, err);
}

static int parse_file(dn_auth *auth, FILE *f, const char *path, dn_error *err)
{
    char text[LINE_MAX_BYTES + 2];
    int rc = 0;
    for (int line = 1; !rc && fgets(text, sizeof text, f); line++) {
        if (!strchr(text, '\n') && !feof(f))
            return dn_fail(err, DN_E_LIMIT, "token-file", "%s:%d: a line longer than %d bytes", path, line,
                           LINE_MAX_BYTES);
        rc = parse_line(auth, text, path, line, err);
    }
    if (!rc && ferror(f))
        return dn_fail(err, DN_E_IO, "token-file", "%s: %s", path, strerror(errno));
    if (!rc && !auth->n)
        return dn_fail(err, DN_E_FORMAT, "token-file", "%s: no token in it", path);
    return rc;
}

int dn_auth_load(dn_auth **out, const char *path, dn_error *err)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return dn_fail(err, DN_E_IO, "token-file", "%s: %s", path, strerror(errno));
    dn_auth *auth = calloc(1, sizeof *auth);
    int rc = auth ? parse_file(auth, f, path, err) : dn_fail(err, DN_E_MEMORY, "token-file", "no memory");
    fclose(f);
    if (rc)
        dn_auth_free(auth);
    else
        *out = auth;
    return rc;
}

void dn_auth_free(dn_auth *auth)
{
    if (!auth)
        return;
    free(auth->entries);
    free(auth);
}

size_t dn_auth_count(const dn_auth *auth) { return auth->n; }

const dn_principal *dn_auth_find(const dn_auth *auth, const char *token)
{
    uint8_t digest[DIGEST_BYTES];
    digest_of(digest, token);
    size_t found = auth->n;
    for (size_t i = 0; i < auth->n; i++) {
        unsigned differs = 0;
        for (int k = 0; k < DIGEST_BYTES; k++)
            differs |= auth->entries[i].digest[k] ^ digest[k];
        size_t same = (size_t)0 - (size_t)(differs == 0); /* all ones if equal: no branch on the secret */
        found = (found & ~same) | (i & same);
    }
    return found < auth->n ? &auth->entries[found].who : NULL;
}
