"""CMAB strata while training: the scores' at the start, moved by ρ̄, counted in the draw alone or beside PISM's."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Image, List
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import SMALL, TIMES, assert_same_parts, run_two, saved, text_model_folder
from transformers import LlamaForCausalLM

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.errors import ConfigError
from hardsample.grading.grader import correctness_reward
from hardsample.metrics.cmab import balance_stratum
from hardsample.metrics.options import BalanceBounds
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import SCHEMA
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.difficulty import Difficulty, Shape
from hardsample.trainer.selection.balance_strata import (
    BalanceStrata,
    has_balances,
    stratify_balance,
    unsolved_by_scores,
)
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.policies import PolicyConfig
from hardsample.trainer.selection.states import StateError
from hardsample.trainer.selection.strata import EASY, HARD, MEDIUM, NAMES, UNSCORED, UNSOLVED
from hardsample.trainer.selection.stream import PromptStream
from hardsample.trainer.selection.widening import both, label_weights, widen, widen_both

TOTAL, G = 100, 8
QUANTILES = "quantile:0.1,0.3,0.7,0.9"
BOUNDS = np.array([0.1, 0.4, 1.6, 1.9])
PISM_LEVEL = {EASY: np.nan, MEDIUM: 0.5, HARD: 0.2, UNSOLVED: 0.0}
BALANCE_OF = {EASY: 2.5, MEDIUM: 1.75, HARD: 1.0, UNSCORED: np.nan}


def seeded(*records):
    """Evidence and CMAB strata of scores (cmab stratum, ρ̄, successes at ratio 0, attempts at ratio 0)."""
    columns = {name: [None] * len(records) for name in SCHEMA.names}
    columns["cmab_stratum"], columns["attention_balance"], successes, attempts = map(list, zip(*records, strict=True))
    columns["successes"], columns["attempts"] = [[count] for count in successes], [[count] for count in attempts]
    evidence, rows = Evidence(len(records)), np.arange(len(records))
    table = pa.table(columns, schema=SCHEMA)
    evidence.seed(rows, table, balances=True)
    return evidence, BalanceStrata(evidence, unsolved=unsolved_by_scores(len(records), rows, table))


def make(pism, cmab, *, stratify_by="cmab", prompts=4, seed=0, spec=None, kinds=None, restratify_steps=10, **policy):
    """A training on samples of these strata by PISM and by CMAB."""
    policy = PolicyConfig(**({"policy": "strata", "exploration": 0.0, "stratify_by": stratify_by} | policy))
    pism, cmab = np.asarray(pism), np.asarray(cmab)
    evidence = Evidence(len(pism), EvidenceConfig(half_life_steps=50.0, cmab_bounds=spec), fingerprint="f")
    scored = np.flatnonzero(pism != UNSCORED)
    evidence.levels.seed(scored, np.array([PISM_LEVEL[code] for code in pism[scored]]), np.full(len(scored), True))
    evidence.observe_balance(np.arange(len(cmab)), np.array([BALANCE_OF.get(code, np.nan) for code in cmab.tolist()]))
    stream = PromptStream(len(pism), seed, policy.exploration, kinds, None, "f")
    strata = BalanceStrata(evidence, spec=spec, unsolved=cmab == UNSOLVED) if stratify_by != "pism" else None
    options = DifficultyOptions(attention_balance=True, restratify_steps=restratify_steps)
    return Difficulty(evidence, stream, policy, options, Shape(G, prompts, seed), None, strata)


def weights(difficulty):
    assert len(difficulty.stream.samplers) == 1
    return difficulty.stream.samplers[0].tree.weights


# --- strata


@given(st.floats(0.5, 50), st.floats(0.5, 50), st.one_of(st.none(), st.floats(0, 3)), st.booleans())
def test_the_rule_is_that_of_the_scores_between_the_ends(alpha, beta, balance, unsolved):
    mean = alpha / (alpha + beta)
    if mean < 0.1:
        expected = "unsolved"
    elif mean > 0.9:
        expected = "easy"
    elif balance is None:
        expected = "unsolved" if unsolved else "unscored"
    else:
        expected = balance_stratum(balance, True, BalanceBounds())
    of_one = np.array([alpha]), np.array([beta]), np.array([np.nan if balance is None else balance])
    code = stratify_balance(*of_one, np.array([unsolved]), BOUNDS, 0.1)
    assert NAMES[code[0]] == expected and code.dtype == np.int8


def test_before_training_the_strata_are_the_scores():
    records = [("unsolved", None, 0, 10), ("unsolved", None, 0, 1), ("unfinished", None, 0, 10), (None, None, 4, 10)]
    for balance in (0.05, 0.2, 1.0, 1.75, 2.5):
        for wins, tries in ((1, 1), (1, 10), (10, 10)):
            records.append((balance_stratum(balance, True), balance, wins, tries))
    _, strata = seeded(*records, ("unsolved", None, 0, 0))
    expected = [name if name in NAMES else "unscored" for name, *_ in records]
    assert [NAMES[code] for code in strata.codes] == [*expected, "unscored"], "without a rollout nothing is unsolved"
    assert not strata.moves.any()


def test_balances_of_scores_are_one_observation_and_only_read_where_asked():
    evidence, _ = seeded(("hard", 1.0, 2, 2), ("unsolved", None, 0, 2))
    assert evidence.balance[0] == 1.0 and np.isnan(evidence.balance[1])
    evidence.observe_balance([0, 1], [2.0, 0.5])
    assert evidence.balance.tolist() == [1.25, 0.5]
    table = pa.table({"successes": [[1]], "attempts": [[1]], "failure_threshold": pa.array([None], pa.float64())})
    table = table.append_column("pism_stratum", pa.array(["easy"])).append_column("attention_balance", pa.array([1.0]))
    plain = Evidence(1)
    plain.seed([0], table)
    assert np.isnan(plain.balance[0])


def test_samples_move_with_their_balance_and_leave_unsolved_when_they_succeed():
    evidence, strata = seeded(("hard", 1.0, 2, 4), ("unsolved", None, 0, 10), ("easy", 2.5, 2, 4), (None, None, 0, 0))
    assert strata.codes.tolist() == [HARD, UNSOLVED, EASY, UNSCORED]
    evidence.observe_balance([0, 0, 2], [9.0, 5.0, 0.4])
    strata.refresh(1, np.array([0, 2]))
    assert strata.codes.tolist() == [EASY, UNSOLVED, EASY, UNSCORED], "2.5 and 1.975 are above 1.9"
    evidence.observe([1, 3], [[1] * 4 + [0] * 12] * 2, 1)
    strata.refresh(1, np.array([1, 3]))
    assert strata.codes[[1, 3]].tolist() == [UNSCORED, UNSCORED], "solved now, and ρ̄ is read next"
    evidence.observe_balance([1, 3], [0.5, 0.2])
    strata.refresh(1, np.array([1, 3]))
    assert strata.codes[[1, 3]].tolist() == [HARD, MEDIUM]
    assert strata.moves[UNSOLVED, UNSCORED] == 1 and strata.moves[UNSCORED, HARD] == 1 and strata.moves.sum() == 4


def test_quantiles_are_taken_at_the_first_balance_and_at_each_whole_pass():
    evidence = Evidence(20)
    strata = BalanceStrata(evidence, spec=QUANTILES)
    np.testing.assert_array_equal(strata.bounds, BOUNDS)
    evidence.observe_balance(np.arange(10), np.arange(10.0))
    strata.refresh(0, np.arange(10))
    first = np.quantile(np.arange(10.0), [0.1, 0.3, 0.7, 0.9])
    np.testing.assert_array_equal(strata.bounds, first)
    assert strata.counts.tolist() == [2, 4, 4, 0, 10]
    evidence.observe_balance(np.arange(10, 20), np.arange(100.0, 110.0))
    strata.refresh(0, np.arange(10, 20))
    np.testing.assert_array_equal(strata.bounds, first, err_msg="a pass over some samples keeps them")
    assert (strata.codes[10:] == EASY).all()
    strata.refresh(0)
    np.testing.assert_array_equal(strata.bounds, np.quantile(evidence.balance.astype(float), [0.1, 0.3, 0.7, 0.9]))
    assert strata.counts.tolist() == [4, 8, 8, 0, 0]
    resumed = BalanceStrata(evidence, spec=QUANTILES)
    resumed.bounds[:] = 0
    resumed.load_state_dict(saved(strata))
    np.testing.assert_array_equal(resumed.bounds, strata.bounds)
    with pytest.raises(StateError, match=r"has cmab_bounds 'quantile.*, must be None"):
        BalanceStrata(evidence).load_state_dict(saved(strata))


# --- weights


def test_by_both_a_sample_weighs_the_mean_or_what_is_known():
    table = np.array([0.0, 1.0, 3.0, 0.5, 7.0])
    pism = np.array([EASY, HARD, HARD, UNSCORED, UNSCORED, MEDIUM])
    cmab = np.array([HARD, HARD, UNSCORED, MEDIUM, UNSCORED, UNSOLVED])
    assert both(table, table, pism, cmab).tolist() == [1.5, 3.0, 3.0, 1.0, 7.0, 0.75]


def test_each_metric_alone_weighs_by_its_own_stratum():
    cells = np.zeros((5, 5), dtype=int)
    cells[HARD, EASY], cells[EASY, HARD] = 10, 20
    labels = np.array([HARD, EASY]), np.array([EASY, HARD])
    of = {
        by: label_weights((0.0, 1.0, 1.0, 0.0, 1.0), by, *labels, cells.sum(axis=1), cells, 4)[0].tolist()
        for by in ("pism", "cmab", "both")
    }
    assert of == {"pism": [1, 0], "cmab": [0, 1], "both": [0.5, 0.5]}
    assert label_weights((0.0, 1.0, 1.0, 0.0, 1.0), "cmab", *labels, cells.sum(axis=1), cells, 25)[2].startswith(
        "medium"
    )


CELLS = st.lists(st.integers(0, 20), min_size=25, max_size=25).map(lambda counts: np.array(counts).reshape(5, 5))


@given(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 3.0])] * 5), CELLS, st.integers(1, 80))
def test_widening_of_both_fills_a_batch_that_the_data_can_fill(weights, cells, batch):
    pism, cmab, note = widen_both(weights, cells, batch)
    wanted = np.array(weights) > 0
    np.testing.assert_array_equal(pism[wanted], np.array(weights)[wanted])
    np.testing.assert_array_equal(cmab[wanted], np.array(weights)[wanted])
    table = np.array(weights)
    before = cells[both(table, table, *np.indices((5, 5))) > 0].sum()
    after = cells[both(pism, cmab, *np.indices((5, 5))) > 0].sum()
    assert after >= min(batch, cells.sum())
    if before >= batch:
        assert note is None and pism.tolist() == cmab.tolist() == list(weights)


def test_where_only_one_metric_knows_anything_it_is_widened_as_alone():
    counts = (3, 1, 0, 9, 0)
    for cells, place in ((np.zeros((5, 5), dtype=int), 0), (np.zeros((5, 5), dtype=int), 1)):
        view = cells if place == 0 else cells.T
        view[:, UNSCORED] = counts
        tables = widen_both((0.0, 1.0, 1.0, 0.0, 1.0), cells, 3)
        np.testing.assert_array_equal(tables[place], widen((0.0, 1.0, 1.0, 0.0, 1.0), counts, 3)[0])
        assert f"{('PISM', 'CMAB')[place]}: medium+hard+unscored has weight and holds 1 samples" in tables[2]


# --- draws


@pytest.mark.parametrize("stratify_by", ["cmab", "both"])
@pytest.mark.parametrize("policy", ["strata", "curriculum"])
def test_a_balance_that_moves_changes_the_next_draw(stratify_by, policy):
    difficulty = make([UNSCORED] * 12, [HARD] * 6 + [EASY] * 6, stratify_by=stratify_by, policy=policy)
    first = difficulty.next_prompts(99, TOTAL)
    before = weights(difficulty).copy()
    assert (before[:6] > before[6:]).all()
    if policy == "strata":
        assert set(first.rows) <= set(range(6))
    difficulty.observe_balance(np.array([0, 7]), np.array([30.0, -3.5]), 99)  # ρ̄ 8.25 and 1.0
    second = difficulty.next_prompts(99, TOTAL)
    after = weights(difficulty)
    assert np.flatnonzero(after != before).tolist() == [0, 7]
    assert after[0] == before[6] and after[7] == before[0]
    if policy == "strata":
        drawn = {int(row) for step in range(30) for row in difficulty.next_prompts(99, TOTAL).rows} | {*second.rows}
        assert drawn == {1, 2, 3, 4, 5, 7}


def test_by_both_each_metric_has_half_the_say():
    difficulty = make(
        [HARD, HARD, EASY, EASY, UNSCORED, HARD] * 2, [HARD, EASY, HARD, EASY, HARD, UNSCORED] * 2, stratify_by="both"
    )
    difficulty.next_prompts(0, TOTAL)
    assert weights(difficulty).tolist() == [1.0, 0.5, 0.5, 0.0, 1.0, 1.0] * 2
    cells = difficulty._context(0, TOTAL).cells
    assert cells[HARD, EASY] == 2 and cells.sum() == 12 and cells[UNSCORED, HARD] == 2


def test_logs_counts_and_moves_are_kept_apart():
    difficulty = make([HARD] * 4 + [MEDIUM] * 4, [EASY] * 4 + [HARD] * 4, restratify_steps=1)
    rows = difficulty.next_prompts(0, TOTAL).rows
    assert sorted(rows) == [4, 5, 6, 7]
    metrics = difficulty.metrics(difficulty.observe(np.tile([1.0, 0.0], (4, G // 2)), 0), 0)
    assert metrics["draws/medium"] == 1 and metrics["data/hard"] == 0.5
    assert metrics["draws_cmab/hard"] == 1 and metrics["data_cmab/easy"] == 0.5
    difficulty.observe_balance(np.array([0]), np.array([-3.5]), 1)
    event = difficulty.restratify(1, TOTAL)
    assert event.moves == {} and event.cmab_moves == {"easy->hard": 1}
    assert event.cmab_counts == {"easy": 3, "medium": 0, "hard": 5, "unsolved": 0, "unscored": 0}
    assert difficulty.restratify(2, TOTAL).cmab_moves == {}, "moves are told once"
    assert "by CMAB now     3 easy, 0 medium, 5 hard" in difficulty.summary()


def test_scores_without_any_balance_are_told_from_those_with_some():
    assert has_balances(pa.table({"attention_balance": pa.array([None, 1.5])}))
    assert not has_balances(pa.table({"attention_balance": pa.array([None, None], pa.float64())}))
    assert not has_balances(pa.table({"id": ["a"]}))


def test_by_pism_nothing_is_known_of_cmab():
    difficulty = make([HARD] * 8, [EASY] * 8, stratify_by="pism")
    difficulty.next_prompts(0, TOTAL)
    metrics = difficulty.metrics(difficulty.observe(np.ones((4, G)), 0), 0)
    state = difficulty.state_dict()
    assert not [name for name in (*metrics, *state) if "cmab" in name or name == "stratify_by"]
    assert "CMAB" not in difficulty.summary()


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["cmab", "both"]),
    st.sampled_from(["strata", "curriculum"]),
    st.sampled_from([None, QUANTILES]),
    st.lists(st.sampled_from(["step", "generation", "balance", "save"]), min_size=4, max_size=30),
    st.booleans(),
    st.integers(0, 50),
)
def test_a_copy_restored_at_any_point_is_the_same_training(stratify_by, policy, spec, acts, mixed, seed):
    rng = np.random.default_rng(seed)
    strata = rng.integers(0, 5, 13), rng.integers(0, 5, 13)
    given = {"stratify_by": stratify_by, "policy": policy, "spec": spec, "seed": seed, "exploration": 0.1}
    given |= {"kinds": np.arange(13) % 3 > 0 if mixed else None, "restratify_steps": 2}
    whole, copy, step = make(*strata, **given), make(*strata, **given), 0
    for number, what in enumerate(acts):
        if what == "save":
            state = saved(whole)
            copy = make(*strata, **given)
            copy.load_state_dict(state)
        elif what == "step":
            step += 1
        else:
            assert _act(whole, what, step, number) == _act(copy, what, step, number)
        assert_same_parts(whole, copy)
    cells = np.zeros((5, 5), dtype=int)
    np.add.at(cells, (whole.strata.codes, whole.cmab.codes), 1)
    np.testing.assert_array_equal(whole.labels.cells(), cells)


def _act(difficulty, what, step, number):
    rng = np.random.default_rng(number)
    if what == "balance":
        rows = rng.integers(13, size=4)
        return difficulty.observe_balance(rows, rng.choice([np.nan, 0.3, 1.8, 4.0], 4), step)
    event = difficulty.restratify(step, TOTAL)
    rows = difficulty.next_prompts(step, TOTAL).rows
    rewards = (rng.random((len(rows), G)) < rng.random((len(rows), 1))).astype(float)
    return event, rows.tolist(), difficulty.note, difficulty.metrics(difficulty.observe(rewards, step), step)


def test_states_of_another_metric_are_refused():
    strata = [HARD] * 8, [EASY] * 8
    for first, second in (("pism", "cmab"), ("both", "pism"), ("cmab", "both")):
        with pytest.raises(StateError, match=f"saved with stratify_by '{first}', this run has '{second}'"):
            make(*strata, stratify_by=second).load_state_dict(saved(make(*strata, stratify_by=first)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stratify_by": "attention"}, "stratify_by is 'attention', must be one of pism, cmab, both"),
        ({"cmab_bounds": "0.1,0.4"}, "cmab_bounds: .*'0.1,0.4', must be four ascending numbers"),
        ({"cmab_bounds": "quantile:0.1,0.4,0.3,1"}, "cmab_bounds: .* must be four ascending numbers"),
        ({"cmab_bounds": "quantile:0.1,0.4,0.9,2"}, "cmab_bounds: .* shares of the samples from 0 to 1"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        DifficultyAwareGRPOConfig(output_dir=str(tmp_path), **SMALL | options)


# --- in training


@pytest.fixture(scope="module")
def images():
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    return load_split("demo", 40).select_columns(columns).cast_column("images", List(Image()))


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores of the forty questions by both metrics."""
    folder = tmp_path_factory.mktemp("scores") / "run"
    config = ScoringConfig(num_masks=4, batch_size=64, metric=("pism", "cmab"))
    score(load_split("demo", 40), "demo", folder, config)
    return str(folder)


