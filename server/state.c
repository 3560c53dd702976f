#include "state.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The folder, made or found, with nobody else's permissions. */
static int open_folder(const char *folder, dn_error *err)
{
    if (mkdir(folder, 0700) && errno != EEXIST)
        return -dn_fail(err, DN_E_IO, "state", "--state %s cannot be made: %m", folder);
    int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return -dn_fail(err, DN_E_IO, "state", "--state %s cannot be opened: %m", folder);
    if (!fchmod(dir, 0700))
        return dir;
    int rc = dn_fail(err, DN_E_IO, "state", "--state %s must belong to this user: %m", folder);
    close(dir);
    return -rc;
}

int dn_state_open(int *lock, const char *folder, dn_error *err)
{
    int dir = open_folder(folder, err);
    if (dir < 0)
        return -dir;
    int fd = openat(dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), rc = 0;
    if (fd < 0)
        rc = dn_fail(err, DN_E_IO, "state", "--state %s: its lock cannot be opened: %m", folder);
    else if (flock(fd, LOCK_EX | LOCK_NB))
        rc = dn_fail(err, DN_E_IO, "state", "--state %s is in use by another denoised", folder);
    close(dir);
    if (rc && fd >= 0)
        close(fd);
    if (!rc)
        *lock = fd;
    return rc;
}
