"""Comparisons of two scorings: moved samples, agreement, and scorings that must not be compared."""

import json
from math import isnan

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.evaluation.comparing import ComparisonError, by_ability, compare_scores, furthest, kappa, write_moved
from hardsample.metrics.intervals import accuracy_interval
from hardsample.metrics.pism import PismConfig
from hardsample.metrics.strata import STRATA, Bounds, stratum
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import SCHEMA, OutputError
from hardsample.scoring.store import Store

CONFIG = PismConfig()
BASE = [("a", 0.0), ("b", 0.2), ("c", 0.5), ("d", 0.9), ("e", None), ("f", 0.6)]
"""Id and λ* of six samples: unsolved, hard, medium, easy, easy, medium."""


def scoring(folder, thresholds, bounds=CONFIG.bounds, digests=None, no_image=(), **settings):
    """Return a finished run of samples with these λ*, as a lossless ladder leaves it."""
    folder.mkdir()
    columns = {name: [] for name in SCHEMA.names}
    for row, (sample, threshold) in enumerate(thresholds):
        failed = [threshold is not None and ratio >= threshold for ratio in CONFIG.ratios]
        row = dict.fromkeys(SCHEMA.names) | {
            "id": sample,
            "pism_stratum": None if sample in no_image else stratum(threshold, threshold == 0, bounds),
            "failure_threshold": threshold,
            "successes": [0 if fails else 1 for fails in failed],
            "attempts": [10 if fails else 1 for fails in failed],
            "rollouts": 10,
            "ability": "xy"[row % 2],
        }
        for name, value in row.items():
            columns[name].append(value)
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / "scores.parquet")
    known = {name: value for name, value in vars(ScoringConfig()).items() if name not in ("cmab", "image_root")}
    known |= {"hard_max": bounds.hard_max, "easy_min": bounds.easy_min, **settings}
    run = {"status": "done", "data": "d", "model": settings.get("model", "m"), "image_root": None}
    run |= {"mask_space": known["mask_space"], "settings": known}
    (folder / "run.json").write_text(json.dumps(run))
    if digests:
        with Store(folder) as store:
            store.agree_on_samples(digests.items())
    return folder


def test_moves_are_counted_one_way_and_the_other(tmp_path):
    first = scoring(tmp_path / "1", [*BASE, ("only", 0.1)])
    moved = [("a", 0.3), ("b", 0.2), ("c", 0.5), ("d", 0.5), ("e", None), ("f", 0.1), ("new", 0.9)]
    comparison = compare_scores(first, scoring(tmp_path / "2", moved, seed=1, temperature=1.0))
    assert [(move.id, move.first, move.second, move.way) for move in comparison.moved] == [
        ("a", "unsolved", "hard", 1),
        ("d", "easy", "medium", -1),
        ("f", "medium", "hard", -1),
    ]
    assert comparison.counts == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert sum(map(sum, comparison.counts)) == len(comparison.samples) == 6
    assert comparison.agreement == accuracy_interval([1, 1, 1, 0, 0, 0], [1] * 6), "Wilson, on six samples"
    assert (comparison.easier.value, comparison.harder.value) == (1 / 6, 2 / 6)
    assert comparison.left_out == 2
    assert comparison.change.value == pytest.approx((0.3 - 0.4 - 0.5) / 6)
    assert [move.id for move in furthest(comparison.moved)] == ["f", "d", "a"]
    assert comparison.notes == [
        "temperature: 0.7 in the first, 1.0 in the second",
        "seed: 0 in the first, 1 in the second",
    ]
    size, easier, harder = by_ability(comparison.samples)["x"]
    assert (size, easier.value, harder.value) == (3, 1 / 3, 0)


def test_a_scoring_agrees_with_itself(tmp_path):
    first = scoring(tmp_path / "1", BASE)
    comparison = compare_scores(first, first)
    assert comparison.agreement.value == 1
    assert comparison.kappa.value == pytest.approx(1) == comparison.correlation.value
    assert comparison.moved == [] and comparison.change.value == 0
    assert comparison.agreement.low < 1, "six samples do not prove it"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_space": "model"}, "mask space source, .* with model"),
        ({"mask_kind": "patch"}, "mask kind pixel, .* with patch"),
        ({"num_masks": 4}, "number of masks K 10, .* with 4"),
        ({"tau": 0.2}, "τ 0.1, .* with 0.2"),
        ({"ratios": [0.0, 0.5]}, r"mask ratios 0, 0\.1, .* with 0, 0\.5"),
    ],
)
def test_different_measurements_are_rejected(tmp_path, settings, message):
    first, second = scoring(tmp_path / "1", BASE), scoring(tmp_path / "2", BASE, **settings)
    with pytest.raises(
        ComparisonError, match=f"{message}: these are different measurements; score both with the same settings"
    ):
        compare_scores(first, second)


