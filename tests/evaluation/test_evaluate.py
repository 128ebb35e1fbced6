"""Evaluation on the demo model, and comparisons of two."""

import json

import pytest

from hardsample.demo import load_split
from hardsample.evaluation.evaluate import EvaluationError, compare, evaluate
from hardsample.metrics.intervals import accuracy_interval
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.score import score
from hardsample.scoring.store import Store


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    scores = folder / "scores"
    score("demo", "demo", scores, ScoringConfig(limit=40, num_masks=2, batch_size=64))
    once = evaluate("demo", "demo", folder / "once", limit=40, strata=scores, progress=False)
    many = evaluate("demo", "demo", folder / "many", limit=40, rollouts=4, temperature=0.7, seed=1, progress=False)
    return folder, once, many


def test_accuracy_is_that_of_the_rollouts(evaluated):
    _, once, many = evaluated
    for result, rollouts in ((once, 1), (many, 4)):
        with Store(result.directory) as store:
            ids = list(Scores(result.directory).table["id"])
            grades = [[rollout.grade for rollout in store.rollouts(sample)] for sample in ids]
        assert [len(row) for row in grades] == [rollouts] * 40
        assert result.overall == accuracy_interval([sum(row) for row in grades], [rollouts] * 40)
    assert 0.1 < once.overall.value < 0.8 and once.overall.low < once.overall.value < once.overall.high
    assert once.rollouts == 1 and many.rollouts == 4


def test_groups(evaluated):
    folder, once, _ = evaluated
    assert set(once.groups) == {"ability", "stratum"}
    assert sum(interval.samples for interval in once.groups["ability"].values()) == 40
    assert sum(interval.samples for interval in once.groups["stratum"].values()) == 40
    assert once.groups["stratum"]["unsolved"].value < once.groups["stratum"]["hard"].value
    content = json.loads((folder / "once" / "evaluation.json").read_text())
    assert content["overall"]["accuracy"] == once.overall.value and content["temperature"] == 0.0


def test_groups_by_source_and_level(tmp_path):
    data = load_split("demo", 12)
    data = data.add_column("data_source", ["a", "b"] * 6).add_column("level", list(range(1, 13)))
    result = evaluate(data, "demo", tmp_path, progress=False)
    assert {name: interval.samples for name, interval in result.groups["source"].items()} == {"a": 6, "b": 6}
    assert len(result.groups["level"]) == 12


def test_an_evaluation_resumes(evaluated, monkeypatch):
    folder, once, _ = evaluated
    from hardsample.engines.transformers import TransformersEngine

    def refuse(*_):
        raise AssertionError("a rollout was asked for again")

    monkeypatch.setattr(TransformersEngine, "generate", refuse)
    again = evaluate("demo", "demo", folder / "once", limit=40, progress=False)
    assert again.overall == once.overall


def test_comparison_is_paired(evaluated, tmp_path):
    folder, _, many = evaluated
    resampled = evaluate(
        "demo", "demo", tmp_path / "other", limit=30, rollouts=4, temperature=0.7, seed=2, progress=False
    )
    result = compare(folder / "many", resampled.directory)
    first, second = (
        {row["id"]: row["successes"][0] / 4 for row in Scores(run).table}
        for run in (folder / "many", resampled.directory)
    )
    differences = [second[sample] - first[sample] for sample in second]
    assert result.overall.value == pytest.approx(sum(differences) / 30)
    assert result.overall.samples == 30 and result.left_out == 10
    assert result.better == sum(difference > 0 for difference in differences)
    assert result.worse == sum(difference < 0 for difference in differences)
    assert 0 < result.p_value <= 1 and set(result.groups) == set(many.groups["ability"])
    same = compare(folder / "many", folder / "many")
    assert same.overall.value == 0 and same.p_value == 1


def test_what_cannot_be_compared(evaluated, tmp_path):
    folder, *_ = evaluated
    with pytest.raises(EvaluationError, match=r"temperature 0\.0, .*many at 0\.7"):
        compare(folder / "once", folder / "many")
    with pytest.raises(OutputError, match="holds no finished run"):
        compare(folder / "once", tmp_path)
    alone = evaluate("demo:test", "demo", tmp_path / "test", limit=2, progress=False)
    with pytest.raises(EvaluationError, match="0 samples in common"):
        compare(folder / "once", alone.directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollouts": 3}, "rollouts is 3 at temperature 0"),
        ({"ratios": (0.0, 0.5)}, "ratios is not a setting of an evaluation"),
        ({"colour": 1}, "colour is not a setting"),
    ],
)
def test_settings_that_are_none(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate("demo", "demo", tmp_path, **settings)
