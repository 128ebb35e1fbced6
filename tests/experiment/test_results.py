"""The table of an experiment: means over seeds, pairs by seed, one primary comparison, the others by Holm."""

import json

import numpy as np
import pytest

from hardsample.metrics.intervals import holm, p_value, t_quantile
from hardsample.trainer.experiment.results import Outcome, as_json, compare_rows, make_rows, markdown, name_of


def cells(recipe, accuracies, metric="pism", variant="plain", **more):
    return [
        Outcome(metric, "epoch", variant, recipe, seed, accuracy, 100 + seed, 10, 1.0, (5,), **more)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_means_and_pairs():
    ours, random, full = [0.5, 0.6, 0.55], [0.45, 0.5, 0.52], [0.4, 0.4, 0.5]
    rows = make_rows([*cells("medium+hard", ours), *cells("random", random), *cells("full", full, metric=None)])
    assert [row.recipe for row in rows] == ["medium+hard", "random", "full"]
    half = t_quantile(2) * np.std(ours, ddof=1) / np.sqrt(3)
    assert rows[0].accuracy.value == pytest.approx(0.55) and rows[0].rollouts == 101
    assert rows[0].accuracy.high - rows[0].accuracy.value == pytest.approx(half)
    primary, other = compare_rows(rows, "medium+hard", "random")
    assert primary.primary and primary.corrected is None
    gap = np.subtract(ours, random)
    assert primary.difference.value == pytest.approx(gap.mean()) and primary.p == pytest.approx(p_value(gap))
    assert other.row.recipe == "full" and other.against.recipe == "random"  # of the first metric: full has none
    assert other.corrected == pytest.approx(other.p)  # alone among the others


def test_pairs_are_of_the_same_seed():
    both = [*cells("medium+hard", [0.5, 0.7, 0.9]), *cells("random", [0.4, 0.6, 0.8])]
    rows = make_rows([outcome for outcome in both if (outcome.recipe, outcome.seed) != ("random", 1)])
    (difference,) = compare_rows(rows, "medium+hard", "random")
    assert difference.difference.samples == 2 and difference.difference.value == pytest.approx(0.1)


def test_a_diverged_cell_is_named_and_left_out():
    good = cells("medium+hard", [0.5, 0.6])
    bad = Outcome("pism", "epoch", "plain", "medium+hard", 2, 0.01, alarms=("reward_collapse", "zero_variance"))
    lost = Outcome("pism", "epoch", "plain", "medium+hard", 3, problem="ValueError: x | y")
    (row,) = make_rows([*good, bad, lost])
    assert row.values == {0: 0.5, 1: 0.6}
    assert row.notes == ("seed 2 diverged (reward_collapse)", "seeds 3: ValueError: x | y")
    assert "\\| y" in markdown("T", [row], [], 0.3, [])


def test_the_others_are_corrected_by_holm():
    groups = {
        "random": [0.5, 0.5, 0.5],
        "medium+hard": [0.6, 0.61, 0.62],
        "a": [0.51, 0.5, 0.52],
        "b": [0.7, 0.71, 0.7],
    }
    rows = make_rows([cell for name, values in groups.items() for cell in cells(name, values)])
    differences = compare_rows(rows, "medium+hard", "random")
    assert [pair.row.recipe for pair in differences] == ["medium+hard", "a", "b"]
    assert [pair.corrected for pair in differences[1:]] == pytest.approx(holm([pair.p for pair in differences[1:]]))
    page = markdown("T", rows, differences, None, ["a note"])
    assert "**primary** medium+hard" in page and "- a note" in page
    assert json.loads(json.dumps(as_json(rows, differences)))["comparisons"][0]["primary"] is True


def test_variants_are_compared_with_the_first():
    rows = make_rows(
        [*cells("full", [0.5, 0.6], metric=None), *cells("full", [0.6, 0.8], metric=None, variant="dense")]
    )
    (difference,) = compare_rows(rows, "medium+hard", "random")
    assert (difference.row.setting[1], difference.against.setting[1]) == ("dense", "plain")
    assert not difference.primary and difference.difference.value == pytest.approx(0.15)
    assert name_of(difference.row, rows) == "full (dense)"


def test_one_seed_has_no_interval():
    rows = make_rows([*cells("medium+hard", [0.5]), *cells("random", [0.4])])
    (difference,) = compare_rows(rows, "medium+hard", "random")
    assert difference.p is None and as_json(rows, [difference])["comparisons"][0]["difference"]["low"] is None
    assert "+10.0 |" in markdown("T", rows, [difference], None, [])
