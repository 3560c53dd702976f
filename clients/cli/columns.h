/* columns.h - rows of text in columns as wide as they need to be. */
#ifndef DN_CLI_COLUMNS_H
#define DN_CLI_COLUMNS_H

#include <stdio.h>

enum { DN_COLUMNS_MAX = 8, DN_CELL_MAX = 80 };

typedef struct dn_columns {
    int n_columns, n_rows, rows_cap;
    char (*cell)[DN_CELL_MAX]; /* [n_rows, n_columns] */
    int failed;
} dn_columns;

/* The first row: names, NULL at the end. */
void dn_columns_init(dn_columns *t, const char *const *names);
void dn_columns_fini(dn_columns *t);
/* One row; the arguments are as many strings as there are columns. */
void dn_columns_add(dn_columns *t, const char *const *cells);
/* Each line after `indent` blanks. */
void dn_columns_print(const dn_columns *t, int indent, FILE *out);

#endif
