/* datasets.h - an upload that becomes a dataset. */
#ifndef DN_CLI_DATASETS_H
#define DN_CLI_DATASETS_H

#include "upload.h"

enum { DN_DATASET_ID_MAX = DN_NAME_LEN_MAX + DN_ID_MAX + 2 };

/* Send it as the dataset `name` (a good one), with the query of the flags; say what the daemon made of it. `out`:
 * "name@hash". Returns 0 or a dn_exit after a complaint. */
int dn_dataset_send(char out[DN_DATASET_ID_MAX], dn_client *c, const dn_args *args, const char *name, dn_upload *u);

#endif
