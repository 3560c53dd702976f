/* fixture.h - a small network, made-up data, a job: what the trainer's tests start from. */
#ifndef TRAIN_FIXTURE_H
#define TRAIN_FIXTURE_H

#include "fake_data.h"
#include "train_internal.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

typedef struct fixture {
    dn_device *device;
    dn_model *model;
    dn_dataset *data;
    dn_train_params params;
    dn_train_plan plan;
    dn_trainer *trainer;
} fixture;

/* What a test may ask for beyond the usual (one channel, 8 x 8, classes 0..4 with 4 as the null label, DDPM). */
typedef struct fixture_wish {
    const char *device;    /* "cpu:0" */
    const char *scheduler; /* JSON */
    const char *config;    /* JSON keys that replace the usual ones */
    const char *extra;     /* denoised.json */
    int64_t images;        /* 40 */
    int classes;           /* of the data: 4; -1: no labels */
} fixture_wish;

dn_model *fixture_model(const fixture_wish *w);
/* Model, data and default parameters (batch of 4, 20 steps, lr 1e-3); no trainer yet. */
void fixture_init(fixture *f, const fixture_wish *w);
/* Plan and make the trainer; fails the test where that fails. */
void fixture_start(fixture *f);
void fixture_fini(fixture *f);
/* Run n optimizer steps, in segments of max_ms (0: whole steps). Returns the last report. */
dn_train_report fixture_steps(dn_trainer *t, int n, double max_ms);

#endif
