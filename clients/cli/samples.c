/* samples.c - see samples.h.
 *
 * The daemon lists them in pages, newest first. A file is called STEP-SEED-NUMBER-LABEL.png, its step with zeros before
 * it, so that files stand in the order of training; of the label only what is plain in a file's name is kept. */
#include "samples.h"
#include "columns.h"
#include "download.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PICTURE_MAX = 64 << 20,
    PAGES_MAX = 4096,
    SAMPLE_NAME_MAX = 80, /* of "120-5-0" */
    LABEL_MAX = 48,
};

int dn_samples_folder(const char *folder)
{
    struct stat st;
    if (*folder && (!mkdir(folder, 0777) || errno == EEXIST) && !stat(folder, &st)) {
        if (!S_ISDIR(st.st_mode))
            errno = ENOTDIR;
        else if (!access(folder, W_OK | X_OK))
            return 0;
    }
    dn_complain("-o: %s: %s", folder, *folder ? strerror(errno) : "a folder has a name");
    return DN_EXIT_USAGE;
}

int dn_samples_init(dn_samples *s, dn_client *c, const char *id, const char *folder)
{
    *s = (dn_samples){ .client = c, .id = id, .folder = folder, .had = json_object() };
    if (s->had)
        return 0;
    dn_complain("no memory for the previews");
    return DN_EXIT_FAILED;
}

void dn_samples_fini(dn_samples *s)
{
    json_decref(s->had);
    s->had = NULL;
}

/* "120-5-0", "120-5--1": three numbers, the last of them may be negative. */
static bool read_name(const char *name, int64_t *step, int64_t *seed, int *label)
{
    int n = 0;
    return strlen(name) < SAMPLE_NAME_MAX && !name[strspn(name, "0123456789-")] && *name != '-' &&
           sscanf(name, "%18" SCNd64 "-%18" SCNd64 "-%9d%n", step, seed, label, &n) == 3 && !name[n] && *seed >= 0;
}

