/* Attention mass on the CPU: sums of exp(scale * q . k - lse) over two sets of keys, without the matrix of all pairs.
 *
 * The query heads of a group share their keys, so a task takes the rows of a block for all heads of a group: its queries
 * are packed in panels of PANEL rows, and each tile of 2 * LANES keys is packed transposed, small enough for the L1
 * cache, and met by all panels. Tiles are compiled from one template for 4, 8 and 16 lanes.
 */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu.h"

#define HS_INLINE inline __attribute__((always_inline))
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to inlined functions only, so no ABI is concerned */

namespace {

constexpr int64_t BLOCK_QUERIES = 504; /* queries of a task, all heads of the group together; a multiple of the panels */

struct Call {
    float *mass;
    const void *q, *k;
    const float *lse;
    const int32_t *columns, *counts;
    const uint8_t *mask;
    const int64_t *q_strides, *k_strides, *mask_strides;
    int64_t batch, heads, kv_heads, queries, keys, dim, query_offset, row_start, row_stop;
    int dtype, causal;
    float scale;

    int64_t group() const { return heads / kv_heads; }
    int64_t block_rows() const { return std::max<int64_t>(1, BLOCK_QUERIES / group()); }
    int64_t blocks() const { return ceil_div(row_stop - row_start, block_rows()); }
};

float float_of_half(uint16_t half) {
    uint32_t bits = uint32_t(half & 0x7FFF) << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f; /* moves the exponent's bias, and makes subnormal halves normal */
    std::memcpy(&bits, &value, 4);
    if ((half & 0x7C00) == 0x7C00) bits |= 0x7F800000;
    bits |= uint32_t(half & 0x8000) << 16;
    std::memcpy(&value, &bits, 4);
    return value;
}

float float_of_bfloat(uint16_t bfloat) {
    const uint32_t bits = uint32_t(bfloat) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

/* Writes `dim` values of a vector to every step-th place. */
void spread(float *to, int64_t step, const void *from, int64_t offset, int64_t dim, int dtype) {
    if (dtype == HS_F32) {
        const float *values = static_cast<const float *>(from) + offset;
        for (int64_t d = 0; d < dim; d++) to[d * step] = values[d];
        return;
    }
    const uint16_t *values = static_cast<const uint16_t *>(from) + offset;
    if (dtype == HS_BF16)
        for (int64_t d = 0; d < dim; d++) to[d * step] = float_of_bfloat(values[d]);
    else
        for (int64_t d = 0; d < dim; d++) to[d * step] = float_of_half(values[d]);
}

template <int LANES>
struct Vector {
    typedef float F __attribute__((vector_size(LANES * 4)));
    typedef int32_t I __attribute__((vector_size(LANES * 4)));
    typedef F LoadF __attribute__((may_alias, aligned(4))); /* what is read from memory need not be aligned */
    typedef I LoadI __attribute__((may_alias, aligned(4)));
};

/* exp(x) for x <= 88, relative error about 1e-7; 0 below -87, and for NaN: such rows are hidden ones. */
template <int LANES>
HS_INLINE typename Vector<LANES>::F exponential(typename Vector<LANES>::F x) {
    using F = typename Vector<LANES>::F;
    using I = typename Vector<LANES>::I;
    constexpr float SHIFT = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const I large = x > -87.0f;
    x = x < 88.0f ? x : F{} + 88.0f;
    x = x > -87.0f ? x : F{} - 87.0f;
    const F shifted = x * 1.44269504f + SHIFT, n = shifted - SHIFT;
    const F r = x - n * 0.693359375f + n * 2.12194440e-4f;
    F p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    const I power = ((I)shifted << 23) + 0x3F800000; /* 2^n: n is in the low bits of shifted */
    return (F)((I)(p * (F)power) & large);
}

/* One panel of queries against one tile of keys: adds each row's sum of weights to sums.
 * q (dim, PANEL), keys (dim, 2 * LANES). visible (PANEL or fewer rows of 2 * LANES lanes of 0 or -1) may be null. */
template <int LANES, int PANEL>
HS_INLINE void panel(const float *q, const float *keys, int64_t dim, float scale, const float *lse,
                     const int32_t *const *visible, int rows, double *sums) {
    using F = typename Vector<LANES>::F;
    using I = typename Vector<LANES>::I;
    using LoadI = typename Vector<LANES>::LoadI;
    F score[PANEL][2] = {};
    for (int64_t d = 0; d < dim; d++, q += PANEL, keys += 2 * LANES) {
        const F left = *(const typename Vector<LANES>::LoadF *)keys;
        const F right = *(const typename Vector<LANES>::LoadF *)(keys + LANES);
#pragma GCC unroll 12
        for (int row = 0; row < PANEL; row++) {
            score[row][0] += left * q[row];
            score[row][1] += right * q[row];
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < PANEL; row++) {
        if (row >= rows) break;
        F both[2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            both[half] = exponential<LANES>(score[row][half] * scale - lse[row]);
            if (visible) both[half] = (F)((I)both[half] & *(const LoadI *)(visible[row] + half * LANES));
        }
        const F sum = both[0] + both[1];
        float total = 0;
        for (int lane = 0; lane < LANES; lane++) total += sum[lane];
        sums[row] += total;
    }
}

template <int LANES, int PANEL>
struct Task {
    static constexpr int TILE = 2 * LANES;

    /* Floats of working memory: queries, keys, lse; then lanes of visibility, then sums. */
    static int64_t padded(const Call &c) { return ceil_div(c.block_rows() * c.group(), PANEL) * PANEL; }
    static int64_t doubles(const Call &c) {
        const int64_t floats = padded(c) * c.dim + TILE * c.dim + padded(c) + padded(c) * TILE;
        return ceil_div(ceil_div(floats, 2) + padded(c) * 2, 8) * 8 + 8;
    }

    static HS_INLINE void run(const Call &c, int64_t index, double *memory) {
        const int64_t block = index % c.blocks(), kv_head = index / c.blocks() % c.kv_heads;
        const int64_t b = index / c.blocks() / c.kv_heads, group = c.group();
        const int64_t first = c.row_start + block * c.block_rows();
        const int64_t rows = std::min(c.block_rows(), c.row_stop - first), queries = rows * group;
        double *sums = memory;
        float *keys = reinterpret_cast<float *>(sums + ceil_div(padded(c) * 2, 8) * 8);
        float *packed = keys + TILE * c.dim, *lse = packed + padded(c) * c.dim;
        int32_t *lanes = reinterpret_cast<int32_t *>(lse + padded(c));

        std::fill_n(sums, padded(c) * 2, 0.0);
        std::fill_n(packed, padded(c) * c.dim, 0.0f);
        for (int64_t m = 0; m < queries; m++) {
            const int64_t head = kv_head * group + m / rows, row = first + m % rows;
            const int64_t offset = b * c.q_strides[0] + head * c.q_strides[1] + row * c.q_strides[2];
            spread(packed + m / PANEL * PANEL * c.dim + m % PANEL, PANEL, c.q, offset, c.dim, c.dtype);
            lse[m] = c.lse[(b * c.heads + head) * c.queries + row];
        }
        const int32_t *columns = c.columns + b * c.keys;
        for (int set = 0; set < 2; columns += c.counts[2 * b + set], set++)
            add_set(c, b, kv_head, columns, c.counts[2 * b + set], first, rows, packed, keys, lse, lanes,
                    sums + set * padded(c));
        for (int64_t m = 0; m < queries; m++) {
            const int64_t head = kv_head * group + m / rows, row = first + m % rows - c.row_start;
            float *mass = c.mass + ((b * c.heads + head) * (c.row_stop - c.row_start) + row) * 2;
            mass[0] = float(sums[m]), mass[1] = float(sums[padded(c) + m]);
        }
    }

    static HS_INLINE void add_set(const Call &c, int64_t b, int64_t kv_head, const int32_t *columns, int64_t count,
                                  int64_t first, int64_t rows, const float *packed, float *keys, const float *lse,
                                  int32_t *lanes, double *sums) {
        const int64_t queries = rows * c.group();
        for (int64_t start = 0; start < count; start += TILE) {
            const int64_t size = std::min<int64_t>(TILE, count - start);
            const int32_t *tile = columns + start;
            if (c.causal && tile[0] > first + rows - 1 + c.query_offset) break; /* ascending: no later key is seen */
            if (size < TILE) std::fill_n(keys, TILE * c.dim, 0.0f);
            for (int64_t j = 0; j < size; j++)
                spread(keys + j, TILE, c.k, b * c.k_strides[0] + kv_head * c.k_strides[1] + tile[j] * c.k_strides[2],
                       c.dim, c.dtype);
            const bool hidden =
                c.mask || size < TILE || (c.causal && tile[size - 1] > first + c.query_offset);
            const int64_t own_heads = c.mask && c.mask_strides[1] ? c.group() : 1;
            if (hidden) see(c, b, kv_head, tile, size, first, rows, own_heads, lanes);
            for (int64_t m = 0; m < queries; m += PANEL) {
                const int held = int(std::min<int64_t>(PANEL, queries - m));
                const int32_t *visible[PANEL];
                for (int row = 0; row < held && hidden; row++)
                    visible[row] = lanes + (own_heads > 1 ? m + row : (m + row) % rows) * TILE;
                panel<LANES, PANEL>(packed + m * c.dim, keys, c.dim, c.scale, lse + m, hidden ? visible : nullptr, held,
                                    sums + m);
            }
        }
    }

    /* Which keys of a tile each row sees, as lanes of 0 or -1: once for all heads if the mask has one for all. */
    static HS_INLINE void see(const Call &c, int64_t b, int64_t kv_head, const int32_t *tile, int64_t size,
                              int64_t first, int64_t rows, int64_t own_heads, int32_t *lanes) {
        for (int64_t m = 0; m < rows * own_heads; m++, lanes += TILE) {
            const int64_t row = first + m % rows, last = c.causal ? row + c.query_offset : c.keys;
            for (int64_t j = 0; j < TILE; j++) lanes[j] = j < size && tile[j] <= last ? -1 : 0;
            if (!c.mask) continue;
            const int64_t head = own_heads > 1 ? kv_head * c.group() + m / rows : 0;
            const uint8_t *mask =
                c.mask + b * c.mask_strides[0] + head * c.mask_strides[1] + row * c.mask_strides[2];
            for (int64_t j = 0; j < size; j++) lanes[j] &= mask[tile[j] * c.mask_strides[3]] ? -1 : 0;
        }
    }
};

void task_baseline(const Call &c, int64_t index, double *memory) { Task<4, 6>::run(c, index, memory); }
HS_TARGET_AVX2 void task_avx2(const Call &c, int64_t index, double *memory) { Task<8, 6>::run(c, index, memory); }
HS_TARGET_AVX512 void task_avx512(const Call &c, int64_t index, double *memory) { Task<16, 12>::run(c, index, memory); }

bool valid(const Call &c) {
    if (!c.mass || !c.q || !c.k || !c.lse || !c.columns || !c.counts) return false;
    if (c.dtype != HS_F32 && c.dtype != HS_F16 && c.dtype != HS_BF16) return false;
    if (c.batch < 0 || c.heads < 1 || c.kv_heads < 1 || c.heads % c.kv_heads || c.keys < 0 || c.dim < 1) return false;
    if (c.row_start < 0 || c.row_start > c.row_stop || c.row_stop > c.queries) return false;
    if (c.keys > std::numeric_limits<int32_t>::max()) return false;
    for (int64_t b = 0; b < c.batch; b++) {
        const int64_t one = c.counts[2 * b], other = c.counts[2 * b + 1];
        if (one < 0 || other < 0 || one + other > c.keys) return false;
        for (int64_t j = 0; j < one + other; j++)
            if (c.columns[b * c.keys + j] < 0 || c.columns[b * c.keys + j] >= c.keys) return false;
    }
    return true;
}

} // namespace

HS_API int hs_attention_mass(float *mass, const void *q, const void *k, const float *lse, const int32_t *columns,
                             const int32_t *counts, const uint8_t *mask, const int64_t q_strides[3],
                             const int64_t k_strides[3], const int64_t mask_strides[4], int64_t batch, int64_t heads,
                             int64_t kv_heads, int64_t queries, int64_t keys, int64_t dim, int dtype, int causal,
                             int64_t query_offset, float scale, int64_t row_start, int64_t row_stop, int threads,
                             int level) {
    const Call call = {mass,  q,    k,       lse,     columns, counts,       mask,      q_strides, k_strides, mask_strides,
                       batch, heads, kv_heads, queries, keys,   dim,          query_offset, row_start, row_stop,
                       dtype, causal, scale};
    if (batch == 0 || row_start == row_stop) return HS_OK;
    if (!runs_here(threads, level) || !valid(call)) return HS_BAD_ARGUMENT;
    constexpr decltype(&task_baseline) bodies[] = {task_baseline, task_avx2, task_avx512};
    const int64_t sizes[] = {Task<4, 6>::doubles(call), Task<8, 6>::doubles(call), Task<16, 12>::doubles(call)};
    const int64_t size = sizes[level];
    const Memory<double> memory = allocate<double>(size * threads);
    if (!memory) return HS_NO_MEMORY;
    each_task(batch * kv_heads * call.blocks(), threads, [&](int64_t index, int thread) {
        bodies[level](call, index, memory.get() + thread * size);
    });
    return HS_OK;
}
