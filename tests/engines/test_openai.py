"""What a run asks and warns of, from the data to run.json and the summary."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.cli.options import build
from hardsample.data.digests import sample_digest
from hardsample.data.records.defaults import DEFAULT_TEMPLATE
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import Scores
from hardsample.scoring.score import data_name, score
from hardsample.scoring.subsets import source_records


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (24, 24), (200, 0, 0)).save(tmp_path / "a.png")
    records = [
        {"id": "asked", "question": "Which?", "options": ["red", "blue"], "answer": 0, "image": "a.png"},
        {"id": "blind", "question": "What is in the image?", "answer": "5"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def question(record):
    return "".join(block["text"] or "" for block in record["prompt"][0]["content"])


def test_template_and_warnings_reach_the_run_and_its_summary(data, tmp_path):
    output = tmp_path / "run"
    template = r"Options:\n({letter}) {option}"
    command = ["score", str(data), "--model", "demo", "--output", str(output), "--num-masks", "1"]
    done = CliRunner().invoke(app, [*command, "--options-template", template, "--ratios", "0,0.5"])
    assert done.exit_code == 0, done.output
    scores = Scores(output)
    assert scores.run["settings"]["options_template"] == "Options:\n({letter}) {option}"
    (warning,) = scores.run["warnings"]
    assert "1 of 2 records have no image" in warning
    assert done.output.index(warning) < done.output.index("Strata of")
    records = source_records(scores, ["asked"], decode=False)
    assert question(records[0]) == "Which?\nOptions:\n(A) red\n(B) blue"
    again = CliRunner().invoke(app, [*command, "--ratios", "0,0.5"])
    assert again.exit_code == 1 and "asked" in again.output  # another template asks another question


def test_records_in_memory_are_scored(tmp_path):
    image = Image.new("RGB", (24, 24))
    rows = [{"id": "a", "question": "Which?", "choices": ["x", "y"], "answer": 1, "image": image}]
    scores = score(rows, "demo", tmp_path / "run", ScoringConfig(num_masks=1, ratios=(0.0,)), progress=False)
    assert (scores.run["data"], scores.run["warnings"]) == (data_name([]), [])
    record = {"prompt": [], "images": [], "solution": "a", "grader": "text", "options": None, "box_format": None}
    assert sample_digest(record | {"answers": ["a", "b"]}) != sample_digest(record | {"answers": None})


def test_names_of_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_name("data.jsonl") == str(data)
    (tmp_path / "folder").mkdir()
    assert data_name("folder:test") == f"{tmp_path}/folder:test"
    assert (data_name("who/what:test"), data_name("demo:pool")) == ("who/what:test", "demo:pool")


def test_the_template_as_a_setting():
    assert build(ScoringConfig, {}).options_template == DEFAULT_TEMPLATE
    given = build(ScoringConfig, {"options_template": r"{letter}\n{option}"})
    assert given.options_template == "{letter}\n{option}"
    with pytest.raises(ValueError, match="options_template is 'no'"):
        ScoringConfig(options_template="no")
    bad = CliRunner().invoke(app, ["score", "demo", "--model", "demo", "--output", "x", "--options-template", "no"])
    assert bad.exit_code == 2
    assert "exactly one line must contain {option}" in " ".join(bad.output.replace("│", " ").split())
