/* Masks of the three kinds as bits of pixels in raster order, and those bits spread over the channels of hwc images. */
#ifndef HARDSAMPLE_CPU_MASKS_H
#define HARDSAMPLE_CPU_MASKS_H

#include "cpu_bits.h"
#include "cpu_draws.h"

class Masks {
  public:
    /* cells: working memory of cell_words(width, pixels) words, where pixels is the most that one call asks for. */
    Masks(int64_t height, int64_t width, int kind, int level, uint64_t *cells)
        : width(width), total(height * width), kind(kind), level(level), cells(cells) {}

    static int64_t cell_words(int64_t width, int64_t pixels) { return std::min(width, pixels) / HS_CELL / 64 + 3; }

    /* Words first ... first + count - 1 of the variant's mask, 64 pixels each; bits after the last pixel are void. */
    void write(uint64_t *out, int64_t first, int64_t count, const hs_variant &v) const {
        if (kind == HS_PIXEL) return draw_words(level, out, first, count, v);
        BitWriter writer(out);
        const int64_t stop = std::min(total, (first + count) * 64);
        for (int64_t pixel = first * 64; pixel < stop;) {
            const int64_t y = pixel / width, x = pixel % width, x_stop = std::min(width, x + stop - pixel);
            if (kind == HS_RECTANGLE)
                write_rectangle(writer, y, x, x_stop, v);
            else
                write_cells(writer, y, x, x_stop, v);
            pixel += x_stop - x;
        }
        writer.flush();
    }

  private:
    static void write_rectangle(BitWriter &writer, int64_t y, int64_t x, int64_t x_stop, const hs_variant &v) {
        const bool inside = y >= v.y && y < int64_t(v.y) + v.height;
        const int64_t left = std::clamp<int64_t>(v.x, x, x_stop);
        const int64_t right = std::clamp<int64_t>(int64_t(v.x) + v.width, x, x_stop);
        writer.put_run(false, left - x);
        writer.put_run(inside, right - left);
        writer.put_run(false, x_stop - right);
    }

    void write_cells(BitWriter &writer, int64_t y, int64_t x, int64_t x_stop, const hs_variant &v) const {
        const int64_t row = y / HS_CELL * ceil_div(width, HS_CELL);
        const int64_t first = (row + x / HS_CELL) / 64, last = (row + (x_stop - 1) / HS_CELL) / 64;
        draw_words(level, cells, first, last - first + 1, v);
        while (x < x_stop) {
            const int64_t cell = row + x / HS_CELL - first * 64, next = (x / HS_CELL + 1) * HS_CELL;
            const int64_t run = std::min(next, x_stop) - x;
            writer.put_run(cells[cell / 64] >> cell % 64 & 1, run);
            x += run;
        }
    }

    int64_t width, total;
    int kind, level;
    uint64_t *cells;
};

/* Repeats every bit `channels` times: out has channels words for each word of pixels. */
class Spread {
  public:
    explicit Spread(int64_t channels) : channels(channels) {
        for (int64_t j = 0; j < channels; j++) {
            next[j] = ceil_div(64 * j, channels);
            begun[j] = low_bits(next[j] * channels - 64 * j);
            starts[j] = 0;
            for (int64_t bit = next[j] * channels - 64 * j; bit < 64; bit += channels) starts[j] |= uint64_t(1) << bit;
        }
    }

    void write(int level, uint64_t *out, const uint64_t *pixels, int64_t count) const {
        level == HS_BASELINE ? write_baseline(out, pixels, count) : write_avx2(out, pixels, count);
    }

  private:
    void write_baseline(uint64_t *out, const uint64_t *pixels, int64_t count) const {
        BitWriter writer(out);
        for (int64_t i = 0; i < count * 64; i++) writer.put_run(pixels[i / 64] >> i % 64 & 1, channels);
    }

    HS_TARGET_AVX2 void write_avx2(uint64_t *out, const uint64_t *pixels, int64_t count) const {
        const uint64_t ones = low_bits(channels);
        for (int64_t i = 0; i < count; i++) {
            for (int64_t j = 0; j < channels; j++) {
                const uint64_t carried = -(pixels[i] >> ((next[j] - 1) & 63) & 1) & begun[j];
                *out++ = _pdep_u64(pixels[i] >> next[j], starts[j]) * ones | carried;
            }
        }
    }

    // Of output word j: the first pixel that begins in it, where such pixels begin, and the bits of the one before.
    int64_t channels, next[HS_MAX_CHANNELS];
    uint64_t starts[HS_MAX_CHANNELS], begun[HS_MAX_CHANNELS];
};

#endif
