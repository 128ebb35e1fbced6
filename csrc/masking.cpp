/* Pixel masking on the CPU, in one pass over the output.
 *
 * A task is a run of pixels for some variants: the run of the image stays in the cache while every variant's draws are
 * made as bits, laid out in the order of the output's elements, and met by one stream: out = bit ? fill : image, with
 * non-temporal stores, since the output is far larger than the cache and is not read here.
 */
#include <cstring>

#include "cpu_draws.h"

namespace {

constexpr int64_t RUN_PIXELS = 4096; /* of a task, hwc and chw; a multiple of 64 */
constexpr int64_t VARIANTS = 16;     /* of a task */
constexpr int64_t LINE = 64;

struct Call {
    uint8_t *out;
    const uint8_t *images;
    const hs_variant *variants;
    int64_t num_variants;
    const uint32_t *fill;
    hs_geometry g;
    int kind, level;

    int64_t pixels() const { return g.height * g.width; }
    int64_t elements() const { return pixels() * g.channels * std::max<int64_t>(g.frames, 1); }
};

/* -- bits ------------------------------------------------------------------------------------------------------- */

uint64_t bits_at(const uint64_t *words, int64_t place) { /* 64 bits from any place; reads one byte beyond */
    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(words) + place / 8;
    uint64_t low_part;
    std::memcpy(&low_part, bytes, 8);
    const int shift = int(place % 8);
    return low_part >> shift | uint64_t(bytes[8]) << 1 << (63 - shift);
}

void set_bits(uint64_t *words, int64_t start, int64_t stop) {
    for (int64_t place = start; place < stop;) {
        const int64_t bit = place % 64, count = std::min<int64_t>(64 - bit, stop - place);
        words[place / 64] |= (count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1) << bit;
        place += count;
    }
}

/* Appends bits, 64 at a time. */
struct BitWriter {
    uint64_t *words;
    uint64_t held = 0;
    int filled = 0;

    void append(uint64_t bits, int count) {
        if (count == 0) return;
        if (count < 64) bits &= (uint64_t(1) << count) - 1;
        held |= bits << filled;
        if (filled + count < 64) {
            filled += count;
            return;
        }
        *words++ = held;
        held = filled ? bits >> (64 - filled) : 0;
        filled += count - 64;
    }
    void append(const uint64_t *from, int64_t place, int64_t count) {
        for (; count > 0; place += 64, count -= 64) append(bits_at(from, place), int(std::min<int64_t>(count, 64)));
    }
    void finish() { *words = held; }
};

/* The mask of pixels start ... stop - 1 (start a multiple of 64) as bits; cells: working memory of a cell row's draws. */
void mask_bits(const Call &c, const hs_variant &v, int64_t start, int64_t stop, uint64_t *bits, uint64_t *cells) {
    const int64_t words = ceil_div(stop - start, 64), width = c.g.width;
    if (c.kind == HS_PIXEL) {
        draw_words(c.level, bits, start / 64, words, v);
        return;
    }
    std::fill_n(bits, words, 0);
    if (c.kind == HS_RECTANGLE) {
        const int64_t top = std::max<int64_t>(v.y, start / width);
        for (int64_t y = top; y < int64_t(v.y) + v.height && y * width < stop; y++) {
            const int64_t left = std::max(start, y * width + v.x);
            set_bits(bits, left - start, std::min(stop, y * width + v.x + v.width) - start);
        }
        return;
    }
    const int64_t row_cells = ceil_div(width, HS_CELL);
    int64_t held = -1, first_word = 0;
    for (int64_t y = start / width; y * width < stop; y++) {
        if (y / HS_CELL != held) {
            held = y / HS_CELL;
            first_word = held * row_cells / 64;
            draw_words(c.level, cells, first_word, ((held + 1) * row_cells - 1) / 64 - first_word + 1, v);
        }
        const int64_t left = std::max(start, y * width), right = std::min(stop, (y + 1) * width);
        for (int64_t p = left; p < right;) {
            const int64_t cell = (p - y * width) / HS_CELL, end = std::min(right, y * width + (cell + 1) * HS_CELL);
            const int64_t draw = held * row_cells + cell - first_word * 64;
            if (cells[draw / 64] >> draw % 64 & 1) set_bits(bits, p - start, end - start);
            p = end;
        }
    }
}

HS_TARGET_AVX2 void triple_bits(const uint64_t *pixels, int64_t count, BitWriter &writer) {
    for (int64_t p = 0; p < count; p += 21) {
        const uint64_t spread = _pdep_u64(bits_at(pixels, p), 0x1249249249249249);
        writer.append(spread * 7, int(std::min<int64_t>(21, count - p)) * 3);
    }
}

/* Each pixel's bit once for every channel: the order of hwc. */
void repeat_bits(int level, const uint64_t *pixels, int64_t count, int64_t channels, BitWriter writer) {
    if (channels == 3 && level >= HS_AVX2)
        triple_bits(pixels, count, writer);
    else if (channels == 1)
        writer.append(pixels, 0, count);
    else
        for (int64_t p = 0; p < count; p++) writer.append(-(pixels[p / 64] >> p % 64 & 1), int(channels));
    writer.finish();
}

/* The bits of one row of merged patches, in the order of the output: each patch's p * p bits, for each channel and
 * frame. `pixels` are the rows' bits in raster order, from `offset` on. */
void patch_bits(const hs_geometry &g, const uint64_t *pixels, int64_t offset, uint64_t *patch, BitWriter writer) {
    for (int64_t block = 0; block < g.width / (g.patch * g.merge); block++)
        for (int64_t my = 0; my < g.merge; my++)
            for (int64_t mx = 0; mx < g.merge; mx++) {
                const int64_t left = offset + (block * g.merge + mx) * g.patch;
                BitWriter one{patch};
                for (int64_t y = 0; y < g.patch; y++) one.append(pixels, left + (my * g.patch + y) * g.width, g.patch);
                one.finish();
                for (int64_t copy = 0; copy < g.channels * g.frames; copy++)
                    writer.append(patch, 0, g.patch * g.patch);
            }
    writer.finish();
}

/* -- streams: out = bit ? fill : image ---------------------------------------------------------------------------- */

/* What masked elements take: fill[(first + i) % period]; a vector may be read from any place below the period. */
template <class T>
struct Fill {
    const T *values;
    int64_t period, place;

