/* torch.c - a .bin as torch.save writes it: a stored zip with <root>/data.pkl, a map of tensors, and <root>/data/<key>,
 * their raw storages. */
#include "pickle.h"
#include "stored.h"
#include "zip.h"

#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 512 };
static const char pickle_name[] = "/data.pkl";

typedef struct archive {
    dn_zip zip;
    const char *root; /* not terminated */
    size_t root_len;
} archive;

/* The entry `root` + `a` + `b`, or NULL. */
static const dn_zip_entry *find(const archive *ar, const char *a, const char *b, size_t b_len)
{
    char path[PATH_SIZE];
    size_t a_len = strlen(a);
    if (ar->root_len + a_len >= sizeof path || b_len >= sizeof path - ar->root_len - a_len)
        return NULL;
    memcpy(path, ar->root, ar->root_len);
    memcpy(path + ar->root_len, a, a_len);
    memcpy(path + ar->root_len + a_len, b, b_len);
    return dn_zip_find(&ar->zip, path, ar->root_len + a_len + b_len);
}

static bool lookup(void *ctx, const char *key, size_t key_len, uint64_t bytes, uint64_t *offset)
{
    const dn_zip_entry *e = find(ctx, "/data/", key, key_len);
    if (!e || e->size != bytes)
        return false;
    *offset = e->offset;
    return true;
}

/* The first component of the archive's names is whatever the file was called once. */
static const dn_zip_entry *find_pickle(archive *ar)
{
    size_t len = strlen(pickle_name);
    for (size_t i = 0; i < ar->zip.len; i++) {
        const dn_zip_entry *e = &ar->zip.entries[i];
        if (e->name_len <= len || memcmp(e->name + e->name_len - len, pickle_name, len) != 0 ||
            memchr(e->name, '/', e->name_len - len))
            continue;
        ar->root = e->name;
        ar->root_len = e->name_len - len;
        return e;
    }
    return NULL;
}

static int check_byte_order(const archive *ar, const dn_source *src, dn_error *err)
{
    char order[6];
    const dn_zip_entry *e = find(ar, "/byteorder", "", 0);
    if (!e)
        return 0;
    int rc = e->size == sizeof order ? dn_source_read(src, e->offset, order, sizeof order, err) : 0;
    if (rc == 0 && (e->size != sizeof order || memcmp(order, "little", sizeof order) != 0))
        rc = dn_fail(err, DN_E_UNSUPPORTED, src->name, "%s: its byte order is not little-endian", src->name);
    return rc;
}

static int list_archive(dn_stored_list *l, archive *ar, const dn_source *src, dn_error *err)
{
    const dn_zip_entry *e = find_pickle(ar);
    if (!e)
        return dn_fail(err, DN_E_FORMAT, src->name, "%s: a zip archive, but there is no data.pkl in it", src->name);
    if (e->size > DN_PICKLE_BYTES_MAX)
        return dn_fail(err, DN_E_LIMIT, src->name, "%s: data.pkl is %llu bytes long; the limit is %d", src->name,
                       (unsigned long long)e->size, DN_PICKLE_BYTES_MAX);
    uint8_t *pickle;
    int rc = check_byte_order(ar, src, err);
    if (rc == 0)
        rc = dn_source_load(&pickle, src, e->offset, (size_t)e->size, err);
    if (rc != 0)
        return rc;
    rc = dn_pickle_list(l, pickle, (size_t)e->size, lookup, ar, src->name, err);
    free(pickle);
    return rc;
}

static int check_magic(const dn_source *src, dn_error *err)
{
    uint8_t head[4] = { 0 };
    int rc = dn_source_read(src, 0, head, src->size < sizeof head ? (size_t)src->size : sizeof head, err);
    if (rc == 0 && head[0] == 0x80 && head[1] <= 5)
        rc = dn_fail(err, DN_E_UNSUPPORTED, src->name,
                     "%s is a bare pickle, as PyTorch wrote it before 1.6: load and save it with a newer one",
                     src->name);
    else if (rc == 0 && memcmp(head, "PK", 2) != 0)
        rc = dn_fail(err, DN_E_FORMAT, src->name, "%s is not a zip archive, as torch.save writes it", src->name);
    return rc;
}

int dn_torch_list(dn_stored_list *l, const dn_source *src, int source, dn_error *err)
{
    archive ar = { 0 };
    int first = l->len;
    int rc = check_magic(src, err);
    if (rc == 0)
        rc = dn_zip_open(&ar.zip, src, err);
    if (rc != 0)
        return rc;
    rc = list_archive(l, &ar, src, err);
    dn_zip_close(&ar.zip);
    for (int i = first; rc == 0 && i < l->len; i++)
        l->at[i].source = source;
    return rc;
}
