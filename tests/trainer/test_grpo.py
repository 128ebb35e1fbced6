"""The trainer against TRL's own: the same bits where it must be, exact resumes, evidence that lags by nothing."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List
from tiny_training import SMALL, assert_same, assert_same_state, logged, text_model_folder
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.grading.grader import correctness_reward
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features.files import read_features
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.data.decoding import RgbImage
from hardsample.trainer.data.rows import ScoresError
from hardsample.trainer.selection.states import StateError


@pytest.fixture(scope="module")
def images():
    """Forty questions of the demo with their images."""
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    return load_split("demo", 40).select_columns(columns).cast_column("images", List(Image()))


@pytest.fixture(scope="module")
def texts():
    """Twenty questions without images."""
    words = ["red", "blue", "green", "seven"]
    return Dataset.from_list(
        [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what {words[i % 4]} {i}"}]} for i in range(20)]
    )


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores of the forty questions."""
    folder = tmp_path_factory.mktemp("scores") / "run"
    score(load_split("demo", 40), "demo", folder, ScoringConfig(num_masks=4, batch_size=64))
    return str(folder)


def tiny_text_model():
    folder, tokenizer = text_model_folder(), load_processor(str(model_path())).tokenizer
    return LlamaForCausalLM.from_pretrained(folder.name), tokenizer


def by_length(completions, **_):
    """A reward that differs between completions, of any model."""
    return [float(len(str(completion)) % 3) for completion in completions]


def run(trainer, folder, data, *, resume=None, text=False, config=DifficultyAwareGRPOConfig, then=None, **options):
    """Trains for a few steps; the trainer."""
    made = {"rewards": by_length if text else correctness_reward}
    made |= {key: options.pop(key) for key in ("callbacks", "rewards", "eval_dataset", "peft_config") if key in options}
    model, processor = tiny_text_model() if text else (load_model(str(model_path()), "cpu"), None)
    args = config(output_dir=str(folder), **(SMALL | {"max_steps": 4} | options))
    trained = trainer(
        model=model,
        reward_funcs=made.pop("rewards"),
        args=args,
        train_dataset=data,
        processing_class=processor or load_processor(str(model_path())),
        **made,
    )
    if then is not None:
        then(trained)
    trained.train(resume_from_checkpoint=resume)
    return trained


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


STEPS_OF = [
    {},
    {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"beta": 0.04, "loss_type": "grpo", "scale_rewards": "batch"},
]


@pytest.mark.parametrize("options", STEPS_OF, ids=["plain", "reuse", "beta"])
@pytest.mark.parametrize("text", [True, False], ids=["text", "images"])
def test_uniform_is_grpotrainer_bit_for_bit(tmp_path, images, texts, text, options):
    # more steps than an epoch has, so that its order changes
    options = {"max_steps": 20 if text or not options else 6, **options}
    data = texts if text else images.select(range(10))
    stock = run(GRPOTrainer, tmp_path / "a", data, config=GRPOConfig, text=text, **options)
    for config in (GRPOConfig, DifficultyAwareGRPOConfig) if text else (DifficultyAwareGRPOConfig,):
        ours = run(DifficultyAwareGRPOTrainer, tmp_path / config.__name__, data, config=config, text=text, **options)
        assert_same(stock, ours, ours=False)
    assert len({entry["reward"] for entry in stock.state.log_history if "reward" in entry}) > 1
    assert {name for name in logged(ours)[0] if name not in logged(stock)[0]} <= {
        name for name in logged(ours)[0] if name.startswith("difficulty/")
    }


RESUMES = {
    "strata with probes": {"policy": "strata", "probe_fraction": 0.5, "restratify_steps": 3},
    "mid-buffer": {
        "policy": "signal",
        "num_iterations": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "attention_balance": True,
    },
    "thompson with monitoring set": {
        "policy": "signal",
        "signal_estimate": "thompson",
        "monitor_size": 3,
        "monitor_steps": 2,
    },
    "features read anew": {"policy": "signal", "signal_estimate": "mean", "refresh_features_every": 2},
    "without features": {"policy": "signal", "features": "none"},
    "uniform past an epoch": {"policy": "uniform", "per_device_train_batch_size": 40, "num_generations": 2},
}


