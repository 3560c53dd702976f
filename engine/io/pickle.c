/* pickle.c - the restricted pickle reader. See pickle.h.
 *
 * Values live in one growing array and are named by their index, never 0, so that nothing is freed alone, nothing
 * recurses, and a cycle (a dict may hold itself) is only an index. Tuples are slices of `items`, dicts are chains of
 * `pairs`. The first failure is the last: every opcode returns 0 or a DN_E code. */
#include "pickle.h"

#include <stdlib.h>
#include <string.h>

enum kind { STRING, INTEGER, BOOLEAN, TUPLE, DICT, GLOBAL, STORAGE, TENSOR };
static const char *const kind_names[] = { "a string", "an integer", "a boolean", "a tuple",
                                          "a dict",   "a function", "a storage", "a tensor" };

typedef struct value {
    enum kind kind;
    uint32_t first; /* STRING: offset in the pickle; TUPLE: first item; DICT: first pair, 0 none; others: which */
    uint32_t len;   /* STRING: bytes; TUPLE: items */
    union {
        int64_t number;        /* INTEGER, BOOLEAN */
        const dn_dtype *dtype; /* GLOBAL, if it is a STORAGE_TYPE */
    };
} value;

typedef struct pair {
    uint32_t key, value, next;
} pair;

typedef struct storage {
    const dn_dtype *dtype;
    int64_t count;
    uint64_t offset;
} storage;

typedef struct vec {
    void *at;
    uint32_t len, cap;
} vec;

typedef struct reader {
    const uint8_t *buf;
    size_t len, pos, op; /* op: where the current opcode is */
    vec values, items, pairs, storages, memo;
    dn_stored_list tensors;
    uint32_t stack[DN_PICKLE_STACK_MAX], marks[DN_PICKLE_DEPTH_MAX];
    uint32_t stack_len, marks_len;
    bool stopped;
    dn_storage_lookup *lookup;
    void *ctx;
    const char *file;
    dn_error *err;
} reader;

/* What a GLOBAL may name: these, and the storages of the table of types. */
enum global { ORDERED_DICT, REBUILD_TENSOR, STORAGE_TYPE };
static const char *const global_names[STORAGE_TYPE] = { "collections\nOrderedDict\n",
                                                        "torch._utils\n_rebuild_tensor_v2\n" };

static int refuse(reader *r, int code, const char *why, const char *what)
{
    return dn_fail(r->err, code, r->file, "%s: data.pkl, byte %zu: %s%s", r->file, r->op, why, what);
}

static int bad(reader *r, const char *why) { return refuse(r, DN_E_FORMAT, why, ""); }

/* --- storage of the reader itself --- */

/* `n` more elements at the end of `v`, zeroed. */
static int vec_add(reader *r, vec *v, size_t size, uint32_t n)
{
    if (n > DN_PICKLE_VALUES_MAX - v->len)
        return refuse(r, DN_E_LIMIT, "too many values", "");
    if (v->len + n > v->cap) {
        uint32_t cap = v->cap * 2 > v->len + n ? v->cap * 2 : v->len + n + 64;
        void *at = realloc(v->at, cap * size);
        if (!at)
            return refuse(r, DN_E_MEMORY, "no memory", "");
        v->at = at;
        v->cap = cap;
    }
    if (n > 0)
        memset((char *)v->at + v->len * size, 0, n * size);
    v->len += n;
    return 0;
}

static value *value_at(const reader *r, uint32_t id) { return (value *)r->values.at + id; }

static int push(reader *r, uint32_t id)
{
    if (r->stack_len == DN_PICKLE_STACK_MAX)
        return refuse(r, DN_E_LIMIT, "its stack is too deep", "");
    r->stack[r->stack_len++] = id;
    return 0;
}

static int push_value(reader *r, value v)
{
    int rc = vec_add(r, &r->values, sizeof v, 1);
    if (rc != 0)
        return rc;
    *value_at(r, r->values.len - 1) = v;
    return push(r, r->values.len - 1);
}

