"""Generations in rounds: the optimiser gets groups with variance, in the tensors that TRL makes of them."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Image, List
from tiny_training import SMALL, assert_same, assert_same_state, run_two, text_model_folder
from transformers import LlamaForCausalLM

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.errors import ConfigError
from hardsample.grading.grader import correctness_reward
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.config import DifficultyOptions, idle_options, part_of
from hardsample.trainer.rollouts import refill
from hardsample.trainer.selection.evidence import EvidenceConfig
from hardsample.trainer.selection.figures import LOGGED, count_groups, new_counters, say_rollouts
from hardsample.trainer.selection.policies import PolicyConfig
from hardsample.trainer.selection.sampler import prompt_order

ROOT = Path(__file__).parents[2]
DYNAMIC = {"dynamic_sampling": True}
SCREEN = {"screen_generations": 2}
BOTH = DYNAMIC | SCREEN
WAYS = {"dynamic": DYNAMIC, "screening": SCREEN, "both": BOTH}


@pytest.fixture(scope="module")
def images():
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    return load_split("demo", 40).select_columns(columns).cast_column("images", List(Image()))


@pytest.fixture(scope="module")
def texts():
    words = ["red", "blue", "green", "seven"]
    return Dataset.from_list(
        [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what {words[i % 4]} {i}"}]} for i in range(24)]
    )


def by_length(completions, **_):
    return [float(len(str(completion)) % 3) for completion in completions]


def alternating(completions, **_):
    """A reward by which every group spreads."""
    return [float(place % 2) for place in range(len(completions))]


def by_id(completions, id, **_):
    """A reward by which the groups of every third sample spread, and no others."""
    return [float(int(own[1:]) % 3 == 0 and place % 2) for place, own in enumerate(id)]


def constant(completions, **_):
    return [0.0] * len(completions)


def run(folder, data, *, rewards=by_length, resume=None, then=None, **options):
    """Trains for a few steps; the trainer."""
    has_images = "images" in data.column_names
    processor = load_processor(str(model_path()))
    others = {name: options.pop(name) for name in ("peft_config", "rollout_func") if name in options}
    trainer = DifficultyAwareGRPOTrainer(
        model=load_model(str(model_path()), "cpu")
        if has_images
        else LlamaForCausalLM.from_pretrained(text_model_folder().name),
        reward_funcs=rewards,
        args=DifficultyAwareGRPOConfig(output_dir=str(folder), **(SMALL | {"max_steps": 3} | options)),
        train_dataset=data,
        processing_class=processor if has_images else processor.tokenizer,
        **others,
    )
    if then is not None:
        then(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def generations_of(trainer, seen):
    """Makes a trainer keep each generation's tensors and rows."""
    generate = trainer._generate_and_score_completions

    def spy(inputs):
        output = generate(inputs)
        seen.append((trainer._rows.tolist(), output))
        return output

    trainer._generate_and_score_completions = spy


def rolled_out(seen):
    """A reward that keeps the ids it was asked about, call for call."""

    def reward(completions, id, **_):
        seen.append(list(id))
        return by_id(completions, id)

    return reward


# --- what TRL makes of what is kept

SAME = {
    "text": {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "beta": 0.04},
    "text batch": {"scale_rewards": "batch", "loss_type": "grpo", "log_completions": True},
    "text, two rewards": {"rewards": [alternating, by_length], "multi_objective_aggregation": "normalize_then_sum"},
    "images": {"policy": "signal", "mask_truncated_completions": True},
    "images uniform": {"beta": 0.04, "steps_per_generation": 2},
}


