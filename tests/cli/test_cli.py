"""The command line, run as a user runs it: exit codes, messages, files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run_module
from datasets import load_from_disk

from hardsample.cli.main import parse_ratios

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


def test_score_ends_with_the_table_and_the_next_command(scored):
    directory, printed = scored
    for word in ("ability", "reading", "unsolved", "of the 108 of an exhaustive search", "rejected   0 records"):
        assert word in printed
    assert f"next: hardsample strata {directory} --subset medium+hard --control" in printed


def test_strata_relabels_and_writes_subsets(scored):
    directory, _ = scored
    done = hardsample(
        "strata",
        directory,
        "--hard-max",
        "0.3",
        "--easy-min",
        "0.6",
        "--subset",
        "easy+medium+hard",
        "--control",
        "--seed",
        "3",
    )
    assert done.returncode == 0, done.stderr
    subset = load_from_disk(directory / "subsets" / "easy+medium+hard")
    control = load_from_disk(directory / "subsets" / "random-like-easy+medium+hard-seed3")
    assert len(subset) == len(control) > 0
    assert set(subset["pism_stratum"]) <= {"easy", "medium", "hard"}
    assert subset[0]["images"][0].size == (96, 96)
    assert {"prompt", "images", "solution", "ability", "grader", "shift"} <= set(subset.column_names)
    assert (directory / "strata.parquet").exists()


def test_strata_refuses_a_tau_that_is_not_decided(scored):
    directory, _ = scored
    done = hardsample("strata", directory, "--tau", "1.0")
    assert done.returncode == 1
    assert "do not decide tau = 1.0" in done.stderr
    assert "--limit 12 --num-masks 3" in done.stderr
    assert "--ratios 0.0,0.3,0.6" in done.stderr
    assert "--search exhaustive" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["score", "demo", "--model", "demo", "--output", "out", "--tau", "2"], 2, "tau is 2"),
        (["score", "demo", "--model", "demo", "--output", "out", "--ratios", "0,x"], 2, "no list of ratios"),
        (["score", "demo", "--model", "demo", "--output", "out", "--ratios", "0.1,0.2"], 2, "must start with 0.0"),
        (["score", "demo", "--model", "demo", "--output", "out", "--mask-kind", "blur"], 2, "blur"),
        (["score", "demo", "--output", "out"], 2, "--model"),
        (["score", "none.jsonl", "--model", "demo", "--output", "out"], 1, "none.jsonl"),
        (["score", "demo", "--model", "no/such/model/here", "--output", "out"], 1, "no/such/model/here"),
        (["score", "demo", "--model", "demo", "--output", "out", "--device", "foo"], 1, "there is no device 'foo'"),
        (["score", "demo", "--model", "demo", "--output", "/proc/x"], 1, "cannot be made"),
        (["strata", "nothing"], 1, "holds no finished run"),
        (["strata", "nothing", "--control"], 2, "--subset"),
    ],
)
def test_exit_codes(tmp_path, arguments, code, said):
    done = hardsample(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


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
    assert "score" in overview
    assert "strata" in overview
    text = hardsample("score", "--help").stdout
    for (
        option
    ) in "--limit --image-root --grader --engine --search --mask --mask-space --num-masks --ratios --tau".split():
        assert option in text
    assert "hardsample score demo --model demo --output out" in " ".join(text.split())
    assert "3 nothing to score" in " ".join(text.split())


def test_ratios():
    assert parse_ratios("0:0.9:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert parse_ratios("0,.25,1/2") == (0.0, 0.25, 0.5)


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


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["score", "--help"], ["score", "--no-such-option"]])
def test_what_only_prints_imports_no_torch(arguments):
    code = (
        "import sys; from hardsample.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'scipy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True, timeout=120)
    assert ended.stdout.splitlines()[-1] == "[]"
