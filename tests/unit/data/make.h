/* make.h - archives and pictures made in code for the tests of engine/data and of archives. */
#ifndef TEST_DATA_MAKE_H
#define TEST_DATA_MAKE_H

#include "util.h"

#include <sys/types.h>

/* One entry of an archive. */
typedef struct item {
    const char *name;
    const void *data;
    size_t len;
    mode_t type;      /* 0: a regular file; AE_IFDIR, AE_IFLNK, ... */
    const char *link; /* target of a symbolic link */
    const char *hard; /* target of a hard link */
    int64_t hole;     /* > 0: sparse, `len` bytes of data at that offset */
} item;

enum packing { TAR, TAR_GZ, TAR_ZST, ZIP, PACKINGS };

void archive_make(const char *dir, const char *name, enum packing packing, const item *items, int n);

/* 8-bit PNG [h,w,c]. */
blob png_make(const uint8_t *pixels, int height, int width, int channels);
/* PNG of any colour type and depth, rows packed; trns: the first n_trns alphas of a palette, or NULL. */
blob png_make_as(const void *rows, size_t len, int height, int width, int depth, int color_type, const uint8_t *trns,
                 int n_trns);
blob jpeg_make(const uint8_t *pixels, int height, int width, int channels /* 1, 3, 4: CMYK */, int quality);
blob webp_make(const uint8_t *pixels, int height, int width, int channels /* 3, 4 */);
blob gzip_make(const void *p, size_t len);
/* IDX of unsigned bytes. */
blob idx_make(const uint8_t *data, int rank, const uint32_t *dim);
/* npy, version 1; data of `len` bytes. */
blob npy_make(const char *descr, const char *shape, const void *data, size_t len);

/* Numbers that look random and are not. */
void noise(uint8_t *p, size_t n, uint32_t seed);
/* The names in `dir`, without . and .., are exactly the n given ones. */
void assert_folder(const char *dir, const char *const *names, int n);

#endif