@pytest.mark.parametrize("options", SAME.values(), ids=SAME)
def test_where_every_group_spreads_nothing_changes(tmp_path, texts, images, options, request):
    data = images if "images" in request.node.callspec.id else texts
    options = {"rewards": alternating, "max_steps": 4, **options}
    off = run(tmp_path / "a", data, **options)
    on = run(tmp_path / "b", data, **DYNAMIC, **options)
    assert_same(on, off, ours=False)
    assert on.difficulty.counters == off.difficulty.counters
    assert on.difficulty.counters["generated_tokens"] > on.difficulty.counters["rollouts"]
    assert on.difficulty.counters["discarded_rollouts"] == on.difficulty.counters["resample_rounds"] == 0


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("scale", ["group", "none"])
def test_tensors_are_those_of_the_groups_that_were_kept(tmp_path, images, options, scale):
    seen = []

    def reward(completion_ids, **_):
        return [float(sum(ids) % 2) for ids in completion_ids]

    def then(trainer):
        generations_of(trainer, seen)

    trainer = run(tmp_path, images, rewards=reward, then=then, scale_rewards=scale, **options)
    columns = {row: images[row] for rows, _ in seen for row in rows}
    tokenizer = trainer.processing_class.tokenizer
    for rows, output in seen:
        for place, row in enumerate(prompt_order(np.array(rows), 4)):
            prompt = tokenizer.decode(output["prompt_ids"][place][output["prompt_mask"][place].bool()])
            assert columns[row]["prompt"][0]["content"][-1]["text"] in prompt
        completions = zip(output["completion_ids"], output["completion_mask"], strict=True)
        rewards = torch.tensor([float(ids[mask.bool()].sum() % 2) for ids, mask in completions]).view(-1, 4)
        centred = rewards - rewards.mean(1, keepdim=True)
        expected = centred if scale == "none" else centred / (rewards.std(1, keepdim=True) + 1e-4)
        assert torch.allclose(output["advantages"].view(-1, 4), expected, atol=1e-6)
        pixels = trainer.processing_class.image_processor(
            [columns[row]["images"][0] for row in rows], return_tensors="pt"
        )
        assert torch.equal(output["pixel_values"][::4], pixels["pixel_values"])
        assert output["num_images"] == [1] * 8


@pytest.mark.parametrize("policy", ["uniform", "signal"])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_only_groups_with_variance_are_trained_on_and_all_rollouts_are_evidence(tmp_path, texts, options, policy):
    seen, calls = [], []
    trainer = run(
        tmp_path,
        texts,
        rewards=rolled_out(calls),
        policy=policy,
        max_resample_rounds=8,
        then=lambda trainer: generations_of(trainer, seen),
        max_steps=1,
        **options,
    )
    counters, evidence = trainer.difficulty.counters, trainer.difficulty.evidence
    made = Counter(own for call in calls for own in call)
    assert counters["rollouts"] == made.total() and counters["discarded_rollouts"] == made.total() - 8
    assert {f"t{row}": int(evidence.successes[row] + evidence.failures[row]) for row in range(24)} == {
        f"t{row}": made[f"t{row}"] for row in range(24)
    }
    assert counters["groups"] == len(made)
    assert counters["zero_std_groups"] == sum(int(own[1:]) % 3 > 0 for own in made)
    ((rows, _),) = seen
    assert all(made[f"t{row}"] == 4 for row in rows) and trainer.difficulty.last.rows.tolist() == rows
    assert counters["trained_groups"] == 2
    if options is not SCREEN:
        assert all(row % 3 == 0 for row in rows) and counters["trained_zero_std_groups"] == 0
    if "screen_generations" in options:
        assert counters["screening_rollouts"] == 2 * len(made)
        assert set(made.values()) <= {2, 4}
        assert len(calls[0]) == 8, "twice as many candidates as prompts, half of the completions"
    (entry,) = (entry for entry in trainer.state.log_history if "difficulty/rounds" in entry)
    assert entry["difficulty/frac_zero_std"] == counters["zero_std_groups"] / counters["groups"]
    assert entry["difficulty/frac_zero_std_trained"] == counters["trained_zero_std_groups"] / 2
    assert entry["difficulty/rounds"] == 1 + counters["resample_rounds"]
    assert entry["difficulty/discarded"] == counters["discarded_rollouts"]
    assert entry["difficulty/rollouts"] == made.total()
    assert {name: entry[f"difficulty/{name}"] for name in LOGGED} == {name: counters[name] for name in LOGGED}


def test_prompts_are_not_repeated_in_a_generation_while_there_are_others(tmp_path, texts):
    calls = []
    options = {"rewards": rolled_out(calls), "max_steps": 1, "max_resample_rounds": 3, "policy": "signal"}
    run(tmp_path, texts.filter(lambda record: int(record["id"][1:]) % 3), **options, **DYNAMIC)
    ids = [own for call in calls for own in call[::4]]
    assert len(calls) == 4 and len(set(ids)) == len(ids) > 6


def test_trl_order_continues_over_the_rounds(tmp_path, texts):
    plain, resampled = [], []
    run(tmp_path / "a", texts, rewards=rolled_out(plain), max_steps=24)
    run(tmp_path / "b", texts, rewards=rolled_out(resampled), max_steps=4, **DYNAMIC)
    orders = [[own for call in calls for own in call[::4]] for calls in (plain, resampled)]
    assert len(orders[1]) > 8 and orders[0][: len(orders[1])] == orders[1]


