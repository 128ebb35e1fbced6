"""Strata, re-labelling, subsets and controls."""

from math import sqrt

import pytest

from hardsample.errors import ConfigError
from hardsample.metrics.strata import (
    STRATA,
    Bounds,
    StrataError,
    Verdict,
    control_rows,
    count_verdict,
    level_passes,
    needed_successes,
    parse_subset,
    relabel,
    stratum,
    subset_rows,
)

RATIOS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.1, "hard"), (0.4, "hard"), (0.5, "medium"), (0.6, "medium"), (0.7, "easy"), (0.9, "easy"), (None, "easy")],
)
def test_stratum(threshold, expected):
    assert stratum(threshold, False) == expected
    assert stratum(threshold, True) == "unsolved"


def test_stratum_compares_ratios_as_integers():
    assert stratum(0.1 * 3, False, Bounds(0.3, 0.7)) == "hard"
    assert stratum(0.7 - 1e-12, False) == "easy"
    assert stratum(0.7, False, Bounds(0.4, 0.71)) == "medium"


@pytest.mark.parametrize(
    ("bounds", "message"), [((0.7, 0.7), "below easy_min"), ((-0.1, 0.7), "-0.1"), ((0, 7), "is 7")]
)
def test_bounds_are_checked(bounds, message):
    with pytest.raises(ValueError, match=message):
        Bounds(*bounds)


def test_needed_successes_are_exact():
    assert [needed_successes(10, tau) for tau in (0.01, 0.1, 0.11, 0.3, 0.7, 1)] == [1, 1, 2, 3, 7, 10]
    assert needed_successes(100, 0.29) == 29
    assert needed_successes(3, 1 / 3) == 1


def test_level_passes():
    assert level_passes(0, 0, 10, 0.1) is None
    assert level_passes(0, 9, 10, 0.1) is None
    assert level_passes(0, 10, 10, 0.1) is False
    assert level_passes(1, 1, 10, 0.1) is True
    assert level_passes(3, 9, 10, 0.5) is False
    with pytest.raises(StrataError, match="2 successes in 1 of 10"):
        level_passes(2, 1, 10, 0.1)
    with pytest.raises(StrataError, match="use the num_masks"):
        level_passes(2, 11, 10, 0.1)


def test_count_verdict():
    ratios = [0.0, 0.5, 0.8]
    assert count_verdict([1, 0, 0], [1, 10, 0], ratios, 10, 0.1) == Verdict(0.5, "medium", 11, True)
    assert count_verdict([1, 0, 0], [1, 9, 10], ratios, 10, 0.1) == Verdict(None, None, 20, False)
    assert count_verdict([1, 1, 1], [1, 2, 3], ratios, 10, 0.1) == Verdict(None, "easy", 6, True)
    assert count_verdict([0, 0, 0], [10, 0, 0], ratios, 10, 0.1) == Verdict(0.0, "unsolved", 10, True)
    with pytest.raises(StrataError, match="2 success counts, 3 attempt counts, 3 ratios"):
        count_verdict([1, 0], [1, 9, 10], ratios, 10, 0.1)


# A lossless table at K = 10, τ = 0.1: easy, medium, hard, unsolved and a record without an image.
LOSSLESS = {
    "strata": ["easy", "medium", "hard", "unsolved", None],
    "successes": [[1] * 10, [1] * 5 + [0] * 5, [1, 1, 1] + [0] * 7, [0] * 10, [4] + [0] * 9],
    "attempts": [[1] * 10, [1, 1, 1, 3, 7, 10] + [0] * 4, [1, 1, 2, 10] + [0] * 6, [10] + [0] * 9, [10] + [0] * 9],
    "ratios": RATIOS,
    "num_masks": 10,
}


def test_relabel_repeats_the_labels():
    verdicts = relabel(**LOSSLESS, tau=0.1)
    assert [v.stratum for v in verdicts] == LOSSLESS["strata"]
    assert [v.failure_threshold for v in verdicts] == [None, 0.5, 0.3, 0.0, None]
    assert [v.used for v in verdicts] == [10, 23, 14, 10, 10]


def test_relabel_with_other_bounds_needs_no_rollouts():
    assert [v.stratum for v in relabel(**LOSSLESS, tau=0.1, bounds=Bounds(0.2, 0.5))] == [
        *("easy", "easy", "medium", "unsolved", None)
    ]
    assert [v.stratum for v in relabel(**LOSSLESS, tau=0.1, bounds=Bounds(0.5, 0.6))][:3] == ["easy", "hard", "hard"]


def test_relabel_with_a_tau_that_asks_for_as_many_successes_is_decided():
    assert [v.stratum for v in relabel(**LOSSLESS, tau=0.05)] == LOSSLESS["strata"]


