"""The transformers engine: rollouts that do not depend on their batch, on several families, whatever goes wrong."""

import copy

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from hardsample.demo.build import build_processor, vocabulary
from hardsample.engines.protocol import Request
from hardsample.engines.results import Completion, EngineError, Failure
from hardsample.engines.transformers import (
    TransformersEngine,
    load_model,
    load_processor,
    model_fingerprint,
)
from hardsample.scoring.config import ScoringConfig


def engine_of(model, processor, **settings):
    return TransformersEngine(copy.copy(model), processor, ScoringConfig(**settings))


def run(engine, requests, size):
    return [
        result
        for start in range(0, len(requests), size)
        for result in engine.generate(engine.prepare(requests[start : start + size]))
    ]


@pytest.fixture(scope="module")
def requests(questions):
    return [Request(q, ratio, k) for q in questions[:16] for ratio, k in ((0.0, 0), (0.3, 1), (0.7, 4))]


@pytest.mark.parametrize("space", ["source", "model"])
def test_rollouts_do_not_depend_on_batch_or_order(model, processor, requests, space):
    engine = engine_of(model, processor, mask_space=space)
    whole = run(engine, requests, len(requests))
    assert run(engine, requests, 7) == whole
    assert run(engine, requests[::-1], 5)[::-1] == whole
    assert run(engine, requests[:6], 1) == whole[:6]
    assert all(isinstance(result, Completion) for result in whole)
    assert len({result.text for result in whole}) > 10


def test_other_seeds_and_realizations_give_other_rollouts(model, processor, questions):
    requests = [Request(q, 0.5, k) for q in questions[:12] for k in range(2)]
    texts = run(engine_of(model, processor, seed=0), requests, 64)
    assert texts != run(engine_of(model, processor, seed=1), requests, 64)
    assert any(texts[2 * i] != texts[2 * i + 1] for i in range(12))


def test_source_and_model_space_agree_where_nothing_is_resized(model, processor, questions):
    # The demo model takes 96 × 96 images as they are, so the two spaces mask the same numbers.
    requests = [Request(q, 0.4, 0) for q in questions[:8]]
    source = engine_of(model, processor, mask_space="source").prepare(requests).inputs
    space = engine_of(model, processor, mask_space="model").prepare(requests).inputs
    assert torch.equal(source["pixel_values"], space["pixel_values"])
    share = (source["pixel_values"] == -1).all(1).float().mean()
    assert 0.38 < share < 0.45


def test_greedy_equals_generate_without_us(model, processor, questions):
    engine = engine_of(model, processor, temperature=0.0)
    records = questions[:6]
    ours = run(engine, [Request(r, 0.0, 0) for r in records], 6)
    inputs = engine.prepare([Request(r, 0.0, 0) for r in records]).inputs
    plain = GenerationConfig(max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=2)
    output = model.generate(**inputs, generation_config=plain)[:, inputs["input_ids"].shape[1] :]
    assert [result.text for result in ours] == processor.tokenizer.batch_decode(output, skip_special_tokens=True)


def test_tokens_have_no_end_of_sequence(model, processor, questions):
    for result in run(engine_of(model, processor), [Request(q, 0.0, 0) for q in questions[:12]], 12):
        assert not {0, 2} & set(result.tokens)
        assert processor.tokenizer.decode(result.tokens) == result.text
    short = run(engine_of(model, processor, max_new_tokens=1), [Request(questions[0], 0.0, 0)], 1)
    assert len(short[0].tokens) <= 1


def test_a_bad_image_is_rejected_alone(model, processor, questions):
    bad = dict(questions[1]) | {
        "id": "bad",
        "images": [{"bytes": questions[1]["images"][0]["bytes"][:300], "path": None}],
    }
    requests = [Request(questions[0], 0.0, 0), Request(bad, 0.0, 0), Request(questions[2], 0.0, 0)]
    engine = engine_of(model, processor)
    results = run(engine, requests, 3)
    assert isinstance(results[1], Failure)
    assert "cannot be decoded" in results[1].reason
    assert [results[0], results[2]] == run(engine, [requests[0], requests[2]], 2)


def test_too_many_placeholders_are_rejected_alone(model, processor, questions):
    bad = copy.deepcopy(questions[1]) | {"id": "bad"}
    bad["prompt"][0]["content"].append({"type": "text", "text": "<image>"})
    results = run(engine_of(model, processor), [Request(q, 0.0, 0) for q in (questions[0], bad, questions[2])], 3)
    assert [type(result) for result in results] == [Completion, Failure, Completion]


