"""Features in a folder: kept by scoring, added afterwards, of new data, from a server; killed and resumed."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest

from hardsample.demo import load_split, model_path
from hardsample.engines.features import IMAGE, LAST, NUMBERS, VERSION, WIDTH
from hardsample.engines.results import EngineError
from hardsample.errors import ConfigError
from hardsample.scoring.config import FeaturesConfig
from hardsample.scoring.features.files import FEATURES_SCHEMA, read_features
from hardsample.scoring.features.make import add_features
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.score import score
from hardsample.scoring.store import Store, StoreError, StoreReader

FAST = {"limit": 10, "num_masks": 2, "tau": 0.5, "ratios": (0.0, 0.4), "progress": False, "device": "cpu"}
HERE = {"progress": False, "device": "cpu"}
needs_openai = pytest.mark.skipif(find_spec("openai") is None, reason="needs pip install openai")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return score("demo", "demo", tmp_path_factory.mktemp("plain"), **FAST)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same scoring without features."""
    return score("demo", "demo", tmp_path_factory.mktemp("bare"), **FAST, features=False)


@pytest.fixture
def copied(bare, tmp_path):
    return shutil.copytree(bare.directory, tmp_path / "copy")


def rollouts(folder):
    with Store(folder) as store:
        return list(store.rollouts())


def close(first, second):
    np.testing.assert_allclose(first.astype(float), second.astype(float), atol=1e-2, equal_nan=True)


def number(matrix, name):
    return matrix[:, NUMBERS.index(name)].astype(float)


def test_scoring_keeps_features_of_every_sample(plain):
    ids, matrix = read_features(plain.directory)
    assert ids == list(plain.table["id"]) and matrix.shape == (10, WIDTH) and matrix.dtype == np.float16
    assert not np.isnan(matrix[:, : len(NUMBERS)]).any() and not np.isnan(matrix[:, LAST]).any()
    about = plain.run["features"]
    assert {key: about[key] for key in ("model", "version", "bytes", "samples")} == {
        "model": "demo",
        "version": VERSION,
        "bytes": 512,
        "samples": 10,
    }
    table = pq.read_table(plain.directory / "features.parquet")
    assert table.schema.equals(FEATURES_SCHEMA)
    assert json.loads(table.schema.metadata[b"hardsample"]) == about
    assert about["fingerprint"] and plain.run["settings"]["features"] is True


def test_results_are_those_without_features(plain, bare):
    assert rollouts(plain.directory) == rollouts(bare.directory)
    assert plain.table.to_dict() == bare.table.to_dict()
    assert not (bare.directory / "features.parquet").exists() and "features" not in bare.run
    with pytest.raises(OutputError, match=r"has no features.parquet: run `hardsample features"):
        read_features(bare.directory)


def test_features_are_added_to_a_finished_folder_once(plain, bare, copied):
    done = add_features(copied, **HERE)
    assert (done.samples, done.before, done.failed) == (10, 0, {})
    (ids, matrix), (wanted_ids, wanted) = read_features(copied), read_features(plain.directory)
    assert ids == wanted_ids
    close(matrix, wanted)
    before = Scores(copied)
    assert before.run["features"] == done.about == plain.run["features"]
    assert before.table.to_dict() == bare.table.to_dict() and before.run["counts"] == bare.run["counts"]
    again = add_features(copied, **HERE)
    assert (again.samples, again.before) == (10, 10)
    rescored = score("demo", "demo", copied, **FAST)
    assert rescored.run["counts"]["rollouts_this_run"] == 0 and rescored.run["features"]["samples"] == 10


def test_only_what_is_missing_is_made(plain, tmp_path):
    folder = shutil.copytree(plain.directory, tmp_path / "copy")
    kept = np.full(WIDTH, 7.0, "<f2")
    with Store(folder) as store:
        store._database.execute("DELETE FROM features WHERE id >= 'pool-000004'")
        store._database.execute("UPDATE features SET data = ?", (kept.tobytes(),))
    done = add_features(folder, **HERE)
    assert (done.samples, done.before) == (10, 4)
    matrix = read_features(folder)[1]
    assert (matrix[:4] == 7).all()
    close(matrix[4:], read_features(plain.directory)[1][4:])


