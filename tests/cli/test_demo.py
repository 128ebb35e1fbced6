"""`hardsample demo`: what it predicts, and what rollouts then say of it."""

import shutil

from hardsample.cli import demo
from hardsample.demo import generator
from hardsample.scoring.store import Store


def test_the_demo_shows_predicted_against_measured_and_resumes(predicted_folder, tmp_path, monkeypatch, capsys):
    output = shutil.copytree(predicted_folder / "scored", tmp_path / "demo")
    for name in ("predicted", "checked"):
        shutil.copytree(predicted_folder / name, output / name)
    monkeypatch.setitem(generator.SIZES, "pool", 250)
    with Store(output / "checked") as store:
        before = list(store.rollouts())
    demo._predict(output, seed=0)
    said = capsys.readouterr().out
    assert "predicted  100 samples from 150 scored ones; 150 more of the data were scored" in said
    assert "held out   features do better than the base rate: correlation with the success rate 0." in said
    assert "check      100 of the predicted samples, 800 rollouts: mean success rates of 5 groups" in said
    table = [line.split() for line in said.splitlines() if line.startswith(" " * 11)]
    assert [row[0] for row in table] == ["predicted", "measured", "correlation"]
    assert [len(row) for row in table[:2]] == [6, 6]
    with Store(output / "checked") as store:
        assert list(store.rollouts()) == before, "no rollout is made again"