def test_evaluations_unfinished_runs_and_strangers_are_refused(tmp_path):
    first = scoring(tmp_path / "1", BASE)
    with pytest.raises(ComparisonError, match="have 1 scored samples in common, must be two or more"):
        compare_scores(first, scoring(tmp_path / "2", [("a", 0.1), ("z", 0.2)]))
    evaluated = scoring(tmp_path / "3", BASE, ratios=[0.0])
    with pytest.raises(ComparisonError, match=r"no sample has a λ\* to compare: .*hardsample compare"):
        compare_scores(evaluated, evaluated)
    run = json.loads((first / "run.json").read_text())
    (first / "run.json").write_text(json.dumps(run | {"status": "running"}))
    with pytest.raises(OutputError, match="not finished"):
        compare_scores(first, first)


def test_samples_of_one_name_that_are_not_the_same_are_left_out(tmp_path):
    digests = {name: name for name, _ in BASE}
    first = scoring(tmp_path / "1", BASE, digests=digests)
    comparison = compare_scores(first, scoring(tmp_path / "2", BASE, digests=digests | {"c": "another image"}))
    assert [move.id for move in comparison.samples] == ["a", "b", "d", "e", "f"]
    assert (comparison.differing, comparison.left_out) == (1, 0)
    assert "1 samples have the same id but different content: left out" in comparison.notes


def test_samples_without_an_image_have_nothing_to_compare(tmp_path):
    first = scoring(tmp_path / "1", BASE, no_image=["a"])
    comparison = compare_scores(first, scoring(tmp_path / "2", BASE, no_image=["b"]))
    assert [move.id for move in comparison.samples] == ["c", "d", "e", "f"]
    assert comparison.left_out == 2


def test_bounds_of_the_first_are_taken_for_both(tmp_path):
    first = scoring(tmp_path / "1", BASE)
    second = scoring(tmp_path / "2", BASE, bounds=Bounds(0.55, 0.65))
    comparison = compare_scores(first, second)
    assert comparison.agreement.value == 1
    assert "the bounds of the strata differ: the bounds of the first are used for both" in comparison.notes


def test_kappa_is_that_of_the_textbook():
    # Fleiss, Cohen and Everitt's own kind of example, worked out by hand: p_o = 0.7, p_e = 0.5, κ = 0.4
    interval = kappa([[20, 5], [10, 15]])
    assert interval.value == pytest.approx(0.4)
    assert interval.samples == 50
    assert isnan(kappa([[7, 0], [0, 0]]).value)
    assert kappa([[5, 0], [0, 5]]).low == pytest.approx(1)
    with pytest.raises(ValueError, match="empty"):
        kappa([[0, 0], [0, 0]])


def test_the_interval_of_kappa_covers():
    rng = np.random.default_rng(0)
    truth = np.array([[0.3, 0.05, 0.02], [0.05, 0.2, 0.08], [0.03, 0.07, 0.2]])
    rows, columns = truth.sum(1), truth.sum(0)
    expected = rows @ columns
    kappa_true = (np.trace(truth) - expected) / (1 - expected)
    tables = rng.multinomial(200, truth.ravel(), 2000).reshape(-1, 3, 3)
    inside = [(interval := kappa(table.tolist())).low <= kappa_true <= interval.high for table in tables]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_the_list_of_moved_samples_is_complete(tmp_path):
    second = scoring(tmp_path / "2", [("a", 0.3), *BASE[1:]])
    comparison = compare_scores(scoring(tmp_path / "1", BASE), second)
    (line,) = write_moved(comparison, tmp_path / "moved.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "id": "a",
        "ability": "x",
        "moved": "easier",
        "first": "unsolved",
        "second": "hard",
        "first_failure_threshold": 0.0,
        "second_failure_threshold": 0.3,
    }


def test_the_command_writes_page_and_list(tmp_path, hostile):
    first = scoring(tmp_path / "1", [*BASE, (hostile, 0.1)])
    second = scoring(tmp_path / "2", [("a", 0.3), *BASE[1:], (hostile, None)], model=hostile)
    done = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert done.exit_code == 0, done.output
    assert "agreement  71.4 % (35.9 to 91.8) of 7 samples are in the same stratum" in done.output
    page = (second / "compare.html").read_text()
    assert page.count("<script>") == 1 and "&lt;script&gt;" in page
    assert page.count("data-move=") == len((second / "compare.jsonl").read_text().splitlines()) == 2
    for name in STRATA:
        assert f'<th scope="row">{name}</th>' in page
    done = CliRunner().invoke(app, ["compare", str(first), str(second), "--output", str(tmp_path / "x.txt")])
    assert done.exit_code == 2
    done = CliRunner().invoke(app, ["compare", str(first), str(tmp_path)])
    assert done.exit_code == 1 and "holds no results" in done.output


def test_where_nothing_varies_there_is_no_correlation(tmp_path):
    same = [(name, 0.5) for name, _ in BASE]
    comparison = compare_scores(scoring(tmp_path / "1", same), scoring(tmp_path / "2", same))
    assert comparison.correlation is None
    assert isnan(comparison.kappa.value)
