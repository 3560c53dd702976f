/* daemon_config.c - the daemon's configuration from flags, variables and an INI file, by one table. */
#include "daemon_config.h"
#include "json.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <ini.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIST(...) ((const char *const[]){ __VA_ARGS__, NULL })

enum { INI_LINE_MAX = 8192, PATH_LEN_MAX = 4000, LIST_MAX = 64 };

/* clang-format off */
#define AT(member) .offset = offsetof(dn_config, member)
static const dn_field config_v[DN_CONFIG_FIELDS] = {
    [DN_CONFIG_CONFIG] = { "config", DN_T_STR, AT(config), .flags = DN_F_NO_FILE, .min = 1, .max = PATH_LEN_MAX,
        .help = "An INI file with these keys." },
    [DN_CONFIG_INSECURE] = { "insecure", DN_T_BOOL, AT(insecure), .def = "false",
        .help = "Listen beyond loopback although there is no token-file." },
    [DN_CONFIG_LISTEN] = { "listen", DN_T_STRS, AT(listen), .min = 1, .max = 128, .count_max = 8, .def = "127.0.0.1:8760",
        .help = "Addresses: HOST:PORT, [HOST]:PORT, unix:/path." },
    [DN_CONFIG_MODELS] = { "models", DN_T_STR, AT(models), .min = 1, .max = PATH_LEN_MAX, .def = "models",
        .help = "The folder of models; read only." },
    [DN_CONFIG_LOAD] = { "load", DN_T_STRS, AT(load), .min = 1, .max = 64, .count_max = LIST_MAX,
        .help = "Models to load at the start, or none. Not given: all that fit." },
    [DN_CONFIG_STATE] = { "state", DN_T_STR, AT(state), .min = 1, .max = PATH_LEN_MAX,
        .help = "The folder of what must survive: made 0700 and locked. Not given: nothing survives a restart." },
    [DN_CONFIG_DEVICES] = { "devices", DN_T_STRS, AT(devices), .flags = DN_F_DEVICES, .min = 1, .max = 128, .count_max = 16, .def = "cpu",
        .help = "What computes: cpu, cpu:0-3, ref; a list of them." },
    [DN_CONFIG_MEMORY] = { "memory", DN_T_SIZE, AT(memory), .min = 0, .max = 0x1p50, .def = "0",
        .help = "Weights, arenas, samples and results together; 0 is 80% of the cgroup or machine." },
    [DN_CONFIG_MAX_ROWS] = { "max-rows", DN_T_INT, AT(max_rows), .min = 1, .max = 1024, .def = "64",
        .help = "Most rows of a batch." },
    [DN_CONFIG_STEP_MS] = { "step-ms", DN_T_NUM, AT(step_ms), .min = 1, .max = 60000, .def = "100", .unit = "ms",
        .help = "How long a batch may take: who joins or leaves waits that long." },
    [DN_CONFIG_YIELD_MS] = { "yield-ms", DN_T_NUM, AT(yield_ms), .min = 0.1, .max = 60000, .def = "20", .unit = "ms",
        .help = "How long training runs before samples that wait have their turn." },
    [DN_CONFIG_MAX_QUEUE_MS] = { "max-queue-ms", DN_T_INT, AT(max_queue_ms), .min = 1, .max = 86400000, .def = "300000", .unit = "ms",
        .help = "Most work that may wait; beyond it requests are refused with 429." },
    [DN_CONFIG_TOKEN_FILE] = { "token-file", DN_T_STR, AT(token_file), .min = 1, .max = PATH_LEN_MAX,
        .help = "Bearer tokens, one per line. Not given: no token is asked for." },
    [DN_CONFIG_HOST_NAMES] = { "host-names", DN_T_STRS, AT(host_names), .min = 1, .max = 253, .count_max = LIST_MAX,
        .help = "Names in Host that are answered besides loopback." },
    [DN_CONFIG_CORS_ORIGIN] = { "cors-origin", DN_T_STRS, AT(cors_origin), .min = 1, .max = 280, .count_max = LIST_MAX,
        .help = "Foreign origins whose pages may send requests." },
    [DN_CONFIG_DRAIN_MS] = { "drain-ms", DN_T_INT, AT(drain_ms), .min = 0, .max = 86400000, .def = "30000", .unit = "ms",
        .help = "How long running work may go on after SIGTERM." },
    [DN_CONFIG_LOG_FORMAT] = { "log-format", DN_T_ENUM, AT(log_format), .choices = LIST("logfmt", "json"), .def = "logfmt",
        .help = "The form of a line of the log." },
    [DN_CONFIG_RESULT_BYTES] = { "result-bytes", DN_T_SIZE, AT(result_bytes), .min = 0, .max = 0x1p50, .def = "1GiB",
        .help = "Most bytes of finished asynchronous requests that are kept." },
    [DN_CONFIG_RESULT_TTL] = { "result-ttl", DN_T_TIME, AT(result_ttl_ms), .min = 1000, .max = 30 * 86400e3, .def = "1h",
        .help = "How long they are kept." },
    [DN_CONFIG_DISK_RESERVE] = { "disk-reserve", DN_T_SIZE, AT(disk_reserve), .min = 0, .max = 0x1p50, .def = "1GiB",
        .help = "Free bytes to leave where the state is: with less, uploads and asynchronous requests are refused with 507." },
    [DN_CONFIG_UPLOAD_BYTES] = { "upload-bytes", DN_T_SIZE, AT(upload_bytes), .min = 1, .max = 0x1p50, .def = "16GiB",
        .help = "The largest data set or checkpoint that can be uploaded." },
};
const dn_fields dn_config_fields = { "configuration", "The daemon's configuration.", config_v, DN_CONFIG_FIELDS, sizeof(dn_config) };

