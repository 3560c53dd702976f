/* backend.c - lowering's helpers, and the loop that runs a lowered program. */
#include "backend.h"
#include "inspect.h"
#include "memory.h"
#include "plan.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

void dn_lowered_free(dn_lowered *l)
{
    if (!l)
        return;
    dn_heap_free(l->mem);
    free(l->place);
    free(l->step);
    free(l->form);
    free(l->value_place);
    free(l);
}

int dn_lower(dn_lowered **out, const dn_backend *b, const dn_program *p, int rows_max, dn_error *err)
{
    if (p->error.code) {
        if (err)
            *err = p->error;
        return p->error.code;
    }
    dn_lowered *l = calloc(1, sizeof *l);
    if (l)
        l->value_place = malloc(sizeof(int) * (size_t)(p->n_values + 1));
    if (!l || !l->value_place) {
        dn_lowered_free(l);
        return dn_fail(err, DN_E_MEMORY, NULL, "out of memory while lowering a program");
    }
    l->backend = b;
    l->program = p;
    l->rows_max = rows_max;
    for (int v = 0; v < p->n_values; v++)
        l->value_place[v] = -1;
    int rc = b->lower(l, err);
    if (!rc)
        rc = dn_plan(l, err);
    if (rc)
        dn_lowered_free(l);
    else
        *out = l;
    return rc;
}

int dn_place_add(dn_lowered *l, dn_place place)
{
    if (dn_grow(&l->place, l->n_places, &l->places_cap, sizeof *l->place))
        return -1;
    l->place[l->n_places] = place;
    return l->n_places++;
}

int dn_step_add(dn_lowered *l, dn_step step)
{
    if (dn_grow(&l->step, l->n_steps, &l->steps_cap, sizeof *l->step))
        return -1;
    l->step[l->n_steps] = step;
    return l->n_steps++;
}

bool dn_form_same(const dn_form *a, const dn_form *b)
{
    return a->block == b->block && a->param == b->param && !strcmp(a->key, b->key) && a->n_more == b->n_more &&
           !memcmp(a->more, b->more, sizeof *a->more * (size_t)a->n_more);
}

void dn_form_make(void *dst, const dn_form *f, const dn_program *p, const float *block)
{
    const dn_param *param = p->block[f->block].param;
    const float *src[1 + DN_FORM_MORE] = { block + param[f->param].offset };
    for (int i = 0; i < f->n_more; i++)
        src[1 + i] = block + param[f->more[i]].offset;
    if (f->n_more)
        f->pack_all(dst, src, &param[f->param].shape);
    else
        f->pack(dst, src[0], &param[f->param].shape);
}

int dn_form_add(dn_lowered *l, dn_form form)
{
    for (int i = 0; i < l->n_forms; i++)
        if (dn_form_same(&l->form[i], &form))
            return i;
    if (dn_grow(&l->form, l->n_forms, &l->forms_cap, sizeof *l->form))
        return -1;
    l->form[l->n_forms] = form;
    return l->n_forms++;
}

void *dn_lowered_alloc(dn_lowered *l, size_t bytes) { return dn_heap_alloc(&l->mem, bytes); }

double dn_monotonic_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

int dn_run_some(dn_run *r, double max_ms)
{
    double end = max_ms > 0 ? dn_monotonic_ms() + max_ms : 0;
    while (r->next < r->lowered->n_steps) {
        const dn_step *step = &r->lowered->step[r->next];
        int rc = step->fn(r, step);
        if (rc)
            return -rc;
        if (r->inspector)
            dn_inspect_step(r->inspector, r, step);
        r->next++;
        if (end > 0 && r->next < r->lowered->n_steps && dn_monotonic_ms() >= end)
            return 1;
    }
    return 0;
}