    void advance(int64_t count) { /* less than the period */
        place += count;
        if (place >= period) place -= period;
    }
};

template <class T>
void stream_scalar(T *out, const T *image, const uint64_t *bits, int64_t first, int64_t count, Fill<T> &fill) {
    for (int64_t i = 0; i < count; i++) {
        out[i] = bits[(first + i) / 64] >> (first + i) % 64 & 1 ? fill.values[fill.place] : image[i];
        fill.advance(fill.period > 1);
    }
}

template <class T>
HS_TARGET_AVX2 inline __m256i lanes_of_bits(uint64_t bits);

template <>
HS_TARGET_AVX2 inline __m256i lanes_of_bits<uint32_t>(uint64_t bits) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), own), own);
}

template <>
HS_TARGET_AVX2 inline __m256i lanes_of_bits<uint16_t>(uint64_t bits) {
    const __m256i own = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(short(bits)), own), own);
}

template <>
HS_TARGET_AVX2 inline __m256i lanes_of_bits<uint8_t>(uint64_t bits) {
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(int(bits)), byte);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, own), own);
}

template <class T>
HS_TARGET_AVX2 void stream_avx2(T *out, const T *image, const uint64_t *bits, int64_t first, int64_t count,
                                Fill<T> &fill) {
    constexpr int64_t LANES = 32 / sizeof(T);
    const int64_t step = LANES % fill.period;
    int64_t i = std::min<int64_t>(count, (-(reinterpret_cast<uintptr_t>(out)) % 32) / sizeof(T));
    if (reinterpret_cast<uintptr_t>(out) % sizeof(T)) i = count; /* elements that lie across vectors */
    stream_scalar(out, image, bits, first, i, fill);
    for (; i + LANES <= count; i += LANES) {
        const __m256i lanes = lanes_of_bits<T>(bits_at(bits, first + i));
        const __m256i kept = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(image + i));
        const __m256i filled = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(fill.values + fill.place));
        _mm256_stream_si256(reinterpret_cast<__m256i *>(out + i), _mm256_blendv_epi8(kept, filled, lanes));
        fill.advance(step);
    }
    stream_scalar(out + i, image + i, bits, first + i, count - i, fill);
}

HS_TARGET_AVX512 inline __m512i blended(uint64_t bits, __m512i kept, __m512i filled, uint8_t) {
    return _mm512_mask_blend_epi8(_cvtu64_mask64(bits), kept, filled);
}
HS_TARGET_AVX512 inline __m512i blended(uint64_t bits, __m512i kept, __m512i filled, uint16_t) {
    return _mm512_mask_blend_epi16(__mmask32(bits), kept, filled);
}
HS_TARGET_AVX512 inline __m512i blended(uint64_t bits, __m512i kept, __m512i filled, uint32_t) {
    return _mm512_mask_blend_epi32(__mmask16(bits), kept, filled);
}

