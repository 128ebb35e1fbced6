"""Training environments: a model, a pool of questions, a held-out test, and what the model does on the pool before
training (`bench/base_rates.py`), which only the oracle sees."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_rates import measure, roll_out
from datasets import Dataset, Image, List

from hardsample.data.loading import load
from hardsample.demo import model_path
from hardsample.engines.transformers import load_processor
from hardsample.files import SCORES_FILE
from hardsample.grading.grader import Grader
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features.make import add_features
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.scoring.store import StoreError

ROOT = Path(__file__).parents[2] / "runs" / "arena"
BASE_RATES = Path(__file__).parents[1] / "results" / "arena"
"""Where the grades before training are kept: they are small, and fixed by the pool and the model."""


@dataclass(frozen=True)
class Environment:
    """One line of the table of environments."""

    pool: str
    test: str
    model: str
    test_size: int = 400
    test_rollouts: int = 6
    limit: int | None = None
    """Questions of the pool, the first ones; None: all."""


SECOND = ROOT.parent / "second"
"""Questions of the second generator, written when they are missing."""
ENVIRONMENTS = {
    "pool": Environment("demo:pool", "demo:test", str(model_path())),
    "wide": Environment("demo:wide", "demo:test", str(model_path())),
    "second": Environment(
        str(SECOND / "pool.parquet"), str(SECOND / "test.parquet"), str(BASE_RATES / "second-model"), limit=5_000
    ),
}


def written(path: str) -> str:
    """Return a path of questions, after writing those of the second generator if they are missing."""
    if Path(path).parent == SECOND and not Path(path).exists():
        import second_generator

        second_generator.main(["write", str(SECOND)])
    return path


def whole(name: str) -> Dataset:
    """Return the pool of an environment with all columns."""
    return load(written(ENVIRONMENTS[name].pool), limit=ENVIRONMENTS[name].limit).dataset


@lru_cache(maxsize=2)
def questions(name: str) -> Dataset:
    """Return the pool of an environment, as the trainer takes it."""
    data = whole(name)
    kept = [column for column in ("id", "prompt", "images", "solution", "ability", "grader") if column in data.features]
    return data.select_columns(kept).cast_column("images", List(Image()))


def truth(name: str) -> tuple[np.ndarray, list[str]]:
    """Return the grades of 8 rollouts of each question of the pool at T = 1 before training, (questions, 8), and its
    ability."""
    entry = ENVIRONMENTS[name]
    path = BASE_RATES / f"base-{name}.npz"
    known = measure(whole(name) if not path.exists() else None, entry.model, path)
    return known["grades"], known["ability"].tolist()


def base_rates(name: str) -> np.ndarray:
    """Return the grades alone."""
    return truth(name)[0]


def features(name: str, kind: str = "prefill") -> str:
    """Return the folder of the features of an environment's pool, made if it is not there.

    Args:
        name: of the environment.
        kind: `prefill`, or `statistics` of text and image alone.
    """
    folder = ROOT / f"features-{name}{'' if kind == 'prefill' else '-' + kind}"
    model = ENVIRONMENTS[name].model if kind == "prefill" else "none"
    _made(folder / "features.parquet", lambda: add_features(folder, whole(name), model, progress=False))
    return str(folder)


def scores(name: str) -> tuple[str, int]:
    """Return the folder of the PISM and CMAB scores of an environment's pool, made if it is not there, and the rollouts
    that they took."""
    folder = ROOT / f"scores-{name}"
    config = ScoringConfig(metric="pism,cmab", batch_size=256)
    _made(folder / SCORES_FILE, lambda: score(whole(name), ENVIRONMENTS[name].model, folder, config, progress=False))
    return str(folder), sum(Scores(folder).table["rollouts"])


def _made(file: Path, make: Callable[[], object]) -> None:
    """Make a file if it is not there; wait where another process of the arena is at it."""
    while not file.exists():
        try:
            make()
        except StoreError:
            time.sleep(5)


class HeldOut:
    """The accuracy at T = 0.7 on the test questions: one prefill a question, several rollouts of it."""

    def __init__(self, name: str, processor: Any) -> None:
        entry = ENVIRONMENTS[name]
        data = load(written(entry.test), limit=entry.test_size).dataset.cast_column("images", List(Image()))
        self.records, self.processor, self.rollouts = list(data), processor, entry.test_rollouts

        self.untrained: float | None = None
        """The accuracy before training, once it was measured."""

    def accuracy(self, model: Any) -> float:
        """Return the share of right answers; leaves the model and PyTorch's random state as they were."""
        training, state, right = model.training, torch.get_rng_state(), []
        model.eval()
        with Grader() as grader:
            for begin in range(0, len(self.records), 50):
                records = self.records[begin : begin + 50]
                texts = roll_out(model, self.processor, records, self.rollouts, begin, temperature=0.7)
                pairs = [(text, records[index // self.rollouts]) for index, text in enumerate(texts)]
                right += [int(grade) for grade in grader.grade_many(pairs)]
        model.train(training)
        torch.set_rng_state(state)
        return float(np.mean(right))


@lru_cache(maxsize=2)
def held_out(name: str) -> HeldOut:
    """Return the test of an environment, read once."""
    return HeldOut(name, load_processor(ENVIRONMENTS[name].model))
