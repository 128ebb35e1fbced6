"""Attention masses of twelve model families, tiny and with random weights, against eager attention.

To add a family, add an entry to FAMILIES: the settings of its config, the number of image tokens per image, and the
names and shapes of its forward's other inputs.
"""

import copy
import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache, LlamaModel, StaticCache

from hardsample.attention import shared_prefill
from hardsample.attention.interface import (
    collect_attention_mass,
    use_attention_mass,
    why_not_attention_mass,
)
from hardsample.attention.shared_prefill import shared_masses, why_not_shared
from hardsample.attention.teacher_forcing import forced_masses
from hardsample.metrics.cmab import CmabConfig

PAD, BOS, END, IMAGE_ID, VISION_START = 0, 1, 2, 5, 6
LAYERS, LONG, SHORT, TOKENS = 4, 9, 4, 5
TEXT_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # so that attention is not uniform
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = TOWER | {"image_size": 16, "patch_size": 4}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
MASS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Family:
    """Settings that make a model type tiny, and the inputs of its forward."""

    image_tokens: int
    vision: dict[str, Any]
    pixels: tuple[int, ...] = (1, 3, 16, 16)
    """Shape of one image's pixel_values."""
    text: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """Further inputs of one image, by name."""
    types: str | None = None
    """Name of the input that marks each token's type."""


def qwen(**settings):
    """Return a Qwen-VL: 4 × 4 patches of one frame, four merged to one token."""
    patch = settings.pop("patch")
    return Family(
        4,
        settings | {"patch_size": patch, "num_heads": 2, "depth": 2, "spatial_merge_size": 2},
        (16, 3 * 2 * patch * patch),
        MROPE,
        {"vision_start_token_id": VISION_START, "vision_end_token_id": 7, "video_token_id": 8},
        {"image_grid_thw": [[1, 4, 4]]},
        "mm_token_type_ids",
    )


QWEN3 = qwen(
    patch=16,
    hidden_size=16,
    out_hidden_size=32,
    intermediate_size=24,
    num_position_embeddings=16,
    deepstack_visual_indexes=[0],
)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TILES = {"image_grid_pinpoints": [[16, 16]], "vision_feature_layer": -1}
IDEFICS = Family(4, SQUARE, (1, 1, 3, 16, 16), config={"scale_factor": 2})
FAMILIES = {
    "qwen2_vl": qwen(patch=14, embed_dim=16, hidden_size=32),
    "qwen2_5_vl": qwen(patch=14, hidden_size=16, out_hidden_size=32, intermediate_size=24, fullatt_block_indexes=[1]),
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": replace(QWEN3, text=QWEN3.text | EXPERTS),
    "llava": Family(16, SQUARE, config={"vision_feature_layer": -1}),
    "llava_next": Family(36, SQUARE, (1, 2, 3, 16, 16), config=TILES, extra={"image_sizes": [[16, 16]]}),
    "llava_onevision": Family(
        36,
        SQUARE,
        (1, 2, 3, 16, 16),
        config=TILES,
        extra={"image_sizes": [[16, 16]], "batch_num_images": [1]},
    ),
    "internvl": Family(4, TOWER | {"image_size": [16, 16], "patch_size": [4, 4]}),
    "gemma3": Family(
        4,
        SQUARE,
        text={
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": 2 * ["sliding_attention", "full_attention"],
        },
        config={"mm_tokens_per_image": 4, "boi_token_index": VISION_START, "eoi_token_index": 7},
        types="token_type_ids",
    ),
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "paligemma": Family(
        16, SQUARE | {"projection_dim": 32}, config={"projection_dim": 32, "hidden_size": 32}, types="token_type_ids"
    ),
    "mistral3": Family(
        4,
        SQUARE | {"head_dim": 8},
        config={"vision_feature_layer": -1, "spatial_merge_size": 2},
        extra={"image_sizes": [[16, 16]]},
    ),
}
SEQUENCES = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
NOT_SHARED: set[str] = set()  # families whose completions cannot share a prefill, and so run one by one
PROMPT_IS_PREFIX = {"paligemma"}  # token types there: 0 the prefix, with bidirectional attention, 1 after it


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Operations this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def tiny(name):
    """Return a model of a family, in fp32, with attention that is not uniform."""
    family = FAMILIES[name]
    text_type = AutoConfig.for_model(name).get_text_config().model_type
    config = AutoConfig.for_model(
        name,
        text_config=TEXT_CONFIG | {"model_type": text_type} | family.text,
        vision_config=family.vision | {"model_type": AutoConfig.for_model(name).vision_config.model_type},
        image_token_id=IMAGE_ID,
        **family.config,
    )
    config.get_text_config().pad_token_id = PAD
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = END
    return model


@dataclass
class Batch:
    """Two samples, one longer than the other unless there is no padding."""

    inputs: dict[str, torch.Tensor]
    completion: torch.Tensor
    prompt: torch.Tensor
    """Where a prompt token stands."""


