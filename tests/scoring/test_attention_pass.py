"""CMAB as a job: what the store holds is attended once, whatever the batch; what it says lands in the scores."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from hardsample.attention.interface import collect_attention_mass, use_attention_mass
from hardsample.cli.main import app
from hardsample.data.digests import ChangedError
from hardsample.demo import load_split
from hardsample.engines.transformers import TransformersEngine
from hardsample.errors import ConfigError
from hardsample.metrics.cmab import CmabConfig, attention_balance
from hardsample.report.explain import explain, file_name, image_grids, rollout_to_explain
from hardsample.report.parts.figures import balance_histogram, layer_profile, mean_intervals
from hardsample.scoring import attention_pass as attending
from hardsample.scoring.attention_pass import definition, pending, sample_attention, teacher_forced
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import OutputError
from hardsample.scoring.score import score
from hardsample.scoring.store import Rollout, Store

LIMIT = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The first demo questions, scored by both metrics."""
    folder = tmp_path_factory.mktemp("cmab")
    return score("demo", "demo", folder, limit=LIMIT, metric=("pism", "cmab"), progress=False)


def rows(scores):
    with Store(scores.directory) as store:
        name = definition(CmabConfig(), "float32")
        return [one for sample in scores.table["id"] for one in store.attention(name, sample)]


def test_every_completion_at_ratio_zero_has_a_balance(run):
    with Store(run.directory) as store:
        asked = [one for one in store.rollouts() if one.ratio == 0]
    found = rows(run)
    assert {(one.sample, one.realization) for one in found} == {(one.sample, one.realization) for one in asked}
    assert all(one.balance > 0 and one.reason is None and len(one.profile) == 4 for one in found)
    assert run.run["cmab"]["completions"] == len(asked)
    assert run.run["cmab"]["settings"]["variant"] == "paper"


def test_the_table_has_the_mean_over_correct_completions_and_its_stratum(run):
    with Store(run.directory) as store:
        grades = {(one.sample, one.realization): one.grade for one in store.rollouts() if one.ratio == 0}
    for row in run.table:
        own = [(one.balance, grades[one.sample, one.realization]) for one in rows(run) if one.sample == row["id"]]
        right = [balance for balance, grade in own if grade]
        wrong = [balance for balance, grade in own if not grade]
        if right:
            assert row["attention_balance"] == pytest.approx(sum(right) / len(right), rel=1e-12)
            assert row["cmab_stratum"] in ("easy", "medium", "hard")
        else:
            assert row["attention_balance"] is None and row["cmab_stratum"] == "unsolved"
        assert (row["attention_balance_wrong"] is not None) == bool(wrong)
        assert (row["attention_profile"] is not None) == bool(right)


def test_balances_do_not_depend_on_the_batch_and_a_stopped_run_goes_on(run, tmp_path, monkeypatch):
    score("demo", "demo", tmp_path, limit=LIMIT, progress=False)
    commit, calls = Store.commit_attention, []

    def once(self, name, found):
        if calls:
            raise KeyboardInterrupt
        calls.append(name)
        commit(self, name, found)

    settings = {"limit": LIMIT, "metric": ("pism", "cmab"), "batch_size": 7, "progress": False}
    monkeypatch.setattr(Store, "commit_attention", once)
    with pytest.raises(KeyboardInterrupt):
        score("demo", "demo", tmp_path, **settings)
    monkeypatch.setattr(Store, "commit_attention", commit)
    with Store(tmp_path) as store:
        held = store.count_unattended(definition(CmabConfig(), "float32"))
        total = sum(one.ratio == 0 for one in store.rollouts())
    assert 0 < held < total
    again = score("demo", "demo", tmp_path, **settings)
    assert again.run["cmab"]["completions"] == held
    assert again.run["counts"]["rollouts_this_run"] == 0
    wanted = {(one.sample, one.realization): one.balance for one in rows(run)}
    found = {(one.sample, one.realization): one.balance for one in rows(again)}
    assert found == pytest.approx(wanted, rel=1e-4)


