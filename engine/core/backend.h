/* backend.h - what a backend is: a table of functions that lowers whole programs and runs their steps.
 *
 * Lowering turns a program into a list of steps over places. A place is a piece of arena (or of a parameter block, or
 * of a packed weight form) with the backend's own layout; one program value may have several places (NHWC and a
 * blocked copy) or none (fused away); a place may lie inside another one (concat by placement). plan.h gives each
 * place its offset. A lowered program is immutable and may be run by many threads, each with an arena of its own. */
#ifndef DN_CORE_BACKEND_H
#define DN_CORE_BACKEND_H

#include "program.h"

typedef struct dn_pool dn_pool;
typedef struct dn_lowered dn_lowered;
typedef struct dn_step dn_step;
typedef struct dn_run dn_run;

enum dn_memory { DN_IN_ARENA, DN_IN_BLOCK, DN_IN_FORM };

/* Where a value lives. Row r of it starts at base + offset + r*row_bytes. */
typedef struct dn_place {
    enum dn_memory memory;
    int block;         /* DN_IN_BLOCK: the parameter block; DN_IN_FORM: the form's number */
    int64_t offset;    /* bytes: in the arena (set by the planner), the block or the form */
    int64_t bytes;     /* of one row (padded), or of the whole if row_bytes is 0 */
    int64_t row_bytes; /* distance between rows; 0: one copy for all rows */
    int64_t plane;     /* distance in bytes between blocks of 8 channels (nChw8c), 0: dense channels-last */
    int inside;        /* lies inside that place at byte inside_offset of its row; -1: on its own */
    int64_t inside_offset;
    bool keep;         /* an input or output: lives from the first step to the last */
    dn_val val;        /* the program value it holds, or DN_NONE (workspace) */
} dn_place;

typedef int (*dn_step_fn)(const dn_run *run, const dn_step *step); /* 0 or a DN_E code */

struct dn_step {
    dn_step_fn fn;
    const void *attr;                      /* the kernel's own parameters, owned by the lowered program */
    int in[DN_IN_MAX + 2], out[DN_OUT_MAX + 4]; /* places, -1: none */
    int n_in, n_out;
    int workspace;                         /* a place used during this step only, or -1 */
    int op_first, op_last;                 /* the program's ops that it computes (or a part of), for traces and replay */
};

enum { DN_FORM_MORE = 3 };

/* A packed form of one parameter, or of several of one block: made once per weights version, shared by all programs that
 * ask for the same key of the same parameters. */
typedef struct dn_form {
    int block, param;
    const char *key; /* a static string that names algorithm and layout, e.g. "winograd43" */
    size_t bytes;
    void (*pack)(void *dst, const float *src, const dn_shape *shape);
    /* Part `part` of `parts`, which together make the whole, in any order. NULL: it is not worth dividing. */
    void (*pack_part)(void *dst, const float *src, const dn_shape *shape, int part, int parts);
    int more[DN_FORM_MORE], n_more; /* further parameters */
    void (*pack_all)(void *dst, const float *const *src, const dn_shape *shape); /* with further ones; shape of the first */
} dn_form;

bool dn_form_same(const dn_form *a, const dn_form *b);
/* Fill dst from the block's values. */
void dn_form_make(void *dst, const dn_form *f, const dn_program *p, const float *block);

struct dn_lowered {
    const struct dn_backend *backend;
    const dn_program *program;
    int rows_max;
    dn_place *place;
    int n_places, places_cap;
    dn_step *step;
    int n_steps, steps_cap;
    dn_form *form;
    int n_forms, forms_cap;
    int *value_place;    /* [n_values] the dense channels-last place of inputs, outputs (others -1) */
    size_t arena_bytes;  /* set by the planner */
    struct dn_heap_chunk *mem; /* attrs */
};

/* One execution of a lowered program for n <= rows_max rows. Filled by the caller; plain data. */
struct dn_run {
    const dn_lowered *lowered;
    char *arena;                      /* arena_bytes, 64-byte aligned */
    const char *block[DN_BLOCKS_MAX]; /* parameter blocks, bound in order; state blocks are written */
    const void *const *form;          /* [n_forms] */
    dn_pool *pool;                    /* NULL: the calling thread alone */
    int n;                            /* rows */
    int next;                         /* the step to run next; 0 at the start */
    struct dn_inspector *inspector;   /* inspect.h; NULL: nobody looks */
};

typedef struct dn_backend {
    const char *name;       /* "ref", "ref64", "cpu-avx2" */
    size_t real_size;       /* bytes of a float in this backend's arena and blocks: 4, or 8 for ref64 */
    bool (*available)(void); /* does this machine have what it needs */
    int (*rows_default)(const dn_program *p); /* rows_max that suits the program best: a chunk that stays in cache */
    /* Fill `out` (zeroed but for backend, program, rows_max). On failure *err names the op. */
    int (*lower)(dn_lowered *out, dn_error *err);
} dn_backend;

extern const dn_backend dn_backend_ref, dn_backend_ref64, dn_backend_cpu;

/* Lower and plan. The program must be pruned and outlive *out. */
int dn_lower(dn_lowered **out, const dn_backend *b, const dn_program *p, int rows_max, dn_error *err);
void dn_lowered_free(dn_lowered *l);

/* Run steps until the end or until max_ms (<= 0: no limit) have passed, at least one. Returns 0 when the program is done, 1
 * when steps are left, or a negated DN_E code. */
int dn_run_some(dn_run *r, double max_ms);

double dn_monotonic_ms(void);

/* For lowering. All return the new index, or -1 when memory is out (dn_lower then fails). */
int dn_place_add(dn_lowered *l, dn_place place);
int dn_step_add(dn_lowered *l, dn_step step);
int dn_form_add(dn_lowered *l, dn_form form); /* the same block, param and key twice: the first one's index */
void *dn_lowered_alloc(dn_lowered *l, size_t bytes); /* zeroed, freed with l; NULL: out of memory */

/* The address of row r of a place in a run. */
static inline void *dn_place_at(const dn_run *run, int place, int64_t row)
{
    const dn_place *p = &run->lowered->place[place];
    const char *base = p->memory == DN_IN_ARENA   ? run->arena
                       : p->memory == DN_IN_BLOCK ? run->block[p->block]
                                                  : (const char *)run->form[p->block];
    return (void *)(base + p->offset + row * p->row_bytes);
}

#endif
