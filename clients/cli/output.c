/* output.c - see output.h. */
#include "output.h"
#include "array.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SHOWN_MAX = 256 << 20 };
static const char png_type[] = "image/png";

/* "%d", "%03d": its length and width. 0: none here. */
static int number_len(const char *s, int *width)
{
    *width = 0;
    if (!strncmp(s, "%d", 2))
        return 2;
    if (s[0] == '%' && s[1] == '0' && s[2] >= '1' && s[2] <= '9' && s[3] == 'd') {
        *width = s[2] - '0';
        return 4;
    }
    return 0;
}

static int check_pattern(const char *path)
{
    int numbers = 0, width;
    for (const char *s = strchr(path, '%'); s; s = strchr(s, '%')) {
        int n = number_len(s, &width);
        numbers += n > 0;
        if (!n && s[1] != '%')
            numbers = 2;
        s += n ? n : s[1] ? 2 : 1;
    }
    if (numbers < 2)
        return 0;
    dn_complain(
        "-o may have one %%d or %%03d for the number of the sample, and %%%% for a percent sign, got \"%.200s\"", path);
    return DN_EXIT_USAGE;
}

static int check_folder(const char *path)
{
    char folder[DN_PATH_MAX];
    const char *slash = strrchr(path, '/');
    int n = !slash ? 1 : slash == path ? 1 : (int)(slash - path);
    if (strlen(path) >= sizeof folder - 16) {
        dn_complain("-o: the path is too long");
        return DN_EXIT_USAGE;
    }
    snprintf(folder, sizeof folder, "%.*s", n, slash ? path : ".");
    if (access(folder, W_OK | X_OK) && !(slash && !access(path, W_OK))) { /* /dev/null can be written, /dev cannot */
        dn_complain("-o: %s: %s", folder, strerror(errno));
        return DN_EXIT_USAGE;
    }
    return 0;
}

static int choose_show(dn_output_to *o, const char *name, bool to_stdout)
{
    int how = name ? dn_show_find(name) : -1;
    o->forced = how > DN_SHOW_NEVER;
    if (name && how < 0 && strcmp(name, "auto")) {
        dn_complain("--show must be auto, never, kitty, iterm, sixel or blocks, got \"%.40s\"", name);
        return DN_EXIT_USAGE;
    }
    if (o->forced && to_stdout) {
        dn_complain("-o - and --show both write to standard output");
        return DN_EXIT_USAGE;
    }
    if (how >= 0)
        o->how = (enum dn_show)how;
    else if (isatty(STDOUT_FILENO) && !to_stdout && !o->silent)
        o->how = dn_show_detect(getenv);
    return 0;
}

int dn_output_init_shown(dn_output_to *o, const dn_args *args)
{
    *o = (dn_output_to){ .path = args->value[DN_OPT_OUTPUT], .silent = args->value[DN_OPT_QUIET] };
    o->screen = dn_screen_of(STDOUT_FILENO);
    return choose_show(o, args->value[DN_OPT_SHOW], o->path && !strcmp(o->path, "-"));
}

int dn_output_init(dn_output_to *o, const dn_args *args)
{
    int rc = dn_output_init_shown(o, args);
    bool to_stdout = o->path && !strcmp(o->path, "-");
    if (rc)
        return rc;
    if (!o->path && o->how == DN_SHOW_NEVER) {
        dn_complain("-o FILE is needed: the picture is not shown here (see --show)");
        return DN_EXIT_USAGE;
    }
    if (o->path && !*o->path) {
        dn_complain("-o must not be empty");
        return DN_EXIT_USAGE;
    }
    if (to_stdout && isatty(STDOUT_FILENO)) {
        dn_complain("-o - would write bytes to a terminal");
        return DN_EXIT_USAGE;
    }
    if (!o->path || to_stdout)
        return 0;
    rc = check_pattern(o->path);
    return rc ? rc : check_folder(o->path);
}

/* Where -k goes when the pattern has no number: before the extension. */
static const char *stem_end(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    return dot && dot > name ? dot : name + strlen(name);
}

int dn_output_path(char out[DN_PATH_MAX], const char *pattern, int k, bool several)
{
    dn_buf b;
    int width;
    bool numbered = false;
    dn_buf_init(&b, DN_PATH_MAX - 1);
    for (const char *s = pattern; *s; s++) {
        numbered |= number_len(s, &width) > 0;
        s += s[0] == '%' && s[1] == '%';
    }
    const char *end = numbered || !(several || k) ? NULL : stem_end(pattern);
    for (const char *s = pattern;; s++) {
        if (s == end)
            dn_buf_printf(&b, "-%d", k);
        int n = number_len(s, &width);
        if (!*s)
            break;
        if (n)
            dn_buf_printf(&b, "%0*d", width, k);
        else
            dn_buf_add(&b, s, 1);
        s += n ? n - 1 : s[0] == '%' && s[1] == '%';
    }
    int rc = b.failed ? -1 : 0;
    if (!rc)
        snprintf(out, DN_PATH_MAX, "%s", b.data ? b.data : "");
    dn_buf_fini(&b);
    return rc;
}

static int complain_write(const char *path)
{
    dn_complain("%s: %s", path, strerror(errno));
    return DN_EXIT_FAILED;
}

