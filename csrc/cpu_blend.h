/* Writes a run of elements, those of set bits replaced by fill values, past the cache. Elements are 1, 2 or 4 bytes.
 *
 * Whole cache lines are written by non-temporal stores, which read nothing; the two ends of a run by ordinary ones.
 */
#ifndef HARDSAMPLE_CPU_BLEND_H
#define HARDSAMPLE_CPU_BLEND_H

#include <cstring>

#include "cpu.h"
#include "cpu_bits.h"

/* Fill values by position: element i of a run takes fill[(phase + i) % period] with phase < period, and 64 elements
 * more than the period are readable, which repeat its beginning. The period is 1, for one value, or at least 64. */
inline int64_t advanced(int64_t phase, int64_t step, int64_t period) {
    phase += step;
    return phase >= period ? phase - period : phase;
}

/* How many of `count` elements of 1, 2 or 4 bytes lie before the first whole cache line. */
inline int64_t before_line(const char *out, int64_t size, int64_t count) {
    return std::min<int64_t>(count, (-reinterpret_cast<uintptr_t>(out) & 63) >> size / 2);
}

template <int size>
void blend_baseline(char *out, const char *in, const uint64_t *words, uint64_t bit, int64_t count, const char *fill,
                    int64_t phase, int64_t period) {
    for (int64_t i = 0; i < count; i++, bit++) {
        const bool masked = words[bit / 64] >> bit % 64 & 1;
        std::memcpy(out + i * size, masked ? fill + phase * size : in + i * size, size);
        phase = advanced(phase, 1, period);
    }
}

/* All ones in the bytes of each element whose bit is set; 32 / size bits are read. */
template <int size>
HS_TARGET_AVX2 inline __m256i lanes_avx2(uint64_t bits) {
    if constexpr (size == 4) {
        const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), own), own);
    } else if constexpr (size == 2) {
        const __m256i own =
            _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, short(32768));
        return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(short(bits)), own), own);
    } else {
        const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i own = _mm256_set1_epi64x(int64_t(0x8040201008040201));
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(bits)), byte);
        return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own);
    }
}

template <int size>
HS_TARGET_AVX2 inline void stream_avx2(char *out, const char *in, const char *fill, uint64_t bits) {
    const __m256i kept = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(in));
    const __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(fill));
    _mm256_stream_si256(reinterpret_cast<__m256i *>(out), _mm256_blendv_epi8(kept, other, lanes_avx2<size>(bits)));
}

template <int size>
HS_TARGET_AVX2 void blend_avx2(char *out, const char *in, const uint64_t *words, uint64_t bit, int64_t count,
                               const char *fill, int64_t phase, int64_t period) {
    constexpr int64_t lanes = 32 / size;
    const int64_t step = period == 1 ? 0 : lanes, head = before_line(out, size, count);
    blend_baseline<size>(out, in, words, bit, head, fill, phase, period);
    phase = advanced(phase, period == 1 ? 0 : head, period);
    int64_t i = head;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
        const uint64_t bits = bits_at(words, bit + i);
        stream_avx2<size>(out + i * size, in + i * size, fill + phase * size, bits);
        phase = advanced(phase, step, period);
        stream_avx2<size>(out + i * size + 32, in + i * size + 32, fill + phase * size, bits >> lanes);
        phase = advanced(phase, step, period);
    }
    blend_baseline<size>(out + i * size, in + i * size, words, bit + i, count - i, fill, phase, period);
}

template <int size>
HS_TARGET_AVX512 inline void stream_avx512(char *out, const char *in, __m512i fill, uint64_t bits) {
    const __m512i kept = _mm512_loadu_si512(in);
    __m512i line;
    if constexpr (size == 4) line = _mm512_mask_blend_epi32(__mmask16(bits), kept, fill);
    if constexpr (size == 2) line = _mm512_mask_blend_epi16(__mmask32(bits), kept, fill);
    if constexpr (size == 1) line = _mm512_mask_blend_epi8(bits, kept, fill);
    _mm512_stream_si512(reinterpret_cast<__m512i *>(out), line);
}

/* A part of a line: `count` elements, fewer than a line has. */
template <int size>
HS_TARGET_AVX512 inline void part_avx512(char *out, const char *in, const char *fill, uint64_t bits, int64_t count) {
    const uint64_t valid = low_bits(count);
    if constexpr (size == 4) {
        const __m512i kept = _mm512_maskz_loadu_epi32(__mmask16(valid), in);
        _mm512_mask_storeu_epi32(out, __mmask16(valid), _mm512_mask_loadu_epi32(kept, __mmask16(bits & valid), fill));
    } else if constexpr (size == 2) {
        const __m512i kept = _mm512_maskz_loadu_epi16(__mmask32(valid), in);
        _mm512_mask_storeu_epi16(out, __mmask32(valid), _mm512_mask_loadu_epi16(kept, __mmask32(bits & valid), fill));
    } else {
        const __m512i kept = _mm512_maskz_loadu_epi8(valid, in);
        _mm512_mask_storeu_epi8(out, valid, _mm512_mask_loadu_epi8(kept, bits & valid, fill));
    }
}

template <int size>
HS_TARGET_AVX512 void blend_avx512(char *out, const char *in, const uint64_t *words, uint64_t bit, int64_t count,
                                   const char *fill, int64_t phase, int64_t period) {
    constexpr int64_t lanes = 64 / size;
    const int64_t step = period == 1 ? 0 : lanes, head = before_line(out, size, count);
    if (head) part_avx512<size>(out, in, fill + phase * size, bits_at(words, bit), head);
    phase = advanced(phase, period == 1 ? 0 : head, period);
    int64_t i = head;
    for (; i + 64 <= count; i += 64) {
        uint64_t bits = bits_at(words, bit + i);
#pragma GCC unroll 4
        for (int64_t j = i; j < i + 64; j += lanes) {
            stream_avx512<size>(out + j * size, in + j * size, _mm512_loadu_si512(fill + phase * size), bits);
            if constexpr (size > 1) bits >>= lanes;
            phase = advanced(phase, step, period);
        }
    }
    for (; i + lanes <= count; i += lanes) {
        const __m512i values = _mm512_loadu_si512(fill + phase * size);
        stream_avx512<size>(out + i * size, in + i * size, values, bits_at(words, bit + i));
        phase = advanced(phase, step, period);
    }
    if (i < count)
        part_avx512<size>(out + i * size, in + i * size, fill + phase * size, bits_at(words, bit + i), count - i);
}

using Blend = decltype(&blend_baseline<1>);

inline Blend blend_for(int level, int64_t size) {
    static constexpr Blend bodies[3][3] = {{blend_baseline<1>, blend_baseline<2>, blend_baseline<4>},
                                           {blend_avx2<1>, blend_avx2<2>, blend_avx2<4>},
                                           {blend_avx512<1>, blend_avx512<2>, blend_avx512<4>}};
    return bodies[level][size / 2];
}

#endif
