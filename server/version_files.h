/* version_files.h - what an upload holds becomes the folder of a model, and the folder is tried.
 *
 * All of it is slow and belongs on a lane; it knows neither app nor store. Every byte is untrusted. */
#ifndef DN_SERVER_VERSION_FILES_H
#define DN_SERVER_VERSION_FILES_H

#include <denoised/archive.h>
#include <denoised/device.h>

/* Make the folder `dir` of the uploaded file `src`: an archive of it; or one bare .safetensors file, which is moved
 * there beside what the model's folder `base` has except weights. base NULL: there is no model to take a config from,
 * DN_E_IMPOSSIBLE. On failure what was made stays (the caller removes `dir`). */
int dn_version_unpack(const char *src, const char *base, const char *dir, const dn_archive_limits *limits,
                      dn_error *err);
/* The folder that is the model: `tmp`, or the only one in it. malloc'ed; NULL: out of memory. */
char *dn_version_folder(const char *tmp);
/* Load the folder and run it once, at its own size, on a device of its own that is like `like`: values that are not
 * finite are DN_E_FORMAT, more than bytes_max to hold DN_E_LIMIT. The weights' hash. While *stop is true (NULL: never)
 * it ends with DN_E_CANCELLED, within a slice of the evaluation or when what has begun before it is done. */
int dn_version_try(char hash[65], const dn_device *like, const char *dir, int64_t bytes_max, const _Atomic(bool) *stop,
                   dn_error *err);

#endif