@pytest.mark.parametrize("options", RESUMES.values(), ids=RESUMES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, images, scores, options):
    options = {"scores": scores, "save_strategy": "steps", "save_steps": 3, "max_steps": 6, **options}
    whole = run(DifficultyAwareGRPOTrainer, tmp_path / "a", images, **options)
    rest = run(DifficultyAwareGRPOTrainer, tmp_path / "b", images, resume=str(tmp_path / "a/checkpoint-3"), **options)
    assert_same(whole, rest)
    assert_same_state(whole, rest)
    assert whole.state.global_step == 6


def test_features_of_the_scores_are_the_prior_and_are_read_anew_when_due(tmp_path, images, scores):
    options = {"scores": scores, "policy": "signal", "refresh_features_every": 2, "max_steps": 5}
    trained = run(DifficultyAwareGRPOTrainer, tmp_path / "a", images, **options)
    prior, (ids, stored) = trained.difficulty.evidence.prior, read_features(scores)
    assert ids == images["id"]
    assert trained.difficulty.counters["prefills"] == 2 * len(images)  # before steps 2 and 4
    assert "80 prefills" in trained.summary()
    moved = np.abs(prior.features[:, :256].astype(float) - stored.astype(float))
    assert 0 < np.nanmedian(moved) < 1  # the model has learnt since
    assert (prior.features[:, 256:].sum(1) == 1).all()  # the ability
    untouched = run(DifficultyAwareGRPOTrainer, tmp_path / "b", images, **(options | {"features": "none"}))
    assert untouched.difficulty.evidence.prior is None


def test_features_of_other_data_are_refused(tmp_path, texts, scores):
    with pytest.raises(ScoresError, match="none of the 20 samples has features in"):
        run(DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, policy="signal", features=scores)


def test_fifty_and_fifty_steps_are_a_hundred(tmp_path, texts):
    options = {"policy": "signal", "text": True, "save_strategy": "steps", "save_steps": 50, "max_steps": 100}
    options |= {"steps_per_generation": 3, "num_iterations": 1, "restratify_steps": 7}
    whole = run(DifficultyAwareGRPOTrainer, tmp_path / "a", texts, **options)
    rest = run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, resume=str(tmp_path / "a/checkpoint-50"), **options)
    assert_same(whole, rest)
    assert_same_state(whole, rest)


def test_what_stock_trainer_loses_on_a_vision_language_model_is_loaded(tmp_path, images):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    done = run(DifficultyAwareGRPOTrainer, tmp_path / "a", images, **options)
    fresh = run(DifficultyAwareGRPOTrainer, tmp_path / "b", images, resume=str(tmp_path / "a/checkpoint-2"), **options)
    after = weights(done)
    assert all(torch.equal(after[name], value) for name, value in weights(fresh).items())
    before = load_model(str(model_path()), "cpu").state_dict()
    assert any(not torch.equal(before[name], value) for name, value in weights(fresh).items())


def test_every_choice_uses_the_step_before(tmp_path, images, scores):
    seen = []

    def watch(trainer):
        choose = trainer.difficulty.next_prompts

        def spy(step, total):
            evidence = trainer.difficulty.evidence
            seen.append((step, int((evidence.last_step >= 0).sum()), int(evidence.last_step.max())))
            return choose(step, total)

        trainer.difficulty.next_prompts = spy

    run(DifficultyAwareGRPOTrainer, tmp_path, images, policy="strata", scores=scores, then=watch)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [last for _, _, last in seen] == [-1, 0, 1, 2]
    assert seen[1][1] == 2  # both prompts of the first generation


