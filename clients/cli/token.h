/* token.h - where the bearer token comes from: --token, --token-file, DENOISED_TOKEN. */
#ifndef DN_CLI_TOKEN_H
#define DN_CLI_TOKEN_H

enum { DN_TOKEN_MAX = 512 };

/* The token into `out`, "" if there is none; the arguments are what was given, NULL: not. Returns 0 or a dn_exit after
 * a complaint. */
int dn_token_find(char out[DN_TOKEN_MAX + 1], const char *flag, const char *file, const char *variable);

#endif
