/* requests_info.c - a request as others see it. */
#include "requests.h"

#include <stdio.h>
#include <string.h>

const char *dn_format_type(int format)
{
    static const char *const types[] = { [DN_FORMAT_PNG] = "image/png",
                                         [DN_FORMAT_NPY] = "application/x-npy",
                                         [DN_FORMAT_SAFETENSORS] = "application/x-safetensors" };
    return types[format];
}

/* Requests that stand before it. */
static int position(dn_request *r)
{
    int n = 0;
    for (dn_request *q = dn_requests_next(r->app, NULL); q && q != r; q = dn_requests_next(r->app, q))
        n += q->state == DN_STATE_QUEUED;
    return n;
}

double dn_request_eta_ms(const dn_request *r)
{
    if (!r->place)
        return 0;
    dn_forecast f = { .own_ms = r->left_ms };
    for (dn_request *q = dn_requests_next(r->app, NULL); q; q = dn_requests_next(r->app, q)) {
        if (q != r && q->place == r->place && q->on_device)
            dn_forecast_add(&f, q->left_ms);
    }
    return dn_forecast_finish_ms(&f, &r->place->figures);
}

static void image_infos(dn_request *r, dn_request_info *info, dn_info_scratch *s)
{
    int n = dn_request_results(r);
    for (int k = 0; k < n; k++) {
        snprintf(s->urls[k], sizeof s->urls[k], "/requests/%s/images/%d", r->id, k);
        s->images[k] = (dn_image){ DN_HAS_ALL,
                                   .index = k,
                                   .seed = r->seed + k,
                                   .url = s->urls[k],
                                   .content_type = dn_format_type(r->format),
                                   .sha256 = *r->encoded[k].sha256 ? r->encoded[k].sha256 : NULL };
    }
    info->images = (dn_items){ s->images, n };
}

void dn_request_info_of(dn_request *r, dn_request_info *info, dn_info_scratch *scratch)
{
    bool live = !r->ended;
    *info = (dn_request_info){ .has = DN_HAS_ALL,
                               .id = r->id,
                               .state = r->state,
                               .model = *r->model ? r->model : NULL,
                               .numerics = *r->numerics ? r->numerics : NULL,
                               .numerics_before = *r->row.numerics_before ? r->row.numerics_before : NULL,
                               .seed = r->seed,
                               .n = r->n,
                               .step = r->step,
                               .steps = r->steps,
                               .created_at = r->created_at,
                               .finished_at = r->finished_at,
                               .timing = r->timing };
    uint64_t without = live ? DN_BIT(DN_REQUEST_FINISHED_AT) : DN_BIT(DN_REQUEST_POSITION) | DN_BIT(DN_REQUEST_ETA_MS);
    if (live && r->state == DN_STATE_QUEUED)
        info->position = position(r);
    else
        without |= DN_BIT(DN_REQUEST_POSITION);
    if (live && r->place)
        info->eta_ms = dn_request_eta_ms(r);
    else
        without |= DN_BIT(DN_REQUEST_ETA_MS);
    if (!r->steps) /* not resolved yet */
        without |= DN_BIT(DN_REQUEST_SEED) | DN_BIT(DN_REQUEST_N) | DN_BIT(DN_REQUEST_STEP) | DN_BIT(DN_REQUEST_STEPS);
    if (r->ended && r->state == DN_STATE_SUCCEEDED && r->encoded && (r->async || r->keep_on))
        image_infos(r, info, scratch);
    else
        without |= DN_BIT(DN_REQUEST_IMAGES);
    if (!r->ended || r->state != DN_STATE_SUCCEEDED)
        without |= DN_BIT(DN_REQUEST_TIMING);
    if (r->ended && r->failure.id)
        info->error = (dn_error_body){ DN_HAS_ALL, r->failure.type, r->failure.code,
                                       *r->failure.param ? r->failure.param : NULL, r->failure.message };
    else
        without |= DN_BIT(DN_REQUEST_ERROR);
    info->has &= ~without;
}
