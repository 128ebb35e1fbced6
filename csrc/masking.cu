/* Pixel masking: out[v] = images[source of v] with masked pixels replaced by fill (see hardsample.h).
 *
 * A block masks one tile of the image, a few thousand consecutive pixels or some whole patches, in up to MAX_DEPTH
 * variants:
 *
 *   draw    a thread makes the mask of a row of at most 32 neighbouring pixels: one word of bits
 *   spread  what lies together in memory is a run of positions, the same for each channel; a thread makes the mask of
 *           32 positions from the rows' words (in chw a position is a pixel, and nothing is to do)
 *   write   a thread owns one unit, 16 bytes where addresses allow, of some channels: it reads the image once and
 *           writes it once a variant
 *
 * so that the random bits of a pixel serve all of its channels and frames, and stores are wide and coalesced.
 */
#include "cuda_common.h"

namespace {

constexpr int THREADS = 128;
constexpr int ROW = 32;             // pixels of a row, bits of a word
constexpr int LANES = 8;            // draws of one Philox call
constexpr int MAX_DEPTH = 4;        // variants of a block: the image is read once for all of them
constexpr int MAX_RUN_WORDS = 512;  // a variant's mask words in a block, where the layout leaves a choice
constexpr int64_t ENOUGH_BLOCKS = 1024;  // to fill a device: with fewer, blocks take fewer variants
constexpr int MAX_FRAMES = 4096;

struct Params {
    void *out;
    const void *images;
    const hs_variant *variants;
    int64_t num_variants;
    hs_geometry geometry;
    int kind, layout;
    uint32_t fill[HS_MAX_CHANNELS];  // hwc: the 32-bit word that begins at each channel; else each channel, repeated

    int depth;            // variants of a block
    int rows;             // of a tile
    int row_pieces;       // patches: rows that make one line of a patch, 1 unless patches are wider than a row
    int runs, run_words;  // of a tile; mask words of a run
    int units;            // of a run
    int word_step;        // hwc: channels from one 32-bit word to the next
    int planes;           // of a run: stretches of memory with the same mask
    int64_t run, stride;  // positions of a run; elements from one run to the next
    int64_t total;        // where the last run ends, in elements
    int64_t plane_bytes;  // from one plane of a run to the next
    int64_t image_bytes;
    int64_t tiles;        // of an image

    HD int words() const { return layout == HS_CHW ? rows : rows + runs * run_words; }  // of shared memory, a variant
};

struct Shared {
    uint32_t fill[HS_MAX_CHANNELS], source[MAX_DEPTH];

