/* table_internal.h - a table from its entries. */
#ifndef DN_DIFFUSION_TABLE_INTERNAL_H
#define DN_DIFFUSION_TABLE_INTERNAL_H

#include <denoised/table.h>

/* Takes over `entry`; counts steps, history and noise. */
dn_table dn_table_of(dn_entry *entry, int n, float init_scale);

#endif