const char *dn_sample_name(const char *id, const char *url)
{
    char prefix[DN_ID_MAX + 24];
    int64_t step, seed;
    int label;
    size_t n = (size_t)snprintf(prefix, sizeof prefix, "/jobs/%s/samples/", id);
    return !strncmp(url, prefix, n) && read_name(url + n, &step, &seed, &label) ? url + n : NULL;
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

/* `gone` NULL: what is not there is a failure like others. */
static int ask(dn_client *c, dn_transfer *t, bool patient, bool *gone)
{
    int rc = dn_client_run(c, t, NULL);
    if (gone && (*gone = !rc && t->status == 404))
        return 0;
    if (patient && rc != DN_EXIT_INTERRUPTED && (rc || t->status / 100 != 2))
        return DN_SAMPLES_LATER;
    return dn_client_complain(c, t, rc);
}

static int odd(const char *what)
{
    dn_complain("the daemon's list of previews has %s that cannot be understood", what);
    return DN_EXIT_SERVER;
}

/* The name after which the next page begins; "": there is none. */
static int next_of(char after[SAMPLE_NAME_MAX], const json_t *page)
{
    const char *next = dn_json_text(page, "next");
    int64_t step, seed;
    int label;
    if (*next && (!read_name(next, &step, &seed, &label) || !strcmp(next, after)))
        return odd("a next page");
    snprintf(after, SAMPLE_NAME_MAX, "%s", next);
    return 0;
}

/* Each page is given to `take`, whose result (not 0: stop) is returned. */
static int each_page(dn_client *c, const char *id, bool patient,
                     int (*take)(void *arg, const json_t *page, const dn_transfer *t), void *arg)
{
    char path[DN_ID_MAX + SAMPLE_NAME_MAX + 40], after[SAMPLE_NAME_MAX] = "";
    int rc = 0;
    for (int i = 0; !rc && i < PAGES_MAX && (!i || *after); i++) {
        json_t *page = NULL;
        dn_transfer t = { .method = "GET", .path = path };
        snprintf(path, sizeof path, "/jobs/%s/samples%s%s", id, *after ? "?after=" : "", after);
        rc = ask(c, &t, patient, NULL);
        if (!rc)
            rc = dn_client_parse(&t, &page);
        if (!rc)
            rc = take(arg, page, &t);
        if (!rc)
            rc = next_of(after, page);
        json_decref(page);
        dn_transfer_fini(&t);
    }
    return !rc && *after ? odd("a length") : rc;
}

/* ---- saving ----------------------------------------------------------------------------------------------------- */

/* 0, or -1 when it does not fit. */
static int file_of(char out[4096], const dn_samples *s, const char *name, const char *label)
{
    int64_t step = 0, seed = 0;
    int number = 0, n;
    char plain[LABEL_MAX + 1];
    read_name(name, &step, &seed, &number);
    size_t k = 0;
    for (; label[k] && k < LABEL_MAX; k++) {
        bool good = (label[k] >= '0' && label[k] <= '9') || (label[k] >= 'a' && label[k] <= 'z') ||
                    (label[k] >= 'A' && label[k] <= 'Z');
        plain[k] = good || strchr("-_", label[k]) ? label[k] : '_';
    }
    plain[k] = 0;
    char digits[16];
    snprintf(digits, sizeof digits, "%d", number);
    if (!strcmp(plain, digits)) /* a class that has no name */
        plain[k = 0] = 0;
    if (number < 0)
        n = snprintf(out, 4096, "%s/%07" PRId64 "-%" PRId64 "-none.png", s->folder, step, seed);
    else
        n = snprintf(out, 4096, "%s/%07" PRId64 "-%" PRId64 "-%d%s%s.png", s->folder, step, seed, number, k ? "-" : "",
                     plain);
    return n < 4096 ? 0 : -1;
}

static int write_file(const char *path, const dn_buf *b)
{
    dn_download d;
    if (dn_download_begin(&d, path))
        return DN_EXIT_FAILED;
    return dn_download_end(&d, b->len && d.taker.take(d.taker.arg, b->data, b->len) ? DN_EXIT_FAILED : 0);
}

/* One that is gone (its job was cut back, and makes it again) is left out. */
static int save_one(dn_samples *s, const char *name, const json_t *sample, bool patient)
{
    char path[DN_ID_MAX + SAMPLE_NAME_MAX + 24], file[4096];
    dn_transfer t = { .method = "GET", .path = path, .max = PICTURE_MAX };
    snprintf(path, sizeof path, "/jobs/%s/samples/%s", s->id, name);
    bool gone;
    int rc = ask(s->client, &t, patient, &gone);
    if (!rc && !gone && file_of(file, s, name, dn_json_text(sample, "label"))) {
        dn_complain("-o: the path is too long");
        rc = DN_EXIT_FAILED;
    }
    if (!rc && !gone)
        rc = write_file(file, &t.answer);
    dn_transfer_fini(&t);
    if (rc || gone)
        return rc;
    long step = dn_json_count(sample, "step");
    s->saved++;
    s->newest = step > s->newest ? step : s->newest;
    return json_object_set_new(s->had, name, json_string(dn_json_text(sample, "sha256"))) ? DN_EXIT_FAILED : 0;
}

typedef struct saving {
    dn_samples *s;
    bool newest, patient;
} saving;

enum { ENOUGH = 1000 }; /* of each_page: no failure */

static int save_page(void *arg, const json_t *page, const dn_transfer *t)
{
    (void)t;
    saving *v = arg;
    size_t i;
    json_t *sample;
    int rc = 0;
    long before = v->s->saved;
    json_array_foreach(json_object_get(page, "samples"), i, sample)
    {
        const char *name = dn_sample_name(v->s->id, dn_json_text(sample, "url"));
        const char *sha = name ? dn_json_text(v->s->had, name) : "";
        if (!name)
            return odd("a preview");
        if (!*sha || strcmp(sha, dn_json_text(sample, "sha256")))
            rc = save_one(v->s, name, sample, v->patient);
        if (rc)
            return rc;
    }
    return v->newest && v->s->saved == before ? ENOUGH : 0;
}

int dn_samples_save(dn_samples *s, bool newest, bool patient)
{
    saving v = { s, newest, patient };
    int rc = each_page(s->client, s->id, patient, save_page, &v);
    return rc == ENOUGH ? 0 : rc;
}

/* ---- the list --------------------------------------------------------------------------------------------------- */

typedef struct printing {
    dn_columns columns;
    bool raw;
} printing;

static int print_page(void *arg, const json_t *page, const dn_transfer *t)
{
    printing *p = arg;
    size_t i;
    json_t *sample;
    char step[24], seed[24];
    if (p->raw) {
        fwrite(t->answer.data, 1, t->answer.len, stdout);
        fputc('\n', stdout);
        return 0;
    }
    json_array_foreach(json_object_get(page, "samples"), i, sample)
    {
        const json_t *label = json_object_get(sample, "label");
        snprintf(step, sizeof step, "%ld", dn_json_count(sample, "step"));
        snprintf(seed, sizeof seed, "%.0f", dn_json_number(sample, "seed"));
        dn_columns_add(&p->columns,
                       (const char *const[]){ step, seed, json_is_null(label) ? "none" : dn_json_text(sample, "label"),
                                              dn_json_text(sample, "sha256") });
    }
    return 0;
}

int dn_samples_print(dn_client *c, const char *id, bool raw)
{
    static const char *const names[] = { "STEP", "SEED", "LABEL", "SHA256", NULL };
    printing p = { .raw = raw };
    dn_columns_init(&p.columns, names);
    int rc = each_page(c, id, false, print_page, &p);
    if (!rc && !raw)
        dn_columns_print(&p.columns, 0, stdout);
    dn_columns_fini(&p.columns);
    return rc;
}
