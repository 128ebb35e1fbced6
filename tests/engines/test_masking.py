"""Masks on images and on the outputs of real image processors."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from hardsample.engines import masking
from hardsample.engines.masking import (
    MaskDraw,
    MaskSpaceError,
    check_model_space,
    mask_image,
    mask_images,
    mask_model_inputs,
    model_fill,
)
from hardsample.kernels.keys import KINDS, mask_key
from hardsample.kernels.reference import pixel_mask


def random_image(width, height, seed=0):
    """An image without a black pixel, so that masked ones can be told."""
    values = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (97, 131), (700, 601)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 1.0])
def test_image_masks_are_those_of_the_reference(height, width, ratio, kind):
    key, white = mask_key(1, "image"), Image.new("RGB", (width, height), "white")
    for realization, image_index in ((0, 0), (7, 1), (2**32 - 1, 2**32 - 1)):
        masked = np.array(mask_image(white, ratio, realization, key, image_index=image_index, kind=kind))
        reference = pixel_mask(height, width, ratio, realization, key, image_index, kind)
        np.testing.assert_array_equal((masked == 0).all(-1), reference.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_mask_image_fills_masked_pixels_and_keeps_the_others(kind):
    image, key = random_image(53, 37), mask_key(0, "a")
    before = np.array(image)
    masked = mask_image(image, 0.4, 3, key, image_index=1, kind=kind, fill=(9, 0, 200))
    mask = pixel_mask(37, 53, 0.4, 3, key, 1, kind).numpy()
    assert (masked.mode, masked.size) == ("RGB", image.size)
    np.testing.assert_array_equal(np.array(masked)[mask], np.tile(np.uint8([9, 0, 200]), (mask.sum(), 1)))
    np.testing.assert_array_equal(np.array(masked)[~mask], before[~mask])
    np.testing.assert_array_equal(np.array(image), before)


def test_mask_image_ends():
    image = random_image(20, 10)
    assert mask_image(image, 0.0, 0, (1, 2)).tobytes() == image.tobytes()
    assert not any(mask_image(image, 1.0, 0, (1, 2)).tobytes())


def test_mask_image_masks_the_share_it_was_asked_for():
    masked = np.array(mask_image(random_image(224, 224), 0.7, 0, mask_key(0, "share")))
    assert abs((masked == 0).all(-1).mean() - 0.7) < 5 * (0.7 * 0.3 / 224**2) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Image.new("L", (4, 4)), 0.5, 0, (0, 0)), "mode L"),
        ((Image.new("RGB", (4, 4)), 1.1, 0, (0, 0)), "mask ratio is 1.1"),
        ((Image.new("RGB", (4, 4)), 0.5, -1, (0, 0)), "realization is -1"),
    ],
)
def test_mask_image_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_image(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_images_is_masked_as_each_alone(kind):
    """Images of one size, the same image with several masks, a large one, and one of its own size, mixed up."""
    images = [random_image(*size, seed) for seed, size in enumerate([(30, 20), (30, 20), (900, 700), (20, 30)])]
    order = [0, 2, 1, 0, 3, 2, 0]
    tensors = [torch.from_numpy(np.array(image)) for image in images]
    masks = [MaskDraw(index / 6, index, mask_key(0, str(index)), index % 3) for index in range(len(order))]
    expected = [
        np.array(
            mask_image(images[i], m.ratio, m.realization, m.key, image_index=m.image_index, kind=kind, fill=(1, 2, 3))
        )
        for i, m in zip(order, masks, strict=True)
    ]
    buffer = torch.full((sum(values.size for values in expected) + 10,), 77, dtype=torch.uint8)
    for out in (None, buffer):
        given = [tensors[i] for i in order]
        masked = mask_images(given, masks, kind=kind, fill=(1, 2, 3), buffer=out)
        for actual, other in zip(masked, expected, strict=True):
            np.testing.assert_array_equal(actual.numpy(), other)
    inside = {actual.untyped_storage().data_ptr() for actual in masked}
    assert inside == {buffer.untyped_storage().data_ptr()}
    assert buffer[-10:].tolist() == [77] * 10
    for tensor, image in zip(tensors, images, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), np.array(image))
    assert mask_images([], []) == []


def test_images_share_passes(monkeypatch):
    """One pass for small images of one size, one for each large image, whatever their masks."""
    passes = []
    monkeypatch.setattr(masking, "mask_pixels", lambda images, ratios, *_, **__: passes.append((images, len(ratios))))
    small = [torch.zeros(20, 30, 3, dtype=torch.uint8) for _ in range(3)]
    large = [torch.zeros(700, 900, 3, dtype=torch.uint8) for _ in range(2)]
    given = [*small, large[0], small[0], large[1], large[0]]
    mask_images(given, [MaskDraw(0.5, 0, (0, 0))] * 7)
    assert [(tuple(images.shape), count) for images, count in passes] == [
        ((4, 20, 30, 3), 4),
        ((700, 900, 3), 2),
        ((700, 900, 3), 1),
    ]


MASKS = [
    MaskDraw(0.5, 0, mask_key(0, "a")),
    MaskDraw(0.5, 0, mask_key(0, "a"), image_index=1),
    MaskDraw(0.2, 4, mask_key(0, "b")),
    MaskDraw(0.0, 0, mask_key(0, "c")),
    MaskDraw(1.0, 0, mask_key(0, "c")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(do_resize=False, do_center_crop=False),
        Gemma3ImageProcessorPil(do_resize=False),
        Qwen2VLImageProcessorPil(),
        Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    ],
    ids=["clip", "gemma3", "qwen2-vl", "qwen3-vl"],
)
def test_model_space_equals_source_space_where_nothing_is_resized(processor, kind):
    """224 is a multiple of 28 and of 32, so the Qwen processors leave its size alone."""
    images = [random_image(224, 224, seed) for seed in range(len(MASKS))]
    inputs = {"input_ids": torch.arange(3), **processor(images, return_tensors="pt")}
    before = inputs["pixel_values"].clone()
    result = mask_model_inputs(inputs, MASKS, processor, kind=kind)
    expected = processor(
        [
            mask_image(image, mask.ratio, mask.realization, mask.key, image_index=mask.image_index, kind=kind)
            for image, mask in zip(images, MASKS, strict=True)
        ],
        return_tensors="pt",
    )
    torch.testing.assert_close(result["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)
    assert torch.equal(inputs["pixel_values"], before)
    assert result["input_ids"] is inputs["input_ids"]
    assert set(result) == set(inputs)


def test_model_space_of_images_of_different_sizes():
    """Patchified images lie behind one another; each is masked in its own space, whatever its neighbours are."""
    processor = Qwen2VLImageProcessorPil()
    images = [random_image(224, 112), random_image(84, 168), random_image(140, 140)]
    together = mask_model_inputs(processor(images, return_tensors="pt"), MASKS[:3], processor)["pixel_values"]
    alone = [
        mask_model_inputs(processor(image, return_tensors="pt"), [mask], processor)["pixel_values"]
        for image, mask in zip(images, MASKS[:3], strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert [part.shape[0] for part in alone] == [16 * 8, 6 * 12, 100]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_space_in_half_precision(dtype):
    processor = CLIPImageProcessorPil()
    pixels = processor(random_image(50, 60), return_tensors="pt")["pixel_values"].to(dtype)
    result = mask_model_inputs({"pixel_values": pixels}, MASKS[:1], processor)["pixel_values"]
    mask = pixel_mask(224, 224, 0.5, 0, mask_key(0, "a"))
    black = torch.tensor(model_fill(processor)).to(dtype)
    assert result.dtype == dtype
    assert torch.equal(result[0], torch.where(mask, black.view(3, 1, 1), pixels[0]))


def test_one_view_with_a_tile_dimension_is_masked():
    processor = Idefics2ImageProcessorPil()
    inputs = processor(Image.new("RGB", (378, 378), (255, 255, 255)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 3, 378, 378)
    result = mask_model_inputs(inputs, MASKS[:1], processor)["pixel_values"]
    mask = pixel_mask(378, 378, 0.5, 0, mask_key(0, "a"))
    torch.testing.assert_close(result[0, 0, 0] < 0, mask)


def test_text_only_batches_pass_through():
    assert mask_model_inputs({"input_ids": 1}, [], CLIPImageProcessorPil()) == {"input_ids": 1}


def test_fill_is_the_processors_black():
    for processor in (
        CLIPImageProcessorPil(),
        CLIPImageProcessorPil(do_normalize=False),
        CLIPImageProcessorPil(do_rescale=False, image_mean=[10, 20, 30], image_std=[2, 4, 5]),
    ):
        for colour in ((0, 0, 0), (255, 10, 99)):
            pixels = processor(Image.new("RGB", (224, 224), colour), return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(pixels[0, :, 100, 100].float(), torch.tensor(model_fill(processor, colour)))


@pytest.mark.parametrize(
    ("processor", "sizes", "message"),
    [
        (LlavaNextImageProcessorPil(), [(300, 200)], "image_grid_pinpoints"),
        (Idefics3ImageProcessorPil(), [(300, 200)], "do_image_splitting"),
        (GotOcr2ImageProcessorPil(crop_to_patches=True), [(300, 200)], "crop_to_patches"),
        (
            Gemma3ImageProcessorPil(
                do_pan_and_scan=True,
                pan_and_scan_min_crop_size=64,
                pan_and_scan_max_num_crops=4,
                pan_and_scan_min_ratio_to_activate=1.2,
            ),
            [(300, 200)],
            "do_pan_and_scan",
        ),
        (MllamaImageProcessorPil(), [(300, 200)], "max_image_tiles"),
        (MllamaImageProcessorPil(max_image_tiles=1), [(300, 200)], "aspect_ratio_ids"),
        (Siglip2ImageProcessorPil(), [(300, 200)], "has shape"),
        (Glm4vImageProcessorPil(), [(300, 200)], "order of patches of Glm4vImageProcessorPil is not known"),
        (PixtralImageProcessorPil(), [(300, 200), (64, 64)], "padded"),
        (Idefics2ImageProcessorPil(), [(300, 200), (300, 200)], "has shape"),
    ],
)
def test_processors_with_views_tiles_or_padding_are_refused(processor, sizes, message):
    inputs = processor([random_image(*size) for size in sizes], return_tensors="pt")
    with pytest.raises(MaskSpaceError, match=message) as error:
        check_model_space(processor, inputs, len(sizes))
    assert "--mask-space source" in str(error.value)
    with pytest.raises(MaskSpaceError, match=message):
        mask_model_inputs(inputs, MASKS[: len(sizes)], processor)


def test_padding_to_a_common_size_is_refused():
    processor = Idefics2ImageProcessorPil(do_resize=False)
    inputs = processor([[random_image(300, 200)], [random_image(200, 300)]], return_tensors="pt")
    assert inputs["pixel_values"].shape[:2] == (2, 1)
    with pytest.raises(MaskSpaceError, match="pixel_attention_mask"):
        check_model_space(processor, inputs, 2)


def test_tiles_that_only_the_call_asked_for_are_refused():
    processor = GotOcr2ImageProcessorPil()
    inputs = processor(random_image(900, 300), crop_to_patches=True, return_tensors="pt")
    with pytest.raises(MaskSpaceError, match="has shape"):
        check_model_space(processor, inputs, 1)


def test_tiles_by_a_processors_call_defaults_are_refused():
    """InternVL's processor asks its image processor for tiles in every call, though a small image makes only one."""

    class Processor:
        """A processor as far as masking looks at it."""

        image_processor = GotOcr2ImageProcessorPil()
        images_kwargs = {"crop_to_patches": True}  # noqa: RUF012

    inputs = Processor.image_processor(random_image(60, 60), return_tensors="pt")
    check_model_space(Processor.image_processor, inputs, 1)
    with pytest.raises(MaskSpaceError, match="crop_to_patches"):
        check_model_space(Processor(), inputs, 1)


@pytest.mark.parametrize(
    ("change", "num_images", "message"),
    [
        ({}, 2, "for each of 2 images"),
        ({"pixel_values": None}, 1, "no tensor pixel_values"),
        ({"image_grid_thw": torch.tensor([[1, 8, 8], [1, 8, 8]])}, 1, "not one still image"),
        ({"image_grid_thw": torch.tensor([[2, 8, 8]])}, 1, "not one still image"),
        ({"image_grid_thw": torch.tensor([[1, 8, 10]])}, 1, "has 64 patches"),
    ],
)
def test_outputs_that_do_not_fit_the_images_are_refused(change, num_images, message):
    processor = Qwen2VLImageProcessorPil()
    inputs = dict(processor(random_image(112, 112), return_tensors="pt"))
    with pytest.raises(MaskSpaceError, match=message):
        check_model_space(processor, inputs | change, num_images)
