/* dataset.h - training data: imported once into a memory-mapped store, read at random by training jobs.
 *
 * A stored dataset is a folder with `dataset.json` (counts, classes, sizes, hash) and flat files (uint8 or float32 images one after the
 * other, their sizes and offsets, labels). It is immutable; its hash is the sha256 of the decoded content: two uploads of the
 * same pictures and labels have one hash whatever archive they came in. Augmentation happens at read time. */
#ifndef DENOISED_DATASET_H
#define DENOISED_DATASET_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dn_dataset dn_dataset;

enum {
    DN_DATASET_REPORT_MAX = 50,      /* broken files that a report names */
    DN_DATASET_CLASSES_MAX = 100000,
    DN_DATASET_SIDE_MAX = 8192       /* pixels */
};

typedef struct dn_dataset_info {
    int64_t n;                       /* images */
    int channels;                    /* 1 or 3 of pictures; 1..64 of arrays */
    int height_min, height_max, width_min, width_max;
    bool floats;                     /* float32 values as given (.npy, .safetensors), else uint8 */
    double range[2];                 /* what the values span: {0, 255} for uint8; of floats {0, 1}, {-1, 1} or {0, 255} if that
                                        holds them, else their own */
    int n_classes;                   /* 0: no labels */
    const char *const *classes;      /* n_classes names; NULL: numbers */
    uint64_t bytes;                  /* on disk */
    char hash[65];                   /* hex sha256 */
} dn_dataset_info;

/* Something that could not be read. */
typedef struct dn_broken {
    char file[256];
    char why[160];
} dn_broken;

typedef struct dn_import_params {
    bool skip_broken; /* leave broken files out and report them; else the first one is the error */
    int threads;      /* that decode (2) */
    uint64_t total_max; /* bytes of the decoded store; DN_E_LIMIT beyond. 0: none */
    const _Atomic(bool) *stop; /* true, from any thread: the import ends with an error. NULL: never */
} dn_import_params;

typedef struct dn_import_report {
    int64_t n_images, n_broken;
    int n_listed;
    dn_broken broken[DN_DATASET_REPORT_MAX];
} dn_import_report;

/* Import the uploaded file `src` (tar, tar.gz, tar.zst, zip of PNG/JPEG/WebP in class folders or with a labels file "labels.csv",
 * "metadata.csv", "labels.json", "dataset.json" or "metadata.jsonl"; of MNIST's IDX files, gzipped or not; a .npy, .npz or .safetensors file, alone or in an archive) into
 * the folder `dir`, which must not exist: it is made whole or not at all (written under a temporary name beside it, fsynced, renamed).
 * The kind is found by content, never by the name that a client gave. Slow. err->param names the file at fault.
 *
 * Pictures: alpha is laid over white, 16 bits become the high 8, colour profiles are not applied, a JPEG of inks becomes RGB and is
 * turned as its EXIF says, animations are refused; one with equal channels everywhere is grey, and `channels` is 1 if all are. Classes are the top folders
 * after those that all pictures share; folders 0..K-1 are the labels 0..K-1 without names. Hidden files, __MACOSX, notes (.txt, .md,
 * .html, .rst, .pdf, LICENSE, README) are passed over; any other file that is no picture is broken. Arrays: images are [n,H,W],
 * [n,H,W,C], or [n,C,H,W] if C is 1 or 3 and both sides are above 4; if there are several they are named "images", "image", "x", "data",
 * "x_train", "train_images" or "arr_0". Labels are whole numbers [n] or [n,1], and if several "labels", "label", "y", "targets", "y_train",
 * "train_labels" or "arr_1". MNIST's t10k files count only if they are alone. Images are in the order of their names, or of the array.
 *
 * A crash leaves a folder "DIR.import-XXXXXX" beside `dir`, never a part of `dir`. */
int dn_dataset_import(const char *src, const char *dir, const dn_import_params *p, dn_import_report *report, dn_error *err);

/* Map a stored dataset. Checks every offset once, so that later reads cannot leave the map. */
int dn_dataset_open(dn_dataset **out, const char *dir, dn_error *err);
void dn_dataset_close(dn_dataset *d); /* NULL is fine; no reader may use it any more */
const dn_dataset_info *dn_dataset_info_of(const dn_dataset *d);
int dn_dataset_label(const dn_dataset *d, int64_t i); /* -1: none */

/* ---- reading ------------------------------------------------------------------------------------------------- */

enum dn_augment_kind { DN_AUG_FLIP, DN_AUG_CROP, DN_AUG_ROTATE, DN_AUG_BRIGHTNESS, DN_AUG_CONTRAST, DN_AUG_CUTOUT, DN_AUG_COUNT };
extern const char *const dn_augment_names[]; /* "flip", "crop" (random crop; else centre), "rotate", ... */

/* A crop decides what is resized, so it comes first wherever it stands, once at most; without it the largest centred box of the target's
 * shape is. The others follow in the order given. What a rotation uncovers is the low end of the range; a cutout is its middle. */
typedef struct dn_augment {
    enum dn_augment_kind kind;
    double p;      /* probability, 0..1 (1) */
    double amount; /* rotate: degrees, 0..180; brightness and contrast: 0..1, factor 1 +- amount; crop: the least fraction of that box's
                      side (0.01..1); cutout: fraction of the side */
} dn_augment;

enum { DN_AUGMENT_MAX = 8 };

typedef struct dn_reader_params {
    const dn_dataset *data;
    int height, width, channels;  /* what a row is resized (antialiased) and cropped to; channels: the dataset's, or any of 1, or 1 of 3 */
    double range[2];              /* what uint8 0..255 (or the floats' range) maps to: the model's, [-1, 1] */
    dn_augment augment[DN_AUGMENT_MAX];
    int n_augment;
    uint64_t seed;                /* everything random is Philox of (seed, purpose, step, sample) */
    int batch_size;               /* samples of one optimizer step */
    int64_t first, n;             /* the part of the dataset that is read: training or held-out, after the job's own shuffle */
                                     /* (a permutation of the whole dataset by `seed`, whether shuffled or not) */
    bool shuffle;                 /* a new permutation each epoch (stateless: an index is a function of its number); else in order */
    int threads;                  /* that prefetch; 0: none, read in the caller */
} dn_reader_params;

typedef struct dn_reader dn_reader;

/* `start_step`: the optimizer step that is read first. Prefetches ahead within a fixed number of bytes. */
int dn_reader_new(dn_reader **out, const dn_reader_params *p, int64_t start_step, dn_error *err);
void dn_reader_free(dn_reader *r); /* NULL is fine */
/* Bytes it holds for prefetching: part of a job's memory plan. */
size_t dn_reader_bytes(const dn_reader_params *p);
/* Samples `first` .. first+n-1 of optimizer step `step`, the same whatever was read before: x [n,H,W,C], labels [n] (-1: none).
 * Steps are asked for in ascending order for the prefetch to help; any order is right. Returns the milliseconds it had to wait in
 * *wait_ms (NULL is fine), those of making samples itself among them. One thread at a time. */
void dn_reader_get(dn_reader *r, int64_t step, int first, int n, float *x, int32_t *labels, double *wait_ms);
/* Which image of the dataset is sample `k` of step `step`. */
int64_t dn_reader_index(const dn_reader_params *p, int64_t step, int k);

#endif
