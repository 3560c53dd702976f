/* fuzz_archive.c - any bytes as an uploaded archive: it is read within its limits, or refused with a message; names are
 * clean. */
#include <denoised/archive.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_name(const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len > DN_ARCHIVE_NAME_MAX || name[0] == '/' || name[len - 1] == '/' || strchr(name, '\\') ||
        strstr(name, "//"))
        abort();
    for (const char *p = name; p; p = strchr(p, '/') ? strchr(p, '/') + 1 : NULL)
        if (strcmp(p, "..") == 0 || strncmp(p, "../", 3) == 0)
            abort();
}

static int read_entry(dn_archive *a, size_t *total, dn_error *err)
{
    const uint8_t *head;
    uint8_t *bytes;
    size_t n, len;
    int rc = dn_archive_peek(a, &head, &n, err);
    if (rc != 0)
        return rc;
    uint8_t first = n > 0 ? head[0] : 0;
    rc = dn_archive_read(a, &bytes, &len, 1 << 19, err);
    if (rc != 0)
        return rc;
    *total += len;
    if (len < n || (n > 0 && bytes[0] != first) || *total > 1 << 20)
        abort();
    free(bytes);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const dn_archive_limits limits = { 1 << 18, 1 << 20 };
    char path[64];
    int fd = memfd_create("archive", MFD_CLOEXEC), rc;
    dn_archive *a = NULL;
    dn_archive_entry e;
    dn_error err = { 0 };
    size_t total = 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    rc = -dn_archive_open(&a, path, &limits, &err);
    while (rc == 0 && (rc = dn_archive_next(a, &e, &err)) == 0) {
        check_name(e.name);
        if (e.size > limits.entry_bytes)
            abort();
        if (e.name[0] != 's') /* some are skipped */
            rc = -read_entry(a, &total, &err);
    }
    if (rc < 0 && !err.message[0])
        abort();
    dn_archive_close(a);
    close(fd);
    return 0;
}
