"""Tile sizes, warps and pipeline stages of the Triton attention kernels, for each dtype, head dim and device.

Chosen from the registers, spilled bytes and shared memory that the compiler reports (bench/compile.py writes the
table); the output and the scores of a tile of 128 rows by 64 keys just fit in 8 warps at head dim 128.
"""

from typing import NamedTuple

MAX_DIM = 256
"""Largest head dim that the kernels support."""


class Tiles(NamedTuple):
    """Rows and keys of a tile, warps of a program, stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def fused_tiles(item_size: int, head_dim: int, masked: bool, capability: tuple[int, int]) -> Tiles:
    """Return the tiles of the kernel `attention_with_mass`.

    Args:
        item_size: bytes of a value: 2 or 4.
        head_dim: D, at most 256.
        masked: whether there is a mask.
        capability: of the device, (9, 0) for sm_90.

    Raises:
        ValueError: D is too large.
    """
    _check_dim(head_dim)
    if item_size == 4:  # scalar arithmetic: exact fp32 has no matrix units
        return Tiles(64, 32, 8, 2) if head_dim <= 64 else Tiles(32, 16, 8, 2)
    if _operands_in_shared_memory(capability):
        return Tiles(128, 64, 8, 3) if head_dim <= 128 else Tiles(128, 32, 8, 2)
    if head_dim > 128:
        return Tiles(64, 32, 8, 2)
    if 64 < head_dim < 128:  # the bounds check of D needs registers too
        return Tiles(128, 32, 8, 3)
    return Tiles(128, 64, 8, 2 if masked else 3)


def mass_tiles(item_size: int, head_dim: int, masked: bool, capability: tuple[int, int]) -> Tiles:
    """Return the tiles of the kernel `mass_of_columns`; arguments and errors are those of `fused_tiles`."""
    _check_dim(head_dim)
    if item_size == 4:
        return Tiles(64, 32 if head_dim <= 64 else 16, 8, 2)
    narrow = masked or (head_dim > 128 and not _operands_in_shared_memory(capability))
    return Tiles(128, 32 if narrow else 64, 8, 3 if head_dim <= 128 else 2)


def _operands_in_shared_memory(capability: tuple[int, int]) -> bool:
    """Return whether matrix units read operands from shared memory (227 KiB on Hopper and Blackwell), not registers."""
    return capability[0] in (9, 10)


def _check_dim(head_dim: int) -> None:
    if head_dim > MAX_DIM:
        raise ValueError(f"head dim is {head_dim}, the Triton kernels support at most {MAX_DIM}: use backend reference")
