"""Features of a training dataset: matched by id, with the kinds of the rows beside them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hardsample.demo import load_split
from hardsample.engines.features import VERSION, WIDTH
from hardsample.files import FEATURES_FILE
from hardsample.scoring.features.files import FEATURES_SCHEMA, read_features
from hardsample.scoring.features.make import add_features
from hardsample.scoring.output import OutputError
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.data.features import features_of
from hardsample.trainer.data.scored import ScoresError
from hardsample.trainer.selection.policies import PolicyConfig

SIGNAL = PolicyConfig(policy="signal")


@pytest.fixture
def folder(tmp_path):
    """Features of c, a and x, that are 3, 1 and 9 throughout."""
    values = np.repeat(np.array([3, 1, 9], dtype=np.float16), WIDTH)
    features = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
    columns = [pa.array(["c", "a", "x"]), pa.array([VERSION] * 3, pa.int32()), features]
    pq.write_table(pa.table(columns, schema=FEATURES_SCHEMA), tmp_path / FEATURES_FILE)
    return str(tmp_path)


def rows(**columns):
    return Dataset.from_dict({"id": ["a", "b", "c"], "prompt": ["1", "2", "3"], **columns})


def test_rows_get_their_own_features_and_their_kind(folder):
    found = features_of(rows(ability=["red", "blue", "red"]), DifficultyOptions(features=folder), SIGNAL)
    assert found.matrix[:, 0].tolist()[::2] == [1, 3]
    assert np.isnan(found.matrix[1, :WIDTH]).all()
    assert found.matrix[:, WIDTH:].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert found.blocks == (24, 116, 116, 2)
    assert found.matrix.dtype == np.float16


def test_a_dataset_of_one_kind_has_the_features_alone(folder):
    assert features_of(rows(), DifficultyOptions(features=folder), SIGNAL).blocks == (24, 116, 116)


def test_features_of_the_scores_are_taken_unless_told_otherwise(folder, tmp_path):
    assert features_of(rows(), DifficultyOptions(scores=folder), SIGNAL) is not None
    assert features_of(rows(), DifficultyOptions(scores=folder, features="none"), SIGNAL) is None
    (tmp_path / "bare").mkdir()
    assert features_of(rows(), DifficultyOptions(scores=str(tmp_path / "bare")), SIGNAL) is None
    assert features_of(rows(), DifficultyOptions(), SIGNAL) is None


def test_the_stock_order_needs_no_features(folder):
    assert features_of(rows(), DifficultyOptions(features=folder), PolicyConfig()) is None


def test_a_folder_without_features_is_told_the_command_that_makes_them(tmp_path):
    with pytest.raises(
        ScoresError, match=r"features is 'prefil'.* no such folder: give .* statistics, prefill or none"
    ):
        features_of(rows(), DifficultyOptions(features="prefil"), SIGNAL)
    with pytest.raises(OutputError, match=r"run `hardsample features \S+ --data DATA --model MODEL` first"):
        features_of(rows(), DifficultyOptions(features=str(tmp_path)), SIGNAL)
    (tmp_path / "scores.parquet").touch()  # a scored folder knows its data and model
    with pytest.raises(OutputError, match=r"run `hardsample features [^\s`]+` first"):
        features_of(rows(), DifficultyOptions(features=str(tmp_path)), SIGNAL)


def test_features_of_other_data_and_data_without_ids_are_errors(folder):
    with pytest.raises(ScoresError, match="none of the 2 samples has features in"):
        features_of(Dataset.from_dict({"id": ["q", "r"]}), DifficultyOptions(features=folder), SIGNAL)
    with pytest.raises(ScoresError, match="no column 'id'"):
        features_of(Dataset.from_dict({"prompt": ["q"]}), DifficultyOptions(features=folder), SIGNAL)


@pytest.fixture(scope="module")
def questions():
    return load_split("demo", 12)


@pytest.fixture(scope="module")
def made(tmp_path_factory, questions):
    """Features of twelve questions, by line number."""
    folder = tmp_path_factory.mktemp("made") / "features"
    add_features(folder, numbered(questions), "none", progress=False)
    return str(folder)


def numbered(questions):
    return questions.remove_columns("id").add_column("id", [str(row) for row in range(len(questions))])


def test_features_are_found_by_content_where_lines_have_moved(made, questions, caplog):
    moved = numbered(questions.select(range(3, 12)))
    found = features_of(moved, DifficultyOptions(features=made), SIGNAL)
    np.testing.assert_array_equal(found.matrix[:, :WIDTH], read_features(made)[1][3:])
    assert "9 of 9 records have moved" in caplog.text


def test_features_of_other_content_under_the_same_id_are_refused(made, questions):
    changed = numbered(questions).map(lambda row: {"images": questions[0]["images"]} if row["id"] == "5" else {})
    with pytest.raises(ScoresError, match=r"'5'"):
        features_of(changed, DifficultyOptions(features=made), SIGNAL)


def test_features_without_digests_are_found_by_id_and_said_not_to_be_checked(folder, caplog):
    assert features_of(rows(), DifficultyOptions(features=folder), SIGNAL) is not None
    assert "holds no digests of its samples" in caplog.text