static uint32_t stack_floor(const reader *r) { return r->marks_len > 0 ? r->marks[r->marks_len - 1] : 0; }

static int pop(reader *r, uint32_t *id)
{
    if (r->stack_len == stack_floor(r))
        return bad(r, "its stack is empty");
    *id = r->stack[--r->stack_len];
    return 0;
}

static int pop_kind(reader *r, enum kind kind, value *v)
{
    uint32_t id = 0;
    int rc = pop(r, &id);
    if (rc != 0)
        return rc;
    *v = *value_at(r, id);
    return v->kind == kind ? 0 : refuse(r, DN_E_FORMAT, "expected ", kind_names[kind]);
}

/* The stack above the last mark, which is removed: `n` values from stack[*first]. */
static int pop_mark(reader *r, uint32_t *first, uint32_t *n)
{
    if (r->marks_len == 0)
        return bad(r, "a mark is missing");
    *first = r->marks[--r->marks_len];
    *n = r->stack_len - *first;
    return 0;
}

static int take(reader *r, size_t n, const uint8_t **p)
{
    if (n > r->len - r->pos)
        return bad(r, "cut short");
    *p = r->buf + r->pos;
    r->pos += n;
    return 0;
}

static int take_uint(reader *r, size_t n, uint32_t *out)
{
    const uint8_t *p = NULL;
    int rc = take(r, n, &p);
    *out = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        *out |= (uint32_t)p[i] << (8 * i);
    return rc;
}

static int push_integer(reader *r, int64_t n) { return push_value(r, (value){ .kind = INTEGER, .number = n }); }

/* --- opcodes --- */

static int op_proto(reader *r)
{
    uint32_t version;
    int rc = take_uint(r, 1, &version);
    return rc == 0 && version != 2 ? bad(r, "not pickle protocol 2") : rc;
}

static int op_stop(reader *r)
{
    r->stopped = true;
    return r->pos == r->len ? 0 : bad(r, "there is something after its end");
}

static int op_mark(reader *r)
{
    if (r->marks_len == DN_PICKLE_DEPTH_MAX)
        return refuse(r, DN_E_LIMIT, "nested too deeply", "");
    r->marks[r->marks_len++] = r->stack_len;
    return 0;
}

static int op_unicode(reader *r)
{
    uint32_t len;
    const uint8_t *p = NULL;
    int rc = take_uint(r, 4, &len);
    if (rc == 0)
        rc = take(r, len, &p);
    return rc == 0 ? push_value(r, (value){ .kind = STRING, .first = (uint32_t)(p - r->buf), .len = len }) : rc;
}

static int push_uint(reader *r, size_t n)
{
    uint32_t v;
    int rc = take_uint(r, n, &v);
    return rc == 0 ? push_integer(r, n < 4 ? (int64_t)v : (int32_t)v) : rc;
}

static int op_int1(reader *r) { return push_uint(r, 1); }
static int op_int2(reader *r) { return push_uint(r, 2); }
static int op_int4(reader *r) { return push_uint(r, 4); }

static int op_long(reader *r)
{
    uint32_t len;
    const uint8_t *p = NULL;
    int rc = take_uint(r, 1, &len);
    if (rc == 0)
        rc = take(r, len, &p);
    if (rc != 0)
        return rc;
    if (len > 8)
        return bad(r, "an integer of more than 64 bits");
    uint64_t v = len > 0 && p[len - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = len; i-- > 0;)
        v = v << 8 | p[i];
    return push_integer(r, (int64_t)v);
}

static int op_false(reader *r) { return push_value(r, (value){ .kind = BOOLEAN, .number = 0 }); }
static int op_true(reader *r) { return push_value(r, (value){ .kind = BOOLEAN, .number = 1 }); }
static int op_dict(reader *r) { return push_value(r, (value){ .kind = DICT }); }

