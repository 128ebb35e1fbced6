"""The layout of a sample's features: packed numbers, the fixed projection, and what the numbers are."""

import hashlib

import numpy as np
import pytest

from hardsample.engines.features import (
    BYTES,
    CLIP,
    IMAGE,
    LAST,
    NUMBERS,
    STATE,
    VERSION,
    WIDTH,
    distribution_numbers,
    encoder_name,
    image_numbers,
    pack,
    project,
    projection,
    text_numbers,
)

GOLDEN = "f216c7869834cf021bb050fd12f13bdebfebcfaa7f4485769778d3feac15419d"
"""SHA-256 of the projection of 64 dimensions, to four decimals."""


def number(features, name):
    return float(features[NUMBERS.index(name)])


def test_the_layout_has_room_for_all_and_nothing_overlaps():
    positions = [*range(len(NUMBERS)), *range(WIDTH)[LAST], *range(WIDTH)[IMAGE]]
    assert len(set(positions)) == len(positions) == len(NUMBERS) + 2 * STATE
    assert BYTES == 512 == pack({}).nbytes


def test_numbers_and_states_are_where_their_names_say():
    rng = np.random.default_rng(0)
    last, image = rng.standard_normal((2, 300)).astype(np.float32)
    features = pack({"entropy": 1.5, "options": 0.25}, 3 * last, image)
    assert features.dtype == np.float16 and features.shape == (WIDTH,)
    assert (number(features, "entropy"), number(features, "options")) == (1.5, 0.25)
    assert number(features, "last_norm") == pytest.approx(np.log(3 * np.sqrt(np.mean(last**2))), abs=1e-3)
    assert number(features, "last_norm") - number(features, "image_norm") == pytest.approx(np.log(3), abs=0.1)
    assert np.isnan(number(features, "pixels")) and np.isnan(features[len(NUMBERS) : LAST.start]).all()
    unit = np.clip(last / np.sqrt(np.mean(last**2)), -CLIP, CLIP)
    np.testing.assert_allclose(features[LAST].astype(float), project(unit), atol=4e-3)
    assert not np.allclose(features[LAST], features[IMAGE], atol=0.1)


def test_what_is_not_known_is_nan_and_a_narrow_state_is_kept_as_it_is():
    narrow = np.linspace(-1, 1, 32)
    features = pack({}, last=narrow)
    np.testing.assert_allclose(features[LAST][:32].astype(float), narrow / np.sqrt(np.mean(narrow**2)), rtol=1e-3)
    assert np.isnan(features[LAST][32:]).all() and np.isnan(features[IMAGE]).all()
    assert np.isnan(pack({})).all()


def test_a_few_huge_dimensions_do_not_drown_the_others():
    state = np.ones(2_000, dtype=np.float32)
    state[5] = 1e30
    features = pack({}, state)
    assert np.isfinite(features[LAST]).all() and np.abs(features[LAST]).max() <= CLIP
    assert np.isfinite(pack({}, np.zeros(2_000))[LAST]).all()


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="there is no feature 'entropi': names are entropy"):
        pack({"entropi": 1.0})


def test_the_projection_is_the_same_for_ever():
    matrix = projection(64)
    rounded = np.round(matrix.astype(np.float64) * 1e4).astype("<i4")  # of libm only the last digits may differ
    assert VERSION == 1, "another layout or projection needs another hash here"
    assert hashlib.sha256(rounded.tobytes()).hexdigest() == GOLDEN
    assert matrix.shape == (64, STATE) and not np.allclose(projection(65)[:64], matrix)


def test_the_projection_keeps_lengths_and_angles():
    states = np.random.default_rng(1).standard_normal((40, 2_048))
    kept = project(states)
    assert np.linalg.norm(kept, axis=1) / np.linalg.norm(states, axis=1) == pytest.approx(1, abs=0.3)
    near = project(states + 0.1 * states[::-1])
    cosine = (near * kept).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(kept, axis=1)
    assert (cosine > 0.95).all()


def test_the_numbers_of_a_distribution():
    logs = np.log([0.5, 0.25, 0.125, 0.125])
    numbers = distribution_numbers(logs, ends=[2, 3])
    assert numbers["entropy"] == pytest.approx(1.75 * np.log(2))
    assert numbers["varentropy"] == pytest.approx(0.6875 * np.log(2) ** 2)
    assert numbers["end_logprob"] == pytest.approx(np.log(0.25))
    assert [numbers[f"logprob_{rank}"] for rank in (1, 2, 3, 4)] == pytest.approx(sorted(logs, reverse=True))
    assert "logprob_5" not in numbers


def test_of_a_server_the_rest_counts_as_one_token():
    numbers = distribution_numbers(np.log([0.5, 0.25]))
    assert numbers["entropy"] == pytest.approx(1.5 * np.log(2))
    assert "end_logprob" not in numbers
    certain = distribution_numbers(np.array([0.0, -9999.0]))
    assert certain["entropy"] == certain["varentropy"] == 0 and certain["logprob_2"] == -20


def test_the_numbers_of_an_image():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = (255, 0, 0)
    numbers = image_numbers(pixels)
    assert numbers["aspect"] == pytest.approx(np.log(2)) and numbers["pixels"] == pytest.approx(np.log(3200))
    assert numbers["brightness"] == pytest.approx(1 / 6) and numbers["contrast"] == pytest.approx(1 / 6)
    assert numbers["saturation"] == pytest.approx(0.5) and numbers["edges"] == pytest.approx(1 / 3 / 79 / 2)
    line = image_numbers(np.full((1, 9, 3), 255, np.uint8))
    assert (line["brightness"], line["edges"], line["saturation"]) == (1, 0, 0)
    large = image_numbers(np.repeat(np.repeat(pixels, 30, 0), 30, 1))
    assert large["brightness"] == pytest.approx(numbers["brightness"], abs=0.01)


def test_the_numbers_of_a_text():
    assert text_numbers(0, 0, 0) == {"characters": 0, "options": 0, "images": 0}
    assert text_numbers(99, 4, 1) == pytest.approx(
        {"characters": np.log(100), "options": np.log(5), "images": np.log(2)}
    )


def test_features_of_another_model_or_dtype_are_kept_apart():
    names = {encoder_name({"model": m, "dtype": d}) for m in ("a", "b") for d in ("float16", "float32")}
    assert len(names) == 4 and encoder_name({"model": "served", "engine": "openai"}) == "served"