def test_logs_are_of_all_rollouts_once_a_generation(tmp_path, texts):
    calls = []

    def reward(completion_ids, log_metric, log_extra, **_):
        lengths = [len(ids) for ids in completion_ids]
        calls.append(lengths)
        log_metric("mine", float(len(calls)))
        log_extra("length", lengths)
        return [float(length % 2) for length in lengths]

    options = {"max_completion_length": 8, "max_steps": 2, "logging_steps": 2, "log_completions": True}
    trainer = run(tmp_path, texts, rewards=reward, **BOTH, **options)
    assert len(calls) > 2
    tokens = sum(map(sum, calls))
    assert trainer.difficulty.counters["generated_tokens"] == tokens
    entry = trainer.state.log_history[0]
    assert entry["completions/max_length"] <= 8 and entry["mine"] > 1
    assert entry["num_tokens"] > tokens
    assert 0 < entry["difficulty/reward"] < 1
    (table,) = {path.name: pq.read_table(path).to_pydict() for path in (tmp_path / "completions").iterdir()}.values()
    assert len(table["completion"]) == 8, "TRL keeps those of one generation batch"
    assert [float(length % 2) for length in table["length"]] == table["reward"]


def test_metrics_of_one_generation_are_those_of_its_rollouts(tmp_path, texts):
    calls = []

    def reward(completion_ids, **_):
        calls.extend(len(ids) for ids in completion_ids)
        return [0.0] * len(completion_ids)

    trainer = run(tmp_path, texts, rewards=reward, max_completion_length=8, max_steps=1, **DYNAMIC)
    entry = trainer.state.log_history[0]
    assert entry["completions/mean_length"] == pytest.approx(np.mean(calls)) and len(calls) == 8 * 4
    assert entry["completions/min_length"] == min(calls) and entry["completions/max_length"] == max(calls)


# --- rewards of all kinds


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_training_in_which_nothing_spreads_ends_and_says_so(tmp_path, texts, caplog, options):
    with caplog.at_level(logging.WARNING, logger="hardsample.trainer.rollouts.resampling"):
        trainer = run(tmp_path, texts, rewards=constant, policy="signal", max_resample_rounds=2, **options)
    counters = trainer.difficulty.counters
    assert trainer.state.global_step == 3 and counters["trained_groups"] == counters["trained_zero_std_groups"] == 6
    assert "no group's rewards had any variance" in trainer.summary()
    warned = [record.message for record in caplog.records if "have zero variance" in record.message]
    if options is SCREEN:
        assert not warned and counters["resample_rounds"] == 0
    else:
        assert len(warned) == 1 and "2 of 2 groups" in warned[0] and counters["resample_rounds"] == 6


def sometimes(completions, id, **_):
    return [None if place % 4 == 3 or int(own[1:]) % 2 else float(place % 2) for place, own in enumerate(id)]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_rewards_that_are_missing(tmp_path, texts, options):
    trainer = run(tmp_path, texts, rewards=sometimes, max_resample_rounds=6, **options)
    evidence, counters = trainer.difficulty.evidence, trainer.difficulty.counters
    assert (evidence.last_step[1::2] < 0).all(), "what was not rewarded is no evidence"
    assert (evidence.last_step[::2] >= 0).any()
    if options is not SCREEN:
        assert counters["trained_zero_std_groups"] == 0
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


async def later(completions, **_):
    return [float(len(str(completion)) % 2) for completion in completions]


def nothing(completions, **_):
    return [None] * len(completions)


def test_several_rewards(tmp_path, texts):
    options = {"rewards": [by_id, later, nothing], "reward_weights": [1.0, 0.0, 2.0]}
    trainer = run(tmp_path, texts, max_resample_rounds=6, **options, **BOTH)
    assert trainer.difficulty.counters["trained_zero_std_groups"] == 0
    entry = trainer.state.log_history[0]
    assert entry["reward"] == 0.5 and entry["rewards/by_id/mean"] == 0.5, "of what was kept"
    assert entry["difficulty/reward"] < 0.5, "of all rollouts"


# --- with the trainer's other parts


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    score(load_split("demo", 40), "demo", folder, ScoringConfig(num_masks=2, batch_size=64))
    return str(folder)


