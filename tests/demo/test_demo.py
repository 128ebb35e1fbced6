"""The bundled data and model: the same bytes everywhere, disjoint splits, answers that are hard to guess."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from hardsample.demo import KNOBS, load_split, model_path
from hardsample.demo.build import PATCH, build_processor, vocabulary
from hardsample.demo.generator import ABILITIES, DEMO_SIZE, SIZES, digit_images, make_record
from hardsample.engines.transformers import load_processor

SHA256 = "7198033e649bea171d5ee0d733cd54088f4a247a48f13fb61d96038e9c8eddfb"


def test_images_and_answers_are_the_same_bytes_everywhere():
    digest = hashlib.sha256()
    for split in ("pretrain", "pool", "test"):
        for index in (*range(60), SIZES[split] - 1):
            record = make_record(split, index)
            digest.update(record.pop("image").tobytes())
            digest.update(repr(sorted(record.items())).encode())
    assert digest.hexdigest() == SHA256


def test_splits_share_no_digit_image():
    images = {
        split: {image.tobytes() for hands in classes for image in hands} for split, classes in digit_images().items()
    }
    assert all(len(hands) >= 20 for classes in digit_images().values() for hands in classes)
    assert not images["pretrain"] & images["pool"]
    assert not images["pretrain"] & images["test"]
    assert not images["pool"] & images["test"]


def test_any_forty_in_a_row_have_every_ability():
    demo = load_split("demo")
    assert len(demo) == DEMO_SIZE
    for start in range(DEMO_SIZE - 39):
        assert set(demo["ability"][start : start + 40]) == set(ABILITIES)
    assert len(ABILITIES) >= 5
    assert SIZES["pool"] >= 5000
    assert SIZES["test"] >= 1000


def test_no_answer_is_frequent():
    answers = {ability: Counter() for ability in ABILITIES}
    for index in range(60_000):
        record = make_record("pretrain", index)
        answers[record["ability"]][record["solution"]] += 1
    for ability, counts in answers.items():
        n = counts.total()
        # 1.5 % of the question type, and five standard deviations of a count for the luck of the sample
        assert max(counts.values()) < 0.015 * n + 5 * np.sqrt(0.015 * n), ability
        assert len(counts) >= 90, ability


def test_knobs_follow_the_shift():
    records = [make_record("pool", index) for index in range(1200)]
    shifts = np.array([record["shift"] for record in records])
    assert {*KNOBS} <= {*records[0]}
    for knob, sign in (("size", -1), ("contrast", -1), ("noise", 1), ("clutter", 1)):
        values = np.array([record[knob] for record in records if record["ability"] == "reading"])
        assert sign * np.corrcoef(values, shifts[0::6])[0, 1] > 0.6, knob


def test_unknown_records_are_errors():
    with pytest.raises(ValueError, match="no record 9 in split 'train'"):
        make_record("train", 9)
    with pytest.raises(ValueError, match="no demo data 'demo:train': choose one of demo, demo:pool"):
        load_split("demo:train")


def test_the_tokenizer_writes_answers_back_exactly():
    tokenizer = build_processor().tokenizer
    for index in range(600):
        record = make_record("pool", index)
        ids = tokenizer(record["solution"], add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == record["solution"]
        assert tokenizer.unk_token_id not in tokenizer(" " + record["question"]).input_ids


def test_the_shipped_processor_is_the_built_one():
    shipped, built = load_processor(str(model_path())), build_processor()
    assert shipped.tokenizer.get_vocab() == built.tokenizer.get_vocab() == vocabulary()
    assert shipped.chat_template == built.chat_template
    image = Image.fromarray(make_record("pool", 3)["image"])
    inputs = shipped(images=[image], text=["USER:<image> What"], return_tensors="pt")
    built_inputs = built(images=[image], text=["USER:<image> What"], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], built_inputs["pixel_values"])
    assert torch.equal(inputs["input_ids"], built_inputs["input_ids"])
    assert (inputs["input_ids"] == vocabulary()["<image>"]).sum() == (96 // PATCH) ** 2


def test_training_inputs_equal_the_processors():
    pretrain = pytest.importorskip("hardsample.demo.pretrain")
    record = make_record("pretrain", 5)
    processor = build_processor()
    ids, labels = pretrain.encoder(processor)(record["question"], record["solution"])
    content = [{"type": "image"}, {"type": "text", "text": record["question"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.fromarray(record["image"])], text=[text], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"][0], pretrain.to_tensor(record["image"]))
    prompt = int((labels == -100).sum())
    assert torch.equal(inputs["input_ids"][0], ids[:prompt])
    assert processor.tokenizer.decode(ids[prompt:-1]) == record["solution"]
    assert ids[-1] == processor.tokenizer.eos_token_id


def test_the_shipped_files_are_small():
    files = [path for path in model_path().parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    assert any(path.suffix == ".safetensors" for path in files)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in files)