def test_an_image_is_decoded_once_a_generation_and_no_other_is(tmp_path, images, monkeypatch):
    decoded, drawn = [], []
    decode = RgbImage.decode_example
    monkeypatch.setattr(
        RgbImage, "decode_example", lambda self, value, **k: decoded.append(value["bytes"]) or decode(self, value, **k)
    )

    def watch(trainer):
        choose = trainer.difficulty.next_prompts
        trainer.difficulty.next_prompts = lambda *a: drawn.append(choose(*a)) or drawn[-1]
        decoded.clear()

    options = {"policy": "signal", "steps_per_generation": 2, "num_iterations": 2}
    run(DifficultyAwareGRPOTrainer, tmp_path, images, then=watch, **options)
    # of the 4 × 4 × 4 rows that the loader gave; datasets itself decodes the first image of a list twice
    assert len(drawn) == 1 and len(set(decoded)) == len(drawn[0].rows) == 4
    assert len(decoded) <= 2 * 4


def test_probes_and_monitoring_set_leave_no_trace_in_the_rollouts(tmp_path, images, scores):
    options = {"policy": "uniform", "scores": scores, "log_completions": False}
    without = run(DifficultyAwareGRPOTrainer, tmp_path / "a", images, **options)
    with_both = run(
        DifficultyAwareGRPOTrainer,
        tmp_path / "b",
        images,
        probe_fraction=1.0,
        monitor_size=4,
        monitor_steps=1,
        **options,
    )
    assert_same(without, with_both, ours=False)
    assert with_both.state.num_input_tokens_seen == without.state.num_input_tokens_seen
    counters = with_both.difficulty.counters
    assert counters["probes"] and counters["monitor_rollouts"] == 16
    assert with_both.difficulty.evidence.levels.probe_attempts.sum() == counters["probes"]
    assert without.difficulty.evidence.levels.probe_attempts.sum() == 0
    assert any("difficulty/monitor_reward" in entry for entry in with_both.state.log_history)


def test_probes_see_images_masked_at_their_level(tmp_path, images, scores):
    shown = []

    def watch(trainer):
        generate = trainer._generate

        def spy(prompts):
            if trainer.num_generations == 1:
                for prompt in prompts:
                    image = np.asarray(prompt[0]["content"][0]["image"])
                    shown.append(float((image == 0).all(-1).mean()))
            return generate(prompts)

        trainer._generate = spy

    trainer = run(
        DifficultyAwareGRPOTrainer, tmp_path, images, policy="strata", scores=scores, probe_fraction=1.0, then=watch
    )
    attempts = trainer.difficulty.evidence.levels.probe_attempts.sum(axis=0).astype(int)
    expected = np.repeat(np.arange(10) / 10, attempts)
    assert len(shown) == len(expected) > 0
    # 96 × 96 pixels, five standard deviations; some pixels are black without a mask
    assert np.all(np.sort(shown) >= expected - 5 * 0.5 / 96)
    assert abs(np.mean(shown) - np.mean(expected)) < 0.1


def test_probes_in_model_space(tmp_path, images):
    folder = tmp_path / "scores"
    score(load_split("demo", 40), "demo", folder, ScoringConfig(num_masks=2, batch_size=64, mask_space="model"))
    trainer = run(
        DifficultyAwareGRPOTrainer, tmp_path / "a", images, policy="strata", scores=str(folder), probe_fraction=1.0
    )
    assert trainer.difficulty.counters["probes"]


