/* checkpoint.c - finds the weight files of a component and puts their tensors in one list, sorted by name.
 *
 * The files stay open while the checkpoint lives: what is read is what was checked. See checkpoint.h. */
#include "checkpoint.h"
#include "json.h"
#include "stored.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHARDS_MAX = 128, INDEX_BYTES_MAX = 16 << 20, VARIANT_MAX = 32 };

struct dn_checkpoint {
    dn_source *sources;
    int sources_len;
    dn_stored_list stored; /* sorted by name */
    dn_tensor *tensors;    /* what others see of stored: the same order */
};

/* --- which file --- */

/* What the weights may be called, the best first: `before` + `after`; as a variant, ".fp16" or so is between the two.
 */
static const struct form {
    const char *before, *after;
    bool is_index;
} forms[] = {
    { "diffusion_pytorch_model.safetensors.index", ".json", true },
    { "diffusion_pytorch_model.safetensors", ".index.json", true },
    { "diffusion_pytorch_model", ".safetensors", false },
    { "diffusion_pytorch_model.bin.index", ".json", true },
    { "diffusion_pytorch_model.bin", ".index.json", true },
    { "diffusion_pytorch_model", ".bin", false },
};
enum { FORMS = sizeof forms / sizeof *forms };

/* What a folder has: the best plain form, and the best form of the first variant seen. NULL: none. */
typedef struct listing {
    const struct form *plain, *form;
    char variant[VARIANT_MAX]; /* ".fp16" */
    char other[VARIANT_MAX];   /* a second variant; "": there is none */
} listing;

/* Is `name` of this form? Then what stands between its two parts is copied. */
static bool form_matches(const struct form *f, const char *name, char variant[VARIANT_MAX])
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
    size_t before = strlen(f->before), after = strlen(f->after), len = strlen(name);
    if (len < before + after || memcmp(name, f->before, before) != 0 || strcmp(name + len - after, f->after) != 0)
        return false;
    size_t n = len - before - after;
    if (n >= VARIANT_MAX || (n > 0 && (n == 1 || name[before] != '.' || strspn(name + before + 1, letters) < n - 1)))
        return false;
    memcpy(variant, name + before, n);
    variant[n] = 0;
    return true;
}

static void consider(listing *found, const char *name)
{
    char variant[VARIANT_MAX];
    const struct form *f = forms;
    while (f < forms + FORMS && !form_matches(f, name, variant))
        f++;
    if (f == forms + FORMS)
        return;
    if (!variant[0])
        found->plain = found->plain && found->plain < f ? found->plain : f;
    else if (!found->form || strcmp(found->variant, variant) == 0) {
        strcpy(found->variant, variant);
        found->form = found->form && found->form < f ? found->form : f;
    } else
        strcpy(found->other, variant);
}

/* A plain file is better than a variant; several variants are nobody's guess. */
static int choose(char name[DN_FILE_NAME_MAX], bool *is_index, const listing *found, dn_error *err)
{
    static const char usual[] = "diffusion_pytorch_model.safetensors";
    const struct form *f = found->plain ? found->plain : found->form;
    if (!f)
        return dn_fail(err, DN_E_NOT_FOUND, usual,
                       "no weights: there is neither %s nor a .bin of that name, nor shards of either", usual);
    if (!found->plain && found->other[0])
        return dn_fail(err, DN_E_IMPOSSIBLE, usual, "%s is not there, only several variants of it: \"%s\" and \"%s\"",
                       usual, found->variant + 1, found->other + 1);
    snprintf(name, DN_FILE_NAME_MAX, "%s%s%s", f->before, found->plain ? "" : found->variant, f->after);
    *is_index = f->is_index;
    return 0;
}

static int find_weights(char name[DN_FILE_NAME_MAX], bool *is_index, int dirfd, dn_error *err)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir) {
        int rc = dn_fail(err, DN_E_IO, NULL, "cannot list the folder of the weights: %m");
        if (fd >= 0)
            close(fd);
        return rc;
    }
    listing found = { 0 };
    for (struct dirent *entry; (entry = readdir(dir));)
        consider(&found, entry->d_name);
    closedir(dir);
    return choose(name, is_index, &found, err);
}

/* --- its tensors --- */

static bool has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    return n >= m && strcmp(name + n - m, suffix) == 0;
}

