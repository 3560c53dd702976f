/* output.h - where results go: files named by the user, standard output, the terminal. */
#ifndef DN_CLI_OUTPUT_H
#define DN_CLI_OUTPUT_H

#include "cli.h"
#include "show.h"

enum { DN_PATH_MAX = 4096 };

typedef struct dn_output_to {
    const char *path; /* -o: may have one %d or %0Nd; "-": standard output; NULL: only shown */
    bool several;     /* more than one file is expected */
    bool silent;
    enum dn_show how;
    bool forced; /* --show names it */
    dn_screen screen;
    int preview_lines; /* above the cursor stands a preview of so many lines */
    int files;
    dn_bytes part[DN_N_MAX]; /* samples of arrays by number, until all have come; their bytes are owned */
    int n_parts;
    char part_type[80];
    dn_bytes unseen[DN_N_MAX]; /* pictures that wait to be shown behind those of lower numbers; owned */
    int next_shown;
} dn_output_to;

/* From -o, --show and --quiet. Returns 0, or a dn_exit after a complaint: a bad pattern, a folder that cannot be
 * written, nowhere to go. */
int dn_output_init(dn_output_to *o, const dn_args *args);
/* The same for what is only shown: pictures go to no file, and nowhere if they cannot be shown here. */
int dn_output_init_shown(dn_output_to *o, const dn_args *args);
void dn_output_fini(dn_output_to *o);
/* The file of sample k. 0, or -1 when it does not fit. */
int dn_output_path(char out[DN_PATH_MAX], const char *pattern, int k, bool several);
/* Sample k has come: write and show it; of arrays nothing is written yet. Returns 0 or a dn_exit after a complaint. */
int dn_output_result(dn_output_to *o, int k, const char *content_type, const void *data, size_t n);
/* All have come: arrays are written, as one. */
int dn_output_finish(dn_output_to *o);
/* A preview: those of sample 0 are shown, each in place of the one before. False when previews cannot be shown here. */
bool dn_output_preview(dn_output_to *o, int k, const void *png, size_t n);

#endif
