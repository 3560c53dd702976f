/* tables_main.c - prints the documentation's tables, so that no page is a second copy of what the tables say. */
#include "daemon_config.h"
#include "metric_set.h"
#include "proto.h"

#include <stdio.h>
#include <string.h>

static void generate(dn_buf *b) { dn_fields_markdown(&dn_generate_fields, b); }

static void routes(dn_buf *b)
{
    dn_buf_puts(b, "| method | path | meaning |\n|---|---|---|\n");
    for (int i = 0; i < DN_ROUTE_COUNT; i++)
        dn_buf_printf(b, "| %s | `%s` | %s |\n", dn_routes[i].method, dn_routes[i].path, dn_routes[i].summary);
}

static void openapi(dn_buf *b) { dn_openapi_write(b, "docs"); }

static const struct {
    const char *name;
    void (*write)(dn_buf *b);
} tables[] = {
    { "generate", generate },
    { "errors", dn_http_errors_markdown },
    { "config", dn_config_markdown },
    { "metrics", dn_metrics_markdown },
    { "routes", routes },
    { "openapi", openapi },
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 2 && i < sizeof tables / sizeof *tables; i++) {
        if (strcmp(argv[1], tables[i].name))
            continue;
        dn_buf b;
        dn_buf_init(&b, 4 << 20);
        tables[i].write(&b);
        bool bad = b.failed || fwrite(b.data, 1, b.len, stdout) != b.len;
        dn_buf_fini(&b);
        return bad;
    }
    fprintf(stderr, "usage: denoised-tables generate|errors|config|metrics|routes|openapi\n");
    return 2;
}
