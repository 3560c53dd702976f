/* faults.c - preloaded into a daemon: one call that a test chooses fails.
 *
 * FAULTS_PAGE names a file that both map. While `left` is not negative, calls that match `part` are counted down from
 * it, and the one that finds 0 fails: with ENOSPC a write to a file whose path has `part` in it, with EIO its sync or a
 * rename to it; when `part` is "streams", the making or the queueing of a response that is read from a callback. */
#undef _FILE_OFFSET_BITS /* pwrite and pwrite64 are two functions */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct page {
    _Atomic int64_t left;
    char part[120];
} page;

static page *armed;

__attribute__((constructor)) static void open_page(void)
{
    const char *path = getenv("FAULTS_PAGE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd >= 0 ? mmap(NULL, sizeof *armed, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (p == MAP_FAILED)
        abort(); /* a test that can inject nothing is none */
    close(fd);
    armed = p;
}

static bool counts_down(void)
{
    int64_t left = atomic_load(&armed->left);
    while (left >= 0 && !atomic_compare_exchange_weak(&armed->left, &left, left - 1))
        ;
    return left == 0;
}

static bool is_armed(void) { return armed && atomic_load(&armed->left) >= 0; }

static bool path_fails(const char *path) { return is_armed() && strstr(path, armed->part) && counts_down(); }

static bool file_fails(int fd)
{
    char link[32], path[4096];
    struct stat st;
    if (!is_armed() || fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 2);
    if (n < 0)
        return false;
    path[n] = '/'; /* a folder's own path matches as what is in it does */
    path[n + 1] = 0;
    return path_fails(path);
}

static int fail_with(int code) { return errno = code, -1; }

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, #name))

EXPORT ssize_t write(int fd, const void *data, size_t n);
ssize_t write(int fd, const void *data, size_t n)
{
    return file_fails(fd) ? fail_with(ENOSPC) : REAL(write, ssize_t(*)(int, const void *, size_t))(fd, data, n);
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t n, off_t at);
ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return file_fails(fd) ? fail_with(ENOSPC)
                          : REAL(pwrite, ssize_t(*)(int, const void *, size_t, off_t))(fd, data, n, at);
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at);
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    return file_fails(fd) ? fail_with(ENOSPC)
                          : REAL(pwrite64, ssize_t(*)(int, const void *, size_t, off64_t))(fd, data, n, at);
}

EXPORT int fsync(int fd);
int fsync(int fd) { return file_fails(fd) ? fail_with(EIO) : REAL(fsync, int (*)(int))(fd); }

EXPORT int fdatasync(int fd);
int fdatasync(int fd) { return file_fails(fd) ? fail_with(EIO) : REAL(fdatasync, int (*)(int))(fd); }

EXPORT int rename(const char *from, const char *to);
int rename(const char *from, const char *to)
{
    return path_fails(to) ? fail_with(EIO) : REAL(rename, int (*)(const char *, const char *))(from, to);
}

/* libmicrohttpd's, by their shapes: the test's build needs none of its headers. */

typedef ssize_t reader(void *, uint64_t, char *, size_t);
EXPORT void *MHD_create_response_from_callback(uint64_t size, size_t block, reader *read, void *arg,
                                               void (*release)(void *));
void *MHD_create_response_from_callback(uint64_t size, size_t block, reader *read, void *arg, void (*release)(void *))
{
    typedef void *maker(uint64_t, size_t, reader *, void *, void (*)(void *));
    return path_fails("streams") ? NULL
                                 : REAL(MHD_create_response_from_callback, maker *)(size, block, read, arg, release);
}

EXPORT int MHD_queue_response(void *connection, unsigned status, void *response);
int MHD_queue_response(void *connection, unsigned status, void *response)
{
    return path_fails("streams")
               ? 0
               : REAL(MHD_queue_response, int (*)(void *, unsigned, void *))(connection, status, response);
}