/* Variables that begin with our prefix and are not configuration: the engine's debugging, the client's, and what Kubernetes puts
 * into every pod beside a service named `denoised`. A * stands for any rest. */
static const char *const foreign_variables[] = { "TRACE", "CHECK", "URL", "TOKEN", "SERVICE_*", "PORT", "PORT_*" };

static const struct {
    const char *flag;
    enum dn_config_action action;
    const char *value, *help; /* value: what it takes; NULL: nothing */
} actions[] = {
    { "--print-config", DN_ACTION_PRINT_CONFIG, NULL, "Print the effective configuration as an INI file and stop." },
    { "--check", DN_ACTION_CHECK, NULL, "Check the configuration and the models, and stop." },
    { "--backup", DN_ACTION_BACKUP, "DIR", "Copy the state into this new folder and stop; the daemon may be running." },
    { "--help", DN_ACTION_HELP, NULL, "This text." },
    { "--version", DN_ACTION_VERSION, NULL, "The version." },
};
/* clang-format on */

struct reader {
    dn_config *c;
    dn_arena *arena;
    dn_http_error *err;
    uint64_t seen; /* fields that the present source has given */
    FILE *file;
    const char *path;
    int line;
    bool line_too_long;
};

/* Put the source before the message: "DENOISED_STEP_MS: step-ms must be ...". */
static int blame(dn_http_error *err, const char *source)
{
    dn_http_error e = *err;
    return dn_http_fail(err, e.id, e.param, "%.300s: %.200s", source, e.message);
}

/* What an INI file cannot hold is no value from anywhere, so that --print-config can say everything. */
static bool fits_ini(const char *text)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < len; i++)
        if (iscntrl((unsigned char)text[i]) || (text[i] == ';' && (i == 0 || isspace((unsigned char)text[i - 1]))))
            return false;
    return len < INI_LINE_MAX - 64 &&
           (!len || (!isspace((unsigned char)text[0]) && !isspace((unsigned char)text[len - 1])));
}

static int set_field(struct reader *r, int field, const char *text, const char *source)
{
    const char *name = config_v[field].name;
    if (r->seen >> field & 1)
        dn_http_fail(r->err, DN_H_DUPLICATE, name, "%s is given twice", name);
    else if (!fits_ini(text))
        dn_http_fail(r->err, DN_H_INVALID, name,
                     "%s has blanks, semicolons or control characters that a file cannot hold", name);
    else {
        json_t *v = dn_field_from_text(&config_v[field], text, r->err);
        int code = v ? dn_field_set(&dn_config_fields, field, r->c, r->arena, v, r->err) : r->err->id;
        json_decref(v);
        r->seen |= 1ull << field;
        if (!code)
            return 0;
    }
    return blame(r->err, source);
}

