/* Pixel masking on the CPU: all variants of an image in one pass over the output, and the floor it is measured by.
 *
 * Whatever the layout, a variant is one or more runs of elements, and bits in the order of its elements say which
 * take the fill value. The image is walked in blocks and the variants inside, so that a block is read from the cache,
 * and the output, far larger than the cache, is written past it.
 */
#include <numeric>

#include "cpu.h"
#include "cpu_blend.h"
#include "cpu_fused.h"
#include "cpu_masks.h"

namespace {

constexpr int64_t BLOCK_WORDS = 64, STEP_WORDS = 16;  // of 64 pixels: of one variant in a row; drawn at a time
constexpr int64_t VARIANTS_A_TASK = 16;               // where several threads share the work
constexpr int64_t BROADCAST_BLOCK = 16384;            // bytes
constexpr int64_t PIXELS_MAX = (int64_t(1) << 32) - 1, SIDE_MAX = 1 << 16;

struct Call {
    char *out;
    const char *images;
    const hs_variant *variants;
    int64_t num_variants;
    hs_geometry geometry;
    int kind, layout, threads, level;
    int64_t size, features, elements;  // bytes of an element; elements of a pixel (hwc) or a patch, of an image
    Blend blend;

    int64_t pixels() const { return geometry.height * geometry.width; }
    char *out_of(int64_t v) const { return out + v * elements * size; }
    const char *image_of(int64_t v) const { return images + variants[v].source * elements * size; }
};

/* Tables of fill values as the blends read them: one for each plane of chw, one for the other layouts. */
class Fills {
  public:
    bool make(const Call &call, const uint32_t *fill) {
        const int64_t channels = call.geometry.channels, planes = call.layout == HS_CHW ? channels : 1;
        const int64_t features = call.layout == HS_CHW ? 1 : call.features;
        period = call.layout == HS_CHW ? 1 : features * ceil_div(64, features);
        stride = (period + 64) * call.size;
        values = allocate<char>(planes * stride);
        if (!values) return false;
        for (int64_t plane = 0; plane < planes; plane++) {
            for (int64_t i = 0; i < period + 64; i++) {
                const int64_t channel = plane + i % features * (channels / planes) / features;
                std::memcpy(values.get() + plane * stride + i * call.size, fill + channel, call.size);
            }
        }
        return true;
    }

    const char *of(int64_t plane) const { return values.get() + plane * stride; }
    int64_t phase(int64_t element) const { return period == 1 ? 0 : element % period; }

    int64_t period = 1, stride = 0;  // elements, bytes

  private:
    Memory<char> values;
};

/* Each thread's words, cut in pieces. */
class Scratch {
  public:
    template <size_t pieces>
    bool make(int threads, const int64_t (&sizes)[pieces]) {
        stride = ceil_div(std::accumulate(sizes, sizes + pieces, int64_t(0)), 8) * 8 + 8;
        words = allocate<uint64_t>(stride * threads);
        if (words) std::fill_n(words.get(), stride * threads, 0);
        return bool(words);
    }

    uint64_t *of(int thread) const { return words.get() + thread * stride; }

  private:
    int64_t stride = 0;
    Memory<uint64_t> words;
};

/* Runs task(block, first variant, variant after the last, thread) over all blocks and variants. */
template <class Task>
void each_block(const Call &call, int64_t blocks, const Task &task) {
    const int64_t together = call.threads > 1 ? VARIANTS_A_TASK : call.num_variants;
    const int64_t parts = ceil_div(call.num_variants, together);
    each_task(blocks * parts, call.threads, [&](int64_t i, int thread) {
        const int64_t first = i % parts * together;
        task(i / parts, first, std::min(first + together, call.num_variants), thread);
        _mm_sfence();
    });
}

/* hwc and chw: planes of elements that share one string of bits. */
class Planes {
  public:
    Planes(const Call &call, const Fills &fills)
        : call(call), fills(fills), words(ceil_div(call.pixels(), 64)),
          planes(call.layout == HS_CHW ? call.geometry.channels : 1), repeats(call.geometry.channels / planes),
          spread(repeats),
          sizes{(BLOCK_WORDS + 2) * repeats, STEP_WORDS + 2, Masks::cell_words(call.geometry.width, STEP_WORDS * 64)},
          fused(fused_for(repeats == 3, call.size)) {}

    int run() {
        if (!scratch.make(call.threads, sizes)) return HS_NO_MEMORY;
        each_block(call, ceil_div(words, BLOCK_WORDS), [&](int64_t block, int64_t first, int64_t stop, int thread) {
            const int64_t begin = block * BLOCK_WORDS, end = std::min(begin + BLOCK_WORDS, words);
            for (int64_t v = first; v < stop; v++)
                can_fuse(call.variants[v]) ? write_fused(v, begin, end, scratch.of(thread))
                                           : write(v, begin, end, scratch.of(thread));
        });
        return HS_OK;
    }

