"""Scores meet data that is no longer what was scored: every command says so, or finds the samples by their content."""

import json
import logging
import shutil
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from hardsample.data.digests import ChangedError, old_digest, sample_digest
from hardsample.data.loading import load
from hardsample.demo import load_split
from hardsample.evaluation.comparing import compare_scores
from hardsample.evaluation.evaluate import _groups_of, compare, evaluate
from hardsample.report import explain as explaining
from hardsample.report.explain import explain
from hardsample.report.page import write_report
from hardsample.report.parts.gather import gather
from hardsample.scoring.matching import known_digests, rejected_samples, scored_records
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.score import score
from hardsample.scoring.store import StoreError
from hardsample.scoring.subsets import source_records, write_subsets

COUNT, GONE = 18, 5
SETTINGS = {"ratios": (0.0, 0.3, 0.6), "num_masks": 2, "tau": 0.5, "progress": False}


def write(folder, name, order, **changes):
    """Return a file of these questions without ids; `changes` are of the solution of the line of that number."""
    questions = load_split("demo:pool", COUNT)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index, row in enumerate(order):
        record = questions[row]
        path = folder / "images" / f"{row}.png"
        path.write_bytes(record["images"][0]["bytes"])
        text = record["prompt"][0]["content"][1]["text"]
        answer = changes.get(f"line{index}", record["solution"])
        about = {"problem": f"<image>{text}", "images": [f"images/{row}.png"], "answer": answer}
        lines.append(about | {"ability": record["ability"], "grader": record["grader"]})
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


