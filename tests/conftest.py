"""What several tests use: the demo model, loaded once, and the first of its questions."""

import json
import os
import shutil
import sqlite3
from dataclasses import asdict

import pytest
from filelock import FileLock

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one thread a worker, and each process that a test starts; before torch is read
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function that gives the folder of a name: made by whichever worker asks first, read by all.

    Its second argument fills the folder. Nobody may change what is in it: a test that must works on a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"

    def folder(name, fill):
        path, done = shared / name, shared / f"{name}.done"
        shared.mkdir(exist_ok=True)
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                fill(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def processor():
    return load_processor(str(model_path()))


@pytest.fixture(scope="session")
def model():
    return load_model(str(model_path()), "cpu")


@pytest.fixture(scope="session")
def questions():
    """The first 60 questions of the demo, as a list of records."""
    return list(load_split("demo:pool", 60))


@pytest.fixture(scope="session")
def hostile():
    """Text that would run as a script if a page took it for HTML."""
    return '<script>window.hacked=1</script><img src=x onerror="window.hacked=2"></dialog>{{ 7 * 7 }}'


@pytest.fixture(scope="session")
def scored_folder(made_once, hostile):
    """A finished scoring by both metrics of 24 questions from a file; one of them is hostile wherever it can be."""
    return made_once("scored", lambda folder: _score_hostile(folder, hostile)) / "run"


def _score_hostile(folder, hostile):
    from datasets import Value

    from hardsample.scoring.score import score

    questions = load_split("demo:pool", 24)
    questions = questions.add_column("source", ["drawn", hostile] * 12).cast_column("source", Value("string"))

    def spoil(record, row):
        if row == 0:
            record["id"] = record["ability"] = hostile
            record["prompt"][0]["content"][1]["text"] += f" {hostile}"
        return record

    questions.map(spoil, with_indices=True).save_to_disk(folder / "data")
    settings = {"ratios": (0.0, 0.3, 0.6), "num_masks": 3, "tau": 0.3, "metric": ("pism", "cmab")}
    score(str(folder / "data"), "demo", folder / "run", progress=False, device="cpu", **settings)
    with sqlite3.connect(folder / "run" / "rollouts.sqlite") as store:
        said = "UPDATE rollouts SET completion = ? || completion WHERE sample = ?"
        assert store.execute(said, (hostile, hostile)).rowcount > 0
    store.close()


@pytest.fixture(scope="session")
def predicted_folder(made_once):
    """150 questions scored at λ = 0 (`scored`), the next 100 predicted from them (`predicted`), and these rolled out
    (`checked`)."""
    return made_once("predicted", _predict_and_check)


def _predict_and_check(folder):
    from hardsample.scoring.predicting.check import roll_out
    from hardsample.scoring.predicting.predict import predict
    from hardsample.scoring.score import score

    quick = {"progress": False, "device": "cpu", "limit": 150, "ratios": (0.0,), "num_masks": 4}
    score("demo:pool", "demo", folder / "scored", search="exhaustive", **quick)
    predictions = predict(folder / "scored", "demo:pool", output=folder / "predicted", limit=250, progress=False)
    roll_out(predictions, load_split("demo:pool", 250), "demo", folder / "checked", progress=False)


@pytest.fixture(scope="session")
def experiment_folder(tmp_path_factory):
    """What an experiment leaves, written by the code that writes it; one cell diverged."""
    from hardsample.trainer.experiment.config import ExperimentConfig
    from hardsample.trainer.experiment.results import Outcome, as_json, compare_rows, make_rows

    folder = tmp_path_factory.mktemp("experiment")
    outcomes = [
        Outcome("pism", "epoch", "plain", recipe, seed, accuracy, 100, 1000, 2.0, (50,), alarms)
        for recipe, accuracies in {"medium+hard": (0.5, 0.6, 0.2), "random": (0.4, 0.45, 0.5)}.items()
        for seed, accuracy in enumerate(accuracies)
        for alarms in [("loss",) if accuracy == 0.2 else ()]
    ]
    rows = make_rows(outcomes)
    config = ExperimentConfig(data="demo:pool", test="demo:test", model="demo", output=str(folder))
    content = dict(as_json(rows, compare_rows(rows, "medium+hard", "random")))
    content |= {"base": 0.3, "notes": ["scoring took 7 rollouts"], "config": asdict(config)}
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "experiment.json").write_text("{}")
    for one in outcomes:
        cell = folder / "cells" / "epoch-plain" / f"pism-{one.recipe}" / f"seed{one.seed}"
        cell.mkdir(parents=True)
        key = f"grpo-{one.recipe}-{one.seed}"
        about = {name: getattr(one, name) for name in ("metric", "budget", "variant", "recipe", "seed")}
        (cell / "cell.json").write_text(json.dumps(about | {"trainings": ["sft-1", key]}))
        done = folder / "trainings" / key
        done.mkdir(parents=True)
        (done / "done.json").write_text(json.dumps({"rewards": [0.1, 0.2, 0.3], "frac_zero_std": [0.5, 0.4, 0.3]}))
    return folder