static int memo_put(reader *r, size_t index_bytes)
{
    uint32_t i;
    int rc = take_uint(r, index_bytes, &i);
    if (rc == 0 && r->stack_len == stack_floor(r))
        rc = bad(r, "its stack is empty");
    if (rc == 0 && i >= DN_PICKLE_VALUES_MAX)
        rc = refuse(r, DN_E_LIMIT, "its memo is too large", "");
    if (rc == 0 && i >= r->memo.len)
        rc = vec_add(r, &r->memo, sizeof(uint32_t), i + 1 - r->memo.len);
    if (rc == 0)
        ((uint32_t *)r->memo.at)[i] = r->stack[r->stack_len - 1];
    return rc;
}

static int memo_get(reader *r, size_t index_bytes)
{
    uint32_t i;
    int rc = take_uint(r, index_bytes, &i);
    if (rc != 0)
        return rc;
    uint32_t id = i < r->memo.len ? ((uint32_t *)r->memo.at)[i] : 0;
    return id != 0 ? push(r, id) : bad(r, "a memo entry that was never made");
}

static int op_put(reader *r) { return memo_put(r, 1); }
static int op_long_put(reader *r) { return memo_put(r, 4); }
static int op_get(reader *r) { return memo_get(r, 1); }
static int op_long_get(reader *r) { return memo_get(r, 4); }

/* The top `n` of the stack become a tuple. */
static int make_tuple(reader *r, uint32_t n)
{
    if (r->stack_len - stack_floor(r) < n)
        return bad(r, "its stack is empty");
    value v = { .kind = TUPLE, .first = r->items.len, .len = n };
    int rc = vec_add(r, &r->items, sizeof(uint32_t), n);
    if (rc != 0)
        return rc;
    r->stack_len -= n;
    if (n > 0)
        memcpy((uint32_t *)r->items.at + v.first, r->stack + r->stack_len, n * sizeof(uint32_t));
    return push_value(r, v);
}

static int op_tuple(reader *r)
{
    uint32_t first = 0, n = 0;
    int rc = pop_mark(r, &first, &n);
    return rc == 0 ? make_tuple(r, n) : rc;
}

static int op_tuple0(reader *r) { return make_tuple(r, 0); }
static int op_tuple1(reader *r) { return make_tuple(r, 1); }
static int op_tuple2(reader *r) { return make_tuple(r, 2); }
static int op_tuple3(reader *r) { return make_tuple(r, 3); }

/* Put the `n` values at stack[first], key and value by turns, into the dict below them. */
static int set_items(reader *r, uint32_t first, uint32_t n)
{
    if (n % 2 != 0)
        return bad(r, "a key without a value");
    r->stack_len = first;
    if (first == stack_floor(r) || value_at(r, r->stack[first - 1])->kind != DICT)
        return bad(r, "items are set in something that is no dict");
    value *dict = value_at(r, r->stack[first - 1]);
    for (uint32_t i = 0; i < n; i += 2) {
        int rc = r->pairs.len == 0 ? vec_add(r, &r->pairs, sizeof(pair), 1) : 0; /* pair 0 is no pair */
        if (rc == 0)
            rc = vec_add(r, &r->pairs, sizeof(pair), 1);
        if (rc != 0)
            return rc;
        uint32_t at = r->pairs.len - 1;
        ((pair *)r->pairs.at)[at] = (pair){ r->stack[first + i], r->stack[first + i + 1], dict->first };
        dict->first = at;
    }
    return 0;
}

static int op_set_item(reader *r)
{
    if (r->stack_len - stack_floor(r) < 3)
        return bad(r, "its stack is empty");
    return set_items(r, r->stack_len - 2, 2);
}

static int op_set_items(reader *r)
{
    uint32_t first = 0, n = 0;
    int rc = pop_mark(r, &first, &n);
    return rc == 0 ? set_items(r, first, n) : rc;
}

