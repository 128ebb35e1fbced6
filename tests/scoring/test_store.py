"""The store: settings and samples are remembered, batches are whole, one process at a time."""

import sqlite3
import subprocess
import sys

import pytest

from hardsample.files import ROLLOUTS_FILE
from hardsample.scoring.store import Attention, Rollout, Store, StoreError

SETTINGS = {"seed": 0, "ratios": [0.0, 0.1], "model": "abc"}


def rollout(sample: str, ratio: float, realization: int, grade: int = 1) -> Rollout:
    return Rollout(sample, ratio, realization, "47", grade, [4, 7])


def test_rollouts_come_back_as_they_went_in(tmp_path):
    odd = Rollout("ü 'x'; --", 0.30000000000000004, 2, "line\nbreak\0", 0, [])
    with Store(tmp_path) as store:
        store.commit([rollout("b", 0.1, 1), rollout("a", 0.0, 0), odd])
    with Store(tmp_path) as store:
        assert list(store.rollouts()) == [rollout("a", 0.0, 0), rollout("b", 0.1, 1), odd]
        assert store.grades("b") == [(0.1, 1, 1)]
        assert list(store.rollouts("a")) == [rollout("a", 0.0, 0)]
        assert store.count() == 3


def test_a_batch_is_all_or_nothing(tmp_path):
    with Store(tmp_path) as store:
        store.commit([rollout("a", 0.0, 0)])
        with pytest.raises(sqlite3.IntegrityError):
            store.commit([rollout("a", 0.0, 1), rollout("a", 0.0, 0)])
        assert store.count() == 1
        store.commit([rollout("a", 0.0, 1)])
        assert store.count() == 2


def test_the_table_is_what_the_documentation_says(tmp_path):
    with Store(tmp_path) as store:
        store.commit([rollout("a", 0.5, 3)])
    with sqlite3.connect(tmp_path / ROLLOUTS_FILE) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        row = database.execute("SELECT sample, ratio, realization, completion, grade, tokens FROM rollouts").fetchone()
    assert row == ("a", 0.5, 3, "47", 1, "[4, 7]")


def test_other_settings_are_refused_with_what_differs(tmp_path):
    with Store(tmp_path) as store:
        store.agree(SETTINGS)
        store.agree(SETTINGS)
        with pytest.raises(StoreError, match=r"seed: 0 there, 1 now") as caught:
            store.agree(SETTINGS | {"seed": 1})
        assert "model" not in str(caught.value)
        with pytest.raises(StoreError, match="mask: None there, 'patch' now"):
            store.agree(SETTINGS | {"mask": "patch"})


def test_an_upgrade_goes_one_way(tmp_path):
    upgrades = {"search": ("lossless", "exhaustive")}
    with Store(tmp_path) as store:
        store.agree({"search": "lossless"}, upgrades)
        store.agree({"search": "exhaustive"}, upgrades)
        with pytest.raises(StoreError, match="search: 'exhaustive' there, 'lossless' now"):
            store.agree({"search": "lossless"}, upgrades)


def test_changed_and_missing_samples_are_refused(tmp_path):
    with Store(tmp_path) as store:
        store.agree_on_samples([("a", "1"), ("b", "2")])
        store.agree_on_samples([("a", "1"), ("b", "2"), ("c", "3")])
        with pytest.raises(StoreError, match="sample 'b' has changed"):
            store.agree_on_samples([("a", "1"), ("b", "9"), ("c", "3")])
        with pytest.raises(StoreError, match=r"1 samples that this run does not have \(the first: 'c'\)"):
            store.agree_on_samples([("a", "1"), ("b", "2")])


def test_two_processes_do_not_share_a_folder(tmp_path):
    code = f"from hardsample.scoring.store import Store\nStore({str(tmp_path)!r})"
    with Store(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another process is scoring into" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / ROLLOUTS_FILE).write_text("no database, and long enough to be read as a header of one " * 20)
    with pytest.raises(StoreError, match="is not a store of hardsample"):
        Store(tmp_path)


def test_attention_balances_come_back_by_definition_and_sample(tmp_path):
    rows = [
        Attention("a", 0.0, 0, 0.5, [None, -0.7, -0.6, None], 2),
        Attention("a", 0.0, 1, None, [], 0, "no text before the image"),
    ]
    with Store(tmp_path) as store:
        store.commit([rollout("a", 0.0, 0), rollout("a", 0.0, 1)])
        store.commit_attention("paper", [*rows, Attention("b", 0.0, 0, 1.5, [])])
        store.commit_attention("released", [Attention("a", 0.0, 0, 0.25, [])])
    with Store(tmp_path) as store:
        assert store.attention("paper", "a") == rows
        assert [row.balance for row in store.attention("released", "a")] == [0.25]
        with pytest.raises(sqlite3.IntegrityError):
            store.commit_attention("paper", [Attention("c", 0.0, 0, 1.0, []), rows[0]])
        assert store.attention("paper", "c") == []
