/* Draws of the mask generator as bits: bit d % 64 of word d / 64 is set iff draw d masks. The same bits at each level.
 *
 * One call of Philox4x32-7 makes eight draws. Only word 0 of its counter changes within a variant, so what the other
 * words give in the first two rounds is folded into constants. The vector bodies keep each 32-bit word in a lane of 64
 * bits: the multiplication reads the low half only, so the high halves may hold anything and a round is two
 * multiplications, two shifts and two xors.
 */
#ifndef HARDSAMPLE_CPU_DRAWS_H
#define HARDSAMPLE_CPU_DRAWS_H

#include <algorithm>

#include "cpu.h"

constexpr uint32_t PHILOX_M0 = 0xD2511F53, PHILOX_M1 = 0xCD9E8D57, WEYL_0 = 0x9E3779B9, WEYL_1 = 0xBB67AE85;
constexpr uint32_t ALL_DRAWS = 65536;

inline uint32_t low(uint64_t product) { return uint32_t(product); }
inline uint32_t high(uint64_t product) { return uint32_t(product >> 32); }

/* The first two rounds as functions of p = M0 * c0, the product of round 1, and the keys of the five that follow:
 * c2 = hi(p) ^ second_2, then with q = M1 * c2: c0 = hi(q) ^ third_0, c1 = lo(q), c2 = lo(p) ^ third_2, c3 = third_3. */
struct Philox {
    uint32_t second_2, third_0, third_2, third_3, keys[HS_ROUNDS][2];

    explicit Philox(const hs_variant &v) {
        for (uint32_t r = 0; r < HS_ROUNDS; r++) keys[r][0] = v.key0 + r * WEYL_0, keys[r][1] = v.key1 + r * WEYL_1;
        const uint64_t product = uint64_t(PHILOX_M1) * v.realization;
        const uint64_t next = uint64_t(PHILOX_M0) * (high(product) ^ v.image_index ^ keys[0][0]);
        second_2 = v.units ^ keys[0][1];
        third_0 = low(product) ^ keys[1][0];
        third_2 = high(next) ^ keys[1][1];
        third_3 = low(next);
    }
};

inline uint64_t draws_of_word(const Philox &f, uint32_t units, int64_t word) {
    uint64_t bits = 0;
    for (int call = 0; call < 8; call++) {
        const uint64_t first = PHILOX_M0 * uint64_t(word * 8 + call);
        const uint64_t second = uint64_t(PHILOX_M1) * (high(first) ^ f.second_2);
        uint32_t c0 = high(second) ^ f.third_0, c1 = low(second), c2 = low(first) ^ f.third_2, c3 = f.third_3;
        for (int r = 2; r < HS_ROUNDS; r++) {
            const uint64_t p0 = uint64_t(PHILOX_M0) * c0, p1 = uint64_t(PHILOX_M1) * c2;
            c0 = high(p1) ^ c1 ^ f.keys[r][0], c1 = low(p1), c2 = high(p0) ^ c3 ^ f.keys[r][1], c3 = low(p0);
        }
        const uint32_t words[4] = {c0, c1, c2, c3};
        for (int i = 0; i < 8; i++)
            bits |= uint64_t((words[i / 2] >> 16 * (i % 2) & 0xFFFF) < units) << (call * 8 + i);
    }
    return bits;
}

inline void draws_baseline(uint64_t *out, int64_t first, int64_t count, const hs_variant &v) {
    const Philox f(v);
    for (int64_t i = 0; i < count; i++) out[i] = draws_of_word(f, v.units, first + i);
}

/* The last round leaves words 0 and 1, and words 2 and 3, in one lane each: the product with its halves swapped holds
 * both, and the xor touches the low half only. */
HS_TARGET_AVX2 inline __m256i last_words(__m256i product, __m256i other, __m256i key) {
    const __m256i swapped = _mm256_shuffle_epi32(product, 0xB1), low_half = _mm256_set1_epi64x(0xFFFFFFFF);
    return _mm256_xor_si256(swapped, _mm256_and_si256(_mm256_xor_si256(other, key), low_half));
}

HS_TARGET_AVX2 inline uint32_t draws_of_product(__m256i first, const Philox &f, __m256i limit) {
    const __m256i m0 = _mm256_set1_epi64x(PHILOX_M0), m1 = _mm256_set1_epi64x(PHILOX_M1);
    const __m256i c = _mm256_xor_si256(_mm256_srli_epi64(first, 32), _mm256_set1_epi64x(f.second_2));
    __m256i c1 = _mm256_mul_epu32(c, m1), c3 = _mm256_set1_epi64x(f.third_3);
    __m256i c0 = _mm256_xor_si256(_mm256_srli_epi64(c1, 32), _mm256_set1_epi64x(f.third_0));
    __m256i c2 = _mm256_xor_si256(first, _mm256_set1_epi64x(f.third_2));
#pragma GCC unroll 4
    for (int r = 2; r < HS_ROUNDS - 1; r++) {
        const __m256i p0 = _mm256_mul_epu32(c0, m0), p1 = _mm256_mul_epu32(c2, m1);
        const __m256i k0 = _mm256_set1_epi64x(f.keys[r][0]), k1 = _mm256_set1_epi64x(f.keys[r][1]);
        c0 = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(c1, k0));
        c2 = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(c3, k1));
        c1 = p1, c3 = p0;
    }
    const uint32_t *keys = f.keys[HS_ROUNDS - 1];
    const __m256i a = last_words(_mm256_mul_epu32(c2, m1), c1, _mm256_set1_epi64x(keys[0]));
    const __m256i b = last_words(_mm256_mul_epu32(c0, m0), c3, _mm256_set1_epi64x(keys[1]));
    const __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
    const __m256i in_even = _mm256_cmpeq_epi16(_mm256_min_epu16(even, limit), even);
    const __m256i in_odd = _mm256_cmpeq_epi16(_mm256_min_epu16(odd, limit), odd);
    return _mm256_movemask_epi8(_mm256_packs_epi16(in_even, in_odd));
}