static int add_file(dn_checkpoint *c, int dirfd, const char *name, dn_error *err)
{
    dn_source *sources = realloc(c->sources, (size_t)(c->sources_len + 1) * sizeof *sources);
    if (!sources)
        return dn_fail(err, DN_E_MEMORY, name, "%s: no memory to open it", name);
    c->sources = sources;
    dn_source *src = &sources[c->sources_len];
    int rc = dn_source_open(src, dirfd, name, err);
    if (rc != 0)
        return rc;
    int index = c->sources_len++;
    return has_suffix(name, ".bin") ? dn_torch_list(&c->stored, src, index, err)
                                    : dn_safetensors_list(&c->stored, src, index, err);
}

/* Attention layers had other names once; diffusers, too, gives single files (not shards) the new ones. */
static int rename_legacy(dn_stored_list *l, const char *file, dn_error *err)
{
    static const char *const names[][2] = {
        { ".query", ".to_q" }, { ".key", ".to_k" }, { ".value", ".to_v" }, { ".proj_attn", ".to_out.0" }
    };
    for (int i = 0; i < l->len; i++) {
        char *name = l->at[i].name, *leaf = strrchr(name, '.');
        if (!leaf || (strcmp(leaf, ".weight") != 0 && strcmp(leaf, ".bias") != 0))
            continue;
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            size_t len = strlen(names[k][0]), stem = (size_t)(leaf - name) - len;
            if ((size_t)(leaf - name) < len || memcmp(name + stem, names[k][0], len) != 0)
                continue;
            char modern[DN_TENSOR_NAME_MAX];
            int n = snprintf(modern, sizeof modern, "%.*s%s%s", (int)stem, name, names[k][1], leaf);
            if (n >= (int)sizeof modern)
                return dn_fail(err, DN_E_LIMIT, file, "%s: tensor \"%s\": its name is too long", file,
                               dn_show(name, strlen(name)).text);
            strcpy(name, modern);
            break;
        }
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const dn_stored *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* By name, and no name twice. */
static int sort(dn_checkpoint *c, dn_error *err)
{
    dn_stored_list *l = &c->stored;
    if (l->len > 0)
        qsort(l->at, (size_t)l->len, sizeof *l->at, by_name);
    for (int i = 1; i < l->len; i++) {
        const dn_stored *x = &l->at[i - 1], *y = &l->at[i];
        if (strcmp(x->name, y->name) == 0)
            return dn_fail(err, DN_E_FORMAT, c->sources[y->source].name,
                           "tensor \"%s\" is there twice: in %s and in %s", dn_show(y->name, strlen(y->name)).text,
                           c->sources[x->source].name, c->sources[y->source].name);
    }
    return 0;
}

static const dn_stored *find_stored(const dn_checkpoint *c, const char *name)
{
    int low = 0, high = c->stored.len;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(name, c->stored.at[middle].name);
        if (order == 0)
            return &c->stored.at[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* --- shards --- */

static bool is_open(const dn_checkpoint *c, const char *name)
{
    for (int i = 0; i < c->sources_len; i++)
        if (strcmp(c->sources[i].name, name) == 0)
            return true;
    return false;
}

static int add_shards(dn_checkpoint *c, int dirfd, const json_t *map, const char *index, dn_error *err)
{
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)map, tensor, value)
    {
        const char *name = json_string_value(value);
        dn_shown shown = dn_show(tensor, strlen(tensor));
        if (!name || !dn_name_is_plain(name) || !(has_suffix(name, ".safetensors") || has_suffix(name, ".bin")))
            return dn_fail(err, DN_E_FORMAT, index,
                           "%s: tensor \"%s\": its shard is not the plain name of a weight file", index, shown.text);
        if (is_open(c, name))
            continue;
        if (c->sources_len == SHARDS_MAX)
            return dn_fail(err, DN_E_LIMIT, index, "%s: more than %d shards", index, SHARDS_MAX);
        dn_error why = { 0 };
        int rc = add_file(c, dirfd, name, &why);
        if (rc == DN_E_NOT_FOUND)
            return dn_fail(err, rc, name, "shard %s, where %s looks for tensor \"%s\", is missing", name, index,
                           shown.text);
        if (rc != 0)
            return dn_fail(err, rc, name, "%s", why.message);
    }
    return 0;
}

/* Every tensor is in the shard that the index names. */
static int check_index(const dn_checkpoint *c, const json_t *map, const char *index, dn_error *err)
{
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)map, tensor, value)
    {
        const dn_stored *t = find_stored(c, tensor);
        const char *name = json_string_value(value);
        if (!t || strcmp(c->sources[t->source].name, name) != 0)
            return dn_fail(err, DN_E_FORMAT, name, "tensor \"%s\" is not in %s, where %s looks for it",
                           dn_show(tensor, strlen(tensor)).text, name, index);
    }
    return 0;
}

