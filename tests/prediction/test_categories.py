"""Kinds of samples as features: one column for each frequent value."""

import numpy as np

from hardsample.prediction.categories import MOST_VALUES, category_features


def test_each_frequent_value_has_a_column_of_zeros_and_ones():
    columns = {"ability": ["a", "b", "b", None], "source": ["x", "y", "x", "x"]}
    assert category_features(columns).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 1, 0]]


def test_a_column_that_tells_nothing_apart_has_none():
    assert category_features({"ability": ["a", "a"], "source": [None, None]}).shape == (2, 0)
    assert category_features({}).shape == (0, 0)


def test_known_and_unknown_are_told_apart():
    assert category_features({"ability": ["a", None, "a"]}).tolist() == [[1], [0], [1]]


def test_rare_values_beyond_the_limit_share_no_column():
    values = [f"v{index % 50:02}" for index in range(100)] + ["v49"] * 5
    features = category_features({"ability": values})
    assert features.shape == (105, MOST_VALUES)
    assert features[-1].sum() == 1  # the most frequent one has a column
    assert np.isin(features.sum(1), (0, 1)).all()
