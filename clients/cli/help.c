/* help.c - --help, made from the tables of options, commands, exit codes and of proto. */
#include "cli.h"

#include <string.h>

enum { LEFT = 35, LINE = 118 };

static const struct {
    int code;
    const char *text;
} exits[] = {
#define X(name, code, text) { code, text },
    DN_EXITS(X)
#undef X
};

/* clang-format off */
static const struct {
    const char *name, *text;
} variables[] = {
    { "DENOISED_URL", "Stands for --server." },
    { "DENOISED_TOKEN", "Stands for --token." },
    { "KITTY_WINDOW_ID, TERM, TERM_PROGRAM, LC_TERMINAL, COLORTERM, TMUX, STY",
      "Tell --show auto what the terminal can show." },
};
/* clang-format on */

/* `text` broken at blanks, every line but the first indented. `at` is the column where it begins. */
static void put_wrapped(FILE *out, const char *text, int indent, int at)
{
    bool blank = false;
    while (*text) {
        int n = (int)strcspn(text, " \n");
        bool fits = at + blank + n <= LINE;
        if (n && !fits)
            fprintf(out, "\n%*s", at = indent, "");
        at += n ? fprintf(out, "%s%.*s", blank && fits ? " " : "", n, text)
                : fprintf(out, "%s", blank && *text == ' ' ? " " : "");
        text += n;
        blank = *text == ' ';
        if (*text == '\n')
            fprintf(out, "\n%*s", at = text[1] == '\n' ? 0 : indent, "");
        text += *text != 0;
    }
    fputc('\n', out);
}

static void put_entry(FILE *out, const char *left, const char *text)
{
    int n = fprintf(out, "  %s", left);
    if (n >= LEFT)
        fprintf(out, "\n%*s", LEFT, "");
    else
        fprintf(out, "%*s", LEFT - n, "");
    put_wrapped(out, text, LEFT, LEFT);
}

/* Options of just these commands. */
static void put_options(FILE *out, int commands, bool everywhere)
{
    char left[80], brief[8];
    for (int i = 0; i < DN_OPT_COUNT; i++) {
        const dn_option *o = &dn_options[i];
        if (everywhere ? o->commands != DN_ALL : o->commands == DN_ALL || !(o->commands & commands))
            continue;
        snprintf(brief, sizeof brief, o->short_name ? "-%c, " : "    ", o->short_name);
        snprintf(left, sizeof left, "%s--%s%s%s", brief, o->name, o->argument ? " " : "",
                 o->argument ? o->argument : "");
        put_entry(out, left, o->help);
    }
}

static void put_query(FILE *out, const dn_fields *t)
{
    char left[80], text[512];
    for (int i = 0; t && i < t->n; i++) {
        const dn_field *f = &t->v[i];
        const char *value = f->type == DN_T_BOOL ? "" : f->type == DN_T_INT ? " N" : " VALUE";
        int at = snprintf(left, sizeof left, "    --");
        for (const char *name = f->name; *name; name++) /* as options.c reads it */
            left[at++] = *name == '_' ? '-' : *name;
        snprintf(left + at, sizeof left - at, "%s", value);
        int n = snprintf(text, sizeof text, "%s", f->help);
        for (int k = 0; f->choices && f->choices[k] && n < (int)sizeof text; k++)
            n += snprintf(text + n, sizeof text - n, "%s%s", k ? " | " : " ", f->choices[k]);
        if (f->def && f->type != DN_T_BOOL && n < (int)sizeof text)
            snprintf(text + n, sizeof text - n, " (%s)", f->def);
        put_entry(out, left, text);
    }
}

static void put_exits(FILE *out)
{
    char code[8];
    fputs("\nExit status:\n", out);
    for (size_t i = 0; i < sizeof exits / sizeof *exits; i++) {
        snprintf(code, sizeof code, "%d", exits[i].code);
        put_entry(out, code, exits[i].text);
    }
}

/* All commands, or those whose names go on after this one's. */
static void put_commands(FILE *out, const char *title, const dn_command *above)
{
    char left[80];
    size_t n = above ? strlen(above->name) : 0;
    bool any = false;
    for (const dn_command *c = dn_commands; c->name; c++) {
        if (above && (strncmp(c->name, above->name, n) || c->name[n] != ' '))
            continue;
        if (!any)
            fputs(title, out);
        any = true;
        snprintf(left, sizeof left, "%s%s%s", c->name, c->operands ? " " : "", c->operands ? c->operands : "");
        put_entry(out, left, c->summary);
    }
}

static void put_command(FILE *out, const dn_command *c)
{
    fprintf(out, "Usage: denoise %s%s%s [FLAGS]\n\n%s\n", c->name, c->operands ? " " : "",
            c->operands ? c->operands : "", c->summary);
    if (c->text) {
        fputc('\n', out);
        put_wrapped(out, c->text, 0, 0);
    }
    put_commands(out, "\nFurther commands:\n", c);
    fputs("\nFlags:\n", out);
    put_options(out, c->id, false);
    put_query(out, c->query);
    put_options(out, c->id, true);
    if (c->request) {
        dn_buf b;
        dn_buf_init(&b, 64 << 10);
        dn_cli_help(c->request, &b);
        fprintf(out, "\nThe request:\n%s", b.data ? b.data : "");
        dn_buf_fini(&b);
    }
    put_exits(out);
}

static void put_overview(FILE *out)
{
    fputs("denoise - pictures from a denoised daemon, and its training\n\nUsage: denoise COMMAND [FLAGS]\n", out);
    put_commands(out, "\nCommands:\n", NULL);
    fputs("\nEverywhere:\n", out);
    put_options(out, 0, true);
    fputs("\nEnvironment:\n", out);
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        put_entry(out, variables[i].name, variables[i].text);
    put_exits(out);
    fputs("\n`denoise COMMAND --help` has a command's flags. What a flag says wins over what the environment says.\n",
          out);
}

void dn_help_print(const dn_command *command, FILE *out)
{
    if (command)
        put_command(out, command);
    else
        put_overview(out);
}
