/* disk.h - the disk reserve: how much room there is where the state lies.
 *
 * Measured on the store's thread twice a second; the loop only looks at the last figure. Without --state there is
 * nothing to measure, and nothing is refused. */
#ifndef DN_SERVER_DISK_H
#define DN_SERVER_DISK_H

#include "app_parts.h"

int dn_disk_open(dn_app *app, dn_error *err); /* measures once */
void dn_disk_tick(dn_app *app);
void dn_disk_close(dn_app *app); /* the store has stopped */
/* 0 if `bytes` more leave the reserve alone; else DN_H_DISK (507), with *err. For whatever is about to keep something:
 * asynchronous requests, uploads, jobs. */
int dn_disk_check(const dn_app *app, int64_t bytes, dn_http_error *err);
int64_t dn_disk_room(const dn_app *app); /* bytes above the reserve, at least 1 */

#endif