static int fail_unknown(struct reader *r, const char *name, const char *source, const char *what)
{
    const char *names[DN_CONFIG_FIELDS + 1] = { NULL };
    for (int i = 0; i < DN_CONFIG_FIELDS; i++)
        names[i] = config_v[i].name;
    const char *near = dn_near_miss(name, names);
    dn_http_fail(r->err, DN_H_UNKNOWN, name, "there is no %s \"%.60s\"%s%s%s", what, name,
                 near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
    return blame(r->err, source);
}

/* inih asks for lines here. An indented line would continue the one before; blanks at the start are dropped. */
static char *read_line(char *line, int size, void *user)
{
    struct reader *r = user;
    if (!fgets(line, size, r->file))
        return NULL;
    r->line++;
    size_t len = strlen(line), blanks = strspn(line, " \t");
    if (len + 1 == (size_t)size && line[len - 1] != '\n')
        r->line_too_long = true;
    memmove(line, line + blanks, len + 1 - blanks);
    return line;
}

static int take_key(void *user, const char *section, const char *name, const char *value)
{
    struct reader *r = user;
    char source[PATH_LEN_MAX + 32];
    if (r->err->id)
        return 0;
    snprintf(source, sizeof source, "%s:%d", r->path, r->line);
    int field = dn_fields_find(&dn_config_fields, name);
    if (*section && strcmp(section, "denoised"))
        return !fail_unknown(r, section, source, "section");
    if (field < 0 || config_v[field].flags & DN_F_NO_FILE)
        return !fail_unknown(r, name, source, "key");
    return !set_field(r, field, value, source);
}

static int read_ini(struct reader *r, const char *path)
{
    r->path = path;
    r->seen = 0;
    r->file = fopen(path, "re");
    if (!r->file)
        return dn_http_fail(r->err, DN_H_IO, "config", "%.400s: %m", path);
    ini_max_line = INI_LINE_MAX;
    int bad = ini_parse_stream(read_line, r, take_key, r);
    fclose(r->file);
    if (r->err->id)
        return r->err->id;
    if (r->line_too_long)
        return dn_http_fail(r->err, DN_H_LIMIT, "config", "%.400s: a line of more than %d bytes", path,
                            INI_LINE_MAX - 2);
    return bad ? dn_http_fail(r->err, DN_H_INVALID, "config", "%.400s:%d: expected key = value", path, bad) : 0;
}

static bool is_foreign(const char *name)
{
    for (size_t i = 0; i < sizeof foreign_variables / sizeof *foreign_variables; i++) {
        const char *f = foreign_variables[i];
        size_t len = strcspn(f, "*");
        if (!strncmp(name, f, len) && (f[len] || !name[len]))
            return true;
    }
    return false;
}

/* Split "DENOISED_STEP_MS=50" into the key "step-ms" and its value; NULL when it is not ours or empty. */
static const char *variable(const char *entry, char *key, size_t size)
{
    const char *eq = strchr(entry, '=');
    if (strncmp(entry, "DENOISED_", 9) || !eq || !eq[1])
        return NULL;
    snprintf(key, size, "%.*s", (int)(eq - entry) - 9, entry + 9);
    if (is_foreign(key))
        return NULL;
    for (char *c = key; *c; c++)
        *c = *c == '_' ? '-' : (char)tolower((unsigned char)*c);
    return eq + 1;
}

static int read_env(struct reader *r, char *const *env)
{
    r->seen = 0;
    for (; env && *env; env++) {
        char key[64], source[96];
        const char *value = variable(*env, key, sizeof key);
        if (!value)
            continue;
        snprintf(source, sizeof source, "%.*s", (int)strcspn(*env, "="), *env);
        int field = dn_fields_find(&dn_config_fields, key);
        int code = field < 0 ? fail_unknown(r, key, source, "key") : set_field(r, field, value, source);
        if (code)
            return code;
    }
    return 0;
}

/* An action at argv[0]: how many arguments it used; 0: it is none; -1 with *err. */
static int read_action(struct reader *r, enum dn_config_action *action, char *const *argv, int argc)
{
    size_t len = strcspn(argv[0], "=");
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        bool same = !strncmp(argv[0], actions[i].flag, len) && !actions[i].flag[len];
        bool has_value = argv[0][len];
        if (!same && !(actions[i].action == DN_ACTION_HELP && !strcmp(argv[0], "-h")))
            continue;
        if (has_value && !actions[i].value)
            return 0; /* read_flag says that there is no such flag */
        *action = actions[i].action;
        if (!actions[i].value)
            return 1;
        const char *value = has_value ? argv[0] + len + 1 : argc > 1 ? argv[1] : "";
        if (!*value) {
            dn_http_fail(r->err, DN_H_MISSING, actions[i].flag + 2, "%s needs a value", actions[i].flag);
            return -1;
        }
        r->c->backup = dn_arena_strndup(r->arena, value, strlen(value));
        if (!r->c->backup) {
            dn_http_fail(r->err, DN_H_MEMORY, NULL, NULL);
            return -1;
        }
        return has_value ? 1 : 2;
    }
    return 0;
}

