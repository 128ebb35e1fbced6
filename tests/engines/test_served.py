"""Scoring through a real server (`transformers serve` with the demo model), in good order and spoiled."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hardsample.demo import load_split, model_path
from hardsample.engines.features import NUMBERS
from hardsample.engines.openai import OpenAIEngine, rollout_seed
from hardsample.engines.protocol import Request
from hardsample.engines.results import EngineError
from hardsample.errors import ConfigError
from hardsample.evaluation.evaluate import evaluate
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features.files import read_features
from hardsample.scoring.features.make import add_features
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openai", "fastapi", "uvicorn")),
    reason="needs pip install openai 'transformers[serving]'",
)

ROOT = Path(__file__).parents[2]
PROXY = Path(__file__).parent / "faulty_proxy.py"
MODEL = str(model_path())
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SMALL = {"max_new_tokens": 16, "num_masks": 3, "tau": 0.3, "ratios": (0.0, 0.3, 0.6)}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(port: int, path: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server():
    """Address of a server with the demo model, in float32 as the local engine has it on a CPU."""
    port = free_port()
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command = [*program, "serve", MODEL, "--device", "cpu", "--dtype", "float32", "--port", str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, "/health", process)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def proxy(server, tmp_path):
    """Starts proxies before the server; each has its address, its process and its log."""
    started = []

    def start(*options: str, port: int | None = None) -> SimpleNamespace:
        port, log = port or free_port(), tmp_path / "proxy.jsonl"
        command = [sys.executable, str(PROXY), str(port), server, str(log), *options]
        process = subprocess.Popen(command)
        started.append(process)
        wait_for(port, "/health", process)
        return SimpleNamespace(url=f"http://127.0.0.1:{port}/v1", port=port, process=process, log=log)

    yield start
    for process in started:
        process.kill()
        process.wait()


def served(url: str, output: Path, **settings) -> Scores:
    return score("demo", MODEL, output, progress=False, engine="openai", base_url=url, **SMALL | settings)


def requests(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def rollouts(folder: Path) -> dict:
    rows = sqlite3.connect(folder / "rollouts.sqlite").execute(
        "SELECT sample, ratio, realization, completion, grade FROM rollouts"
    )
    return {(sample, ratio, k): (text, grade) for sample, ratio, k, text, grade in rows}


def seed_of(key: tuple) -> int:
    sample, ratio, realization = key
    return rollout_seed(0, Request({"id": sample}, ratio, realization))


def command(url: str, output: Path, *more: str) -> list[str]:
    options = "--engine openai --max-new-tokens 16 --num-masks 3 --tau 0.3 --ratios 0,0.3,0.6 --limit 10".split()
    program = [sys.executable, "-m", "hardsample.cli.main", "score", "demo", "--model", MODEL]
    return [*program, "--output", str(output), "--base-url", url, *options, *more]


@pytest.fixture(scope="module")
def greedy(server, tmp_path_factory):
    """The same greedy run through the server and on this machine."""
    folder = tmp_path_factory.mktemp("greedy")
    settings = {"limit": 16, "temperature": 0.0}
    here = score("demo", "demo", folder / "here", progress=False, metric=("pism", "cmab"), **SMALL | settings)
    return served(f"{server}/v1", folder / "served", **settings), here


def test_greedy_scores_are_those_of_the_local_engine(greedy):
    there, here = greedy
    assert rollouts(there.directory) == rollouts(here.directory) and len(rollouts(there.directory)) > 50
    for name in ("id", "pism_stratum", "failure_threshold", "successes", "attempts"):
        assert there.table[name][:] == here.table[name][:], name
    assert set(there.table["pism_stratum"]) > {"unsolved"}
    run = there.run
    assert run["sampling"] == {"sent": ["seed", "top_p"], "refused": ["top_k", "repetition_penalty"]}
    assert run["counts"]["requests_this_run"] == run["counts"]["rollouts_this_run"] == len(rollouts(there.directory))
    assert run["counts"]["tokens"]["completion"] > 0 and run["dtype"] is None
    assert "attention_balance" in there.table.column_names and not any(there.table["attention_balance"])


def test_attention_is_added_afterwards_on_a_local_copy(greedy):
    there, here = greedy
    with pytest.raises(EngineError, match=r"a server made these completions: give --model, a copy of"):
        score(output=there.directory, metric="cmab")
    with pytest.raises(ConfigError, match="engine is 'openai', which shows no attention"):
        score(output=there.directory, model="demo", metric="cmab", engine="openai", base_url="http://localhost/v1")
    rescored = score(output=there.directory, model="demo", metric="cmab", progress=False)
    pairs = list(zip(rescored.table["attention_balance"], here.table["attention_balance"], strict=True))
    assert any(served_balance is not None for served_balance, _ in pairs)
    for served, local in pairs:  # the completions are equal, and so are the tokens that the copy makes of their text
        assert served == local or served == pytest.approx(local, rel=1e-5)
    assert rescored.table["cmab_stratum"][:] == here.table["cmab_stratum"][:]
    assert rescored.run["cmab"]["model"] == "demo" and "cmab_strata" in rescored.run["counts"]
    again = score(output=there.directory, model="demo", metric="cmab", progress=False)
    assert again.run["cmab"]["completions"] == 0  # nothing is computed twice


def test_sampling_on_the_server_varies(server, tmp_path):
    scores = served(f"{server}/v1", tmp_path, limit=12, num_masks=10, tau=0.1, temperature=1.0)
    alike = scores.run["variety"]
    assert alike["samples"] > 0 and alike["alike"] < alike["samples"]


def test_evaluation_goes_through_the_server(server, tmp_path):
    settings = {"limit": 8, "max_new_tokens": 16}
    there = evaluate(
        "demo:test", MODEL, tmp_path / "a", progress=False, engine="openai", base_url=f"{server}/v1", **settings
    )
    here = evaluate("demo:test", "demo", tmp_path / "b", progress=False, **settings)
    assert there.overall == here.overall


def test_features_of_a_server_without_log_probabilities(server, tmp_path, capsys):
    done = add_features(tmp_path, "demo", MODEL, limit=4, engine="openai", base_url=f"{server}/v1", progress=False)
    matrix = read_features(tmp_path)[1]
    assert (done.samples, done.failed) == (4, {}) and not np.isnan(matrix[:, NUMBERS.index("characters")]).any()
    assert capsys.readouterr().out.count("the first token's distribution is not known") == 1


def test_completions_that_are_cut_off_are_told_as_on_this_machine(server, tmp_path):
    settings = {"limit": 6, "temperature": 0.0, "max_new_tokens": 2}
    there = served(f"{server}/v1", tmp_path / "there", **settings)
    here = score("demo", "demo", tmp_path / "here", progress=False, **SMALL | settings)
    assert "unfinished" in set(here.table["pism_stratum"])
    for name in ("pism_stratum", "unanswered"):
        assert there.table[name][:] == here.table[name][:]
    assert there.run["counts"]["finish"] == here.run["counts"]["finish"]


@pytest.mark.slow
def test_faults_cost_retries_and_nothing_else(proxy, tmp_path, greedy):
    spoiled = proxy("--share", "0.3", "--late", "3")
    scores = served(spoiled.url, tmp_path / "out", limit=16, temperature=0.0, request_timeout=2.0)
    assert rollouts(tmp_path / "out") == rollouts(greedy[0].directory)  # all samples, and the same
    counts, log = scores.run["counts"], requests(spoiled.log)
    outcomes = [entry["outcome"] for entry in log]
    assert counts["samples"] == 16 and counts["rejected"] == 0
    assert {"429", "500", "garbage", "cut off", "late"} < set(outcomes)
    assert sum(counts["retries"].values()) == sum(
        outcome in ("429", "500", "garbage", "cut off", "late") for outcome in outcomes
    )
    assert set(counts["retries"]) == {
        "the server answers 429",
        "the server answers 500",
        "a reply that cannot be read",
        "no connection",
        "no reply in time",
    }
    assert outcomes.count("200") == counts["rollouts_this_run"]
    assert counts["requests_this_run"] == counts["rollouts_this_run"] + sum(counts["retries"].values())


@pytest.mark.slow
def test_a_killed_job_asks_for_nothing_again_that_was_committed(proxy, tmp_path, greedy):
    spoiled, output = proxy("--share", "0.3", "--late", "3", "--seed", "1"), tmp_path / "out"
    line = [*command(spoiled.url, output, "--limit", "16", "--temperature", "0"), "--request-timeout", "2"]
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (output / "rollouts.sqlite").exists() and spoiled.log.exists() and len(rollouts(output)) >= 20:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    committed, asked = {seed_of(key) for key in rollouts(output)}, len(requests(spoiled.log))
    assert len(committed) >= 20
    time.sleep(0.5)  # what was in flight has been noted
    asked = len(requests(spoiled.log))
    made = sum(request["outcome"] == "200" for request in requests(spoiled.log))
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    after = {request["seed"] for request in requests(spoiled.log)[asked:]}
    assert after and not after & committed
    assert 0 <= made - len(committed) <= 64  # lost: what was in flight at the kill
    assert rollouts(output) == rollouts(greedy[0].directory)
    assert "of them retries" in done.stdout


@pytest.mark.slow
def test_a_server_that_goes_away_is_waited_for(proxy, tmp_path, greedy):
    server, output = proxy(), tmp_path / "out"
    line = command(server.url, output, "--limit", "16", "--temperature", "0", "--server-timeout", "60")
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not server.log.exists() or len(requests(server.log)) < 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    server.process.kill()
    server.process.wait()
    time.sleep(1)
    proxy(port=server.port)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert "the server does not answer (no connection): waiting for it, up to 60 s" in printed
    assert "the server answers again, after" in printed
    assert rollouts(output) == rollouts(greedy[0].directory)


def test_a_server_that_stays_away_ends_the_job(tmp_path):
    with pytest.raises(EngineError, match=r"the server answered nothing for 1 s \(no connection\)"):
        served(f"http://127.0.0.1:{free_port()}/v1", tmp_path, limit=6, server_timeout=1.0)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_a_request_that_the_server_refuses_is_rejected(proxy, tmp_path):
    question = load_split("demo", limit=3)[1]["prompt"][0]["content"][1]["text"]
    scores = served(proxy("--refuse", json.dumps(question)[1:-1]).url, tmp_path, limit=6)
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert rejected and len(scores) + len(rejected) == 6
    reason = "column images or prompt: the server answers 400: this image is too large (Bearer none)"
    assert {record["reason"] for record in rejected} == {reason}


def test_the_key_is_nowhere(proxy, tmp_path, monkeypatch, capfd):
    key = "sk-very-secret-123"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EngineError, match="the server answers 401: check OPENAI_API_KEY") as caught:
        served(proxy("--expect-key", "another").url, tmp_path / "a", limit=2)
    refused = proxy("--refuse", "image_url")  # repeats what it was sent
    with pytest.raises(EngineError, match="the server took no request: the server answers 400") as second:
        served(refused.url, tmp_path / "b", limit=2)
    right = proxy("--expect-key", key)
    assert len(served(right.url, tmp_path / "c", limit=2)) == 2
    texts = [*capfd.readouterr(), str(caught.value), str(second.value)]
    assert not any(key in text for text in texts)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 9 and all(key.encode() not in path.read_bytes() for path in files)


def test_an_address_with_a_password_is_not_repeated():
    config = ScoringConfig(engine="openai", base_url="http://me:hidden@localhost/v1")
    with pytest.raises(ConfigError, match="--base-url holds a user") as caught:
        OpenAIEngine("m", config)
    assert "hidden" not in str(caught.value)


def test_the_servers_name_of_a_model_is_sent_as_given(proxy, tmp_path):
    """`demo` is a folder on this machine and may be any model there."""
    proxied = proxy("--refuse", "image_url")
    with pytest.raises(EngineError, match="the server took no request"):
        score("demo", "demo", tmp_path, progress=False, engine="openai", base_url=proxied.url, limit=1, **SMALL)
    assert {request["model"] for request in requests(proxied.log)} == {"demo"}
    assert json.loads((tmp_path / "run.json").read_text())["model"] == "demo"
