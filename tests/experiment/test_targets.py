"""What fine-tuning imitates: reasoning, else own right rollouts, else the bare answer."""

import pytest
from datasets import Dataset, Image, List

from hardsample.demo import load_split
from hardsample.trainer.experiment.targets import BARE, OWN, REASONING, completion_dataset


@pytest.fixture(scope="module")
def data():
    return load_split("demo", 6).cast_column("images", List(Image()))


def completions_of(made: Dataset) -> list[str]:
    return [turns[0]["content"][0]["text"] for turns in made["completion"]]


def test_own_rollouts_then_the_bare_answer(data):
    ids, solutions = list(data["id"]), list(data["solution"])
    made, counts = completion_dataset(data, {ids[0]: ["one", "two", "one"], ids[1]: ["other"]}, 0)
    assert counts == {OWN: 2, BARE: 4}
    assert completions_of(made)[0] in ("one", "two") and completions_of(made)[1:] == ["other", *solutions[2:]]
    chosen = {completions_of(completion_dataset(data, {ids[0]: ["one", "two"]}, seed)[0])[0] for seed in range(12)}
    assert chosen == {"one", "two"}
    assert made.column_names == ["prompt", "images", "completion"]
    assert made[0]["images"][0].size == (96, 96)


def test_reasoning_ends_in_the_right_answer(data):
    solutions = list(data["solution"])
    texts = [f"Let me see. The answer is {solutions[0]}", "I do not know.", "", None, "  ", "So"]
    made, counts = completion_dataset(data.add_column("why", texts), {}, 0, "why")
    assert counts == {REASONING: 3, BARE: 3}
    assert completions_of(made)[0] == texts[0]
    assert completions_of(made)[1] == f"I do not know.\n{solutions[1]}"
    assert completions_of(made)[2:5] == solutions[2:5]
    assert completion_dataset(data.add_column("rationale", texts), {}, 0)[1] == counts


def test_without_images_there_is_no_such_column(data):
    plain = data.map(lambda row: {"images": []}).cast_column("images", List(Image()))
    assert completion_dataset(plain, {}, 0)[0].column_names == ["prompt", "completion"]