/* One flag at argv[0]: how many arguments it used, or -1 with *err. */
static int read_flag(struct reader *r, char *const *argv, int argc)
{
    char name[64];
    const char *arg = argv[0], *eq = strchr(arg, '=');
    if (strncmp(arg, "--", 2)) {
        dn_http_fail(r->err, DN_H_UNKNOWN, arg, "\"%.60s\" is no flag", arg);
        return -1;
    }
    snprintf(name, sizeof name, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    char source[72];
    snprintf(source, sizeof source, "--%s", name);
    int field = dn_fields_find(&dn_config_fields, name);
    if (field < 0) {
        fail_unknown(r, name, source, "flag");
        return -1;
    }
    bool alone = !eq && config_v[field].type == DN_T_BOOL;
    if (!eq && !alone && argc < 2) {
        dn_http_fail(r->err, DN_H_MISSING, name, "%s needs a value", source);
        return -1;
    }
    if (set_field(r, field, eq ? eq + 1 : alone ? "true" : argv[1], source))
        return -1;
    return eq || alone ? 1 : 2;
}

static int read_flags(struct reader *r, enum dn_config_action *action, int argc, char *const *argv)
{
    r->seen = 0;
    for (int i = 1; i < argc;) {
        int used = read_action(r, action, argv + i, argc - i);
        if (!used)
            used = read_flag(r, argv + i, argc - i);
        if (used < 0)
            return r->err->id;
        i += used;
    }
    return 0;
}

/* Is it an address that only this machine reaches? -1: no address at all. */
static int is_loopback(const char *listen)
{
    char host[128];
    struct in_addr v4;
    struct in6_addr v6;
    if (!strncmp(listen, "unix:/", 6))
        return 1;
    const char *colon = strrchr(listen, ':');
    char *end = NULL;
    long port = colon ? strtol(colon + 1, &end, 10) : -1;
    if (!colon || !isdigit((unsigned char)colon[1]) || *end || port > 65535)
        return -1;
    bool bracket = listen[0] == '[' && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)(colon - listen) - 2 * bracket, listen + bracket);
    if (bracket)
        return inet_pton(AF_INET6, host, &v6) == 1 ? IN6_IS_ADDR_LOOPBACK(&v6) : -1;
    if (!strcmp(host, "localhost"))
        return 1;
    return inet_pton(AF_INET, host, &v4) == 1 ? ntohl(v4.s_addr) >> 24 == 127 : -1;
}

static int check(const dn_config *c, dn_http_error *err)
{
    for (int i = 0; i < c->listen.n; i++) {
        const char *address = c->listen.v[i];
        int loopback = is_loopback(address);
        if (loopback < 0)
            return dn_http_fail(err, DN_H_INVALID, "listen",
                                "listen: \"%s\" is not ADDRESS:PORT, [ADDRESS]:PORT or unix:/path", address);
        if (!loopback && !c->token_file && !c->insecure)
            return dn_http_fail(err, DN_H_FORBIDDEN, "listen",
                                "listen: %s is reachable from elsewhere; give token-file, or insecure", address);
    }
    return 0;
}

int dn_config_load(dn_config *out, enum dn_config_action *action, dn_arena *a, int argc, char *const *argv,
                   char *const *env, dn_http_error *err)
{
    dn_http_error mine = { 0 };
    dn_config c = { 0 }, outer = { 0 };
    enum dn_config_action act = DN_ACTION_RUN;
    struct reader r = { .c = &outer, .arena = a, .err = &mine };
    int code = dn_fields_defaults(&dn_config_fields, &c, a, &mine);
    /* Once for the name of the file, then all sources over the defaults, the weakest first. */
    if (!code && !(code = read_env(&r, env)) && !(code = read_flags(&r, &act, argc, argv))) {
        r.c = &c;
        if (outer.config && act != DN_ACTION_HELP && act != DN_ACTION_VERSION)
            code = read_ini(&r, outer.config);
        if (!code && !(code = read_env(&r, env)))
            code = read_flags(&r, &act, argc, argv);
        if (!code && act != DN_ACTION_HELP && act != DN_ACTION_VERSION)
            code = check(&c, &mine);
    }
    if (code) {
        if (err)
            *err = mine;
        return code;
    }
    *out = c;
    *action = act;
    return 0;
}