def run(folder, data, *, resume=None, model=None, **options):
    trainer = DifficultyAwareGRPOTrainer(
        model=model or load_model(str(model_path()), "cpu"),
        reward_funcs=correctness_reward,
        args=DifficultyAwareGRPOConfig(output_dir=str(folder), **(SMALL | {"policy": "strata"} | options)),
        train_dataset=data,
        processing_class=load_processor(str(model_path())),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


MID_BUFFER = {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
RESUMES = {
    "cmab, scored": {"stratify_by": "cmab", "restratify_steps": 2, "num_generations": 8},
    "cmab, learnt from training alone": {"stratify_by": "cmab", "scores": None, "cmab_bounds": QUANTILES},
    "both, amid a generation": {"stratify_by": "both", **MID_BUFFER},
    "both, curriculum": {
        "stratify_by": "both",
        "policy": "curriculum",
        "restratify_steps": 2,
        "cmab_bounds": QUANTILES,
    },
}


@pytest.mark.parametrize("options", RESUMES.values(), ids=RESUMES)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, images, scores, options):
    options = {"scores": scores, "save_strategy": "steps", "save_steps": 3, "max_steps": 6, **options}
    options = {"per_device_train_batch_size": 16, **options}
    whole = run(tmp_path / "a", images, **options)
    rest = run(tmp_path / "b", images, resume=str(tmp_path / "a/checkpoint-3"), **options)
    logs = [
        [
            {name: value for name, value in entry.items() if not any(time in name for time in TIMES)}
            for entry in trainer.state.log_history
        ]
        for trainer in (whole, rest)
    ]
    assert logs[0] == logs[1] and any("difficulty/draws_cmab/hard" in entry for entry in logs[0])
    assert_same_parts(whole.difficulty, rest.difficulty)
    first, second = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert np.isfinite(whole.difficulty.evidence.balance).sum() > 0
    assert "by CMAB now" in whole.summary()


def test_strata_of_the_scores_and_what_training_reads_move_the_draw(tmp_path, images, scores):
    trainer = DifficultyAwareGRPOTrainer(
        model=load_model(str(model_path()), "cpu"),
        reward_funcs=correctness_reward,
        args=DifficultyAwareGRPOConfig(
            output_dir=str(tmp_path),
            **(SMALL | {"policy": "strata", "stratify_by": "cmab", "scores": scores, "max_steps": 4}),
            cmab_bounds=QUANTILES,
        ),
        train_dataset=images,
        processing_class=load_processor(str(model_path())),
    )
    difficulty, seen = trainer.difficulty, []
    scored = ~np.isnan(difficulty.evidence.balance)
    assert scored.sum() > 10 and (difficulty.cmab.counts[:4] > 0).sum() >= 3
    choose = difficulty.next_prompts

    def spy(step, total):
        batch = choose(step, total)
        expected = np.array([0.0, 1.0, 1.0, 0.0, 1.0])[difficulty.cmab.codes]
        np.testing.assert_array_equal(weights(difficulty), expected)
        seen.append(difficulty.evidence.balance.copy())
        return batch

    difficulty.next_prompts = spy
    trainer.train()
    assert len(seen) == 4
    assert any(not np.array_equal(seen[0], later, equal_nan=True) for later in seen[1:]), "ρ̄ was read before a draw"


def test_without_attention_balance_the_error_says_why(tmp_path):
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": f"what {i}"}]} for i in range(8)])
    message = "stratify_by is 'both', but attention_balance cannot be read from this model.*Set stratify_by=pism"
    with pytest.raises(ConfigError, match=message):
        DifficultyAwareGRPOTrainer(
            model=LlamaForCausalLM.from_pretrained(text_model_folder().name),
            reward_funcs=correctness_reward,
            args=DifficultyAwareGRPOConfig(output_dir=str(tmp_path), **SMALL, stratify_by="both"),
            train_dataset=data,
            processing_class=load_processor(str(model_path())).tokenizer,
        )


TWO = """
import json, sys
import torch
from datasets import Image, List
from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.grading.grader import correctness_reward
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.selection.states import split_arrays

torch.set_num_threads(1)
folder, out, resume, scores = sys.argv[1:5]
columns = ["id", "prompt", "images", "solution", "ability", "grader"]
args = DifficultyAwareGRPOConfig(
    output_dir=folder, use_cpu=True, bf16=False, seed=3, learning_rate=1e-3, per_device_train_batch_size=12,
    num_generations=4, max_completion_length=4, gradient_checkpointing=False, save_strategy="steps", save_steps=3,
    logging_steps=1, report_to="none", disable_tqdm=True, max_steps=6, policy="strata", stratify_by="both",
    scores=scores, restratify_steps=2, steps_per_generation=2, cmab_bounds="quantile:0.1,0.3,0.7,0.9",
)
trainer = DifficultyAwareGRPOTrainer(
    model=load_model(str(model_path()), "cpu"), args=args, reward_funcs=correctness_reward,
    train_dataset=load_split("demo", 40).select_columns(columns).cast_column("images", List(Image())),
    processing_class=load_processor(str(model_path())),
)
before = trainer.difficulty.evidence.balance.tolist()
trainer.train(resume_from_checkpoint=None if resume == "none" else resume)
arrays, header = split_arrays(trainer.difficulty.state_dict())
digest = {name: str(value.double().sum().item()) for name, value in trainer.model.state_dict().items()}
with open(f"{out}-{trainer.accelerator.process_index}.json", "w") as file:
    state = {name: [str(value) for value in array.reshape(-1).tolist()] for name, array in arrays.items()}
    json.dump([digest, header, state, [str(value) for value in before]], file)
"""


def test_two_processes_hold_the_same_strata_and_resume_exactly(tmp_path, scores):
    (tmp_path / "two.py").write_text(TWO)

    def train(folder, resume):
        return run_two(tmp_path, "two.py", f"{folder}-out", folder, f"{folder}-out", resume, scores)

    whole = train("a", "none")
    assert whole[0] == whole[1]
    assert whole[0][2]["evidence.balance"] != whole[0][3], "ρ̄ was read in training"
    assert train("b", "a/checkpoint-3") == whole