static int load_sharded(dn_checkpoint *c, int dirfd, const char *index, dn_error *err)
{
    json_t *root;
    int rc = dn_json_load_at(&root, dirfd, index, INDEX_BYTES_MAX, err);
    if (rc != 0)
        return rc;
    json_t *map = json_object_get(root, "weight_map");
    if (json_is_object(map))
        rc = add_shards(c, dirfd, map, index, err);
    else
        rc = dn_fail(err, DN_E_FORMAT, index, "%s: it has no weight_map", index);
    if (rc == 0)
        rc = sort(c, err);
    if (rc == 0)
        rc = check_index(c, map, index, err);
    json_decref(root);
    return rc;
}

/* --- the interface --- */

static int publish(dn_checkpoint *c, dn_error *err)
{
    c->tensors = calloc((size_t)c->stored.len + 1, sizeof *c->tensors);
    if (!c->tensors)
        return dn_fail(err, DN_E_MEMORY, NULL, "no memory for a list of %d tensors", c->stored.len);
    for (int i = 0; i < c->stored.len; i++) {
        const dn_stored *s = &c->stored.at[i];
        c->tensors[i] = (dn_tensor){ .name = s->name,
                                     .dtype = s->dtype->kind,
                                     .dtype_name = s->dtype->name,
                                     .rank = s->rank,
                                     .count = s->count,
                                     .file = c->sources[s->source].name };
        memcpy(c->tensors[i].dim, s->dim, sizeof s->dim);
    }
    return 0;
}

static int load(dn_checkpoint *c, int dirfd, dn_error *err)
{
    char name[DN_FILE_NAME_MAX];
    bool is_index = false;
    int rc = find_weights(name, &is_index, dirfd, err);
    if (rc != 0)
        return rc;
    if (is_index)
        rc = load_sharded(c, dirfd, name, err);
    else {
        rc = add_file(c, dirfd, name, err);
        if (rc == 0)
            rc = rename_legacy(&c->stored, name, err);
        if (rc == 0)
            rc = sort(c, err);
    }
    return rc == 0 ? publish(c, err) : rc;
}

static int open_folder(int *out, const char *dir, const char *component, dn_error *err)
{
    int root = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return dn_fail(err, errno == ENOENT ? DN_E_NOT_FOUND : DN_E_IO, component,
                       "cannot open the model's folder: %m");
    if (!component) {
        *out = root;
        return 0;
    }
    int fd = dn_name_is_plain(component) ? openat(root, component, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0 && (errno != ENOENT || !dn_name_is_plain(component))) {
        int rc = dn_fail(err, DN_E_IO, component, "cannot open the folder of component \"%s\"",
                         dn_show(component, strlen(component)).text);
        close(root);
        return rc;
    }
    if (fd >= 0)
        close(root);
    *out = fd >= 0 ? fd : root;
    return 0;
}

int dn_checkpoint_open(dn_checkpoint **out, const char *dir, const char *component, dn_error *err)
{
    int dirfd = -1;
    int rc = open_folder(&dirfd, dir, component, err);
    if (rc != 0)
        return rc;
    dn_checkpoint *c = calloc(1, sizeof *c);
    rc = c ? load(c, dirfd, err) : dn_fail(err, DN_E_MEMORY, component, "no memory to open a checkpoint");
    close(dirfd);
    if (rc == 0)
        *out = c;
    else
        dn_checkpoint_close(c);
    return rc;
}

void dn_checkpoint_close(dn_checkpoint *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->sources_len; i++)
        dn_source_close(&c->sources[i]);
    free(c->sources);
    free(c->tensors);
    dn_stored_fini(&c->stored);
    free(c);
}

int dn_checkpoint_count(const dn_checkpoint *c) { return c->stored.len; }
const dn_tensor *dn_checkpoint_tensor(const dn_checkpoint *c, int i) { return &c->tensors[i]; }

const dn_tensor *dn_checkpoint_find(const dn_checkpoint *c, const char *name)
{
    const dn_stored *s = find_stored(c, name);
    return s ? &c->tensors[s - c->stored.at] : NULL;
}

int dn_checkpoint_read(const dn_checkpoint *c, const dn_tensor *t, float *dst, dn_error *err)
{
    const dn_stored *s = &c->stored.at[t - c->tensors];
    return dn_stored_read(s, &c->sources[s->source], dst, err);
}
