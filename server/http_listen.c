/* http_listen.c - from "127.0.0.1:8760", "[::1]:0" or "unix:/path" to a listening socket. */
#include "http_internal.h"
#include "http_parse.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 1024 };

static int fail_errno(dn_error *err, const char *address)
{
    return dn_fail(err, DN_E_IO, "listen", "%s: %s", address, strerror(errno));
}

static int listen_on(int *out, int family, const struct sockaddr *addr, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        return -1;
    if (family != AF_UNIX)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, addr, len) != 0 || listen(fd, BACKLOG) != 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    *out = fd;
    return 0;
}

/* A socket file that nobody listens on is left over from a crash: remove it. Anything else stays. */
static void remove_stale(const struct sockaddr_un *addr)
{
    struct stat st;
    if (lstat(addr->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)addr, sizeof *addr) != 0 && errno == ECONNREFUSED)
        unlink(addr->sun_path);
    close(fd);
}

static int open_unix(dn_listener *l, const char *path, dn_error *err)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    if (!*path || strlen(path) >= sizeof addr.sun_path)
        return dn_fail(err, DN_E_RANGE, "listen", "unix:%s: a socket's path is 1 to %zu bytes", path,
                       sizeof addr.sun_path - 1);
    strcpy(addr.sun_path, path);
    remove_stale(&addr);
    if (listen_on(&l->fd, AF_UNIX, (struct sockaddr *)&addr, sizeof addr) != 0)
        return fail_errno(err, l->address);
    l->unix_path = strdup(path);
    return 0;
}

/* The address with the port that was really bound. */
static void name_address(dn_listener *l)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof addr;
    char host[64], port[8];
    if (getsockname(l->fd, (struct sockaddr *)&addr, &len) != 0 ||
        getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return;
    bool v6 = addr.ss_family == AF_INET6;
    snprintf(l->address, sizeof l->address, "http://%s%s%s:%s", v6 ? "[" : "", host, v6 ? "]" : "", port);
}

static int open_tcp(dn_listener *l, const char *address, dn_error *err)
{
    char host[80], port_text[16];
    int port;
    if (!dn_host_split(address, host, sizeof host, &port) || port < 0)
        return dn_fail(err, DN_E_INVALID, "listen", "%s: not host:port, [v6]:port or unix:/path", address);
    snprintf(port_text, sizeof port_text, "%d", port);
    struct addrinfo hints = { .ai_flags = AI_NUMERICSERV, .ai_socktype = SOCK_STREAM }, *found;
    int rc = getaddrinfo(host, port_text, &hints, &found);
    if (rc)
        return dn_fail(err, DN_E_INVALID, "listen", "%s: %s", address, gai_strerror(rc));
    if (listen_on(&l->fd, found->ai_family, found->ai_addr, found->ai_addrlen) != 0)
        rc = fail_errno(err, address);
    else
        name_address(l);
    freeaddrinfo(found);
    return rc;
}

int dn_listener_open(dn_listener *l, const char *address, dn_error *err)
{
    l->fd = -1;
    snprintf(l->address, sizeof l->address, "%s", address);
    if (strncmp(address, "unix:", 5) == 0)
        return open_unix(l, address + 5, err);
    return open_tcp(l, address, err);
}

void dn_listener_close(dn_listener *l)
{
    if (l->fd >= 0)
        close(l->fd);
    if (l->unix_path)
        unlink(l->unix_path);
    free(l->unix_path);
    l->unix_path = NULL;
    l->fd = -1;
}