def test_balances_are_those_of_scoring(tmp_path, images):
    """ρ̄ read in the loss forward is ρ̄ of a forward of its own."""
    from hardsample.attention.interface import collect_attention_mass, use_attention_mass
    from hardsample.metrics.cmab import attention_balance

    kept = []

    def watch(trainer):
        compute = trainer._compute_loss

        def spy(model, inputs):
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            rows = inputs["difficulty_rows"].tolist()
            with (
                torch.no_grad(),
                use_attention_mass(model),
                collect_attention_mass(model, ids, inputs["completion_mask"], mask) as collector,
            ):
                model(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"])
            for index, row in enumerate(rows):
                if row >= 0:
                    kept.append((row, attention_balance(*collector.masses.sample(index)).value))
            return compute(model, inputs)

        trainer._compute_loss = spy

    balances = []

    def both(trainer):
        watch(trainer)
        take = trainer._balances.take
        trainer._balances.take = lambda: balances.append(take()) or balances[-1]

    run(
        DifficultyAwareGRPOTrainer,
        tmp_path,
        images,
        attention_balance=True,
        per_device_train_batch_size=32,
        then=both,
        max_steps=2,
    )
    rows, values = (np.concatenate([part[i] for part in balances]) for i in (0, 1))
    assert rows.tolist() == [row for row, _ in kept] and len(kept) > 3
    assert values == pytest.approx([value for _, value in kept], rel=1e-4)


def test_gradient_checkpointing_with_balance(tmp_path, images):
    options = {"per_device_train_batch_size": 16, "max_steps": 3, "attention_balance": True}
    plain = run(DifficultyAwareGRPOTrainer, tmp_path / "a", images, **options)
    saving = run(DifficultyAwareGRPOTrainer, tmp_path / "b", images, gradient_checkpointing=True, **options)
    first, second = plain.difficulty.evidence.balance, saving.difficulty.evidence.balance
    assert np.isfinite(first).any()
    assert np.allclose(first, second, rtol=1e-3, equal_nan=True)
    assert plain.model.config.get_text_config()._attn_implementation == "sdpa"  # switched back


def strict(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, id):
    """A reward function that takes exactly what the dataset has."""
    log_metric("seen", 1.0)
    return [float(len(str(completion)) % 2) for completion in completions]


def test_a_reward_of_strict_signature_sees_no_column_of_ours(tmp_path, texts):
    trainer = run(
        DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, policy="signal", rewards=strict, monitor_size=4
    )
    assert trainer.state.log_history[0]["seen"] == 1.0


async def later(completions, **_):
    return [float(len(str(completion)) % 2) for completion in completions]


def nothing(completions, **_):
    return [None] * len(completions)


def test_several_rewards_async_ones_and_none(tmp_path, texts):
    options = {"text": True, "policy": "signal", "rewards": [by_length, later, nothing]}
    trainer = run(DifficultyAwareGRPOTrainer, tmp_path, texts, reward_weights=[1.0, 0.5, 2.0], **options)
    assert (trainer.difficulty.evidence.last_step >= 0).sum() > 2


def test_without_any_reward_nothing_is_observed(tmp_path, texts):
    trainer = run(
        DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, policy="signal", rewards=nothing, monitor_size=2
    )
    assert (trainer.difficulty.evidence.last_step < 0).all()


def test_streamed_data_trains_as_stock(tmp_path, texts, caplog):
    stock = run(GRPOTrainer, tmp_path / "a", texts.to_iterable_dataset(), config=GRPOConfig, text=True)
    with caplog.at_level(logging.WARNING):
        ours = run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts.to_iterable_dataset(), text=True, policy="signal")
    assert_same(stock, ours)
    assert ours.difficulty is None and "no random access" in caplog.text


def test_made_without_init():
    trainer = object.__new__(DifficultyAwareGRPOTrainer)
    assert trainer.difficulty is None and "GRPOTrainer" in trainer.summary()


def test_data_as_they_are_loaded_can_be_trained_on(tmp_path):
    from hardsample.data.loading import load

    data = load("demo", limit=12).dataset  # images as bytes, which stock TRL cannot take
    trainer = run(DifficultyAwareGRPOTrainer, tmp_path, data, policy="signal", max_steps=1, eval_dataset={"a": data})
    assert trainer.difficulty.counters["rollouts"] == 8


