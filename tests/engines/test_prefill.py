"""Features of a prefill: the same from a rollout and from a forward of their own, on several families."""

import copy
import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hardsample.engines.features import IMAGE, LAST, NUMBERS, WIDTH, distribution_numbers, project
from hardsample.engines.prefill import Shown, collect_prefill, first_token_numbers, last_layer, prefill_features
from hardsample.engines.protocol import Request
from hardsample.engines.results import Failure
from hardsample.engines.transformers import TransformersEngine
from hardsample.scoring.config import ScoringConfig

PATH = Path(__file__).parents[1] / "attention" / "test_families.py"
spec = importlib.util.spec_from_file_location("families_of_prefill", PATH)
families = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = families
spec.loader.exec_module(families)


def engine_of(model, processor, **settings):
    return TransformersEngine(copy.copy(model), processor, ScoringConfig(**settings))


def number(features, name):
    return float(features[NUMBERS.index(name)])


def close(first, second, tolerance=1e-2):
    np.testing.assert_allclose(np.array(first, float), np.array(second, float), atol=tolerance, equal_nan=True)


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(scope="module")
def features(model, processor, questions):
    return prefill_features(engine_of(model, processor), questions[:12])


def test_every_feature_of_the_demo_is_known(features):
    known = ~np.isnan(np.array(features))
    assert known[:, : len(NUMBERS)].all() and known[:, LAST].all() and known[:, IMAGE].all()
    assert len({row.tobytes() for row in features}) == len(features)


def test_rollouts_show_the_same_features(model, processor, questions, features):
    engine = engine_of(model, processor)
    requests = [Request(record, ratio, k) for record in questions[:12] for ratio, k in ((0.3, 0), (0.0, 0), (0.0, 1))]
    results = engine.generate(engine.prepare(requests))
    shown = [result.features for result in results if result.features is not None]
    assert [result.features is not None for result in results] == [False, True, False] * 12
    close(shown, features)


def test_rollouts_are_bit_for_bit_those_without_features(model, processor, questions):
    requests = [Request(record, ratio, 0) for record in questions[:12] for ratio in (0.0, 0.4)]
    hooks = hooks_of(model)
    with_them, without = (engine_of(model, processor, features=on) for on in (True, False))
    first, second = (engine.generate(engine.prepare(requests)) for engine in (with_them, without))
    assert first == second and all(result.features is None for result in second)
    assert hooks_of(model) == hooks  # none is left behind


def test_the_batch_makes_no_difference(model, processor, questions, features):
    long = copy.deepcopy(questions[1])
    long["prompt"][0]["content"].append({"type": "text", "text": " Look at the image and think about it again." * 5})
    engine = engine_of(model, processor)
    padded = prefill_features(engine, [questions[3], {**long, "id": "long"}, questions[0]])
    close([padded[0], padded[2]], [features[3], features[0]], 2e-3)
    assert number(padded[1], "prompt_tokens") > number(padded[0], "prompt_tokens")


def test_the_numbers_are_those_of_the_record(model, processor, questions):
    record = copy.deepcopy(questions[0]) | {"options": ["a", "b", "c"]}
    text = {**copy.deepcopy(questions[0]), "id": "text", "images": []}
    text["prompt"][0]["content"] = [{"type": "text", "text": "What is 1 plus 1?"}]
    (seen,), (blind,) = (prefill_features(engine_of(model, processor), [sample]) for sample in (record, text))
    characters = sum(len(block["text"] or "") for block in record["prompt"][0]["content"])
    assert number(seen, "options") == pytest.approx(np.log(4), abs=1e-3)
    assert number(seen, "characters") == pytest.approx(np.log1p(characters), abs=2e-3)
    assert number(seen, "pixels") == pytest.approx(np.log(96 * 96), abs=5e-3)
    assert (number(blind, "image_tokens"), number(blind, "images")) == (0, 0)
    assert np.isnan(blind[IMAGE]).all() and np.isnan(number(blind, "pixels")) and not np.isnan(blind[LAST]).any()


