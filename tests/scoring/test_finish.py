"""Completions that came to no answer are no wrong answers: from the engine to labels, tables, subsets and training."""

import io
import json
import shutil
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.engines.protocol import Request
from hardsample.engines.results import finish_state
from hardsample.engines.transformers import TransformersEngine
from hardsample.evaluation.comparing import compare_scores
from hardsample.evaluation.evaluate import evaluate
from hardsample.metrics.finishes import FINISHES, shares_text, unanswered
from hardsample.metrics.ladders import Ladder
from hardsample.metrics.pism import PismConfig, next_rollouts, verdict
from hardsample.metrics.signatures import cut_off, no_answer
from hardsample.metrics.strata import STRATA, StrataError, control_rows, parse_subset, relabel, subset_rows
from hardsample.report.explain import explain
from hardsample.report.page import write_report
from hardsample.report.tables import accuracy_table, summary
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.scoring.store import Rollout, Store, StoreReader
from hardsample.trainer.experiment.paradigms import tercile_strata
from hardsample.trainer.selection.evidence import Evidence
from hardsample.trainer.selection.strata import NAMES, stratify

SMALL = {"num_masks": 4, "tau": 0.25, "ratios": (0.0, 0.3, 0.6), "limit": 24, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Scored with room for two tokens: one-digit answers of the demo fit, three-digit ones are cut off."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    return score("demo", "demo", folder, max_new_tokens=2, metric=("pism", "cmab"), **SMALL)


def printed(part) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "ended", "reasoning", "finish"),
    [
        ("45", "stop", False, "stop"),
        ("45", "stop", True, "stop"),
        ("45", "length", False, "length"),
        ("", "length", False, "length"),
        ("<think>45", "length", False, "length"),
        ("", "stop", False, "empty"),
        (" \n\t", "stop", False, "empty"),
        ("", "stop", True, "reasoning_only"),
        ("<think>45</think>", "stop", False, "reasoning_only"),
        ("<think>\n45", "stop", False, "reasoning_only"),
        ("45 it may be</think> \n", "stop", False, "reasoning_only"),
        ("<think>hm</think> 45", "stop", False, "stop"),
        ("", "content_filter", False, "content_filter"),
        ("45", "tool_call", False, "tool_call"),
    ],
)
def test_finish_state(text, ended, reasoning, finish):
    assert finish_state(text, ended, reasoning) == finish
    assert finish in FINISHES


def test_what_counts_as_no_answer():
    assert not any(unanswered(finish, 1) for finish in (*FINISHES, None)), "what is right is an answer"
    assert [finish for finish in (*FINISHES, None) if not unanswered(finish, 0)] == ["stop", None]


def test_the_engine_says_how_completions_ended(model, processor, questions):
    from hardsample.scoring.config import ScoringConfig

    requests = [Request(question, 0.0, 0) for question in questions[:24]]
    whole = TransformersEngine(model, processor, ScoringConfig(max_new_tokens=16, temperature=0.0))
    full = whole.generate(whole.prepare(requests))
    assert {reply.finish for reply in full} == {"stop"}
    longest = max(len(reply.tokens) for reply in full)
    short = TransformersEngine(model, processor, ScoringConfig(max_new_tokens=longest, temperature=0.0))
    brief = short.generate(short.prepare(requests))
    for reply, short_reply in zip(full, brief, strict=True):  # the end-of-sequence of the longest does not fit
        assert short_reply.tokens == reply.tokens
        assert short_reply.finish == ("length" if len(reply.tokens) == longest else "stop")


def test_cut_off_samples_are_unfinished_and_not_unsolved(tmp_path):
    scores = score("demo", "demo", tmp_path, max_new_tokens=1, **SMALL)
    assert set(scores.table["pism_stratum"]) == {"unfinished"}
    assert set(scores.table["failure_threshold"]) == {None}
    assert list(scores.table["unanswered"]) == [4] * 24 == [tries[0] for tries in scores.table["attempts"]]
    counts = scores.run["counts"]
    assert counts["strata"] == dict.fromkeys(STRATA, 0) and counts["unfinished"] == 24
    assert counts["finish"] == {"unmasked": {"length": 96}, "all": {"length": 96}}
    with Store(tmp_path) as store:
        assert {rollout.finish for rollout in store.rollouts()} == {"length"}
    again = score("demo", "demo", tmp_path, max_new_tokens=1, **SMALL)
    assert (
        again.run["counts"]["rollouts_this_run"] == 0
        and again.table["pism_stratum"][:] == scores.table["pism_stratum"][:]
    )


