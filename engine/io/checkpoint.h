/* checkpoint.h - the tensors of one component of a diffusers folder, whatever form they are stored in.
 *
 * safetensors, sharded safetensors with an index, variants (fp16), torch .bin (restricted pickle reader: nothing is ever
 * executed). Every byte is untrusted. Legacy attention names (query, key, value, proj_attn) are given their modern ones
 * in files that are not shards, as diffusers does.
 *
 * Which file is read: diffusion_pytorch_model.safetensors.index.json, else diffusion_pytorch_model.safetensors, else the
 * same for .bin. If there is none of these but exactly one variant (diffusion_pytorch_model.fp16.safetensors, or an
 * index, ....safetensors.index.fp16.json), that is read; several variants are an error. Limits are named in stored.h,
 * json.h, pickle.h and zip.h. */
#ifndef DN_IO_CHECKPOINT_H
#define DN_IO_CHECKPOINT_H

#include <denoised/error.h>
#include <stddef.h>
#include <stdint.h>

struct json_t;
typedef struct dn_checkpoint dn_checkpoint;

enum { DN_TENSOR_RANK_MAX = 8, DN_TENSOR_NAME_MAX = 256 };
enum dn_tensor_dtype { DN_T_F32, DN_T_F16, DN_T_BF16, DN_T_F64, DN_T_I64, DN_T_OTHER };

typedef struct dn_tensor {
    const char *name;
    enum dn_tensor_dtype dtype;
    const char *dtype_name; /* as the file says: "BF16" */
    int rank;
    int64_t dim[DN_TENSOR_RANK_MAX];
    int64_t count;
    const char *file;       /* base name of the file that holds it */
} dn_tensor;

/* Open `dir`/`component` (or `dir` itself if there is no such folder: the root fallback; component NULL: `dir`). On failure
 * *out is untouched; err->param is the file, the message names file and tensor. */
int dn_checkpoint_open(dn_checkpoint **out, const char *dir, const char *component, dn_error *err);
void dn_checkpoint_close(dn_checkpoint *c); /* NULL is fine */
int dn_checkpoint_count(const dn_checkpoint *c);
const dn_tensor *dn_checkpoint_tensor(const dn_checkpoint *c, int i);
const dn_tensor *dn_checkpoint_find(const dn_checkpoint *c, const char *name); /* NULL: there is none */
/* Convert the tensor to float32 in the file's (PyTorch, C) order; dst has t->count floats, which are undefined after a
 * failure. `t` is one of c's. Types other than those named in dn_tensor_dtype: DN_E_UNSUPPORTED. */
int dn_checkpoint_read(const dn_checkpoint *c, const dn_tensor *t, float *dst, dn_error *err);

/* Parse a JSON file of at most `limit` bytes, an object; duplicate keys are refused, Python's bare Infinity is null. *out is the caller's (json_decref). */
int dn_json_load(struct json_t **out, const char *dir, const char *file, size_t limit, dn_error *err);

#endif
