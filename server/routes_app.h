/* routes_app.h - the handlers of the app's endpoints, and what they share. */
#ifndef DN_SERVER_ROUTES_APP_H
#define DN_SERVER_ROUTES_APP_H

#include "app_parts.h"
#include "multipart.h"

void dn_route_generate(dn_call *call); /* route_generate.c */
void dn_route_denoise(dn_call *call);  /* route_denoise.c */
void dn_route_requests(dn_call *call); /* route_requests.c */
void dn_route_request(dn_call *call);
void dn_route_request_cancel(dn_call *call);
void dn_route_request_image(dn_call *call);
void dn_route_request_events(dn_call *call);
void dn_route_models(dn_call *call); /* route_models.c */
void dn_route_model(dn_call *call);
void dn_route_model_load(dn_call *call);
void dn_route_model_unload(dn_call *call);
void dn_route_model_put(dn_call *call); /* route_versions.c */
void dn_route_model_save(dn_call *call);
void dn_route_model_alias(dn_call *call);
void dn_route_model_delete(dn_call *call);
void dn_route_model_config(dn_call *call);
void dn_route_model_checkpoint(dn_call *call);
void dn_route_status(dn_call *call); /* route_status.c */
void dn_route_jobs(dn_call *call); /* route_jobs.c */
void dn_route_jobs_submit(dn_call *call);
void dn_route_job(dn_call *call);
void dn_route_job_change(dn_call *call);
void dn_route_job_pause(dn_call *call);
void dn_route_job_resume(dn_call *call);
void dn_route_job_cancel(dn_call *call);
void dn_route_job_publish(dn_call *call);
void dn_route_job_save(dn_call *call);
void dn_route_job_checkpoints(dn_call *call);
void dn_route_job_samples(dn_call *call);
void dn_route_job_sample(dn_call *call);
void dn_route_job_metrics(dn_call *call);
void dn_route_job_events(dn_call *call);

void dn_route_datasets(dn_call *call); /* route_datasets.c */
void dn_route_dataset(dn_call *call);
void dn_route_dataset_put(dn_call *call);
void dn_route_dataset_delete(dn_call *call);

/* Parse the call's query by a table; on failure the call has been refused, and it is not 0. */
int dn_route_query(dn_call *call, const dn_fields *t, void *out);
/* Is there an upload? The boundary of a multipart one, else "". On failure the call has been refused, and it is not 0. */
int dn_route_upload(dn_call *call, char boundary[DN_BOUNDARY_MAX + 1]);
/* Answer with the struct as JSON. */
void dn_route_reply(dn_call *call, int status, const dn_fields *t, const void *data);

/* Answer with a file, read on the slow lane. Takes `path` (malloc'ed; NULL: out of memory). If it is not there: 404 with `missing`, or
 * an empty body when that is NULL. */
void dn_reply_file(dn_call *call, char *path, const char *type, const char *missing);

/* Streams of /status: made by dn_route_status, fed by the app's timer. */
void dn_watch_tick(dn_app *app);
void dn_watch_close(dn_app *app);

#endif
