"""Which score a row of a training dataset has, and which rows are skipped."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List, concatenate_datasets

from hardsample.data.loading import load
from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.data.rows import ScoresError
from hardsample.trainer.data.scored import as_scored
from hardsample.trainer.selection.strata import NAMES
from hardsample.trainer.training import parse, train

COUNT, GONE, TORN = 18, 5, 3
SHORTER = [row for row in range(COUNT) if row != GONE]


def write(folder, order, torn=True):
    """A file of these questions without ids; the image of one of them may be cut short."""
    questions = load_split("demo:pool", COUNT)
    lines = []
    for row in order:
        record = questions[row]
        content = record["images"][0]["bytes"]
        (folder / f"{row}.png").write_bytes(content[: len(content) // 2] if torn and row == TORN else content)
        text = record["prompt"][0]["content"][1]["text"]
        about = {"problem": f"<image>{text}", "images": [f"{row}.png"], "answer": record["solution"]}
        lines.append(about | {"ability": record["ability"], "grader": record["grader"]})
    path = folder / f"data{len(lines)}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Seventeen of eighteen questions scored, for the image of one cannot be decoded."""
    folder = tmp_path_factory.mktemp("scored")
    data = write(folder, range(COUNT))
    score(data, "demo", folder / "run", ratios=(0.0, 0.3, 0.6), num_masks=2, tau=0.5, progress=False)
    assert [json.loads(line)["id"] for line in (folder / "run" / "rejected.jsonl").open()] == [str(TORN)]
    return folder


OPTIONS = {
    "num_generations": 2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 2,
    "max_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "policy": "strata",
}


def trainer_of(data, folder, scores):
    return DifficultyAwareGRPOTrainer(
        model=load_model(str(model_path()), "cpu"),
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=DifficultyAwareGRPOConfig(output_dir=str(folder), scores=str(scores), **OPTIONS),
        train_dataset=data,
        processing_class=load_processor(str(model_path())),
    )


def test_a_rejected_sample_is_skipped_with_a_warning(scored, tmp_path, caplog):
    data = load(scored / "data18.jsonl").dataset
    assert str(TORN) in data["id"][:], "its header is whole, so that loading does not reject it"
    trainer = trainer_of(data, tmp_path, scored / "run")
    assert str(TORN) not in trainer.train_dataset["id"][:] and len(trainer.train_dataset) == COUNT - 1
    assert f"1 of 18 samples are skipped: scoring rejected them (the first: '{TORN}'" in caplog.text
    assert trainer.difficulty.counts()["unscored"] == 0


def test_samples_that_were_not_scored_are_counted(scored, caplog):
    data = load(scored / "data18.jsonl").dataset
    more = data.select([0, 1]).map(lambda row: {"id": f"new {row['id']}"})
    left, samples = as_scored(concatenate_datasets([data, more]), str(scored / "run"))
    assert samples[-2:] == [None, None] and len(left) == COUNT + 1
    assert "2 of 19 samples have no score" in caplog.text
    with pytest.raises(ScoresError, match="scoring rejected all samples"):
        as_scored(data.select([TORN]), str(scored / "run"))


@pytest.mark.parametrize("order", [SHORTER, list(range(COUNT))[::-1]], ids=["a line deleted", "reversed"])
def test_every_row_has_the_score_of_its_own_content(scored, tmp_path, caplog, order):
    data = load(write(scored, order)).dataset
    trainer = trainer_of(data, tmp_path, scored / "run")
    strata = dict(zip(*(Scores(scored / "run").table[name] for name in ("id", "pism_stratum")), strict=True))
    kept = [row for row in order if row != TORN]
    assert [NAMES[code] for code in trainer.difficulty.strata.codes] == [strata[str(row)] for row in kept]
    assert [strata[str(row)] for row in kept] != [strata.get(sample_id) for sample_id in trainer.train_dataset["id"]]
    assert "found by their content" in caplog.text and "1 of " in caplog.text
    write(scored, range(COUNT))  # as it was