def test_equal_completions_of_a_sample_are_run_once(tmp_path):
    with Store(tmp_path) as store:
        store.commit([Rollout("a", 0.0, k, "x", 0, [4, 5] if k != 1 else [4]) for k in range(4)])
        store.commit([Rollout("a", 0.1, 0, "x", 0, [9]), Rollout("b", 0.0, 0, "x", 0, [4])])
        records = [{"id": "a", "images": [1]}, {"id": "b", "images": []}]
        (found,) = pending(records, store, "name", list)
        assert found.record is records[0]
        assert [(item.tokens, item.realizations) for item in found.items] == [((4, 5), (0, 2, 3)), ((4,), (1,))]
        assert sample_attention("a", store, "name") == attending.SampleAttention()


def test_a_balance_is_what_the_models_own_weights_give(run, model, processor, questions):
    """The job against eager attention of one sample, on the whole path from the store."""
    record = questions[0]
    with Store(run.directory) as store:
        told = rollout_to_explain(list(store.rollouts(record["id"])))
    text = processor.apply_chat_template(record["prompt"], add_generation_prompt=True, tokenize=False)
    from hardsample.data.images import open_image

    inputs = dict(processor(text=[text], images=[[open_image(record["images"][0])]], return_tensors="pt"))
    fed, _ = teacher_forced(inputs, [told.tokens], 0)
    old = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            weights = torch.stack(model(**fed, output_attentions=True).attentions).mean(2)[:, 0].double()
    finally:
        model.set_attn_implementation({"text_config": old})
    length, tokens = fed["input_ids"].shape[1], len(told.tokens)
    produced = weights[:, length - tokens - 1 : length - 1]
    image = fed["input_ids"][0] == model.config.image_token_index
    prompt = torch.arange(length) < length - tokens
    masses = [produced[..., side].sum(-1) for side in (image & prompt, ~image & prompt)]
    sees = torch.ones_like(masses[0], dtype=torch.bool)
    wanted = attention_balance(*masses, sees, sees).value
    found = next(one for one in rows(run) if (one.sample, one.realization) == (record["id"], told.realization))
    assert found.balance == pytest.approx(wanted, rel=1e-5)