def test_a_right_answer_that_was_cut_off_is_right(cut):
    labels, unanswered_of = list(cut.table["pism_stratum"]), list(cut.table["unanswered"])
    assert {"unfinished"} < set(labels) and set(labels) - {"unfinished"} <= {"easy", "medium", "hard"}
    for label, wins, tries, without in zip(
        labels, cut.table["successes"], cut.table["attempts"], unanswered_of, strict=True
    ):
        assert (label == "unfinished") == (wins[0] == 0) and without == tries[0] - wins[0]
    assert cut.run["counts"]["finish"]["unmasked"].keys() == {"length"}


def test_cmab_says_unfinished_too(cut):
    pairs = set(zip(cut.table["pism_stratum"], cut.table["cmab_stratum"], strict=True))
    assert {label for pair in pairs if "unfinished" in pair for label in pair} == {"unfinished"}
    assert cut.run["counts"]["cmab_unfinished"] == cut.run["counts"]["unfinished"] > 0


def test_attending_keeps_unfinished(cut, tmp_path):
    folder = shutil.copytree(cut.directory, tmp_path / "run")
    again = score(output=folder, metric="cmab", progress=False, device="cpu")
    for name in ("pism_stratum", "cmab_stratum", "unanswered"):
        assert again.table[name][:] == cut.table[name][:]


GRADES = st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=6, max_size=6)


@given(rollouts=GRADES, tau=st.sampled_from((0.1, 0.2, 0.34, 0.5, 0.84, 1.0)))
def test_lossless_and_exhaustive_agree_on_who_is_unfinished(rollouts, tau):
    result = []
    for search in ("lossless", "exhaustive"):
        config = PismConfig(ratios=(0.0, 0.5), num_masks=6, tau=tau, search=search)
        ladder = Ladder(0, {"id": "a", "images": [1]}, config)
        while asked := ladder.ask():
            for ratio, k in asked:
                grade, ended = rollouts[k]
                ladder.record_grade(ratio, k, grade, bool(grade or ended))
        result.append(verdict(ladder.grades, config, True, ladder.answered))
        assert result[-1].decided
    assert result[0].stratum == result[1].stratum and result[0].failure_threshold == result[1].failure_threshold
    assert (result[0].stratum == "unfinished") == (not any(grade or ended for grade, ended in rollouts))


def test_a_lossless_ladder_makes_all_masks_only_while_there_is_no_answer():
    config = PismConfig(num_masks=10, tau=0.5)
    grades = [[0] * 6 + [None] * 4, *[[None] * 10 for _ in config.ratios[1:]]]
    assert next_rollouts(grades, config) == []
    assert next_rollouts(grades, config, answered=False) == [(0, 6)]
    assert verdict(grades, config).stratum == "unsolved"
    assert verdict(grades, config, answered=False) == verdict(grades, config, True, False)
    assert not verdict(grades, config, answered=False).decided


def test_a_ladder_takes_up_what_the_store_holds(tmp_path):
    config = PismConfig(num_masks=3, tau=0.5)
    rows = [("a", 0.0, 0, 0, "length"), ("a", 0.0, 1, 0, "empty"), ("a", 0.1, 0, 0, "length"), ("b", 0.0, 0, 0, None)]
    rows += [("c", 0.0, 0, 1, "length")]
    with Store(tmp_path) as store:
        store.commit([Rollout(name, ratio, k, "", grade, [], finish) for name, ratio, k, grade, finish in rows])
        assert [store.unanswered(name) for name in "abc"] == [[0, 1], [], []]
        assert store.finishes() == {
            "unmasked": {"length": 2, "empty": 1, "unknown": 1},
            "all": {"length": 3, "empty": 1, "unknown": 1},
        }
        ladder = Ladder(0, {"id": "a", "images": [1]}, config, store.grades("a"), store.unanswered("a"))
    assert ladder.ask() == [(0.0, 2)], "at τ = 0.5 two wrong ones of three would do, if they were answers"
    ladder.record_grade(0.0, 2, 0, answered=False)
    assert ladder.idle and not ladder.ask() and not ladder.answered


