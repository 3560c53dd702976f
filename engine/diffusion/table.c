/* table.c - what can be asked of a finished table. */
#include "table_internal.h"
#include "update.h"
#include <stdlib.h>

static bool uses(const dn_entry *e, int b)
{
    if (e->x.a[b] != 0)
        return true;
    for (int i = 0; i < e->n_writes; i++)
        if (e->writes[i].a[b] != 0)
            return true;
    return false;
}

bool dn_entry_uses(const dn_entry *e, enum dn_basis b)
{
    bool learned = e->flags & (DN_SIGMA_LEARNED | DN_SIGMA_RAW) && e->z_scale != 0;
    return (b == DN_B_Z && learned) || uses(e, b);
}

dn_table dn_table_of(dn_entry *entry, int n, float init_scale)
{
    dn_table t = { .entry = entry, .n_entries = n, .init_scale = init_scale };
    for (int i = 0; i < n; i++) {
        t.n_steps += !!(entry[i].flags & DN_STEP_END);
        t.draws_noise = t.draws_noise || dn_entry_uses(&entry[i], DN_B_Z) || dn_entry_uses(&entry[i], DN_B_Z2);
        for (int j = 0; j < entry[i].n_writes; j++)
            if (entry[i].write[j] >= t.n_history)
                t.n_history = entry[i].write[j] + 1;
    }
    return t;
}

void dn_table_fini(dn_table *t)
{
    if (!t)
        return;
    free(t->entry);
    *t = (dn_table){ 0 };
}

int64_t dn_table_rows(const dn_table *t)
{
    int64_t rows = 0;
    for (int i = 0; i < t->n_entries; i++)
        rows += __builtin_popcount(t->entry[i].rows);
    return rows;
}