/* Lanes are compared with units - 1, which fits 16 bits; 0 units are left to the caller. */
HS_TARGET_AVX2 inline void draws_avx2(uint64_t *out, int64_t first, int64_t count, const hs_variant &v) {
    const Philox f(v);
    const __m256i limit = _mm256_set1_epi16(short(v.units - 1));
    const __m256i calls = _mm256_add_epi64(_mm256_set1_epi64x(first * 8), _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i step = _mm256_set1_epi64x(4 * int64_t(PHILOX_M0));
    __m256i product = _mm256_mul_epu32(calls, _mm256_set1_epi64x(PHILOX_M0));
    for (int64_t i = 0; i < count; i++) {
        const __m256i next = _mm256_add_epi64(product, step);
        out[i] = draws_of_product(product, f, limit) | uint64_t(draws_of_product(next, f, limit)) << 32;
        product = _mm256_add_epi64(next, step);
    }
}

HS_TARGET_AVX512 inline __m512i xor3(__m512i a, __m512i b, __m512i c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

HS_TARGET_AVX512 inline __m512i last_words(__m512i product, __m512i other, __m512i key) {
    return _mm512_mask_ternarylogic_epi32(_mm512_ror_epi64(product, 32), 0x5555, other, key, 0x96);
}

HS_TARGET_AVX512 inline uint64_t draws_of_product(__m512i first, const Philox &f, __m512i limit) {
    const __m512i m0 = _mm512_set1_epi64(PHILOX_M0), m1 = _mm512_set1_epi64(PHILOX_M1);
    const __m512i c = _mm512_xor_si512(_mm512_srli_epi64(first, 32), _mm512_set1_epi64(f.second_2));
    __m512i c1 = _mm512_mul_epu32(c, m1), c3 = _mm512_set1_epi64(f.third_3);
    __m512i c0 = _mm512_xor_si512(_mm512_srli_epi64(c1, 32), _mm512_set1_epi64(f.third_0));
    __m512i c2 = _mm512_xor_si512(first, _mm512_set1_epi64(f.third_2));
#pragma GCC unroll 4
    for (int r = 2; r < HS_ROUNDS - 1; r++) {
        const __m512i p0 = _mm512_mul_epu32(c0, m0), p1 = _mm512_mul_epu32(c2, m1);
        c0 = xor3(_mm512_srli_epi64(p1, 32), c1, _mm512_set1_epi64(f.keys[r][0]));
        c2 = xor3(_mm512_srli_epi64(p0, 32), c3, _mm512_set1_epi64(f.keys[r][1]));
        c1 = p1, c3 = p0;
    }
    const uint32_t *keys = f.keys[HS_ROUNDS - 1];
    const __m512i a = last_words(_mm512_mul_epu32(c2, m1), c1, _mm512_set1_epi64(keys[0]));
    const __m512i b = last_words(_mm512_mul_epu32(c0, m0), c3, _mm512_set1_epi64(keys[1]));
    // The calls lie in the order 0 4 1 5 2 6 3 7, so the unpacked halves hold the draws of calls 0-3 and 4-7 in order.
    const __mmask32 early = _mm512_cmple_epu16_mask(_mm512_unpacklo_epi64(a, b), limit);
    const __mmask32 late = _mm512_cmple_epu16_mask(_mm512_unpackhi_epi64(a, b), limit);
    return _cvtmask64_u64(_mm512_kunpackd(late, early));
}

/* The words of a variant one after the other; units must be 1 ... 65535. */
struct Draws512 {
    Philox f;
    __m512i limit, step, product;

    HS_TARGET_AVX512 inline Draws512(const hs_variant &v, int64_t first) : f(v) {
        const __m512i calls =
            _mm512_add_epi64(_mm512_set1_epi64(first * 8), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
        limit = _mm512_set1_epi16(short(v.units - 1));
        step = _mm512_set1_epi64(8 * int64_t(PHILOX_M0));
        product = _mm512_mul_epu32(calls, _mm512_set1_epi64(PHILOX_M0));
    }
    HS_TARGET_AVX512 inline uint64_t next() {
        const uint64_t bits = draws_of_product(product, f, limit);
        product = _mm512_add_epi64(product, step);
        return bits;
    }
};

HS_TARGET_AVX512 inline void draws_avx512(uint64_t *out, int64_t first, int64_t count, const hs_variant &v) {
    Draws512 draws(v, first);
    for (int64_t i = 0; i < count; i++) out[i] = draws.next();
}

/* Words first ... first + count - 1 of the draws of a variant. */
inline void draw_words(int level, uint64_t *out, int64_t first, int64_t count, const hs_variant &v) {
    if (v.units == 0 || v.units >= ALL_DRAWS) {
        std::fill_n(out, count, v.units ? ~uint64_t(0) : 0);
        return;
    }
    constexpr decltype(&draws_baseline) bodies[] = {draws_baseline, draws_avx2, draws_avx512};
    bodies[level](out, first, count, v);
}

#endif