def test_evaluation_is_left_alone(tmp_path, images):
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    options["eval_dataset"] = images.select(range(4))
    stock = run(GRPOTrainer, tmp_path / "a", images, config=GRPOConfig, **options)
    ours = run(DifficultyAwareGRPOTrainer, tmp_path / "b", images, **options)
    assert_same(stock, ours, ours=False)
    assert ours.difficulty.counters["rollouts"] == 4 * 8


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "dr_grpo", "cispo", "sapo"])
def test_loss_types(tmp_path, texts, loss_type):
    trainer = run(
        DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, policy="signal", loss_type=loss_type, max_steps=2
    )
    logs = [entry for entry in logged(trainer) if "loss" in entry]
    assert len(logs) == 2 and all(np.isfinite(entry["loss"]) for entry in logs)
    assert any(entry["grad_norm"] > 0 for entry in logs)  # the reward's spread reaches the weights by this loss
    assert (trainer.difficulty.evidence.last_step >= 0).any()


def test_peft(tmp_path, images):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    options = {
        "peft_config": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        "policy": "signal",
        "attention_balance": True,
        "per_device_train_batch_size": 16,
        "beta": 0.01,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = run(DifficultyAwareGRPOTrainer, tmp_path / "a", images, **options)
    rest = run(DifficultyAwareGRPOTrainer, tmp_path / "b", images, resume=str(tmp_path / "a/checkpoint-2"), **options)
    assert np.isfinite(whole.difficulty.evidence.balance).any()
    assert_same_state(whole, rest)


def test_several_images_a_question(tmp_path, images):
    def double(record):
        content = [{"type": "image", "text": None}, *record["prompt"][0]["content"]]
        return {"prompt": [{"role": "user", "content": content}], "images": record["images"] * 2}

    doubled = images.map(double)
    score(doubled, "demo", tmp_path / "scores", ScoringConfig(num_masks=2, batch_size=64))
    trainer = run(
        DifficultyAwareGRPOTrainer,
        tmp_path,
        doubled,
        policy="strata",
        scores=str(tmp_path / "scores"),
        probe_fraction=1.0,
    )
    assert trainer.difficulty.counters["probes"]


def test_a_policy_never_mixes_rows_with_and_without_images(tmp_path, images):
    mixed = images.map(lambda record, row: {"images": record["images"] if row % 3 else []}, with_indices=True)

    def text_of(record, row):
        content = record["prompt"][0]["content"]
        return {"prompt": [{"role": "user", "content": content if row % 3 else content[-1:]}]}

    mixed = mixed.map(text_of, with_indices=True)
    drawn = []

    def watch(trainer):
        assert trainer._setup.kinds.sum() == 26
        generate = trainer._generate_and_score_completions

        def spy(inputs):
            drawn.append({bool(sample["images"]) for sample in inputs})
            return generate(inputs)

        trainer._generate_and_score_completions = spy

    run(DifficultyAwareGRPOTrainer, tmp_path, mixed, policy="signal", max_steps=8, then=watch, monitor_size=6)
    assert all(len(kinds) == 1 for kinds in drawn) and {True} in drawn and {False} in drawn


def test_no_stratum_has_enough_samples(tmp_path, images, scores, caplog):
    """Weight on easy ones only, of whom there are fewer than a generation batch: widened, and said."""
    with caplog.at_level(logging.WARNING):
        trainer = run(
            DifficultyAwareGRPOTrainer,
            tmp_path,
            images,
            policy="strata",
            scores=scores,
            easy_weight=1.0,
            medium_weight=0.0,
            hard_weight=0.0,
            unscored_weight=0.0,
            per_device_train_batch_size=60,
            num_generations=2,
            max_steps=2,
        )
    assert trainer.state.global_step == 2 and "was opened" in caplog.text


def test_a_dataset_smaller_than_a_generation_batch(tmp_path, texts):
    trainer = run(
        DifficultyAwareGRPOTrainer,
        tmp_path,
        texts.select(range(3)),
        text=True,
        policy="signal",
        per_device_train_batch_size=20,
        max_steps=3,
    )
    assert trainer.state.global_step == 3


class Hears(TrainerCallback):
    def __init__(self):
        self.heard = []

    def on_restratify(self, args, state, control, restratified, difficulty, **kwargs):
        self.heard.append((state.global_step, sum(restratified.counts.values())))


def test_callbacks_hear_of_restratifying(tmp_path, images, scores):
    callback = Hears()
    run(
        DifficultyAwareGRPOTrainer,
        tmp_path,
        images,
        policy="curriculum",
        scores=scores,
        restratify_steps=2,
        max_steps=6,
        callbacks=[callback],
    )
    assert callback.heard == [(2, 40), (4, 40)]


def test_a_second_training_starts_from_the_beginning(tmp_path, texts, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="hardsample.trainer.grpo"):
        trainer = run(DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, policy="signal")
        trainer.train()
    assert trainer.difficulty.counters["rollouts"] == 4 * 8
    assert "Policy signal: 32 rollouts" in trainer.summary() and caplog.text.count("Policy signal: 32 rollouts") == 2
    assert "Policy signal" not in capsys.readouterr().out


def test_states_of_other_runs_are_refused(tmp_path, texts):
    options = {"text": True, "policy": "signal", "save_strategy": "steps", "save_steps": 3, "max_steps": 4}
    options |= {"gradient_accumulation_steps": 1, "steps_per_generation": 2}
    run(DifficultyAwareGRPOTrainer, tmp_path / "a", texts, **options)
    checkpoint = tmp_path / "a/checkpoint-3"
    again = {"resume": str(checkpoint), **options}
    with pytest.raises(StateError, match="policy 'signal', this run has 'target'"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **{**again, "policy": "target"})
    with pytest.raises(StateError, match="saved with seed 3, this run has 4"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **{**again, "seed": 4})
    with pytest.raises(StateError, match="resume on the dataset that it was saved with"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts.select(range(19)), **again)
    with pytest.raises(StateError, match="in the middle of a generation"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **{**again, "steps_per_generation": 4})
    state = checkpoint / "difficulty/state.json"
    header = json.loads(state.read_text())
    state.write_text(json.dumps({**header, "version": 0}))
    with pytest.raises(StateError, match="version 0, must be 3"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **again)
    state.write_text("{")
    with pytest.raises(StateError, match=r"state\.json cannot be read"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **again)
    state.write_text(json.dumps(header))
    (checkpoint / "difficulty/rank0.safetensors").unlink()
    with pytest.raises(StateError, match=r"rank0\.safetensors is missing"):
        run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **again)


