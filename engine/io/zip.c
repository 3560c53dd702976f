/* zip.c - reads zip directories, with zip64. See zip.h; the format is PKWARE's APPNOTE.TXT 6.3. */
#include "zip.h"

#include <stdlib.h>
#include <string.h>

enum { END_SIZE = 22, COMMENT_MAX = 65535, LOCATOR_SIZE = 20, END64_SIZE = 56, CENTRAL_SIZE = 46, LOCAL_SIZE = 30 };
enum { END_MAGIC = 0x06054b50, LOCATOR_MAGIC = 0x07064b50, END64_MAGIC = 0x06064b50 };
enum { CENTRAL_MAGIC = 0x02014b50, LOCAL_MAGIC = 0x04034b50, ZIP64_EXTRA = 0x0001, FLAG_ENCRYPTED = 1 };

typedef struct extent {
    uint64_t count, offset, size; /* of the central directory */
} extent;

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t get32(const uint8_t *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }
static uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

static int refuse(const dn_source *src, const char *why, dn_error *err)
{
    return dn_fail(err, DN_E_FORMAT, src->name, "%s: not a zip archive as torch writes it: %s", src->name, why);
}

static int refuse_entry(const dn_source *src, const dn_zip_entry *e, const char *why, dn_error *err)
{
    return dn_fail(err, DN_E_FORMAT, src->name, "%s: entry \"%s\" of the zip archive %s", src->name,
                   dn_show(e->name, e->name_len).text, why);
}

static int read_end64(extent *dir, const dn_source *src, uint64_t end, dn_error *err)
{
    uint8_t locator[LOCATOR_SIZE], record[END64_SIZE];
    if (end < LOCATOR_SIZE)
        return refuse(src, "its zip64 record is missing", err);
    int rc = dn_source_read(src, end - LOCATOR_SIZE, locator, sizeof locator, err);
    if (rc != 0)
        return rc;
    if (get32(locator) != LOCATOR_MAGIC)
        return refuse(src, "its zip64 record is missing", err);
    rc = dn_source_read(src, get64(locator + 8), record, sizeof record, err);
    if (rc != 0)
        return rc;
    if (get32(record) != END64_MAGIC)
        return refuse(src, "its zip64 record is missing", err);
    *dir = (extent){ .count = get64(record + 32), .size = get64(record + 40), .offset = get64(record + 48) };
    return 0;
}

/* The end record is the last thing in the file but for a comment. */
static int find_end(extent *dir, const dn_source *src, dn_error *err)
{
    size_t len = src->size < END_SIZE + COMMENT_MAX ? (size_t)src->size : END_SIZE + COMMENT_MAX;
    uint64_t start = src->size - len;
    uint8_t *tail;
    int rc = dn_source_load(&tail, src, start, len, err);
    if (rc != 0)
        return rc;
    size_t at = len, left = 0;
    bool found = false;
    while (!found && at >= END_SIZE && left <= COMMENT_MAX) {
        const uint8_t *p = tail + at - END_SIZE;
        found = get32(p) == END_MAGIC && get16(p + 20) == left;
        if (found)
            *dir = (extent){ .count = get16(p + 10), .size = get32(p + 12), .offset = get32(p + 16) };
        else
            at--, left++;
    }
    free(tail);
    if (!found)
        return refuse(src, "its end is missing (is it cut short?)", err);
    if (dir->count == UINT16_MAX || dir->size == UINT32_MAX || dir->offset == UINT32_MAX)
        return read_end64(dir, src, start + at - END_SIZE, err);
    return 0;
}

/* The zip64 extra field holds, in this order, those of the three values that do not fit in 32 bits. */
static bool read_extra(const uint8_t *extra, size_t len, uint64_t *size, uint64_t *packed, uint64_t *header)
{
    uint64_t *wide[] = { size, packed, header };
    while (len >= 4) {
        size_t field = get16(extra + 2);
        if (field > len - 4)
            return false;
        const uint8_t *p = extra + 4, *end = p + field;
        for (int i = 0; i < 3 && get16(extra) == ZIP64_EXTRA; i++)
            if (*wide[i] == UINT32_MAX) {
                if (end - p < 8)
                    return false;
                *wide[i] = get64(p);
                p += 8;
            }
        extra += 4 + field;
        len -= 4 + field;
    }
    return true;
}

