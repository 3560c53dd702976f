#include "plan.h"
#include "fit.h"
#include <stdlib.h>

enum { ALIGN = 64 };

static int root_of(const dn_lowered *l, int place)
{
    while (l->place[place].inside >= 0)
        place = l->place[place].inside;
    return place;
}

static void touch(const dn_lowered *l, dn_life *lives, int place, int step, bool write)
{
    if (place < 0)
        return;
    dn_life *life = &lives[root_of(l, place)];
    if (life->last < 0) /* the first use: a read means that the caller wrote it before the run */
        life->first = write ? step : 0;
    life->last = step;
}

void dn_plan_lives(const dn_lowered *l, dn_life *lives)
{
    for (int i = 0; i < l->n_places; i++)
        lives[i] = (dn_life){ l->n_steps, -1 };
    for (int s = 0; s < l->n_steps; s++) {
        const dn_step *step = &l->step[s];
        for (int i = 0; i < step->n_in; i++)
            touch(l, lives, step->in[i], s, false);
        for (int i = 0; i < step->n_out; i++)
            touch(l, lives, step->out[i], s, true);
        touch(l, lives, step->workspace, s, true);
    }
    for (int i = 0; i < l->n_places; i++)
        if (l->place[i].keep) {
            dn_life *life = &lives[root_of(l, i)];
            life->first = life->last < 0 ? 0 : life->first;
            life->last = l->n_steps;
        }
    for (int i = 0; i < l->n_places; i++)
        lives[i] = lives[root_of(l, i)];
}

static int64_t place_bytes(const dn_lowered *l, int i)
{
    const dn_place *p = &l->place[i];
    int64_t n = p->row_bytes ? p->row_bytes * l->rows_max : p->bytes;
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

typedef struct {
    int place;
    int64_t bytes;
    dn_life life;
} span;

static int by_size(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return x->bytes != y->bytes ? (x->bytes < y->bytes ? 1 : -1) : x->place - y->place;
}

/* Places inside others follow their outer place. An inner place's rows are as far apart as the outer one's. */
static void place_inner(dn_lowered *l)
{
    for (int i = 0; i < l->n_places; i++) {
        if (l->place[i].inside < 0)
            continue;
        int64_t offset = 0;
        int at = i;
        for (; l->place[at].inside >= 0; at = l->place[at].inside)
            offset += l->place[at].inside_offset;
        l->place[i].offset = l->place[at].offset + offset;
        l->place[i].row_bytes = l->place[at].row_bytes;
    }
}

/* The spans of all places in the arena that are used and lie in no other. Returns how many, largest first. */
static int collect(const dn_lowered *l, const dn_life *lives, span *s)
{
    int n = 0;
    for (int i = 0; i < l->n_places; i++)
        if (l->place[i].memory == DN_IN_ARENA && l->place[i].inside < 0 && lives[i].first <= lives[i].last)
            s[n++] = (span){ .place = i, .bytes = place_bytes(l, i), .life = lives[i] };
    qsort(s, (size_t)n, sizeof *s, by_size);
    return n;
}

/* `fit` NULL: every place apart. */
static int place_all(dn_lowered *l, const span *s, int n, dn_fit *fit)
{
    int64_t peak = 0;
    for (int i = 0; i < n; i++) {
        int64_t offset = peak;
        if (fit && dn_fit_place(fit, s[i].life.first, s[i].life.last, s[i].bytes, &offset))
            return DN_E_MEMORY;
        peak = offset + s[i].bytes > peak ? offset + s[i].bytes : peak;
        l->place[s[i].place].offset = offset;
    }
    l->arena_bytes = (size_t)peak;
    place_inner(l);
    return 0;
}

static int plan(dn_lowered *l, bool apart, dn_error *err)
{
    size_t n_max = (size_t)l->n_places + 1;
    span *s = malloc(sizeof *s * n_max);
    dn_life *lives = malloc(sizeof *lives * n_max);
    dn_fit *fit = apart ? NULL : dn_fit_new(l->n_steps + 1); /* the end is a step, too */
    int rc = s && lives && (fit || apart) ? 0 : DN_E_MEMORY;
    if (!rc) {
        dn_plan_lives(l, lives);
        rc = place_all(l, s, collect(l, lives, s), fit);
    }
    dn_fit_free(fit);
    free(lives);
    free(s);
    return rc ? dn_fail(err, rc, NULL, "out of memory while planning a program") : 0;
}

int dn_plan(dn_lowered *l, dn_error *err) { return plan(l, false, err); }
int dn_plan_apart(dn_lowered *l, dn_error *err) { return plan(l, true, err); }
