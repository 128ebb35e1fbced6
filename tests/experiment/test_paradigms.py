"""Recipes are read as written and take the samples that they name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsample.metrics.strata import stratum
from hardsample.trainer.experiment.paradigms import (
    PAPER,
    Part,
    RecipeError,
    Stage,
    parse_recipe,
    rows_of,
    tercile_bounds,
    tercile_strata,
)

LABELS = ["easy", "hard", "medium", "unsolved", None, "hard", "medium", "hard"]
IDS = [f"s{number}" for number in range(len(LABELS))]


def test_the_papers_twelve():
    assert len(PAPER) == 12
    alone = {name: recipe for name, recipe in PAPER.items() if len(recipe.stages) == 1}
    assert {str(recipe.stages[0]) for recipe in alone.values()} == {
        "grpo all",
        "grpo unsolved",
        "grpo random(medium+hard)",
        "grpo medium+hard",
    }
    both = {tuple(map(str, recipe.stages)) for name, recipe in PAPER.items() if name not in alone}
    firsts = {"medium": "hard", "hard": "medium"}
    expected = set()
    for first, second in firsts.items():
        for sft_part in (first, f"random({first})"):
            for other in (second, f"random({second})"):
                expected.add((f"sft {sft_part}", f"grpo {other}"))
    assert both == expected
    assert not PAPER["full"].uses_strata and PAPER["random"].uses_strata


def test_own_recipes():
    recipe = parse_recipe("sft easy,  grpo random( hard+medium )")
    assert recipe.stages == (Stage("sft", Part("easy")), Stage("grpo", Part("medium+hard", random=True)))
    assert recipe.name == "sft easy, grpo random(medium+hard)"


@pytest.mark.parametrize("text", ["", "dpo hard", "grpo heavy", "grpo random(all)", "grpo hard+hard", "grpo", "hard"])
def test_what_is_no_recipe(text):
    with pytest.raises(RecipeError, match=r"recipe"):
        parse_recipe(text)


def test_rows():
    assert rows_of(Part("all"), IDS, LABELS, 0) == list(range(8))
    assert rows_of(Part("medium+hard"), IDS, LABELS, 0) == [1, 2, 5, 6, 7]
    draws = {tuple(rows_of(Part("hard", random=True), IDS, LABELS, seed)) for seed in range(20)}
    assert all(len(draw) == 3 and 4 not in draw for draw in draws)
    assert len(draws) > 5
    assert {row for draw in draws for row in draw} == {0, 1, 2, 3, 5, 6, 7}


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, None]), max_size=60))
def test_terciles_part_most_evenly(thresholds):
    ratios = [step / 10 for step in range(10)]
    bounds = tercile_bounds(thresholds, ratios)
    smallest = 0
    for low in ratios[1:]:
        for high in ratios[1:]:
            if high > low:
                labels = [stratum(threshold, False, type(bounds)(low, high)) for threshold in thresholds]
                smallest = max(smallest, min(labels.count(name) for name in ("easy", "medium", "hard")))
    labels = [stratum(threshold, False, bounds) for threshold in thresholds]
    assert min(labels.count(name) for name in ("easy", "medium", "hard")) == smallest


def test_tercile_strata_keep_the_unsolved():
    balances = [0.1 * number for number in range(1, 13)]
    labels, note = tercile_strata(
        "cmab", ["unsolved", *["easy"] * 12, None], [None] * 14, [None, *balances, None], [0.0]
    )
    assert labels[0] == "unsolved" and labels[-1] is None
    assert labels[1:-1].count("hard") == 4 and labels[1:-1].count("medium") == 4
    assert labels[5] == "hard" and "ρ̄" in note
    labels, note = tercile_strata(
        "pism", ["hard", "hard", "hard", "unsolved"], [0.1, 0.2, 0.3, 0.0], [None] * 4, [0.0, 0.1, 0.2, 0.3, 0.4]
    )
    assert labels == ["hard", "medium", "easy", "unsolved"]
    assert note == "hard λ* ≤ 0.1, easy λ* ≥ 0.3"