def test_teacher_forcing_appends_on_the_right_and_marks_what_counts():
    ids = torch.tensor([[0, 7, 8], [5, 6, 7]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "token_type_ids": torch.tensor([[0, 1, 0], [1, 1, 0]]),
        "pixel_values": torch.zeros(2, 3, 4, 4),
    }
    fed, mask = teacher_forced(inputs, [[1, 2], [3]], 9)
    assert fed["input_ids"].tolist() == [[0, 7, 8, 1, 2], [5, 6, 7, 3, 9]]
    assert fed["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert fed["token_type_ids"].tolist() == [[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert fed["pixel_values"] is inputs["pixel_values"]


ANSWERS = [[(10, 11), (12,), (10, 11), ()], [()], [(13, 14, 15), (16, 17), (18, 19, 20), (21, 22)]]


def attended(model, processor, questions, folder, batch_size=64, answers=ANSWERS):
    """The job on answers of the first questions: its engine, and each question's balances in order."""
    engine = TransformersEngine(model, processor, ScoringConfig(batch_size=batch_size))
    engine.notice = lambda text: None
    records = questions[: len(answers)]
    with Store(folder) as store:
        store.commit(
            Rollout(one["id"], 0.0, k, "", 0, list(tokens))
            for one, own in zip(records, answers, strict=True)
            for k, tokens in enumerate(own)
        )
        attending.attend(records, engine, store, CmabConfig())
        return engine, [store.attention(definition(CmabConfig(), "float32"), one["id"]) for one in records]


def values(balances):
    """NaN where there is none."""
    return [float("nan") if one.balance is None else one.balance for own in balances for one in own]


def same(balances):
    return pytest.approx(values(balances), rel=1e-5, nan_ok=True)


def test_an_empty_completion_has_no_balance_and_sinks_no_batch(model, processor, questions, tmp_path):
    _, found = attended(model, processor, questions, tmp_path)
    assert [[one.balance is None for one in own] for own in found] == [[False] * 3 + [True], [True], [False] * 4]
    assert found[0][3].reason == found[1][0].reason == "the completion is empty"
    assert found[0][0] == replace(found[0][2], realization=0)  # equal completions are run once
    assert model.config.text_config._attn_implementation != "hardsample"


def test_completions_that_cannot_share_a_prefill_run_one_by_one(model, processor, questions, tmp_path, monkeypatch):
    _, shared = attended(model, processor, questions, tmp_path / "shared")
    monkeypatch.setattr(attending, "why_not_shared", lambda model: "it is of another kind")
    monkeypatch.delattr(attending, "shared_masses")
    _, plain = attended(model, processor, questions, tmp_path / "plain", batch_size=2)
    assert values(plain) == same(shared)
    assert [one.reason for own in plain for one in own] == [one.reason for own in shared for one in own]


@contextmanager
def watched(model, refuse=lambda batch, past: None):
    """(rows, tokens held by the cache) of each forward of the language model; `refuse` may raise on one."""
    calls = []

    def before(module, args, kwargs):
        cache = next(one for one in kwargs.values() if hasattr(one, "get_seq_length"))
        calls.append((len(kwargs["inputs_embeds"]), cache.get_seq_length()))
        refuse(*calls[-1])

    handle = model.model.language_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def test_each_prompt_runs_once_and_no_more_than_a_batch_of_completions(model, processor, questions, tmp_path):
    with watched(model) as calls:
        attended(model, processor, questions, tmp_path, batch_size=3)
    assert [rows for rows, past in calls if not past] == [3]
    assert [rows for rows, past in calls if past] == [3, 2]  # five of more than one token


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("in_prefill", [True, False])
def test_out_of_memory_halves_samples_and_then_completions(model, processor, questions, tmp_path, in_prefill):
    """Memory for one sequence: the prompts of three are too many, or the completions of one."""
    _, wanted = attended(model, processor, questions, tmp_path / "wanted")

    def refuse(rows, past):
        if rows > 1 and bool(past) != in_prefill:
            out_of_memory()

    with watched(model, refuse) as calls:
        engine, found = attended(model, processor, questions, tmp_path / "found")
    assert values(found) == same(wanted)
    assert engine.batch_size == 1 or in_prefill
    assert max(rows for rows, _ in calls) > 1


def test_what_does_not_fit_alone_says_so(model, processor, questions, tmp_path):
    with watched(model, lambda rows, past: out_of_memory() if past else None):
        _, found = attended(model, processor, questions, tmp_path)
    assert [one.balance is None for own in found for one in own] == [True, False, *[True] * 7]
    assert found[2][0].reason.startswith("does not fit into memory alone: OutOfMemoryError")


def test_a_record_that_the_processor_refuses_sinks_no_batch(model, processor, questions, tmp_path):
    broken = [questions[0], questions[1] | {"images": [{"bytes": b"no image", "path": None}]}, questions[2]]
    _, found = attended(model, processor, broken, tmp_path, answers=[[(10,)], [(11,), (12, 13)], [(14, 15)]])
    assert [[one.balance is None for one in own] for own in found] == [[False], [True, True], [False]]
    assert all(one.reason for one in found[1])


def test_the_released_variant_lies_beside_the_papers(run):
    again = score(
        "demo",
        "demo",
        run.directory,
        limit=LIMIT,
        metric=("pism", "cmab"),
        cmab=CmabConfig(variant="released"),
        progress=False,
    )
    assert again.run["cmab"]["settings"]["variant"] == "released"
    assert rows(run)  # the paper's are still there
    with Store(run.directory) as store:
        name = definition(CmabConfig(variant="released"), "float32")
        assert store.count_unattended(name) == 0


@pytest.mark.parametrize("metric", [("pism", "rho"), ("pism", "pism"), (), "", "pism,", "cmab;pism"])
def test_metrics_that_are_none_are_refused(metric):
    with pytest.raises(ConfigError, match="must be pism, or pism,cmab, or cmab alone"):
        ScoringConfig(metric=metric)


def test_a_metric_is_text_or_a_sequence():
    assert ScoringConfig(metric="pism").metric == ScoringConfig().metric == ("pism",)
    assert ScoringConfig(metric="cmab, pism").metric == ("pism", "cmab")
    assert ScoringConfig(metric=["pism", "cmab"]).metric == ("pism", "cmab")


def test_cmab_is_added_to_a_finished_run(run, tmp_path):
    before = score("demo", "demo", tmp_path, limit=LIMIT, progress=False)
    assert not any(before.table["attention_balance"])
    after = score(output=tmp_path, metric="cmab", batch_size=5, progress=False)
    assert after.table["attention_balance"][:] == [
        value if value is None else pytest.approx(value, rel=1e-4) for value in run.table["attention_balance"]
    ]
    for name in set(run.table.column_names) - {"attention_balance", "attention_balance_wrong", "attention_profile"}:
        assert after.table[name][:] == run.table[name][:], name
    assert after.run["counts"]["rollouts_this_run"] == before.run["counts"]["rollouts_this_run"] > 0
    assert after.run["settings"] == before.run["settings"] | {"metric": ["pism", "cmab"]}
    assert after.run["cmab"]["model"] == "demo"
    assert after.run["counts"]["cmab_strata"] == run.run["counts"]["cmab_strata"]
    again = score(output=tmp_path, metric=("cmab",), progress=False)
    assert again.run["cmab"]["completions"] == 0  # nothing is computed twice
    same = score("demo", "demo", tmp_path, metric="cmab", progress=False)  # data and model may be given
    assert same.table.to_dict() == again.table.to_dict()


def test_cmab_of_records_from_memory_needs_them(tmp_path):
    data = load_split("demo", 3)
    score(data, "demo", tmp_path, num_masks=2, tau=0.5, ratios=(0.0, 0.5), progress=False)
    with pytest.raises(OutputError, match="from memory: name its data, as in `hardsample score DATA --metric cmab"):
        score(output=tmp_path, metric="cmab", progress=False)
    named = score("demo", output=tmp_path, metric="cmab", progress=False)
    scores = score(data, output=tmp_path, metric="cmab", progress=False)
    assert scores.run["cmab"]["completions"] == 0, "all were run through the model for the named data"
    assert named.run["cmab"]["completions"] > 0 and scores.table.to_dict() == named.table.to_dict()
    changed = data.map(lambda record: {"solution": record["solution"] + "0"})
    with pytest.raises(ChangedError):
        score(changed, output=tmp_path, metric="cmab", progress=False)


def test_cmab_alone_needs_a_finished_run_and_its_settings(run, tmp_path):
    with pytest.raises(OutputError, match="hardsample score DATA --model MODEL --metric pism,cmab --output"):
        score(output=tmp_path / "new", metric="cmab")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"tau is 0\.7, and 0\.1 in the run that cmab is added to"):
        score(output=run.directory, metric="cmab", tau=0.7)
    with pytest.raises(ConfigError, match="limit is 3, but cmab is added to all samples"):
        score(output=run.directory, metric="cmab", limit=3)


@pytest.mark.parametrize("missing", ["data", "model", "output"])
def test_what_is_missing_is_named(missing, tmp_path):
    given = {"data": "demo", "model": "demo", "output": tmp_path / "new"}
    with pytest.raises(ConfigError, match=f"{missing} is missing: give"):
        score(**(given | {missing: None}))
    assert not (tmp_path / "new").exists()


def test_a_model_without_masses_keeps_its_pism_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "hardsample.scoring.attention_pass.why_not_attention_mass", lambda model: "it is of another kind"
    )
    scores = score("demo", "demo", tmp_path, limit=3, metric=("pism", "cmab"), progress=False)
    assert scores.run["cmab"]["reason"] == "it is of another kind"
    assert scores.table["attention_balance"][:] == [None] * 3
    assert "no attention balance: it is of another kind" in capsys.readouterr().out