MIDDLE = {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
RESUMES = {
    "text, uniform": DYNAMIC | MIDDLE,
    "text, screening": BOTH | MIDDLE | {"policy": "signal"},
    "all parts": BOTH | MIDDLE | {"policy": "signal", "probe_fraction": 1.0, "monitor_size": 2, "monitor_steps": 2},
    "balance": DYNAMIC | MIDDLE | {"policy": "strata", "attention_balance": True, "unsolved_weight": 1.0},
}


@pytest.mark.parametrize("options", RESUMES.values(), ids=RESUMES)
def test_a_training_resumed_amid_a_generation_is_the_uninterrupted_one(tmp_path, images, texts, scores, options):
    shows_images = {"probe_fraction", "attention_balance"} & set(options)
    data = images if shows_images else texts
    given = {"rewards": correctness_reward, "scores": scores} if shows_images else {"rewards": by_id}
    options = (
        given | options | {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 4}
    )
    whole = run(tmp_path / "a", data, **options)
    rest = run(tmp_path / "b", data, resume=str(tmp_path / "a/checkpoint-3"), **options)
    assert_same(whole, rest)
    assert_same_state(whole, rest)
    assert whole.difficulty.counters["resample_rounds"] > 0
    if "attention_balance" in options:
        assert np.isfinite(whole.difficulty.evidence.balance).any()
    if "probe_fraction" in options:
        assert whole.difficulty.counters["probes"]


def test_balances_are_of_the_rows_that_are_trained_on(tmp_path, images):
    seen = []
    trainer = run(
        tmp_path,
        images,
        rewards=correctness_reward,
        then=lambda trainer: generations_of(trainer, seen),
        attention_balance=True,
        per_device_train_batch_size=16,
        **DYNAMIC,
    )
    tokenizer = trainer.processing_class.tokenizer
    for rows, output in seen:
        for place, row in enumerate(prompt_order(np.array(rows), 4)):
            ids = output["completion_ids"][place][output["completion_mask"][place].bool()]
            text = [[{"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}]]
            record = {name: [images[int(row)][name]] for name in ("solution", "grader")}
            right = correctness_reward(completions=text, **record)[0] == 1.0
            assert output["difficulty_rows"][place] == (row if right else -1)
    assert trainer.difficulty.counters["discarded_rollouts"] and np.isfinite(trainer.difficulty.evidence.balance).any()


def test_peft(tmp_path, images):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    options = {"peft_config": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), "beta": 0.01}
    trainer = run(tmp_path, images, rewards=correctness_reward, policy="signal", **options, **BOTH)
    assert trainer.state.global_step == 3 and trainer.difficulty.counters["discarded_rollouts"]


def test_a_generation_stays_of_one_kind_over_its_rounds(tmp_path, images):
    def text_of(record, row):
        content = record["prompt"][0]["content"]
        shown = record["images"] if row % 3 else []
        return {"prompt": [{"role": "user", "content": content if row % 3 else content[-1:]}], "images": shown}

    mixed, kinds = images.map(text_of, with_indices=True), []

    def watch(trainer):
        draw = trainer.difficulty.next_prompts

        def spy(step, total, *further):
            batch = draw(step, total, *further)
            if not further:
                kinds.append(set())
            kinds[-1] |= {bool(row % 3) for row in batch.rows.tolist()}
            return batch

        trainer.difficulty.next_prompts = spy

    trainer = run(tmp_path, mixed, rewards=constant, policy="signal", max_steps=6, then=watch, **DYNAMIC)
    assert all(len(kind) == 1 for kind in kinds) and {True} in kinds and {False} in kinds
    assert trainer.difficulty.counters["resample_rounds"] == 18


def test_an_image_is_read_once_a_generation(tmp_path, images):
    read = []

    def watch(trainer):
        reader = trainer._read

        def spy(rows):
            read.append(list(rows))
            return reader(rows)

        trainer._read = spy

    options = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 4}
    trainer = run(tmp_path, images, rewards=constant, then=watch, policy="signal", **options, **BOTH)
    rows = [row for part in read for row in part]
    assert len(rows) == len(set(rows)) == trainer.difficulty.counters["groups"]


def test_rollout_func(tmp_path, texts):
    def rolls(prompts, trainer):
        words = trainer.processing_class(" red blue 7 8", add_special_tokens=False)["input_ids"]
        completions = [
            [words[int(torch.randint(len(words), ()))], trainer.processing_class.eos_token_id] for _ in prompts
        ]
        return {
            "prompt_ids": [trainer.processing_class("What is")["input_ids"] for _ in prompts],
            "completion_ids": completions,
            "logprobs": [[-1.0] * len(ids) for ids in completions],
            "luck": [float(ids[0] == words[0]) for ids in completions],
            "env_mask": [[1, 0] for _ in completions],
        }

    seen = []

    def luck(completions, luck, **_):
        return luck

    trainer = run(tmp_path, texts, rollout_func=rolls, rewards=luck, then=lambda t: generations_of(t, seen), **BOTH)
    assert trainer.difficulty.counters["generated_tokens"] == trainer.difficulty.counters["rollouts"]
    for _, output in seen:
        assert (output["sampling_per_token_logps"] == -1).all() and output["tool_mask"].tolist() == [[1, 0]] * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_resample_rounds": 0}, "max_resample_rounds is 0, must be at least 1"),
        ({"screen_generations": -1}, "screen_generations is -1, must be 0 or above"),
        ({"screen_candidates": 0.5}, r"screen_candidates is 0\.5, must be at least 1"),
        ({"screen_generations": 4}, "screen_generations is 4, must be below num_generations, 4: choose .* as 2"),
        ({"dynamic_sampling": True, "per_device_train_batch_size": 96}, "leaves none of the 24 samples"),
    ],
)
def test_options_that_do_not_fit(tmp_path, texts, options, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, texts, **options)


