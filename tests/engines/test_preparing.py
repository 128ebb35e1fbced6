"""Preparing batches: what the model is given is what one call on masked PIL images gave, however it was made."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature, LlavaProcessor
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hardsample.engines.image_workers import ImageWorkers, join_outputs
from hardsample.engines.masking import mask_image, model_fill
from hardsample.engines.preparing import ImageCache, Preparation, Seconds, preparing_thread
from hardsample.engines.protocol import Request
from hardsample.engines.transformers import TransformersEngine
from hardsample.kernels.keys import mask_key
from hardsample.scoring.config import ScoringConfig

SMALL = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
TILES = {"image_grid_pinpoints": [[40, 80], [80, 40], [80, 80]]}
PAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 3,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(**SMALL),
    "clip as it is": CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 48}),
    "gemma3": Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
    "gemma3 pan": Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, **PAN),
    "llava-next": LlavaNextImageProcessorPil(**SMALL, **TILES),
    "qwen2-vl": Qwen2VLImageProcessorPil(),
    "pixtral": PixtralImageProcessorPil(),
    "idefics2": Idefics2ImageProcessorPil(size={"shortest_edge": 30, "longest_edge": 80}),
    "idefics3": Idefics3ImageProcessorPil(size={"longest_edge": 80}, max_image_size={"longest_edge": 40}),
    "mllama": MllamaImageProcessorPil(size={"height": 32, "width": 32}),
    "aria": AriaImageProcessorPil(),
}
SIZES = {
    "one size": [(60, 40)] * 5,
    "several sizes": [(60, 40), (40, 60), (90, 33), (60, 40), (50, 50)],
    "wide and tall": [(90, 31), (31, 90), (90, 31), (31, 90)],
    "thin": [(60, 3), (3, 60), (3, 3), (40, 4), (1, 1), (60, 1)],
}


def image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_tensors(images):
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]


def equal(actual, expected):
    assert set(actual) == set(expected)
    for name in actual:
        if isinstance(actual[name], torch.Tensor):
            assert actual[name].dtype == expected[name].dtype
            assert torch.equal(actual[name], expected[name]), name
        else:
            assert repr(actual[name]) == repr(expected[name]), name
    return True


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_tensors_and_workers_give_what_one_call_on_images_gives(name, sizes):
    """Every batch three times, since the workers are tried on the first and trusted on the next."""
    inner = PROCESSORS[name]
    workers = ImageWorkers(inner, 3, worth_pixels=0)
    for nested in (False, True):
        for seed in range(3):
            images = [image(*size, seed) for size in SIZES[sizes]]
            tensors = as_tensors(images)
            if nested:
                images, tensors = [[each] for each in images], [[each] for each in tensors]
            try:
                expected = inner(images, return_tensors="pt")
            except (ValueError, ZeroDivisionError) as error:  # of the size, which it refuses in either form
                with pytest.raises(type(error)):
                    workers(tensors, return_tensors="pt")
                continue
            assert equal(inner(tensors, return_tensors="pt"), expected)
            assert equal(workers(tensors, return_tensors="pt"), expected)


@pytest.mark.parametrize(
    ("name", "sizes", "shared"),
    [
        ("clip", "one size", True),
        ("clip", "several sizes", True),
        ("gemma3", "several sizes", True),
        ("llava-next", "several sizes", True),
        ("llava-next", "wide and tall", True),
        ("pixtral", "several sizes", True),
        ("qwen2-vl", "several sizes", True),
        ("idefics2", "several sizes", True),
        ("aria", "one size", False),
    ],
)
def test_which_processors_are_shared_out(name, sizes, shared):
    workers = ImageWorkers(PROCESSORS[name], 2, worth_pixels=0)
    for seed in range(4):
        workers([[tensor] for tensor in as_tensors(image(*size, seed) for size in SIZES[sizes])], return_tensors="pt")
    assert (workers.shared_out > 0) is shared


class Stub:
    """An image processor that gives one tensor, made from all images of the call."""

    def __init__(self, make, backend="pil"):
        self.make, self.backend, self.calls = make, backend, []

    def fetch_images(self, images):
        return images

    def __call__(self, images, return_tensors=None):
        flat = [image for item in images for image in (item if isinstance(item, list) else [item])]
        self.calls.append(len(flat))
        return BatchFeature({"pixel_values": self.make(flat)})


@pytest.mark.parametrize(
    "make",
    [
        lambda flat: torch.arange(len(flat)),
        lambda flat: torch.stack(flat) + len(flat),
        lambda flat: torch.stack(flat)[None],
        lambda flat: torch.cat(flat, -1),
        lambda flat: torch.tensor(len(flat)),
        lambda flat: len(flat),
    ],
    ids=["numbers them", "counts them", "one row for all", "packs them", "a number", "an integer"],
)
def test_a_processor_whose_calls_cannot_be_joined_gets_its_batches_whole(make):
    stub = Stub(make)
    workers = ImageWorkers(stub, 2, worth_pixels=0)
    tensors = as_tensors(image(20, 10, seed) for seed in range(4))
    for _ in range(3):
        assert equal(workers(tensors), stub(tensors))
    assert workers.shared_out == 0
    assert stub.calls == [2, 2, 4, 4, 4, 4, 4, 4]  # tried once; then one call each, as ours beside it


def test_a_processor_that_takes_no_part_of_a_batch_gets_it_whole():
    def pairs(flat):
        if len(flat) % 2:
            raise ValueError("give pairs")
        return torch.stack(flat)

    stub = Stub(pairs)
    workers = ImageWorkers(stub, 2, worth_pixels=0)
    tensors = as_tensors(image(20, 10, seed) for seed in range(6))
    with pytest.raises(ValueError, match="give pairs"):
        workers(tensors[:5])  # the one call fails too: nothing is learnt from it
    for _ in range(2):
        assert equal(workers(tensors), stub(tensors))
    assert workers.shared_out == 0
    assert stub.calls[-3:] == [6, 6, 6]


def test_small_images_and_single_ones_are_not_shared_out():
    stub = Stub(torch.stack)
    workers = ImageWorkers(stub, 2)
    workers(as_tensors([image(20, 10)] * 4))
    workers(as_tensors([image(900, 800)]))
    assert stub.calls == [4, 1]
    workers(as_tensors([image(900, 800)] * 3))
    assert stub.calls[2:] == [1, 2, 3] or stub.calls[2:] == [2, 1, 3]


def test_settings_are_those_of_the_processor_inside():
    workers = ImageWorkers(PROCESSORS["qwen2-vl"], 2)
    assert (workers.merge_size, workers.backend) == (2, "pil")
    with pytest.raises(AttributeError):
        _ = workers.nothing


def test_joining_fills_up_with_zeros_and_refuses_other_things():
    first, second = torch.ones(1, 2, 3), torch.ones(2, 3, 1)
    joined, padded = join_outputs([{"a": first, "b": [1]}, {"a": second, "b": [2]}])
    assert padded
    assert joined["a"].shape == (3, 3, 3)
    assert joined["a"].sum() == first.sum() + second.sum()
    assert joined["b"] == [1, 2]
    assert join_outputs([{"a": first}, {"b": first}]) == (None, False)
    assert join_outputs([{"a": first}, {"a": first[0]}]) == (None, False)


def llava(base, image_processor):
    """A LLaVA processor with the demo model's tokenizer and another image processor."""
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=base.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=base.chat_template,
    )


