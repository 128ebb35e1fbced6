"""The second generator: the same bytes everywhere, splits that share nothing, answers that are hard to guess."""

import hashlib
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hardsample import demo
from hardsample.data import loading as data
from hardsample.demo import KNOBS, build
from hardsample.demo.generator import SIZES, Draw, draw_shift
from hardsample.grading.grader import Grader

pretrain = pytest.importorskip("hardsample.demo.pretrain")

SHA256 = "02b8f64a48b08111f3fa11a0820c2cacaef4e0a4a5329220dc1607e1918de391"


def load_script():
    path = Path(__file__).parents[2] / "bench" / "second_generator.py"
    spec = importlib.util.spec_from_file_location("second_generator", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


second = load_script()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread: a model this small only gets slower with a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contents(split, count):
    """Yield ability and content of the first records of a split, without painting them."""
    for index in range(count):
        ability, draw = second.ABILITIES[index % 6], Draw(31_415_926, second.SPLITS[split], index)
        yield ability, second.draw_content(draw, split, ability, draw_shift(draw, split))


def answer_of(ability, content):
    """Return the part of a content that the answer gives."""
    if ability == "lines":
        count = content[0]
        return tuple(content[1 + count + index] for index in content[1 : 1 + count])
    return content[:2] if ability in ("clock", "cells") else content[::2]


def test_images_and_answers_are_the_same_bytes_everywhere():
    digest = hashlib.sha256()
    for split in second.SPLITS:
        for index in (*range(36), SIZES[split] - 1):
            record = second.make_record(split, index)
            digest.update(record.pop("image").tobytes())
            digest.update(repr(sorted(record.items())).encode())
    for index in range(12):
        image, labels = second.dense_scene(index, 0.5)
        digest.update(image.tobytes() + labels.astype("<i8").tobytes())
    assert digest.hexdigest() == SHA256


def test_splits_share_nothing_that_an_image_shows():
    shown = {split: set(contents(split, min(SIZES[split], 6_000))) for split in second.SPLITS}
    assert not shown["pretrain"] & shown["pool"]
    assert not shown["pretrain"] & shown["test"]
    assert not shown["pool"] & shown["test"]
    for split, pairs in shown.items():
        assert all(second.split_of(*pair) == split for pair in pairs)


def test_no_answer_is_frequent():
    for split, count in (("pretrain", 24_000), ("pool", SIZES["pool"])):
        answers = {ability: Counter() for ability in second.ABILITIES}
        for ability, content in contents(split, count):
            answers[ability][answer_of(ability, content)] += 1
        for ability, counts in answers.items():
            n = counts.total()
            # 1.5 % of the question type, and five standard deviations of a count for the luck of the sample
            assert max(counts.values()) < 0.015 * n + 5 * np.sqrt(0.015 * n), (split, ability)
            assert len(counts) >= 80, ability


def test_the_most_frequent_pretraining_answer_hardly_ever_fits_the_pool():
    answers, hits, questions = {ability: Counter() for ability in second.ABILITIES}, Counter(), Counter()
    for ability, content in contents("pretrain", 24_000):
        answers[ability][answer_of(ability, content)] += 1
    for ability, content in contents("pool", SIZES["pool"]):
        questions[ability] += 1
        hits[ability] += answer_of(ability, content) == answers[ability].most_common(1)[0][0]
    assert all(hits[ability] < 0.02 * questions[ability] for ability in second.ABILITIES), hits


def test_every_solution_is_right_by_its_grader_and_writable():
    tokenizer = build.build_processor("llava", second.TEXTS).tokenizer
    with Grader() as grader:
        for index in range(300):
            record = second.make_record("pool", index)
            assert grader.grade(record["solution"], record), record["solution"]
            spoiled = second.spoil(Draw(1, index), record)
            assert grader.grade(spoiled, record) == (spoiled == record["solution"])
            for text in (record["solution"], spoiled, " " + record["question"]):
                ids = tokenizer(text, add_special_tokens=False).input_ids
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text


def test_its_words_leave_the_demos_vocabulary_alone():
    demos, ours = build.vocabulary(), build.vocabulary(texts=second.TEXTS)
    assert len(demos) == 79
    assert demos.keys() < ours.keys()


def test_answers_are_spoiled_as_often_as_the_demos():
    records = [second.make_record("pretrain", index) for index in range(600)]
    kept = [second.spoil(Draw(2, index), record) == record["solution"] for index, record in enumerate(records)]
    assert 0.3 < np.mean(kept) < 0.55


def test_knobs_follow_the_shift():
    records = [second.make_record("pool", index) for index in range(600)]
    assert {*KNOBS} <= {*records[0]}
    shifts = np.array([record["shift"] for record in records])
    for knob, sign in (("contrast", -1), ("noise", 1), ("clutter", 1)):
        values = np.array([record[knob] for record in records])
        assert sign * np.corrcoef(values, shifts)[0, 1] > 0.6, knob
    for start in range(6):
        sizes = np.array([record["size"] for record in records[start::6]])
        assert np.corrcoef(sizes, shifts[start::6])[0, 1] < -0.4, second.ABILITIES[start]


def test_dense_labels_are_classes_of_their_heads():
    classes_seen = {name: set() for name in second.HEADS}
    for index in range(300):
        image, labels = second.dense_scene(index, 0.0)
        assert image.shape == (96, 96, 3) and labels.shape == (len(second.HEADS), build.IMAGE_TOKENS)
        for name, row in zip(second.HEADS, labels, strict=True):
            classes_seen[name] |= set(row.tolist())
    assert all(classes_seen[name] <= set(range(classes)) for name, classes in second.HEADS.items())
    assert all(len(classes_seen[name]) == classes for name, classes in second.HEADS.items()), classes_seen


def test_written_records_load_with_the_demos_columns(tmp_path):
    second.main(["write", str(tmp_path), "--limit", "40"])
    ours, demos = second.load_split("pool", 40), demo.load_split("demo:pool", 40)
    assert ours.features == demos.features
    loaded = data.load(tmp_path / "pool.parquet")
    assert len(loaded.dataset) == 40 and not loaded.rejected
    assert loaded.dataset["id"] == ours["id"] and loaded.dataset["shift"] == ours["shift"]
    assert set(loaded.dataset["ability"]) == set(second.ABILITIES)
    assert data.load(tmp_path / "test.parquet").dataset["id"][0] == "second-test-000000"


def test_unknown_records_are_errors():
    with pytest.raises(ValueError, match="no record 9 in split 'train'"):
        second.make_record("train", 9)
    with pytest.raises(ValueError, match="no split 'train': choose one of pretrain, pool, test"):
        second.load_split("train")


def test_a_model_is_pretrained_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.compile", lambda module: None)
    second.main(["pretrain", str(tmp_path), "--scale", "quarter", "--steps-share", "0.0004", "--threads", "1"])
    assert '"material": "second"' in (tmp_path / "pretrain.json").read_text()
    from hardsample.engines.transformers import load_processor

    assert load_processor(str(tmp_path / "model")).tokenizer.get_vocab() == build.vocabulary(texts=second.TEXTS)