@pytest.mark.parametrize(
    ("policy", "rewards", "advice"),
    [
        ("signal", [[0.0, 0.0], [0.0, np.nan]], "All rewards are 0: look at the completions and their reward"),
        ("uniform", [[1.0, 1.0]], "All rewards are 1: look at"),
        ("signal", [[np.nan, np.nan]], "No completion has a reward"),
        ("signal", [[0.0, 0.0], [1.0, 1.0]], "Allow more rounds, or add samples"),
        ("uniform", [[0.0, 0.0], [1.0, 1.0]], "Draw by policy='signal', or allow more rounds"),
    ],
)
def test_the_advice_for_a_batch_that_is_not_full_fits_the_training(policy, rewards, advice):
    assert refill.advice(policy, np.array(rewards)).startswith(advice)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, None),
        ({"max_resample_rounds": 5}, "max_resample_rounds is 5, and does nothing without dynamic_sampling=True"),
        ({"max_resample_rounds": 5, "dynamic_sampling": True}, None),
        ({"screen_candidates": 3.0}, r"screen_candidates is 3.0, and does nothing without screen_generations=2"),
        ({"screen_candidates": 3.0, "screen_generations": 2}, None),
        ({"cmab_bounds": "1,2,3,4"}, "cmab_bounds is '1,2,3,4', and does nothing without stratify_by=cmab or both"),
        ({"cmab_bounds": "1,2,3,4", "stratify_by": "both"}, None),
    ],
)
def test_options_that_do_nothing_are_named(tmp_path, options, sentence):
    parts = DifficultyOptions, PolicyConfig, EvidenceConfig
    args = DifficultyAwareGRPOConfig(output_dir=str(tmp_path), **SMALL, **options)
    sentences = idle_options(*(part_of(args, part) for part in parts))
    assert len(sentences) == (sentence is not None) and all(each.startswith(sentence) for each in sentences)


def test_scores_none_are_no_scores(tmp_path):
    args = DifficultyAwareGRPOConfig(output_dir=str(tmp_path), **SMALL, scores="none")
    assert args.scores is None and not args.informed
    with pytest.raises(ConfigError, match="there are no scores"):
        DifficultyOptions(scores="none", probe_fraction=0.1)


def test_the_summary_names_candidates_and_unused_groups():
    counters = new_counters()
    spread, trained = np.array([True, True, False, False]), np.array([True, False, False, False])
    count_groups(counters, spread, trained, np.array([True, True, True, False]), 3 * 8 + 2, 8)
    text = "\n".join(say_rollouts(counters, resampled=True, screened=2))
    assert "2 of 4 groups (50%) had zero variance; 1 of all are candidates judged by 2 completions" in text
    assert "18 rollouts discarded (1 groups with variance among them)" in text


