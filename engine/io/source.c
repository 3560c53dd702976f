/* source.c - files and buffers, read at offsets. See source.h. */
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char lfs_magic[] = "version https://git-lfs";

bool dn_name_is_plain(const char *name)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t len = strlen(name);
    return len > 0 && len < DN_FILE_NAME_MAX && name[0] != '.' && strspn(name, allowed) == len;
}

dn_shown dn_show(const char *p, size_t len)
{
    dn_shown s;
    size_t max = sizeof s.text - 1, n = len < max ? len : max;
    for (size_t i = 0; i < n; i++)
        s.text[i] = p[i] >= ' ' && p[i] <= '~' ? p[i] : '?';
    if (len > max)
        memset(s.text + max - 3, '.', 3);
    s.text[n] = 0;
    return s;
}

static int refuse_lfs_pointer(const dn_source *s, dn_error *err)
{
    char head[sizeof lfs_magic - 1];
    if (s->size < sizeof head)
        return 0;
    int rc = dn_source_read(s, 0, head, sizeof head, err);
    if (rc == 0 && memcmp(head, lfs_magic, sizeof head) == 0)
        rc = dn_fail(err, DN_E_FORMAT, s->name,
                     "%s is a git-lfs pointer, not the file itself: fetch it with \"git lfs pull\"", s->name);
    return rc;
}

int dn_source_open(dn_source *s, int dirfd, const char *name, dn_error *err)
{
    /* O_NONBLOCK: a FIFO must not hold us up before fstat tells that it is one. */
    int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, name, "%s: cannot open it: %m", name);
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) != 0)
        rc = dn_fail(err, DN_E_IO, name, "%s: %m", name);
    else if (!S_ISREG(st.st_mode))
        rc = dn_fail(err, DN_E_FORMAT, name, "%s is not a regular file", name);
    dn_source opened = { .fd = fd };
    if (rc == 0) {
        opened.size = (uint64_t)st.st_size;
        strncpy(opened.name, name, sizeof opened.name - 1);
        rc = refuse_lfs_pointer(&opened, err);
    }
    if (rc == 0)
        *s = opened;
    else
        close(fd);
    return rc;
}

dn_source dn_source_memory(const void *buf, size_t len, const char *name)
{
    dn_source s = { .fd = -1, .mem = buf, .size = len };
    strncpy(s.name, name, sizeof s.name - 1);
    return s;
}

void dn_source_close(dn_source *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

static int check_range(const dn_source *s, uint64_t offset, size_t len, dn_error *err)
{
    if (offset <= s->size && len <= s->size - offset)
        return 0;
    return dn_fail(err, DN_E_FORMAT, s->name, "%s ends at byte %llu, in the middle of what it should hold", s->name,
                   (unsigned long long)s->size);
}

int dn_source_read(const dn_source *s, uint64_t offset, void *dst, size_t len, dn_error *err)
{
    int rc = check_range(s, offset, len, err);
    if (rc != 0)
        return rc;
    if (s->fd < 0) {
        if (len > 0)
            memcpy(dst, s->mem + offset, len);
        return 0;
    }
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(s->fd, (char *)dst + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return dn_fail(err, DN_E_IO, s->name, "%s: cannot read it: %m", s->name);
        if (n == 0)
            return dn_fail(err, DN_E_IO, s->name, "%s was cut short while it was being read", s->name);
        done += (size_t)n;
    }
    return 0;
}

int dn_source_load(uint8_t **out, const dn_source *s, uint64_t offset, size_t len, dn_error *err)
{
    int rc = check_range(s, offset, len, err);
    if (rc != 0)
        return rc;
    uint8_t *buf = malloc(len + 1);
    if (!buf)
        return dn_fail(err, DN_E_MEMORY, s->name, "%s: no memory for %zu bytes", s->name, len);
    rc = dn_source_read(s, offset, buf, len, err);
    if (rc != 0) {
        free(buf);
        return rc;
    }
    buf[len] = 0;
    *out = buf;
    return 0;
}