def batch_of(name, padding, images=1):
    """Prompt of text, images and text, then a completion; the second sample is shorter if there is padding."""
    family = FAMILIES[name]
    random = torch.Generator().manual_seed(1)
    rows = []
    for lead, tail, tokens in (
        (2, LONG, TOKENS),
        (2, LONG if padding == "none" else SHORT, TOKENS if padding == "none" else 3),
    ):
        words = iter(torch.randint(10, 60, (100,), generator=random).tolist())
        image = [VISION_START] + family.image_tokens * [IMAGE_ID] + [7]
        prompt = [BOS] + [next(words) for _ in range(lead)] + images * image + [next(words) for _ in range(tail)]
        rows.append((prompt, [next(words) for _ in range(tokens)]))
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.full((2, length), PAD)
    attended, completed, prompts = (torch.zeros((2, length), dtype=torch.long) for _ in range(3))
    for row, (prompt, completion) in enumerate(rows):
        start = 0 if padding == "right" else length - len(prompt) - len(completion)
        middle, stop = start + len(prompt), start + len(prompt) + len(completion)
        ids[row, start:stop] = torch.tensor(prompt + completion)
        attended[row, start:stop] = prompts[row, start:middle] = completed[row, middle:stop] = 1
    count = 2 * images
    inputs = {
        "input_ids": ids,
        "attention_mask": attended,
        "pixel_values": torch.randn(
            (count, *family.pixels[1:]) if family.pixels[0] == 1 else (count * family.pixels[0], *family.pixels[1:]),
            generator=random,
        ),
    }
    if family.pixels[:2] == (1, 1):
        inputs["pixel_values"] = inputs["pixel_values"].view(2, images, *family.pixels[2:])
    for key, value in family.extra.items():
        inputs[key] = torch.tensor(value * count)
    if family.types:
        inputs[family.types] = completed if name in PROMPT_IS_PREFIX else (ids == IMAGE_ID).long()
    return Batch(inputs, completed, prompts)