static int write_file(dn_output_to *o, int k, const void *data, size_t n)
{
    char path[DN_PATH_MAX];
    if (dn_output_path(path, o->path, k, o->several)) {
        dn_complain("-o: the path is too long");
        return DN_EXIT_FAILED;
    }
    FILE *f = fopen(path, "we");
    if (!f)
        return complain_write(path);
    bool ok = fwrite(data, 1, n, f) == n;
    ok = !fclose(f) && ok;
    if (ok && !o->silent)
        fprintf(stderr, "wrote %s\n", path);
    return ok ? 0 : complain_write(path);
}

static int write_stdout(dn_output_to *o, const void *data, size_t n)
{
    if (o->files) {
        dn_complain("-o - has room for one result only; -n 1, --grid or --format npy give one");
        return DN_EXIT_FAILED;
    }
    return fwrite(data, 1, n, stdout) != n || fflush(stdout) ? complain_write("standard output") : 0;
}

/* Draw over the preview, if there is one. False when it is no picture that can be shown. */
static bool show(dn_output_to *o, const void *png, size_t n, int *lines)
{
    dn_buf b;
    dn_buf_init(&b, SHOWN_MAX);
    if (o->preview_lines)
        dn_buf_printf(&b, "\033[%dA\033[J", o->preview_lines);
    bool ok = dn_show_picture(&b, lines, o->how, &o->screen, png, n);
    if (ok)
        ok = fwrite(b.data, 1, b.len, stdout) == b.len && !fflush(stdout);
    dn_buf_fini(&b);
    return ok;
}

static int write_result(dn_output_to *o, int k, const void *data, size_t n)
{
    int rc = strcmp(o->path, "-") ? write_file(o, k, data, n) : write_stdout(o, data, n);
    o->files += !rc;
    return rc;
}

/* Samples come in any order, each once. */
static int keep_part(dn_output_to *o, int k, const char *content_type, const void *data, size_t n)
{
    if (o->part[k].data || (o->n_parts && strcmp(content_type, o->part_type))) {
        dn_complain("sample %d came twice, or in another format", k);
        return DN_EXIT_SERVER;
    }
    void *copy = malloc(n ? n : 1);
    if (!copy) {
        dn_complain("no memory for sample %d", k);
        return DN_EXIT_FAILED;
    }
    memcpy(copy, data, n);
    o->part[k] = (dn_bytes){ copy, n };
    o->n_parts++;
    snprintf(o->part_type, sizeof o->part_type, "%s", content_type);
    return 0;
}

/* Samples come in any order and are shown in theirs. */
static void show_in_order(dn_output_to *o, int k, const void *png, size_t n)
{
    void *copy = malloc(n ? n : 1);
    if (!copy || o->unseen[k].data) {
        dn_complain("sample %d is not shown: %s", k, copy ? "it came twice" : "no memory");
        free(copy);
        return;
    }
    memcpy(copy, png, n);
    o->unseen[k] = (dn_bytes){ copy, n };
    for (int lines; o->next_shown < DN_N_MAX && o->unseen[o->next_shown].data; o->next_shown++) {
        const dn_bytes *next = &o->unseen[o->next_shown];
        if (show(o, next->data, next->len, &lines))
            o->preview_lines = 0;
        else
            dn_complain("sample %d cannot be shown: it is no PNG that can be read here", o->next_shown);
    }
}

int dn_output_result(dn_output_to *o, int k, const char *content_type, const void *data, size_t n)
{
    if (o->how != DN_SHOW_NEVER && !strcmp(content_type, png_type)) {
        show_in_order(o, k, data, n);
    } else if (o->forced || !o->path) {
        dn_complain("%s cannot be shown%s", content_type, o->path ? "" : "; -o FILE keeps it");
    }
    if (!o->path)
        return 0;
    return dn_array_is(content_type) ? keep_part(o, k, content_type, data, n) : write_result(o, k, data, n);
}

int dn_output_finish(dn_output_to *o)
{
    for (int k = 0; k < o->n_parts; k++)
        if (!o->part[k].data) {
            dn_complain("sample %d did not come", k);
            return DN_EXIT_SERVER;
        }
    if (o->n_parts < 2)
        return o->n_parts ? write_result(o, 0, o->part[0].data, o->part[0].len) : 0;
    dn_buf all;
    dn_buf_init(&all, SIZE_MAX / 2);
    int rc = DN_EXIT_SERVER;
    if (dn_array_join(&all, o->part_type, o->part, o->n_parts))
        rc = write_result(o, 0, all.data, all.len);
    else
        dn_complain("the samples do not make one array");
    dn_buf_fini(&all);
    return rc;
}

void dn_output_fini(dn_output_to *o)
{
    for (int k = 0; k < DN_N_MAX; k++) {
        free((void *)o->part[k].data);
        free((void *)o->unseen[k].data);
    }
}

bool dn_output_preview(dn_output_to *o, int k, const void *png, size_t n)
{
    int lines;
    if (o->how == DN_SHOW_NEVER)
        return false;
    if (k || o->next_shown) /* one place, one sample */
        return true;
    if (!show(o, png, n, &lines))
        return false;
    o->preview_lines = isatty(STDOUT_FILENO) ? lines : 0;
    return true;
}
