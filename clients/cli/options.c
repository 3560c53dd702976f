/* options.c - the command line into dn_args.
 *
 * Three tables give the flags: dn_options, and proto's of the command's query and request. A command's name may have
 * two words, which stand together: the longer name wins, and after "--" every word is an operand. */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

const dn_option dn_options[DN_OPT_COUNT] = {
#define X(id, name, short_name, argument, commands, help) { name, argument, help, short_name, commands },
    DN_OPTIONS(X)
#undef X
};

static int usage(const dn_args *args, const char *why, const char *what)
{
    const char *command = args->command ? args->command->name : "";
    dn_complain("%s%s", what, why);
    fprintf(stderr, "Try `denoise %s%s--help`.\n", command, *command ? " " : "");
    return DN_EXIT_USAGE;
}

/* The command of these words; `second` NULL: of one word. */
static const dn_command *command_find(const char *first, const char *second)
{
    size_t n = strlen(first);
    for (const dn_command *c = dn_commands; c->name; c++) {
        const char *rest = strncmp(c->name, first, n) ? NULL : c->name + n;
        if (rest && (second ? *rest == ' ' && !strcmp(rest + 1, second) : !*rest))
            return c;
    }
    return NULL;
}

/* Is it the first word of longer names? */
static bool has_parts(const dn_command *command)
{
    size_t n = strlen(command->name);
    for (const dn_command *c = dn_commands; c->name; c++)
        if (!strncmp(c->name, command->name, n) && c->name[n] == ' ')
            return true;
    return false;
}

/* Is `arg` the flag --name, --name=VALUE or -s? *value is what follows "=", else NULL. */
static bool is_flag(const char *arg, const char *name, char short_name, const char **value)
{
    *value = NULL;
    if (arg[1] != '-')
        return short_name && arg[1] == short_name && !arg[2];
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++) /* fields are spelled with dashes */
        if (arg[2 + i] != (name[i] == '_' ? '-' : name[i]))
            return false;
    if (arg[2 + n] == '=')
        *value = arg + 3 + n;
    return !arg[2 + n] || *value;
}

/* The functions below return how many of argv they used, 0 when argv[0] is not theirs, -1 after a complaint. */

static int take_option(dn_args *args, int argc, char **argv)
{
    const char *value;
    int id = args->command ? args->command->id : 0, i = 0;
    for (const dn_option *o = dn_options; i < DN_OPT_COUNT; i++, o++)
        if ((o->commands == DN_ALL || o->commands & id) && is_flag(argv[0], o->name, o->short_name, &value))
            break;
    if (i == DN_OPT_COUNT)
        return 0;
    const char *why = NULL;
    if (args->value[i])
        why = " is given twice";
    else if (value && !dn_options[i].argument)
        why = " takes no value";
    else if (!value && dn_options[i].argument && argc < 2)
        why = " needs a value";
    if (why) {
        usage(args, why, argv[0]);
        return -1;
    }
    bool next = dn_options[i].argument && !value;
    args->value[i] = next ? argv[1] : value ? value : "";
    return 1 + next;
}

static bool is_plain(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("-_.", c));
}

static void add_query(dn_buf *b, const char *name, const char *value)
{
    dn_buf_printf(b, "%s%s=", b->len ? "&" : "", name);
    for (; *value; value++)
        dn_buf_printf(b, is_plain(*value) ? "%c" : "%%%02X", (unsigned char)*value);
}

static int take_query(dn_args *args, int argc, char **argv)
{
    const dn_fields *t = args->command ? args->command->query : NULL;
    const char *value = NULL;
    int i = 0;
    while (t && i < t->n && !is_flag(argv[0], t->v[i].name, t->v[i].short_flag, &value))
        i++;
    if (!t || i == t->n)
        return 0;
    bool next = !value && t->v[i].type != DN_T_BOOL;
    if (next && argc < 2) {
        usage(args, " needs a value", argv[0]);
        return -1;
    }
    value = next ? argv[1] : value ? value : "true";
    dn_http_error err = { 0 };
    json_t *checked = dn_field_from_text(&t->v[i], value, &err);
    if (!checked) {
        usage(args, "", err.message);
        return -1;
    }
    json_decref(checked);
    add_query(&args->query, t->v[i].name, value);
    return 1 + next;
}

