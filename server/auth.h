/* auth.h - bearer tokens.
 *
 * A token file has one token a line: `token [name [scopes]]`, blank lines and # comments aside. The name is the tenant
 * (default: tokenN, N its line); scopes are `use` (default) or `use,admin`. Only digests are kept, and a token is
 * compared with all of them in constant time. */
#ifndef DN_SERVER_AUTH_H
#define DN_SERVER_AUTH_H

#include <denoised/error.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct dn_auth dn_auth;
typedef struct dn_principal {
    char name[65];
    bool admin;
} dn_principal;

int dn_auth_load(dn_auth **out, const char *path, dn_error *err);
void dn_auth_free(dn_auth *auth);
size_t dn_auth_count(const dn_auth *auth);
/* Who holds this token, or NULL. Any bytes may be asked for. */
const dn_principal *dn_auth_find(const dn_auth *auth, const char *token);

#endif