def preparation(processor, device="cpu", space="source", messages=None, kind="pixel"):
    return Preparation(
        processor,
        torch.device(device),
        seed=0,
        mask_kind=kind,
        mask_space=space,
        max_pixels=10**9,
        seconds=Seconds(),
        notice=(messages if messages is not None else []).append,
    )


def record(name, *images):
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "What"}]
    return {"id": name, "images": list(images), "prompt": [{"role": "user", "content": content}]}


@pytest.fixture(scope="module")
def requests():
    """Several rollouts of an image, records of two images, large and tiny ones, mixed up."""
    large = record("large", image(700, 520, 1))
    pair = record("pair", image(300, 280, 2), image(64, 3, 3))
    twin = record("twin", image(64, 48, 4), image(64, 48, 5))
    records, ratios = (large, pair, twin, large), (0.0, 0.3, 0.9, 1.0)
    return [Request(each, ratio, k) for k, ratio in enumerate(ratios) for each in records]


def by_hand(processor, requests, kind):
    """The inputs as they were made image by image, with PIL, in one call."""
    images = [
        [
            mask_image(image, r.ratio, r.realization, mask_key(0, r.record["id"]), image_index=index, kind=kind)
            for index, image in enumerate(r.record["images"])
        ]
        for r in requests
    ]
    texts = [
        processor.apply_chat_template(r.record["prompt"], add_generation_prompt=True, tokenize=False) for r in requests
    ]
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("kind", ["pixel", "rectangle"])
def test_inputs_are_those_of_masked_images_in_one_call(processor, requests, kind):
    given = llava(processor, CLIPImageProcessorPil(**SMALL))
    prepare = preparation(given, kind=kind)
    expected = by_hand(given, requests, kind)
    kept = [prepare(requests) for _ in range(3)]
    for inputs in kept:  # the first ones too, after their buffer was written again
        assert equal(inputs, expected)
    assert equal(prepare(requests[:5]), by_hand(given, requests[:5], kind))
    assert "threads" in prepare.backends()["image_processor"]
    assert isinstance(given.image_processor, CLIPImageProcessorPil)


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_memory_that_a_processor_hands_on_is_not_written_again(processor, backend):
    class Whole(Stub):
        def __call__(self, images, return_tensors=None):
            only = images[0][0]
            return BatchFeature({"pixel_values": only[None]})

    given = copy.copy(processor)
    given.image_processor = Whole(None, backend)
    prepare = preparation(given)
    first_request, second_request = (Request(record("a", image(32, 32, 1)), ratio, 0) for ratio in (0.2, 0.8))
    first = prepare([first_request])["pixel_values"]
    before = first.clone()
    prepare([second_request])
    assert torch.equal(first, before)


