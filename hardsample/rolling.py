"""The loop of a scoring job: ask for rollouts, grade and commit what comes back, until every ladder is done.

An engine on this machine is given batches; a server is given single requests, as many at a time as it bears.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from hardsample.config import ScoringConfig
from hardsample.data import Rejection
from hardsample.engines.openai import OpenAIEngine
from hardsample.engines.preparing import Request, preparing_thread
from hardsample.engines.results import Completion, EngineError, Failure, unanswered
from hardsample.engines.transformers import Prepared, TransformersEngine
from hardsample.grading import Grader
from hardsample.images import image_header
from hardsample.ladders import Ask, Ladder, Queue
from hardsample.store import Rollout, Store


class RejectedError(ValueError):
    """`strict` met a record that cannot be scored."""


@dataclass
class Job:
    """What a run works with, and what it has done so far."""

    dataset: Dataset
    grader: Grader
    store: Store
    config: ScoringConfig
    bar: tqdm
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
            answered = not unanswered(completion.finish, int(grade))
            ask.ladder.record_grade(ask.ratio, ask.realization, int(grade), answered)
        for ask, result in zip(asks, results, strict=True):
            if isinstance(result, Failure):
                ask.ladder.refused = f"column images or prompt: {result.reason}" if result.of_record else result.reason
        return list({id(ask.ladder): ask.ladder for ask in asks}.values())

    def _finish(self, ladder: Ladder) -> None:
        self.bar.update()
        if ladder.refused is None:
            ladder.record = {name: ladder.record[name] for name in ("id", "ability")}  # let go of pictures and text
            self.finished.append(ladder)
            return
        rejection = Rejection(int(ladder.record["record_number"]), ladder.record["id"], ladder.refused)
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
            rate = job.rollouts / max(engine.seconds.generate, 1e-9)
            job.bar.set_postfix_str(f"{job.rollouts} rollouts, {rate:.0f}/s", refresh=False)
            current = ahead or start(queue.take(engine.batch_size))


def run_requests(job: Job, engine: OpenAIEngine) -> None:
    """Work through all ladders with as many requests in flight as the server bears; what came back is committed."""
    queue = job.queue()
    began = time.perf_counter()
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
            rate = job.rollouts / (time.perf_counter() - began)
            said = f"{job.rollouts} rollouts, {rate:.1f}/s, {flight.under_way} in flight, {engine.retried} retries"
            job.bar.set_postfix_str(said, refresh=False)
    if engine.refusal and not job.finished:
        raise EngineError(f"the server took no request: {engine.refusal}")


def request(ask: Ask) -> Request:
    """What an engine is told of an ask."""
    return Request(ask.ladder.record, ask.ratio, ask.realization)


def gradable(record: Mapping[str, Any], answer_boxes: str | None) -> Mapping[str, Any]:
    """What the grader is told: of boxes also in which space the model writes them, and the size of the picture."""
    if record["grader"] not in ("grounding", "detection") or not record["images"]:
        return record
    width, height, _ = image_header(record["images"][0])
    space = record["box_format"] or "pixels"
    return {**record, "box_format": space, "answer_format": answer_boxes or space, "image_size": (width, height)}


def sentence(rejection: Rejection) -> str:
    """A record that was set aside, as an error says it."""
    return f"record {rejection.number} (id {rejection.id!r}): {rejection.reason}"