  private:
    bool can_fuse(const hs_variant &v) const {
        return call.level == HS_AVX512 && call.kind == HS_PIXEL && v.units > 0 && v.units < ALL_DRAWS &&
               (repeats == 1 || repeats == 3) && call.pixels() >= 128 &&
               reinterpret_cast<uintptr_t>(call.out) % call.size == 0;
    }

    /* Pixel words begin ... end - 1 of one variant, in whole groups; the two ends of a plane by way of bits. */
    void write_fused(int64_t v, int64_t begin, int64_t end, uint64_t *bits) const {
        const int64_t stride = call.pixels() * repeats * call.size;
        Groups groups = {call.out_of(v), call.image_of(v), fills.of(0), planes, stride, fills.stride, {}};
        int64_t most = 0;
        for (int64_t plane = 0; plane < planes; plane++) {
            groups.before[plane] = pixels_to_line(groups.out + plane * stride, call.size, repeats == 3);
            most = std::max(most, groups.before[plane]);
        }
        const int64_t whole = (call.pixels() - most) / 64;
        fused(groups, call.variants[v], begin, std::min(end, whole));
        for (int64_t plane = 0; plane < planes; plane++) {
            const int64_t before = groups.before[plane];
            if (begin == 0) write_pixels(v, plane, 0, before, bits);
            if (end == words) write_pixels(v, plane, whole * 64 + before, call.pixels(), bits);
        }
    }

    /* A few pixels of a plane. */
    void write_pixels(int64_t v, int64_t plane, int64_t start, int64_t stop, uint64_t *bits) const {
        if (start == stop) return;
        const int64_t first = start / 64;
        make_bits(v, first, ceil_div(stop, 64), bits, 0);
        write_run(v, plane, first, start * repeats, stop * repeats, bits);
    }

    /* Pixel words begin ... end - 1 of one variant. Bits are made one word ahead, since runs end at cache lines. */
    void write(int64_t v, int64_t begin, int64_t end, uint64_t *bits) const {
        const int64_t length = call.pixels() * repeats;
        int64_t made = begin;
        for (int64_t step = begin; step < end; step += STEP_WORDS) {
            const int64_t next = std::min(step + STEP_WORDS, end), wanted = std::min(next + 1, words);
            make_bits(v, made, wanted, bits, (made - begin) * repeats);
            made = wanted;
            for (int64_t plane = 0; plane < planes; plane++) {
                const int64_t shift = before_line(call.out_of(v) + plane * length * call.size, call.size, length);
                const int64_t start = step ? std::min(step * 64 * repeats + shift, length) : 0;
                write_run(v, plane, begin, start, std::min(next * 64 * repeats + shift, length), bits);
            }
        }
    }

    /* The elements' bits of pixel words first ... stop - 1, to bits[at] and on. */
    void make_bits(int64_t v, int64_t first, int64_t stop, uint64_t *bits, int64_t at) const {
        uint64_t *pixels = bits + sizes[0];
        const Masks masks(call.geometry.height, call.geometry.width, call.kind, call.level, pixels + sizes[1]);
        masks.write(repeats == 1 ? bits + at : pixels, first, stop - first, call.variants[v]);
        if (repeats > 1) spread.write(call.level, bits + at, pixels, stop - first);
    }

    /* Elements start ... stop - 1 of a plane, where bits begin with those of pixel word `first`. */
    void write_run(int64_t v, int64_t plane, int64_t first, int64_t start, int64_t stop, const uint64_t *bits) const {
        const int64_t at = (plane * call.pixels() * repeats + start) * call.size;
        call.blend(call.out_of(v) + at, call.image_of(v) + at, bits, start - first * 64 * repeats, stop - start,
                   fills.of(plane), fills.phase(start), fills.period);
    }

    const Call &call;
    const Fills &fills;
    const int64_t words, planes, repeats;
    const Spread spread;
    const int64_t sizes[3];  // bits of elements, bits of pixels where they differ, draws of cells
    const Fused fused;
    Scratch scratch;
};

/* patches: one run whose bits are those of a patch, repeated for each channel and frame, patch after patch. */
class Patches {
  public:
    Patches(const Call &call, const Fills &fills)
        : call(call), fills(fills), rows(call.geometry.patch * call.geometry.merge),
          pixels(rows * call.geometry.width), area(call.geometry.patch * call.geometry.patch),
          sizes{pixels / 64 + 3, pixels / 64 + 3, area / 64 + 4, call.features / 64 + 3,
                Masks::cell_words(call.geometry.width, pixels + 64)} {}

