/* decoders.h - threads that decode pictures while the archive is read on; results come back in order.
 *
 * A ring of jobs with bounded bytes. One thread submits and collects; the store is its alone. */
#ifndef DN_DATA_DECODERS_H
#define DN_DATA_DECODERS_H

#include "decode.h"

typedef struct dn_decoders dn_decoders;

typedef struct dn_decoded {
    char name[1025];    /* of its file in the archive */
    dn_picture picture; /* the caller's to free */
    uint8_t digest[32];
    int rc; /* of decoding; then picture.pixels is NULL and `error` says why */
    dn_error error;
} dn_decoded;

int dn_decoders_new(dn_decoders **out, int threads, dn_error *err);
void dn_decoders_free(dn_decoders *d); /* NULL is fine */
/* Is there room for a picture that takes `cost` bytes? One alone always has. */
bool dn_decoders_have_room(const dn_decoders *d, size_t cost);
/* `data` becomes the decoders'. There is room. */
void dn_decoders_submit(dn_decoders *d, const char *name, uint8_t *data, size_t len, size_t cost);
bool dn_decoders_pending(const dn_decoders *d);
/* The oldest result, waiting for it; something is pending. */
void dn_decoders_collect(dn_decoders *d, dn_decoded *out);

#endif