def test_a_record_without_an_image_has_no_stratum_whatever_ends_it():
    assert verdict([[0, 0]], PismConfig(ratios=(0.0,), num_masks=2), has_image=False, answered=False).stratum is None


def old_folder(folder):
    """Return the folder as an older version left it: its store has no finish states."""
    with sqlite3.connect(folder / "rollouts.sqlite") as database:
        database.execute("ALTER TABLE rollouts DROP COLUMN finish")
    database.close()
    return folder


def test_a_folder_of_an_older_version_is_read_and_continued(tmp_path):
    settings = SMALL | {"max_new_tokens": 1, "limit": 8}
    first = score("demo", "demo", tmp_path / "run", **settings | {"limit": 4})
    folder = old_folder(tmp_path / "run")
    sample = first.table["id"][0]
    with StoreReader(folder) as reader:
        assert [rollout.finish for rollout in reader.rollouts(sample)] == [None] * 4
    scores = score("demo", "demo", folder, **settings)
    assert list(scores.table["pism_stratum"]) == ["unsolved"] * 4 + ["unfinished"] * 4, (
        "what is not known is not told apart"
    )
    assert scores.run["counts"]["finish"]["unmasked"] == {"length": 16, "unknown": 16}
    assert scores.run["counts"]["rollouts_this_run"] == 16
    with Store(folder) as store:
        assert [rollout.finish for rollout in store.rollouts(sample)] == [None] * 4
    assert "50 % unknown (stored by an older version)" in printed(summary(scores))


def test_the_results_of_an_older_version_are_shown_as_ever(cut, tmp_path):
    folder = old_folder(shutil.copytree(cut.directory, tmp_path / "run"))
    table = pq.read_table(folder / "scores.parquet").drop_columns(["unanswered"])
    pq.write_table(table, folder / "scores.parquet")
    run = json.loads((folder / "run.json").read_text())
    run["signatures"] = []
    for name in ("finish", "unfinished", "cmab_unfinished"):
        del run["counts"][name]
    (folder / "run.json").write_text(json.dumps(run))
    assert "at λ = 0:" not in printed(summary(Scores(folder)))
    assert "How completions ended" not in write_report(folder, tmp_path / "old.html").read_text()
    attended = score(output=folder, metric="cmab", progress=False, device="cpu")
    assert set(attended.table["unanswered"]) == {0} and "unfinished" not in attended.table["pism_stratum"]


def test_the_warning_names_the_remedy_over_five_per_cent():
    assert cut_off({"stop": 95, "length": 5}, 16) is None
    output = cut_off({"stop": 94, "length": 6, "unknown": 1000}, 16)
    assert output == (
        "Cut off: 6 % of the rollouts at λ = 0 (6 of 100) were cut off at 16 new tokens, which says nothing about "
        "their samples. Score with more tokens, into another --output: --max-new-tokens 64."
    )
    assert cut_off({}, 16) is None and no_answer({}) is None
    assert no_answer({"stop": 95, "empty": 5}) is None and no_answer({"length": 100}) is None
    output = no_answer({"stop": 90, "reasoning_only": 6, "empty": 4})
    assert "10 % of the rollouts at λ = 0 (10 of 100) ended without an answer" in output
    assert "40 % empty, 60 % reasoning without an answer" in output
    assert shares_text({"stop": 999, "length": 1}) == "100 % ended by themselves, < 1 % cut off"


def test_the_summary_shows_shares_warning_and_unfinished(cut):
    output = printed(summary(cut))
    number = list(cut.table["pism_stratum"]).count("unfinished")
    assert "at λ = 0: 100 % cut off" in output
    assert f"unfinished {number} samples have no rollout at λ = 0 with an answer" in output
    assert "! Cut off: 100 % of the rollouts at λ = 0" in output and "--max-new-tokens 8" in output
    head = next(line for line in output.splitlines() if "ability" in line and "easy" in line)
    assert head.index("unsolved") < head.index("unfinished") < head.index("all")