template <class T>
HS_TARGET_AVX512 void stream_avx512(T *out, const T *image, const uint64_t *bits, int64_t first, int64_t count,
                                    Fill<T> &fill) {
    constexpr int64_t LANES = 64 / sizeof(T);
    const int64_t step = LANES % fill.period;
    int64_t i = std::min<int64_t>(count, (-(reinterpret_cast<uintptr_t>(out)) % 64) / sizeof(T));
    if (reinterpret_cast<uintptr_t>(out) % sizeof(T)) i = count;
    stream_scalar(out, image, bits, first, i, fill);
    for (; i + LANES <= count; i += LANES) {
        const __m512i kept = _mm512_loadu_si512(image + i), filled = _mm512_loadu_si512(fill.values + fill.place);
        _mm512_stream_si512(reinterpret_cast<__m512i *>(out + i), blended(bits_at(bits, first + i), kept, filled, T()));
        fill.advance(step);
    }
    stream_scalar(out + i, image + i, bits, first + i, count - i, fill);
}

template <class T>
void stream(int level, T *out, const T *image, const uint64_t *bits, int64_t first, int64_t count, Fill<T> fill) {
    constexpr decltype(&stream_scalar<T>) bodies[] = {stream_scalar<T>, stream_avx2<T>, stream_avx512<T>};
    bodies[level](out, image, bits, first, count, fill);
}

/* -- draws and streams in one loop, so that the generator works while the stores drain (AVX-512, kind pixel) ---------- */

/* 64 pixels of chw: one word of bits serves every channel. `out` is at a cache line, and so is every channel. */
template <class T>
HS_TARGET_AVX512 void fused_chw(T *out, const T *image, const hs_variant &v, int64_t first_word, int64_t words,
                                int64_t channels, int64_t plane, const T *fill) {
    constexpr int64_t LANES = 64 / sizeof(T);
    Draws512 draws(v, first_word);
    for (int64_t w = 0; w < words; w++, out += 64, image += 64) {
        const uint64_t bits = draws.next();
        for (int64_t c = 0; c < channels; c++) {
            const __m512i filled = _mm512_loadu_si512(fill + c * LANES * 2);
#pragma GCC unroll 4
            for (int64_t i = 0; i < 64; i += LANES)
                _mm512_stream_si512(reinterpret_cast<__m512i *>(out + c * plane + i),
                                    blended(bits >> i, _mm512_loadu_si512(image + c * plane + i), filled, T()));
        }
    }
}

/* 64 pixels of hwc with three channels of a byte: three vectors, each pixel's bit three times. */
HS_TARGET_AVX512 void fused_rgb(uint8_t *out, const uint8_t *image, const hs_variant &v, int64_t first_word,
                                int64_t words, const uint8_t *fill) {
    constexpr uint64_t THIRDS = 0x9249249249249249; /* bits 0, 3, ... 63 */
    const __m512i filled[3] = {_mm512_loadu_si512(fill), _mm512_loadu_si512(fill + 1), _mm512_loadu_si512(fill + 2)};
    Draws512 draws(v, first_word);
    for (int64_t w = 0; w < words; w++, out += 192, image += 192) {
        const uint64_t bits = draws.next();
        /* pixels 21 and 42 lie across two vectors */
        const uint64_t three[3] = {_pdep_u64(bits, THIRDS) * 7,
                                   _pdep_u64(bits >> 22, THIRDS << 2) * 7 | (bits >> 21 & 1) * 3,
                                   _pdep_u64(bits >> 43, THIRDS << 1) * 7 | (bits >> 42 & 1)};
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++)
            _mm512_stream_si512(reinterpret_cast<__m512i *>(out + i * 64),
                                blended(three[i], _mm512_loadu_si512(image + i * 64), filled[i], uint8_t()));
    }
}

bool at_line(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % LINE == 0; }

/* -- tasks ---------------------------------------------------------------------------------------------------------- */

template <class T>
struct Task {
    static constexpr int64_t BESIDE = LINE / sizeof(T); /* elements a vector may read beyond the period */

    /* The values of one period of the output's order, and one vector more. */
    static int64_t period(const Call &c, int layout) {
        const hs_geometry &g = c.g;
        if (layout == HS_CHW) return 1;
        return layout == HS_HWC ? g.channels : g.channels * g.frames * g.patch * g.patch;
    }
    static int64_t runs(const Call &c, int layout) {
        return layout == HS_PATCHES ? c.g.height / (c.g.patch * c.g.merge) : ceil_div(c.pixels(), RUN_PIXELS);
    }
    static int64_t run_pixels(const Call &c, int layout) {
        return layout == HS_PATCHES ? c.g.patch * c.g.merge * c.g.width : RUN_PIXELS;
    }