SHORTER = [row for row in range(COUNT) if row != GONE]
REVERSED = list(range(COUNT))[::-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Eighteen questions and their scores."""
    folder = tmp_path_factory.mktemp("matching")
    data = write(folder, "data.jsonl", range(COUNT))
    score(data, "demo", folder / "run", **SETTINGS)
    return folder


@pytest.fixture
def moved(whole, tmp_path):
    """Return a copy of data and scores whose file is then written in another order."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    run = json.loads((folder / "run" / "run.json").read_text())
    (folder / "run" / "run.json").write_text(json.dumps(run | {"data": str(folder / "data.jsonl")}))

    def move(order, **changes):
        write(folder, "data.jsonl", order, **changes)
        return folder / "run"

    return move


def strata_of(run):
    table = Scores(run).table
    return dict(zip(table["id"], table["pism_stratum"], strict=True))


def test_the_table_holds_the_digest_of_each_sample(whole):
    records = load(whole / "data.jsonl").dataset
    table = Scores(whole / "run").table
    assert dict(zip(table["id"], table["digest"], strict=True)) == {
        record["id"]: sample_digest(record) for record in records
    }
    assert len(set(table["digest"])) == COUNT


def test_scoring_does_not_resume_on_data_that_moved(moved):
    run = moved(SHORTER)
    with pytest.raises(StoreError, match=r"12 of 17 records .* sample '5' was scored as sample '6'.*`id` column"):
        score(run.parent / "data.jsonl", "demo", run, **SETTINGS)


def test_scoring_sees_an_image_of_the_same_name_and_size(moved):
    run = moved(range(COUNT))
    path = run.parent / "images" / "3.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"1 of 18 records .* sample '3' has changed \(its images\)"):
        score(run.parent / "data.jsonl", "demo", run, **SETTINGS)


def test_an_evaluation_groups_by_the_strata_of_the_same_samples(moved, tmp_path, caplog):
    run = moved(SHORTER)
    result = evaluate(run.parent / "data.jsonl", "demo", tmp_path / "evaluated", strata=run, progress=False)
    strata = strata_of(run)
    right = [strata[str(row)] for row in SHORTER]
    assert right != [strata[str(index)] for index in range(len(SHORTER))], "ids alone would be wrong"
    evaluated = Scores(result.directory)
    assert _groups_of(evaluated, load(run.parent / "data.jsonl").dataset, run)["stratum"] == right
    assert "12 of 17 records have moved since" in caplog.text


def test_an_evaluation_of_other_records_is_refused(moved, tmp_path):
    run = moved(range(COUNT), line3="another")
    with pytest.raises(ChangedError, match=r"sample '3' has changed \(its solution, options or grader\)"):
        evaluate(run.parent / "data.jsonl", "demo", tmp_path / "evaluated", strata=run, progress=False)


def test_subsets_hold_the_samples_that_were_scored(moved, caplog):
    run = moved(REVERSED)
    scores = Scores(run)
    (written, *_) = write_subsets(scores, scores.labels(), ["easy+medium+hard"], [])
    subset = load_from_disk(written)
    original = dict(zip(scores.table["id"], scores.table["digest"], strict=True))
    raw = subset.with_format("arrow")["images"][:].to_pylist()
    for record, images in zip(subset.remove_columns("images"), raw, strict=True):
        assert sample_digest(record | {"images": images}) == original[record["id"]]
        assert record["pism_stratum"] == strata_of(run)[record["id"]]
    assert "18 of 18 records have moved since" in caplog.text


def test_subsets_of_data_that_lacks_a_sample_are_refused_by_the_command(moved):
    run = moved(SHORTER)
    command = [sys.executable, "-m", "hardsample.cli.main", "export", str(run), "--subset", "easy+medium+hard+unsolved"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = " ".join(done.stderr.split())
    assert (
        f"1 of 18 samples that were scored are not in {run.parent}/data.jsonl" in errors
        and "(the first: '5')" in errors
    )
    assert not (run / "subsets").exists()


def test_a_figure_is_of_the_sample_that_was_scored(moved, monkeypatch):
    run = moved(SHORTER)
    drawn = []
    figure = explaining.explain_figure
    monkeypatch.setattr(
        explaining, "explain_figure", lambda record, *rest: drawn.append(record) or figure(record, *rest)
    )
    assert explain(run, "9", device="cpu").exists()
    assert drawn[0]["id"] == "9" and drawn[0]["images"][0]["path"].endswith("/9.png")
    with pytest.raises(OutputError, match=r"1 of 1 samples that were scored are not in .*'5'"):
        explain(run, "5", device="cpu")


def test_a_report_shows_the_samples_that_were_scored(moved, tmp_path):
    run = moved(SHORTER)
    shown = gather(run, 24, 0).source.records
    assert {sample: record.images for sample, record in shown.items()} == {
        str(row): [f"images/{row}.png"] for row in SHORTER
    }
    page = write_report(run, tmp_path / "moved.html").read_text()
    assert "records were found by their content" in page and "1 samples are missing, such as &#39;5&#39;" in page
    moved(range(COUNT), line3="another")
    page = write_report(run, tmp_path / "edited.html").read_text()
    assert "not shown" in page and "has changed (its solution, options or grader)" in page


def test_attention_is_of_the_samples_that_were_scored(whole, moved, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    right = score(output=tmp_path / "run", metric="cmab", device="cpu", progress=False).table
    result = score(output=moved(REVERSED), metric="cmab", device="cpu", progress=False).table
    assert any(right["attention_balance"])
    for name in ("id", "attention_balance", "digest"):
        assert list(result[name]) == list(right[name])


def test_comparisons_pair_samples_by_content(whole, tmp_path):
    shorter = write(tmp_path, "shorter.jsonl", SHORTER)
    score(shorter, "demo", tmp_path / "run", **SETTINGS)
    result = compare_scores(whole / "run", tmp_path / "run")
    strata, others = strata_of(whole / "run"), strata_of(tmp_path / "run")
    assert [(move.id, move.first, move.second) for move in result.samples] == [
        (str(row), strata[str(row)], others[str(index)]) for index, row in enumerate(SHORTER)
    ]
    assert (result.differing, result.left_out) == (0, 1)
    assert any("found by their content" in note for note in result.notes)

    first = evaluate(whole / "data.jsonl", "demo", tmp_path / "first", progress=False)
    second = evaluate(shorter, "demo", tmp_path / "second", progress=False)
    same = compare(first.directory, second.directory)
    assert (same.overall.samples, same.left_out, same.better, same.worse) == (17, 1, 0, 0), "greedy: nothing differs"
    edited = write(tmp_path, "edited.jsonl", range(COUNT), line2="another")
    third = evaluate(edited, "demo", tmp_path / "third", progress=False)
    with pytest.raises(ChangedError, match="sample '2' has changed"):
        compare(first.directory, third.directory)


def test_an_experiment_finds_it_before_it_trains(moved):
    from hardsample.trainer.experiment.runner import check_data

    run = moved(REVERSED)
    config = SimpleNamespace(
        data=run.parent / "data.jsonl", image_root=None, grader=None, limit=None, scores_folder=run
    )
    check_data(config, list(Scores(run).table["id"]))
    moved(SHORTER)
    with pytest.raises(OutputError, match="1 of 18 samples that were scored are not in"):
        check_data(config, list(Scores(run).table["id"]))


def make_old(run, data):
    """Turn a folder into one of an older version: no digest column, and digests of the old kind."""
    table = pq.read_table(run / "scores.parquet").drop_columns(["digest"])
    pq.write_table(table, run / "scores.parquet")
    with sqlite3.connect(run / "rollouts.sqlite") as store:
        for record in load(data).dataset:
            store.execute("UPDATE samples SET digest = ? WHERE sample = ?", (old_digest(record), record["id"]))
    store.close()


def test_scores_of_an_older_version_are_used_with_a_warning_and_the_remedy_helps(moved, caplog):
    run = moved(range(COUNT))
    data = run.parent / "data.jsonl"
    make_old(run, data)
    assert len(source_records(Scores(run), ["3"], decode=False)) == 1
    assert "holds no digests of its samples" in caplog.text and "`hardsample score` command again" in caplog.text
    again = score(data, "demo", run, **SETTINGS)
    assert again.run["counts"]["rollouts_this_run"] == 0
    assert known_digests(again) == {record["id"]: sample_digest(record) for record in load(data).dataset}
    make_old(run, data)
    moved(SHORTER)
    with pytest.raises(StoreError, match=r"12 of 17 records .* \(It was made by an older version of hardsample"):
        score(data, "demo", run, **SETTINGS)


def test_a_folder_that_is_not_finished_is_said(moved, capsys, caplog):
    from hardsample.cli.scoring import stratify

    run = moved(range(COUNT))
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"status": "running"}))
    stratify(run)
    assert "status in run.json is 'running'" in caplog.text and "the 18 samples of the run before" in caplog.text
    assert "the run.s own bounds" in capsys.readouterr().out.replace("'", ".")
    caplog.clear()
    explain(run, "0", device="cpu")
    assert "status in run.json is 'running'" in caplog.text


def test_rejected_samples_are_known_by_id_or_number(moved):
    run = moved(range(COUNT))
    lines = [{"number": 40, "id": None}, {"number": 41, "id": "x"}, {"number": 42, "id": "3"}]
    (run / "rejected.jsonl").write_text("".join(json.dumps(line | {"reason": "r"}) + "\n" for line in lines))
    assert rejected_samples(Scores(run)) == {"40", "x"}, "3 was scored: another record had its id"


def test_without_digests_of_some_samples_the_others_are_compared(moved, caplog):
    caplog.set_level(logging.WARNING)
    run = moved(range(COUNT), line7="another")
    with sqlite3.connect(run / "rollouts.sqlite") as store:
        store.execute("DELETE FROM samples")
    store.close()
    records = load(run.parent / "data.jsonl").dataset
    assert scored_records(Scores(run), records, ["6", "8"], "data")["id"][:] == ["6", "8"]
    with pytest.raises(ChangedError, match="sample '7' has changed"):
        scored_records(Scores(run), records, ["6", "7"], "data")
