"""The adaptive search as a job: any batch size, killed anywhere, within its budget."""

import io
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from hardsample.data.loading import load
from hardsample.demo import load_split
from hardsample.engines.protocol import ENGINES, EngineEntry, engine_class
from hardsample.errors import ConfigError
from hardsample.metrics.pism import PismConfig
from hardsample.metrics.strata import STRATA, Bounds
from hardsample.report.page import write_report
from hardsample.report.tables import brief_summary, probability_table, summary
from hardsample.scoring.forecast import RoundForecast
from hardsample.scoring.output import OutputError
from hardsample.scoring.score import score
from hardsample.scoring.store import Store, StoreError
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.levels import NO_SCORE

FAST = {"limit": 24, "num_masks": 4, "tau": 0.25, "ratios": (0.0, 0.3, 0.6), "progress": False, "search": "adaptive"}


def rollouts(folder):
    with Store(folder) as store:
        return list(store.rollouts())


def printed(part) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(part)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An undisturbed run."""
    return score("demo", "demo", tmp_path_factory.mktemp("adaptive") / "run", **FAST)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """With a budget of less than a rollout a sample."""
    return score("demo", "demo", tmp_path_factory.mktemp("budget") / "run", **FAST, budget="5%")


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "engines")
    monkeypatch.setitem(ENGINES, "toy", EngineEntry("toy_engine:ToyEngine", "toys"))
    toy = engine_class("toy")
    monkeypatch.setattr(toy, "refuses", ())
    monkeypatch.setattr(toy, "stop_after", None)
    return toy


def test_columns_say_where_a_stratum_is_from(plain):
    table = plain.table.to_dict()
    assert set(table["stratum_source"]) == {"adaptive"}
    np.testing.assert_allclose(np.sum(table["probabilities"], axis=1), 1, rtol=1e-4)
    for row, probabilities in enumerate(table["probabilities"]):
        assert table["pism_stratum"][row] == STRATA[int(np.argmax(probabilities))]
        assert table["stratum_probability"][row] == max(probabilities)
        low, middle, high = (
            1.0 if value is None else value
            for value in (table[f"failure_threshold{end}"][row] for end in ("_low", "", "_high"))
        )
        assert low <= middle <= high
        assert 0 <= table["predicted_success_rate"][row] <= 1 and 0 <= table["predicted_signal"][row] <= 1
    assert plain.run["counts"]["sources"] == {"measured": 0, "adaptive": 24, "predicted": 0}
    assert plain.run["counts"]["rollouts"] < 24 * 12
    assert "24 strata by own rollouts, 0 predicted" in printed(summary(plain)) + printed(brief_summary(plain))


@pytest.mark.parametrize("size", [5, 17])
def test_batch_size_changes_nothing(plain, tmp_path, size):
    other = score("demo", "demo", tmp_path, **FAST, batch_size=size)
    assert rollouts(tmp_path) == rollouts(plain.directory)
    assert other.table.to_dict() == plain.table.to_dict()


@pytest.mark.parametrize(("rounds", "missing"), [(1, 5), (3, 2), (3, 0)])
def test_killed_anywhere_it_ends_as_if_undisturbed(plain, tmp_path, rounds, missing):
    """What a kill leaves: some rounds, of the last one not all rollouts, and no results."""
    folder = shutil.copytree(plain.directory, tmp_path / "killed")
    made = "(rollouts.sample, rollouts.ratio, rollouts.realization)"
    with sqlite3.connect(folder / "rollouts.sqlite") as database:
        database.execute("DELETE FROM rounds WHERE round >= ?", (rounds,))
        database.execute(f"DELETE FROM rollouts WHERE {made} NOT IN (SELECT sample, ratio, realization FROM rounds)")
        last = "SELECT sample, ratio, realization FROM rounds WHERE round = ? ORDER BY sample DESC LIMIT ?"
        database.execute(f"DELETE FROM rollouts WHERE {made} IN ({last})", (rounds - 1, missing))
        kept = database.execute("SELECT count(*) FROM rollouts").fetchone()[0]
    (folder / "scores.parquet").unlink()
    again = score("demo", "demo", folder, **FAST)
    assert again.run["counts"]["rollouts_this_run"] == plain.run["counts"]["rollouts"] - kept > 0
    assert rollouts(folder) == rollouts(plain.directory)
    assert again.table.to_dict() == plain.table.to_dict()


def test_a_finished_folder_asks_nothing_again_and_goes_on_with_more(plain, tmp_path):
    folder = shutil.copytree(plain.directory, tmp_path / "copy")
    assert score("demo", "demo", folder, **FAST).run["counts"]["rollouts_this_run"] == 0
    score("demo", "demo", tmp_path / "unsure", **FAST, confidence=0.5)
    surer = score("demo", "demo", tmp_path / "unsure", **FAST)
    assert surer.run["counts"]["rollouts_this_run"] > 0
    with pytest.raises(StoreError, match=r"confidence: 0.9 there, 0.5 now"):
        score("demo", "demo", tmp_path / "unsure", **FAST, confidence=0.5)
    with pytest.raises(StoreError, match="search: 'adaptive' there, 'lossless' now"):
        score("demo", "demo", folder, **(FAST | {"search": "lossless"}))


def test_a_budget_is_spent_exactly_and_the_others_are_predicted(small, tmp_path):
    assert small.run["counts"]["rollouts"] == int(0.05 * 24 * 12)
    untouched = [row for row, number in enumerate(small.table["rollouts"]) if number == 0]
    assert len(untouched) >= 10
    assert {small.table[row]["stratum_source"] for row in untouched} == {"predicted"}
    assert small.run["features"]["samples"] == 24, "of all samples, from a prefill before the first round"
    folder = shutil.copytree(small.directory, tmp_path / "copy")
    more = score("demo", "demo", folder, **FAST, budget=20)
    assert more.run["counts"]["rollouts"] == 20
    with pytest.raises(StoreError, match="budget: '20' there, '5%' now"):
        score("demo", "demo", folder, **FAST, budget="5%")


def test_other_bounds_and_another_tau_are_labelled_without_rollouts(plain):
    table = plain.table.to_dict()
    np.testing.assert_allclose(plain.estimate().labels, table["probabilities"], atol=1e-5)
    assert [label.stratum for label in plain.labels()] == table["pism_stratum"]
    assert "medium" not in {label.stratum for label in plain.labels(Bounds(0.3, 0.5))}
    strict = [label.stratum for label in plain.labels(tau=1.0)]
    assert strict.count("unsolved") > table["pism_stratum"].count("unsolved")
    rows = printed(probability_table(table["pism_stratum"], table["probabilities"]))
    expected = np.sum(table["probabilities"], axis=0)
    assert all(f"{count:,.1f}" in rows for count in expected)


def test_other_searches_have_no_probabilities(tmp_path):
    lossless = score("demo", "demo", tmp_path, **(FAST | {"search": "lossless", "limit": 4}))
    assert set(lossless.table["stratum_source"]) == {"measured"}
    assert set(lossless.table["stratum_probability"]) == {None}
    with pytest.raises(OutputError, match="score with --search adaptive"):
        lossless.estimate()


def test_an_engine_that_answers_in_any_order_and_stops_in_the_middle(toys, tmp_path):
    settings = FAST | {"engine": "toy", "concurrency": 7}
    whole = score("demo", "toys", tmp_path / "whole", **settings)
    toys.stop_after = 40
    with pytest.raises(KeyboardInterrupt):
        score("demo", "toys", tmp_path / "stopped", **settings)
    toys.stop_after = None
    stopped = score("demo", "toys", tmp_path / "stopped", **(settings | {"concurrency": 3}))
    assert stopped.table.to_dict() == whole.table.to_dict()
    assert rollouts(tmp_path / "stopped") == rollouts(tmp_path / "whole")


def test_rejected_samples_and_samples_without_an_image(toys, tmp_path):
    lines = []
    (tmp_path / "images").mkdir()
    for number, record in enumerate(load_split("demo", 5)):
        (tmp_path / "images" / f"{number}.png").write_bytes(record["images"][0]["bytes"])
        text = record["prompt"][0]["content"][1]["text"]
        image = {"problem": f"<image>{text}", "images": [f"images/{number}.png"]}
        plain = {"problem": "What number is written?", "images": []}
        lines.append({"id": f"q{number}", "answer": record["solution"]} | (image if number < 4 else plain))
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(load(path).dataset) == 5
    toys.refuses = ("q1",)
    settings = {name: value for name, value in FAST.items() if name != "limit"} | {"engine": "toy"}
    scores = score(path, "toys", tmp_path / "out", **settings)
    assert list(scores.table["id"]) == ["q0", "q2", "q3", "q4"]
    (rejection,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert rejection["id"] == "q1"
    text = scores.table[3]
    assert text["attempts"] == [4, 0, 0] and text["pism_stratum"] is None and text["stratum_source"] is None
    again = score(path, "toys", tmp_path / "out", **settings)
    assert again.run["counts"]["rollouts_this_run"] == 0 and again.run["counts"]["rejected"] == 1
    budgeted = score(path, "toys", tmp_path / "budget", **settings, budget=7)
    assert budgeted.run["counts"]["rollouts"] == 7


def test_samples_without_an_answer_are_unfinished(tmp_path):
    cut = score("demo", "demo", tmp_path, **FAST, max_new_tokens=1)
    table = cut.table.to_dict()
    unfinished = [row for row, name in enumerate(table["pism_stratum"]) if name == "unfinished"]
    assert unfinished
    for row in unfinished:
        assert table["unanswered"][row] == table["attempts"][row][0] > 0
        assert table["failure_threshold"][row] is None and table["probabilities"][row] is None
    assert [label.stratum for label in cut.labels(Bounds(0.2, 0.5))].count("unfinished") == len(unfinished)


def test_report_and_training_take_predicted_samples(small):
    page = write_report(small.directory).read_text()
    assert "This run is adaptive" in page and "predicted without" in page
    evidence = Evidence(24, EvidenceConfig(), ratios=FAST["ratios"])
    evidence.seed(np.arange(24), pq.read_table(small.directory / "scores.parquet"))
    predicted = np.array(list(small.table["stratum_source"])) == "predicted"
    assert (evidence.levels.level[predicted] == NO_SCORE).all()
    assert (evidence.levels.level[~predicted] != NO_SCORE).all()
    assert not evidence.successes[predicted].any() and not evidence.failures[predicted].any()


def test_cmab_is_added_and_the_posteriors_stay(small, tmp_path):
    folder = shutil.copytree(small.directory, tmp_path / "copy")
    both = score(output=folder, metric="cmab", progress=False)
    np.testing.assert_allclose(both.table["probabilities"], small.table["probabilities"], atol=1e-5)
    for row in both.table:
        assert (row["cmab_stratum"] is not None) == (row["attempts"][0] > 0)


def test_the_forecast_knows_a_budget_and_guesses_the_rest():
    known = RoundForecast(stored=100, budget=400)
    known.begin_round(50, 80)
    left = known.remaining()
    assert left.expected == left.high == 300 and left.low <= 300
    guessed = RoundForecast(stored=0)
    guessed.begin_round(100, 100)
    for _ in range(100):
        guessed.record_rollout(None, None, 1)
    guessed.begin_round(60, 60)
    left = guessed.remaining()
    assert left.expected == pytest.approx(60 + 90)
    assert 60 < left.low < left.expected < left.high
    for _ in range(60):
        guessed.record_rollout(None, None, 1)
    assert guessed.remaining().expected == pytest.approx(90), "between two rounds more is to come"
    guessed.begin_round(0, 0)
    assert guessed.remaining().high == 0


@pytest.mark.parametrize("budget", ["0", "-3", "1.5", "101%", "0%", "much", "5%%", ""])
def test_budgets_that_are_none(budget):
    with pytest.raises(ConfigError, match=r"such as 20000 or 10%"):
        PismConfig(search="adaptive", budget=budget)


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="add --search adaptive, or leave it out"):
        PismConfig(budget="10%")
    with pytest.raises(ConfigError, match="use --search lossless"):
        PismConfig(search="adaptive", blind=True)
    for confidence in (0.25, 1.1):
        with pytest.raises(ConfigError, match=r"above 0.25 to 1"):
            PismConfig(search="adaptive", confidence=confidence)
    assert PismConfig(search="adaptive", budget=20_000).budget == "20000"
