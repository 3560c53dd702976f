/* sha256.c - SHA-256 by GnuTLS. See sha256.h. */
#include <denoised/error.h>
#include <denoised/sha256.h>
#include <gnutls/crypto.h>

int dn_sha256_init(dn_sha256 *h)
{
    gnutls_hash_hd_t state;
    int rc = gnutls_hash_init(&state, GNUTLS_DIG_SHA256);
    if (rc != 0)
        return rc == GNUTLS_E_MEMORY_ERROR ? DN_E_MEMORY : DN_E_BACKEND;
    h->state = state;
    return 0;
}

int dn_sha256_update(dn_sha256 *h, const void *data, size_t len)
{
    return len == 0 || gnutls_hash(h->state, data, len) == 0 ? 0 : DN_E_BACKEND;
}

void dn_sha256_fini(dn_sha256 *h, char hex[DN_SHA256_HEX_SIZE])
{
    unsigned char digest[32];
    if (!h->state)
        return;
    gnutls_hash_deinit(h->state, digest);
    h->state = NULL;
    for (size_t i = 0; hex && i < sizeof digest; i++) {
        hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
        hex[2 * i + 2] = 0;
    }
}

int dn_sha256_hex(char hex[DN_SHA256_HEX_SIZE], const void *data, size_t len)
{
    dn_sha256 h;
    int rc = dn_sha256_init(&h);
    if (rc != 0)
        return rc;
    rc = dn_sha256_update(&h, data, len);
    dn_sha256_fini(&h, rc == 0 ? hex : NULL);
    return rc;
}