def test_a_bad_record_is_rejected_alone(model, processor, questions, features):
    image = {"bytes": questions[1]["images"][0]["bytes"][:300], "path": None}
    bad = dict(questions[1]) | {"id": "bad", "images": [image]}
    results = prefill_features(engine_of(model, processor), [questions[0], bad, questions[2]])
    assert isinstance(results[1], Failure) and "cannot be decoded" in results[1].reason
    close([results[0], results[2]], [features[0], features[2]])
    assert isinstance(prefill_features(engine_of(model, processor), [bad])[0], Failure)


def test_out_of_memory_halves_the_batch(model, processor, questions, features):
    class Small(TransformersEngine):
        def _prefill(self, requests, inputs):
            if len(requests) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._prefill(requests, inputs)

    messages = []
    engine = Small(copy.copy(model), processor, ScoringConfig(), messages.append)
    close(prefill_features(engine, questions[:12]), features)
    assert engine.batch_size == 3 and "continuing with 3" in messages[-1]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "llava_onevision", "paligemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_and_distribution_are_the_models_own(name, attention):
    """Against `hidden_states` and `logits` of the same forward; the second prompt is padded on the left."""
    model, batch = families.tiny(name), families.batch_of(name, "left")
    inputs, ids = batch.inputs, batch.inputs["input_ids"]
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad(), collect_prefill(model, ids, inputs["attention_mask"], [1, 0], [families.END]) as seen:
            output = model(**inputs, output_hidden_states=True)
    finally:
        model.set_attn_implementation(before)
    states = output.hidden_states[-2]
    assert len(output.hidden_states) == families.LAYERS + 1
    for row, shown in zip([1, 0], seen.shown(), strict=True):
        np.testing.assert_allclose(shown.last, states[row, -1].numpy(), rtol=1e-5, atol=1e-6)
        images = ids[row] == families.IMAGE_ID
        np.testing.assert_allclose(shown.image, states[row, images].mean(0).numpy(), rtol=1e-5, atol=1e-6)
        expected = distribution_numbers(torch.log_softmax(output.logits[row, -1].double(), -1).numpy(), [families.END])
        assert {key: shown.numbers[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.expm1(shown.numbers["image_tokens"]) == pytest.approx(images.sum())
        assert np.expm1(shown.numbers["prompt_tokens"]) == pytest.approx(inputs["attention_mask"][row].sum())


def test_decode_steps_are_not_read(model, processor, questions):
    engine = engine_of(model, processor)
    inputs = engine.prepare([Request(questions[0], 0.0, 0)]).inputs
    shown = []
    for steps in (1, 6):
        with collect_prefill(model, inputs["input_ids"], inputs["attention_mask"], [0], [2]) as collector:
            model.generate(**inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0)
        shown.append(collector.shown()[0])
    assert shown[0].numbers == shown[1].numbers
    np.testing.assert_array_equal(shown[0].last, shown[1].last)


def test_without_layers_that_are_found_only_the_distribution_is_read(model, processor, questions, monkeypatch):
    assert last_layer(model) is not None
    monkeypatch.setattr(model.config.get_text_config(), "cross_attention_layers", [1], raising=False)
    assert last_layer(model) is None
    (features,) = prefill_features(engine_of(model, processor), questions[:1])
    assert np.isnan(features[LAST]).all() and np.isnan(features[IMAGE]).all()
    assert not np.isnan(number(features, "entropy")) and not np.isnan(number(features, "brightness"))


def test_the_distribution_on_the_device_is_the_one_of_the_definition():
    logits = torch.tensor([[3.0, 1.0, -torch.inf, 0.5, 2.0, 2.0, -40.0]])
    values = first_token_numbers(logits, [1, 4, 99])[0].tolist()
    expected = distribution_numbers(torch.log_softmax(logits[0].double(), -1).numpy(), [1, 4])
    names = ("entropy", "varentropy", "end_logprob", *(f"logprob_{rank}" for rank in range(1, 6)))
    assert dict(zip(names, values, strict=True)) == pytest.approx(expected, rel=1e-5)
    few = first_token_numbers(logits[:, :3], [])[0]
    assert few[2].isnan() and few[-1].isnan() and not few[3:6].isnan().any()


def test_the_width_of_features_does_not_depend_on_the_model(features):
    assert {row.shape for row in features} == {(WIDTH,)}
    assert project(np.zeros((2, 5_000))).shape[-1] == LAST.stop - LAST.start
    assert dataclasses.asdict(Shown()) == {"numbers": {}, "last": None, "image": None}