    int run() {
        if (!scratch.make(call.threads, sizes)) return HS_NO_MEMORY;
        each_block(call, call.geometry.height / rows, [&](int64_t block, int64_t first, int64_t stop, int thread) {
            uint64_t *now = scratch.of(thread), *next = now + sizes[0], *patch = next + sizes[1];
            const Masks masks(call.geometry.height, call.geometry.width, call.kind, call.level,
                              patch + sizes[2] + sizes[3]);
            const int64_t begin = block * pixels / 64, words = ceil_div((block + 1) * pixels, 64) - begin;
            masks.write(now, begin, words, call.variants[first]);
            for (int64_t v = first; v < stop; v++) {
                const auto ahead = [&](int64_t from, int64_t to) {
                    if (v + 1 < stop) masks.write(next + from, begin + from, to - from, call.variants[v + 1]);
                };
                write(v, block, words, now, patch, ahead);
                std::swap(now, next);
            }
        });
        return HS_OK;
    }

  private:
    /* One row of merged patches of a variant. ahead(from, to) makes words of the next variant's mask meanwhile. */
    template <class Ahead>
    void write(int64_t v, int64_t block, int64_t words, const uint64_t *mask, uint64_t *patch,
               const Ahead &ahead) const {
        const hs_geometry &g = call.geometry;
        const int64_t side = g.merge * g.patch, squares = g.width / side;
        const uint64_t from_bit = block * pixels % 64;
        Run run(*this, v, block * squares * g.merge * g.merge * call.features, patch + sizes[2]);
        for (int64_t square = 0; square < squares; square++) {
            ahead(words * square / squares, words * (square + 1) / squares);
            for (int64_t y = 0; y < side; y += g.patch) {
                for (int64_t x = square * side; x < (square + 1) * side; x += g.patch) {
                    copy_patch(patch, mask, from_bit + y * g.width + x);
                    run.add(patch);
                }
            }
        }
        run.finish();
    }

    /* The output of a row of merged patches, written as its bits come. */
    class Run {
      public:
        Run(const Patches &of, int64_t v, int64_t element, uint64_t *bits)
            : of(of), out(of.call.out_of(v) + element * of.call.size), in(of.call.image_of(v) + element * of.call.size),
              bits(bits), phase(of.fills.phase(element)), writer(bits) {}

        void add(const uint64_t *patch) {
            writer.put_cycle(patch, of.area, of.call.features);
            write(writer.take(bits) * 64);
        }

        void finish() { write(writer.flush()); }

      private:
        void write(int64_t count) {
            of.call.blend(out, in, bits, 0, count, of.fills.of(0), phase, of.fills.period);
            phase = of.fills.phase(phase + count);
            out += count * of.call.size, in += count * of.call.size;
        }

        const Patches &of;
        char *out;
        const char *in;
        uint64_t *bits;
        int64_t phase;
        BitWriter writer;
    };

    /* The bits of one patch, and 64 more of their endless repetition. */
    void copy_patch(uint64_t *patch, const uint64_t *mask, uint64_t bit) const {
        const int64_t side = call.geometry.patch, together = std::max<int64_t>(64 / side, 1);
        BitWriter writer(patch);
        for (int64_t y = 0; y < side; y += together) {
            uint64_t rows_of_bits = 0;
            const int64_t count = std::min(together, side - y);
            for (int64_t row = 0; row < count && side <= 64; row++, bit += call.geometry.width)
                rows_of_bits |= (bits_at(mask, bit) & low_bits(side)) << row * side;
            if (side <= 64) {
                writer.put(rows_of_bits, count * side);
            } else {
                writer.put_copy(mask, bit, side);
                bit += call.geometry.width;
            }
        }
        for (int64_t more = 64; more > 0; more -= area) {
            writer.flush();
            writer.put_copy(patch, 0, std::min(more, area));
        }
        writer.flush();
    }