/* The state of an OrderedDict is the `_metadata` that torch hangs on it: no tensors, so it is dropped. */
static int op_build(reader *r)
{
    value state, dict;
    int rc = pop_kind(r, DICT, &state);
    if (rc == 0)
        rc = pop_kind(r, DICT, &dict);
    if (rc == 0)
        r->stack_len++; /* the dict stays */
    return rc;
}

/* Two lines: module and name. */
static int op_global(reader *r)
{
    const uint8_t *start = r->buf + r->pos, *end = r->buf + r->len;
    const uint8_t *dot = memchr(start, '\n', (size_t)(end - start));
    const uint8_t *last = dot ? memchr(dot + 1, '\n', (size_t)(end - dot - 1)) : NULL;
    if (!last)
        return bad(r, "cut short");
    size_t len = (size_t)(last + 1 - start), module_len = (size_t)(dot - start);
    r->pos += len;
    for (uint32_t i = 0; i < STORAGE_TYPE; i++)
        if (strlen(global_names[i]) == len && memcmp(global_names[i], start, len) == 0)
            return push_value(r, (value){ .kind = GLOBAL, .first = i });
    const dn_dtype *dtype = dn_dtype_find_storage((const char *)dot + 1, (size_t)(last - dot - 1));
    if (dtype && module_len == 5 && memcmp(start, "torch", 5) == 0)
        return push_value(r, (value){ .kind = GLOBAL, .first = STORAGE_TYPE, .dtype = dtype });
    dn_shown name = dn_show((const char *)start, len - 1);
    char *newline = memchr(name.text, '?', strlen(name.text));
    if (newline)
        *newline = '.';
    return refuse(r, DN_E_FORMAT, "only tensors are read and nothing is run, but it names ", name.text);
}

/* Item `i` of a tuple, which must be of `kind`. */
static int item(reader *r, const value *tuple, uint32_t i, enum kind kind, value *out)
{
    *out = *value_at(r, ((uint32_t *)r->items.at)[tuple->first + i]);
    return out->kind == kind ? 0 : refuse(r, DN_E_FORMAT, "expected ", kind_names[kind]);
}

/* ("storage", type, key, device, number of elements) */
static int op_persistent_id(reader *r)
{
    value id, word, type, key, device, count;
    int rc = pop_kind(r, TUPLE, &id);
    if (rc == 0 && id.len != 5)
        rc = bad(r, "a persistent id that is no storage");
    if (rc != 0 || (rc = item(r, &id, 0, STRING, &word)) != 0 || (rc = item(r, &id, 1, GLOBAL, &type)) != 0 ||
        (rc = item(r, &id, 2, STRING, &key)) != 0 || (rc = item(r, &id, 3, STRING, &device)) != 0 ||
        (rc = item(r, &id, 4, INTEGER, &count)) != 0)
        return rc;
    if (word.len != 7 || memcmp(r->buf + word.first, "storage", 7) != 0 || type.first != STORAGE_TYPE ||
        count.number < 0)
        return bad(r, "a persistent id that is no storage");
    storage s = { .dtype = type.dtype, .count = count.number };
    int64_t bytes;
    const char *name = (const char *)r->buf + key.first;
    if (__builtin_mul_overflow(s.count, (int64_t)s.dtype->bits / 8, &bytes) ||
        !r->lookup(r->ctx, name, key.len, (uint64_t)bytes, &s.offset))
        return refuse(r, DN_E_FORMAT, "no storage of the size it says has the key ", dn_show(name, key.len).text);
    rc = vec_add(r, &r->storages, sizeof s, 1);
    if (rc != 0)
        return rc;
    ((storage *)r->storages.at)[r->storages.len - 1] = s;
    return push_value(r, (value){ .kind = STORAGE, .first = r->storages.len - 1 });
}

/* Sizes or strides: a tuple of integers >= 0. */
static int get_sizes(reader *r, const value *tuple, int64_t *out)
{
    for (uint32_t d = 0; d < tuple->len; d++) {
        value v;
        int rc = item(r, tuple, d, INTEGER, &v);
        if (rc != 0)
            return rc;
        if (v.number < 0)
            return bad(r, "a size or stride below 0");
        out[d] = v.number;
    }
    return 0;
}

