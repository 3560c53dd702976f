/* card.h - an object of the daemon's, member by member, for people. */
#ifndef DN_CLI_CARD_H
#define DN_CLI_CARD_H

#include <stdio.h>

struct json_t;

/* One line for each member: its name and its value. */
void dn_card_print(const struct json_t *card, FILE *out);

#endif
