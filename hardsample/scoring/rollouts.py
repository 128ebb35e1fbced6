"""The loop of a scoring job: ask for rollouts, grade and commit what comes back, until every ladder is done.

An engine on this machine is given batches; a server is given single requests, as many at a time as it bears.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from hardsample.data.images import image_header
from hardsample.data.loading import Rejection
from hardsample.engines.openai import OpenAIEngine
from hardsample.engines.preparing import Request, preparing_thread
from hardsample.engines.results import Completion, EngineError, Failure
from hardsample.engines.transformers import Prepared, TransformersEngine
from hardsample.errors import HardsampleError
from hardsample.grading.grader import Grader
from hardsample.metrics.finishes import unanswered
from hardsample.metrics.ladders import Ask, Ladder, Queue
from hardsample.metrics.pism import BLIND_RATIO
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.forecast import Forecast
from hardsample.scoring.progress import RunProgress
from hardsample.scoring.store import Rollout, Store


class RejectedError(HardsampleError, ValueError):
    """`strict` met a record that cannot be scored."""


@dataclass
class Job:
    """What a run works with, and what it has done so far."""

    dataset: Dataset
    grader: Grader
    store: Store
    config: ScoringConfig
    bar: RunProgress
    rejected: list[Rejection]
    finished: list[Ladder] = field(default_factory=list)
    rollouts: int = 0
    """Made by this run, in the store's earlier ones not counted."""
    grade_seconds: float = 0.0
    wait_seconds: float = 0.0

    def queue(self) -> Queue:
        """All samples, those that the store holds rollouts of as far as these go."""
        return Queue(
            (
                Ladder(row, record, self.config, self.store.grades(record["id"]), self.store.unanswered(record["id"]))
                for row, record in enumerate(self.dataset)
            ),
            self._finish,
        )

    def settle(self, asks: list[Ask], results: list[Completion | Failure]) -> list[Ladder]:
        """Grade rollouts, commit them in one transaction, and tell their ladders, which are returned."""
        made = [(ask, result) for ask, result in zip(asks, results, strict=True) if isinstance(result, Completion)]
        began = time.perf_counter()
        boxes = self.config.answer_boxes
        grades = self.grader.grade_many([(result.text, gradable(ask.ladder.record, boxes)) for ask, result in made])
        self.grade_seconds += time.perf_counter() - began
        self.store.commit(
            Rollout(
                ask.ladder.record["id"],
                ask.ratio,
                ask.realization,
                result.text,
                int(grade),
                result.tokens,
                result.finish,
            )
            for (ask, result), grade in zip(made, grades, strict=True)
        )
        self.rollouts += len(made)
        for (ask, completion), grade in zip(made, grades, strict=True):
            before = None if ask.ratio == BLIND_RATIO else ask.ladder.position
            answered = not unanswered(completion.finish, int(grade))
            ask.ladder.record_grade(ask.ratio, ask.realization, int(grade), answered)
            if not ask.ladder.finished:  # one that was refused meanwhile is no longer reckoned with
                self.bar.forecast.record_rollout(before, ask.ladder.position, int(grade))
        for ask, result in zip(asks, results, strict=True):
            if isinstance(result, Failure):
                ask.ladder.rejected = f"column images or prompt: {result.reason}" if result.of_record else result.reason
        return list({id(ask.ladder): ask.ladder for ask in asks}.values())

    def _finish(self, ladder: Ladder) -> None:
        self.bar.finished += 1
        if ladder.rejected is None:
            ladder.record = {name: ladder.record[name] for name in ("id", "ability")}  # let go of images and text
            self.finished.append(ladder)
            return
        self.bar.forecast.drop(ladder)
        rejection = Rejection(int(ladder.record["record_number"]), ladder.record["id"], ladder.rejected)
        if self.config.strict:
            raise RejectedError(sentence(rejection))
        self.rejected.append(rejection)


def run_batches(job: Job, engine: TransformersEngine) -> None:
    """Work through all ladders: while the model generates one batch, the next is prepared, if it would be full."""
    queue = job.queue()
    with preparing_thread(engine.model.device) as preparing:

        def start(asks: list[Ask]) -> tuple[list[Ask], Future[Prepared]] | None:
            return (asks, preparing.submit(engine.prepare, [request(ask) for ask in asks])) if asks else None

        current = start(queue.take(engine.batch_size))
        while current:
            asks, future = current
            waited = time.perf_counter()
            prepared = future.result()
            job.wait_seconds += time.perf_counter() - waited
            ahead = start(queue.take(engine.batch_size)) if queue.fills(engine.batch_size) else None
            for ladder in job.settle(asks, engine.generate(prepared)):
                queue.advance(ladder)
            job.bar.update(len(asks))
            current = ahead or start(queue.take(engine.batch_size))


def run_requests(job: Job, engine: OpenAIEngine) -> None:
    """Work through all ladders with as many requests in flight as the server bears; what came back is committed."""
    queue = job.queue()
    with engine.flight() as flight:
        while True:
            while (room := flight.room) > 0 and (asks := queue.take(room)):
                for ask in asks:
                    flight.start(ask, request(ask))
            if not flight.under_way:
                break
            waited = time.perf_counter()
            landed = flight.landed()
            engine.seconds.generate += time.perf_counter() - waited
            for ladder in job.settle([ask for ask, _ in landed], [result for _, result in landed]):
                queue.advance(ladder)
            job.bar.update(flight.under_way, f"{flight.under_way} in flight, {engine.retried} retries")
    if engine.refusal and not job.finished:
        raise EngineError(f"the server took no request: {engine.refusal}")


def forecast_of(dataset: Dataset, store: Store, config: ScoringConfig) -> Forecast:
    """What a run has before it: all samples, those that the store holds rollouts of as far as these go."""
    has_image = images_there(dataset)
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


def request(ask: Ask) -> Request:
    """What an engine is told of an ask."""
    return Request(ask.ladder.record, ask.ratio, ask.realization)


def gradable(record: Mapping[str, Any], answer_boxes: str | None) -> Mapping[str, Any]:
    """What the grader is told: of boxes also in which space the model writes them, and the size of the image."""
    if record["grader"] not in ("grounding", "detection") or not record["images"]:
        return record
    width, height, _ = image_header(record["images"][0])
    space = record["box_format"] or "pixels"
    return {**record, "box_format": space, "answer_format": answer_boxes or space, "image_size": (width, height)}


def sentence(rejection: Rejection) -> str:
    """A record that was rejected, as an error says it."""
    return f"record {rejection.number} (id {rejection.id!r}): {rejection.reason}"
