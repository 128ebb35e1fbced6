/* Kind pixel on AVX-512, for chw and for hwc with three channels: draws and stores in one loop, so that the generator
 * works while the stores drain. A group is 64 pixels. It begins where a cache line of the output does, which need not
 * be where a word of draws begins: its bits then come from two words.
 */
#ifndef HARDSAMPLE_CPU_FUSED_H
#define HARDSAMPLE_CPU_FUSED_H

#include "cpu_blend.h"
#include "cpu_draws.h"

/* What the loops of a variant share. Group g is the pixels before + 64 g ... in each plane; fills are 128 elements of a
 * plane's value, or the pattern of the channels. */
struct Groups {
    char *out;
    const char *in;
    const char *fill;
    int64_t planes, stride, fill_stride;  // of a plane, in bytes
    int64_t before[HS_MAX_CHANNELS];
};

template <int size>
HS_TARGET_AVX512 void fused_planes(const Groups &g, const hs_variant &v, int64_t first, int64_t stop) {
    constexpr int64_t lanes = 64 / size;
    Draws512 draws(v, first);
    uint64_t word = draws.next();
    for (; first < stop; first++) {
        const uint64_t next = draws.next();
        for (int64_t plane = 0; plane < g.planes; plane++) {
            const int64_t before = g.before[plane], at = plane * g.stride + (first * 64 + before) * size;
            const uint64_t bits = word >> before | next << 1 << (63 - before);
            const __m512i fill = _mm512_loadu_si512(g.fill + plane * g.fill_stride);
#pragma GCC unroll 4
            for (int64_t i = 0; i < 64; i += lanes)
                stream_avx512<size>(g.out + at + i * size, g.in + at + i * size, fill, bits >> i);
        }
        word = next;
    }
}

template <int size>
HS_TARGET_AVX512 void fused_rgb(const Groups &g, const hs_variant &v, int64_t first, int64_t stop) {
    constexpr int64_t lanes = 64 / size;
    constexpr uint64_t thirds = 0x9249249249249249;  // bits 0, 3 ... 63
    const __m512i fills[3] = {_mm512_loadu_si512(g.fill), _mm512_loadu_si512(g.fill + size),
                              _mm512_loadu_si512(g.fill + 2 * size)};
    const int64_t before = g.before[0];
    Draws512 draws(v, first);
    uint64_t word = draws.next();
    for (; first < stop; first++) {
        const uint64_t next = draws.next(), bits = word >> before | next << 1 << (63 - before);
        const int64_t at = (first * 64 + before) * 3 * size;
        // Each pixel's bit three times; pixels 21 and 42 lie across two words.
        const uint64_t three[3] = {_pdep_u64(bits, thirds) * 7,
                                   _pdep_u64(bits >> 22, thirds << 2) * 7 | (bits >> 21 & 1) * 3,
                                   _pdep_u64(bits >> 43, thirds << 1) * 7 | (bits >> 42 & 1)};
#pragma GCC unroll 12
        for (int64_t i = 0; i < 192; i += lanes)
            stream_avx512<size>(g.out + at + i * size, g.in + at + i * size, fills[i % 3], three[i / 64] >> i % 64);
        word = next;
    }
}

using Fused = decltype(&fused_planes<1>);

inline Fused fused_for(bool rgb, int64_t size) {
    static constexpr Fused bodies[2][3] = {{fused_planes<1>, fused_planes<2>, fused_planes<4>},
                                           {fused_rgb<1>, fused_rgb<2>, fused_rgb<4>}};
    return bodies[rgb][size / 2];
}

/* Pixels before the first one of a plane that begins a cache line; a pixel is 1 or 3 elements. Any place modulo 16, 32
 * or 64 elements is a multiple of three elements away from a line, since 3 * 43 = 1 modulo these numbers. */
inline int64_t pixels_to_line(const char *out, int64_t size, bool rgb) {
    const int64_t elements = before_line(out, size, 64);
    return rgb ? elements * 43 % (64 / size) : elements;
}

#endif
