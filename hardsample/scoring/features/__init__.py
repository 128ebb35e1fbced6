"""Features of samples in a folder: read, write, and the job that adds those that are missing.

>>> from hardsample.scoring.features import add_features, read_features
>>> add_features("runs/mine")                                            # a scored folder
>>> add_features("runs/new", "data.jsonl", "Qwen/Qwen2.5-VL-3B-Instruct")  # data that nobody scored
>>> add_features("runs/quick", "data.jsonl", "none")                       # text and images only, no prefill
>>> ids, matrix = read_features("runs/new")

`hardsample.engines.features` says what they are.
"""

from hardsample.scoring.features.files import read_features
from hardsample.scoring.features.make import add_features

__all__ = ["add_features", "read_features"]
