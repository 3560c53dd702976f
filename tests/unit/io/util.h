/* util.h - what the tests of engine/io share: a scratch folder, bytes that grow, zips and pickles made by hand. */
#ifndef TEST_IO_UTIL_H
#define TEST_IO_UTIL_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <denoised/error.h>

typedef struct blob {
    uint8_t *p;
    size_t len, cap;
} blob;

void blob_add(blob *b, const void *p, size_t len);
void blob_le(blob *b, uint64_t v, int bytes);
void blob_free(blob *b);
#define blob_str(b, literal) blob_add(b, literal, sizeof(literal) - 1)

/* The folder for one test; made in the working directory, removed with all that is in it. */
void scratch_make(char dir[64]);
void scratch_remove(const char *dir);
void file_write(const char *dir, const char *name, const void *p, size_t len);
blob file_read(const char *dir, const char *name);
void file_copy(const char *from_dir, const char *from, const char *to_dir, const char *to);

/* A safetensors file: `header` as it is, then `data`. */
blob safetensors_make(const char *header, const void *data, size_t len);

/* A zip of stored entries. The fields after `data` lie about an entry. */
typedef struct zip_item {
    const char *name;
    blob data;
    uint16_t method, flags;
    int64_t size_lie, header_lie; /* added to what is true */
    int zip64;                    /* sizes and offset in the extra field */
} zip_item;
blob zip_make(const zip_item *items, int n);

/* Pickle: a tensor as torch writes it, between the start and the end of a dict. */
void pickle_begin(blob *b);
void pickle_text(blob *b, const char *s);
void pickle_int(blob *b, int64_t v);
void pickle_storage(blob *b, const char *type, const char *key, int64_t numel);
void pickle_tensor(blob *b, const char *name, const char *type, const char *key, int64_t numel, int64_t offset,
                   int rank, const int64_t *dims, const int64_t *strides);
void pickle_end(blob *b);

/* `rc` is the code, and the message and param say what they should. */
void assert_error(const dn_error *err, int rc, int code, const char *param, const char *text);

#endif
