"""Small files of kinds that went wrong, each as its expected.txt says; each kind has tests of its own elsewhere."""

from pathlib import Path

import pytest
from datasets import IterableDataset

from hardsample.data.loading import DataError, NoRecordsError, load
from hardsample.grading.grader import Grader

CASES = Path(__file__).parents[1].parent / "shared" / "data" / "cases" / "data"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the cases are not beside the repository ({CASES})")

ALL_LOAD = {
    "containers/hubclone": ["1", "1"],
    "containers/hubclone/data": ["1", "1"],
    "containers/lines.json": ["1", "2"],
    "formats-that-are-missing/alpaca.jsonl": ["red"],
    "formats-that-are-missing/chartqa.jsonl": ["14"],
    "formats-that-are-missing/mmmu.jsonl": ["B"],
    "gold-is-a-bbox-placeholder/swift.jsonl": ["[2, 3, 20, 30]"],
    "gold-is-a-bbox-placeholder/swift_grpo.jsonl": ["[2, 3, 20, 30]"],
    "gold-is-a-list/answers.jsonl": ["NYC"],
    "gold-is-a-list/ocrbench.jsonl": ["CENTRE"],
    "gold-is-a-list/one.jsonl": ["14"],
    "gold-is-a-list/vqa.jsonl": ["NYC"],
    "gold-is-a-message/dict.jsonl": ["3"],
    "gold-is-a-message/list.jsonl": ["<answer> 3 </answer>"],
    "gold-is-a-message/verl.jsonl": ["3"],
    "gold-is-option-index/ai2d.jsonl": ["C"],
    "gold-is-option-index/scienceqa.jsonl": ["A"],
    "mathvista-from-the-hub/mathvista.parquet": ["1.2", "b"],
    "mathvista-from-the-hub/other.jsonl": ["3", "3", "3"],
}
NONE_LOADS = {
    "formats-that-are-missing/tools_openai.jsonl": "tools are not supported",
    "formats-that-are-missing/tools_sharegpt.jsonl": "tools are not supported",
    "gold-is-option-index/outside.jsonl": "is not one of the 2 options",
    "video-scored-as-text/blocks.jsonl": "block type 'video' is not supported",
    "video-scored-as-text/video.jsonl": "video and audio are not supported",
}
RIGHT = {
    "gold-is-option-index/scienceqa.jsonl": ("A", "cat"),
    "gold-is-option-index/ai2d.jsonl": ("C", "leaf"),
    "gold-is-a-list/answers.jsonl": ("NYC",),
    "gold-is-a-list/one.jsonl": ("14",),
    "gold-is-a-message/dict.jsonl": ("3",),
    "gold-is-a-message/verl.jsonl": ("3",),
    "gold-is-a-bbox-placeholder/swift.jsonl": ("[2, 3, 20, 30]",),
    "mathvista-from-the-hub/mathvista.parquet": ("1.2",),
}


@pytest.mark.parametrize("name", ALL_LOAD)
def test_all_records_load(name):
    loaded = load(CASES / name)
    assert (loaded.rejected, loaded.dataset["solution"], loaded.warnings) == ([], ALL_LOAD[name], [])
    assert all(len(images) == 1 for images in loaded.dataset["images"])
    record = loaded.dataset[0]
    said = "".join(block["text"] or "" for turn in record["prompt"] for block in turn["content"])
    assert "<" not in said
    assert all(option in said for option in record["options"] or [])
    with Grader() as grader:
        for answer in RIGHT.get(name, ()):
            assert grader.grade(f"<answer>{answer}</answer>", record)


@pytest.mark.parametrize("name", NONE_LOADS)
def test_no_record_loads(name):
    with pytest.raises(NoRecordsError) as error:
        load(CASES / name)
    assert all(NONE_LOADS[name] in rejection.reason for rejection in error.value.rejected)


def test_several_accepted_answers():
    answers = {
        name: load(CASES / "gold-is-a-list" / name).dataset["answers"] for name in ("answers.jsonl", "vqa.jsonl")
    }
    assert answers == {"answers.jsonl": [["NYC", "nyc"]], "vqa.jsonl": [["NYC", "New York City"]]}


def test_the_prompt_names_the_object():
    for name in ("swift.jsonl", "swift_grpo.jsonl"):
        record = load(CASES / "gold-is-a-bbox-placeholder" / name).dataset[0]
        assert (record["prompt"][0]["content"][1]["text"], record["grader"]) == ("Find the sheep", "grounding")


def test_containers_that_are_refused_and_records_in_memory():
    for name in ("wrapped.json", "table.csv"):
        with pytest.raises(DataError):
            load(CASES / "containers" / name)
    rows = [{"problem": "Q", "answer": "1"}]
    for data in (rows, IterableDataset.from_generator(lambda: iter(rows))):
        assert load(data).dataset["solution"] == ["1"]
