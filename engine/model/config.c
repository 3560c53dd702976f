/* config.c - a component's config.json, read by a table of keys. */
#include "arch.h"
#include <jansson.h>
#include <math.h>
#include <string.h>

static int wrong(const dn_config_key *k, const char *expected, dn_error *err)
{
    return dn_fail(err, DN_E_INVALID, k->name, "config.json: %s must be %s", k->name, expected);
}

static int read_number(double *out, const dn_config_key *k, const json_t *v, dn_error *err)
{
    if (!json_is_number(v) || (k->type != DN_CONFIG_DOUBLE && json_is_real(v) && json_real_value(v) != floor(json_real_value(v))))
        return wrong(k, k->type == DN_CONFIG_DOUBLE ? "a number" : "a whole number", err);
    double x = json_number_value(v);
    if (!(x >= k->lo && x <= k->hi))
        return dn_fail(err, DN_E_RANGE, k->name, "config.json: %s must be %g..%g, got %g", k->name, k->lo, k->hi, x);
    *out = x;
    return 0;
}

static int read_choice(int *out, const dn_config_key *k, const json_t *v, dn_error *err)
{
    const char *s = json_string_value(v);
    for (int i = 0; s && k->choices[i]; i++)
        if (!strcmp(k->choices[i], s)) {
            *out = i;
            return 0;
        }
    if (!s)
        return wrong(k, "a string", err);
    return dn_fail(err, DN_E_UNSUPPORTED, k->name, "config.json: %s \"%s\" is not supported", k->name, s);
}

static int read_list(dn_config_list *out, const dn_config_key *k, const json_t *v, dn_error *err)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n < 1 || n > DN_CONFIG_LIST_MAX)
        return wrong(k, "a list of 1 to 16 values", err);
    dn_config_list list = { .n = (int)n };
    for (size_t i = 0; i < n; i++) {
        double x = 0;
        int rc = k->type == DN_CONFIG_CHOICES ? read_choice(&list.value[i], k, json_array_get(v, i), err)
                                              : read_number(&x, k, json_array_get(v, i), err);
        if (rc)
            return rc;
        if (k->type == DN_CONFIG_INTS)
            list.value[i] = (int)x;
    }
    *out = list;
    return 0;
}

static int read_key(char *at, const dn_config_key *k, const json_t *v, dn_error *err)
{
    double x = 0;
    int rc = 0;
    if (json_is_null(v)) {
        if (!k->null_ok)
            return wrong(k, "given, not null", err);
        if (k->type == DN_CONFIG_INT || k->type == DN_CONFIG_CHOICE)
            *(int *)at = k->null_value;
        return 0;
    }
    switch (k->type) {
    case DN_CONFIG_INT:
        rc = read_number(&x, k, v, err);
        if (!rc)
            *(int *)at = (int)x;
        return rc;
    case DN_CONFIG_DOUBLE:
        return read_number((double *)at, k, v, err);
    case DN_CONFIG_BOOL:
        if (!json_is_boolean(v))
            return wrong(k, "true or false", err);
        *(bool *)at = json_is_true(v);
        return 0;
    case DN_CONFIG_CHOICE:
        return read_choice((int *)at, k, v, err);
    case DN_CONFIG_INTS:
    case DN_CONFIG_CHOICES:
        return read_list((dn_config_list *)at, k, v, err);
    }
    return DN_E_INTERNAL;
}

int dn_arch_read(void *config, const dn_config_key *keys, int n, const json_t *json, dn_error *err)
{
    for (int i = 0; i < n; i++) {
        const json_t *v = json_object_get(json, keys[i].name);
        int rc = v ? read_key((char *)config + keys[i].offset, &keys[i], v, err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}