    /* Words of working memory of a thread: the mask's bits, the elements' bits, one patch's bits, the cells' draws. */
    struct Sizes {
        int64_t pixels, elements, patch, cells;
        int64_t all() const { return pixels + elements + patch + cells; }
    };
    static Sizes sizes(const Call &c, int layout) {
        const int64_t pixels = run_pixels(c, layout);
        const int64_t copies = c.g.channels * std::max<int64_t>(c.g.frames, 1);
        return {ceil_div(pixels, 64) + 3, ceil_div(pixels * copies, 64) + 3, ceil_div(c.g.patch * c.g.patch, 64) + 3,
                ceil_div(c.g.width, 64) + 3};
    }

    static void run(const Call &c, int layout, int64_t index, uint64_t *memory, const T *fill) {
        const int64_t which = index % runs(c, layout), first = index / runs(c, layout) * VARIANTS;
        const int64_t start = which * run_pixels(c, layout);
        const int64_t stop = std::min(c.pixels(), start + run_pixels(c, layout));
        const Sizes size = sizes(c, layout);
        uint64_t *bits = memory, *elements = bits + size.pixels, *patch = elements + size.elements;
        uint64_t *cells = patch + size.patch;
        for (int64_t i = first; i < std::min(first + VARIANTS, c.num_variants); i++) {
            const hs_variant &v = c.variants[i];
            T *out = reinterpret_cast<T *>(c.out) + i * c.elements();
            const T *image = reinterpret_cast<const T *>(c.images) + v.source * c.elements();
            if (fused(c, layout, v, out, image, start, stop, fill)) continue;
            mask_bits(c, v, start / 64 * 64, stop, bits, cells);
            if (layout == HS_CHW) {
                for (int64_t channel = 0; channel < c.g.channels; channel++) {
                    const int64_t place = channel * c.pixels() + start;
                    stream<T>(c.level, out + place, image + place, bits, 0, stop - start,
                              {fill + channel * BESIDE * 2, BESIDE, 0});
                }
                continue;
            }
            const int64_t values = period(c, layout), scale = c.elements() / c.pixels();
            if (layout == HS_HWC)
                repeat_bits(c.level, bits, stop - start, c.g.channels, {elements});
            else
                patch_bits(c.g, bits, start % 64, patch, {elements});
            const int64_t place = start * scale, count = (stop - start) * scale;
            stream<T>(c.level, out + place, image + place, elements, 0, count, {fill, values, 0});
        }
        if (c.level > HS_BASELINE) _mm_sfence();
    }

    /* The whole run in one loop, where it is made of full vectors at cache lines. */
    static bool fused(const Call &c, int layout, const hs_variant &v, T *out, const T *image, int64_t start,
                      int64_t stop, const T *fill) {
        if (c.level < HS_AVX512 || c.kind != HS_PIXEL || v.units == 0 || v.units >= ALL_DRAWS || stop % 64) return false;
        const int64_t words = (stop - start) / 64;
        if (layout == HS_CHW && at_line(out) && c.pixels() * sizeof(T) % LINE == 0) {
            fused_chw<T>(out + start, image + start, v, start / 64, words, c.g.channels, c.pixels(), fill);
            return true;
        }
        if constexpr (sizeof(T) == 1)
            if (layout == HS_HWC && c.g.channels == 3 && at_line(out)) {
                fused_rgb(out + start * 3, image + start * 3, v, start / 64, words, fill);
                return true;
            }
        return false;
    }

    /* chw: two vectors of one value a channel; else one period and a vector more. */
    static Memory<T> fill_values(const Call &c, int layout) {
        const int64_t own = period(c, layout), size = layout == HS_CHW ? c.g.channels * BESIDE * 2 : own + BESIDE;
        Memory<T> values = allocate<T>(size);
        if (!values) return values;
        for (int64_t i = 0; i < size; i++) {
            int64_t channel = i / (BESIDE * 2);
            if (layout == HS_HWC) channel = i % own;
            if (layout == HS_PATCHES) channel = i % own / (c.g.frames * c.g.patch * c.g.patch);
            values[i] = T(c.fill[channel]);
        }
        return values;
    }
};

