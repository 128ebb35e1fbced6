"""`hardsample experiment` on the demo model: killed it resumes, failures are reported, finished work is not redone."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from commands import run_module
from filelock import FileLock
from rich.console import Console
from safetensors.torch import load_file

from hardsample.errors import HardsampleError
from hardsample.files import PROGRESS_FILE, STAGE_FILE
from hardsample.metrics.strata import STRATA
from hardsample.report.preview import preview
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.trainer.experiment.config import ExperimentConfig, ExperimentError, read_experiment
from hardsample.trainer.experiment.jobs import Job, run_jobs
from hardsample.trainer.experiment.runner import (
    check_folder,
    check_options,
    laid_out,
    run_experiment,
    score_first,
    scoring_config,
)
from hardsample.trainer.experiment.stage import Progress, train
from hardsample.trainer.experiment.summary import costs, summed_up

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

SMALL = {
    "data": "demo",
    "test": "demo:test",
    "model": "demo",
    "limit": 24,
    "test_limit": 24,
    "seeds": [0],
    "steps": 3,
    "min_stratum": 3,
    "freeze": ["vision_tower"],
    "recipes": ["medium+hard", "random", "sft medium, grpo hard"],
    "scoring": {"num_masks": 2, "ratios": [0.0, 0.3, 0.6], "tau": 0.5},
    "grpo": {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "gradient_checkpointing": False,
        "bf16": False,
        "save_steps": 1,
    },
    "sft": {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "bf16": False, "save_steps": 1},
}


def write(folder: Path, **changes) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"output": str(folder / "out")} | changes))
    return path


def start(path: Path, *more: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hardsample.cli.main", "experiment", "--config", str(path), *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
        start_new_session=True,
    )


def experiment(path: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_module("hardsample.cli.main", "experiment", "--config", path, *more, env=ENVIRONMENT | environment)


def weights(folder: Path) -> dict:
    weights_by_training = {}
    for path in sorted(folder.glob("trainings/*/model/model.safetensors")):
        weights_by_training[path.parent.parent.name] = load_file(path)
    return weights_by_training


@pytest.mark.slow
def test_a_killed_experiment_resumes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = start(write(tmp_path / "b"))
    path, out = write(tmp_path / "a"), tmp_path / "a" / "out"
    killed = start(path)
    deadline = time.monotonic() + 300
    while not list(out.glob("trainings/grpo-*/progress")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)  # the training that runs ends by itself
    killed.wait()
    assert not list(out.glob("trainings/*/done.json")) or len(list(out.glob("trainings/*/done.json"))) < 4
    resumed = experiment(path, "--jobs", "2")
    output, errors = resumed.stdout, resumed.stderr
    results = json.loads((out / "results.json").read_text())
    assert "results" in output and "primary: medium+hard" in output, errors
    assert [row["recipe"] for row in results["rows"]] == SMALL["recipes"]
    assert all(row["accuracy"] is not None for row in results["rows"]) and results["base"] is not None
    assert results["rows"][2]["samples"][0] > 0 and len(results["rows"][2]["samples"]) == 2
    assert any(note.startswith("SFT imitates") for note in results["notes"])

    whole.communicate(timeout=400)
    assert whole.returncode == 0
    expected, actual = weights(tmp_path / "b" / "out"), weights(out)
    assert list(actual) == list(expected) and len(actual) == 4
    for key, values in expected.items():
        assert all((values[name] == actual[key][name]).all() for name in values), key
    other = json.loads((tmp_path / "b" / "out" / "results.json").read_text())
    assert [row["by_seed"] for row in results["rows"]] == [row["by_seed"] for row in other["rows"]]

    # once more: nothing is left to do, and the plan says so
    config = read_experiment(path)
    plan, _ = laid_out(config)
    assert all(cost.done for cost in costs(config, plan))
    before = {file: file.stat().st_mtime_ns for file in out.glob("trainings/*/done.json")}
    assert experiment(path).returncode == 0
    assert before == {file: file.stat().st_mtime_ns for file in out.glob("trainings/*/done.json")}

    # another experiment does not resume in this folder
    refused = experiment(write(tmp_path / "a", freeze=[]))
    assert refused.returncode == 1 and "holds an experiment with freeze" in refused.stderr


def test_a_failed_training_is_reported_and_the_others_run(tmp_path):
    def job(name: str, after: str | None = None, **stage) -> Job:
        folder = tmp_path / name
        folder.mkdir()
        (folder / STAGE_FILE).write_text(json.dumps(stage))
        return Job(name, folder, after, 5)

    nothing = {"method": "base", "model": "demo", "evaluations": {}}
    moves: list[int] = []
    failed = run_jobs(
        [job("broken", method="sft"), job("child", "broken"), job("good", **nothing), job("next", "good", **nothing)],
        2,
        lambda steps, running: moves.append(steps),
    )
    assert failed == {"broken": "KeyError: 'model'", "child": "broken, which it continues from, failed"}
    assert sum(moves) == 10


def test_a_folder_is_one_processs_at_a_time(tmp_path):
    config = ExperimentConfig(**SMALL | {"output": str(tmp_path)})
    with FileLock(tmp_path / ".lock"), pytest.raises(ExperimentError, match="another process runs"):
        run_experiment(config)


def test_mistakes_are_reported_before_anything_is_trained(tmp_path):
    path = write(tmp_path, recipes=["dpo hard"])
    done = experiment(path)
    assert done.returncode == 2 and "there is no recipe 'dpo hard'" in " ".join(done.stderr.replace("│", "").split())
    assert not (tmp_path / "out").exists()
    for options, message in (
        ({"grpo": {"learning_rat": 1}}, "grpo: .*learning_rat"),
        ({"sft": {"per_device_train_batch_size": 2, "bath": 1}}, "sft: .*bath"),
        ({"evaluation": {"rollouts": 3}}, "evaluation: rollouts is 3 at temperature 0"),
        ({"evaluation": {"tau": 0.5}}, "evaluation: there is no setting 'tau'"),
        ({"model_config": {"dtyp": "bfloat16"}}, "model_config: .*dtyp"),
        ({"reward_funcs": ["nice"]}, "no reward function 'nice'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_options(ExperimentConfig(**SMALL | {"output": str(tmp_path / "no")} | options))


MISTAKES = (
    ({"grpo": 3}, "grpo is 3, must be a mapping"),
    ({"variants": ["a"]}, "variants is .*, must be a mapping"),
    ({"variants": {"a": {"grpo": 3}}}, "grpo of a variant is 3, must be a mapping"),
    ({"variants": {"a": {"grpo": {"betta": 1}}}}, r"variants\.a\.grpo: there is no setting 'betta': did you mean beta"),
    ({"scoring": {"foo": 1}}, "scoring: there is no setting 'foo'"),
    ({"scoring": {"ratios": "abc"}}, "scoring: ratios is 'abc'"),
    ({"scoring": {"tau": float("nan")}}, "scoring: tau is nan"),
    ({"scoring": {"num-maks": 2}}, "did you mean num_masks"),
    ({"scoring": {"temperature": "hot"}}, "scoring: temperature is 'hot'"),
    ({"scoring": {"cmab_variant": "best"}}, "scoring, cmab_.*: variant is 'best', must be one of paper, released"),
    ({"evaluation": {"rollouts": "x"}}, "evaluation: rollouts is 'x'"),
    ({"grpo": {"output-dir": "x"}}, "grpo sets output_dir"),
    ({"grpo": {"num_generations": 0}}, "grpo"),
    ({"sft": {"per_device_train_batch_size": "x"}}, "sft: per_device_train_batch_size is 'x', must be an integer"),
    ({"steps": True}, "steps is True, must be an integer"),
    ({"steps": None}, "steps is None, must be an integer"),
    ({"seeds": [True]}, "seeds is .True., must be integers"),
    ({"seeds": [[0]]}, "seeds is .*, must be integers"),
    ({"recipes": [3]}, "recipes is .3., must be a list of texts"),
    ({"metrics": [["pism"]]}, "metrics names .'pism'."),
    ({"reward_funcs": 3}, "reward_funcs is 3, must be a list of names"),
)


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=lambda value: "")
def test_mistakes_of_type_end_with_a_message(tmp_path, options, message):
    with pytest.raises(HardsampleError, match=message):
        check_options(read_experiment(write(tmp_path, **options)))


def test_names_are_those_of_the_command_line(tmp_path):
    options = {"cmab_variant": "released", "cmab-layer": 3, "num-masks": 4}
    changes = {"reward_funcs": "correctness", "freeze": "vision_tower", "grpo": {"learning-rate": 1e-4}}
    config = read_experiment(write(tmp_path, scoring=options, metrics=["pism", "cmab"], **changes))
    check_options(config)
    scoring = scoring_config(config)
    assert (scoring.cmab.variant, scoring.cmab.layer, scoring.num_masks) == ("released", 3, 4)
    assert (config.reward_funcs, config.freeze) == (["correctness"], ["vision_tower"])
    assert config.grpo == {"learning_rate": 1e-4}
    score_first(config)
    run = Scores(config.scores_folder).run
    assert run["settings"]["num_masks"] == 4
    assert (run["cmab"]["settings"]["variant"], run["cmab"]["settings"]["layer"]) == ("released", 3)


@pytest.fixture(scope="module")
def small_scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    score("demo", "demo", folder, ScoringConfig(limit=6, num_masks=2, ratios=(0.0, 0.2, 0.5, 0.8), tau=0.5))
    return folder


def test_scores_that_do_not_fit_are_refused(tmp_path, small_scores):
    of_scores = SMALL | {"output": str(tmp_path), "scores": str(small_scores)}
    with pytest.raises(ExperimentError, match="scores of 6 samples, and limit is 5"):
        laid_out(ExperimentConfig(**of_scores | {"limit": 5}))
    config = ExperimentConfig(**of_scores | {"model": str(tmp_path / "other")})
    plan, strata = laid_out(config)
    notes = summed_up(config, plan, strata, {}).notes
    assert f"the strata are those of demo, not of {tmp_path / 'other'}: score it, unless that is wanted" in notes
    labels = list(Scores(config.scores_folder).table["pism_stratum"])
    counted = {name: labels.count(name) for name in STRATA if name in labels}
    assert "strata by pism: " + ", ".join(f"{name} {count:,}" for name, count in counted.items()) in notes

    wanted = {"model": "demo", "model_config": {}, "freeze": [], "trust_remote_code": False, "image_root": None}
    wanted |= {"data": "demo:test", "grader": None, "limit": 6, "scores": str(small_scores), "ids": ["pool-000000"]}
    with pytest.raises(ValueError, match=r"1 of 1 samples that were scored are not in demo:test.*'pool-000000'"):
        train(tmp_path, wanted)


def test_a_dry_run_computes_nothing(tmp_path):
    """Without scores: what is known, what is assumed, and that the scores are not there; nothing is written."""
    path = write(tmp_path, metrics=["pism", "cmab"], recipes=["full", "medium+hard"], model=str(tmp_path / "no model"))
    done = experiment(path, "--dry-run", COLUMNS="240")
    text = " ".join(done.stdout.split())
    assert "3 trainings for 3 cells" in text, done.stderr
    assert "grpo all │ 1 │ 24 │ 3 │ 24" in text, "the whole set does not depend on the scores"
    assert text.count("grpo medium+hard") == 1 and "grpo medium+hard │ 2 │ ≈12 │ ≈3 │ ≈48 │ ?" in text, text
    assert f"there are no finished scores in {tmp_path}/out/scores: a run first scores 24 samples, about " in text
    assert "strata are unknown: numbers with ≈ assume strata of equal size, 6 samples each" in text
    assert not (tmp_path / "out").exists()


def test_a_dry_run_with_scores_knows_the_strata(tmp_path, small_scores):
    options = SMALL | {"limit": 6, "recipes": ["full", "medium+hard"], "scores": str(small_scores), "min_stratum": 1}
    config = ExperimentConfig(**options | {"output": str(tmp_path / "out")})
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(preview(config))
    text = console.export_text()
    assert "≈" not in text and "trainings for 2 cells" in text and "no finished scores" not in text
    assert not (tmp_path / "out").exists()
    unfinished = ExperimentConfig(**options | {"output": str(tmp_path / "out"), "metrics": ["cmab"]})
    with pytest.raises(ExperimentError, match="was scored without cmab: run its `hardsample score` again"):
        preview(unfinished)
    other = tmp_path / "other"
    check_folder(ExperimentConfig(**options | {"output": str(other)}))
    with pytest.raises(ExperimentError, match="holds an experiment with limit 6"):
        preview(ExperimentConfig(**options | {"output": str(other), "limit": 5}))


def test_seconds_before_a_kill_count(tmp_path):
    first = Progress(tmp_path)
    first.began -= 100
    first.on_step_end(None, SimpleNamespace(global_step=7), None)
    assert (tmp_path / PROGRESS_FILE).read_text() == "7"
    second = Progress(tmp_path)  # what the next process sees
    second.began -= 20
    assert 120 <= second.seconds < 125