    HD uint32_t *words() { return reinterpret_cast<uint32_t *>(this + 1); }  // depth * Params::words() of them
};

HD uint32_t low_bits(int count) { return count >= 32 ? ~0u : (1u << count) - 1; }

/* Which of the eight draws of one Philox4x32 call are below the variant's units, as bits. */
HD uint32_t draws_below(const hs_variant &variant, uint32_t call) {
    uint32_t c[4] = {call, variant.image_index, variant.realization, variant.units};
    uint32_t k0 = variant.key0, k1 = variant.key1;
#pragma unroll
    for (int round = 0; round < HS_ROUNDS; ++round) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
        c[0] = uint32_t(p1 >> 32) ^ c[1] ^ k0;
        c[1] = uint32_t(p1);
        c[2] = uint32_t(p0 >> 32) ^ c[3] ^ k1;
        c[3] = uint32_t(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    uint32_t bits = 0;
#pragma unroll
    for (int i = 3; i >= 0; --i) {  // the sign of a difference is one shift away from a bit
        bits = bits << 1 | ((c[i] >> 16) - variant.units) >> 31;
        bits = bits << 1 | ((c[i] & 0xFFFF) - variant.units) >> 31;
    }
    return bits;
}

/* `count` pixels in raster order, from (y, x). */
struct Row {
    uint32_t y, x;
    int count;
};

HD Row find_row(const Params &p, int64_t tile, int row) {
    const hs_geometry &g = p.geometry;
    if (p.layout != HS_PATCHES) {
        const int64_t pixel = (tile * p.rows + row) * ROW;
        const int64_t left = larger(g.height * g.width - pixel, int64_t(0));
        return {uint32_t(pixel) / uint32_t(g.width), uint32_t(pixel) % uint32_t(g.width),
                int(smaller(left, int64_t(ROW)))};
    }
    const int side = int(g.patch), of_patch = side * p.row_pieces;
    const int64_t patch = tile * p.runs + row / of_patch;
    if (patch * p.stride >= p.total) return {0, 0, 0};
    // Patches lie in squares of merge x merge, which lie in lines; all of these numbers are below 2^32.
    const uint32_t merge = uint32_t(g.merge), squares = uint32_t(g.width / side) / merge;
    const uint32_t square = uint32_t(patch) / (merge * merge), inner = uint32_t(patch) % (merge * merge);
    const int line = row % of_patch / p.row_pieces, start = row % p.row_pieces * ROW;
    return {(square / squares * merge + inner / merge) * side + line,
            (square % squares * merge + inner % merge) * side + start, smaller(side - start, ROW)};
}

HD uint32_t pixel_bits(const Params &p, const hs_variant &variant, Row row) {
    if (row.count == 0) return 0;
    const uint32_t first = row.y * uint32_t(p.geometry.width) + row.x, last = first + row.count - 1;
    uint32_t bits = 0;
    for (uint32_t call = first / LANES; call <= last / LANES; ++call) {
        const uint32_t draws = draws_below(variant, call);
        const int shift = int(call * LANES - first);
        bits |= shift < 0 ? draws >> -shift : draws << shift;
    }
    return bits & low_bits(row.count);
}

/* The other kinds go by stretches of pixels in one line and, for HS_PATCH, in one cell, which has one draw. */
HD uint32_t region_bits(const Params &p, const hs_variant &variant, Row row) {
    const uint32_t width = uint32_t(p.geometry.width), cells = (width + HS_CELL - 1) / HS_CELL;
    uint32_t bits = 0;
    for (int done = 0, count; done < row.count; done += count) {
        count = int(smaller(width - row.x, uint32_t(row.count - done)));
        if (p.kind == HS_PATCH) {
            count = smaller(count, int(HS_CELL - row.x % HS_CELL));
            const uint32_t cell = row.y / HS_CELL * cells + row.x / HS_CELL;
            if (draws_below(variant, cell / LANES) >> cell % LANES & 1) bits |= low_bits(count) << done;
        } else if (row.y - variant.y < variant.height) {  // unsigned: also false above the rectangle
            const int64_t left = larger(int64_t(variant.x) - row.x, int64_t(0));
            const int64_t right = smaller(int64_t(variant.x) + variant.width - row.x, int64_t(count));
            if (left < right) bits |= (low_bits(int(right)) & ~low_bits(int(left))) << done;
        }
        row.x += count;
        if (row.x == width) row = {row.y + 1, 0, row.count};
    }
    return bits;
}

/* The bits of 12 pixels, each three times. */
HD uint64_t three_times(uint32_t pixels) {
    uint64_t bits = pixels & 0xFFF;
    bits = (bits | bits << 16) & 0xFF0000FFull;
    bits = (bits | bits << 8) & 0xF00F00Full;
    bits = (bits | bits << 4) & 0xC30C30C3ull;
    bits = (bits | bits << 2) & 0x249249249ull;
    return bits * 7;
}

/* Word `word` of hwc's one run: each pixel's bit once a channel. */
HD uint32_t spread_channels(const Params &p, const uint32_t *rows, int word) {
    const int channels = int(p.geometry.channels);
    int pixel = word * ROW / channels, phase = word * ROW % channels;
    if (channels == 3) {  // 32 positions lie in at most 12 pixels, which a row has from here on
        return uint32_t(three_times(rows[pixel / ROW] >> pixel % ROW) >> phase);
    }
    uint32_t bits = 0;
    for (int done = 0, count; done < ROW; done += count, phase = 0, ++pixel) {
        count = smaller(channels - phase, ROW - done);
        if (rows[pixel / ROW] >> pixel % ROW & 1) bits |= low_bits(count) << done;
    }
    return bits;
}

/* Word `word` of a patch's run: its lines one after the other, once a frame. */
HD uint32_t spread_lines(const Params &p, const uint32_t *rows, int word) {
    const int side = int(p.geometry.patch);
    int position = word * ROW;
    uint32_t bits = 0;
    for (int done = 0, count; done < ROW && position < p.run; done += count, position += count) {
        const int line = position / side % side, x = position % side;
        count = smaller(smaller(side - x, ROW - x % ROW), ROW - done);
        bits |= (rows[line * p.row_pieces + x / ROW] >> x % ROW & low_bits(count)) << done;
    }
    return bits;
}

HD void draw(const Params &p, const hs_variant *variants, int depth, int64_t tile, int row, uint32_t *words) {
    const Row pixels = find_row(p, tile, row);
    words += row;
#pragma unroll 1
    for (int v = 0; v < depth; ++v, words += p.words()) {
        *words = p.kind == HS_PIXEL ? pixel_bits(p, variants[v], pixels) : region_bits(p, variants[v], pixels);
    }
}

HD void spread(const Params &p, int depth, int index, uint32_t *words) {
    const int run = index / p.run_words, word = index % p.run_words;
#pragma unroll 1
    for (int v = 0; v < depth; ++v) {
        uint32_t *rows = words + v * p.words();
        rows[p.rows + index] = p.layout == HS_HWC
                                   ? spread_channels(p, rows, word)
                                   : spread_lines(p, rows + run * int(p.geometry.patch) * p.row_pieces, word);
    }
}

/* BYTES of memory, as words. */
template <int BYTES>
struct Unit {
    static constexpr int WORDS = BYTES < 4 ? 1 : BYTES / 4;
    uint32_t word[WORDS];

    static HD Unit read(const char *from) {
        if constexpr (BYTES == 16) {
            const uint4 v = load(reinterpret_cast<const uint4 *>(from));
            return {v.x, v.y, v.z, v.w};
        } else if constexpr (BYTES == 4) {
            return {load(reinterpret_cast<const uint32_t *>(from))};
        } else if constexpr (BYTES == 2) {
            return {load(reinterpret_cast<const uint16_t *>(from))};
        } else {
            return {load(reinterpret_cast<const uint8_t *>(from))};
        }
    }

    HD void write(char *to) const {
        if constexpr (BYTES == 16) {
            store_streaming(reinterpret_cast<uint4 *>(to), uint4{word[0], word[1], word[2], word[3]});
        } else if constexpr (BYTES == 4) {
            store_streaming(reinterpret_cast<uint32_t *>(to), word[0]);
        } else if constexpr (BYTES == 2) {
            store_streaming(reinterpret_cast<uint16_t *>(to), uint16_t(word[0]));
        } else {
            store_streaming(reinterpret_cast<uint8_t *>(to), uint8_t(word[0]));
        }
    }
};

/* All bits of those elements of a word, SIZE bytes each, whose bit is set. */
template <int SIZE>
HD uint32_t element_mask(uint32_t bits) {
    if constexpr (SIZE == 4) return 0 - (bits & 1);
    if constexpr (SIZE == 2) return ((bits & 1) | (bits & 2) << 15) * 0xFFFF;
    return ((bits & 15) * 0x204081 & 0x01010101) * 0xFF;
}

/* SIZE: bytes of an element. BYTES: of a unit. HWC: channels lie side by side, so that each word has its own fill;
 * else a thread takes three channels at a time, and each has one. */
template <int SIZE, int BYTES, bool HWC>
struct Masking {
    using Params = ::Params;
    static constexpr int THREADS = ::THREADS, MIN_BLOCKS = 9;
    static constexpr int WORDS = Unit<BYTES>::WORDS, ELEMENTS = BYTES / SIZE, WORD_ELEMENTS = ELEMENTS / WORDS;
    static constexpr int PLANES = HWC ? 1 : 3;

    /* Unit `index` of the tile, in all variants of the block. */
    static HD void write(const Params &p, int64_t tile, int64_t first_variant, int depth, int index, Shared &shared) {
        const int run = index / p.units, position = index % p.units * ELEMENTS, channels = int(p.geometry.channels);
        const int64_t base = (tile * p.runs + run) * p.stride + position;
        if (base >= p.total) return;
        const uint32_t *word = shared.words() + (p.layout == HS_CHW ? 0 : p.rows) + run * p.run_words + position / ROW;
#pragma unroll 1
        for (int plane = 0; plane < p.planes; plane += PLANES) {
            const int64_t offset = base * SIZE + plane * p.plane_bytes;
            uint32_t fill[HWC ? WORDS : PLANES];
            if constexpr (HWC) {
                for (int w = 0, channel = position % channels; w < WORDS; ++w) {
                    fill[w] = shared.fill[channel];
                    channel += p.word_step;
                    if (channel >= channels) channel -= channels;
                }
            } else {
                for (int i = 0; i < PLANES; ++i) fill[i] = shared.fill[smaller(plane + i, HS_MAX_CHANNELS - 1)];
            }
            char *out = static_cast<char *>(p.out) + first_variant * p.image_bytes + offset;
            Unit<BYTES> image[PLANES];
#pragma unroll 1
            for (int v = 0; v < depth; ++v, out += p.image_bytes) {
                if (v == 0 || shared.source[v] != shared.source[v - 1]) {
                    const char *from = static_cast<const char *>(p.images) + shared.source[v] * p.image_bytes + offset;
                    for (int i = 0; i < PLANES; ++i) {
                        if (plane + i < p.planes) image[i] = Unit<BYTES>::read(from + i * p.plane_bytes);
                    }
                }
                const uint32_t bits = word[v * p.words()] >> position % ROW;
                for (int i = 0; i < PLANES; ++i) {
                    Unit<BYTES> unit;
                    for (int w = 0; w < WORDS; ++w) {
                        const uint32_t mask = element_mask<SIZE>(bits >> w * WORD_ELEMENTS);
                        unit.word[w] = (image[i].word[w] & ~mask) | (fill[HWC ? w : i] & mask);
                    }
                    if (plane + i < p.planes) unit.write(out + i * p.plane_bytes);
                }
            }
        }
    }

    static HD void run(const Params &p, int64_t block, void *memory) {
        Shared &shared = *static_cast<Shared *>(memory);
        const int64_t tile = block % p.tiles, start = block / p.tiles * p.depth;
        const int depth = int(smaller(int64_t(p.depth), p.num_variants - start));
        const hs_variant *variants = p.variants + start;
        each_thread<THREADS>([&](int thread) {
            if (thread < HS_MAX_CHANNELS) shared.fill[thread] = p.fill[thread];
            if (thread < depth) shared.source[thread] = variants[thread].source;
            for (int row = thread; row < p.rows; row += THREADS) draw(p, variants, depth, tile, row, shared.words());
        });
        if (p.layout != HS_CHW) {
            each_thread<THREADS>([&](int thread) {
                for (int i = thread; i < p.runs * p.run_words; i += THREADS) spread(p, depth, i, shared.words());
            });
        }
        each_thread<THREADS>([&](int thread) {
            for (int i = thread; i < p.runs * p.units; i += THREADS) write(p, tile, start, depth, i, shared);
        });
    }
};

template <int SIZE, int BYTES>
int run_masking(Params p, Target target) {
    p.units = int(divide_up(p.run, BYTES / SIZE));
    p.word_step = larger(4 / SIZE, 1) % int(p.geometry.channels);
    const int64_t blocks = p.tiles * divide_up(p.num_variants, p.depth);
    const int64_t bytes = sizeof(Shared) + 4 * int64_t(p.depth) * p.words();
    return p.layout == HS_HWC ? run_blocks<Masking<SIZE, BYTES, true>>(p, blocks, bytes, target)
                              : run_blocks<Masking<SIZE, BYTES, false>>(p, blocks, bytes, target);
}

/* Units are as wide as every address allows: 16 bytes, 4, or one element. */
template <int SIZE>
int choose_unit(const Params &p, Target target) {
    const uint64_t addresses = reinterpret_cast<uint64_t>(p.out) | reinterpret_cast<uint64_t>(p.images) |
                               uint64_t(p.image_bytes) | uint64_t(p.plane_bytes);
    if (addresses % 16 == 0) return run_masking<SIZE, 16>(p, target);
    if (addresses % 4 == 0) return run_masking<SIZE, 4>(p, target);
    return run_masking<SIZE, SIZE>(p, target);
}

bool valid(const hs_geometry &g, int layout) {
    if (g.height < 1 || g.width < 1 || g.height > UINT32_MAX / g.width) return false;
    if (g.channels < 1 || g.channels > HS_MAX_CHANNELS) return false;
    if (layout != HS_PATCHES) return true;
    if (g.patch < 1 || g.merge < 1 || g.frames < 1 || g.frames > MAX_FRAMES) return false;
    return g.height % g.patch == 0 && g.width % g.patch == 0 && g.height / g.patch % g.merge == 0 &&
           g.width / g.patch % g.merge == 0;
}

/* Cuts an image into tiles, and the variants into groups; a depth of 0 says that a tile does not fit. */
void lay_out(Params &p, int size) {
    const hs_geometry &g = p.geometry;
    const int64_t pixels = g.height * g.width;
    p.rows = THREADS;
    p.row_pieces = p.runs = p.planes = 1;
    if (p.layout == HS_CHW) {
        p.planes = int(g.channels);
        p.total = pixels;
        p.plane_bytes = pixels * size;
        p.run = p.stride = p.rows * ROW;
        p.image_bytes = p.plane_bytes * g.channels;
    } else if (p.layout == HS_HWC) {
        p.rows = int(smaller(int64_t(THREADS), MAX_RUN_WORDS / g.channels));
        p.run = p.stride = p.rows * ROW * g.channels;
        p.total = pixels * g.channels;
        p.plane_bytes = p.image_bytes = p.total * size;
    } else {
        p.planes = int(g.channels);
        p.run = g.frames * g.patch * g.patch;
        p.stride = p.run * g.channels;
        p.plane_bytes = p.run * size;
        p.total = pixels * g.channels * g.frames;
        p.image_bytes = p.total * size;
        p.row_pieces = int(divide_up(g.patch, ROW));
        p.runs = int(larger(int64_t(1), THREADS / (g.patch * p.row_pieces)));
        p.rows = int(p.runs * g.patch * p.row_pieces);
    }
    p.run_words = int(divide_up(p.run, ROW));
    p.tiles = divide_up(p.total, p.runs * p.stride);
    const int64_t fitting = (DEFAULT_SHARED_BYTES - int64_t(sizeof(Shared))) / (4 * p.words());
    const int64_t wanted = larger(p.tiles * p.num_variants / ENOUGH_BLOCKS, int64_t(1));
    p.depth = int(smaller(smaller(wanted, int64_t(MAX_DEPTH)), fitting));
}

int mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants, const uint32_t *fill,
                const hs_geometry *geometry, int dtype, int kind, int layout, Target target) {
    if (dtype < HS_U8 || dtype > HS_BF16 || kind < HS_PIXEL || kind > HS_RECTANGLE || layout < HS_HWC ||
        layout > HS_PATCHES || num_variants < 0 || !fill || !geometry || !valid(*geometry, layout)) {
        return cudaErrorInvalidValue;
    }
    if (num_variants == 0) return cudaSuccess;
    if (!out || !images || !variants) return cudaErrorInvalidValue;
    Params p = {out, images, variants, num_variants, *geometry, kind, layout};
    const int size = dtype == HS_U8 ? 1 : dtype == HS_F32 ? 4 : 2, channels = int(geometry->channels);
    for (int c = 0; c < channels; ++c) {
        for (int i = 0; i < 4 / size; ++i) p.fill[c] |= fill[layout == HS_HWC ? (c + i) % channels : c] << i * size * 8;
    }
    lay_out(p, size);
    if (p.depth < 1) return cudaErrorInvalidValue;  // a patch of more than some 360 x 360 pixels
    return size == 1 ? choose_unit<1>(p, target) : size == 2 ? choose_unit<2>(p, target) : choose_unit<4>(p, target);
}

}  // namespace

int hs_cuda_abi(void) { return HS_ABI; }

const char *hs_cuda_error(int code) { return cudaGetErrorString(cudaError_t(code)); }

int hs_cuda_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                        const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind, int layout,
                        void *stream) {
    const Target target = {false, static_cast<cudaStream_t>(stream)};
    return mask_pixels(out, images, variants, num_variants, fill, geometry, dtype, kind, layout, target);
}

int hs_cuda_emulate_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                                const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind, int layout) {
    const Target target = {true, nullptr};
    return mask_pixels(out, images, variants, num_variants, fill, geometry, dtype, kind, layout, target);
}