    const Call &call;
    const Fills &fills;
    const int64_t rows, pixels, area;  // of a row of merged patches: rows and pixels; pixels of a patch
    const int64_t sizes[5];            // two masks, a patch, its elements, draws of cells
    Scratch scratch;
};

bool fits(const hs_geometry &g, int layout) {
    if (g.height < 1 || g.width < 1 || g.height > PIXELS_MAX / g.width) return false;
    if (g.channels < 1 || g.channels > HS_MAX_CHANNELS) return false;
    if (layout != HS_PATCHES) return true;
    for (const int64_t value : {g.patch, g.merge, g.frames})
        if (value < 1 || value > SIDE_MAX) return false;
    return g.height % (g.patch * g.merge) == 0 && g.width % (g.patch * g.merge) == 0;
}

bool fits(const hs_variant &v, const hs_geometry &g, int kind) {
    if (v.units > ALL_DRAWS) return false;
    return kind != HS_RECTANGLE || (int64_t(v.y) + v.height <= g.height && int64_t(v.x) + v.width <= g.width);
}

void copy_baseline(char *out, const char *in, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 16) {
        const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i *>(in + i));
        _mm_stream_si128(reinterpret_cast<__m128i *>(out + i), values);
    }
}

HS_TARGET_AVX2 void copy_avx2(char *out, const char *in, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 32) {
        const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in + i));
        _mm256_stream_si256(reinterpret_cast<__m256i *>(out + i), values);
    }
}

HS_TARGET_AVX512 void copy_avx512(char *out, const char *in, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i *>(out + i), _mm512_loadu_si512(in + i));
}

/* Copies a run; lines that it covers in part only are written by ordinary stores. */
void copy_past_cache(char *out, const char *in, int64_t bytes, int level) {
    static constexpr decltype(&copy_baseline) bodies[] = {copy_baseline, copy_avx2, copy_avx512};
    const int64_t head = before_line(out, 1, bytes), body = (bytes - head) / 64 * 64;
    std::memcpy(out, in, head);
    bodies[level](out + head, in + head, body);
    std::memcpy(out + head + body, in + head + body, bytes - head - body);
}

}  // namespace

HS_API int hs_abi(void) { return HS_ABI; }

HS_API int hs_cpu_level(void) { return best_level(); }

HS_API int hs_mask_pixels(void *out, const void *images, const hs_variant *variants, int64_t num_variants,
                          const uint32_t *fill, const hs_geometry *geometry, int dtype, int kind, int layout,
                          int threads, int level) {
    if (!geometry || !fill || num_variants < 0 || !runs_here(threads, level)) return HS_BAD_ARGUMENT;
    if (dtype < HS_U8 || dtype > HS_BF16 || kind < HS_PIXEL || kind > HS_RECTANGLE) return HS_BAD_ARGUMENT;
    if (layout < HS_HWC || layout > HS_PATCHES || !fits(*geometry, layout)) return HS_BAD_ARGUMENT;
    if (num_variants == 0) return HS_OK;
    if (!out || !images || !variants) return HS_BAD_ARGUMENT;
    const hs_geometry &g = *geometry;
    for (int64_t v = 0; v < num_variants; v++)
        if (!fits(variants[v], g, kind)) return HS_BAD_ARGUMENT;

    const int64_t size = dtype == HS_U8 ? 1 : dtype == HS_F32 ? 4 : 2;
    const int64_t features = layout == HS_PATCHES ? g.channels * g.frames * g.patch * g.patch : g.channels;
    const int64_t elements = g.height * g.width * g.channels * (layout == HS_PATCHES ? g.frames : 1);
    const bool aligned = reinterpret_cast<uintptr_t>(out) % size == 0;
    if (layout == HS_HWC && g.channels == 1) layout = HS_CHW;
    const Call call{static_cast<char *>(out), static_cast<const char *>(images), variants, num_variants, g, kind,
                    layout, threads, level, size, features, elements,
                    blend_for(aligned ? level : int(HS_BASELINE), size)};
    Fills fills;
    if (!fills.make(call, fill)) return HS_NO_MEMORY;
    return layout == HS_PATCHES ? Patches(call, fills).run() : Planes(call, fills).run();
}

HS_API int hs_broadcast(void *out, const void *image, int64_t copies, int64_t bytes, int threads, int level) {
    if (copies < 0 || bytes < 0 || !runs_here(threads, level)) return HS_BAD_ARGUMENT;
    if (copies == 0 || bytes == 0) return HS_OK;
    if (!out || !image) return HS_BAD_ARGUMENT;
    const int64_t together = threads > 1 ? VARIANTS_A_TASK : copies, parts = ceil_div(copies, together);
    each_task(ceil_div(bytes, BROADCAST_BLOCK) * parts, threads, [&](int64_t i, int) {
        const int64_t start = i / parts * BROADCAST_BLOCK, stop = std::min(start + BROADCAST_BLOCK, bytes);
        const int64_t first = i % parts * together;
        for (int64_t v = first; v < std::min(first + together, copies); v++) {
            char *target = static_cast<char *>(out) + v * bytes + start;
            copy_past_cache(target, static_cast<const char *>(image) + start, stop - start, level);
        }
        _mm_sfence();
    });
    return HS_OK;
}