static int take_request(dn_args *args, int argc, char **argv)
{
    dn_http_error err = { 0 };
    if (!args->command || !args->command->request)
        return 0;
    int used = dn_cli_flag(args->command->request, args->request, argc, argv, &err);
    if (used < 0)
        usage(args, "", err.message);
    return used;
}

/* The n-th word of the command's operands, and what is said of it: "[NAME]", "PATH...". NULL: there is none. */
static const char *operand_spec(const dn_command *c, int n, size_t *len)
{
    const char *s = c->operands;
    for (; s && n > 0 && strchr(s, ' '); n--)
        s = strchr(s, ' ') + 1;
    *len = s ? strcspn(s, " ") : 0;
    bool repeats = *len > 3 && !strncmp(s + *len - 3, "...", 3);
    return s && (n == 0 || repeats) ? s : NULL;
}

static int take_operand(dn_args *args, const char *word)
{
    size_t len;
    char what[40];
    const char *spec = operand_spec(args->command, args->n_operands, &len);
    if (!spec || args->n_operands == DN_OPERANDS_MAX)
        return usage(args, " is superfluous", word);
    snprintf(what, sizeof what, "%.*s", (int)len, spec);
    if (!*word)
        return usage(args, " must not be empty", what);
    args->operand[args->n_operands++] = word;
    return 0;
}

/* `again`: the command's first word stands right before it. */
static int take_word(dn_args *args, const char *word, bool again)
{
    const dn_command *longer = again ? command_find(args->command->name, word) : NULL;
    char both[80];
    if (!args->command) {
        args->command = command_find(word, NULL);
        return args->command ? 0 : usage(args, " is no command", word);
    }
    if (longer) {
        args->command = longer;
        return 0;
    }
    if (again && !args->command->operands && has_parts(args->command)) {
        snprintf(both, sizeof both, "%s %.60s", args->command->name, word);
        return usage(args, " is no command", both);
    }
    return take_operand(args, word);
}

static int check(const dn_args *args)
{
    bool only_says = args->value[DN_OPT_HELP] || args->value[DN_OPT_VERSION];
    if (only_says)
        return 0;
    if (!args->command)
        return usage(args, "a command is missing", "");
    size_t len;
    char what[40];
    const char *spec = operand_spec(args->command, args->n_operands, &len);
    const char *before = args->n_operands ? operand_spec(args->command, args->n_operands - 1, &(size_t){ 0 }) : NULL;
    if (spec && *spec != '[' && spec != before) { /* the same word again: it repeats, and is there */
        snprintf(what, sizeof what, "%.*s", (int)len, spec);
        return usage(args, " is missing", what);
    }
    if (args->value[DN_OPT_TOKEN] && args->value[DN_OPT_TOKEN_FILE])
        return usage(args, "--token and --token-file exclude each other", "");
    return 0;
}

/* Arguments can be read by everybody on the machine. */
static int hide_token(dn_args *args)
{
    char *shown = (char *)args->value[DN_OPT_TOKEN];
    if (!shown)
        return 0;
    args->token = strdup(shown);
    memset(shown, 'x', strlen(shown));
    return args->token ? 0 : -1;
}

int dn_args_read(dn_args *args, int argc, char **argv)
{
    static int (*const take[])(dn_args *, int, char **) = { take_option, take_query, take_request };
    *args = (dn_args){ .request = json_object() };
    dn_buf_init(&args->query, DN_QUERY_MAX);
    bool words_only = false;
    int command_at = 0; /* where its first word is */
    for (int i = 1; i < argc;) {
        int used = 0;
        if (words_only || argv[i][0] != '-' || !argv[i][1]) {
            int rc = take_word(args, argv[i], command_at && command_at == i - 1);
            if (rc)
                return rc;
            command_at = command_at ? command_at : i;
            used = 1;
        } else if (!strcmp(argv[i], "--")) {
            words_only = true;
            used = 1;
        }
        for (int k = 0; !used && k < 3; k++)
            used = take[k](args, argc - i, argv + i);
        if (used < 0)
            return DN_EXIT_USAGE;
        if (!used)
            return usage(args, args->command ? " is no flag of this command" : " is no flag here", argv[i]);
        i += used;
    }
    if (hide_token(args))
        return DN_EXIT_FAILED;
    if (args->query.failed)
        return usage(args, "the values are too long", "");
    return check(args);
}

void dn_args_fini(dn_args *args)
{
    if (args->token)
        explicit_bzero(args->token, strlen(args->token));
    free(args->token);
    json_decref(args->request);
    dn_buf_fini(&args->query);
}
