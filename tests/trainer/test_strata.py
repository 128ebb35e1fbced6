"""Strata that move: agreement with the scores at the start, moves by evidence, and their count."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsample.metrics.strata import Bounds, stratum
from hardsample.scoring.output import SCHEMA
from hardsample.trainer.selection import strata as module
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.states import StateError, join_arrays, split_arrays
from hardsample.trainer.selection.strata import EASY, HARD, MEDIUM, NAMES, UNSCORED, UNSOLVED, Strata, stratify

RATIOS = tuple(step / 10 for step in range(10))


def seeded(*records, **config):
    """Evidence of (stratum, λ*, successes at ratio 0, attempts at ratio 0)."""
    columns = {name: [None] * len(records) for name in SCHEMA.names}
    columns["pism_stratum"], columns["failure_threshold"], successes, attempts = map(list, zip(*records, strict=True))
    columns["successes"], columns["attempts"] = [[count] for count in successes], [[count] for count in attempts]
    evidence = Evidence(len(records), EvidenceConfig(**config))
    evidence.seed(np.arange(len(records)), pa.table(columns, schema=SCHEMA))
    return evidence


@given(st.floats(0.5, 50), st.floats(0.5, 50), st.integers(-1, 10), st.sampled_from([(0.1, 0.4, 0.7), (0.3, 0.2, 0.5)]))
def test_the_rule_as_the_specification_words_it(alpha, beta, level, settings):
    tau, hard_max, easy_min = settings
    mean = alpha / (alpha + beta)
    if mean < tau:
        expected = "unsolved"
    elif mean > 0.9:
        expected = "easy"
    elif level == -1:
        expected = "unscored"
    else:
        threshold = RATIOS[level] if level < len(RATIOS) else None
        expected = stratum(threshold, level == 0, Bounds(hard_max, easy_min))
    config = EvidenceConfig(tau=tau, hard_max=hard_max, easy_min=easy_min)
    code = stratify(np.array([alpha]), np.array([beta]), np.array([level], dtype=np.int8), RATIOS, config)
    assert NAMES[code[0]] == expected and code.dtype == np.int8


def test_before_training_the_strata_are_the_scores():
    records = [("unsolved", 0.0, 0, 10), ("easy", None, 10, 10), (None, None, 4, 10), (None, None, 0, 10)]
    for level in range(1, 10):
        for wins, tries in ((1, 1), (1, 10), (10, 10)):
            records.append((stratum(RATIOS[level], False), RATIOS[level], wins, tries))
    strata = Strata(seeded(*records))
    assert [NAMES[code] for code in strata.codes] == [record[0] or "unscored" for record in records]
    assert strata.counts.sum() == len(records) and not strata.moves.any()


def test_samples_move_with_the_evidence():
    evidence = seeded(
        ("hard", 0.2, 1, 2), ("unsolved", 0.0, 0, 10), ("hard", 0.3, 1, 2), ("medium", 0.5, 1, 2), (None, None, 0, 0)
    )
    strata = Strata(evidence)
    assert strata.codes.tolist() == [HARD, UNSOLVED, HARD, MEDIUM, UNSCORED]
    evidence.observe([0, 1, 3, 4], [[1] * 32, [1] * 4 + [0] * 28, [0] * 32, [1] * 32], 1)
    evidence.levels.observe([2, 2], [3, 4], [8, 8], [8, 8])
    moved = strata.refresh(1, np.array([4, 0, 1, 2, 3, 0]))
    assert strata.codes.tolist() == [EASY, HARD, MEDIUM, UNSOLVED, EASY], "solved, entered, probed up, lost, solved"
    expected = np.zeros((5, 5), dtype=int)
    for before, after in ((HARD, EASY), (UNSOLVED, HARD), (HARD, MEDIUM), (MEDIUM, UNSOLVED), (UNSCORED, EASY)):
        expected[before, after] = 1
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(strata.moves, expected)
    np.testing.assert_array_equal(strata.counts, np.bincount(strata.codes, minlength=5))
    assert not strata.refresh(1).any(), "the whole says the same as the touched"


def test_old_evidence_fades():
    evidence = seeded(("hard", 0.2, 1, 2), half_life_steps=10.0)
    strata = Strata(evidence)
    evidence.observe([0], [[1] * 32], 1)
    strata.refresh(1)
    assert strata.codes[0] == EASY
    strata.refresh(100)
    assert strata.codes[0] == HARD
    assert strata.moves[HARD, EASY] == strata.moves[EASY, HARD] == 1


def test_a_pass_over_all_samples_in_chunks(monkeypatch):
    evidence = Evidence(23)
    whole, parts = Strata(evidence), Strata(evidence)
    evidence.observe(np.arange(0, 23, 2), np.ones((12, 16)), 1)
    whole.refresh(5)
    monkeypatch.setattr(module, "CHUNK", 5)
    parts.refresh(5)
    np.testing.assert_array_equal(Strata(evidence, 5).codes, whole.codes)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.moves, parts.moves)


def test_a_state_is_resumed_or_refused():
    evidence = Evidence(3, fingerprint="data-1")
    strata = Strata(evidence)
    evidence.observe([1], [[1] * 16], 1)
    strata.refresh(1)
    arrays, rest = split_arrays(strata.state_dict())
    state = join_arrays({path: array.copy() for path, array in arrays.items()}, json.loads(json.dumps(rest)))
    resumed = Strata(Evidence(3, fingerprint="data-1"))
    resumed.load_state_dict(state)
    for name in ("codes", "moves", "counts"):
        np.testing.assert_array_equal(getattr(strata, name), getattr(resumed, name))
    with pytest.raises(StateError, match="the saved strata has version 9"):
        resumed.load_state_dict(state | {"version": 9})
