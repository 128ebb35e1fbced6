"""hardsample: find the image-and-text samples worth training a vision-language model on, and train on them.

>>> import hardsample
>>> scores = hardsample.score("data.jsonl", model="Qwen/Qwen2.5-VL-3B-Instruct", output="runs/mine")
>>> hard = scores.subset("medium+hard")

Each name below is imported when it is first used, so that ``import hardsample`` costs nothing.
"""

import sys as _sys
from importlib.machinery import ModuleSpec as _ModuleSpec
from importlib.machinery import PathFinder as _PathFinder
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from hardsample.data.loading import load as load_dataset
    from hardsample.evaluation.evaluate import evaluate
    from hardsample.report.compared import compare
    from hardsample.report.page import write_report
    from hardsample.scoring.output import Scores
    from hardsample.scoring.predicting.predict import predict
    from hardsample.scoring.predicting.predictions import Predictions
    from hardsample.scoring.score import score

__version__ = "0.1.0"
__all__ = ["Predictions", "Scores", "compare", "evaluate", "load_dataset", "predict", "score", "write_report"]

_HOMES = {
    "Predictions": ("scoring.predicting.predictions", "Predictions"),
    "Scores": ("scoring.output", "Scores"),
    "compare": ("report.compared", "compare"),
    "evaluate": ("evaluation.evaluate", "evaluate"),
    "load_dataset": ("data.loading", "load"),
    "predict": ("scoring.predicting.predict", "predict"),
    "score": ("scoring.score", "score"),
    "write_report": ("report.page", "write_report"),
}


class _Checkout:
    """Finds kernels/ and trainer/ beside this folder, where a repository has them, and nothing else that lies there.

    setuptools maps them to hardsample.kernels and hardsample.trainer, but only once it has installed the package; this
    also holds for a checkout on PYTHONPATH. kernels/ has no __init__.py, so that the PyPI package `kernels`, which
    transformers imports, is never shadowed from the repository root.
    """

    root = str(_Path(__file__).parent.parent)

    @classmethod
    def find_spec(cls, name: str, path: _Any = None, target: _Any = None) -> _ModuleSpec | None:
        if name in ("hardsample.kernels", "hardsample.trainer"):
            return _PathFinder.find_spec(name, [cls.root])
        return None


if not _Path(__file__).with_name("kernels").is_dir():
    _sys.meta_path.insert(0, _Checkout)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
