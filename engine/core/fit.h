/* fit.h - first fit of places that live for a while: each goes to the lowest offset that is free during its whole life.
 *
 * Time is a binary tree. What lives from `first` to `last` covers O(log n) of its nodes; a node knows the bytes taken by what
 * covers it whole, and by what lives at any time below it, each as a sorted list of ranges that do not touch. What meets a life is
 * then in O(log n) lists, and as places lie close together the lists are short. */
#ifndef DN_CORE_FIT_H
#define DN_CORE_FIT_H

#include <stdint.h>

typedef struct dn_fit dn_fit;

dn_fit *dn_fit_new(int n_steps); /* steps 0..n_steps-1; NULL: out of memory */
void dn_fit_free(dn_fit *f);     /* NULL is fine */
/* Put `bytes` that live from step `first` to `last` at *offset. DN_E_MEMORY. */
int dn_fit_place(dn_fit *f, int first, int last, int64_t bytes, int64_t *offset);

#endif
