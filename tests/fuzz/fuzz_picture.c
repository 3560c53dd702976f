/* fuzz_picture.c - any bytes as a picture: decoded to the size that its header says, within the limits, or refused with
 * a message. */
#include "decode.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { COST_MAX = 8 << 20 }; /* larger ones only take time */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dn_picture p = { 0 };
    dn_error err = { 0 };
    size_t cost;
    int rc = dn_picture_cost(&cost, data, size, &err);
    if (rc == 0 && cost > COST_MAX)
        return 0;
    if (rc == 0)
        rc = dn_picture_decode(&p, data, size, &err);
    if (rc != 0) {
        if (!err.message[0] || p.pixels)
            abort();
        return 0;
    }
    size_t n = (size_t)p.height * (size_t)p.width * (size_t)p.channels;
    if (n == 0 || n > cost || (p.channels != 1 && p.channels != 3))
        abort();
    size_t sum = 0; /* all pixels are there */
    for (size_t i = 0; i < n; i++)
        sum += p.pixels[i];
    if (sum > 255 * n)
        abort();
    free(p.pixels);
    return 0;
}
