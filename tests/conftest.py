"""What several tests use: the embedded model, loaded once, and the first of its questions."""

import pytest

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor


@pytest.fixture(scope="session")
def processor():
    return load_processor(str(model_path()))


@pytest.fixture(scope="session")
def model():
    return load_model(str(model_path()), "cpu")


@pytest.fixture(scope="session")
def questions():
    """The first 60 questions of the demo, as a list of records."""
    return list(load_split("demo:pool", 60))