def test_edited_records_are_refused_by_name(scored):
    data = load(scored / "data18.jsonl").dataset
    other = data.map(lambda row: {"solution": "999"} if row["id"] == "4" else row)
    with pytest.raises(ScoresError, match=r"1 of 18 records .* sample '4' has changed \(its solution"):
        as_scored(other, str(scored / "run"))
    images = data["images"][:]
    images[4], images[6] = images[6], images[4]
    swapped = data.remove_columns("images").add_column("images", images).cast_column("images", data.features["images"])
    with pytest.raises(ScoresError, match=r"sample '4' has changed \(its images\), sample '6' has changed"):
        as_scored(swapped, str(scored / "run"))


def test_a_dataset_of_trl_is_read_as_scoring_reads_it(scored, caplog):
    """Its own columns, decoded images, text as content: no column that `load` adds."""
    loaded = load(scored / "data18.jsonl").dataset
    rows = {name: loaded[name][:] for name in ("id", "solution", "grader")}
    texts = ["<image>" + row["prompt"][0]["content"][1]["text"] for row in loaded]
    rows["prompt"] = [[{"role": "user", "content": text}] for text in texts]
    rows["images"] = [[image["path"] for image in images] for images in loaded["images"]]
    data = Dataset.from_dict(rows).cast_column("images", List(Image()))
    _, samples = as_scored(data, str(scored / "run"))
    assert len(samples) == COUNT - 1 and None not in samples
    assert "cannot be compared" not in caplog.text
    turned = data.select(range(COUNT)[::-1]).remove_columns("id").add_column("id", [str(row) for row in range(COUNT)])
    assert as_scored(turned, str(scored / "run"))[1] == samples[::-1]


def test_without_solutions_prompts_and_images_are_compared(scored, caplog):
    columns = ["id", "prompt", "images"]
    data = load(scored / "data18.jsonl").dataset.select_columns(columns)
    assert len(as_scored(data, str(scored / "run"))[0]) == COUNT - 1
    assert caplog.text.count("18 of 18 samples have no solution") == 1
    wrong = data.remove_columns("id").add_column("id", [str((row + 1) % COUNT) for row in range(COUNT)])
    with pytest.raises(ScoresError, match="18 of 18 records"):
        as_scored(wrong, str(scored / "run"))


def test_another_template_throughout_is_a_warning_and_trained_on(scored, caplog):
    data = load(scored / "data18.jsonl").dataset
    system = {"role": "system", "content": [{"type": "text", "text": "Think first."}]}
    other = data.map(lambda row: {"prompt": [system, *row["prompt"]]})
    assert len(as_scored(other, str(scored / "run"))[1]) == COUNT - 1
    assert "The prompts of all 18 samples differ" in caplog.text
    changed = data.map(lambda row: {"prompt": [system, *row["prompt"]]} if row["id"] == "4" else row)
    with pytest.raises(ScoresError, match=r"sample '4' has changed \(its prompt\)"):
        as_scored(changed, str(scored / "run"))


def test_rows_that_cannot_be_compared_are_one_warning(scored, caplog):
    data = Dataset.from_dict({"id": ["0", "1"], "prompt": [[], []], "solution": ["1", "2"]})
    assert as_scored(data, str(scored / "run"))[1] == ["0", "1"]
    assert caplog.text.count("2 of 2 samples cannot be compared") == 1


def test_without_scores_or_ids_nothing_is_looked_at(scored):
    data = Dataset.from_dict({"prompt": ["a"]})
    assert as_scored(data, str(scored / "run")) == (data, None) and as_scored(data, None) == (data, None)


def test_the_command_trains_on_what_was_scored(scored, tmp_path, capfd):
    path = write(scored, SHORTER)
    torch.manual_seed(0)
    arguments = [
        "--dataset_name",
        path,
        "--model_name_or_path",
        "demo",
        "--output_dir",
        tmp_path,
        "--max_prompt_length",
    ]
    arguments += ["4000", "--scores", scored / "run"]
    arguments += [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    trainer = train(parse([str(argument) for argument in arguments]))
    strata = dict(zip(*(Scores(scored / "run").table[name] for name in ("id", "pism_stratum")), strict=True))
    kept = [row for row in SHORTER if row != TORN]
    levels = trainer._setup.scored[1]["pism_stratum"].to_pylist()
    assert levels == [strata[str(row)] for row in kept]
    np.testing.assert_array_equal(trainer._setup.scored[0], range(len(kept)))
    assert f"data       {len(kept)} samples" in capfd.readouterr().out