def expected(model, batch):
    """Return masses (layers, batch, heads, positions) of the query before each position, from eager's probabilities."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = model(**batch.inputs, output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    attention = torch.stack(output.attentions).double()
    image = batch.prompt.bool() & (batch.inputs["input_ids"] == IMAGE_ID)
    text = batch.prompt.bool() & ~image
    masses = [(attention * kind[None, :, None, None]).sum(-1) for kind in (image, text)]
    return [torch.nn.functional.pad(mass[..., :-1], (1, 0)) for mass in masses]


def differences(masses, wanted, valid):
    """Largest difference of image and text mass over the completion tokens."""
    pairs = zip((masses.image, masses.text), wanted, strict=True)
    return [(mass.double() - want.mean(2))[:, valid].abs().max().item() for mass, want in pairs]


def collected(model, batch, **settings):
    """Logits and masses of one forward."""
    inputs = batch.inputs
    with collect_attention_mass(
        model, inputs["input_ids"], batch.completion, inputs["attention_mask"], **settings
    ) as collector:
        logits = model(**inputs).logits
    return logits, collector.masses


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_masses_are_eagers_and_outputs_are_sdpas(name, padding):
    model, batch = tiny(name), batch_of(name, padding)
    attended, valid = batch.inputs["attention_mask"].bool(), batch.completion.bool()
    wanted = expected(model, batch)
    plain = model(**batch.inputs).logits
    with use_attention_mass(model):
        assert torch.equal(model(**batch.inputs).logits, plain)
        logits, with_gradient = collected(model, batch)
        assert torch.equal(logits, plain)  # the very call that SDPA makes
        with torch.no_grad():
            logits, masses = collected(model, batch)
        assert torch.equal(logits[attended], plain[attended])  # another call of the kernel that SDPA takes on a CPU
    for measured in (masses, with_gradient):
        assert torch.equal(measured.valid, valid)
        assert measured.image.dtype == measured.text.dtype == torch.float32
        assert max(differences(measured, wanted, valid)) < MASS_TOLERANCE
        # eager gives exactly 0 to what its mask hides, and with these weights to nothing else
        for sees, mass in zip((measured.sees_image, measured.sees_text), wanted, strict=True):
            assert torch.equal(sees[:, valid], mass.mean(2)[:, valid] > 0)


def step_positions(model, attended):
    """Return the positions that `generate` passes to the Qwen-VLs, which else use those of the whole sequence."""
    deltas = getattr(model.model, "rope_deltas", None)
    if deltas is None:
        return {}
    return {"position_ids": (attended.sum(1, keepdim=True) - 1 + deltas).expand(3, -1, -1)}


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_decode_steps_give_the_masses_of_one_forward(name, padding, cache):
    model, batch = tiny(name), batch_of(name, padding)
    ids, attended = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    tokens = int(batch.completion.sum(1).min())  # the same for both samples: only prompts differ in length
    batch.completion[:, :-tokens] = 0
    start = ids.shape[1] - tokens
    prefill = {key: value[:, :start] if key in SEQUENCES else value for key, value in batch.inputs.items()}
    options = {} if cache is DynamicCache else {"max_cache_len": ids.shape[1] + 3}
    held = cache(config=model.config.get_text_config(), **options)
    with torch.no_grad(), use_attention_mass(model):
        _, whole = collected(model, batch)
        with collect_attention_mass(model, ids, batch.completion, attended) as collector:
            model(**prefill, **{CACHE: held})
            for stop in range(start + 1, ids.shape[1]):
                step = {"input_ids": ids[:, stop - 1 : stop], "attention_mask": attended[:, :stop], CACHE: held}
                model(**step, **step_positions(model, attended[:, :stop]))
        steps = collector.masses
    assert torch.equal(steps.valid, whole.valid)
    assert torch.equal(steps.sees_image, whole.sees_image) and torch.equal(steps.sees_text, whole.sees_text)
    torch.testing.assert_close(steps.image, whole.image, atol=MASS_TOLERANCE, rtol=0)
    torch.testing.assert_close(steps.text, whole.text, atol=MASS_TOLERANCE, rtol=0)


def prompts_of(name):
    """Return the prompts of a batch as a processor gives them: of different lengths, padded on the left."""
    batch = batch_of(name, "left")
    longest = int(batch.prompt.sum(1).max())
    inputs = dict(batch.inputs)
    for key in SEQUENCES & inputs.keys():
        inputs[key] = torch.zeros((2, longest), dtype=torch.long)
        for row, prompt in enumerate(batch.prompt.bool()):
            inputs[key][row, longest - int(prompt.sum()) :] = batch.inputs[key][row, prompt]
    return inputs


def test_the_families_that_share_a_prefill():
    assert {name for name in FAMILIES if why_not_shared(tiny(name))} == NOT_SHARED


@pytest.mark.parametrize("tokens_at_once", [16_384, 6])
@pytest.mark.parametrize("settings", [{}, {"heads": "each"}], ids=["mean", "each"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_SHARED])
def test_completions_that_share_a_prefill_have_the_masses_of_teacher_forcing(
    name, settings, tokens_at_once, monkeypatch
):
    """Completions of 1 to 13 tokens, at most two in a forward; Gemma 3 has a window of 8."""
    monkeypatch.setattr(shared_prefill, "_FORWARD_TOKENS", tokens_at_once)
    model, inputs, config = tiny(name), prompts_of(name), CmabConfig(**settings)
    random = torch.Generator().manual_seed(2)
    lengths = [[13, 1, 4], [2, 6]]
    completions = [[torch.randint(10, 60, (length,), generator=random).tolist() for length in own] for own in lengths]
    with torch.no_grad(), use_attention_mass(model):
        shared = shared_masses(model, inputs, completions, config, PAD, batch_size=2)
        plain = [
            forced_masses(model, inputs, [own[min(index, len(own) - 1)] for own in completions], config, PAD)
            for index in range(3)
        ]
    assert [[masses.image.shape[-1] for masses in own] for own in shared] == lengths
    for row, own in enumerate(shared):
        for index, measured in enumerate(own):
            for actual, expected in zip(measured, plain[index][row], strict=True):
                torch.testing.assert_close(actual, expected, atol=MASS_TOLERANCE, rtol=0)


def test_a_model_whose_cache_is_of_another_kind_shares_nothing(monkeypatch):
    model = copy.deepcopy(tiny("llava"))
    text = model.config.get_text_config()
    text.layer_types = ["full_attention", "chunked_attention"] * 2
    text.attention_chunk_size = 8
    assert "chunked attention" in why_not_shared(model)
    text.layer_types = None
    assert why_not_shared(model) is None
    model.model.rope_deltas = None
    assert "llava has M-RoPE positions that are not supported" in why_not_shared(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_taken_and_put_back(name):
    model = tiny(name)
    text, vision = model.config.get_text_config(), model.config.vision_config
    assert why_not_attention_mass(model) is None
    with use_attention_mass(model):
        assert (text._attn_implementation, vision._attn_implementation) == ("hardsample", "sdpa")
    assert (text._attn_implementation, vision._attn_implementation) == ("sdpa", "sdpa")


def test_two_images_count_both():
    model, batch = tiny("llava"), batch_of("llava", "left", images=2)
    wanted = expected(model, batch)
    with torch.no_grad(), use_attention_mass(model):
        _, masses = collected(model, batch)
    assert masses.image_tokens.tolist() == [32, 32]
    assert masses.text_tokens.tolist() == (batch.prompt.sum(1) - 32).tolist()
    assert max(differences(masses, wanted, batch.completion.bool())) < MASS_TOLERANCE


def test_sliding_windows_hide_the_image_and_then_the_prompt():
    """Gemma 3 with a window of 8: later tokens see less and less of the prompt in layers 1 and 3."""
    model, batch = tiny("gemma3"), batch_of("gemma3", "none")
    with torch.no_grad(), use_attention_mass(model):
        _, masses = collected(model, batch)
    _, _, sees_image, sees_text, *_ = masses.sample(0)
    assert sees_image[1].all() and sees_image[3].all() and sees_text.all()
    assert not sees_image[0].any() and not sees_image[2].any()
    assert (masses.sample(0).image[[0, 2]] == 0).all()
