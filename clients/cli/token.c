/* token.c - see token.h. */
#include "token.h"
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The first word of the first line that is neither blank nor a comment: also of a token file of the daemon. */
static void first_word(char *out, FILE *in)
{
    char *line = NULL;
    size_t size = 0;
    *out = 0;
    while (!*out && getline(&line, &size, in) >= 0) {
        const char *word = line + strspn(line, " \t\r\n");
        size_t n = *word == '#' ? 0 : strcspn(word, " \t\r\n");
        snprintf(out, DN_TOKEN_MAX + 2, "%.*s", n > DN_TOKEN_MAX ? DN_TOKEN_MAX + 1 : (int)n, word);
    }
    if (line)
        explicit_bzero(line, size);
    free(line);
}

static int read_file(char *out, const char *path)
{
    FILE *in = fopen(path, "re");
    if (!in) {
        dn_complain("--token-file: %s: %s", path, strerror(errno));
        return DN_EXIT_USAGE;
    }
    first_word(out, in);
    fclose(in);
    if (*out)
        return 0;
    dn_complain("--token-file: %s has no token", path);
    return DN_EXIT_USAGE;
}

int dn_token_find(char out[DN_TOKEN_MAX + 1], const char *flag, const char *file, const char *variable)
{
    char token[DN_TOKEN_MAX + 2];
    snprintf(token, sizeof token, "%s", flag ? flag : variable && !file ? variable : "");
    int rc = file ? read_file(token, file) : 0;
    for (const unsigned char *c = (unsigned char *)token; !rc && *c; c++)
        if (!isgraph(*c)) {
            dn_complain("the token has a character that no token can have");
            rc = DN_EXIT_USAGE;
        }
    if (!rc && strlen(token) > DN_TOKEN_MAX) {
        dn_complain("the token is longer than %d bytes", DN_TOKEN_MAX);
        rc = DN_EXIT_USAGE;
    }
    if (!rc)
        memcpy(out, token, strlen(token) + 1);
    explicit_bzero(token, sizeof token);
    return rc;
}
