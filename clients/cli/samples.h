/* samples.h - the previews of a job: what there is of them, and each as a file of a folder. */
#ifndef DN_CLI_SAMPLES_H
#define DN_CLI_SAMPLES_H

#include "http.h"

typedef struct dn_samples {
    dn_client *client;
    const char *id, *folder;
    struct json_t *had; /* what has been saved: its name -> its sha256 */
    long saved;
    long newest; /* the last step of what has been saved */
} dn_samples;

/* `folder` is made if it is not there. Returns 0, or DN_EXIT_USAGE after a complaint. */
int dn_samples_folder(const char *folder);
/* Returns 0 or DN_EXIT_FAILED. */
int dn_samples_init(dn_samples *s, dn_client *c, const char *id, const char *folder);
void dn_samples_fini(dn_samples *s);
/* A preview's url "/jobs/ID/samples/STEP-SEED-LABEL" of this job: its last part; NULL: it is none. */
const char *dn_sample_name(const char *id, const char *url);

enum { DN_SAMPLES_LATER = -1 };
/* Save what has not been saved yet. `newest`: no further back than where all has been; `patient`: a daemon that cannot
 * be asked now is no failure. Returns 0, DN_SAMPLES_LATER (patient, and not all came) or a dn_exit after a complaint.
 */
int dn_samples_save(dn_samples *s, bool newest, bool patient);
/* The list of all of them, newest first, printed; with `raw` as the daemon says it, a page a line. */
int dn_samples_print(dn_client *c, const char *id, bool raw);

#endif
