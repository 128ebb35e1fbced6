"""Predictions of samples that nobody rolled out: worth something, honest when they are not, resumed, refused."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import beta

import hardsample
from hardsample.demo import load_split, model_path
from hardsample.engines.features import VERSION, WIDTH
from hardsample.errors import ConfigError, NothingToScoreError
from hardsample.files import FEATURES_STORE
from hardsample.metrics.beta import spread_probability
from hardsample.prediction.predictor import fit
from hardsample.report.predicted import check_lines, prediction_lines
from hardsample.scoring.features.files import read_features
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.predicting.check import check
from hardsample.scoring.predicting.predict import predict
from hardsample.scoring.predicting.predictions import PREDICTIONS_SCHEMA, Predictions
from hardsample.scoring.predicting.references import References, held_out_skill, read_references, with_abilities
from hardsample.scoring.store import Store, StoreError

QUIET = {"progress": False, "device": "cpu"}
SCORED, ATTEMPTS = 150, 4
SAMPLES, GROUP = 250, 8


@pytest.fixture
def scored(predicted_folder, tmp_path):
    """A copy of the scored folder."""
    return shutil.copytree(predicted_folder / "scored", tmp_path / "scored")


@pytest.fixture
def predicted(predicted_folder, tmp_path):
    """A copy of the predictions, whose features need not be made again."""
    return shutil.copytree(predicted_folder / "predicted", tmp_path / "predicted")


def rewritten(path, **columns):
    """Replace columns of a parquet file; its metadata stay."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)


def column(predictions, name):
    return np.array(predictions.table[name])


def test_columns_are_of_a_beta_distribution_and_say_where_they_are_from(predicted_folder):
    predictions = hardsample.Predictions(predicted_folder / "predicted")
    assert len(predictions) == SAMPLES
    assert pq.read_schema(predicted_folder / "predicted" / "predictions.parquet").equals(PREDICTIONS_SCHEMA)
    assert list(predictions.table["id"]) == [f"pool-{index:06d}" for index in range(SAMPLES)]
    assert list(predictions.table["source"]) == ["measured"] * SCORED + ["predicted"] * (SAMPLES - SCORED)
    low, mean, high = (
        column(predictions, name) for name in ("success_rate_low", "predicted_success_rate", "success_rate_high")
    )
    assert ((low >= 0) & (low < high) & (high <= 1)).all() and (mean > low).mean() > 0.9
    assert (high - low)[:SCORED].mean() < (high - low)[SCORED:].mean(), "what was rolled out is known better"
    about = predictions.about
    assert (about["samples"], about["predicted"], about["measured"], about["failed"]) == (250, 100, 150, {})
    assert (about["num_generations"], about["temperature"], about["references"]) == (GROUP, 0.7, SCORED)
    assert about["scored"] == str(predicted_folder / "scored") and about["data"] == "demo:pool"
    assert about["features"]["fingerprint"] == Scores(about["scored"]).run["features"]["fingerprint"]


def test_a_measured_sample_has_its_held_out_prediction_and_its_counts(predicted_folder):
    scores, predictions = Scores(predicted_folder / "scored"), Predictions(predicted_folder / "predicted")
    references = read_references(scores)
    features, blocks = with_abilities(
        np.concatenate([references.features, read_features(predictions.directory)[1]]),
        [*references.abilities, *predictions.table["ability"]],
    )
    predictor = fit(features[:SCORED], references.successes, references.attempts, blocks)
    alpha = predictor.held_out.alpha + references.successes
    failures = predictor.held_out.beta + references.attempts - references.successes
    rows = predictions.table.select(range(SCORED))
    np.testing.assert_allclose(rows["predicted_success_rate"], alpha / (alpha + failures))
    np.testing.assert_allclose(rows["success_rate_low"], beta.ppf(0.1, alpha, failures))
    np.testing.assert_allclose(rows["success_rate_high"], beta.ppf(0.9, alpha, failures))
    np.testing.assert_allclose(rows["predicted_signal"], spread_probability(alpha, failures, GROUP))
    others = predictor.predict(features[2 * SCORED :]).mean
    # the last bits of a matrix product depend on how many rows it has
    np.testing.assert_allclose(column(predictions, "predicted_success_rate")[SCORED:], others, rtol=1e-5)


