"""Features that are read as training goes: no folder, no pass over the pool; draws are among what was read."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Image, List
from tiny_training import SMALL, assert_same, assert_same_state, run_two

from hardsample.demo import load_split, model_path
from hardsample.engines.features import STATISTICS, WIDTH
from hardsample.engines.transformers import load_model, load_processor
from hardsample.errors import ConfigError
from hardsample.grading.grader import correctness_reward
from hardsample.scoring.features.files import read_features
from hardsample.scoring.features.make import add_features
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.selection.states import StateError

ROOT = Path(__file__).parents[2]
KINDS = ("statistics", "prefill")
OPTIONS = {"feature_candidates": 2.0, "exploration": 0.0, "max_steps": 5}


@pytest.fixture(scope="module")
def images():
    return columns_of_questions()


def columns_of_questions():
    """Return forty questions of the demo with their images."""
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    return load_split("demo", 40).select_columns(columns).cast_column("images", List(Image()))


def make(folder, data, trainer=DifficultyAwareGRPOTrainer, **options):
    return trainer(
        model=load_model(str(model_path()), "cpu"),
        reward_funcs=correctness_reward,
        args=DifficultyAwareGRPOConfig(output_dir=str(folder), **(SMALL | OPTIONS | options)),
        train_dataset=data,
        processing_class=load_processor(str(model_path())),
    )


def run(folder, data, *, resume=None, **options):
    """Trains for a few steps; the trainer."""
    trained = make(folder, data, **options)
    trained.train(resume_from_checkpoint=resume)
    return trained


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_among_the_samples_that_were_read(tmp_path, images, kind):
    drawn = []

    class Noting(DifficultyAwareGRPOTrainer):
        def _draw(self, *further):
            rows = super()._draw(*further)
            read = self.difficulty.evidence.prior.read
            drawn.append((rows, int(read.sum())))
            assert read[rows].all()
            return rows

    trained = run(tmp_path, images, trainer=Noting, features=kind)
    prompts = trained.difficulty.shape.prompts
    assert [count for _, count in drawn] == [min(2 * prompts * (step + 1), len(images)) for step in range(5)]
    read = trained.difficulty.evidence.prior.read
    assert trained.difficulty.counters["prefills"] == (read.sum() if kind == "prefill" else 0)
    assert trained.difficulty.policy.policy == "signal"


def test_statistics_are_those_of_the_command(tmp_path, images):
    add_features(tmp_path / "features", load_split("demo", 40), "none", progress=False)
    ids, stored = read_features(tmp_path / "features")
    assert ids == images["id"]
    prior = run(
        tmp_path / "a", images, features="statistics", feature_candidates=20.0, max_steps=1
    ).difficulty.evidence.prior
    assert prior.read.all()
    np.testing.assert_array_equal(prior.features[:, : len(STATISTICS)], stored[:, STATISTICS])
    assert (prior.features[:, len(STATISTICS) :].sum(1) == 1).all()  # the ability


def test_prefills_are_those_of_the_model_before_it_learns(tmp_path, images):
    add_features(tmp_path / "features", load_split("demo", 40), "demo", progress=False)
    _, stored = read_features(tmp_path / "features")
    prior = run(
        tmp_path / "a", images, features="prefill", feature_candidates=20.0, max_steps=1
    ).difficulty.evidence.prior
    np.testing.assert_allclose(prior.features[:, :WIDTH].astype(float), stored.astype(float), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, images, kind):
    options = {"features": kind, "save_strategy": "steps", "save_steps": 2, "refresh_features_every": 3}
    whole = run(tmp_path / "a", images, **options)
    rest = run(tmp_path / "b", images, resume=str(tmp_path / "a/checkpoint-2"), **options)
    assert_same(whole, rest)
    assert_same_state(whole, rest)
    other = options | {"features": KINDS[1 - KINDS.index(kind)]}
    with pytest.raises(StateError, match=r"saved with other features \((statistics|prefill)\) than this run has"):
        run(tmp_path / "c", images, resume=str(tmp_path / "a/checkpoint-2"), **other)


def test_a_second_training_begins_without_features(tmp_path, images):
    trained = run(tmp_path, images, features="statistics", max_steps=2)
    state = trained.difficulty.evidence.prior.read.copy()
    trained.train()
    np.testing.assert_array_equal(trained.difficulty.evidence.prior.read, state)


def test_refill_draws_among_what_was_read(tmp_path, images):
    trained = run(tmp_path, images, features="statistics", dynamic_sampling=True, **OPTIONS)
    met = trained.difficulty.evidence.last_step >= 0
    assert (trained.difficulty.evidence.prior.read | ~met).all()


def test_candidates_below_one_are_refused():
    with pytest.raises(ConfigError, match=r"feature_candidates is 0\.5, must be at least 1"):
        DifficultyAwareGRPOConfig(features="statistics", feature_candidates=0.5)


def test_candidates_without_reading_do_nothing_and_say_so(tmp_path, images, caplog):
    run(tmp_path, images, feature_candidates=4.0, max_steps=1)
    assert "does nothing without features=statistics or prefill" in caplog.text


TWO = """
import json, sys
import torch
sys.path[:0] = [TESTS + "/tools", TESTS + "/trainer"]
from test_inline_features import columns_of_questions, make
from hardsample.trainer.selection.states import split_arrays

torch.set_num_threads(1)
folder, out, resume, kind = sys.argv[1:5]
trainer = make(folder, columns_of_questions(), features=kind, save_strategy="steps", save_steps=2)
trainer.train(resume_from_checkpoint=None if resume == "none" else resume)
arrays, header = split_arrays(trainer.difficulty.state_dict())
digest = {name: str(value.double().sum().item()) for name, value in trainer.model.state_dict().items()}
with open(f"{out}-{trainer.accelerator.process_index}.json", "w") as file:
    state = {name: [str(value) for value in array.reshape(-1).tolist()] for name, array in arrays.items()}
    json.dump([digest, header, state], file)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_share_the_reading_and_resume_exactly(tmp_path, kind):
    (tmp_path / "two.py").write_text(f"TESTS = {str(ROOT / 'tests')!r}\n{TWO}")

    def train(folder, resume):
        return run_two(tmp_path, "two.py", f"{folder}-out", folder, f"{folder}-out", resume, kind)

    whole = train("a", "none")
    assert whole[0] == whole[1]
    assert len(whole[0][2]["prior.read.rows"]) == 40
    assert "nan" not in whole[0][2]["prior.read.features"][:3]
    assert train("b", "a/checkpoint-2") == whole
