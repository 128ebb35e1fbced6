"""The scoring job on the demo model and data: killed, continued, in any batch size, with bad records."""

import io
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from hardsample.data.loading import load
from hardsample.demo import load_split
from hardsample.grading.grader import Grader
from hardsample.kernels.ops import chosen
from hardsample.report.tables import summary
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.rollouts import gradable
from hardsample.scoring.score import NothingToScoreError, RejectedError, score
from hardsample.scoring.store import Store, StoreError

FAST = {"limit": 12, "num_masks": 3, "tau": 0.3, "ratios": (0.0, 0.3, 0.6), "progress": False}


def rollouts(directory):
    with Store(directory) as store:
        return list(store.rollouts())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An undisturbed run."""
    directory = tmp_path_factory.mktemp("plain")
    return score("demo", "demo", directory, **FAST)


def test_the_summary_shows_mask_processor_and_model_apart(plain):
    console = Console(width=200, file=io.StringIO())
    console.print(summary(plain))
    printed = console.file.getvalue()
    number = r"\d+(\.\d)? s"
    assert re.search(rf"time +{number}: {number} in the model, {number} waiting for images, {number} grading", printed)
    assert re.search(
        rf"images +beside the model: {number} decoding, {number} masking \((cpp|reference)\), "
        rf"{number} in the processor \((pil|torchvision) on cpu\)",
        printed,
    )


def test_the_folder_holds_what_is_documented(plain):
    table = pq.read_table(plain.directory / "scores.parquet").to_pydict()
    assert table["id"] == [f"pool-{index:06d}" for index in range(12)]
    assert set(table["pism_stratum"]) <= {"easy", "medium", "hard", "unsolved"}
    with sqlite3.connect(plain.directory / "rollouts.sqlite") as database:
        for row, name in enumerate(table["id"]):
            stored = database.execute(
                "SELECT ratio, sum(grade), count(*) FROM rollouts WHERE sample = ? GROUP BY ratio", (name,)
            ).fetchall()
            found = {ratio: (successes, attempts) for ratio, successes, attempts in stored}
            counted = zip(table["successes"][row], table["attempts"][row], strict=True)
            assert [found.get(ratio, (0, 0)) for ratio in FAST["ratios"]] == list(counted)
            assert table["rollouts"][row] == sum(attempts for _, attempts in found.values())
    run = json.loads((plain.directory / "run.json").read_text())
    assert run["status"] == "done"
    assert run["mask_space"] == "source"
    assert run["counts"]["samples"] == 12
    assert sum(run["counts"]["strata"].values()) == 12
    assert run["settings"]["ratios"] == list(FAST["ratios"])
    assert run["versions"]["torch"]
    assert run["backends"]["mask_pixels"] == chosen(torch.empty((1, 1, 1, 16), dtype=torch.uint8))["mask_pixels"]
    assert run["backends"]["image_processor"] in ("pil on cpu", "torchvision on cpu")  # whichever is installed
    steps = {"decode", "mask", "processor", "generate", "grade"}
    assert set(run["seconds"]) == steps | {"total", "wait_for_prepare"}
    assert all(run["seconds"][step] <= run["seconds"]["total"] for step in steps)
    assert (plain.directory / "rejected.jsonl").read_text() == ""


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_changes_nothing(plain, tmp_path, size):
    other = score("demo", "demo", tmp_path, **FAST, batch_size=size)
    assert rollouts(tmp_path) == rollouts(plain.directory)
    assert other.table.to_dict() == plain.table.to_dict()


def test_another_seed_gives_other_rollouts(plain, tmp_path):
    score("demo", "demo", tmp_path, **FAST, seed=5)
    mine = {(r.sample, r.ratio, r.realization): r.completion for r in rollouts(tmp_path)}
    theirs = {(r.sample, r.ratio, r.realization): r.completion for r in rollouts(plain.directory)}
    shared = mine.keys() & theirs.keys()
    assert any(mine[key] != theirs[key] for key in shared)


def test_exhaustive_gives_the_same_strata_and_may_continue_a_lossless_folder(plain, tmp_path):
    shutil.copytree(plain.directory, tmp_path / "copy")
    exhaustive = score("demo", "demo", tmp_path / "copy", **FAST, search="exhaustive")
    assert exhaustive.run["counts"]["rollouts"] == 12 * 9
    assert exhaustive.run["counts"]["rollouts_this_run"] == 12 * 9 - plain.run["counts"]["rollouts"]
    for column in ("pism_stratum", "failure_threshold"):
        assert list(exhaustive.table[column]) == list(plain.table[column])
    with pytest.raises(StoreError, match="search: 'exhaustive' there, 'lossless' now"):
        score("demo", "demo", tmp_path / "copy", **FAST)


def test_a_finished_folder_asks_nothing_again_and_a_larger_limit_goes_on(plain, tmp_path):
    shutil.copytree(plain.directory, tmp_path / "copy")
    again = score("demo", "demo", tmp_path / "copy", **FAST, batch_size=3)
    assert again.run["counts"]["rollouts_this_run"] == 0
    assert again.table.to_dict() == plain.table.to_dict()
    more = score("demo", "demo", tmp_path / "copy", **(FAST | {"limit": 14}))
    assert len(more) == 14
    assert more.table.select(range(12)).to_dict() == plain.table.to_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"num_masks": 4}, "num_masks"),
        ({"mask_kind": "patch"}, "mask_kind"),
        ({"tau": 0.5}, "tau"),
    ],
)
def test_other_settings_are_refused(plain, change, named):
    with pytest.raises(StoreError, match=f"  {named}: "):
        score("demo", "demo", plain.directory, **(FAST | change))


def test_changed_data_is_refused(plain, tmp_path):
    shutil.copytree(plain.directory, tmp_path / "copy")
    changed = load_split("demo", 12).map(lambda record: {"solution": record["solution"] + "0"})
    with pytest.raises(StoreError, match="sample 'pool-000000' has changed"):
        score(changed, "demo", tmp_path / "copy", **FAST)


def test_blind_level_and_strata_are_independent(plain, tmp_path):
    blind = score("demo", "demo", tmp_path, **FAST, blind=True)
    assert list(blind.table["pism_stratum"]) == list(plain.table["pism_stratum"])
    assert list(blind.table["blind_attempts"]) == [3] * 12
    assert blind.run["counts"]["rollouts_blind"] == 36
    assert blind.run["counts"]["rollouts"] == plain.run["counts"]["rollouts"]
    assert all(solved_blind in (True, False) for solved_blind in blind.table["solved_blind"])
    assert set(plain.table["solved_blind"]) == {None}


CHILD = """
import sys
from hardsample.scoring.score import score
score("demo", "demo", sys.argv[1], limit=30, num_masks=4, tau=0.25, batch_size=8, progress=False)
"""


@pytest.mark.slow
def test_killed_at_random_points_it_ends_as_if_undisturbed(tmp_path):
    """kill -9 several times while rollouts come in; nothing committed is lost or asked again."""
    draw = random.Random(0)
    kills, committed = 0, 0
    while True:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        wanted = committed + draw.randrange(1, 60)
        while child.poll() is None and count(tmp_path / "killed") < wanted:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.05)
        if child.poll() is not None or kills == 4:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kills += 1
        assert count(tmp_path / "killed") >= committed
        committed = count(tmp_path / "killed")
        assert committed % 1 == 0
    assert child.wait() == 0
    assert kills >= 2
    undisturbed = score(
        "demo", "demo", tmp_path / "whole", limit=30, num_masks=4, tau=0.25, batch_size=8, progress=False
    )
    assert rollouts(tmp_path / "killed") == rollouts(tmp_path / "whole")
    killed = Scores(tmp_path / "killed")
    assert killed.table.to_dict() == undisturbed.table.to_dict()
    assert killed.run["counts"]["rollouts_this_run"] == undisturbed.run["counts"]["rollouts"] - committed


def count(directory) -> int:
    path = directory / "rollouts.sqlite"
    if not path.exists():
        return 0
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return database.execute("SELECT count(*) FROM rollouts").fetchone()[0]
    except sqlite3.OperationalError:  # the table is not made yet
        return 0
    finally:
        database.close()


@pytest.fixture
def mixed(tmp_path):
    """Good records, one without an image, and bad ones that show early or late."""
    demo = load_split("demo", 4)
    (tmp_path / "images").mkdir()
    lines = []
    for number, record in enumerate(demo):
        (tmp_path / "images" / f"{number}.png").write_bytes(record["images"][0]["bytes"])
        text = record["prompt"][0]["content"][1]["text"]
        lines.append({"id": f"good-{number}", "problem": f"<image>{text}", "images": [f"images/{number}.png"]})
        lines[-1]["answer"] = record["solution"]
    torn = (tmp_path / "images" / "0.png").read_bytes()[:500]
    (tmp_path / "images" / "torn.png").write_bytes(torn)
    lines.insert(1, {"id": "torn", "problem": "<image>What?", "images": ["images/torn.png"], "answer": "1"})
    lines.insert(2, {"id": "missing", "problem": "<image>What?", "images": ["images/none.png"], "answer": "1"})
    lines.insert(3, {"id": "text", "problem": "What number is written?", "images": [], "answer": "1"})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_bad_records_are_rejected_and_listed(mixed, tmp_path):
    scores = score(mixed, "demo", tmp_path / "out", num_masks=2, tau=0.5, ratios=(0.0, 0.5), progress=False)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(one["number"], one["id"]) for one in rejected] == [(1, "torn"), (2, "missing")]
    assert "cannot be decoded" in rejected[0]["reason"]
    assert "does not exist" in rejected[1]["reason"]
    assert scores.run["counts"]["rejected"] == 2
    assert sorted(scores.table["id"]) == ["good-0", "good-1", "good-2", "good-3", "text"]
    text = next(row for row in scores.table if row["id"] == "text")
    assert text["pism_stratum"] is None
    assert text["attempts"] == [2, 0]
    assert scores.run["counts"]["without_stratum"] == 1


def test_strict_stops_at_the_first_bad_record(mixed, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        score(mixed, "demo", tmp_path / "out", strict=True, progress=False)
    lines = [line for line in mixed.read_text().splitlines() if '"missing"' not in line]
    mixed.write_text("\n".join(lines))
    with pytest.raises(RejectedError, match=r"record 1 \(id 'torn'\)"):
        score(mixed, "demo", tmp_path / "out2", strict=True, num_masks=1, progress=False)


def test_nothing_to_score_leaves_the_reasons(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "a", "problem": "<image>?", "images": ["none.png"], "answer": "1"}\n')
    with pytest.raises(NothingToScoreError):
        score(path, "demo", tmp_path / "out", progress=False)
    assert '"id": "a"' in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_scores_say_what_is_missing(tmp_path):
    with pytest.raises(OutputError, match="holds no finished run"):
        Scores(tmp_path)


def test_config_names_value_bound_and_fix():
    with pytest.raises(ValueError, match="batch_size is 0, must be an integer of at least 1"):
        ScoringConfig(batch_size=0)
    with pytest.raises(ValueError, match="temperature is -1, must be a number of at least 0"):
        ScoringConfig(temperature=-1)
    with pytest.raises(ValueError, match="engine is 'x', must be one of transformers"):
        ScoringConfig(engine="x")


def test_demo_names_are_data():
    loaded = load("demo", limit=6)
    assert loaded.dataset["ability"] == list(load_split("demo", 6)["ability"])
    assert set(loaded.dataset["grader"]) == {"math", "counting", "text"}


@pytest.mark.parametrize(
    ("answer_boxes", "completion", "right"),
    [
        (None, "[10, 20, 60, 80]", True),
        ("relative_1000", "[10, 20, 60, 80]", False),
        ("relative_1000", "[50, 200, 300, 800]", True),
        ("pixels", "[50, 200, 300, 800]", False),
    ],
)
def test_boxes_are_compared_in_the_space_the_model_writes_them(answer_boxes, completion, right):
    record = {
        "grader": "grounding",
        "solution": "[10, 20, 60, 80]",
        "images": [Image.new("RGB", (200, 100))],
        "box_format": None,
    }
    with Grader() as grader:
        assert grader.grade(completion, gradable(record, answer_boxes)) is right