/* All elements lie in the storage, and there are no more of them than it has. */
static int place(reader *r, dn_stored *t, const storage *s, int64_t first)
{
    int64_t strides[DN_TENSOR_RANK_MAX], last = first, step;
    memcpy(strides, t->stride, sizeof strides);
    if (dn_stored_set_shape(t) != 0)
        return bad(r, "the product of a shape overflows");
    memcpy(t->stride, strides, sizeof strides);
    bool inside = first <= s->count && t->count <= s->count;
    for (int d = 0; d < t->rank && inside && t->count > 0; d++)
        inside = !__builtin_mul_overflow(t->dim[d] - 1, t->stride[d], &step) &&
                 !__builtin_add_overflow(last, step, &last) && last < s->count;
    if (!inside || (t->count > 0 && last >= s->count))
        return bad(r, "a tensor reaches out of its storage");
    uint64_t size = (uint64_t)s->dtype->bits / 8;
    t->dtype = s->dtype;
    t->offset = s->offset + (uint64_t)first * size;
    t->bytes = t->count > 0 ? (uint64_t)(last - first + 1) * size : 0;
    return 0;
}

/* (storage, offset, sizes, strides, requires_grad, hooks) */
static int rebuild_tensor(reader *r, const value *args)
{
    value from, first, sizes, strides, grad, hooks;
    int rc = args->len == 6 ? 0 : bad(r, "a tensor takes six arguments");
    if (rc != 0 || (rc = item(r, args, 0, STORAGE, &from)) != 0 || (rc = item(r, args, 1, INTEGER, &first)) != 0 ||
        (rc = item(r, args, 2, TUPLE, &sizes)) != 0 || (rc = item(r, args, 3, TUPLE, &strides)) != 0 ||
        (rc = item(r, args, 4, BOOLEAN, &grad)) != 0 || (rc = item(r, args, 5, DICT, &hooks)) != 0)
        return rc;
    if (first.number < 0 || sizes.len != strides.len)
        return bad(r, "a tensor whose sizes and strides do not fit");
    if (sizes.len > DN_TENSOR_RANK_MAX)
        return refuse(r, DN_E_LIMIT, "a tensor of more than 8 dimensions", "");
    dn_stored t = { .rank = (int)sizes.len };
    rc = get_sizes(r, &sizes, t.dim);
    if (rc == 0)
        rc = get_sizes(r, &strides, t.stride);
    if (rc == 0)
        rc = place(r, &t, (storage *)r->storages.at + from.first, first.number);
    if (rc == 0)
        rc = dn_stored_reserve(&r->tensors, 1, r->file, r->err);
    if (rc != 0)
        return rc;
    r->tensors.at[r->tensors.len++] = t;
    return push_value(r, (value){ .kind = TENSOR, .first = (uint32_t)r->tensors.len - 1 });
}

static int op_reduce(reader *r)
{
    value args, function;
    int rc = pop_kind(r, TUPLE, &args);
    if (rc == 0)
        rc = pop_kind(r, GLOBAL, &function);
    if (rc != 0)
        return rc;
    if (function.first == REBUILD_TENSOR)
        return rebuild_tensor(r, &args);
    if (function.first == ORDERED_DICT && args.len == 0)
        return op_dict(r);
    return bad(r, "it calls something that makes no tensor");
}