def test_few_groups_that_are_trained_on_have_zero_variance(tmp_path):
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    pool = load_split("demo:pool", 300).select_columns(columns).cast_column("images", List(Image()))
    options = {"per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 12}
    options |= {"policy": "signal", "learning_rate": 1e-5, "max_steps": 2}
    counters = run(tmp_path, pool, rewards=correctness_reward, **options, **BOTH).difficulty.counters
    assert counters["trained_zero_std_groups"] <= 0.05 * counters["trained_groups"] == 0.05 * 16
    assert counters["zero_std_groups"] > 0.2 * counters["groups"]


# --- two processes

TWO = """
import json
import sys

sys.path[:0] = [TESTS]
import torch
from datasets import Dataset, Image, List
from transformers import LlamaForCausalLM

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.selection.states import split_arrays

torch.set_num_threads(1)
folder, out, resume, model_folder, screen = sys.argv[1:6]
processor = load_processor(str(model_path()))
if int(screen):
    data = load_split("demo", 48).select_columns(["prompt", "images"]).cast_column("images", List(Image()))
    data = data.add_column("id", [f"t{i}" for i in range(48)])
    model = load_model(str(model_path()), "cpu")
else:
    data = Dataset.from_list(
        [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what is {i}"}]} for i in range(48)]
    )
    model, processor = LlamaForCausalLM.from_pretrained(model_folder), processor.tokenizer
seen = []


def by_tokens(completions, id, completion_ids, **_):
    seen.append(list(id))
    return [float(int(one[1:]) % 3 == 0 and sum(ids) % 2) for one, ids in zip(id, completion_ids)]


args = DifficultyAwareGRPOConfig(
    output_dir=folder, use_cpu=True, bf16=False, seed=3, learning_rate=1e-4, per_device_train_batch_size=6,
    num_generations=4, max_completion_length=4, gradient_checkpointing=False, save_strategy="steps", save_steps=3,
    logging_steps=1, report_to="none", disable_tqdm=True, max_steps=6, policy="signal", steps_per_generation=2,
    num_iterations=2, dynamic_sampling=True, screen_generations=int(screen), max_resample_rounds=4,
)
trainer = DifficultyAwareGRPOTrainer(
    model=model, args=args, reward_funcs=by_tokens, train_dataset=data, processing_class=processor
)
kept = []
generate = trainer._generate_and_score_completions


def spy(inputs):
    output = generate(inputs)
    ids = [one[mask.bool()] for one, mask in zip(output["completion_ids"], output["completion_mask"])]
    kept.append([trainer._rows.tolist(), [int(sum(one)) % 2 for one in ids], output["advantages"].tolist()])
    return output


trainer._generate_and_score_completions = spy
trainer.train(resume_from_checkpoint=None if resume == "none" else resume)
arrays, header = split_arrays(trainer.difficulty.state_dict())
digest = {name: str(value.double().sum().item()) for name, value in trainer.model.state_dict().items()}
with open(f"{out}-{trainer.accelerator.process_index}.json", "w") as file:
    json.dump(
        {"ids": seen, "kept": kept, "weights": digest, "header": header,
         "arrays": {name: array.tolist() for name, array in arrays.items()}},
        file,
    )
"""


@pytest.mark.parametrize("screen", [0, 1], ids=["text, dynamic", "images, both"])
def test_two_processes_make_the_same_rounds_and_resume_exactly(tmp_path, screen):
    script = tmp_path / "two.py"
    script.write_text(f"TESTS = {str(ROOT / 'tests')!r}\n{TWO}")

    def train(folder, resume):
        output = f"{folder}-out"
        return run_two(
            tmp_path, "two.py", output, tmp_path / folder, tmp_path / output, resume, text_model_folder().name, screen
        )

    whole = train("a", "none")
    for name in ("weights", "header", "arrays"):
        assert whole[0][name] == whole[1][name], name
    counters = whole[0]["header"]["counters"]
    assert [len(call) for call in whole[0]["ids"]] == [len(call) for call in whole[1]["ids"]]
    assert counters["rollouts"] == sum(len(call) for rank in whole for call in rank["ids"])
    assert counters["resample_rounds"] > 0 and counters["trained_groups"] == 12
    spread = 0
    for first, second in zip(whole[0]["kept"], whole[1]["kept"], strict=True):
        rows, parities = np.array(first[0]), np.array(first[1] + second[1], dtype=float)
        assert first[0] == second[0] and len(parities) == 24, "six groups of four; the fourth spans the ranks"
        rewards = (parities * np.repeat(rows % 3 == 0, 4)).reshape(-1, 4)
        expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        assert np.array(first[2] + second[2]) == pytest.approx(expected.reshape(-1), abs=1e-5)
        spread += int((rewards.std(1) > 0).sum())
    assert spread == 12 - counters["trained_zero_std_groups"] > 6
    rest = train("b", tmp_path / "a" / "checkpoint-3")  # step 3 of 4 of a generation
    for name in ("weights", "header", "arrays"):
        assert rest[0][name] == whole[0][name] and rest[1][name] == whole[1][name], name
