/* fuzz_labels.c - any bytes as each kind of labels file for four pictures: labels within their classes, or a message.
 */
#include "labels.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int pass(void *arg, const char *file, const char *why, dn_error *err)
{
    (void)arg, (void)err;
    return file[0] && why[0] ? 0 : 1;
}

static void label(const char *file, const char *text, size_t size)
{
    static char names[4][8] = { "d/a.png", "d/b.png", "d/c", "e" };
    dn_item item[4];
    dn_labels l = { 0 };
    dn_classes c = { 0 };
    dn_error err = { 0 };
    for (int i = 0; i < 4; i++)
        item[i] = (dn_item){ .record = { .height = 1, .label = -1 }, .name = names[i] };
    int rc = dn_labels_parse(&l, file, text, size, &err);
    if (rc == 0)
        rc = dn_labels_apply(&c, &l, item, 4, pass, NULL, &err);
    if (rc != 0 && !err.message[0])
        abort();
    for (int i = 0; rc == 0 && i < 4; i++)
        if (item[i].record.height && item[i].record.label >= c.n)
            abort();
    dn_labels_fini(&l);
    dn_classes_fini(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    if (!text)
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    label("d/labels.csv", text, size);
    label("d/labels.json", text, size);
    label("d/metadata.jsonl", text, size);
    free(text);
    return 0;
}
