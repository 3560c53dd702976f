/* options.c - the command line into dn_args.
 *
 * Three tables give the flags: dn_options, the command's query fields, and, for generate, proto's request fields. */
#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { QUERY_MAX = 4096 };

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

static const dn_command *command_find(const char *name)
{
    for (const dn_command *c = dn_commands; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
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
    while (i < DN_OPT_COUNT && !is_flag(argv[0], dn_options[i].name, dn_options[i].short_name, &value))
        i++;
    if (i == DN_OPT_COUNT || (dn_options[i].commands != DN_ALL && !(dn_options[i].commands & id)))
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
    if (!args->command || args->command->id != DN_GENERATE_C)
        return 0;
    int used = dn_cli_flag(args->request, argc, argv, &err);
    if (used < 0)
        usage(args, "", err.message);
    return used;
}

static int take_word(dn_args *args, const char *word)
{
    if (!args->command) {
        args->command = command_find(word);
        return args->command ? 0 : usage(args, " is no command", word);
    }
    if (!args->command->operand || args->operand)
        return usage(args, " is superfluous", word);
    if (!*word)
        return usage(args, " must not be empty", args->command->operand);
    args->operand = word;
    return 0;
}

static int check(const dn_args *args)
{
    bool only_says = args->value[DN_OPT_HELP] || args->value[DN_OPT_VERSION];
    if (only_says)
        return 0;
    if (!args->command)
        return usage(args, "a command is missing", "");
    const char *operand = args->command->operand;
    if (operand && *operand != '[' && !args->operand)
        return usage(args, " is missing", operand);
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
    dn_buf_init(&args->query, QUERY_MAX);
    bool words_only = false;
    for (int i = 1; i < argc;) {
        int used = 0;
        if (words_only || argv[i][0] != '-') {
            int rc = take_word(args, argv[i]);
            if (rc)
                return rc;
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
