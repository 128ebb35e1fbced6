"""A judge model behind an OpenAI-compatible URL, for benchmarks whose answers no rule can grade.

Each verdict is kept in the output folder at once, so that a rerun asks nothing again. A verdict that cannot be had is
None: it is counted and said, and is no wrong answer. Questions go through the retry policy of the engines, and replies
through their reader.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardsample.engines.client.chat import ChatClient, ServerSetupError
from hardsample.engines.client.retry import Refusal, ServerGoneError
from hardsample.engines.client.server_url import KEY_VARIABLE
from hardsample.engines.results import Completion
from hardsample.errors import ConfigError, HardsampleError
from hardsample.files import VERDICTS_FILE

logger = logging.getLogger(__name__)

_ASKS = {
    "right": (
        "You check answers to questions about images. You do not see the image: the reference is the truth. What "
        "counts is the answer that the text ends up with; wording, units written out and extra explanation do not. An "
        "option's letter and that option's text are the same answer. Reply with one word, right or wrong."
    ),
    "score": (
        "You rate answers to questions about images. You do not see the image: the reference is the truth. In the "
        "reference, <AND> joins parts that are all needed and <OR> joins parts of which one is enough. Say how much of "
        "what is needed the answer gets right: 10 for all of it, 0 for none, whole numbers between. Reply with the "
        "number alone."
    ),
}
"""What the judge is asked, by the kind of verdict; the texts are our own."""


class JudgeError(HardsampleError, ValueError):
    """The judge cannot be asked; the message says what to do."""


@dataclass(frozen=True)
class Case:
    """One answer to be judged."""

    question: str
    reference: str
    answer: str


class Judge:
    """Ask a model for verdicts, several at a time, and keep them.

    A verdict that cannot be had counts by its reason. Where the server is gone or refuses everything, nothing more is
    asked of this judge.

    Args:
        directory: folder of the verdicts.
        url: of the server, such as http://localhost:8000/v1.
        model: its name there.
        request_timeout: seconds that one reply may take, above 0.
        retries: tries after the first, of a question that fails while the server answers others; at least 0.
        server_timeout: seconds that a server that answers nothing is waited for, above 0.
        concurrency: the most questions under way, at least 1; fewer while the server is overloaded.

    Attributes:
        asked: questions that were put to the server.
        failed: verdicts that could not be had, by reason.

    Raises:
        JudgeError: the openai package is missing, or the URL is none or holds a password.
    """

    def __init__(
        self,
        directory: str | Path,
        url: str,
        model: str,
        *,
        request_timeout: float = 60.0,
        retries: int = 4,
        server_timeout: float = 60.0,
        concurrency: int = 8,
    ) -> None:
        try:
            self._client = ChatClient(
                url,
                model,
                url_option="--judge-url",
                request_timeout=request_timeout,
                retries=retries,
                server_timeout=server_timeout,
                concurrency=concurrency,
                notice=logger.warning,
            )
        except ConfigError as error:
            raise JudgeError(str(error)) from None  # without the address, which may hold a password
        except ServerSetupError as error:
            raise JudgeError(str(error)) from error
        self._path = Path(directory) / VERDICTS_FILE
        self.model = model
        self._kept: dict[str, float] | None = None
        self._stopped = ""
        self.asked = 0
        self.failed: dict[str, int] = {}

    def verdicts(self, kind: str, cases: Sequence[Case]) -> list[float | None]:
        """Judge answers; an empty one is worth 0 without asking.

        Args:
            kind: `right` (0 or 1) or `score` (0 … 1, in tenths).
            cases: the answers.

        Returns:
            Each one's worth, in order; None where no verdict could be had.

        Raises:
            JudgeError: the server refuses the key, or does not know the model.
        """
        if self._kept is None:
            self._kept = _read_verdicts(self._path)
        keys = [self._key(kind, case) if case.answer.strip() else None for case in cases]
        unknown = {key: case for key, case in zip(keys, cases, strict=True) if key and key not in self._kept}
        if unknown:
            reasons = self._ask_all(kind, unknown)
            for reason in (reasons[key] for key in keys if key in reasons):
                self.failed[reason] = self.failed.get(reason, 0) + 1
        return [0.0 if key is None else self._kept.get(key) for key in keys]

    def _ask_all(self, kind: str, cases: Mapping[str, Case]) -> dict[str, str]:
        """Ask for verdicts and keep them.

        Args:
            kind: of the verdicts.
            cases: by key.

        Returns:
            Key → why there is no verdict, of those that could not be had.
        """
        reasons: dict[str, str] = {}
        waiting, under_way = deque(cases.items()), set[str]()
        try:
            with self._client.flight(lambda case: self._reply(kind, case)) as flight:
                while not self._stopped and (waiting or under_way):
                    while waiting and flight.room > 0:
                        key, case = waiting.popleft()
                        flight.start(key, case)
                        under_way.add(key)
                        self.asked += 1
                    for key, reply in flight.landed():
                        under_way.discard(key)
                        if reason := self._keep_verdict(kind, key, reply):
                            reasons[key] = reason
        except ServerSetupError as error:
            # `from None`, and no text of the server's: it may repeat the key
            raise JudgeError(
                f"the judge's server answers {error.code}: check {KEY_VARIABLE}, --judge-url and --judge-model"
            ) from None
        except ServerGoneError as error:
            self._stopped = f"not asked, since {error.reason}"
            reasons |= dict.fromkeys(under_way, error.reason)
        return reasons | {key: self._stopped for key, _ in waiting}

    def _keep_verdict(self, kind: str, key: str, reply: Completion | Refusal) -> str | None:
        """Keep the verdict of a reply, or give the reason why it has none."""
        if isinstance(reply, Refusal):
            return reply.reason
        worth = read_verdict(kind, reply.text)
        if worth is None:
            return "a reply that is no verdict"
        assert self._kept is not None
        self._write({"key": key, "model": self.model, "kind": kind, "worth": worth})
        self._kept[key] = worth
        return None

    async def _reply(self, kind: str, case: Case) -> Completion | Refusal:
        text = f"Question:\n{case.question}\n\nReference:\n{case.reference}\n\nAnswer to judge:\n{case.answer}"
        messages = [{"role": "system", "content": _ASKS[kind]}, {"role": "user", "content": text}]
        return await self._client.complete(messages, {}, {"temperature": 0})

    def _key(self, kind: str, case: Case) -> str:
        parts = [self.model, kind, case.question, case.reference, case.answer]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def _write(self, verdict: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(verdict) + "\n")


def read_verdict(kind: str, reply: str) -> float | None:
    """What a reply says an answer is worth, 0 … 1; None where it says nothing clear."""
    text = reply.rpartition("</think>")[2].lower()
    if kind == "right":
        words = set(re.findall(r"\b(right|wrong)\b", text))
        negated = re.search(r"\bnot\s+(right|wrong)\b", text)
        return None if len(words) != 1 or negated else float(words == {"right"})
    number = re.search(r"(?<![\d.-])(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*$", text)
    return float(number.group(1)) / 10 if number and float(number.group(1)) <= 10 else None


def _read_verdicts(path: Path) -> dict[str, float]:
    """The verdicts that are kept; a line that a kill cut short is asked again."""
    kept = {}
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        damaged = 0
        for line in text.splitlines():
            try:
                verdict = json.loads(line)
                kept[verdict["key"]] = float(verdict["worth"])
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            logger.warning("%s: %d damaged lines, whose verdicts are requested again", path, damaged)
    return kept