def test_predictions_beat_the_base_rate_on_samples_rolled_out_later(predicted_folder):
    predictions, measured = Predictions(predicted_folder / "predicted"), Scores(predicted_folder / "checked")
    about = predictions.about
    assert about["useful"] and about["skill"]["gain"] > 0.05 and about["skill"]["pearson"] > 0.4
    checked = check(predictions, measured)
    assert (checked.samples, checked.rollouts) == (100, 800)
    assert checked.pearson > 0.4 and checked.auroc > 0.65 and checked.calibration_error < 0.15
    assert sum(group.samples for group in checked.groups) == 100 and len(checked.groups) == 5
    assert checked.groups[-1].measured > checked.groups[0].measured + 0.2
    rate = {
        sample: counts[0] / GROUP
        for sample, counts in zip(measured.table["id"], measured.table["successes"], strict=True)
    }
    rates = np.array([rate[sample] for sample in list(predictions.table["id"])[SCORED:]])
    mean = column(predictions, "predicted_success_rate")[SCORED:]
    assert ((mean - rates) ** 2).mean() < 0.85 * ((about["base_rate"] - rates) ** 2).mean()
    lines = list(check_lines(checked))
    assert "800 rollouts" in lines[0] and lines[1].count("%") == lines[2].count("%") == 5


def test_the_top_is_where_signal_is(predicted_folder):
    predictions = Predictions(predicted_folder / "predicted")
    signal = dict(zip(predictions.table["id"], predictions.table["predicted_signal"], strict=True))
    top = predictions.top(0.1)
    assert len(top) == 25 and min(signal[sample] for sample in top) >= sorted(signal.values())[-25]
    assert [signal[sample] for sample in top] == sorted((signal[sample] for sample in top), reverse=True)
    shares = predictions.about["signal_of_top"]
    assert shares["0.1"] == pytest.approx(np.mean([signal[sample] for sample in top]))
    assert shares["0.1"] > shares["0.25"] > shares["0.5"] > shares["1"] == pytest.approx(np.mean([*signal.values()]))
    with pytest.raises(ValueError, match="share is 0, must be above 0"):
        predictions.top(0)


def test_noise_falls_back_to_the_base_rate_and_says_so(scored, predicted):
    noise = np.random.default_rng(0).normal(size=(SCORED, WIDTH)).astype(np.float16)
    rewritten(scored / "features.parquet", features=list(noise))
    rewritten(scored / "scores.parquet", ability=[None] * SCORED)
    predictions = predict(scored, load_unable(), output=predicted.with_name("new"), **QUIET)
    assert predictions.about["useful"] is False
    rates = column(predictions, "predicted_success_rate")
    assert len(rates) == 8 and len(set(rates)) == 1
    assert rates[0] == pytest.approx(predictions.about["base_rate"])
    counts = Scores(scored).table["successes"]
    assert rates[0] == pytest.approx(sum(wins for (wins,) in counts) / (ATTEMPTS * SCORED), abs=0.03)
    said = "\n".join(prediction_lines(predictions))
    assert "no better than the base rate does, so every sample gets the base rate" in said


def load_unable():
    """A few questions that were not scored, without an ability."""
    return load_split("demo:pool", SCORED + 8).select(range(SCORED, SCORED + 8)).remove_columns("ability")


def test_only_missing_features_are_made_again(predicted_folder, predicted):
    kept = np.full(WIDTH, 3.0, "<f2").tobytes()
    with Store(predicted, FEATURES_STORE) as store:
        store._database.execute("DELETE FROM features WHERE id >= 'pool-000245'")
        store._database.execute("UPDATE features SET data = ? WHERE id = 'pool-000160'", (kept,))
    (predicted / "predictions.parquet").unlink()
    again = predict(predicted_folder / "scored", "demo:pool", output=predicted, limit=SAMPLES, **QUIET)
    assert (read_features(predicted)[1][160] == 3).all(), "what is there is not made again"
    before = column(Predictions(predicted_folder / "predicted"), "predicted_success_rate")
    changed = np.flatnonzero(abs(column(again, "predicted_success_rate") - before) > 0.02)
    assert set(changed) <= {160}
    with pytest.raises(StoreError, match="at least the same --limit"):
        predict(predicted_folder / "scored", "demo:pool", output=predicted, limit=20, **QUIET)


def test_the_same_id_with_other_content_is_not_measured(predicted_folder, tmp_path):
    data = load_split("demo:pool", 4)
    others = load_split("demo:test", 1).remove_columns("id").add_column("id", ["pool-000001"])
    records = [*data.select([0, 2]), *others]
    mixed = data.from_list(records, features=data.features)
    predictions = predict(predicted_folder / "scored", mixed, output=tmp_path / "new", **QUIET)
    assert list(predictions.table["source"]) == ["measured", "measured", "predicted"]


