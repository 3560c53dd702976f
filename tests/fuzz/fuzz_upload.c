/* fuzz_upload.c - any bytes as an uploaded model, all the way: archive or bare weights to a folder, the folder loaded,
 * planned and run once. What is accepted is accepted again with the same hash, within its bytes; everything else is
 * refused with a message. */
#include "tree.h"
#include "version_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ENTRY_BYTES = 1 << 20, TOTAL_BYTES = 4 << 20, MODEL_BYTES = 32 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char config[] =
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":4,\"in_channels\":1,\"out_channels\":1,"
    "\"block_out_channels\":[4],\"layers_per_block\":1,\"norm_num_groups\":2,\"attention_head_dim\":4,"
    "\"down_block_types\":[\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\"]}";
static char root[] = "/tmp/fuzz-upload-XXXXXX", base[64], src[64], dir[64];
static dn_device *device;

static void must(bool fact)
{
    if (!fact)
        abort();
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    must(f && (!size || fwrite(data, 1, size, f) == size) && !fclose(f));
}

static void clean(void) { dn_tree_remove(root); }

/* The folder of the model that bare weights are for. */
static void start(void)
{
    char path[96];
    must(mkdtemp(root) && !atexit(clean) && !dn_device_open(&device, "cpu:0", NULL));
    snprintf(base, sizeof base, "%s/base", root);
    snprintf(src, sizeof src, "%s/upload", root);
    snprintf(dir, sizeof dir, "%s/made", root);
    must(!dn_tree_make(base, NULL));
    snprintf(path, sizeof path, "%s/config.json", base);
    write_file(path, config, sizeof config - 1);
}

static void try_twice(const char *folder)
{
    char hash[65] = "", again[65] = "";
    dn_error err = { 0 };
    int rc = dn_version_try(hash, device, folder, MODEL_BYTES, NULL, &err);
    if (rc) {
        must(err.code == rc && err.message[0] && !hash[0]);
        return;
    }
    must(strlen(hash) == 64 && !dn_version_try(again, device, folder, MODEL_BYTES, NULL, &err) && !strcmp(hash, again));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!device)
        start();
    dn_error err = { 0 };
    write_file(src, data, size);
    int rc = dn_version_unpack(src, base, dir, &(dn_archive_limits){ ENTRY_BYTES, TOTAL_BYTES, NULL }, &err);
    must(!rc || (err.code == rc && err.message[0]));
    must(dn_tree_bytes(dir) <= TOTAL_BYTES + (int64_t)size);
    char *folder = rc ? NULL : dn_version_folder(dir);
    if (folder)
        try_twice(folder);
    free(folder);
    dn_tree_remove(dir);
    dn_tree_remove(src);
    return 0;
}
