"""Masks on images (`source` space) and on what a model's processor made of them (`model` space).

The masks themselves are defined in `hardsample.kernels.reference`. Here they are put on PIL images and on processor
outputs, and processors are rejected whose output has no single masked space.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from hardsample.errors import HardsampleError
from hardsample.kernels.keys import Key
from hardsample.kernels.ops import mask_pixels

BLACK = (0, 0, 0)

_STACKED_BYTES = 3 * 512 * 512  # up to here a copy costs less than a call, so images of one size share a call

# Settings of image processors under which one image becomes several views or tiles.
_VIEW_SETTINGS = (
    "do_image_splitting",
    "crop_to_patches",
    "do_pan_and_scan",
    "split_image",
    "image_grid_pinpoints",
    "max_image_tiles",
    "max_num_tiles",
    "dynamic_hd",
)
_VIEW_OUTPUTS = ("aspect_ratios", "aspect_ratio_ids", "num_tiles", "image_num_crops")
_PADDING_OUTPUTS = ("pixel_attention_mask", "pixel_mask", "image_attention_mask")
_PATCHIFIED = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")


class MaskSpaceError(HardsampleError, ValueError):
    """The processor's output cannot be masked in `model` space."""


class MaskDraw(NamedTuple):
    """Which mask an image gets: λ (0 … 1), realization k, key of the sample, index of the image in its record."""

    ratio: float
    realization: int
    key: Key
    image_index: int = 0


def mask_image(
    image: Image.Image,
    ratio: float,
    realization: int,
    key: Key,
    *,
    image_index: int = 0,
    kind: str = "pixel",
    fill: tuple[int, int, int] = BLACK,
) -> Image.Image:
    """Mask an image's own pixels (`source` space).

    Args:
        image: image of mode RGB; not changed.
        ratio: λ, share of masked pixels, 0 … 1.
        realization: k, number of the mask at this ratio, 0 … 2³²−1.
        key: the sample's Philox key, see `hardsample.kernels.reference.mask_key`.
        image_index: index of the image in its record.
        kind: `pixel`, `patch` or `rectangle`.
        fill: colour of masked pixels, 0 … 255 a channel.

    Returns:
        The masked copy, mode RGB, same size.

    Raises:
        ValueError: the image is not RGB, or an argument is out of range.
    """
    if image.mode != "RGB":
        raise ValueError(f"image has mode {image.mode}, must be RGB: load it through hardsample.data.loading")
    pixels = torch.from_numpy(np.array(image))
    masked = mask_pixels(pixels, [ratio], [realization], [key], fill=fill, kind=kind, image_index=image_index)
    return Image.fromarray(masked[0].numpy())


def mask_images(
    images: Sequence[UInt8[Tensor, "height width 3"]],
    masks: Sequence[MaskDraw],
    *,
    kind: str = "pixel",
    fill: tuple[int, int, int] = BLACK,
    buffer: UInt8[Tensor, " values"] | None = None,
) -> list[UInt8[Tensor, "height width 3"]]:
    """Mask the images of a batch (`source` space), all masks of an image in one pass.

    Args:
        images: one for each mask, on one device; the same tensor where an image gets several masks.
        masks: the mask of each image.
        kind: `pixel`, `patch` or `rectangle`.
        fill: colour of masked pixels, 0 … 255 a channel.
        buffer: memory for the result, of at least as many values as the images have together.

    Returns:
        The masked images, in order; parts of `buffer` if it was given.

    Raises:
        ValueError: an argument is out of range.
    """
    if buffer is None:
        device = images[0].device if images else None
        buffer = torch.empty(sum(image.numel() for image in images), dtype=torch.uint8, device=device)
    passes: dict[object, list[int]] = {}
    for index, image in enumerate(images):
        small = image.numel() <= _STACKED_BYTES
        passes.setdefault(image.shape if small else id(image), []).append(index)
    masked: dict[int, Tensor] = {}
    used = 0
    for members in passes.values():
        image = images[members[0]]
        out = buffer[used : used + len(members) * image.numel()].view(len(members), *image.shape)
        used += out.numel()
        several = len({id(images[index]) for index in members}) > 1
        ratios, realizations, keys, indices = zip(*(masks[index] for index in members), strict=True)
        mask_pixels(
            torch.stack([images[index] for index in members]) if several else image,
            ratios,
            realizations,
            keys,
            fill=fill,
            kind=kind,
            image_index=indices,
            out=out,
        )
        masked |= zip(members, out, strict=True)
    return [masked[index] for index in range(len(images))]


