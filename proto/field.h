/* field.h - one table per message.
 *
 * A dn_field says everything about one member of a request, a response or the configuration: its name, type, range,
 * default, unit, help and the place in a C struct where it lands. The parser, the validator and its texts, the writer
 * of responses, JSON schema (OpenAPI and the page's form), the CLI's flags, the configuration and the documentation's
 * tables all walk the same table. */
#ifndef DN_PROTO_FIELD_H
#define DN_PROTO_FIELD_H

#include "arena.h"
#include "buf.h"
#include "http_error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_t;

/* the type, and the C member it lands in */
enum dn_type {
    DN_T_BOOL,   /* bool */
    DN_T_INT,    /* int64_t */
    DN_T_NUM,    /* double */
    DN_T_STR,    /* const char *; range: its length in bytes */
    DN_T_ENUM,   /* int: index in `choices` */
    DN_T_NAME,   /* const char *: one of `choices`, the table's own pointer */
    DN_T_PAIR,   /* double[2]: first < second, unless DN_F_ANY_ORDER */
    DN_T_NUMS,   /* dn_nums: a list of numbers, strictly descending unless DN_F_ANY_ORDER; count_max of them */
    DN_T_LABELS, /* dn_labels: a number, a name, or a list of those */
    DN_T_JSON,   /* const struct json_t *: an object passed through */
    DN_T_OBJECT, /* a struct in place, described by `sub` */
    DN_T_LIST,   /* dn_items: structs described by `sub`; count_max of them in a request */
    DN_T_STRS,   /* dn_strs: a list of strings (responses, configuration) */
    DN_T_BYTES,  /* dn_bytes, written as base64 (responses) */
    DN_T_SIZE,   /* int64_t: bytes; as text "512M", "1GiB" (configuration) */
    DN_T_TIME,   /* int64_t: milliseconds; as text "250ms", "90s", "1h"; a bare number counts seconds (configuration) */
    DN_T_COUNT
};

typedef struct dn_nums {
    const double *v;
    int n;
} dn_nums;

typedef struct dn_label {
    const char *name; /* NULL: by number */
    int64_t number;
} dn_label;

typedef struct dn_labels {
    const dn_label *v;
    int n;     /* 0: not given */
    bool list; /* was written as a list: one for each sample; else one label for all */
} dn_labels;

typedef struct dn_items {
    const void *v;
    int n;
} dn_items;

typedef struct dn_strs {
    const char *const *v;
    int n;
} dn_strs;

typedef struct dn_bytes {
    const void *data;
    size_t len;
} dn_bytes;

enum dn_field_flags {
    DN_F_REQUIRED = 1, /* requests: its object cannot do without it; responses: it is always there */
    DN_F_NULL = 2,     /* responses: absent is written as null instead of being left out */
    DN_F_ONLY = 4,     /* its default is the only value of this version, others are refused as not_supported */
    DN_F_DEVICES = 8,  /* devices: as text, an item that begins with a digit belongs to the one before (cpu:0,2) */
    DN_F_NO_FILE = 16, /* configuration: not a key of the INI file */
    DN_F_ANY_ORDER = 32, /* pairs and lists of numbers: not only ascending pairs and descending lists */
    DN_F_AUTO = 64       /* integers: the word auto stands for 0 */
};

struct dn_fields;

typedef struct dn_field {
    const char *name;
    enum dn_type type;
    uint32_t offset;
    uint32_t flags;
    double min, max;            /* of the number, or of the string's length */
    int count_max;              /* of a list */
    const char *const *choices; /* NULL-terminated */
    const char *const *later;   /* NULL-terminated: choices of later versions, refused by name */
    const struct dn_fields *sub;
    const char *def; /* the default as text, as dn_field_from_text reads it; NULL: none */
    const char *unit;
    const char *help;
    const char *flag; /* the CLI's spelling when it is not the dotted name with dashes; "" : no flag */
    char short_flag;
} dn_field;

/* The fields of one struct. Its first member is `uint64_t has`: bit i is set when field i was given (requests) or shall
 * be written (responses). At most 64 fields. */
typedef struct dn_fields {
    const char *name; /* of the schema: "GenerateRequest" */
    const char *help;
    const dn_field *v;
    int n;
    size_t size;              /* of the struct */
    const char *const *later; /* NULL-terminated: names of later versions, refused as not_supported */
} dn_fields;

/* Fill the zeroed struct `out` from `json`, defaults first. Strings and lists are copied into the arena; a DN_T_JSON
 * value is borrowed from `json`, which must live as long. Returns 0 or a DN_H code with *err filled; `out` is then
 * unspecified. */
int dn_fields_parse(const dn_fields *t, void *out, dn_arena *a, const struct json_t *json, dn_http_error *err);
/* One value as people write it on a command line, in a variable, in an INI file or in a query string -> JSON. Lists are
 * separated by commas; in one of objects a word is an object's first member. NULL with *err (param: the field's name)
 * when it is not of the field's type; ranges are dn_fields_parse's to check. */
struct json_t *dn_field_from_text(const dn_field *f, const char *text, dn_http_error *err);
/* One field of `out` from JSON, its bit set: the same checks as dn_fields_parse. */
int dn_field_set(const dn_fields *t, int field, void *out, dn_arena *a, const struct json_t *json, dn_http_error *err);
/* Defaults into the zeroed struct `out`, sub-objects too; no bits. */
int dn_fields_defaults(const dn_fields *t, void *out, dn_arena *a, dn_http_error *err);
/* The choice or name nearest to `word` (NULL-terminated list), or NULL when none is near: for "did you mean". */
const char *dn_near_miss(const char *word, const char *const *names);
/* Write the struct as a JSON object: fields whose bit is set; a NULL string, empty dn_bytes, an object without bits
 * count as absent. */
void dn_fields_write(const dn_fields *t, const void *in, dn_buf *b);
/* The JSON schema (2020-12) of the table's object; sub-objects by $ref to #/components/schemas/NAME. It describes the
 * page's form too: minimum, maximum, enum, default, description, x-unit. */
void dn_fields_schema(const dn_fields *t, dn_buf *b);
void dn_field_schema(const dn_field *f, dn_buf *b);
/* A Markdown table: field, type, range, default, meaning. */
void dn_fields_markdown(const dn_fields *t, dn_buf *b);
/* The index of a field by name, or -1. */
int dn_fields_find(const dn_fields *t, const char *name);

#endif
