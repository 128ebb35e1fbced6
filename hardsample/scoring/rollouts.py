"""A scoring job as its engine sees it: hand out rollouts, grade and commit what comes back, until all ladders are done.

How many are handed out at a time is the engine's business: batches, or as many requests as a server bears.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from hardsample.data.images import image_header
from hardsample.data.loading import Rejection
from hardsample.engines.features import encoder_name
from hardsample.engines.protocol import Request
from hardsample.engines.results import Completion, Failure
from hardsample.errors import HardsampleError
from hardsample.grading.grader import Grader
from hardsample.metrics.finishes import unanswered
from hardsample.metrics.ladders import Ask, Ladder, Queue
from hardsample.metrics.options import budget_rollouts
from hardsample.metrics.pism import BLIND_RATIO, max_rollouts
from hardsample.prediction.adaptive import Estimate
from hardsample.scoring.adaptive.queue import RoundQueue
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.forecast import Forecast, RoundForecast
from hardsample.scoring.progress import RunProgress
from hardsample.scoring.store import Rollout, Store


class RejectedError(HardsampleError, ValueError):
    """`strict` met a record that cannot be scored."""


class RolloutJob:
    """The rollouts of a run, handed out to an engine, then graded and committed; see `engines.protocol.Job`.

    Args:
        dataset: the records that can be scored.
        grader: grades completions.
        store: of the folder; samples that it holds rollouts of start as far as these go.
        config: settings of the job.
        bar: shows how far the run is.
        rejected: records that are rejected already; those that turn out bad are added.

    Attributes:
        rollouts: made by this run, those that the store already held not counted.
        grade_seconds: time in the grader.
    """

    def __init__(
        self,
        dataset: Dataset,
        grader: Grader,
        store: Store,
        config: ScoringConfig,
        bar: RunProgress,
        rejected: list[Rejection],
    ) -> None:
        self.grader, self.store, self.config, self.bar, self.rejected = grader, store, config, bar, rejected
        self._done: list[Ladder] = []
        self.rollouts, self.grade_seconds = 0, 0.0
        self._encoder = encoder_name(store.settings())
        self._under_way: dict[tuple[str, float, int], Ask] = {}
        self._queue: Queue | RoundQueue
        if config.search == "adaptive":
            self._queue = RoundQueue(dataset, images_there(dataset), store, config, self._finish, bar)
            return
        self._queue = Queue(
            (
                Ladder(row, record, config, store.grades(record["id"]), store.unanswered(record["id"]))
                for row, record in enumerate(dataset)
            ),
            self._finish,
        )

    @property
    def finished(self) -> Sequence[Ladder]:
        """Ladders of the samples that are done and not rejected, in order; an adaptive search rejects or has them."""
        if isinstance(self._queue, RoundQueue):
            return self._queue.ladders()
        return sorted(self._done, key=lambda ladder: ladder.row)

    def estimate(self) -> Estimate | None:
        """Return what an adaptive search knows of every row of the dataset; None of the other searches."""
        return self._queue.search.estimate() if isinstance(self._queue, RoundQueue) else None

    def take(self, size: int) -> list[Request]:
        """Up to `size` rollouts to make now, all of records with images or all of records without."""
        asks = self._queue.take(size)
        requests = [Request(ask.ladder.record, ask.ratio, ask.realization) for ask in asks]
        self._under_way |= {request.key: ask for request, ask in zip(requests, asks, strict=True)}
        return requests

    def fills(self, size: int) -> bool:
        """Whether `take(size)` would be full now."""
        return self._queue.fills(size)

    def settle(self, results: Sequence[tuple[Request, Completion | Failure]], under_way: int, note: str = "") -> None:
        """Grade results and commit them in one transaction, then ask for what follows from them.

        Args:
            results: of requests that were taken.
            under_way: rollouts that are made side by side.
            note: shown behind the progress.
        """
        asks = [self._under_way.pop(request.key) for request, _ in results]
        made = [(ask, result) for ask, (_, result) in zip(asks, results, strict=True) if isinstance(result, Completion)]
        for (ask, completion), grade in zip(made, self._commit(made), strict=True):
            before = None if ask.ratio == BLIND_RATIO else ask.ladder.position
            answered = not unanswered(completion.finish, grade)
            ask.ladder.record_grade(ask.ratio, ask.realization, grade, answered)
            if not ask.ladder.finished:  # a sample rejected meanwhile is no longer in the forecast
                self.bar.forecast.record_rollout(before, ask.ladder.position, grade)
        for ask, (_, result) in zip(asks, results, strict=True):
            if isinstance(result, Failure):
                ask.ladder.rejected = f"column images or prompt: {result.reason}" if result.of_record else result.reason
        for ladder in {id(ask.ladder): ask.ladder for ask in asks}.values():
            self._queue.advance(ladder)
        self.bar.update(under_way, note)

    def _commit(self, made: Sequence[tuple[Ask, Completion]]) -> list[int]:
        """Grade completions and write them to the store; their grades, in order."""
        began = time.perf_counter()
        boxes = self.config.answer_boxes
        pairs = [(completion.text, gradable(ask.ladder.record, boxes)) for ask, completion in made]
        grades = [int(grade) for grade in self.grader.grade_many(pairs)]
        self.grade_seconds += time.perf_counter() - began
        rollouts = [
            Rollout(
                ask.ladder.record["id"],
                ask.ratio,
                ask.realization,
                completion.text,
                grade,
                completion.tokens,
                completion.finish,
            )
            for (ask, completion), grade in zip(made, grades, strict=True)
        ]
        features = {
            ask.ladder.record["id"]: completion.features for ask, completion in made if completion.features is not None
        }
        self.store.commit(rollouts, features, self._encoder)
        self.rollouts += len(made)
        return grades

    def _finish(self, ladder: Ladder) -> None:
        self.bar.finished += 1
        if ladder.rejected is None:
            ladder.record = {
                name: ladder.record[name] for name in ("id", "ability", "record_number")
            }  # let go of images and text
            self._done.append(ladder)
            return
        self.bar.forecast.drop(ladder)
        rejection = Rejection(int(ladder.record["record_number"]), ladder.record["id"], ladder.rejected)
        if self.config.strict:
            raise RejectedError(sentence(rejection))
        self.rejected.append(rejection)


def forecast_of(dataset: Dataset, store: Store, config: ScoringConfig) -> Forecast | RoundForecast:
    """Give what a run has before it: all samples, those that the store holds rollouts of as far as these go."""
    has_image = images_there(dataset)
    if config.search == "adaptive":
        exhaustive = sum(max_rollouts(config, image) for image in has_image)
        return RoundForecast(store.count(), budget_rollouts(config.budget, exhaustive) if config.budget else None)
    forecast = Forecast(config, sum(has_image), len(dataset) - sum(has_image))
    if store.count():
        for row, (sample, image) in enumerate(zip(dataset["id"], has_image, strict=True)):
            if grades := store.grades(sample):
                forecast.resume(Ladder(row, {"images": [sample] if image else []}, config, grades), len(grades))
    return forecast


def images_there(dataset: Dataset) -> list[bool]:
    """Whether each record has an image; no image's bytes are read."""
    images = dataset.data.column("images")  # of the table behind any selection
    has_image = pc.greater(pc.fill_null(pc.list_value_length(images), 0), 0)
    return (has_image if dataset._indices is None else has_image.take(dataset._indices.column(0))).to_pylist()


def gradable(record: Mapping[str, Any], answer_boxes: str | None) -> Mapping[str, Any]:
    """Give what the grader reads: of boxes also in which space the model writes them, and the size of the image."""
    if record["grader"] not in ("grounding", "detection") or not record["images"]:
        return record
    width, height, _ = image_header(record["images"][0])
    space = record["box_format"] or "pixels"
    return {**record, "box_format": space, "answer_format": answer_boxes or space, "image_size": (width, height)}


def sentence(rejection: Rejection) -> str:
    """Give a rejected record as an error says it."""
    return f"record {rejection.number} (id {rejection.id!r}): {rejection.reason}"
