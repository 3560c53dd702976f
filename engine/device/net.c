/* net.c - a model's network at one size, lowered, planned and packed for one backend. */
#include "device_internal.h"
#include "plan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int place_of(const dn_lowered *l, const char *name)
{
    dn_val v = dn_find(l->program, name);
    return v == DN_NONE ? -1 : l->value_place[v];
}

dn_ports dn_ports_find(const dn_lowered *l)
{
    return (dn_ports){
        .x = place_of(l, "x"),           .t = place_of(l, "t"),
        .time = place_of(l, "time"),     .time_w = place_of(l, "time_w"),
        .label = place_of(l, "label"),   .label_w = place_of(l, "label_w"),
        .out = place_of(l, "out"),       .label_value = place_of(l, "label_value"),
        .label_vector = place_of(l, "label_vector"),
    };
}

bool dn_trace_wanted(void)
{
    const char *trace = getenv("DENOISED_TRACE");
    return trace && !strcmp(trace, "1");
}

int dn_check_prepare(dn_lowered **out, const dn_lowered *l, dn_error *err)
{
    const char *check = getenv("DENOISED_CHECK");
    dn_lowered *ref = NULL;
    if (!check || strcmp(check, "ref"))
        return 0;
    int rc = dn_lower(&ref, &dn_backend_ref, l->program, l->rows_max, err);
    rc = rc ? rc : dn_plan_apart(ref, err);
    if (rc)
        dn_lowered_free(ref);
    else
        *out = ref;
    return rc;
}

static int prepare_inspection(dn_net *n, dn_error *err)
{
    n->trace = dn_trace_wanted();
    int rc = dn_check_prepare(&n->check, n->lowered, err);
    if (!rc && n->check)
        n->check_ports = dn_ports_find(n->check);
    return rc;
}

static int pack_forms(dn_net *n, dn_model *m, dn_error *err)
{
    const dn_lowered *l = n->lowered;
    n->form = calloc((size_t)l->n_forms + 1, sizeof *n->form);
    if (!n->form)
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    return dn_model_forms(m, l, n->form, &n->form_bytes, err);
}

/* Streams cost an arena each: only while all of them stay small beside the machine's memory. */
static int streams_of(const dn_device *d, const dn_lowered *l)
{
    const size_t affordable = (size_t)256 << 20;
    int threads = dn_pool_threads(d->pool);
    return l->arena_bytes * (size_t)threads <= affordable ? threads : 1;
}

static int lower(dn_lowered **out, const dn_device *d, const dn_program *p, int rows_max, dn_error *err)
{
    if (rows_max < 1 && !p->error.code)
        rows_max = d->backend->rows_default(p);
    return dn_lower(out, d->backend, p, rows_max, err);
}

static size_t arena_of(const dn_lowered *l, int streams) { return dn_arena_room(l->arena_bytes * (size_t)streams); }

int dn_net_new(dn_net **out, const dn_device *d, dn_model *m, int height, int width, int rows_max, dn_error *err)
{
    dn_net *n = calloc(1, sizeof *n);
    if (n)
        n->program = dn_model_program(m, height, width);
    if (!n || !n->program) {
        free(n);
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    }
    n->model = m;
    n->height = height;
    n->width = width;
    int rc = lower(&n->lowered, d, n->program, rows_max, err);
    rc = rc ? rc : pack_forms(n, m, err);
    rc = rc ? rc : prepare_inspection(n, err);
    if (rc) {
        dn_net_free(n);
        return rc;
    }
    n->gflop_per_row = dn_program_flop(n->program) * 1e-9;
    n->streams = streams_of(d, n->lowered);
    n->ports = dn_ports_find(n->lowered);
    snprintf(n->numerics, sizeof n->numerics, "%s/k%d/w%.16s/fp32", d->backend->name, DN_KERNEL_VERSION, m->info.hash);
    *out = n;
    return 0;
}

void dn_net_free(dn_net *n)
{
    if (!n)
        return;
    dn_lowered_free(n->check);
    dn_lowered_free(n->lowered);
    dn_program_free(n->program);
    free(n->form);
    free(n);
}

int dn_model_footprint(dn_footprint *out, const dn_device *d, const dn_model *m, dn_error *err)
{
    dn_lowered *l = NULL;
    dn_program *p = dn_model_program(m, m->info.height, m->info.width);
    int rc = p ? lower(&l, d, p, 0, err) : dn_fail(err, DN_E_MEMORY, NULL, "out of memory");
    if (!rc) {
        *out = (dn_footprint){ .weights = sizeof *m->weights * (size_t)p->block[0].count, .arena = arena_of(l, streams_of(d, l)) };
        for (int i = 0; i < l->n_forms; i++)
            out->forms += dn_form_room(&l->form[i]);
    }
    dn_lowered_free(l);
    dn_program_free(p);
    return rc;
}

int dn_net_foresee(dn_footprint *out, const dn_device *d, const char *dir, dn_error *err)
{
    const char *component;
    dn_model *m = NULL;
    int rc = dn_model_open(&m, dir, &component, err);
    rc = rc ? rc : dn_model_footprint(out, d, m, err);
    dn_model_free(m);
    return rc;
}

size_t dn_net_arena_bytes(const dn_net *n) { return arena_of(n->lowered, n->streams); }
size_t dn_net_form_bytes(const dn_net *n) { return n->form_bytes; }
double dn_net_gflop_per_row(const dn_net *n) { return n->gflop_per_row; }
const char *dn_net_numerics(const dn_net *n) { return n->numerics; }
