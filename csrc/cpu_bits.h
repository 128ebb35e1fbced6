/* Strings of bits in 64-bit words, low bit first: reading at any place, and writing one piece after the other.
 *
 * Words are read and written whole. A read that straddles two words which were just stored would wait until both have
 * left the store queue, behind all non-temporal stores before them.
 */
#ifndef HARDSAMPLE_CPU_BITS_H
#define HARDSAMPLE_CPU_BITS_H

#include <algorithm>
#include <cstdint>

inline uint64_t low_bits(uint64_t count) { return count < 64 ? (uint64_t(1) << count) - 1 : ~uint64_t(0); }

/* The 64 bits from `bit` on; reads the word after them too. */
inline uint64_t bits_at(const uint64_t *words, uint64_t bit) {
    words += bit / 64;
    return words[0] >> bit % 64 | words[1] << 1 << (~bit % 64);
}

class BitWriter {
  public:
    explicit BitWriter(uint64_t *words) : words(words) {}

    /* Appends the low `count` <= 64 bits of value; the others are zeros. */
    void put(uint64_t value, uint64_t count) {
        pending |= value << used;
        if (used + count >= 64) {
            *words++ = pending;
            pending = used ? value >> (64 - used) : 0;
        }
        used = (used + count) % 64;
    }

    void put_run(bool value, int64_t count) {
        for (; count > 0; count -= 64) put(value ? low_bits(count) : 0, std::min<int64_t>(count, 64));
    }

    void put_copy(const uint64_t *source, uint64_t bit, int64_t count) {
        for (; count > 0; count -= 64, bit += 64)
            put(bits_at(source, bit) & low_bits(count), std::min<int64_t>(count, 64));
    }

    /* Appends `count` bits of the endless string that repeats the first `period` bits of source, where 64 more of it
     * follow. The words do not depend on one another, which makes this faster than copies. */
    void put_cycle(const uint64_t *source, uint64_t period, int64_t count) {
        const int64_t first = std::min<int64_t>(64 - used, count);
        const uint64_t step = 64 % period;
        uint64_t place = first % period;
        put_copy(source, 0, first);
        for (count -= first; count >= 64; count -= 64) {
            *words++ = bits_at(source, place);
            place += step;
            if (place >= period) place -= period;
        }
        put_copy(source, place, count);
    }

    /* Stores the word that is begun, too; more may follow. Returns how many bits it holds. */
    int64_t flush() {
        if (used) *words = pending;
        return int64_t(used);
    }

    /* The number of whole words since `start`, to where the writer goes back; bits that are pending stay. */
    int64_t take(uint64_t *start) {
        const int64_t count = words - start;
        words = start;
        return count;
    }

  private:
    uint64_t *words, pending = 0, used = 0;
};

#endif