def test_a_folder_of_an_older_version_opens(plain, copied):
    with sqlite3.connect(copied / "rollouts.sqlite") as database:
        database.execute("DROP TABLE features")
    with StoreReader(copied) as store:
        assert store.rollouts("pool-000000")
    run = json.loads((copied / "run.json").read_text())
    del run["settings"]["features"]
    (copied / "run.json").write_text(json.dumps(run))
    assert add_features(copied, **HERE).samples == 10
    close(read_features(copied)[1], read_features(plain.directory)[1])


def test_features_of_another_version_are_made_again(plain, tmp_path):
    folder = shutil.copytree(plain.directory, tmp_path / "copy")
    with Store(folder) as store:
        store._database.execute("UPDATE features SET version = version + 1")
    table = pq.read_table(folder / "features.parquet")
    pq.write_table(table.set_column(1, "version", [[VERSION + 1] * 10]), folder / "features.parquet")
    with pytest.raises(OutputError, match=rf"features of version {VERSION + 1}, must be {VERSION}: run"):
        read_features(folder)
    assert add_features(folder, **HERE).before == 0
    close(read_features(folder)[1], read_features(plain.directory)[1])


def test_an_encoder_is_recorded_and_kept_apart(plain, tmp_path):
    folder, encoder = shutil.copytree(plain.directory, tmp_path / "copy"), tmp_path / "encoder"
    shutil.copytree(model_path(), encoder)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"note": "another"}))
    done = add_features(folder, encoder=str(encoder), **HERE)
    assert done.before == 0 and done.about["model"] == str(encoder)
    assert done.about["fingerprint"] != plain.run["features"]["fingerprint"]
    assert add_features(folder, encoder=str(encoder), **HERE).before == 10
    own = add_features(folder, **HERE)
    assert own.before == 10 and own.about == plain.run["features"]


def test_data_that_nobody_scored_gets_a_folder_of_features(plain, tmp_path):
    done = add_features(tmp_path / "new", "demo", "demo", limit=6, **HERE)
    ids, matrix = read_features(tmp_path / "new")
    assert ids == [f"pool-{index:06d}" for index in range(6)] and (done.samples, done.before) == (6, 0)
    close(matrix, read_features(plain.directory)[1][:6])
    about = json.loads((tmp_path / "new" / "features.json").read_text())
    assert about["data"] == "demo" and about["settings"]["limit"] == 6
    assert about["features"] == plain.run["features"] | {"samples": 6}
    names = {path.name for path in (tmp_path / "new").iterdir()} - {".lock"}
    assert names == {"features.parquet", "features.json", "features.sqlite", "rejected.jsonl"}
    assert add_features(tmp_path / "new", "demo", "demo", limit=8, **HERE).before == 6
    with pytest.raises(StoreError, match="at least the same --limit"):
        add_features(tmp_path / "new", "demo", "demo", limit=3, **HERE)


def test_what_is_missing_is_named(plain, tmp_path):
    for arguments, message in (
        ((), "holds no scores: give --data"),
        (("demo",), "holds no scores: give --model"),
    ):
        with pytest.raises(ConfigError, match=message):
            add_features(tmp_path / "new", *arguments, **HERE)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="limit is 3, but features are added to all samples"):
        add_features(plain.directory, limit=3, **HERE)
    with pytest.raises(ConfigError, match="encoder is 'demo', a model on this machine"):
        FeaturesConfig(encoder="demo", engine="openai", base_url="http://localhost/v1")
    (tmp_path / "half").mkdir()
    Store(tmp_path / "half").close()
    with pytest.raises(OutputError, match="a scoring that did not finish"):
        add_features(tmp_path / "half", "demo", "demo", **HERE)