class FullBeyond(torch.nn.Module):
    """The demo model on a device whose memory holds `most` rows; only the memory is pretended."""

    def __init__(self, model, most, error):
        super().__init__()
        self.inner, self.most, self.error = model, most, error
        self.generation_config = model.generation_config
        self.sizes = []

    device = property(lambda self: self.inner.device)
    dtype = property(lambda self: self.inner.dtype)
    config = property(lambda self: self.inner.config)

    def generate(self, **inputs):
        self.sizes.append(len(inputs["input_ids"]))
        if self.sizes[-1] > self.most:
            raise self.error
        return self.inner.generate(generation_config=self.generation_config, **inputs)


def test_out_of_memory_halves_the_batch_and_goes_on(model, processor, requests):
    messages = []
    full = FullBeyond(copy.copy(model), 5, torch.OutOfMemoryError("CUDA out of memory"))
    engine = engine_of(full, processor, batch_size=16)
    engine.notice = messages.append
    assert run(engine, requests[:16], 16) == run(engine_of(model, processor), requests[:16], 16)
    assert engine.batch_size == 4
    assert "continuing with 4" in messages[-1]


def test_a_model_that_fails_on_everything_ends_the_job(model, processor, requests):
    broken = FullBeyond(copy.copy(model), 0, RuntimeError("no kernel for this device"))
    with pytest.raises(EngineError, match="no kernel for this device"):
        run(engine_of(broken, processor), requests[:4], 4)


def test_text_only_records(model, processor, questions):
    record = dict(questions[0]) | {
        "images": [],
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "What"}]}],
    }
    assert isinstance(run(engine_of(model, processor), [Request(record, 0.0, 0)], 1)[0], Completion)


def test_checkpoint_sampling_settings_play_no_part(model, processor, requests):
    spiced = copy.copy(model)
    spiced.generation_config = GenerationConfig(
        max_new_tokens=16, do_sample=True, top_k=1, top_p=0.1, repetition_penalty=5.0, eos_token_id=2, pad_token_id=0
    )
    assert run(engine_of(spiced, processor), requests[:8], 8) == run(engine_of(model, processor), requests[:8], 8)


def test_agreement_in_bf16_is_measured_not_assumed(processor, requests):
    from hardsample.demo import model_path

    engine = engine_of(load_model(str(model_path()), "cpu", "bfloat16"), processor)
    whole, alone = run(engine, requests, 48), run(engine, requests, 1)
    agreement = sum(a == b for a, b in zip(whole, alone, strict=True)) / len(whole)
    assert agreement >= 0.9  # 0.994 over 1,200 rollouts: bench/results/agreement.json


@pytest.fixture(scope="module")
def llava_next():
    """A tiny LLaVA-NeXT from config: another family, which cuts an image into tiles."""
    tokens = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=6
    )
    text = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokens["<image>"],
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(max_new_tokens=4, eos_token_id=2, pad_token_id=0)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24},
        crop_size={"height": 24, "width": 24},
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
    )
    base = build_processor()
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=base.tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=base.chat_template,
    )
    return model, processor


def test_images_of_different_shapes_share_a_batch_of_llava_next(llava_next, questions):
    model, processor = llava_next
    records = []
    for index, size in enumerate([(48, 24), (30, 90), (48, 48), (200, 60)]):
        image = Image.new("RGB", size, (40 * index, 90, 200))
        records.append(dict(questions[index]) | {"images": [image]})
    engine = engine_of(model, processor, temperature=1.0)
    requests = [Request(record, 0.3, k) for record in records for k in range(3)]
    assert run(engine, requests, 12) == run(engine, requests, 1)


def test_model_space_is_refused_where_an_image_has_tiles(llava_next, questions):
    engine = engine_of(*llava_next, mask_space="model")
    with pytest.raises(EngineError, match="use --mask-space source"):
        run(engine, [Request(questions[0], 0.3, 0)], 1)


def test_a_model_that_is_not_there_says_so(tmp_path):
    with pytest.raises(EngineError, match="the processor of"):
        load_processor(str(tmp_path))


def test_the_fingerprint_follows_the_weights(tmp_path, model):
    from hardsample.demo.build import save

    save(model, tmp_path / "one")
    first = model_fingerprint(str(tmp_path / "one"))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    save(changed, tmp_path / "one")
    assert model_fingerprint(str(tmp_path / "one")) != first
    save(model, tmp_path / "one")
    assert model_fingerprint(str(tmp_path / "one")) == first
