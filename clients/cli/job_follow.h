/* job_follow.h - the events of one job, over broken connections to its end: bar, loss, evaluations, previews. */
#ifndef DN_CLI_JOB_FOLLOW_H
#define DN_CLI_JOB_FOLLOW_H

#include "output.h"
#include "http.h"

/* Follow the job `id` to its end; previews go to `output`, and all of them into `folder` (NULL: none). `heard`: the daemon has just spoken of it, so that it is
 * worth to wait for it. Returns what became of it: DN_EXIT_OK (succeeded), _REFUSED (cancelled, or no such job),
 * _SERVER (failed), _UNREACHABLE, _INTERRUPTED (it goes on); all but the first after a complaint. */
int dn_job_follow(dn_client *c, dn_output_to *output, const char *id, const char *folder, bool heard);

#endif