def test_relabelling_keeps_unfinished(cut):
    unfinished = [label == "unfinished" for label in cut.table["pism_stratum"]]
    for tau in (0.05, 0.25):
        labels = cut.labels(tau=tau)
        assert [label.stratum == "unfinished" for label in labels] == unfinished
        assert {label.failure_threshold for label, is_open in zip(labels, unfinished, strict=True) if is_open} == {None}
    (label,) = relabel(["unfinished"], [[0, 0]], [[4, 0]], (0.0, 0.5), 4, 1.0)
    assert (label.stratum, label.failure_threshold, label.decided) == ("unfinished", None, True)


def test_subsets_and_controls(cut, tmp_path):
    labels = ["unfinished"] * 40 + ["easy", "medium", "hard", "unsolved"] + [None] * 3
    ids = [f"s{row}" for row in range(len(labels))]
    assert parse_subset("unfinished+hard") == ("hard", "unfinished")
    assert subset_rows(labels, "unfinished") == list(range(40))
    assert subset_rows(labels, "easy+medium+hard+unsolved") == [40, 41, 42, 43]
    for seed in range(20):
        assert set(control_rows(ids, labels, "medium+hard", seed)) <= {40, 41, 42, 43}
    with pytest.raises(StrataError, match="easy, medium, hard, unsolved, unfinished"):
        parse_subset("unfinsihed")
    folder = shutil.copytree(cut.directory, tmp_path / "run")
    done = CliRunner().invoke(app, ["stratify", str(folder), "--cmab-bounds", "0.1,0.4,1.6,1.9"])
    assert done.exit_code == 0, done.output
    options = ["--subset", "unfinished", "--subset", "easy+medium+hard", "--control"]
    done = CliRunner().invoke(app, ["export", str(folder), *options])
    assert done.exit_code == 0, done.output
    from datasets import load_from_disk

    assert set(load_from_disk(folder / "subsets" / "unfinished")["pism_stratum"]) == {"unfinished"}
    control = load_from_disk(folder / "subsets" / "random-like-easy+medium+hard-seed0")
    assert len(control) == sum(name != "unfinished" for name in cut.table["pism_stratum"])
    assert "unfinished" not in set(control["pism_stratum"])
    table = pq.read_table(folder / "strata.parquet").to_pydict()
    assert table["pism_stratum"] == list(cut.table["pism_stratum"])
    assert [name == "unfinished" for name in table["cmab_stratum"]] == [
        name == "unfinished" for name in table["pism_stratum"]
    ]


def test_the_report_counts_unfinished_apart(cut, tmp_path):
    html = write_report(cut.directory, tmp_path / "report.html").read_text().replace("\u00a0", " ")
    number = list(cut.table["pism_stratum"]).count("unfinished")
    assert html.count('data-stratum="unfinished"') == number
    assert f"{number} more samples are unfinished" in html
    assert f"{number} samples are unfinished: none of their rollouts at λ = 0 has an answer" in html
    assert "Cut off: 100 % of the rollouts" in html and "a larger --max-new-tokens" in html
    assert "How completions ended" in html and "no λ*: no answer at λ = 0" in html
    assert '<span class="small-print">(cut off)</span>' in html
    known = 24 - number
    assert f" of {known} samples (" in html, "shares are of the four strata"