def mask_model_inputs(
    inputs: Mapping[str, Any],
    masks: Sequence[MaskDraw],
    processor: Any,
    *,
    kind: str = "pixel",
    fill: tuple[int, int, int] = BLACK,
) -> dict[str, Any]:
    """Mask the preprocessed images of a batch (`model` space).

    Args:
        inputs: a processor's output. `pixel_values` is (images, C, H, W), (images, 1, C, H, W), or, from the Qwen-VL
            processors, (patches, C·T·p·p) with `image_grid_thw` (images, 3).
        masks: the mask of each image, in the order of the batch.
        processor: the processor that made `inputs`, or its image processor; its mean, std and rescaling give the fill
            value.
        kind: `pixel`, `patch` or `rectangle`.
        fill: colour of masked pixels before normalization, 0 … 255 a channel.

    Returns:
        A new dict with `pixel_values` replaced, all else shared with `inputs`.

    Raises:
        MaskSpaceError: the output has several views or tiles of an image, padding, or an unknown layout.
        ValueError: a mask is out of range.
    """
    outputs = dict(inputs)
    if not masks and inputs.get("pixel_values") is None:
        return outputs
    check_model_space(processor, inputs, len(masks))
    pixels: Tensor = inputs["pixel_values"]
    values = model_fill(processor, fill)
    ratios, realizations, keys, indices = zip(*masks, strict=True)
    if "image_grid_thw" not in inputs:
        images = pixels.reshape(len(masks), *pixels.shape[-3:])
        masked = mask_pixels(
            images, ratios, realizations, keys, fill=values, kind=kind, layout="chw", image_index=indices
        )
        outputs["pixel_values"] = masked.view(pixels.shape)
        return outputs

    image_processor = _image_processor(processor)
    grids: list[list[int]] = inputs["image_grid_thw"].tolist()
    masked = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    start = 0
    for mask, grid in zip(masks, grids, strict=True):
        stop = start + grid[1] * grid[2]
        mask_pixels(
            pixels[start:stop],
            [mask.ratio],
            [mask.realization],
            [mask.key],
            fill=values,
            kind=kind,
            layout="patches",
            image_index=mask.image_index,
            out=masked[start:stop].unsqueeze(0),
            grid_thw=grid,
            patch_size=image_processor.patch_size,
            merge_size=image_processor.merge_size,
            temporal_patch_size=image_processor.temporal_patch_size,
        )
        start = stop
    outputs["pixel_values"] = masked
    return outputs


def check_model_space(processor: Any, inputs: Mapping[str, Any], num_images: int) -> None:
    """Reject what cannot be masked in `model` space: anything but one unpadded view of each image.

    Padding is rejected because the masked space, and so every mask, would depend on the other images of the batch.

    Args:
        processor: the processor that made `inputs`, or its image processor.
        inputs: its output.
        num_images: number of images in the batch.

    Raises:
        MaskSpaceError: names what is in the way, and says that `--mask-space source` takes every processor.
    """

    def reject(reason: str) -> NoReturn:
        raise MaskSpaceError(f"mask space `model` needs one view of each image, but {reason}: use --mask-space source")

    image_processor = _image_processor(processor)
    name = type(image_processor).__name__
    call_defaults = getattr(processor, "images_kwargs", None)
    for setting in _VIEW_SETTINGS:
        value = getattr(image_processor, setting, None)
        if isinstance(call_defaults, Mapping):
            value = call_defaults.get(setting, value)
        if value is True or (value and value != 1):
            reject(f"{name} makes several ({setting} = {_short(value)})")
    for output in _VIEW_OUTPUTS:
        if output in inputs:
            reject(f"{name} makes several (its output has {output})")
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor):
        reject(f"{name} gives no tensor pixel_values (keys: {', '.join(inputs)})")
    shape = tuple(pixels.shape)

    if "image_grid_thw" in inputs:
        grids = inputs["image_grid_thw"].tolist()
        if name not in _PATCHIFIED:
            reject(f"the order of patches of {name} is not known (known: {', '.join(_PATCHIFIED)})")
        if len(grids) != num_images or any(grid[0] != 1 for grid in grids):
            reject(f"image_grid_thw {_short(grids)} is not one still image for each of {num_images} images")
        if shape[0] != sum(grid[1] * grid[2] for grid in grids):
            reject(f"pixel_values has {shape[0]} patches for image_grid_thw {_short(grids)}")
        return
    if len(shape) not in (4, 5) or shape[0] != num_images or (len(shape) == 5 and shape[1] != 1) or shape[-3] != 3:
        reject(f"pixel_values of {name} has shape {shape} for {num_images} images, not (images, 3, height, width)")
    for output in _PADDING_OUTPUTS:
        if output in inputs and not bool(torch.as_tensor(inputs[output]).all()):
            reject(f"{name} padded the images to a common size ({output})")
    sizes = torch.as_tensor(inputs.get("image_sizes", ())).reshape(-1, 2).tolist()
    if any(tuple(size) != shape[-2:] for size in sizes):
        reject(f"{name} padded the images to {shape[-2:]} (image_sizes {_short(sizes)})")


def model_fill(processor: Any, fill: tuple[int, int, int] = BLACK) -> tuple[float, ...]:
    """Convert a colour to the unit of `pixel_values`: (colour · rescale − mean) / std for each channel.

    Args:
        processor: a processor or image processor of transformers.
        fill: colour, 0 … 255 a channel.

    Returns:
        One value a channel, in the processor's output unit.
    """
    image_processor = _image_processor(processor)
    scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    values = [scale * value for value in fill]
    if not image_processor.do_normalize:
        return tuple(values)
    mean, std = (
        [setting] * len(values) if isinstance(setting, (int, float)) else list(setting)
        for setting in (image_processor.image_mean, image_processor.image_std)
    )
    return tuple((v - m) / s for v, m, s in zip(values, mean, std, strict=True))


def _image_processor(processor: Any) -> Any:
    """Return a processor's image processor; an image processor is returned as it is."""
    return getattr(processor, "image_processor", processor)


def _short(value: object) -> str:
    """Shorten a value for an error message."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
