"""Open the two native libraries next to this file and call them; csrc/hardsample.h documents each function.

A library that is missing, broken or of another ABI is not an error: its backends report why they cannot run.
"""

import os
from collections.abc import Sequence
from ctypes import CDLL, POINTER, c_char_p, c_float, c_int, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .keys import KINDS
from .variants import LAYOUTS

ABI = 1
LEVELS = ("baseline", "avx2", "avx512")
DTYPES = {torch.uint8: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
FLOATS = tuple(dtype for dtype in DTYPES if dtype.is_floating_point)
MAX_CHANNELS = 16

_int64s = POINTER(c_int64)
_MASK = [c_void_p, c_void_p, c_void_p, c_int64, POINTER(c_uint32), _int64s, c_int, c_int, c_int]
_MASS = [*[c_void_p] * 7, *[_int64s] * 3, *[c_int64] * 6, c_int, c_int, c_int64, c_float, c_int64, c_int64]

# The argument types of every C function; all return int except hs_cuda_error.
_CPU = {
    "hs_abi": [],
    "hs_cpu_level": [],
    "hs_mask_pixels": [*_MASK, c_int, c_int],
    "hs_broadcast": [c_void_p, c_void_p, c_int64, c_int64, c_int, c_int],
    "hs_attention_mass": [*_MASS, c_int, c_int],
}
_CUDA = {
    "hs_cuda_abi": [],
    "hs_cuda_error": [c_int],
    "hs_cuda_mask_pixels": [*_MASK, c_void_p],
    "hs_cuda_attention_mass": [*_MASS, c_void_p],
    "hs_cuda_emulate_mask_pixels": _MASK,
    "hs_cuda_emulate_attention_mass": _MASS,
}
_CPU_ERRORS = {-1: "an argument is out of range", -2: "out of memory"}

_owner = os.getpid()


class NativeError(RuntimeError):
    """A native function failed; the message is its own."""


@cache
def _open(name: str) -> CDLL | str:
    """Return a library with its argument types set, or the reason why there is none."""
    table, abi = (_CPU, "hs_abi") if name == "libhardsample" else (_CUDA, "hs_cuda_abi")
    path = Path(__file__).parent / f"{name}.so"
    if not path.exists():
        return f"{name}.so was not built (no compiler when hardsample was installed?)"
    try:
        library = CDLL(str(path))
        found_abi = getattr(library, abi)()
        if found_abi != ABI:
            return f"{name}.so has ABI {found_abi}, this is {ABI}: build it again (pip install -e .)"
        for function, types in table.items():
            getattr(library, function).argtypes = types
    except (OSError, AttributeError) as error:
        return f"{name}.so cannot be used ({error})"
    if table is _CUDA:
        library.hs_cuda_error.restype = c_char_p
    return library


def library(name: str) -> CDLL:
    """Return `libhardsample` or `libhardsample_cuda`.

    Raises:
        NativeError: it cannot be opened; the message says why.
    """
    opened = _open(name)
    if isinstance(opened, str):
        raise NativeError(opened)
    return opened


def cpu_level() -> int:
    """Return the best level of the CPU library here: 0 baseline (x86-64-v2), 1 AVX2, 2 AVX-512."""
    return int(library("libhardsample").hs_cpu_level())


def num_threads() -> int:
    """Return PyTorch's number of threads; 1 in a forked process, where GNU OpenMP would hang."""
    return torch.get_num_threads() if os.getpid() == _owner else 1


def why_not_cpu(tensor: Tensor) -> str | None:
    """Return why the CPU library cannot run on a tensor; None if it can."""
    if tensor.device.type != "cpu":
        return f"it runs on the CPU, and this is {tensor.device}"
    opened = _open("libhardsample")
    return opened if isinstance(opened, str) else _why_not_dtype(tensor)


def why_not_cuda(tensor: Tensor) -> str | None:
    """Return why the CUDA library cannot run on a tensor; None if it can."""
    if not tensor.is_cuda:
        return f"it runs on CUDA devices, and this is {tensor.device}"
    opened = _open("libhardsample_cuda")
    if isinstance(opened, str):
        return opened
    if torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return f"it needs compute capability 8.0 or higher, and {tensor.device} is older"
    return _why_not_dtype(tensor)


def _why_not_dtype(tensor: Tensor) -> str | None:
    return None if tensor.dtype in DTYPES else f"{tensor.dtype} is not one of uint8, float32, float16, bfloat16"


def mask_pixels_cpu(
    images: Tensor,
    variants: Tensor,
    fill: Sequence[float],
    kind: str,
    layout: str,
    geometry: Sequence[int],
    out: Tensor,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    """Run the op `hardsample::mask_pixels` in C++; `level` and `threads` are for tests and benchmarks."""
    native = library("libhardsample")
    arguments = _mask_arguments(images, variants.to(torch.uint32), fill, kind, layout, geometry, out)
    level = native.hs_cpu_level() if level is None else level
    _check(native.hs_mask_pixels(*arguments, threads or num_threads(), level))


def mask_pixels_cuda(
    images: Tensor,
    variants: Tensor,
    fill: Sequence[float],
    kind: str,
    layout: str,
    geometry: Sequence[int],
    out: Tensor,
) -> None:
    """Run the op `hardsample::mask_pixels` in CUDA, on the current stream."""
    native = library("libhardsample_cuda")
    table = variants.to(torch.int32).pin_memory().to(images.device, non_blocking=True)
    arguments = _mask_arguments(images, table, fill, kind, layout, geometry, out)
    with torch.cuda.device(images.device):
        _check_cuda(native, native.hs_cuda_mask_pixels(*arguments, torch.cuda.current_stream().cuda_stream))


def emulate_mask_pixels(
    images: Tensor,
    variants: Tensor,
    fill: Sequence[float],
    kind: str,
    layout: str,
    geometry: Sequence[int],
    out: Tensor,
) -> None:
    """Run the CUDA kernel's own code on CPU tensors, one thread after another: slow, for tests."""
    native = library("libhardsample_cuda")
    arguments = _mask_arguments(images, variants.to(torch.uint32), fill, kind, layout, geometry, out)
    _check_cuda(native, native.hs_cuda_emulate_mask_pixels(*arguments))


def broadcast_cpu(image: Tensor, out: Tensor, *, threads: int | None = None) -> None:
    """Copy the image to every out[v] with non-temporal stores: the lower bound for masking.

    Args:
        image: contiguous, on the CPU.
        out: (copies, *image), contiguous, of the same dtype; written.
        threads: PyTorch's number by default.
    """
    native = library("libhardsample")
    size = image.numel() * image.element_size()
    level = native.hs_cpu_level()
    _check(native.hs_broadcast(out.data_ptr(), image.data_ptr(), out.shape[0], size, threads or num_threads(), level))


def attention_mass_cpu(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> Tensor:
    """Run the op `hardsample::attention_mass` in C++; `level` and `threads` are for tests and benchmarks."""
    native = library("libhardsample")
    level = native.hs_cpu_level() if level is None else level
    with _MassCall(q, k, lse, columns, counts, mask, causal, query_offset, scale, row_start, row_stop) as call:
        _check(native.hs_attention_mass(*call.arguments, threads or num_threads(), level))
    return call.mass


def attention_mass_cuda(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
) -> Tensor:
    """Run the op `hardsample::attention_mass` in CUDA, on the current stream."""
    native = library("libhardsample_cuda")
    with (
        torch.cuda.device(q.device),
        _MassCall(q, k, lse, columns, counts, mask, causal, query_offset, scale, row_start, row_stop) as call,
    ):
        stream = torch.cuda.current_stream().cuda_stream
        _check_cuda(native, native.hs_cuda_attention_mass(*call.arguments, stream))
    return call.mass


def emulate_attention_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
) -> Tensor:
    """Run the CUDA kernel's own code on CPU tensors, one thread after another: slow, for tests."""
    native = library("libhardsample_cuda")
    with _MassCall(q, k, lse, columns, counts, mask, causal, query_offset, scale, row_start, row_stop) as call:
        _check_cuda(native, native.hs_cuda_emulate_attention_mass(*call.arguments))
    return call.mass


def _mask_arguments(
    images: Tensor,
    table: Tensor,
    fill: Sequence[float],
    kind: str,
    layout: str,
    geometry: Sequence[int],
    out: Tensor,
) -> list[object]:
    if len(fill) > MAX_CHANNELS:
        raise NativeError(
            f"images have {len(fill)} channels, native masking takes {MAX_CHANNELS}: use backend reference"
        )
    table = table.contiguous()
    values = torch.tensor(fill, dtype=torch.float32).to(images.dtype).view(torch.uint8)
    width = images.element_size()
    bits = [int.from_bytes(bytes(values[i * width : (i + 1) * width].tolist()), "little") for i in range(len(fill))]
    pointers = (out.data_ptr(), images.data_ptr(), _held(table))
    sizes = (table.shape[0], (c_uint32 * len(bits))(*bits), (c_int64 * 6)(*geometry))
    return [*pointers, *sizes, DTYPES[images.dtype], KINDS.index(kind), LAYOUTS.index(layout)]


class _Held(c_void_p):
    """A pointer that keeps the tensor it points into alive."""

    tensor: Tensor


def _held(tensor: Tensor) -> _Held:
    pointer = _Held(tensor.data_ptr())
    pointer.tensor = tensor
    return pointer


class _MassCall:
    """The C arguments of an attention-mass call; holds the tensors they point into while it is open."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        columns: Tensor,
        counts: Tensor,
        mask: Tensor | None,
        causal: bool,
        query_offset: int,
        scale: float,
        row_start: int,
        row_stop: int,
    ) -> None:
        if q.stride(-1) != 1:
            q = q.contiguous()
        if k.stride(-1) != 1:
            k = k.contiguous()
        batch, heads, queries, dim = q.shape
        lse = lse.float().contiguous()
        columns, counts = columns.int().contiguous(), counts.int().contiguous()
        self.mass = torch.empty((batch, heads, row_stop - row_start, 2), dtype=torch.float32, device=q.device)
        strides = [0, 0, 0, 0]
        if mask is not None:
            strides = [0 if mask.shape[i] == 1 and i < 2 else mask.stride(i) for i in range(4)]
        self._held = (q, k, lse, columns, counts, mask)
        pointers = [tensor.data_ptr() for tensor in (self.mass, q, k, lse, columns, counts)]
        self.arguments = [
            *pointers,
            None if mask is None else mask.data_ptr(),
            (c_int64 * 3)(*q.stride()[:3]),
            (c_int64 * 3)(*k.stride()[:3]),
            (c_int64 * 4)(*strides),
            *(batch, heads, k.shape[1], queries, k.shape[2], dim),
            *(DTYPES[q.dtype], int(causal), query_offset, scale, row_start, row_stop),
        ]

    def __enter__(self) -> "_MassCall":
        return self

    def __exit__(self, *error: object) -> None:
        del self._held


def _check(code: int) -> None:
    if code:
        raise NativeError(f"libhardsample: {_CPU_ERRORS.get(code, f'error {code}')}")


def _check_cuda(native: CDLL, code: int) -> None:
    if code:
        raise NativeError(f"libhardsample_cuda: {native.hs_cuda_error(code).decode()} (CUDA error {code})")