/* clang-format off */
static int (*const ops[256])(reader *) = {
    [0x80] = op_proto,    ['.'] = op_stop,       ['('] = op_mark,     ['X'] = op_unicode,
    ['K']  = op_int1,     ['M'] = op_int2,       ['J'] = op_int4,     [0x8a] = op_long,
    [0x88] = op_true,     [0x89] = op_false,     ['}'] = op_dict,
    ['q']  = op_put,      ['r'] = op_long_put,   ['h'] = op_get,      ['j'] = op_long_get,
    [')']  = op_tuple0,   [0x85] = op_tuple1,    [0x86] = op_tuple2,  [0x87] = op_tuple3,  ['t'] = op_tuple,
    ['s']  = op_set_item, ['u'] = op_set_items,  ['b'] = op_build,
    ['c']  = op_global,   ['Q'] = op_persistent_id, ['R'] = op_reduce,
};
/* clang-format on */

static int run(reader *r)
{
    int rc = vec_add(r, &r->values, sizeof(value), 1); /* value 0 is no value */
    while (rc == 0 && !r->stopped) {
        r->op = r->pos;
        const uint8_t *p = NULL;
        rc = take(r, 1, &p);
        if (rc == 0 && !ops[*p]) {
            char text[8] = { "0123456789abcdef"[*p >> 4], "0123456789abcdef"[*p & 15] };
            rc = refuse(r, DN_E_FORMAT, "not an opcode that a map of tensors needs: 0x", text);
        } else if (rc == 0)
            rc = ops[*p](r);
    }
    return rc;
}

/* The tensor that a pair of the outermost dict names. */
static int named_tensor(reader *r, const pair *p, dn_stored *out)
{
    const value *key = value_at(r, p->key), *v = value_at(r, p->value);
    if (key->kind != STRING)
        return refuse(r, DN_E_FORMAT, "a tensor's name is ", kind_names[key->kind]);
    const char *name = (const char *)r->buf + key->first;
    if (key->len >= sizeof out->name)
        return refuse(r, DN_E_LIMIT, "a name longer than 255 bytes: ", dn_show(name, key->len).text);
    if (memchr(name, 0, key->len))
        return refuse(r, DN_E_FORMAT, "a name with a zero byte: ", dn_show(name, key->len).text);
    if (v->kind != TENSOR)
        return dn_fail(r->err, DN_E_FORMAT, r->file, "%s: \"%s\" is %s, not a tensor", r->file,
                       dn_show(name, key->len).text, kind_names[v->kind]);
    *out = r->tensors.at[v->first];
    memcpy(out->name, name, key->len);
    return 0;
}

static int collect(reader *r, dn_stored_list *l)
{
    value root;
    if (r->stack_len != 1 || r->marks_len != 0)
        return bad(r, "not one map of tensors");
    int rc = pop_kind(r, DICT, &root);
    const pair *pairs = r->pairs.at;
    for (uint32_t at = root.first; rc == 0 && at != 0; at = pairs[at].next) {
        dn_stored t;
        rc = named_tensor(r, &pairs[at], &t);
        if (rc == 0)
            rc = dn_stored_reserve(l, 1, r->file, r->err);
        if (rc == 0)
            l->at[l->len++] = t;
    }
    return rc;
}

int dn_pickle_list(dn_stored_list *l, const uint8_t *buf, size_t len, dn_storage_lookup *lookup, void *ctx,
                   const char *file, dn_error *err)
{
    if (len > DN_PICKLE_BYTES_MAX)
        return dn_fail(err, DN_E_LIMIT, file, "%s: data.pkl is %zu bytes long; the limit is %d", file, len,
                       DN_PICKLE_BYTES_MAX);
    reader *r = calloc(1, sizeof *r);
    if (!r)
        return dn_fail(err, DN_E_MEMORY, file, "%s: no memory to read data.pkl", file);
    int first = l->len;
    *r = (reader){ .buf = buf, .len = len, .lookup = lookup, .ctx = ctx, .file = file, .err = err };
    int rc = run(r);
    if (rc == 0)
        rc = collect(r, l);
    if (rc != 0)
        l->len = first;
    free(r->values.at);
    free(r->items.at);
    free(r->pairs.at);
    free(r->storages.at);
    free(r->memo.at);
    dn_stored_fini(&r->tensors);
    free(r);
    return rc;
}