template <class T>
int mask(const Call &c, int layout, int threads) {
    const int64_t words = ceil_div(Task<T>::sizes(c, layout).all(), 8) * 8;
    const Memory<T> fill = Task<T>::fill_values(c, layout);
    const Memory<uint64_t> memory = allocate<uint64_t>(words * threads);
    if (!fill || !memory) return HS_NO_MEMORY;
    const int64_t tasks = Task<T>::runs(c, layout) * ceil_div(c.num_variants, VARIANTS);
    each_task(tasks, threads, [&](int64_t index, int thread) {
        Task<T>::run(c, layout, index, memory.get() + thread * words, fill.get());
    });
    return HS_OK;
}

bool valid(const Call &c, int dtype, int layout) {
    const hs_geometry &g = c.g;
    if (!c.out || !c.images || !c.variants || !c.fill || dtype < HS_U8 || dtype > HS_BF16) return false;
    if (c.kind < HS_PIXEL || c.kind > HS_RECTANGLE || layout < HS_HWC || layout > HS_PATCHES) return false;
    if (g.height < 1 || g.width < 1 || g.channels < 1 || g.channels > HS_MAX_CHANNELS) return false;
    if (g.height >= int64_t(1) << 32 || g.width >= int64_t(1) << 32 || g.height * g.width >= int64_t(1) << 32)
        return false;
    if (layout == HS_PATCHES) {
        if (g.patch < 1 || g.merge < 1 || g.frames < 1) return false;
        if (g.height % (g.patch * g.merge) || g.width % (g.patch * g.merge)) return false;
    }
    for (int64_t i = 0; i < c.num_variants; i++) {
        const hs_variant &v = c.variants[i];
        if (v.units > ALL_DRAWS) return false;
        if (c.kind == HS_RECTANGLE && (int64_t(v.y) + v.height > g.height || int64_t(v.x) + v.width > g.width)) return false;
    }
    return true;
}

/* -- the floor ------------------------------------------------------------------------------------------------------ */

void copy_scalar(uint8_t *out, const uint8_t *image, int64_t bytes) { std::memcpy(out, image, bytes); }

HS_TARGET_AVX2 void copy_avx2(uint8_t *out, const uint8_t *image, int64_t bytes) {
    int64_t i = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(out) % 32);
    std::memcpy(out, image, i);
    for (; i + 32 <= bytes; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i *>(out + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(image + i)));
    std::memcpy(out + i, image + i, bytes - i);
}

HS_TARGET_AVX512 void copy_avx512(uint8_t *out, const uint8_t *image, int64_t bytes) {
    int64_t i = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(out) % 64);
    std::memcpy(out, image, i);
    for (; i + 64 <= bytes; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i *>(out + i), _mm512_loadu_si512(image + i));
    std::memcpy(out + i, image + i, bytes - i);
}

} // namespace

HS_API int hs_abi(void) { return HS_ABI; }

HS_API int hs_cpu_level(void) { return best_level(); }

HS_API int hs_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                          const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind, int layout,
                          int threads, int level) {
    if (num_variants == 0) return HS_OK;
    if (!geometry || num_variants < 0 || !runs_here(threads, level)) return HS_BAD_ARGUMENT;
    Call call = {static_cast<uint8_t *>(out), static_cast<const uint8_t *>(images), variants, num_variants, fill,
                 *geometry, kind, level};
    if (layout != HS_PATCHES) call.g.patch = call.g.merge = call.g.frames = 0;
    if (!valid(call, dtype, layout)) return HS_BAD_ARGUMENT;
    if (dtype == HS_U8) return mask<uint8_t>(call, layout, threads);
    return dtype == HS_F32 ? mask<uint32_t>(call, layout, threads) : mask<uint16_t>(call, layout, threads);
}

HS_API int hs_broadcast(void *out, const void *image, int64_t copies, int64_t bytes, int threads, int level) {
    constexpr int64_t RUN = 16384;
    if (copies < 0 || bytes < 0 || !runs_here(threads, level)) return HS_BAD_ARGUMENT;
    constexpr decltype(&copy_scalar) bodies[] = {copy_scalar, copy_avx2, copy_avx512};
    const int64_t runs = ceil_div(bytes, RUN);
    each_task(runs * ceil_div(copies, VARIANTS), threads, [&](int64_t index, int) {
        const int64_t start = index % runs * RUN, first = index / runs * VARIANTS;
        for (int64_t i = first; i < std::min(first + VARIANTS, copies); i++)
            bodies[level](static_cast<uint8_t *>(out) + i * bytes + start,
                          static_cast<const uint8_t *>(image) + start, std::min(RUN, bytes - start));
        if (level > HS_BASELINE) _mm_sfence();
    });
    return HS_OK;
}