def test_explain_draws_a_sample(run):
    pytest.importorskip("matplotlib", reason="matplotlib draws, and is not installed")
    path = explain(run.directory, run.table[0]["id"], device="cpu")
    assert path.parent == run.directory / "explain"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def test_explain_names_the_fix_for_an_unknown_id(run):
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["explain", str(run.directory), "--id", "../nothing"])
    assert done.exit_code == 1
    assert "has no sample '../nothing': its ids look like" in done.output


def test_other_bounds_from_the_data(run):
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["stratify", str(run.directory), "--cmab-bounds", "quantile:0.1,0.3,0.7,0.9"])
    assert done.exit_code == 0, done.output
    assert "PISM and CMAB, bounds on ρ̄" in done.output
    done = CliRunner().invoke(app, ["stratify", str(run.directory), "--cmab-bounds", "3,2,1,0"])
    assert done.exit_code == 1 and "must be four ascending numbers" in done.output


@pytest.mark.parametrize("sample", ["a", "a/b", "../x", "ü" * 300, "", "x" * 300])
def test_a_figures_file_stays_in_its_folder(sample):
    name = file_name(sample)
    assert "/" not in name and not name.startswith(".") and len(name) < 120 and name.endswith(".png")


def test_ids_that_differ_give_files_that_differ():
    assert len({file_name(sample) for sample in ("a/b", "a_b", "a:b", "a b")}) == 4


