/* store.h - a stored dataset on disk: how it is written and what a record of it says.
 *
 * A folder with three files: `images.bin`, the images one after the other as they arrived, uint8 or float32 [H,W,C],
 * each at a multiple of 4 bytes; `index.bin`, one dn_record per image in the dataset's order; `dataset.json`. Pictures
 * have 1 or 3 channels each, as many as they need; the dataset has the larger number, and the reader copies grey into
 * three.
 *
 * The order is by name (by number for arrays). The hash is the sha256 of, in that order, size, channels, label and
 * sha256 of each image, after kind and class names: names of files and the order of the archive do not enter. */
#ifndef DN_DATA_STORE_H
#define DN_DATA_STORE_H

#include <denoised/dataset.h>
#include <denoised/sha256.h>

#define DN_STORE_IMAGES "images.bin"
#define DN_STORE_INDEX "index.bin"
#define DN_STORE_JSON "dataset.json"

enum { DN_STORE_VERSION = 1, DN_CHANNELS_MAX = 64, DN_STORE_JSON_MAX = 64 << 20 };

typedef struct dn_record {
    uint64_t offset; /* in images.bin, a multiple of 4 */
    uint16_t height, width, channels, zero;
    int32_t label; /* -1: none */
    uint32_t zero2;
} dn_record;
_Static_assert(sizeof(dn_record) == 24, "dn_record is a file format");

struct dn_dataset {
    dn_dataset_info info;
    const dn_record *record; /* [n], mapped */
    const uint8_t *images;   /* mapped */
    size_t record_bytes, images_bytes;
    char **classes; /* what info.classes points to */
};

/* The pixels of image i. */
static inline const void *dn_dataset_pixels(const dn_dataset *d, int64_t i) { return d->images + d->record[i].offset; }

/* An image that is being imported. */
typedef struct dn_item {
    dn_record record;
    uint8_t digest[32]; /* sha256 of its bytes */
    char *name;         /* NULL: its number */
} dn_item;

typedef struct dn_store dn_store;

/* Begin a store that will be the folder `dir`, under a temporary name beside it ("DIR.import-XXXXXX"). */
int dn_store_begin(dn_store **out, const char *dir, uint64_t total_max, dn_error *err);
/* A path in the temporary folder for a file that lives only while the import runs. */
int dn_store_scratch(dn_store *s, char *path, size_t room, int *fd, dn_error *err);
/* While *stop is true no image is taken (DN_E_CANCELLED); NULL: never. *images is how many have been; NULL: nobody asks. */
void dn_store_watch(dn_store *s, const _Atomic(bool) *stop, _Atomic(int64_t) *images);
void dn_store_set_floats(dn_store *s, bool floats); /* before the first image; else bytes */
/* Append one image; `digest` of its bytes (dn_store_digest). `name` is copied; NULL: its number is its name. The label
 * may be set later. Returns its index among the items in *i. */
int dn_store_add(dn_store *s, const char *name, const void *pixels, int height, int width, int channels, int32_t label,
                 const uint8_t digest[32], dn_error *err);
int dn_store_digest(uint8_t digest[32], const void *pixels, size_t bytes);
dn_item *dn_store_items(dn_store *s, int64_t *n);
/* Leave out the items whose record has no height (their label was missing). */
void dn_store_compact(dn_store *s);
/* Sort by name, write index and json, fsync, rename to `dir`. `classes`: names, or NULL: numbers below n_classes. Ends
 * the store, also on failure, when nothing is left behind. */
int dn_store_commit(dn_store *s, int n_classes, char *const *classes, dn_error *err);
void dn_store_abort(dn_store *s); /* NULL is fine */

#endif