def test_explain_says_it(cut, tmp_path, monkeypatch):
    folder = shutil.copytree(cut.directory, tmp_path / "run")
    output = []
    from matplotlib.figure import Figure

    save = Figure.savefig

    def keep(figure, *args, **more):
        output.extend(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
        return save(figure, *args, **more)

    monkeypatch.setattr(Figure, "savefig", keep)
    row = list(cut.table["pism_stratum"]).index("unfinished")
    assert explain(folder, cut.table["id"][row], device="cpu").exists()
    assert "unfinished: no completion at λ = 0 has an answer" in output
    assert any("(cut off)" in text for text in output)


def test_comparisons_leave_unfinished_out_and_say_so(cut, tmp_path):
    whole = score("demo", "demo", tmp_path / "whole", max_new_tokens=16, **SMALL)
    number = list(cut.table["pism_stratum"]).count("unfinished")
    for first, second, side in ((cut, whole, "first"), (whole, cut, "second")):
        result = compare_scores(first.directory, second.directory)
        assert len(result.samples) == 24 - number and result.unfinished == number and result.left_out == 0
        assert sum(map(sum, result.counts)) == 24 - number
        assert any(f"unfinished, {number} in the {side}: left out" in note for note in result.notes)
    done = CliRunner().invoke(app, ["compare", str(cut.directory), str(whole.directory)])
    assert done.exit_code == 0 and "unfinished" in done.output
    assert "unfinished in one" in (whole.directory / "compare.html").read_text()


def test_an_evaluation_says_what_was_cut_off(cut, tmp_path):
    result = evaluate(
        "demo", "demo", tmp_path / "e", limit=24, max_new_tokens=2, strata=cut.directory, progress=False, device="cpu"
    )
    assert result.finish == {"length": 24}
    assert result.groups["stratum"]["unfinished"].samples == list(cut.table["pism_stratum"]).count("unfinished")
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["finish"] == {"length": 24}
    output = printed(accuracy_table(result))
    assert "100 % cut off; answers that are missing count as wrong" in output and "--max-new-tokens 8" in output
    html = write_report(tmp_path / "e", tmp_path / "e.html").read_text()
    assert "Cut off: 100" in html and "without an answer" in html and "How completions ended" in html
    whole = evaluate("demo", "demo", tmp_path / "w", limit=8, max_new_tokens=16, progress=False, device="cpu")
    assert whole.finish == {"stop": 8} and "ended" not in printed(accuracy_table(whole))


def test_training_takes_no_evidence_from_what_was_cut_off(cut):
    table = cut.table.with_format("arrow")[:]
    evidence = Evidence(24, ratios=SMALL["ratios"])
    evidence.seed(np.arange(24), table)
    unfinished = np.array([label == "unfinished" for label in cut.table["pism_stratum"]])
    assert not evidence.successes[unfinished].any() and not evidence.failures[unfinished].any()
    assert (evidence.levels.level[unfinished] == -1).all() and (evidence.levels.level[~unfinished] > 0).all()
    alpha, beta = evidence.posterior(slice(None), 0)
    codes = stratify(alpha, beta, evidence.levels.level, SMALL["ratios"], evidence.config)
    assert {NAMES[code] for code in codes[unfinished]} == {"unscored"}


def test_training_takes_no_evidence_from_cut_off_text_only_samples():
    columns = {"pism_stratum": [None, None, "unsolved", "unfinished"], "failure_threshold": [None, None, 0.0, None]}
    columns |= {"successes": [[0, 0]] * 4, "attempts": [[4, 0]] * 4, "unanswered": [4, 3, 4, 4]}
    columns["unanswered"][2] = 0
    types = {"pism_stratum": pa.string(), "failure_threshold": pa.float64(), "unanswered": pa.int32()}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    for scores, wanted in ((table, [0, 4, 4, 0]), (table.drop_columns("unanswered"), [4, 4, 4, 0])):
        evidence = Evidence(4, ratios=(0.0, 0.5))
        evidence.seed(np.arange(4), scores)
        assert evidence.failures.tolist() == wanted
        assert evidence.levels.level.tolist() == [-1, -1, 0, -1]


def test_recipes_by_thirds_leave_unfinished_alone():
    strata = ["unfinished", "unsolved", None, "easy", "easy", "easy"]
    thresholds = [None, 0.0, None, 0.2, 0.5, None]
    for metric in ("pism", "cmab"):
        labels, _ = tercile_strata(metric, strata, thresholds, [None, None, None, 0.1, 1.0, 5.0], (0.0, 0.2, 0.5, 0.9))
        assert labels[:3] == ["unfinished", "unsolved", None]
        assert set(labels[3:]) <= set(STRATA[:3])