/* The central header at `*p`, which is moved past it. */
static int read_central(dn_zip_entry *e, const uint8_t **p, const uint8_t *end, const dn_source *src, dn_error *err)
{
    const uint8_t *h = *p;
    if (end - h < CENTRAL_SIZE || get32(h) != CENTRAL_MAGIC)
        return refuse(src, "its directory is broken", err);
    size_t name_len = get16(h + 28), extra_len = get16(h + 30), comment_len = get16(h + 32);
    if ((size_t)(end - h) - CENTRAL_SIZE < name_len + extra_len + comment_len)
        return refuse(src, "its directory is broken", err);
    uint64_t packed = get32(h + 20);
    *e = (dn_zip_entry){
        .name = (const char *)h + CENTRAL_SIZE, .name_len = name_len, .size = get32(h + 24), .header = get32(h + 42)
    };
    if (!read_extra(h + CENTRAL_SIZE + name_len, extra_len, &e->size, &packed, &e->header))
        return refuse_entry(src, e, "has a broken extra field", err);
    if (get16(h + 8) & FLAG_ENCRYPTED)
        return refuse_entry(src, e, "is encrypted", err);
    if (get16(h + 10) != 0 || packed != e->size)
        return refuse_entry(src, e, "is compressed", err);
    *p = h + CENTRAL_SIZE + name_len + extra_len + comment_len;
    return 0;
}

/* Where the bytes of an entry start is only in its local header. They end before the directory starts. */
static int locate(dn_zip_entry *e, uint64_t directory, const dn_source *src, dn_error *err)
{
    uint8_t h[LOCAL_SIZE];
    if (e->header > directory || directory - e->header < LOCAL_SIZE)
        return refuse_entry(src, e, "reaches out of the file", err);
    int rc = dn_source_read(src, e->header, h, sizeof h, err);
    if (rc != 0)
        return rc;
    if (get32(h) != LOCAL_MAGIC)
        return refuse_entry(src, e, "is not where the directory says", err);
    e->offset = e->header + LOCAL_SIZE + get16(h + 26) + get16(h + 28);
    if (e->offset > directory || e->size > directory - e->offset)
        return refuse_entry(src, e, "reaches out of the file", err);
    return 0;
}

static int by_header(const void *a, const void *b)
{
    const dn_zip_entry *x = a, *y = b;
    return x->header < y->header ? -1 : x->header > y->header;
}

static int by_name(const void *a, const void *b)
{
    const dn_zip_entry *x = a, *y = b;
    int order = memcmp(x->name, y->name, x->name_len < y->name_len ? x->name_len : y->name_len);
    return order != 0 ? order : x->name_len < y->name_len ? -1 : x->name_len > y->name_len;
}

static int read_entries(dn_zip *z, const extent *dir, const dn_source *src, dn_error *err)
{
    const uint8_t *p = z->directory, *end = p + dir->size;
    for (size_t i = 0; i < z->len; i++) {
        int rc = read_central(&z->entries[i], &p, end, src, err);
        if (rc == 0)
            rc = locate(&z->entries[i], dir->offset, src, err);
        if (rc != 0)
            return rc;
    }
    qsort(z->entries, z->len, sizeof *z->entries, by_header);
    for (size_t i = 1; i < z->len; i++)
        if (z->entries[i].header < z->entries[i - 1].offset + z->entries[i - 1].size)
            return refuse_entry(src, &z->entries[i], "overlaps another", err);
    qsort(z->entries, z->len, sizeof *z->entries, by_name);
    for (size_t i = 1; i < z->len; i++)
        if (by_name(&z->entries[i], &z->entries[i - 1]) == 0)
            return refuse_entry(src, &z->entries[i], "is there twice", err);
    return 0;
}

int dn_zip_open(dn_zip *z, const dn_source *src, dn_error *err)
{
    extent dir = { 0 };
    int rc = find_end(&dir, src, err);
    if (rc != 0)
        return rc;
    if (dir.count > DN_ZIP_ENTRIES_MAX || dir.size > DN_ZIP_DIRECTORY_MAX)
        return dn_fail(err, DN_E_LIMIT, src->name, "%s: more than %d entries, or a directory of more than %d bytes",
                       src->name, DN_ZIP_ENTRIES_MAX, DN_ZIP_DIRECTORY_MAX);
    dn_zip opened = { .len = (size_t)dir.count };
    rc = dn_source_load(&opened.directory, src, dir.offset, (size_t)dir.size, err);
    if (rc != 0)
        return rc;
    opened.entries = calloc(opened.len + 1, sizeof *opened.entries);
    if (!opened.entries)
        rc = dn_fail(err, DN_E_MEMORY, src->name, "%s: no memory for its directory", src->name);
    else
        rc = read_entries(&opened, &dir, src, err);
    if (rc == 0)
        *z = opened;
    else
        dn_zip_close(&opened);
    return rc;
}

void dn_zip_close(dn_zip *z)
{
    free(z->entries);
    free(z->directory);
    *z = (dn_zip){ 0 };
}

const dn_zip_entry *dn_zip_find(const dn_zip *z, const char *name, size_t len)
{
    dn_zip_entry key = { .name = name, .name_len = len };
    return bsearch(&key, z->entries, z->len, sizeof key, by_name);
}
