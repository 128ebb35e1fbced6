/* The whole C ABI of hardsample's native libraries.
 *
 * libhardsample.so (g++, *.cpp) works on host memory, libhardsample_cuda.so (nvcc, *.cu) on device memory. No function
 * allocates what it returns. Sizes are in elements, strides too. Functions of the CPU library return HS_OK or a negative
 * code; CUDA entry points take a stream and return 0 or a cudaError_t, whose message hs_cuda_error gives.
 * kernels/native.py has one table with the argument types of all of them; HS_ABI changes with any of them.
 */
#ifndef HARDSAMPLE_H
#define HARDSAMPLE_H

#include <stdint.h>

#define HS_ABI 1
#define HS_API extern "C" __attribute__((visibility("default")))

enum { HS_OK = 0, HS_BAD_ARGUMENT = -1, HS_NO_MEMORY = -2 };
enum { HS_U8 = 0, HS_F32 = 1, HS_F16 = 2, HS_BF16 = 3 };      /* dtype */
enum { HS_PIXEL = 0, HS_PATCH = 1, HS_RECTANGLE = 2 };        /* mask kind; a patch is HS_CELL x HS_CELL pixels */
enum { HS_HWC = 0, HS_CHW = 1, HS_PATCHES = 2 };              /* layout */
enum { HS_BASELINE = 0, HS_AVX2 = 1, HS_AVX512 = 2 };         /* level of the CPU */
enum { HS_CELL = 14, HS_ROUNDS = 7, HS_MAX_CHANNELS = 16 };

/* One masked variant: a row of kernels/variants.py's table. Philox4x32-7 with key (key0, key1) and counter
 * (draw / 8, image_index, realization, units) gives the eight 16-bit lanes of eight draws; draw d is masked iff
 * lane[d % 8] < units as uint32. `source` is the row of the image stack; y, x, height, width are the rectangle. */
typedef struct {
    uint32_t key0, key1, image_index, realization, units, source, y, x, height, width;
} hs_variant;

/* One image: hwc (height, width, channels), chw (channels, height, width), or patches: rows in the order
 * (height/patch/merge, width/patch/merge, merge, merge), features (channels, frames, patch, patch). */
typedef struct {
    int64_t height, width, channels, patch, merge, frames;
} hs_geometry;

/* -- libhardsample.so ------------------------------------------------------------------------------------------- */

HS_API int hs_abi(void);       /* HS_ABI */
HS_API int hs_cpu_level(void); /* the best level this CPU runs */

/* out[v] = images[variants[v].source] with masked pixels replaced by fill.
 * out (variants, *image), images (sources, *image): dtype, contiguous. fill: `channels` bit patterns of dtype, zero-
 * extended. threads >= 1; with 1 no OpenMP is entered. level: HS_BASELINE ... hs_cpu_level(). */
HS_API int hs_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                          const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind, int layout,
                          int threads, int level);

/* out[v] = image for v in 0 ... copies-1, by non-temporal stores: the floor that masking is measured against.
 * out (copies, bytes), image (bytes). */
HS_API int hs_broadcast(void *out, const void *image, int64_t copies, int64_t bytes, int threads, int level);

/* mass[b, h, i - row_start, s] = sum over the keys j of set s of exp(scale * q[b, h, i] . k[b, h / group, j] -
 * lse[b, h, i]), for the rows row_start <= i < row_stop.
 * q (batch, heads, queries, dim) and k (batch, kv_heads, keys, dim): dtype F32, F16 or BF16, strides in elements for
 * batch, head and position, dim contiguous. lse (batch, heads, queries), float, contiguous. columns (batch, keys) int32:
 * counts[b][0] positions of set 0, ascending, then counts[b][1] of set 1. mask: bytes, nonzero where a query may attend,
 * with strides for batch, head, query and key (0 where it is broadcast), or NULL. causal: only j <= i + query_offset.
 * A row that sees no key has mass 0, whatever its lse. mass (batch, heads, row_stop - row_start, 2), float. */
HS_API int hs_attention_mass(float *mass, const void *q, const void *k, const float *lse, const int32_t *columns,
                             const int32_t *counts, const uint8_t *mask, const int64_t q_strides[3],
                             const int64_t k_strides[3], const int64_t mask_strides[4], int64_t batch, int64_t heads,
                             int64_t kv_heads, int64_t queries, int64_t keys, int64_t dim, int dtype, int causal,
                             int64_t query_offset, float scale, int64_t row_start, int64_t row_stop, int threads,
                             int level);

/* -- libhardsample_cuda.so: the same on a device; all pointers but fill, geometry and strides are device pointers - */

HS_API int hs_cuda_abi(void);
HS_API const char *hs_cuda_error(int code);

HS_API int hs_cuda_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                               const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind, int layout,
                               void *stream);

HS_API int hs_cuda_attention_mass(float *mass, const void *q, const void *k, const float *lse, const int32_t *columns,
                                  const int32_t *counts, const uint8_t *mask, const int64_t q_strides[3],
                                  const int64_t k_strides[3], const int64_t mask_strides[4], int64_t batch,
                                  int64_t heads, int64_t kv_heads, int64_t queries, int64_t keys, int64_t dim,
                                  int dtype, int causal, int64_t query_offset, float scale, int64_t row_start,
                                  int64_t row_stop, void *stream);

/* The two kernels' own code run on the host, one block and one thread after the other, on host pointers: what shows that
 * they are right where there is no GPU. */
HS_API int hs_cuda_emulate_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                                       const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind,
                                       int layout);

HS_API int hs_cuda_emulate_attention_mass(float *mass, const void *q, const void *k, const float *lse,
                                          const int32_t *columns, const int32_t *counts, const uint8_t *mask,
                                          const int64_t q_strides[3], const int64_t k_strides[3],
                                          const int64_t mask_strides[4], int64_t batch, int64_t heads,
                                          int64_t kv_heads, int64_t queries, int64_t keys, int64_t dim, int dtype,
                                          int causal, int64_t query_offset, float scale, int64_t row_start,
                                          int64_t row_stop);

#endif
