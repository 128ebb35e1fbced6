"""The generator behind every mask and every draw: Philox words, keys from seed and id, ratios as integers. No torch.

A mask is a function of (seed, sample id, image index, realization, ratio) and of nothing else; `reference.py` defines
how its bits become masks.
"""

from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Any

KINDS = ("pixel", "patch", "rectangle")
ROUNDS = 7
"""Philox rounds of every stream of hardsample; passes BigCrush according to its authors, whose default is 10."""
PATCH_SIZE = 14
"""Side of the squares of kind `patch`, in pixels of the masked space."""
FULL_RATIO = 65536
"""The mask ratio 1.0 in the generator's unit."""
RECTANGLE_DRAW = 2**32 - 1
"""The draw that places a rectangle; no image has that many pixels."""

_LOW32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Key = tuple[int, int]
Word = Any
"""32-bit values: an int, an int64 tensor or a NumPy uint64 array."""


def philox(counter: Sequence[Word], key: Sequence[Word], rounds: int = ROUNDS) -> tuple[Word, Word, Word, Word]:
    """Compute Philox4x32: four uniform 32-bit words for each counter.

    One round maps (c0, c1, c2, c3) to (hi(M1·c2) ^ c1 ^ k0, lo(M1·c2), hi(M0·c0) ^ c3 ^ k1, lo(M0·c0)); the key
    grows by a Weyl constant between rounds (Salmon et al., 2011).

    Args:
        counter: four words with values in 0 … 2³²−1, each an int, an int64 tensor or a uint64 array; shapes that
            broadcast.
        key: two words, as above.
        rounds: number of rounds.

    Returns:
        Four words in 0 … 2³²−1, in the broadcast shape (ints where counter and key were ints).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The product of two 32-bit values may wrap int64's sign; the masks below keep exactly its unsigned halves.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW32) ^ c1 ^ k0,
            p1 & _LOW32,
            ((p0 >> 32) & _LOW32) ^ c3 ^ k1,
            p0 & _LOW32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW32, (k1 + _WEYL[1]) & _LOW32
    return c0, c1, c2, c3


def mask_key(seed: int, sample_id: str, purpose: bytes = b"") -> Key:
    """Return the Philox key of one sample.

    Args:
        seed: run seed, 0 … 2⁶⁴−1.
        sample_id: the sample's id, unique in its dataset.
        purpose: at most 16 bytes, BLAKE2b's `person`: streams with different purposes are independent. Empty for masks.

    Returns:
        (low 32 bits, high 32 bits) of BLAKE2b-64(seed as 8 bytes little-endian ‖ id in UTF-8).

    Raises:
        ValueError: seed is out of range, or purpose is too long.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, must be in 0 … 2**64 - 1: choose another seed")
    data = seed.to_bytes(8, "little") + sample_id.encode("utf-8")
    digest = int.from_bytes(blake2b(data, digest_size=8, person=purpose).digest(), "little")
    return digest & _LOW32, digest >> 32


def ratio_units(ratio: float | Fraction) -> int:
    """Convert a mask ratio to the generator's integer unit, in which ratios are also compared.

    Args:
        ratio: λ, share of masked pixels, 0 … 1.

    Returns:
        round(λ · 65536), in 0 … 65536 (exact product, ties to even).

    Raises:
        ValueError: the ratio is not a number from 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"mask ratio is {ratio}, must be from 0 to 1: give the share of pixels to mask, not per cent")
    return round(Fraction(ratio) * FULL_RATIO)
