/* fuzz_multipart.c - any bytes as a multipart body: what it carries is a part of it or a tar, or the file stays what it
 * was and there is a message. Any bytes as a Content-Type too. */
#include "multipart.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[] = "/tmp/fuzz-multipart-XXXXXX";

static void must(bool fact)
{
    if (!fact)
        abort();
}

static void clean(void) { unlink(path); }

static void check_boundary(const uint8_t *data, size_t size)
{
    char boundary[DN_BOUNDARY_MAX + 1], *text = malloc(size + 1);
    dn_error err = { 0 };
    must(text != NULL);
    memcpy(text, data, size);
    text[size] = 0;
    if (dn_multipart_boundary(boundary, text, &err))
        must(err.message[0]);
    else
        must(strlen(boundary) > 0 && strlen(boundary) <= DN_BOUNDARY_MAX && strstr(text, boundary));
    free(text);
}

/* The file now; malloc'ed. */
static uint8_t *read_back(size_t *n)
{
    FILE *f = fopen(path, "rb");
    must(f && !fseek(f, 0, SEEK_END));
    *n = (size_t)ftell(f);
    uint8_t *now = malloc(*n + 1);
    rewind(f);
    must(now && fread(now, 1, *n, f) == *n);
    fclose(f);
    return now;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int made;
    size_t n;
    dn_error err = { 0 };
    if (!made++) {
        int fd = mkstemp(path);
        must(fd >= 0 && !close(fd) && !atexit(clean));
    }
    check_boundary(data, size);
    FILE *f = fopen(path, "wb");
    must(f && fwrite(data, 1, size, f) == size && !fclose(f));
    int rc = dn_multipart_unwrap(path, "B", 4096, &err);
    uint8_t *now = read_back(&n);
    if (rc)
        must(err.code == rc && err.message[0] && n == size && !memcmp(now, data, n));
    else if (n >= 512 && !memcmp(now + 257, "ustar  ", 8))
        must(n % 512 == 0);
    else
        must(n < size && (!n || memmem(data, size, now, n)));
    free(now);
    return 0;
}