def test_unfinished_samples_are_no_references(scored):
    strata = ["unfinished"] * 5 + ["easy"] * (SCORED - 5)
    rewritten(scored / "scores.parquet", pism_stratum=strata)
    references = read_references(Scores(scored))
    assert len(references.ids) == SCORED - 5 and references.ids[0] == "pool-000005"
    rewritten(scored / "scores.parquet", pism_stratum=["unfinished"] * SCORED)
    with pytest.raises(NothingToScoreError, match=r"no sample of .* has both features and finished rollouts"):
        read_references(Scores(scored))


@pytest.mark.parametrize(("data", "model"), [("demo:pool", "demo"), ("datasets.Dataset", "none")])
def test_features_without_outcomes_are_refused_with_the_command_that_scores(tmp_path, data, model):
    content = {"data": data, "features": {"model": model}}
    (tmp_path / "features.json").write_text(json.dumps(content))
    command = "score demo:pool --model demo" if model == "demo" else "score DATA --model MODEL"
    with pytest.raises(
        OutputError, match=f"learnt from outcomes: .*`hardsample {command} --limit 300 --output SCORED`"
    ):
        predict(tmp_path, "demo:pool", output=tmp_path / "new", **QUIET)
    assert not (tmp_path / "new").exists()


def test_features_that_do_not_fit_are_refused(scored, tmp_path):
    rewritten(scored / "features.parquet", version=[VERSION + 1] * SCORED)
    with pytest.raises(
        OutputError, match=rf"features of version {VERSION + 1}, must be {VERSION}: run `hardsample feat"
    ):
        predict(scored, "demo:pool", output=tmp_path / "new", **QUIET)
    (scored / "features.parquet").unlink()
    with pytest.raises(OutputError, match=r"has no features.parquet: run `hardsample features"):
        predict(scored, "demo:pool", output=tmp_path / "new", **QUIET)
    assert not (tmp_path / "new").exists()


def test_another_model_is_refused_before_its_features_are_made(predicted_folder, tmp_path):
    other = shutil.copytree(model_path(), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"note": "another"}))
    with pytest.raises(ConfigError, match=r"leave out --model and --dtype, or run `hardsample features .* --encoder"):
        predict(predicted_folder / "scored", "demo:pool", str(other), tmp_path / "new", limit=5, **QUIET)
    with Store(tmp_path / "new", FEATURES_STORE) as store:
        assert store._database.execute("SELECT count(*) FROM features").fetchone() == (0,)


def test_what_is_missing_is_named(predicted_folder, tmp_path):
    folder = predicted_folder / "scored"
    for arguments, message in (
        ({"output": tmp_path / "new"}, "data is missing: give a file"),
        ({"data": "demo"}, "output is missing: give a folder"),
        (
            {"data": "demo", "output": tmp_path / "new", "num_generations": 1},
            "num_generations is 1, must be an integer",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            hardsample.predict(folder, **arguments)
    with pytest.raises(OutputError, match="holds a scoring: choose another --output"):
        predict(folder, "demo", output=folder)
    with pytest.raises(OutputError, match="holds no predictions: run `hardsample predict"):
        Predictions(folder)
    with pytest.raises(NothingToScoreError, match="has scored no sample that"):
        check(Predictions(predicted_folder / "predicted"), Scores(folder))


def test_skill_of_counts_that_stop_at_a_success_is_measured_without_their_bias():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 3))
    rates = 1 / (1 + np.exp(-2 * features[:, 0]))
    grades = rng.random((600, 10)) < rates[:, None]
    attempts = np.where(grades.any(1), grades.argmax(1) + 1, 10)
    successes = grades.any(1).astype(int)
    predictor = fit(features, successes, attempts)
    references = References([], [], features, successes, attempts, np.arange(600))
    skill = held_out_skill(predictor, references, "lossless")
    assert predictor.skill.calibration_error > 0.1, "1 of 1, 1 of 2 … are too high as rates"
    assert abs(predictor.held_out.mean - rates).mean() < 0.12
    assert skill.calibration_error < 0.06 and np.isnan(skill.auroc) and skill.useful
    assert held_out_skill(predictor, references, "exhaustive") == predictor.skill
