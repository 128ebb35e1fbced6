"""The command line, run as a user runs it: exit codes, messages, files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import run_module
from datasets import load_from_disk

from hardsample import __version__

COMMANDS = "score stratify export explain features predict report compare evaluate train experiment demo".split()
SMALL = ["--limit", "12", "--num-masks", "3", "--tau", "0.3", "--ratios", "0,0.3,0.6"]


def hardsample(*arguments, **more) -> subprocess.CompletedProcess:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return run_module("hardsample.cli.main", *arguments, env=environment, **more)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "out"
    done = hardsample("score", "demo", "--model", "demo", "--output", directory, *SMALL)
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def test_a_prediction_from_few_samples_is_the_base_rate_and_says_so(scored, tmp_path):
    output = tmp_path / "predicted"
    done = hardsample("predict", scored[0], "demo:pool", "--output", output, "--limit", "15", "--num-generations", "4")
    assert done.returncode == 0, done.stderr
    assert "predicted  3 samples from 12 scored ones; 12 more of the data were scored" in done.stdout
    assert (
        "12 scored samples are fewer than the 24 that a prediction needs, so every sample gets the base" in done.stdout
    )
    assert "of groups of 4 rollouts at temperature 0.7 (that of the scoring)" in done.stdout
    assert f"file       {output}/predictions.parquet" in done.stdout and "hardsample.Predictions(" in done.stdout
    rates = pq.read_table(output / "predictions.parquet")["predicted_success_rate"].to_pylist()
    assert len(set(rates[12:])) == 1 and len(set(rates[:12])) > 1


def test_score_ends_with_the_table_and_the_next_command(scored):
    directory, printed = scored
    for word in ("ability", "reading", "unsolved", "of the 108 of an exhaustive search", "rejected   0 records"):
        assert word in printed
    assert f"hardsample export {directory} --subset medium+hard --control" in printed


def test_stratify_relabels_and_export_writes_subsets_by_its_labels(scored, tmp_path):
    directory = shutil.copytree(scored[0], tmp_path / "out")
    subset = ["--subset", "easy+medium+hard"]
    done = hardsample("export", directory, *subset, "--output", tmp_path / "before")
    assert done.returncode == 0, done.stderr
    assert "labels     the run's own bounds: hard λ* ≤ 0.4, easy λ* ≥ 0.7, τ = 0.3" in done.stdout
    done = hardsample("stratify", directory, "--hard-max", "0.2", "--easy_min", "0.3")
    assert done.returncode == 0, done.stderr
    assert (directory / "strata.parquet").exists() and f"hardsample export {directory}" in done.stdout
    done = hardsample("export", directory, *subset, "--subset", "easy", "--control", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert f"bounds of the last stratify, {directory}/strata.parquet: hard λ* ≤ 0.2, easy λ* ≥ 0.3" in done.stdout
    solved = load_from_disk(directory / "subsets" / "easy+medium+hard")
    control = load_from_disk(directory / "subsets" / "random-like-easy+medium+hard-seed3")
    assert len(solved) == len(control) > 0
    assert solved[0]["images"][0].size == (96, 96)
    assert {"prompt", "images", "solution", "ability", "grader", "shift"} <= set(solved.column_names)
    before = load_from_disk(tmp_path / "before" / "easy+medium+hard")
    assert set(before["pism_stratum"]) != {"easy"} == set(solved["pism_stratum"]), "every λ* above 0 is at least 0.3"
    assert f"--dataset-name {directory}/subsets/easy+medium+hard" in done.stdout


def test_stratify_without_options_shows_and_changes_nothing(scored, tmp_path):
    directory = shutil.copytree(scored[0], tmp_path / "out")
    labels = directory / "strata.parquet"
    labels.unlink(missing_ok=True)
    assert hardsample("stratify", directory).returncode == 0 and not labels.exists()
    assert hardsample("stratify", directory, "--hard-max", "0.2").returncode == 0
    before = labels.read_bytes()
    shown = hardsample("stratify", directory)
    assert "hard λ* ≤ 0.2" in " ".join(shown.stdout.split()) and labels.read_bytes() == before
    assert hardsample("stratify", directory, "--reset", "--tau", "0.1").returncode == 2 and labels.exists()
    assert "hard λ* ≤ 0.4" in " ".join(hardsample("stratify", directory, "--reset").stdout.split())
    assert not labels.exists()


def test_stratify_rejects_a_tau_that_is_not_decided(scored):
    directory, _ = scored
    done = hardsample("stratify", directory, "--tau", "1.0")
    assert done.returncode == 1
    assert "do not decide tau = 1.0" in done.stderr
    assert "--limit 12 --num-masks 3" in done.stderr
    assert "--ratios 0.0,0.3,0.6" in done.stderr
    assert "--search exhaustive" in done.stderr


def test_adaptive_search_and_its_probabilities(scored, tmp_path):
    directory = tmp_path / "out"
    asked = (
        "score",
        "demo",
        "--model",
        "demo",
        "--output",
        directory,
        *SMALL,
        "--search",
        "adaptive",
        "--budget",
        "30%",
    )
    done = hardsample(*asked)
    assert done.returncode == 0, done.stderr
    assert "rollouts   32 of the 108 of an exhaustive search" in done.stdout
    assert "12 strata by own rollouts, 0 predicted without" in done.stdout
    shown = hardsample("stratify", directory, "--by", "probability")
    assert shown.returncode == 0 and "Strata of 12 samples by probability" in shown.stdout
    assert not (directory / "strata.parquet").exists()
    assert hardsample("stratify", directory, "--by", "size").returncode == 2
    refused = hardsample("stratify", scored[0], "--by", "probability")
    assert refused.returncode == 1 and "score with --search adaptive into another --output" in refused.stderr
    refused = hardsample("score", "demo", "--model", "demo", "--output", directory, "--budget", "5%")
    assert refused.returncode == 2 and "add --search adaptive, or leave it out" in refused.stderr


def test_cmab_is_added_to_a_finished_folder(scored, tmp_path):
    directory = shutil.copytree(scored[0], tmp_path / "out")
    done = hardsample("score", "--metric", "cmab", "--output", directory)
    assert done.returncode == 0, done.stderr
    assert "median ρ̄" in done.stdout and "PISM and CMAB" in done.stdout
    table = pq.read_table(directory / "scores.parquet").to_pydict()
    before = pq.read_table(scored[0] / "scores.parquet").to_pydict()
    assert any(table["attention_balance"]) and not any(before["attention_balance"])
    assert table["successes"] == before["successes"], "no new rollouts"


def test_features_are_added_and_say_where_they_are(scored, tmp_path):
    directory = shutil.copytree(scored[0], tmp_path / "out")
    (directory / "features.parquet").unlink()
    done = hardsample("features", directory, "--batch_size", "5")
    assert done.returncode == 0, done.stderr
    assert f"features   {directory}/features.parquet  (12 samples, 12 of them from before)" in done.stdout
    done = hardsample("features", tmp_path / "new", "--data", "demo", "--model", "demo", "--limit", "3")
    assert done.returncode == 0, done.stderr
    assert "(3 samples, 0 of them from before)" in done.stdout and "read_features(" in done.stdout
    assert f"next: hardsample train … --features {tmp_path / 'new'}, or" in done.stdout
    assert "features: 100%, 3/3 prompts" in done.stderr
    done = hardsample("features", tmp_path / "none")
    assert done.returncode == 2 and "holds no scores: give --data" in done.stderr
    assert pq.read_table(directory / "features.parquet").num_rows == 12


def test_compare_looks_at_what_the_folders_are(scored, tmp_path):
    directory, _ = scored
    done = hardsample("compare", directory, directory, "--output", tmp_path / "c.html")
    assert done.returncode == 0, done.stderr
    assert "of 12 samples are in the same stratum" in done.stdout and (tmp_path / "c.jsonl").exists()
    more = ["--model", "demo", "--limit", "6", "--batch_size", "8"]
    done = hardsample("evaluate", "demo", "--output", tmp_path / "evaluated", *more)
    assert done.returncode == 0, done.stderr
    assert f"hardsample compare {tmp_path}/evaluated" in done.stdout
    done = hardsample("compare", tmp_path / "evaluated", tmp_path / "evaluated")
    assert done.returncode == 0, done.stderr
    assert "points of accuracy" in done.stdout and "better on 0 samples, worse on 0" in done.stdout
    done = hardsample("compare", directory, tmp_path / "evaluated")
    assert done.returncode == 1
    assert f"{directory} is a scoring, {tmp_path}/evaluated an evaluation" in " ".join(done.stderr.split())


def test_settings_come_from_a_file_and_the_command_line_overrides_them(tmp_path):
    lines = ["data: demo", "model: demo", "num-masks: 2", "ratios: [0, 0.5]", "tau: 0.5", "limit: 9", "strict: true"]
    lines += ["mask_kind: patch", "cmab_variant: released", "metric: [pism, cmab]", f"output: {tmp_path}/out"]
    (tmp_path / "score.yaml").write_text("\n".join(lines) + "\n")
    done = hardsample("score", "--config", tmp_path / "score.yaml", "--limit=4", "--num_masks", "3", "--no-strict")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    expected = {"num_masks": 3, "ratios": [0.0, 0.5], "tau": 0.5, "limit": 4, "strict": False, "mask_kind": "patch"}
    assert {name: run["settings"][name] for name in expected} == expected
    assert run["cmab"]["settings"]["variant"] == "released"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["score", "demo", "--model", "demo", "--output", "out", "--tau", "2"], 2, "tau is 2"),
        (["score", "demo", "--model", "demo", "--output", "out", "--ratios", "0,x"], 2, "no list of numbers"),
        (["score", "demo", "--model", "demo", "--output", "out", "--ratios", "0.1,0.2"], 2, "must start with 0.0"),
        (["score", "demo", "--model", "demo", "--output", "out", "--mask-kind", "blur"], 2, "blur"),
        (["score", "demo", "--output", "out"], 2, "--model is missing"),
        (["predict", "out", "--output", "new"], 2, "DATA is missing"),
        (["predict", "none", "demo", "--output", "new"], 1, "none holds no finished run"),
        (["predict", "none", "demo", "--output", "new", "--num-generations", "1"], 2, "num-generations"),
        (["score", "--metric", "cmab", "--output", "out"], 1, "out holds none: give hardsample score"),
        (["score", "--nmasks", "3"], 2, "--num-masks"),
        (["scor"], 2, "Did you mean 'score'? (see hardsample --help)"),
        (["train", "--config", "none.yaml"], 2, "none.yaml cannot be read"),
        (["experiment", "--config", "none.yaml"], 2, "none.yaml cannot be read"),
        (["evaluate", "demo", "--rollouts", "2"], 2, "rollouts is 2 at temperature 0"),
        (["score", "none.jsonl", "--model", "demo", "--output", "out"], 1, "none.jsonl"),
        (["score", "demo", "--model", "no/such/model/here", "--output", "out"], 1, "no/such/model/here"),
        (["score", "demo", "--model", "demo", "--output", "out", "--device", "foo"], 1, "there is no device 'foo'"),
        (["score", "demo", "--model", "demo", "--output", "/proc/x"], 1, "cannot be made"),
        (["stratify", "nothing"], 1, "holds no finished run"),
        (["export", "nothing", "--control"], 2, "--subset is missing"),
        (["export", "nothing", "--subset", "hrad"], 2, "'hrad'"),
        (["compare", "nothing", "nothing"], 1, "nothing is not a folder"),
    ],
)
def test_exit_codes(tmp_path, arguments, code, said):
    done = hardsample(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line != "loading …"]
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_nothing_to_score_is_three(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"id": "a", "problem": "<image>?", "images": ["none.png"], "answer": "1"}\n')
    done = hardsample("score", "data.jsonl", "--model", "demo", "--output", "out", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["id"] == "a"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_tidily_and_says_how_to_go_on(tmp_path, how):
    command = [
        sys.executable,
        "-m",
        "hardsample.cli.main",
        "score",
        "demo",
        "--model",
        "demo",
        "--output",
        str(tmp_path / "out"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not (tmp_path / "out" / "run.json").exists():
        time.sleep(0.05)
    time.sleep(1)
    child.send_signal(how)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "To resume, give the same command again" in said
    assert "Traceback" not in said


def test_help_teaches():
    overview = hardsample("--help").stdout
    assert all(name in overview for name in COMMANDS)
    for name in COMMANDS:
        text = " ".join(hardsample(name, "--help").stdout.split())
        assert f"Try it: hardsample {name}" in text and "3 nothing to score" in text, name
    text = hardsample("score", "--help").stdout
    for option in "--limit --image-root --grader --engine --search --mask-space --num-masks --cmab-variant".split():
        assert option in text
    assert "<lossless|exhaustive|adaptive>" in text and "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9" in text


def test_the_real_questions_run(tmp_path):
    shared = Path(__file__).parents[2].parent / "shared" / "data" / "dev" / "dev.jsonl"
    if not shared.exists():
        pytest.skip("the real questions (../shared/data/dev) are not on this machine")
    done = hardsample(
        "score",
        shared,
        "--model",
        "demo",
        "--output",
        tmp_path / "out",
        "--limit",
        "10",
        "--num-masks",
        "2",
        "--tau",
        "0.5",
    )
    assert done.returncode == 0, done.stderr
    assert "rejected   0 records" in done.stdout


def run_code(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, timeout=120)


HEAVY = ("torch", "transformers", "datasets", "numpy", "scipy", "pyarrow", "trl")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["no-such-command"],
        *([name, "--help"] for name in COMMANDS),
        *([name, "--no-such-option"] for name in COMMANDS if name != "train"),  # TRL's parser reads those of train
        ["score", "demo", "--output", "out"],
        ["score", "demo", "--model", "demo", "--output", "out", "--tau", "2"],
        ["evaluate", "--config", "none.yaml"],
    ],
)
def test_what_only_prints_imports_nothing_heavy(arguments):
    code = (
        "import sys; from hardsample.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    ended = run_code(code, *arguments)
    assert ended.stdout.splitlines()[-1] == "[]", ended.stderr


INJECTED = """
import sys
from hardsample.cli.main import main
from hardsample.scoring.store import Store

def broken(self, *arguments, **more):
    raise {error}

Store.commit = broken
sys.argv = ["hardsample", "score", "demo", "--model", "demo", "--output", {output!r}, "--limit", "2"]
main()
"""


@pytest.mark.parametrize("error", ["ValueError('a bug')", "KeyError('a bug')", "OSError('a bug')"])
def test_a_bug_in_a_running_command_shows_its_traceback(tmp_path, error):
    ended = run_code(INJECTED.format(error=error, output=str(tmp_path / "out")))
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr and "in broken" in ended.stderr and "a bug" in ended.stderr


def test_a_full_disk_in_a_running_command_is_one_line(tmp_path):
    ended = run_code(INJECTED.format(error="OSError(28, 'No space left on device')", output=str(tmp_path / "out")))
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "hardsample", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"hardsample {__version__}\n"), done.stderr
