/* fuzz_checkpoint.c - any bytes as a training job's checkpoint: it is taken over whole, or refused with a message and
 * the trainer is what it was.
 *
 * An input that begins as a checkpoint does is one; any other edits a good one of this very trainer, so that what is
 * behind the checks of sizes, names and counters is reached whatever the present numerics id is. Both get the header's
 * right CRC. */
#include "train_internal.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEAD = 16, EDIT = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static dn_device *device;
static dn_model *model;
static dn_dataset *images;
static dn_trainer *trainer;
static uint8_t *good;
static size_t good_len;

static void must(bool fact)
{
    if (!fact)
        abort();
}

/* ---- a trainer of three thousand weights, and its checkpoint ---- */

static dn_model *make_model(void)
{
    dn_model *m = NULL;
    json_t *config = json_pack("{ss,si,si,si,s[i],si,si,si,s[s],s[s]}", "_class_name", "UNet2DModel", "sample_size", 4,
                               "in_channels", 1, "out_channels", 1, "block_out_channels", 4, "layers_per_block", 1,
                               "norm_num_groups", 2, "attention_head_dim", 4, "down_block_types", "DownBlock2D",
                               "up_block_types", "UpBlock2D");
    must(config && !dn_model_init(&m, config, NULL, NULL, 1, NULL));
    json_decref(config);
    return m;
}

static void make_images(const char *folder)
{
    static const char head[] = "\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (8, 4, 4)}";
    uint8_t file[128 + 8 * 16];
    char npy[64], set[64];
    dn_import_report report;
    memset(file, ' ', 128);
    memcpy(file, head, sizeof head - 1);
    file[127] = '\n';
    for (int i = 0; i < 8 * 16; i++)
        file[128 + i] = (uint8_t)(i * 7);
    snprintf(npy, sizeof npy, "%s/images.npy", folder);
    snprintf(set, sizeof set, "%s/set", folder);
    FILE *f = fopen(npy, "wb");
    must(f && fwrite(file, 1, sizeof file, f) == sizeof file && !fclose(f));
    must(!dn_dataset_import(npy, set, &(dn_import_params){ .threads = 1 }, &report, NULL));
    must(!dn_dataset_open(&images, set, NULL));
    unlink(npy);
}

static void read_good(const char *path)
{
    FILE *f = fopen(path, "rb");
    must(f && !fseek(f, 0, SEEK_END));
    good_len = (size_t)ftell(f);
    good = malloc(good_len);
    rewind(f);
    must(good && fread(good, 1, good_len, f) == good_len);
    fclose(f);
}

static void make_checkpoint(const char *folder)
{
    char path[64];
    dn_snapshot *s = NULL;
    dn_train_report report;
    snprintf(path, sizeof path, "%s/checkpoint", folder);
    must(!dn_trainer_some(trainer, 0, &report, NULL));
    must(!dn_trainer_snapshot(&s, trainer, true, 0, NULL) && !dn_snapshot_write(s, path, NULL));
    dn_snapshot_free(s);
    read_good(path);
    unlink(path);
}

static void remove_images(const char *folder)
{
    static const char *const names[] = { "set/images.bin", "set/index.bin", "set/dataset.json", "set" };
    char path[96];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        must(!remove(path));
    }
    must(!rmdir(folder));
}

static void start(void)
{
    char folder[] = "/tmp/fuzz-checkpoint-XXXXXX";
    dn_train_params p;
    dn_train_plan plan;
    dn_train_params_init(&p);
    p.steps = 20;
    p.batch_size = 2;
    must(mkdtemp(folder) != NULL);
    make_images(folder);
    model = make_model();
    must(!dn_device_open(&device, "cpu:0", NULL));
    must(!dn_train_plan_make(&plan, device, model, images, &p, 0, NULL));
    must(!dn_trainer_new(&trainer, device, model, images, &p, &plan, NULL));
    make_checkpoint(folder);
    remove_images(folder); /* it is mapped */
}

/* ---- one input ---- */

static void fix_crc(uint8_t *file, size_t size)
{
    uint32_t n;
    if (size < HEAD)
        return;
    memcpy(&n, file + 8, sizeof n);
    if (n > size - HEAD)
        return;
    uint32_t crc = dn_checkpoint_crc(file + HEAD, n);
    memcpy(file + 12, &crc, sizeof crc);
}

static bool in_header(const uint8_t *file, size_t at)
{
    uint32_t n;
    memcpy(&n, file + 8, sizeof n);
    return at >= HEAD && at < HEAD + (size_t)n;
}

/* A byte more before `at`; the header's length goes with it. */
static void insert(uint8_t *file, size_t *len, size_t at, uint8_t value)
{
    uint32_t n;
    if (*len > HEAD && in_header(file, at)) {
        memcpy(&n, file + 8, sizeof n);
        n++;
        memcpy(file + 8, &n, sizeof n);
    }
    memmove(file + at + 1, file + at, *len - at);
    file[at] = value;
    ++*len;
}

/* Four bytes an edit: where (little endian; from the end if its highest bit is set), what to do, a value. */
static uint8_t *edited(size_t *len, const uint8_t *edit, size_t size)
{
    uint8_t *file = malloc(good_len + size / EDIT);
    must(file != NULL);
    memcpy(file, good, good_len);
    *len = good_len;
    for (; size >= EDIT; edit += EDIT, size -= EDIT) {
        size_t at = edit[0] | (size_t)(edit[1] & 0x7f) << 8;
        if (at >= *len)
            continue;
        at = edit[1] & 0x80 ? *len - 1 - at : at;
        switch (edit[2] % 5) {
        case 0:
            *len = at;
            break;
        case 1:
            file[at] = edit[3];
            break;
        case 2:
            file[at] ^= edit[3];
            break;
        case 3:
            file[at] = (uint8_t)(file[at] + edit[3]);
            break;
        default:
            insert(file, len, at, edit[3]);
        }
    }
    return file;
}

static int restore(const uint8_t *file, size_t len, dn_error *err)
{
    char path[64];
    int fd = memfd_create("checkpoint", MFD_CLOEXEC);
    must(fd >= 0 && write(fd, file, len) == (ssize_t)len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int rc = dn_trainer_restore(trainer, path, err);
    close(fd);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!trainer)
        start();
    const dn_flat *flat = &trainer->flat;
    float *const block[] = { flat->weights, flat->m, flat->v, flat->ema };
    size_t bytes = sizeof(float) * (size_t)flat->count, len = size;
    dn_error err = { 0 };
    must(!restore(good, good_len, &err));
    dn_train_counters before = trainer->counters;
    uint8_t *was = malloc(4 * bytes), *file = NULL;
    must(was != NULL);
    for (int i = 0; i < 4; i++)
        memcpy(was + (size_t)i * bytes, block[i], bytes);
    if (size >= 8 && !memcmp(data, "DNTRAIN1", 8))
        file = memcpy(malloc(size), data, size);
    else
        file = edited(&len, data, size);
    fix_crc(file, len);
    int rc = restore(file, len, &err);
    must(rc ? err.code == rc && err.message[0] : trainer->counters.step <= DN_TRAIN_STEPS_MAX);
    must(!rc || (trainer->counters.step == before.step && trainer->counters.updates == before.updates));
    for (int i = 0; rc && i < 4; i++)
        must(!memcmp(was + (size_t)i * bytes, block[i], bytes));
    free(was);
    free(file);
    return 0;
}
