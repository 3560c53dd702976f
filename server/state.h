/* state.h - the folder of --state: ours alone (0700), and locked, so that two daemons never share one. */
#ifndef DN_SERVER_STATE_H
#define DN_SERVER_STATE_H

#include <denoised/error.h>

/* Make the folder if it is not there, and lock it. *lock is a descriptor that holds the lock until it is closed. */
int dn_state_open(int *lock, const char *folder, dn_error *err);

#endif