/* 1GiB, 512MiB, 1000 */
static void print_units(dn_buf *b, int64_t v, const int64_t *factors, const char *const *names)
{
    int i = 0;
    while (names[i + 1] && (v == 0 || v % factors[i]))
        i++;
    dn_buf_printf(b, "%" PRId64 "%s", v / factors[i], names[i]);
}

static void print_value(dn_buf *b, const dn_field *f, const void *src)
{
    static const int64_t sizes[] = { 1ll << 40, 1ll << 30, 1ll << 20, 1ll << 10, 1 };
    static const int64_t times[] = { 86400000, 3600000, 60000, 1000, 1 };
    const dn_strs *strs = src;
    switch (f->type) {
    case DN_T_BOOL:
        dn_buf_puts(b, *(const bool *)src ? "true" : "false");
        break;
    case DN_T_INT:
        dn_buf_printf(b, "%" PRId64, *(const int64_t *)src);
        break;
    case DN_T_NUM:
        dn_buf_json_number(b, *(const double *)src);
        break;
    case DN_T_ENUM:
        dn_buf_puts(b, f->choices[*(const int *)src]);
        break;
    case DN_T_STRS:
        for (int i = 0; i < strs->n; i++)
            dn_buf_printf(b, "%s%s", i ? "," : "", strs->v[i]);
        break;
    case DN_T_SIZE:
        print_units(b, *(const int64_t *)src, sizes, LIST("TiB", "GiB", "MiB", "KiB", ""));
        break;
    case DN_T_TIME:
        print_units(b, *(const int64_t *)src, times, LIST("d", "h", "m", "s", "ms"));
        break;
    default:
        dn_buf_puts(b, *(const char *const *)src);
    }
}

static bool is_unset(const dn_field *f, const void *src)
{
    return f->type == DN_T_STRS ? !((const dn_strs *)src)->n : f->type == DN_T_STR && !*(const char *const *)src;
}

void dn_config_print(const dn_config *c, dn_buf *b)
{
    for (int i = 0; i < DN_CONFIG_FIELDS; i++) {
        const dn_field *f = &config_v[i];
        const void *src = (const char *)c + f->offset;
        if (f->flags & DN_F_NO_FILE)
            continue;
        dn_buf_printf(b, "# %s\n", f->help);
        if (is_unset(f, src)) {
            dn_buf_printf(b, "# %s =\n\n", f->name);
            continue;
        }
        dn_buf_printf(b, "%s = ", f->name);
        print_value(b, f, src);
        dn_buf_puts(b, "\n\n");
    }
}

void dn_config_help(dn_buf *b)
{
    static const char *const values[DN_T_COUNT] = {
        [DN_T_STR] = " PATH", [DN_T_STRS] = " LIST", [DN_T_INT] = " N",
        [DN_T_NUM] = " N",    [DN_T_SIZE] = " SIZE", [DN_T_TIME] = " TIME"
    };
    for (int i = 0; i < DN_CONFIG_FIELDS; i++) {
        const dn_field *f = &config_v[i];
        char left[64] = "";
        snprintf(left, sizeof left, "--%s%s", f->name, values[f->type] ? values[f->type] : "");
        for (int k = 0; f->choices && f->choices[k]; k++) {
            size_t n = strlen(left);
            snprintf(left + n, sizeof left - n, "%s%s", k ? "|" : " ", f->choices[k]);
        }
        dn_buf_printf(b, "  %-26s %s", left, f->help);
        if (f->def && f->type != DN_T_BOOL)
            dn_buf_printf(b, " (%s)", f->def);
        dn_buf_puts(b, "\n");
    }
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", actions[i].flag, actions[i].value ? " " : "",
                 actions[i].value ? actions[i].value : "");
        dn_buf_printf(b, "  %-26s %s\n", left, actions[i].help);
    }
}

void dn_config_markdown(dn_buf *b)
{
    dn_buf_puts(b, "| flag | variable | default | meaning |\n|---|---|---|---|\n");
    for (int i = 0; i < DN_CONFIG_FIELDS; i++) {
        const dn_field *f = &config_v[i];
        char variable_name[64];
        snprintf(variable_name, sizeof variable_name, "%s", f->name);
        for (char *c = variable_name; *c; c++)
            *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        dn_buf_printf(b, "| `--%s` | `DENOISED_%s` | %s%s%s | %s |\n", f->name, variable_name, f->def ? "`" : "",
                      f->def ? f->def : "", f->def ? "`" : "", f->help);
    }
}
