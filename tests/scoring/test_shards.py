"""Shards and their merge: the whole is what one process makes; what does not fit is refused by name."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.demo import load_split
from hardsample.errors import ConfigError, NothingToScoreError
from hardsample.files import FEATURES_FILE, REJECTED_FILE, RUN_FILE, SCORES_FILE
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features.files import read_features
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.scoring.sharding import tables
from hardsample.scoring.sharding.merge import ShardsError, merge
from hardsample.scoring.sharding.shard import Shard, digest_of, shard_of
from hardsample.scoring.sharding.tables import merge_tables
from hardsample.scoring.store import Store, StoreError

SIZE, SHARDS = 30, 3
OPTIONS = {"num_masks": 2, "metric": "pism,cmab", "progress": False}


def data(folder, size=SIZE):
    """Questions in a file, of which two cannot be read; one of these has no id."""
    path = folder / "data.jsonl"
    lines = []
    for row, record in enumerate(load_split("demo", size)):
        (folder / f"{row}.png").write_bytes(record["images"][0]["bytes"])
        question = next(block["text"] for block in record["prompt"][-1]["content"] if block["type"] == "text")
        lines.append({"id": f"q{row}", "image": f"{row}.png", "question": question, "answer": record["solution"]})
    lines[4]["image"] = "missing.png"
    lines[9] |= {"answer": ""}
    del lines[9]["id"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def score_shards(path, output, only=range(1, SHARDS + 1), **options):
    for index in only:
        score(path, "demo", output, shard=f"{index}/{SHARDS}", **(OPTIONS | options))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, source):
    """Three finished shards, to be copied."""
    folder = tmp_path_factory.mktemp("sharded") / "out"
    score_shards(source, folder)
    return folder


@pytest.fixture
def output(tmp_path, sharded):
    return shutil.copytree(sharded, tmp_path / "out")


def run_of(folder):
    return json.loads((folder / RUN_FILE).read_text())


def change_run(folder, **changes):
    (folder / RUN_FILE).write_text(json.dumps(run_of(folder) | changes))


def rollouts_of(folder):
    with Store(folder) as store:
        return [(r.sample, r.ratio, r.realization, r.completion, r.grade) for r in store.rollouts()]


def test_the_whole_is_what_one_process_makes(tmp_path, source, output):
    merged = merge(output, progress=False)
    one = score(source, "demo", tmp_path / "one", **OPTIONS)
    assert merged.table.column_names == one.table.column_names
    for name in one.table.column_names:
        if name.startswith("attention"):  # sums of floats depend on the batch
            for mine, its in zip(merged.table[name], one.table[name], strict=True):
                assert mine == (pytest.approx(its, rel=1e-4) if its is not None else None)
        else:
            assert list(merged.table[name]) == list(one.table[name]), name
    assert rollouts_of(output) == rollouts_of(tmp_path / "one")
    assert (output / REJECTED_FILE).read_text() == (tmp_path / "one" / REJECTED_FILE).read_text() != ""
    (ids, matrix), (other_ids, other) = read_features(output), read_features(tmp_path / "one")
    assert ids == other_ids
    np.testing.assert_allclose(matrix.astype(float), other.astype(float), atol=0.02)
    mine, its = run_of(output), run_of(tmp_path / "one")
    its["counts"]["rollouts_this_run"] = 0
    for name in {*mine, *its} - {"seconds", "cmab", "shards"}:
        assert mine[name] == its[name], name
    assert mine["shards"] == SHARDS
    assert mine["cmab"]["completions"] == its["cmab"]["completions"]


def test_the_whole_can_be_scored_further_and_is_then_not_merged_over(source, output):
    merge(output, progress=False)
    before = rollouts_of(output)
    score(source, "demo", output, **(OPTIONS | {"search": "exhaustive"}))
    assert set(before) < set(rollouts_of(output))
    with pytest.raises(
        StoreError,
        match=r"holds rollouts that its shards do not have \(the first: sample 'q\d+'\).*score every shard likewise",
    ):
        merge(output, progress=False)
    assert set(before) < set(rollouts_of(output)), "nothing is lost"


def test_what_was_added_to_the_whole_is_not_lost_by_merging_again(tmp_path, source):
    for index in (1, 2):
        score(source, "demo", tmp_path, shard=f"{index}/2", num_masks=2, progress=False)
    merge(tmp_path, progress=False)
    score(output=tmp_path, metric="cmab", progress=False)
    balances = list(Scores(tmp_path).table["attention_balance"])
    assert any(balance is not None for balance in balances)
    with pytest.raises(StoreError, match=r"holds attention balances that its shards do not have .*--metric cmab"):
        merge(tmp_path, progress=False)
    assert list(Scores(tmp_path).table["attention_balance"]) == balances
    for index in (1, 2):
        score(output=tmp_path, metric="cmab", shard=f"{index}/2", progress=False)
    again = list(merge(tmp_path, progress=False).table["attention_balance"])
    assert [balance is None for balance in again] == [balance is None for balance in balances]
    assert sorted(path.name for path in tmp_path.glob("*.sqlite*")) == ["rollouts.sqlite"]


def test_shards_of_other_texts_under_the_same_ids_are_refused(tmp_path, output):
    (tmp_path / "changed").mkdir()
    path = data(tmp_path / "changed")
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    Path(path).write_text("".join(json.dumps(line | {"answer": "17"}) + "\n" for line in lines))
    shutil.rmtree(output / "shards" / "00003-of-00003")
    score_shards(path, output, only=[3])
    with pytest.raises(ShardsError, match=r"shard 3/3 was scored on data of 30 records, .* with other ids or texts"):
        merge(output)


def test_a_metric_that_a_shard_lacks_is_added_without_new_rollouts(source, output):
    shutil.rmtree(output / "shards" / "00002-of-00003")
    score_shards(source, output, only=[2], metric="pism")
    before = rollouts_of(output / "shards" / "00002-of-00003")
    with pytest.raises(ShardsError, match=r"(?s)metric: .* in 1/3, \['pism'\] in 2/3.*no rollout is made again"):
        merge(output)
    score_shards(source, output, only=[2])
    assert rollouts_of(output / "shards" / "00002-of-00003") == before
    merge(output, progress=False)


def test_a_shard_that_was_empty_before_the_data_grew_is_scored_again(tmp_path, source):
    options = {"num_masks": 2, "progress": False}
    used = {shard_of(f"q{row}", 6) for row in range(4)}
    for index in range(1, 7):
        with contextlib.nullcontext() if index in used else pytest.raises(NothingToScoreError):
            score(source, "demo", tmp_path, shard=f"{index}/6", limit=4, **options)
    assert len(merge(tmp_path, progress=False)) == 4
    for index in used:
        score(source, "demo", tmp_path, shard=f"{index}/6", **options)
    with pytest.raises(ShardsError, match=r"shard \d/6 was scored on data of \d+ records, shard \d/6 on data of \d+"):
        merge(tmp_path)


def test_the_folder_of_a_shard_is_no_output(source, output):
    with pytest.raises(ConfigError, match=r"which is the folder of a shard: give .*out$"):
        score_shards(source, output / "shards" / "00001-of-00003", only=[1])


def test_the_command_of_an_empty_shard_ends_well(tmp_path, source):
    empty = next(index for index in range(1, 41) if index not in {shard_of(f"q{row}", 40) for row in range(4)})
    arguments = ["score", source, "--model", "demo", "--output", str(tmp_path), "--limit", "5"]
    done = CliRunner().invoke(app, [*arguments, "--shard", f"{empty}/40"])
    assert done.exit_code == 0, done.output
    assert f"falls into shard {empty}/40" in done.output and "hardsample merge" in done.output


def test_grown_data_is_scored_on_and_merged_again(tmp_path, output):
    merge(output, progress=False)
    before = rollouts_of(output)
    (tmp_path / "more").mkdir()
    more = data(tmp_path / "more", SIZE + 10)
    score_shards(more, output, only=[1])
    with pytest.raises(ShardsError, match=r"shard 2/3 was scored on data of 30 records, shard 1/3 on data of 40"):
        merge(output, progress=False)
    score_shards(more, output, only=[2, 3])
    assert len(merge(output, progress=False)) == SIZE + 8
    assert set(before) < set(rollouts_of(output))


def test_a_shard_that_is_missing_or_unfinished_is_named(output):
    folder = output / "shards" / "00002-of-00003"
    change_run(folder, status="running")
    with pytest.raises(ShardsError, match="1 of 3 shards did not finish: give the command of shard 2/3 again"):
        merge(output)
    shutil.rmtree(folder)
    with pytest.raises(ShardsError, match=r"lacks 1 of 3 shards: score with --shard 2/3$"):
        merge(output)
    (output / "shards" / "00001-of-00008").mkdir()
    with pytest.raises(ShardsError, match="holds shards of 3 and of 8"):
        merge(output)
    with pytest.raises(ShardsError, match="holds no shards"):
        merge(output / "shards")


def test_shards_of_other_settings_are_refused(source, output):
    shutil.rmtree(output / "shards" / "00003-of-00003")
    score_shards(source, output, only=[3], temperature=1.0, max_pixels=10**6)
    with pytest.raises(ShardsError, match=r"shard 3/3 was made with other settings than shard 1/3") as error:
        merge(output)
    assert "temperature: 0.7 in 1/3, 1.0 in 3/3" in str(error.value)
    assert "delete the folder of the one that is wrong" in str(error.value)
    assert "max_pixels" in str(error.value)
    assert not (output / SCORES_FILE).exists()


def test_what_changes_no_result_may_differ(source, output):
    shutil.rmtree(output / "shards" / "00003-of-00003")
    score_shards(source, output, only=[3], batch_size=7)
    assert len(merge(output, progress=False)) == SIZE - 2


def test_a_sample_in_two_shards_is_refused(output):
    first, second = (output / "shards" / f"0000{index}-of-00003" for index in (1, 2))
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(StoreError, match="a sample is in two of the folders"):
        merge(output)
    assert not (output / SCORES_FILE).exists()


def test_a_shard_that_is_still_written_to_is_not_merged(output):
    with Store(output / "shards" / "00002-of-00003"), pytest.raises(StoreError, match="another process is scoring"):
        merge(output)


def test_empty_shards_say_so_and_are_merged_over(tmp_path, source):
    options = {"limit": 5, "num_masks": 2, "progress": False}
    used = {shard_of(f"q{row}", 40) for row in range(4)}
    for index in used:
        score(source, "demo", tmp_path, shard=f"{index}/40", **options)
    for index in {*range(1, 41)} - used:
        with pytest.raises(NothingToScoreError, match=f"falls into shard {index}/40: `hardsample merge` leaves it out"):
            score(source, "demo", tmp_path, shard=f"{index}/40", **options)
    merged = merge(tmp_path, progress=False)
    assert list(merged.table["id"]) == ["q0", "q1", "q2", "q3"]
    assert json.loads((tmp_path / REJECTED_FILE).read_text())["number"] == 4
    assert not any((tmp_path / "shards").glob("*/*.new"))


def test_a_record_stays_in_its_shard_and_every_record_is_in_one():
    names = [f"q{row}" for row in range(3000)]
    shards = [shard_of(name, 7) for name in names]
    assert set(shards) == set(range(1, 8))
    assert min(np.bincount(shards)[1:]) > 350, "3,000 / 7 = 429 each, about"
    assert sum(Shard(7, 3).holds(name) for name in names) == shards.count(3)
    assert [shard_of(name, 16) for name in ("a", "q17", "0")] == [16, 1, 6], "also in the next version"
    assert digest_of(names) == digest_of(names[::-1]) != digest_of(names[1:])


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/100000"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match=r"must be I/N with I from 1 to N"):
        ScoringConfig(shard=text)


def test_the_adaptive_search_is_not_sharded():
    with pytest.raises(ConfigError, match="learns from all records at once"):
        ScoringConfig(shard="1/2", search="adaptive")


@pytest.mark.parametrize("seed", range(4))
def test_tables_are_merged_in_order_in_windows(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(tables, "WINDOW", 7)
    owners, count = np.random.default_rng(seed).integers(3, size=50), 3
    numbers = [np.flatnonzero(owners == part) for part in range(count)]
    schema = pa.schema([("number", pa.int64()), ("text", pa.list_(pa.string()))], metadata={"a": "b"})
    for part, own in enumerate(numbers):
        columns = {"number": own, "text": [[str(number)] * int(number % 3) for number in own]}
        pq.write_table(pa.table(columns, schema=schema), tmp_path / f"{part}.parquet", row_group_size=5)
    paths = [tmp_path / f"{part}.parquet" for part in range(count)]
    assert merge_tables(paths, numbers, tmp_path / "all.parquet", schema) == 50
    merged = pq.read_table(tmp_path / "all.parquet")
    assert merged["number"].to_pylist() == list(range(50))
    assert merged["text"].to_pylist() == [[str(number)] * (number % 3) for number in range(50)]
    assert merged.schema.metadata == {b"a": b"b"}


def test_features_are_merged_only_if_there_are_some(tmp_path, source):
    for index in (1, 2):
        score(source, "demo", tmp_path, shard=f"{index}/2", num_masks=2, features=False, progress=False)
    merge(tmp_path, progress=False)
    assert not (tmp_path / FEATURES_FILE).exists()
