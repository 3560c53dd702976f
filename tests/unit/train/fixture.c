#include "fixture.h"
#include <jansson.h>
#include <string.h>

static const char usual[] = "{\"_class_name\":\"UNet2DModel\",\"sample_size\":8,\"in_channels\":1,\"out_channels\":1,"
                            "\"block_out_channels\":[8,16],"
                            "\"layers_per_block\":1,\"norm_num_groups\":4,\"attention_head_dim\":8,\"down_block_"
                            "types\":[\"DownBlock2D\",\"AttnDownBlock2D\"],"
                            "\"up_block_types\":[\"AttnUpBlock2D\",\"UpBlock2D\"],\"num_class_embeds\":5}";

static json_t *parse(const char *text)
{
    json_t *j = text ? json_loads(text, 0, NULL) : NULL;
    assert_true(!text || j);
    return j;
}

dn_model *fixture_model(const fixture_wish *w)
{
    json_t *config = parse(usual), *more = parse(w->config), *scheduler = parse(w->scheduler);
    json_t *extra = parse(w->extra ? w->extra : "{\"null_label\":4}");
    if (more)
        json_object_update(config, more);
    dn_model *m = NULL;
    dn_error err = { 0 };
    if (dn_model_init(&m, config, scheduler, extra, 7, &err))
        fail_msg("%s", err.message);
    json_decref(config);
    json_decref(more);
    json_decref(scheduler);
    json_decref(extra);
    return m;
}

void fixture_init(fixture *f, const fixture_wish *w)
{
    dn_error err = { 0 };
    *f = (fixture){ 0 };
    if (dn_device_open(&f->device, w->device ? w->device : "cpu:0", &err))
        fail_msg("%s", err.message);
    f->model = fixture_model(w);
    const dn_model_info *info = dn_model_info_of(f->model);
    int classes = w->classes < 0 ? 0 : w->classes ? w->classes : 4;
    f->data = fake_dataset(w->images ? w->images : 40, info->height, info->width, info->channels, classes);
    dn_train_params_init(&f->params);
    f->params.seed = 0x123456789abcdefULL;
    f->params.steps = 20;
    f->params.batch_size = 4;
    f->params.optimizer.lr = 1e-3;
}

void fixture_start(fixture *f)
{
    dn_error err = { 0 };
    if (dn_train_plan_make(&f->plan, f->device, f->model, f->data, &f->params, 0, &err) ||
        dn_trainer_new(&f->trainer, f->device, f->model, f->data, &f->params, &f->plan, &err))
        fail_msg("%s: %s", err.param, err.message);
}

void fixture_fini(fixture *f)
{
    dn_trainer_free(f->trainer);
    dn_dataset_close(f->data);
    dn_model_free(f->model);
    dn_device_close(f->device);
}

dn_train_report fixture_steps(dn_trainer *t, int n, double max_ms)
{
    dn_train_report r = { 0 };
    for (int i = 0; i < n; i++) {
        dn_error err = { 0 };
        int rc;
        while ((rc = dn_trainer_some(t, max_ms, &r, &err)) == 1)
            assert_false(dn_trainer_at_boundary(t));
        if (rc)
            fail_msg("%s", err.message);
        assert_true(dn_trainer_at_boundary(t));
    }
    return r;
}
