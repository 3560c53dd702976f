/* columns.c - see columns.h. */
#include "columns.h"
#include "cli.h"

#include <stdlib.h>
#include <string.h>

void dn_columns_init(dn_columns *t, const char *const *names)
{
    *t = (dn_columns){ 0 };
    while (names[t->n_columns])
        t->n_columns++;
    dn_columns_add(t, names);
}

void dn_columns_fini(dn_columns *t) { free(t->cell); }

/* Cut to a cell, between characters. */
static void copy_cell(char out[DN_CELL_MAX], const char *text)
{
    size_t n = strlen(text);
    if (n >= DN_CELL_MAX)
        for (n = DN_CELL_MAX - 1; n && ((unsigned char)text[n] & 0xc0) == 0x80;)
            n--;
    snprintf(out, DN_CELL_MAX, "%.*s", (int)n, text);
}

void dn_columns_add(dn_columns *t, const char *const *cells)
{
    if (t->n_rows == t->rows_cap) {
        int cap = t->rows_cap ? 2 * t->rows_cap : 16;
        void *grown = reallocarray(t->cell, (size_t)cap * t->n_columns, DN_CELL_MAX);
        if (!grown)
            t->failed = 1;
        if (!grown)
            return;
        t->cell = grown;
        t->rows_cap = cap;
    }
    for (int i = 0; i < t->n_columns; i++)
        copy_cell(t->cell[t->n_rows * t->n_columns + i], cells[i]);
    t->n_rows++;
}

static int width_of(const dn_columns *t, int column)
{
    int width = 0;
    for (int i = 0; i < t->n_rows; i++) {
        int n = dn_text_columns(t->cell[i * t->n_columns + column]);
        width = n > width ? n : width;
    }
    return width;
}

void dn_columns_print(const dn_columns *t, int indent, FILE *out)
{
    int width[DN_COLUMNS_MAX];
    for (int c = 0; c < t->n_columns; c++)
        width[c] = width_of(t, c);
    for (int i = 0; i < t->n_rows; i++) {
        fprintf(out, "%*s", indent, "");
        for (int c = 0; c < t->n_columns; c++) {
            const char *cell = t->cell[i * t->n_columns + c];
            dn_text_put(out, cell);
            if (c + 1 < t->n_columns)
                fprintf(out, "%*s", width[c] - dn_text_columns(cell) + 2, "");
        }
        fputc('\n', out);
    }
    if (t->failed)
        dn_complain("no memory for the whole list");
}
