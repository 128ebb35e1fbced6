"""The protocol of engines: what each has, and one of a single file and a single line that scores from end to end."""

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hardsample.engines.protocol import ENGINES, Engine, EngineEntry, engine_class
from hardsample.errors import ConfigError
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score
from hardsample.scoring.store import Store, StoreError
from hardsample.settings import field_of

SETTINGS = {
    "limit": 10,
    "num_masks": 2,
    "tau": 0.5,
    "ratios": (0.0, 0.3, 0.6),
    "engine": "toy",
    "concurrency": 5,
    "progress": False,
}


@pytest.fixture
def toy(monkeypatch):
    """The class of the toy engine, made known by one line."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(ENGINES, "toy", EngineEntry("toy_engine:ToyEngine", "toys"))
    return engine_class("toy")


def rollouts(folder):
    with Store(folder) as store:
        return list(store.rollouts())


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_what_the_protocol_names(name):
    members = {member for member in vars(Engine) if not member.startswith("_")} | {"__enter__", "__exit__"}
    assert members >= {"from_config", "identity", "run", "run_info"}
    kind = engine_class(name)
    assert [member for member in sorted(members) if not callable(getattr(kind, member))] == []
    assert kind.shows_attention in (True, False)


def test_the_table_and_the_settings_import_no_torch():
    code = (
        "import sys\n"
        "from hardsample.engines.protocol import ENGINES\n"
        "from hardsample.scoring.config import ScoringConfig\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'datasets', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_of_the_setting_names_every_engine():
    text = field_of(ScoringConfig, "engine").metadata["help"]
    assert all(f"{name} ({entry.help})" in text for name, entry in ENGINES.items())


def test_an_engine_that_is_not_in_the_table_is_rejected():
    with pytest.raises(ConfigError, match="engine is 'toy', must be one of transformers, openai"):
        ScoringConfig(engine="toy")


def test_a_second_server_engine_has_the_rules_of_servers(monkeypatch):
    monkeypatch.setitem(ENGINES, "far", EngineEntry("far:FarEngine", "far away", server=True))
    far = {"engine": "far", "base_url": "http://localhost:1/v1"}
    assert ScoringConfig(**far).engine == "far"
    with pytest.raises(ConfigError, match="the engine far needs the server's address"):
        ScoringConfig(engine="far")
    with pytest.raises(ConfigError, match="mask_space is 'model', but a server"):
        ScoringConfig(**far, mask_space="model")
    for name, value in {"device": "cpu", "dtype": "float32", "attn_implementation": "sdpa"}.items():
        with pytest.raises(ConfigError, match=f"{name} is '{value}', but the server has the model"):
            ScoringConfig(**far, **{name: value})
    with pytest.raises(ConfigError, match="transformers uses no server: add --engine openai or --engine far"):
        ScoringConfig(base_url="http://localhost:1/v1")


def test_an_engine_of_one_file_and_one_line_scores(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "refuses", ("pool-000003",))
    scores = score("demo", "toy-1", tmp_path, **SETTINGS)
    assert scores.table["id"][:] == [f"pool-{row:06d}" for row in range(10) if row != 3]
    assert set(scores.table["failure_threshold"]) == {0.6} and scores.table["successes"][0] == [1, 1, 0]
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "it is not to my taste"
    run = scores.run
    assert (run["device"], run["dtype"], run["backends"]) == ("toys", None, {"mask_pixels": "none"})
    assert run["seconds"]["generate"] == 0.5 and run["seconds"].keys() >= {"total", "grade"}
    assert run["settings"]["engine"] == "toy" and run["settings"]["max_new_tokens"] == 7
    assert run["counts"]["asked"] == len(toy.last.asked) and run["counts"]["rollouts_this_run"] == len(
        rollouts(tmp_path)
    )
    assert "sampling" not in run and "variety" not in run
    assert toy.last.most > 1 and not toy.last.opened
    with pytest.raises(StoreError, match="model: 'toy-1' there, 'toy-2' now"):
        score("demo", "toy-2", tmp_path, **SETTINGS)


def test_what_an_engine_settled_is_never_asked_again(toy, tmp_path, monkeypatch):
    whole = score("demo", "toy-1", tmp_path / "whole", **SETTINGS)
    monkeypatch.setattr(toy, "stop_after", 17)
    with pytest.raises(KeyboardInterrupt):
        score("demo", "toy-1", tmp_path / "stopped", **SETTINGS)
    kept = {(made.sample, made.ratio, made.realization) for made in rollouts(tmp_path / "stopped")}
    assert 17 - SETTINGS["concurrency"] - 1 <= len(kept) <= 17  # lost is what was in flight
    monkeypatch.setattr(toy, "stop_after", None)
    resumed = score("demo", "toy-1", tmp_path / "stopped", **SETTINGS)
    assert not kept & set(toy.last.asked) and max(Counter(toy.last.asked).values()) == 1
    assert rollouts(tmp_path / "stopped") == rollouts(tmp_path / "whole")
    assert resumed.table.to_dict() == whole.table.to_dict()


def test_cmab_of_rollouts_by_an_engine_that_shows_no_attention(toy, tmp_path, capsys):
    score("demo", "toy-1", tmp_path, metric="pism,cmab", **SETTINGS)
    message = "the engine toy shows no attention; afterwards: "
    message += f"hardsample score --metric cmab --output {tmp_path} --model"
    assert message in capsys.readouterr().out
    scores = score(output=tmp_path, model="demo", metric="cmab", device="cpu", progress=False)
    with sqlite3.connect(tmp_path / "rollouts.sqlite") as store:
        unmasked = store.execute("SELECT count(*) FROM rollouts WHERE ratio = 0").fetchone()[0]
    assert scores.run["cmab"]["completions"] == unmasked and all(scores.table["attention_balance"])
    assert scores.run["settings"]["engine"] == "toy" and scores.run["settings"]["metric"] == ["pism", "cmab"]
