"""Features without a model: the numbers of a sample's text and images alone, at the cost of decoding the images.

What a prefill shows (the first answer token's distribution, hidden states, tokens) is NaN. Where difficulty comes from
what the image looks like these numbers say as much; where it comes from what is asked they say little. The predictor
measures which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Self

import numpy as np

from hardsample.data.images import ImageError, open_image
from hardsample.engines.features import Features
from hardsample.engines.image_workers import default_workers
from hardsample.engines.prefill import Shown, sample_features
from hardsample.engines.protocol import Job, RunInfo, SettleFeatures
from hardsample.engines.results import EngineError, Failure

NO_MODEL = "none"
"""The name, in place of a model's, of features without one."""


class StatisticsEngine:
    """An engine without a model: it shows features, and makes no rollouts.

    Args:
        batch_size: records whose images are decoded side by side.
        max_pixels: width × height above which an image is refused.
    """

    shows_attention = False
    processor = None

    def __init__(self, batch_size: int, max_pixels: int) -> None:
        self.batch_size, self.max_pixels = batch_size, max_pixels

    @classmethod
    def from_config(cls, model: str, config: Any, notice: Callable[[str], None] = print) -> Self:
        """Make the engine; `model` is `NO_MODEL`."""
        return cls(config.batch_size or 64, config.max_pixels)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def identity(self) -> dict[str, Any]:
        """Return that there is no model."""
        return {"model": NO_MODEL}

    def run(self, job: Job) -> None:
        """Refuse: a rollout takes a model."""
        raise EngineError("without a model there are no rollouts: give --model")

    def run_info(self) -> RunInfo:
        """Return that nothing ran on a device."""
        return RunInfo("cpu", None, {}, {})

    def run_features(self, records: Iterable[Mapping[str, Any]], settle: SettleFeatures) -> None:
        """Make the features of records, batch by batch; see `FeatureEngine`."""
        left = iter(records)
        with ThreadPoolExecutor(default_workers()) as pool:
            while batch := list(islice(left, self.batch_size)):
                settle(list(zip(batch, pool.map(self._features, batch), strict=True)))

    def _features(self, record: Mapping[str, Any]) -> Features | Failure:
        try:
            images = [open_image(ref, max_pixels=self.max_pixels) for ref in record["images"][:1]]
        except ImageError as error:
            return Failure(str(error))
        return sample_features(record, np.asarray(images[0]) if images else None, Shown())