def test_a_stock_checkpoint_is_trained_on_with_new_evidence(tmp_path, texts, caplog):
    options = {"text": True, "save_strategy": "steps", "save_steps": 2}
    stock = run(GRPOTrainer, tmp_path / "a", texts, config=GRPOConfig, **options)
    with caplog.at_level(logging.WARNING):
        ours = run(
            DifficultyAwareGRPOTrainer, tmp_path / "b", texts, resume=str(tmp_path / "a/checkpoint-2"), **options
        )
    assert "another trainer saved it" in caplog.text
    assert_same(stock, ours, ours=False)  # between generations, in the first epoch, stock is exact too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_fraction": 0.5}, "there are no scores"),
        ({"policy": "best"}, "policy is 'best'"),
        ({"exploration": 2.0}, "exploration is 2.0"),
        ({"half_life_steps": 0.0}, "half_life_steps is 0.0"),
        ({"restratify_steps": 0}, "restratify_steps is 0"),
        ({"monitor_size": -1}, "monitor_size is -1"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DifficultyAwareGRPOConfig(output_dir=str(tmp_path), **SMALL | options)


def test_scores_that_do_not_fit(tmp_path, texts, images, scores):
    with pytest.raises(ScoresError, match="none of the 20 samples has a score"):
        run(DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, scores=scores)
    with pytest.raises(ScoresError, match="no column 'id'"):
        run(DifficultyAwareGRPOTrainer, tmp_path, images.remove_columns("id"), scores=scores)
    twice = images.map(lambda record: {"id": "same"})
    with pytest.raises(ScoresError, match="id 'same' is repeated"):
        run(DifficultyAwareGRPOTrainer, tmp_path, twice, scores=scores)
    with pytest.raises(ValueError, match="attention_balance cannot be read from this model"):
        run(DifficultyAwareGRPOTrainer, tmp_path, texts, text=True, attention_balance=True)
