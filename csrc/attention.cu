/* Attention mass: sums of exp(score - lse) over two sets of keys (see hardsample.h).
 *
 * A block has 128 rows of scores: the queries of all heads that share a kv head, query by query, so that they share its
 * keys. It walks through the two sets of columns, 64 at a time: their keys are gathered into shared memory, each warp
 * multiplies 32 rows with all 64 keys and sums what its lanes hold. Scores stay in registers:
 *
 *   16-bit types  mma.m16n8k16 with fp32 sums; a lane holds pairs of neighbouring columns of rows 8 apart
 *   fp32          fused multiply-adds (tensor cores would round to tf32), with the same scores in the same lanes
 *
 * Head dims above CHUNK go through shared memory a chunk at a time. Rows are padded by 16 bytes, which keeps the lanes
 * of a warp out of each other's banks.
 */
#include "cuda_common.h"

namespace {

constexpr int THREADS = 128, WARPS = THREADS / WARP;
constexpr int ROWS = 128, COLUMNS = 64, WARP_ROWS = ROWS / WARPS;
constexpr int TILES_M = WARP_ROWS / 16, TILES_N = COLUMNS / 8;
constexpr int CHUNK_BYTES = 256, PIECE = 16, PIECES = CHUNK_BYTES / PIECE;
static_assert(THREADS == ROWS, "a thread looks after a row");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BLOCKS = 2;  // of 57 KB in the 164 KB of an A100
#else
constexpr int BLOCKS = 4;  // in the 228 KB of later ones
#endif
constexpr int NONE = INT_MAX;  // as a column: beyond the set, and beyond what any row sees
constexpr int MAX_KEYS = INT_MAX - 2 * COLUMNS;

struct Params {
    float *mass;
    const void *q, *k;
    const float *lse;
    const int32_t *columns, *counts;
    const uint8_t *mask;
    int64_t q_strides[3], k_strides[3], mask_strides[4];
    int64_t heads, kv_heads, queries, keys, query_offset, row_start, rows;
    int64_t score_rows, row_blocks;  // rows of scores of one kv head, and their blocks
    int dim, group;
    bool causal, vector;  // vector: pieces of q and k may be read whole
    float scale;
};

[[maybe_unused]] float decode_half(uint16_t bits) {
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * std::ldexp(float(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
}

[[maybe_unused]] float decode_bfloat(uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof(value));
    return value;
}

struct Half {
    uint16_t bits;
};

struct BFloat {
    uint16_t bits;
};

/* exp(scale * score - lse); the difference is taken first, where the large numbers cancel exactly enough. */
HD float probability(float score, float scale, float lse) {
    const float x = fmaf(score, scale, -lse) * 1.4426950408889634f;
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

/* The scores of a lane: [m][n][i] is row 16m + 8(i / 2) + lane / 4 of the warp and column 8n + 2(lane % 4) + i % 2. */
struct Scores {
    float value[TILES_M][TILES_N][4];
};

/* Of a warp's product of 16 x 16 and 16 x 8 values: a lane's registers hold pairs (row of a or column of b, place along
 * the dim): a[i] = (lane / 4 + 8(i % 2), 2(lane % 4) + 8(i / 2)), b[i] = (lane / 4, 2(lane % 4) + 8i). */
struct Operands {
    uint32_t a[TILES_M][4], b[2];
};

using LaneScores = PerThread<Scores, THREADS>;
using LaneOperands = PerThread<Operands, THREADS>;

/* scores[m][n] += a[m] b: the one function of which the host has a body of its own. */
template <class T>
HD void multiply_add(LaneScores &scores, LaneOperands &operands, int warp, int m, int n) {
#ifdef __CUDA_ARCH__
    float *c = scores[0].value[m][n];
    const uint32_t *a = operands[0].a[m], *b = operands[0].b;
    if constexpr (std::is_same_v<T, Half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    float a[16][16], b[8][16];
    const auto decode = std::is_same_v<T, Half> ? decode_half : decode_bfloat;
    for (int lane = 0; lane < WARP; ++lane) {
        const Operands &held = operands[warp * WARP + lane];
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 4; ++i) {
                a[lane / 4 + 8 * (i % 2)][2 * (lane % 4) + 8 * (i / 2) + half] = decode(held.a[m][i] >> 16 * half);
            }
            for (int i = 0; i < 2; ++i) b[lane / 4][2 * (lane % 4) + 8 * i + half] = decode(held.b[i] >> 16 * half);
        }
    }
    for (int lane = 0; lane < WARP; ++lane) {
        for (int i = 0; i < 4; ++i) {
            float &sum = scores[warp * WARP + lane].value[m][n][i];
            for (int d = 0; d < 16; ++d) sum += a[lane / 4 + 8 * (i / 2)][d] * b[2 * (lane % 4) + i % 2][d];
        }
    }
#endif
}

template <class T>
struct Mass {
    using Params = ::Params;
    static constexpr int THREADS = ::THREADS, MIN_BLOCKS = sizeof(T) == 2 ? BLOCKS : 2;
    static constexpr int PER_PIECE = PIECE / sizeof(T), CHUNK = CHUNK_BYTES / sizeof(T);
    static constexpr int STRIDE = CHUNK + PER_PIECE;
    static constexpr int STEP = sizeof(T) == 2 ? 16 : 4;  // how much of the dim is multiplied at once

    struct Shared {
        alignas(16) T q[ROWS][STRIDE], k[COLUMNS][STRIDE];
        alignas(8) int columns[2][COLUMNS];  // of this tile and of the next
        int64_t q_offset[ROWS];              // -1 for rows that are not there
        float lse[ROWS], sums[ROWS][4];
        int limit[ROWS];  // the last column that a row sees, unless the mask hides it
        // What follows is only there if there is a mask.
        int64_t mask_offset[ROWS];
        alignas(4) uint8_t seen[ROWS][COLUMNS + 4];
    };

    /* Rows `first` ... `first + rows - 1` of the scores of one kv head. */
    struct Block {
        int64_t batch, kv_head, first;
        int rows;
    };

    struct Place {
        int64_t head, query;
    };

    static HD Place place(const Params &p, const Block &block, int row) {
        const int64_t score_row = block.first + row;
        return {block.kv_head * p.group + score_row % p.group, p.row_start + score_row / p.group};
    }

    static HD int last_column(const Params &p, int64_t query) {
        if (!p.causal) return NONE - 1;
        return int(larger(smaller(query + p.query_offset, int64_t(NONE - 1)), int64_t(-1)));
    }

    static HD void find_row(const Params &p, const Block &block, int row, Shared &shared) {
        shared.q_offset[row] = -1;
        shared.limit[row] = -1;
        shared.lse[row] = 0;
        if (row >= block.rows) return;
        const Place at = place(p, block, row);
        shared.q_offset[row] = block.batch * p.q_strides[0] + at.head * p.q_strides[1] + at.query * p.q_strides[2];
        shared.lse[row] = p.lse[(block.batch * p.heads + at.head) * p.queries + at.query];
        shared.limit[row] = last_column(p, at.query);
        if (!p.mask) return;
        const int64_t *strides = p.mask_strides;
        shared.mask_offset[row] = block.batch * strides[0] + at.head * strides[1] + at.query * strides[2];
    }

    static HD int find_column(const Params &p, const Block &block, int index, int stop) {
        return index < stop ? p.columns[block.batch * p.keys + index] : NONE;
    }

    /* 16 bytes of a row of q or k, from place `d` of the dim on; zeros beyond its end, or if there is no row. */
    template <bool VECTOR>
    static HD uint4 read_piece(const Params &p, const void *from, int64_t offset, int d) {
        const T *piece = static_cast<const T *>(from) + offset + d;
        union {
            uint4 whole;
            T part[PER_PIECE];
        } values = {uint4{0, 0, 0, 0}};
        if (offset < 0 || d >= p.dim) return values.whole;
        if constexpr (VECTOR) {
            values.whole = load(reinterpret_cast<const uint4 *>(piece));
        } else {
            for (int i = 0; i < PER_PIECE; ++i) {
                if (d + i < p.dim) values.part[i] = piece[i];
            }
        }
        return values.whole;
    }

    /* A thread's part in copying rows of q or k: one piece of every eighth, many of them under way at once. */
    template <bool VECTOR, int COUNT, class OffsetOf>
    static HD void copy_rows(const Params &p, T (*to)[STRIDE], const void *from, int begin, int size, int thread,
                             OffsetOf offset_of) {
        constexpr int STEP_ROWS = THREADS / PIECES, AT_ONCE = 4;
        const int place = thread % PIECES * PER_PIECE;
        if (place >= (size + STEP - 1) / STEP * STEP) return;
        for (int first = thread / PIECES; first < COUNT; first += STEP_ROWS * AT_ONCE) {
            uint4 pieces[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                pieces[i] = read_piece<VECTOR>(p, from, offset_of(first + i * STEP_ROWS), begin + place);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                *reinterpret_cast<uint4 *>(&to[first + i * STEP_ROWS][place]) = pieces[i];
            }
        }
    }

    template <bool VECTOR>
    static HD void copy_chunk(const Params &p, const Block &block, const int *columns, int begin, int size, bool with_q,
                              int thread, Shared &shared) {
        const int64_t base = block.batch * p.k_strides[0] + block.kv_head * p.k_strides[1];
        copy_rows<VECTOR, COLUMNS>(p, shared.k, p.k, begin, size, thread, [&](int row) {
            return columns[row] == NONE ? -1 : base + columns[row] * p.k_strides[2];
        });
        if (!with_q) return;
        copy_rows<VECTOR, ROWS>(p, shared.q, p.q, begin, size, thread, [&](int row) { return shared.q_offset[row]; });
    }

    /* A thread's part in copying what the mask says about a tile: four columns of every eighth row. */
    static HD void copy_mask(const Params &p, const int *columns, int thread, Shared &shared) {
        const int first = thread % (COLUMNS / 4) * 4;
        int64_t offsets[4];
        for (int i = 0; i < 4; ++i) {
            offsets[i] = columns[first + i] == NONE ? -1 : columns[first + i] * p.mask_strides[3];
        }
#pragma unroll 2
        for (int row = thread / (COLUMNS / 4); row < ROWS; row += THREADS / (COLUMNS / 4)) {
            uint32_t bytes = 0;
            if (shared.q_offset[row] >= 0) {
                const uint8_t *mask = p.mask + shared.mask_offset[row];
                for (int i = 0; i < 4; ++i) {
                    if (offsets[i] >= 0 && load(mask + offsets[i]) != 0) bytes |= 1u << 8 * i;
                }
            }
            *reinterpret_cast<uint32_t *>(&shared.seen[row][first]) = bytes;
        }
    }

    static HD void multiply(LaneScores &scores, int warp, int size, const Shared &shared) {
        if constexpr (sizeof(T) == 2) {
            LaneOperands operands;
            for (int d = 0; d < size; d += STEP) {
                each_lane(warp, [&](int thread) {
                    const int lane = thread % WARP;
                    for (int m = 0; m < TILES_M; ++m) {
                        for (int i = 0; i < 4; ++i) {
                            const T *from = &shared.q[warp * WARP_ROWS + m * 16 + lane / 4 + 8 * (i % 2)]
                                                     [d + 2 * (lane % 4) + 8 * (i / 2)];
                            operands[thread].a[m][i] = *reinterpret_cast<const uint32_t *>(from);
                        }
                    }
                });
                for (int n = 0; n < TILES_N; ++n) {
                    each_lane(warp, [&](int thread) {
                        const int lane = thread % WARP;
                        for (int i = 0; i < 2; ++i) {
                            const T *from = &shared.k[n * 8 + lane / 4][d + 2 * (lane % 4) + 8 * i];
                            operands[thread].b[i] = *reinterpret_cast<const uint32_t *>(from);
                        }
                    });
                    for (int m = 0; m < TILES_M; ++m) multiply_add<T>(scores, operands, warp, m, n);
                }
            }
        } else {
            each_lane(warp, [&](int thread) {
                const int lane = thread % WARP;
                float(&value)[TILES_M][TILES_N][4] = scores[thread].value;
                for (int d = 0; d < size; d += STEP) {
                    float4 q[TILES_M][2];
                    for (int i = 0; i < TILES_M * 2; ++i) {
                        const T *from = &shared.q[warp * WARP_ROWS + 8 * i + lane / 4][d];
                        q[i / 2][i % 2] = *reinterpret_cast<const float4 *>(from);
                    }
                    for (int column = 0; column < TILES_N * 2; ++column) {
                        const T *from = &shared.k[column / 2 * 8 + 2 * (lane % 4) + column % 2][d];
                        const float4 k = *reinterpret_cast<const float4 *>(from);
                        for (int i = 0; i < TILES_M * 2; ++i) {  // four products first: fewer roundings of the sum
                            const float4 a = q[i / 2][i % 2];
                            float &sum = value[i / 2][column / 2][i % 2 * 2 + column % 2];
                            sum += fmaf(a.w, k.w, fmaf(a.z, k.z, fmaf(a.y, k.y, a.x * k.x)));
                        }
                    }
                }
            });
        }
    }

    /* Adds the probabilities that a lane holds to its sums; what a row does not see adds nothing, whatever its lse. */
    static HD void sum_up(const Params &p, const Scores &scores, int thread, const int *columns, Shared &shared) {
        constexpr int HELD = TILES_M * 2;  // rows of a lane
        const int lane = thread % WARP, first = thread / WARP * WARP_ROWS + lane / 4;
        float sums[HELD] = {}, lse[HELD];
        int limit[HELD];
        for (int i = 0; i < HELD; ++i) {
            lse[i] = shared.lse[first + 8 * i];
            limit[i] = shared.limit[first + 8 * i];
        }
        for (int n = 0; n < TILES_N; ++n) {
            const int at = n * 8 + 2 * (lane % 4);
            const int2 column = *reinterpret_cast<const int2 *>(&columns[at]);
            for (int i = 0; i < HELD; ++i) {
                uint16_t seen = 0x101;
                if (p.mask) seen = *reinterpret_cast<const uint16_t *>(&shared.seen[first + 8 * i][at]);
                const float *score = &scores.value[i / 2][n][i % 2 * 2];
                const float left = probability(score[0], p.scale, lse[i]);
                const float right = probability(score[1], p.scale, lse[i]);
                sums[i] += column.x <= limit[i] && seen & 0xFF ? left : 0;
                sums[i] += column.y <= limit[i] && seen >> 8 ? right : 0;
            }
        }
        for (int i = 0; i < HELD; ++i) shared.sums[first + 8 * i][lane % 4] += sums[i];
    }

    static HD void write_mass(const Params &p, const Block &block, int row, int set, const Shared &shared) {
        if (row >= block.rows) return;
        const Place at = place(p, block, row);
        const float *sums = shared.sums[row];
        p.mass[((block.batch * p.heads + at.head) * p.rows + at.query - p.row_start) * 2 + set] =
            sums[0] + sums[1] + (sums[2] + sums[3]);
    }

    static HD void run(const Params &p, int64_t index, void *memory) {
        Shared &shared = *static_cast<Shared *>(memory);
        // The last rows may see the most columns: they go first.
        const int64_t first = (p.row_blocks - 1 - index % p.row_blocks) * ROWS, kv_head = index / p.row_blocks;
        const Block block = {kv_head / p.kv_heads, kv_head % p.kv_heads, first,
                             int(smaller(p.score_rows - first, int64_t(ROWS)))};
        const int limit = last_column(p, place(p, block, block.rows - 1).query);
        const int chunks = (p.dim + CHUNK - 1) / CHUNK;
        const int32_t *counts = p.counts + block.batch * 2;
        LaneScores scores;
        bool with_q = true;

        each_thread<THREADS>([&](int thread) { find_row(p, block, thread, shared); });
        for (int set = 0; set < 2; ++set) {
            const int start = set == 0 ? 0 : counts[0], stop = start + counts[set];
            each_thread<THREADS>([&](int thread) {
                for (int i = 0; i < 4; ++i) shared.sums[thread][i] = 0;
                if (thread < COLUMNS) shared.columns[0][thread] = find_column(p, block, start + thread, stop);
            });
            int *here = shared.columns[0], *next = shared.columns[1];
            for (int tile = start; tile < stop && here[0] <= limit; tile += COLUMNS) {
                for (int chunk = 0; chunk < chunks; ++chunk) {
                    const int begin = chunk * CHUNK, size = smaller(p.dim - begin, CHUNK);
                    each_thread<THREADS>([&](int thread) {
                        if (p.vector) {
                            copy_chunk<true>(p, block, here, begin, size, with_q, thread, shared);
                        } else {
                            copy_chunk<false>(p, block, here, begin, size, with_q, thread, shared);
                        }
                        if (chunk > 0) return;
                        if (thread < COLUMNS) next[thread] = find_column(p, block, tile + COLUMNS + thread, stop);
                        if (p.mask) copy_mask(p, here, thread, shared);
                    });
                    with_q = chunks > 1;
                    each_warp<THREADS>([&](int warp) {
                        if (warp * WARP_ROWS >= block.rows) return;
                        if (chunk == 0) each_lane(warp, [&](int thread) { scores[thread] = Scores{}; });
                        multiply(scores, warp, size, shared);
                        if (chunk < chunks - 1) return;
                        each_lane(warp, [&](int thread) { sum_up(p, scores[thread], thread, here, shared); });
                    });
                }
                int *const done = here;
                here = next;
                next = done;
            }
            each_thread<THREADS>([&](int thread) { write_mass(p, block, thread, set, shared); });
        }
    }
};

template <class T>
int run_mass(const Params &p, int64_t batch, Target target) {
    using Shared = typename Mass<T>::Shared;
    const int64_t bytes = p.mask ? sizeof(Shared) : offsetof(Shared, mask_offset);
    return run_blocks<Mass<T>>(p, batch * p.kv_heads * p.row_blocks, bytes, target);
}

bool whole_pieces(const void *pointer, const int64_t strides[3], int64_t dim, int size) {
    uint64_t addresses = reinterpret_cast<uint64_t>(pointer) | uint64_t(dim * size);
    for (int i = 0; i < 3; ++i) addresses |= uint64_t(strides[i] * size);
    return addresses % PIECE == 0;
}

int attention_mass(float *mass, const void *q, const void *k, const float *lse, const int32_t *columns,
                   const int32_t *counts, const uint8_t *mask, const int64_t q_strides[3], const int64_t k_strides[3],
                   const int64_t mask_strides[4], int64_t batch, int64_t heads, int64_t kv_heads, int64_t queries,
                   int64_t keys, int64_t dim, int dtype, int causal, int64_t query_offset, float scale,
                   int64_t row_start, int64_t row_stop, Target target) {
    if (batch < 0 || heads < 0 || kv_heads < 1 || heads % kv_heads != 0 || keys < 0 || keys > MAX_KEYS || dim < 1 ||
        dim > INT_MAX - CHUNK_BYTES || dtype < HS_F32 || dtype > HS_BF16 || row_start < 0 || row_stop < row_start ||
        row_stop > queries || !q_strides || !k_strides || (mask && !mask_strides)) {
        return cudaErrorInvalidValue;
    }
    const int64_t rows = row_stop - row_start;
    if (batch == 0 || heads == 0 || rows == 0) return cudaSuccess;
    if (!mass || !q || !lse || !counts || (keys > 0 && (!k || !columns))) return cudaErrorInvalidValue;
    Params p = {mass, q, k, lse, columns, counts, mask};
    for (int i = 0; i < 3; ++i) {
        p.q_strides[i] = q_strides[i];
        p.k_strides[i] = k_strides[i];
    }
    for (int i = 0; mask && i < 4; ++i) p.mask_strides[i] = mask_strides[i];
    p.heads = heads;
    p.kv_heads = kv_heads;
    p.queries = queries;
    p.keys = keys;
    p.query_offset = query_offset;
    p.row_start = row_start;
    p.rows = rows;
    p.group = int(heads / kv_heads);
    p.score_rows = rows * p.group;
    p.row_blocks = divide_up(p.score_rows, ROWS);
    p.dim = int(dim);
    p.causal = causal != 0;
    const int size = dtype == HS_F32 ? 4 : 2;
    p.vector = whole_pieces(q, q_strides, dim, size) && whole_pieces(k, k_strides, dim, size);
    p.scale = scale;
    if (dtype == HS_F32) return run_mass<float>(p, batch, target);
    return dtype == HS_F16 ? run_mass<Half>(p, batch, target) : run_mass<BFloat>(p, batch, target);
}

}  // namespace

int hs_cuda_attention_mass(float *mass, const void *q, const void *k, const float *lse, const int32_t *columns,
                           const int32_t *counts, const uint8_t *mask, const int64_t q_strides[3],
                           const int64_t k_strides[3], const int64_t mask_strides[4], int64_t batch, int64_t heads,
                           int64_t kv_heads, int64_t queries, int64_t keys, int64_t dim, int dtype, int causal,
                           int64_t query_offset, float scale, int64_t row_start, int64_t row_stop, void *stream) {
    return attention_mass(mass, q, k, lse, columns, counts, mask, q_strides, k_strides, mask_strides, batch, heads,
                          kv_heads, queries, keys, dim, dtype, causal, query_offset, scale, row_start, row_stop,
                          {false, static_cast<cudaStream_t>(stream)});
}

int hs_cuda_emulate_attention_mass(float *mass, const void *q, const void *k, const float *lse, const int32_t *columns,
                                   const int32_t *counts, const uint8_t *mask, const int64_t q_strides[3],
                                   const int64_t k_strides[3], const int64_t mask_strides[4], int64_t batch,
                                   int64_t heads, int64_t kv_heads, int64_t queries, int64_t keys, int64_t dim,
                                   int dtype, int causal, int64_t query_offset, float scale, int64_t row_start,
                                   int64_t row_stop) {
    return attention_mass(mass, q, k, lse, columns, counts, mask, q_strides, k_strides, mask_strides, batch, heads,
                          kv_heads, queries, keys, dim, dtype, causal, query_offset, scale, row_start, row_stop,
                          {true, nullptr});
}