def test_bad_records_are_rejected_and_listed(tmp_path):
    lines = []
    for row, record in enumerate(load_split("demo", 5)):
        image = record["images"][0]["bytes"]
        (tmp_path / f"{row}.png").write_bytes(image[:300] if row == 2 else image)  # its header is whole
        text = record["prompt"][0]["content"][1]["text"]
        question = f"<image>{text} <image>" if row == 3 else f"<image>{text}"
        lines.append(
            json.dumps({"id": str(row), "problem": question, "images": [f"{row}.png"], "solution": record["solution"]})
        )
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, "{}"]))
    done = add_features(tmp_path / "new", str(tmp_path / "data.jsonl"), "demo", **HERE)
    assert read_features(tmp_path / "new")[0] == ["0", "1", "4"] and list(done.failed) == ["2"]
    rejected = [json.loads(line) for line in (tmp_path / "new" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["number"] for entry in rejected] == [2, 3, 5] and "cannot be decoded" in rejected[0]["reason"]
    assert done.about["failed"] == done.failed
    again = add_features(
        tmp_path / "new", str(tmp_path / "data.jsonl"), "demo", **HERE
    )  # fails alone, and ends nothing
    assert (again.samples, again.before) == (3, 3)


CHILD = """
import sys
from hardsample.scoring.features.make import add_features
add_features(sys.argv[1], "demo", "demo", limit=48, batch_size=2, progress=False, device="cpu")
"""


def committed(folder):
    try:
        with sqlite3.connect(f"file:{folder / 'features.sqlite'}?mode=ro", uri=True) as database:
            return dict(database.execute("SELECT id, data FROM features"))
    except sqlite3.OperationalError:  # not made yet
        return {}


@pytest.mark.slow
def test_killed_it_resumes_where_it_was(tmp_path):
    folder = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stderr=subprocess.DEVNULL)
    while len(committed(folder)) < 6:
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = committed(folder)
    assert 6 <= len(kept) < 48 and len(kept) % 2 == 0 and not (folder / "features.parquet").exists()
    marked = {sample: np.full(WIDTH, 3.0, "<f2").tobytes() for sample in kept}  # shows what is made again
    with sqlite3.connect(folder / "features.sqlite") as database:
        database.executemany("UPDATE features SET data = ? WHERE id = ?", [(data, id) for id, data in marked.items()])
    done = add_features(folder, "demo", "demo", limit=48, **HERE)
    assert (done.samples, done.before) == (48, len(kept))
    ids, matrix = read_features(folder)
    assert [sample in kept for sample in ids] == [bool((row == 3).all()) for row in matrix]


class Served(ThreadingHTTPServer):
    """A server of chat completions that sends log-probabilities, ignores that they are asked for, or refuses them."""

    daemon_threads = True

    def __init__(self, manner):
        super().__init__(("127.0.0.1", 0), Handler)
        self.manner, self.asked, self.refused = manner, [], 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing on stderr."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.manner == "refuses" and "logprobs" in body:
            self.server.refused += 1
            self.answer(400, {"error": {"message": "logprobs and top_logprobs are not supported by this model"}})
            return
        self.server.asked.append(body)
        choice = {"message": {"role": "assistant", "content": "4"}, "finish_reason": "length"}
        if self.server.manner == "sends":
            top = [{"token": str(rank), "logprob": float(np.log(0.5**rank))} for rank in (2, 1, 3)]
            choice["logprobs"] = {"content": [{"token": "1", "logprob": -0.7, "top_logprobs": top}]}
        self.answer(200, {"choices": [choice]})

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def serve():
    servers = []

    def start(manner):
        servers.append(Served(manner))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@needs_openai
def test_a_server_sends_the_first_tokens_distribution(serve, tmp_path):
    server = serve("sends")
    settings = {"limit": 5, "engine": "openai", "base_url": server.url, "progress": False}
    done = add_features(tmp_path / "new", "demo", "theirs", **settings)
    matrix = read_features(tmp_path / "new")[1]
    assert (done.samples, done.about["model"], done.about["dtype"]) == (5, "theirs", None)
    assert number(matrix, "logprob_1") == pytest.approx(np.log(0.5), abs=1e-3)
    assert number(matrix, "logprob_3") == pytest.approx(np.log(0.125), abs=2e-3)
    assert number(matrix, "entropy") == pytest.approx(1.75 * np.log(2), abs=2e-3)
    assert np.isnan(matrix[:, LAST]).all() and np.isnan(matrix[:, IMAGE]).all()
    assert not np.isnan(number(matrix, "brightness")).any()
    assert len(server.asked) == 5
    for body in server.asked:
        wanted = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20, "temperature": 1.0}
        assert {name: body[name] for name in wanted} == wanted
    assert add_features(tmp_path / "new", "demo", "theirs", **settings).before == 5 and len(server.asked) == 5