def test_processors_of_old_get_images_of_pil(processor, requests):
    class Old(Stub):
        def __call__(self, images, return_tensors=None):
            assert all(isinstance(entry, Image.Image) for item in images for entry in item)
            return PROCESSORS["siglip"](images, return_tensors=return_tensors)

    given = copy.copy(processor)
    given.image_processor = Old(None, backend=None)
    expected = by_hand(given, requests, "pixel")
    prepare = preparation(given)
    assert equal(prepare(requests), expected)
    assert prepare.backends()["image_processor"] == "Old on cpu"


class OnDevice(Stub):
    """A torchvision-backed processor as far as the device goes; `meta` stands in for an accelerator."""

    def __init__(self, fails):
        super().__init__(None, "torchvision")
        self.fails, self.devices = fails, []

    def __call__(self, images, return_tensors=None):
        self.devices.append(images[0][0].device.type)
        if self.fails(images):
            raise torch.OutOfMemoryError("out of memory")
        return BatchFeature({"pixel_values": torch.zeros(len(images), 3, 16, 16)})


def test_a_torch_processor_gets_its_images_on_the_device_in_one_call(processor):
    given = copy.copy(processor)
    given.image_processor = OnDevice(lambda images: False)
    prepare = preparation(given, device="meta")
    requests = [Request(record("a", image(32, 32)), ratio, 0) for ratio in (0.0, 0.5)]
    assert len(prepare(requests)["pixel_values"]) == 2
    assert given.image_processor.devices == ["meta"]
    assert prepare.backends()["image_processor"] == "torchvision on meta"


def test_a_full_device_costs_no_record(processor):
    given = copy.copy(processor)
    given.image_processor = OnDevice(lambda images: images[0][0].device.type == "meta")
    messages = []
    prepare = preparation(given, device="meta", messages=messages)
    requests = [Request(record("a", image(32, 32)), ratio, 0) for ratio in (0.0, 0.5)]
    for _ in range(2):
        assert prepare(requests)["pixel_values"].device.type == "cpu"
    assert given.image_processor.devices == ["meta", "cpu", "cpu"]
    assert "prepared on the CPU from here on: OutOfMemoryError on meta" in messages[0]
    assert len(messages) == 1


def test_a_record_that_fails_on_both_keeps_the_device(processor):
    given = copy.copy(processor)
    given.image_processor = OnDevice(lambda images: True)
    prepare = preparation(given, device="meta")
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            prepare([Request(record("a", image(32, 32)), 0.5, 0)])
    assert given.image_processor.devices == ["meta", "cpu"] * 2


def test_torchvision_processors_in_both_spaces(processor, requests):
    pytest.importorskip("torchvision", reason="torchvision-backed processors need torchvision")
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    given = llava(processor, CLIPImageProcessor(**SMALL))
    prepare = preparation(given)
    assert equal(prepare(requests), by_hand(given, requests, "pixel"))
    assert prepare.backends()["image_processor"] == "torchvision on cpu"
    space = preparation(given, space="model")(requests)["pixel_values"]
    black = torch.tensor(model_fill(given))
    blind = space[-1].flatten(1)
    torch.testing.assert_close(blind, black[:, None].expand_as(blind))


def test_preparing_keeps_to_one_core_beside_a_model_on_the_cpu():
    """Else PyTorch's threads there and the model's outnumber the cores."""
    threads = torch.get_num_threads()
    for device, expected in (("cpu", 1), ("meta", threads), ("cpu", 1)):
        with preparing_thread(torch.device(device)) as thread:
            assert thread.submit(torch.get_num_threads).result() == expected
        assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == threads


def test_the_image_cache_decodes_once_and_forgets_beyond_its_size(monkeypatch):
    cache = ImageCache(10**9)
    first = cache(record("a", image(40, 30)))
    assert cache(record("a", image(40, 30, 9))) is first
    assert (first[0].shape, first[0].dtype) == ((30, 40, 3), torch.uint8)
    monkeypatch.setattr("hardsample.engines.preparing._CACHE_BYTES", 4000)
    cache(record("b", image(40, 30, 1)))
    assert cache(record("a", image(40, 30))) is not first


def test_each_step_has_its_seconds(model, processor, questions):
    engine = TransformersEngine(copy.copy(model), processor, ScoringConfig())
    prepared = engine.prepare([Request(q, 0.5, 0) for q in questions[:4]])
    seconds = engine.seconds
    assert min(seconds.decode, seconds.mask, seconds.processor) > 0 == seconds.generate
    engine.generate(prepared)
    assert seconds.generate > 0
    assert engine.run_info().backends["image_processor"] == f"{processor.image_processor.backend} on cpu"
