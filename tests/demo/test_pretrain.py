"""Pretraining by family and scale: what is built, what each stage teaches, and that a stopped run resumes exactly."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from hardsample.demo import build
from hardsample.demo.generator import make_record
from hardsample.engines.transformers import load_processor

pretrain = pytest.importorskip("hardsample.demo.pretrain")

FIRST = {
    "model.vision_tower.embeddings.patch_embedding.weight": (0.00040232055, -0.0053085843),
    "model.vision_tower.encoder.layers.3.mlp.fc2.weight": (0.00065391226, 0.0227146597),
    "model.multi_modal_projector.linear_2.weight": (0.00039894387, -0.0056699109),
    "model.language_model.layers.3.mlp.down_proj.weight": (0.00040238278, -0.0251826420),
    "lm_head.weight": (0.00040032782, -0.0167275276),
}
"""Mean square and first value of initial weights, of seed 0, from before there were families and scales."""
SHARES = {"quarter": 0.25, "one": 1.0, "four": 4.0}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread: models this small only get slower with a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(family):
    """Return a quarter-scale model to train, and its heads."""
    model = build.build_model(build.SCALES["quarter"], family=family).train()
    model.set_attn_implementation("eager")
    return model, pretrain.build_heads(model, pretrain.DEMO)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def copies(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module, before):
    return any(not torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("family", build.SPECIAL)
@pytest.mark.parametrize("scale", build.SCALES)
def test_each_family_and_scale_has_its_parameters(family, scale):
    model = build.build_model(build.SCALES[scale], family=family)
    assert parameters(model) == pytest.approx(3.4e6 * SHARES[scale], rel=0.2)
    assert model.config.model_type == family


def test_the_default_build_is_unchanged():
    """Compare values, not a hash: the last bit of a normal draw depends on the processor."""
    model = build.build_model()
    assert model.config.model_type == "llava" and parameters(model) == 3_357_248
    weights = model.state_dict()
    assert len(weights) == 114
    for name, (mean_square, first) in FIRST.items():
        assert weights[name].square().mean().item() == pytest.approx(mean_square, rel=1e-5), name
        assert weights[name].flatten()[0].item() == pytest.approx(first, rel=1e-5), name


def test_gemma3_training_inputs_equal_the_processors():
    record = make_record("pretrain", 5)
    processor = build.build_processor("gemma3")
    ids, labels = pretrain.encoder(processor)(record["question"], record["solution"])
    content = [{"type": "image"}, {"type": "text", "text": record["question"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.fromarray(record["image"])], text=[text], return_tensors="pt")
    prompt = int((labels == -100).sum())
    image_token = build.build_model(96, family="gemma3").config.image_token_id
    assert torch.equal(inputs["pixel_values"][0], pretrain.to_tensor(record["image"]))
    assert torch.equal(inputs["input_ids"][0], ids[:prompt])
    assert torch.equal(inputs["token_type_ids"][0] == 1, ids[:prompt] == image_token)
    assert int((ids == image_token).sum()) == build.IMAGE_TOKENS
    assert processor.tokenizer.decode(ids[prompt:-1]) == record["solution"]


def test_gemma3s_image_tokens_see_one_another_in_training():
    model, heads = small("gemma3")
    stage = replace(pretrain.STAGES[1], batch=1)
    batch = pretrain.collate([pretrain.Images(stage, 0, family="gemma3")[0]])
    kinds = []
    embed = model.model.language_model.register_forward_pre_hook(
        lambda module, arguments, keywords: kinds.append(keywords["attention_mask"]), with_kwargs=True
    )
    pretrain.loss_of(stage, model, heads, batch)
    embed.remove()
    first = int((batch[1][0] == model.config.image_token_id).nonzero()[0])
    for mask in kinds[0].values():
        assert mask[0, 0, first, first + build.IMAGE_TOKENS - 1] == 0  # eager masks are added: 0 is seen
        assert mask[0, 0, first, first + build.IMAGE_TOKENS] < 0


@pytest.mark.parametrize("family", build.SPECIAL)
def test_each_stage_teaches_its_parts(family, tmp_path):
    model, heads = small(family)
    parts = {
        "tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language": model.model.language_model,
        "heads": heads,
    }
    learns = {
        "dense": {"tower", "heads"},
        "answers": {"tower", "projector", "language"},
        "spoiled": {"projector", "language"},
    }
    for stage in pretrain.STAGES:
        stage = replace(stage, steps=15, batch=8, learning_rate=4 * stage.learning_rate)
        images = pretrain.Images(stage, 0, family=family)
        batch = pretrain.collate([images[index] for index in range(stage.batch)])
        before, first = (
            {name: copies(part) for name, part in parts.items()},
            pretrain.loss_of(stage, model, heads, batch),
        )
        assert pretrain.train(stage, model, heads, tmp_path) > 0
        assert {name for name, part in parts.items() if moved(part, before[name])} == learns[stage.name]
        last = pretrain.loss_of(stage, model, heads, batch)
        assert torch.isfinite(last) and last < first, stage.name


def test_a_stopped_run_goes_on_exactly(tmp_path, monkeypatch):
    stage = replace(pretrain.STAGES[1], steps=4, batch=4)
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
    whole, heads = small("gemma3")
    pretrain.train(stage, whole, heads, folders[0])
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)
    stopped, heads = small("gemma3")
    steps, clip = [], torch.nn.utils.clip_grad_norm_

    def clip_twice(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return clip(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip_twice)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(stage, stopped, heads, folders[1])
    resumed, heads = small("gemma3")
    pretrain.train(stage, resumed, heads, folders[1])
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_run_is_recorded_and_not_mixed_with_another(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.compile", lambda module: None)
    options = [
        "--family",
        "gemma3",
        "--scale",
        "quarter",
        "--threads",
        "1",
        "--steps-share",
        "0.0005",
        "0.0004",
        "0.001",
    ]
    pretrain.main([str(tmp_path), *options])
    record = json.loads((tmp_path / "pretrain.json").read_text())
    assert (record["family"], record["scale"], record["material"]) == ("gemma3", "quarter", "demo")
    assert [stage["steps"] for stage in record["stages"]] == [2, 2, 1]
    assert {*record["seconds"]} == {"dense", "answers", "spoiled"}
    processor = load_processor(str(tmp_path / "model"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert parameters(model) == record["parameters"]
    text = "USER:<start_of_image> What number is written?\nASSISTANT:"
    inputs = processor(images=[Image.fromarray(np.zeros((96, 96, 3), np.uint8))], text=[text], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    before = copy.deepcopy(record)
    pretrain.main([str(tmp_path), *options])  # nothing is left to do
    assert json.loads((tmp_path / "pretrain.json").read_text()) == before
    with pytest.raises(SystemExit, match="belongs to a run with scale 'quarter', this one has 'one'"):
        pretrain.main([str(tmp_path), "--family", "gemma3", "--steps-share", "0.5"])


@pytest.mark.parametrize("share", [["0"], ["1.5"], ["0.5", "0.5"], ["half"]])
def test_invalid_shares_are_errors(share, tmp_path, capsys):
    with pytest.raises(SystemExit):
        pretrain.main([str(tmp_path / "run"), "--steps-share", *share])
    assert "--steps-share" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