def test_image_tokens_are_laid_out_in_their_grids():
    image = torch.tensor([0, *[1] * 6, 0, *[1] * 4, 0, *[1] * 3]).bool()
    weights = torch.arange(len(image)).float()

    class Processor:
        class image_processor:
            merge_size = 2

    known = {"image_grid_thw": torch.tensor([[1, 4, 6]])}
    grids = image_grids(weights, image, known, Processor)
    assert grids[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert grids[1].tolist() == [[8, 9], [10, 11]] and grids[2] is None


def test_figures_are_figures(run):
    matplotlib = pytest.importorskip("matplotlib.figure", reason="matplotlib draws, and is not installed")
    bands = [
        (0, 0.1, "easy"),
        (0.1, 0.4, "medium"),
        (0.4, 1.6, "hard"),
        (1.6, 1.9, "medium"),
        (1.9, float("inf"), "easy"),
    ]
    balances = [value for value in run.table["attention_balance"] if value]
    assert isinstance(balance_histogram(balances, bands), matplotlib.Figure)
    assert isinstance(balance_histogram([], bands), matplotlib.Figure)
    profile = {"easy": [[0.1, float("nan"), 0.3], [0.2, float("nan"), 0.1]], "hard": []}
    assert isinstance(layer_profile(profile), matplotlib.Figure)
    inf = float("inf")
    found = mean_intervals([("a", 0.5, 0.4, 0.6, [0.45, 0.55]), ("b", 0.3, -inf, inf, [0.3])], 0.2, "T")
    assert [label.get_text() for label in found.axes[0].get_yticklabels()] == ["a", "b"]
    assert isinstance(mean_intervals([("a", 0.5, 0.4, 0.6, [])], None, "T"), matplotlib.Figure)


def test_the_run_file_is_json_that_names_both_metrics(run):
    told = json.loads((run.directory / "run.json").read_text())
    assert told["settings"]["metric"] == ["pism", "cmab"]
    assert set(told["backends"]) >= {"mask_pixels", "image_processor", "attention_with_mass"}


def test_collecting_needs_the_switch(model):
    with (
        pytest.raises(ValueError, match="call use_attention_mass"),
        collect_attention_mass(model, torch.ones(1, 3, dtype=torch.long), torch.ones(1, 1)),
    ):
        pass
    with use_attention_mass(model):
        assert model.config.text_config._attn_implementation == "hardsample"
