r"""Grade completions: the graders, a :class:`Grader` for many at once, and TRL reward functions.

>>> from hardsample.grading.grader import Grader
>>> with Grader() as grader:
...     grader.grade(r"so it is \boxed{\frac{1}{2}}", {"grader": "math", "solution": "0.5"})
True

Grading never raises or hangs on any text: what can run away (computer algebra) runs in a worker process that is killed
on time-out; the answer then counts as wrong.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from types import TracebackType
from typing import Any

from hardsample.grading.graders import (
    grade_choice,
    grade_counting,
    grade_detection,
    grade_grounding,
    grade_ocr,
    grade_text,
)
from hardsample.grading.math_worker import MathWorker
from hardsample.grading.mathematics import MathQuestion, decide_math

logger = logging.getLogger(__name__)

Completion = str | Sequence[Mapping[str, Any]]


def grade_math(completion: str, solution: str) -> bool:
    r"""Accept an answer that is mathematically equal to the solution.

    Numbers (``1,234``, ``½``, ``５``, ``seven``), LaTeX, sets, intervals, equations and matrices are compared by
    math-verify: units are dropped, ``12%`` equals ``0.12`` and ``12``, ``x = 5`` equals ``5``, sets have no order.
    Floats must agree to 6 decimals, or to the gold's own if it has three to five (it was rounded). Words, times and
    dates are compared as text, a single capital letter as a choice. Answers and solutions of more than 1,000 characters
    are wrong.

    Args:
        completion: what the model wrote.
        solution: the gold answer, bare, in an ``<answer>`` tag or in a box.

    Returns:
        Whether the answer is right; False also if comparing takes more than 5 seconds.
    """
    return _shared_grader().grade(completion, {"grader": "math", "solution": solution})


GRADERS: dict[str, Callable[..., bool]] = {
    "math": grade_math,
    "ocr": grade_ocr,
    "counting": grade_counting,
    "grounding": grade_grounding,
    "detection": grade_detection,
    "choice": grade_choice,
    "text": grade_text,
}

# The keyword arguments of each grader; columns with these names are passed to it.
_OPTIONS = {
    name: [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name, function in GRADERS.items()
}


class Grader:
    """Grades completions, from any thread. Use it as a context manager, or call :meth:`close` at the end.

    Attributes:
        timeouts: answers counted as wrong because comparing them took too long.
        crashes: answers counted as wrong because comparing them took too much memory.
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        """Make a grader; the worker process starts when it is first needed.

        Args:
            timeout_s: seconds allowed for one answer.

        Raises:
            ValueError: the time-out is not positive.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0 seconds")
        self._worker = MathWorker(timeout_s)
        self._lock = threading.Lock()

    @property
    def timeouts(self) -> int:
        """Answers counted as wrong because comparing them took too long."""
        return self._worker.timeouts

    @property
    def crashes(self) -> int:
        """Answers counted as wrong because comparing them took too much memory."""
        return self._worker.crashes

    def grade(self, completion: str, record: Mapping[str, Any]) -> bool:
        """Grade one completion; see :meth:`grade_many`.

        Args:
            completion: what the model wrote.
            record: the sample.

        Returns:
            Whether it is right.

        Raises:
            ValueError: the record's grader does not exist.
        """
        return self.grade_many([(completion, record)])[0]

    def grade_many(self, pairs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[bool]:
        """Grade completions, each against its record.

        Args:
            pairs: (completion, record). A record has ``solution`` and ``grader``, and may have ``answers`` (all
                accepted solutions) and that grader's keyword arguments, such as ``options``, ``box_format`` and
                ``image_size``; other fields are ignored.

        Returns:
            Whether each is right, in the order given.

        Raises:
            ValueError: a record's grader does not exist.
            RuntimeError: the worker process cannot be started.
        """
        verdicts = [_decide(completion, record) for completion, record in pairs]
        questions = [question for verdict in verdicts if isinstance(verdict, list) for question in verdict]
        if questions:
            with self._lock:
                answers = iter(self._worker.ask(questions))
            verdicts = [
                any(list(islice(answers, len(verdict)))) if isinstance(verdict, list) else verdict
                for verdict in verdicts
            ]
        return [bool(verdict) for verdict in verdicts]

    def close(self) -> None:
        """End the worker process. Grading again starts a new one."""
        with self._lock:
            self._worker.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _decide(completion: str, record: Mapping[str, Any]) -> bool | list[MathQuestion]:
    """Return the verdict, or a question for each accepted answer, of which one must be answered with yes."""
    if "grader" not in record or "solution" not in record:
        raise ValueError(
            f"a record to grade needs 'grader' and 'solution'; this one has {', '.join(record) or 'nothing'}"
        )
    name = record["grader"]
    if name not in GRADERS:
        raise ValueError(f"there is no grader {name!r}; use one of {', '.join(GRADERS)}")
    options = {key: record[key] for key in _OPTIONS[name] if record.get(key) is not None}
    questions: list[MathQuestion] = []
    for solution in record.get("answers") or [record["solution"]]:
        try:
            verdict = (decide_math if name == "math" else GRADERS[name])(completion, str(solution), **options)
        except Exception:
            # A deliberate broad catch: a model may write anything, and one completion must not end a job of many hours.
            # The completion counts as wrong and is logged. No text is known that gets here.
            logger.exception(
                "grader %s failed on a completion of %d characters: counted as wrong", name, len(completion)
            )
            verdict = False
        if verdict is True:
            return True
        if isinstance(verdict, MathQuestion):
            questions.append(verdict)
    return questions or False


def reward_function(grader: str | None = None, **options: Any) -> Callable[..., list[float]]:
    """Make a reward function for TRL's trainers: 1.0 for a right completion, 0.0 for a wrong one.

    Args:
        grader: a grader's name; None takes it from the dataset's ``grader`` column.
        options: keyword arguments of that grader, for instance ``iou_threshold=0.7``; by default the dataset's columns
            of these names are used.

    Returns:
        ``reward(completions, solution, **columns) -> list[float]``, named after the grader (TRL logs the name).
        Completions are texts or conversations; of these the last assistant turn counts.

    Raises:
        ValueError: there is no such grader, or it has no such option.
    """
    if grader is not None and grader not in GRADERS:
        raise ValueError(f"there is no grader {grader!r}; use one of {', '.join(GRADERS)}")
    known = _OPTIONS[grader] if grader else sorted({option for names in _OPTIONS.values() for option in names})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"grader {grader} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")

    def reward(completions: Sequence[Completion], solution: Sequence[Any], **columns: Any) -> list[float]:
        names = ["solution", "answers", *known] if grader else ["grader", "solution", "answers", *known]
        values = {name: columns[name] for name in names if name in columns} | {"solution": solution}
        fixed = options | ({"grader": grader} if grader else {})
        records = [dict(zip(values, row, strict=True)) | fixed for row in zip(*values.values(), strict=True)]
        texts = [completion_text(completion) for completion in completions]
        return [float(right) for right in _shared_grader().grade_many(list(zip(texts, records, strict=True)))]

    reward.__name__ = reward.__qualname__ = f"{grader or 'correctness'}_reward"
    return reward


def completion_text(completion: Completion) -> str:
    """Return the text of a TRL completion.

    Args:
        completion: a text, or messages whose content is a text or a list of blocks.

    Returns:
        The text; of messages, the last assistant's (or the last message's if none is the assistant's).
    """
    if isinstance(completion, str):
        return completion
    turns = [message for message in completion if message.get("role") == "assistant"] or list(completion)
    content = turns[-1].get("content") if turns else None
    if isinstance(content, str):
        return content
    return "".join(str(block.get("text") or "") for block in content or ())


@lru_cache(maxsize=1)
def _shared_grader() -> Grader:
    """Return the grader of grade_math and of the reward functions, one per process."""
    grader = Grader()
    atexit.register(grader.close)
    return grader


math_reward = reward_function("math")
ocr_reward = reward_function("ocr")
counting_reward = reward_function("counting")
grounding_reward = reward_function("grounding")
detection_reward = reward_function("detection")
choice_reward = reward_function("choice")
text_reward = reward_function("text")
correctness_reward = reward_function()