def test_relabel_refuses_a_tau_that_rollouts_leave_open():
    with pytest.raises(StrataError) as error:
        relabel(**LOSSLESS, tau=0.2, command="hardsample score x.jsonl --model demo --output NEW")
    # Unsolved stays unsolved and the record without an image has no stratum: the other three are open.
    assert "3 of 5 records do not decide tau = 0.2" in str(error.value)
    assert "hardsample score x.jsonl --model demo --output NEW --tau 0.2`" in str(error.value)
    assert "--search exhaustive" in str(error.value)


def test_relabel_of_an_exhaustive_table_takes_any_tau():
    table = LOSSLESS | {
        "strata": ["easy", "hard", None],
        "successes": [[10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [5, 1] + [0] * 8, [3] + [0] * 9],
        "attempts": [[10] * 10, [10] * 10, [10] + [0] * 9],
    }
    assert [v.stratum for v in relabel(**table, tau=0.1)] == ["easy", "hard", None]
    assert [v.failure_threshold for v in relabel(**table, tau=0.5)] == [0.6, 0.1, None]
    assert [v.stratum for v in relabel(**table, tau=0.6)] == ["medium", "unsolved", None]
    assert [v.stratum for v in relabel(**table, tau=1)] == ["hard", "unsolved", None]


@pytest.mark.parametrize("tau", [0, -0.1, 1.5])
def test_relabel_refuses_a_tau_out_of_range(tau):
    with pytest.raises(ConfigError, match="tau is"):
        relabel(**LOSSLESS, tau=tau)


def test_subsets():
    strata = ["hard", "easy", None, "medium", "unsolved", "hard"]
    assert parse_subset("hard+medium") == ("medium", "hard")
    assert parse_subset("+".join(STRATA)) == STRATA
    assert subset_rows(strata, "medium+hard") == subset_rows(strata, "hard+medium") == [0, 3, 5]
    assert subset_rows(strata, "unsolved") == [4]
    for wrong in ("", "hard+", "Hard", "hard,medium"):
        with pytest.raises(StrataError, match="must join some of easy, medium, hard, unsolved"):
            parse_subset(wrong)
    with pytest.raises(StrataError, match="twice"):
        parse_subset("hard+hard")


IDS = [f"sample-{i}" for i in range(1000)]
LABELS = [("easy", "medium", "hard", "unsolved", None)[i % 5] for i in range(1000)]


def test_controls_have_the_size_of_their_subset_and_only_rows_with_a_stratum():
    rows = control_rows(IDS, LABELS, "medium+hard", 0)
    assert len(rows) == len(set(rows)) == 400
    assert rows == sorted(rows)
    assert all(LABELS[row] is not None for row in rows)
    assert control_rows(IDS, LABELS, "+".join(STRATA), 0) == [row for row in range(1000) if LABELS[row] is not None]
    assert control_rows(IDS, ["easy"] * 1000, "hard", 0) == []


def test_controls_depend_on_seed_and_subset_only():
    rows = control_rows(IDS, LABELS, "medium+hard", 0)
    assert rows == control_rows(IDS, LABELS, "hard+medium", 0)
    turned = control_rows(IDS[::-1], LABELS[::-1], "medium+hard", 0)
    assert {IDS[row] for row in rows} == {IDS[::-1][row] for row in turned}
    assert control_rows(IDS, LABELS, "medium", 0) != control_rows(IDS, LABELS, "hard", 0)


def test_controls_draw_every_row_alike_and_independently():
    """Each of 800 rows is drawn with probability one half; draws of two seeds or subsets overlap by chance only."""
    draws = [set(control_rows(IDS, LABELS, "medium+hard", seed)) for seed in range(40)]
    draws += [set(control_rows(IDS, LABELS, "easy+hard", seed)) for seed in range(40)]
    overlap_sd = sqrt(400 * 0.5 * 0.5 * 400 / 799)
    overlaps = [len(a & b) for i, a in enumerate(draws) for b in draws[:i]]
    assert all(abs(overlap - 200) < 5 * overlap_sd for overlap in overlaps)
    times = [sum(row in draw for draw in draws) for row in range(1000) if LABELS[row] is not None]
    assert all(abs(count - 40) < 5 * sqrt(80 / 4) for count in times)
    shares = [sum(LABELS[row] == "unsolved" for row in draw) for draw in draws]
    assert abs(sum(shares) / len(shares) - 100) < 5 * sqrt(400 * 0.25 * 0.75 * 400 / 799 / 80)


def test_rows_select_from_a_dataset():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"id": IDS, "pism_stratum": LABELS})
    subset = table.select(subset_rows(table["pism_stratum"], "hard"))
    assert set(subset["pism_stratum"]) == {"hard"}
    control = table.select(control_rows(table["id"], table["pism_stratum"], "hard", 3))
    assert len(control) == len(subset) == 200
