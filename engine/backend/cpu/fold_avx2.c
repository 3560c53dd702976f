/* fold_avx2.c - see fold.h. */
#include "fold.h"
#include "tile_avx2.h"

/* Panels [C/16][C][16] of a matrix B become those of left * B. */
static void multiply(float *panels, const float *left, int C)
{
    double b[DN_FOLD_CHANNELS_MAX * PANEL];
    for (int p = 0; p < C; p += PANEL, panels += C * PANEL) {
        for (int i = 0; i < C * PANEL; i++)
            b[i] = (double)panels[i];
        for (int c = 0; c < C; c++) {
            double sum[PANEL] = { 0 };
            for (int d = 0; d < C; d++)
                for (int i = 0; i < PANEL; i++)
                    sum[i] += (double)left[(ptrdiff_t)c * C + d] * b[d * PANEL + i];
            for (int i = 0; i < PANEL; i++)
                panels[c * PANEL + i] = (float)sum[i];
        }
    }
}

void dn_fold_weights(void *dst, const float *const *src, const dn_shape *shape)
{
    const int C = (int)shape->dim[0];
    float *scores = dst, *values = scores + (ptrdiff_t)C * C;
    dn_cpu_gemm_pack_transposed(scores, src[1], shape);
    multiply(scores, src[0], C);
    dn_cpu_gemm_pack(values, src[3], shape);
    multiply(values, src[2], C);
}

void dn_fold_bias_in(void *dst, const float *const *src, const dn_shape *shape)
{
    const int C = (int)shape->dim[0];
    float *y = dst;
    for (int c = 0; c < C; c++) {
        double sum = 0;
        for (int d = 0; d < C; d++)
            sum += (double)src[0][d] * (double)src[1][(ptrdiff_t)c * C + d];
        y[c] = (float)sum;
        y[C + c] = 0;
    }
}

void dn_fold_bias_out(void *dst, const float *const *src, const dn_shape *shape)
{
    const int C = (int)shape->dim[0];
    float *y = dst;
    for (int c = 0; c < C; c++) {
        double sum = (double)src[0][c];
        for (int d = 0; d < C; d++)
            sum += (double)src[1][d] * (double)src[2][(ptrdiff_t)d * C + c];
        y[c] = (float)sum;
    }
}
