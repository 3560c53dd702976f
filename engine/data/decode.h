/* decode.h - PNG, JPEG and WebP of strangers to 8-bit pixels.
 *
 * Sides and pixels are checked against limits before anything is allocated. Pictures with alpha are laid over white.
 * 16-bit PNGs keep their high bytes. A JPEG of inks (CMYK) becomes RGB as PIL makes it, and one whose EXIF says how the
 * camera was held is turned upright. No colour profile or gamma is applied. A picture whose channels are equal
 * everywhere is grey and has one channel, whatever its file says; so the same picture has the same pixels in every
 * lossless format. */
#ifndef DN_DATA_DECODE_H
#define DN_DATA_DECODE_H

#include <denoised/dataset.h>

enum { DN_PIXELS_MAX = 1 << 25 /* of one picture: 8192 by 4096 */ };

enum dn_picture_kind { DN_NO_PICTURE, DN_PNG, DN_JPEG, DN_WEBP };

/* By the first bytes alone. */
enum dn_picture_kind dn_picture_kind_of(const uint8_t *data, size_t len);

typedef struct dn_picture {
    uint8_t *pixels;             /* [H,W,C], malloc'ed, the caller's */
    int height, width, channels; /* C: 1 or 3 */
} dn_picture;

/* What the header says: bytes of memory that decoding will take at most. */
int dn_picture_cost(size_t *cost, const uint8_t *data, size_t len, dn_error *err);
/* err->param is left empty: the caller knows the file. */
int dn_picture_decode(dn_picture *out, const uint8_t *data, size_t len, dn_error *err);

#endif
