#include "arch.h"
#include <string.h>

static const dn_arch *const archs[] = { &dn_arch_unet2d };

const dn_arch *dn_arch_find(const char *class_name)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (!strcmp(archs[i]->class_name, class_name))
            return archs[i];
    return NULL;
}
