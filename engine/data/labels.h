/* labels.h - what the pictures of an archive are: by class folders, or by labels files.
 *
 * Labels files, by their name: labels.csv and metadata.csv ("file,label", with a header or without); labels.json and
 * StyleGAN's dataset.json ({"file": label}, or [["file", label], ...], or a list of objects, or {"labels": such a
 * list}); metadata.jsonl (an object a line). An object is {"file_name": ..., "label": ...}; headers and members have
 * further names (label_names in labels.c). File names are relative to the labels file's folder. A label is a number or
 * a class name; if all are whole numbers, they are the labels, else the sorted names are the classes.
 *
 * Without a labels file the top folder is the class, after folders that all pictures share are taken away. Classes are
 * sorted, as numbers if all are; folders 0..K-1 are the labels 0..K-1 without names. Pictures in no folder at all have
 * no labels. */
#ifndef DN_DATA_LABELS_H
#define DN_DATA_LABELS_H

#include "store.h"

enum { DN_LABELS_FILE_MAX = 64 << 20 };

typedef struct dn_labels {
    struct dn_label_line {
        char *file, *label;
    } * at;
    int len, cap;
    struct dn_heap_chunk *text;
} dn_labels;

bool dn_labels_is_file(const char *name);
/* `text` is `len` bytes and a zero. */
int dn_labels_parse(dn_labels *l, const char *name, const char *text, size_t len, dn_error *err);
void dn_labels_fini(dn_labels *l);

typedef struct dn_classes {
    int n;
    char **name; /* NULL: numbers */
    struct dn_heap_chunk *text;
} dn_classes;
void dn_classes_fini(dn_classes *c);

/* A picture that the labels files do not name, or a named one that is not there: 0 to go on without it, or the error.
 */
typedef int (*dn_label_missing)(void *arg, const char *file, const char *why, dn_error *err);
/* Set the labels of the items. One without a label that `missing` lets pass gets height 0. */
int dn_labels_apply(dn_classes *out, dn_labels *l, dn_item *item, int64_t n, dn_label_missing missing, void *arg,
                    dn_error *err);

#endif