@needs_openai
@pytest.mark.parametrize("manner", ["ignores", "refuses"])
def test_without_log_probabilities_the_other_numbers_stay_and_it_is_said_once(serve, tmp_path, capsys, manner):
    server = serve(manner)
    settings = {"limit": 4, "engine": "openai", "base_url": server.url, "concurrency": 1, "progress": False}
    add_features(tmp_path / "new", "demo", "theirs", **settings)
    matrix = read_features(tmp_path / "new")[1]
    assert np.isnan(number(matrix, "entropy")).all() and (number(matrix, "characters") > 0).all()
    said = capsys.readouterr().out
    assert said.count("the first token's distribution is not known") == 1, said
    assert server.refused == (manner == "refuses") and len(server.asked) == 4


@needs_openai
def test_a_folder_that_a_server_scored_asks_that_server_or_a_local_encoder(serve, tmp_path):
    server = serve("sends")
    folder = tmp_path / "scored"
    settings = FAST | {"limit": 3, "engine": "openai", "base_url": server.url, "device": None}
    assert "features" not in score("demo", "theirs", folder, **settings).run
    asked = len(server.asked)
    assert add_features(folder, progress=False).about["model"] == "theirs" and len(server.asked) == asked + 3
    assert np.isnan(read_features(folder)[1][:, LAST]).all()
    assert add_features(folder, encoder="demo", **HERE).before == 0 and len(server.asked) == asked + 3
    assert not np.isnan(read_features(folder)[1][:, LAST]).any()


def test_a_model_that_fails_on_everything_ends_the_job(tmp_path, monkeypatch):
    from hardsample.engines.transformers import TransformersEngine

    def broken(*_, **__):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(TransformersEngine, "_generated", broken)
    with pytest.raises(EngineError, match=r"the model fails on its first 4 records: .*no kernel for this device"):
        add_features(tmp_path, "demo", "demo", limit=4, **HERE)


def test_features_without_a_model_are_the_numbers_of_text_and_images_that_a_prefill_has_too(tmp_path):
    data = load_split("demo", limit=10)
    run = add_features(tmp_path / "quick", data, "none", progress=False)
    add_features(tmp_path / "whole", data, "demo", **HERE)
    assert (run.samples, run.before, run.about["fingerprint"]) == (10, 0, "none")
    matrix, with_prefill = read_features(tmp_path / "quick")[1], read_features(tmp_path / "whole")[1]
    known = np.isfinite(matrix.astype(float)).any(0)
    names = {"images", "characters", "options", "pixels", "aspect", "brightness", "contrast", "saturation", "edges"}
    assert {NUMBERS[place] for place in np.flatnonzero(known)} == names
    close(matrix[:, known], with_prefill[:, known])
    assert add_features(tmp_path / "quick", data, "none", progress=False).before == 10
    with pytest.raises(StoreError):  # other samples
        add_features(tmp_path / "quick", load_split("demo", limit=4), "none", progress=False)


def test_a_broken_image_is_set_aside_without_a_model_too(tmp_path):
    records = [dict(record) for record in load_split("demo", limit=4)]
    records[2]["images"] = [{"bytes": records[2]["images"][0]["bytes"][:-60], "path": None}]
    run = add_features(tmp_path, records, "none", progress=False)
    assert (run.samples, list(run.failed)) == (3, [records[2]["id"]])
    assert "cannot be decoded" in (tmp_path / "rejected.jsonl").read_text()


def test_a_scored_folder_needs_to_be_told_that_features_without_its_model_are_wanted(copied):
    with pytest.raises(ConfigError, match="--encoder none"):
        add_features(copied, model="none", progress=False)
    assert add_features(copied, encoder="none", progress=False).about["model"] == "none"
