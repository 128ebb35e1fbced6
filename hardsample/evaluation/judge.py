"""A judge model behind an OpenAI-compatible URL, for benchmarks whose answers no rule can grade.

Each verdict is kept in the output folder at once, so that a rerun asks nothing again. A verdict that cannot be had is
None: it is counted and said, and is no wrong answer. The key is read from OPENAI_API_KEY and goes to the client alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardsample.engines.server_url import KEY_VARIABLE, checked_url, server_key
from hardsample.errors import HardsampleError
from hardsample.files import VERDICTS_FILE

MOST_FAILURES = 20
"""After so many failures in a row, none between them answered, nothing more is asked in this run."""

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
"""What the judge is told, by the kind of verdict; the texts are our own."""


class JudgeError(HardsampleError, ValueError):
    """The judge cannot be asked; the message says what to do."""


@dataclass(frozen=True)
class Case:
    """One answer to be judged."""

    question: str
    reference: str
    answer: str


class Judge:
    """Asks a model for verdicts, several at a time, and keeps them.

    Args:
        directory: folder of the verdicts.
        url: of the server, such as http://localhost:8000/v1.
        model: its name there.
        timeout_s: seconds to wait for one reply, above 0.
        retries: how often a question is asked again, with growing waits, when the server fails; at least 0.
        workers: questions under way at a time, at least 1.

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
        timeout_s: float = 60.0,
        retries: int = 4,
        workers: int = 8,
    ) -> None:
        try:
            url = checked_url(url, "the judge's URL")
        except ValueError as error:
            raise JudgeError(str(error)) from None  # without the address, which may hold a password
        try:
            import openai
        except ImportError as error:
            raise JudgeError("a judge needs the openai package: pip install 'hardsample[openai]'") from error
        self._openai = openai
        self._client = openai.OpenAI(base_url=url, api_key=server_key(), timeout=timeout_s, max_retries=retries)
        self._path = Path(directory) / VERDICTS_FILE
        self.model, self._workers = model, workers
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._kept: dict[str, float] | None = None
        self.asked = 0
        self.failed: dict[str, int] = {}

    def verdicts(self, kind: str, cases: Sequence[Case]) -> list[float | None]:
        """Judges answers; an empty one is worth 0 without asking.

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
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="judge")
        try:
            return list(pool.map(lambda case: self._verdict(kind, case), cases))
        finally:
            pool.shutdown(cancel_futures=True)

    def _verdict(self, kind: str, case: Case) -> float | None:
        if not case.answer.strip():
            return 0.0
        parts = [self.model, kind, case.question, case.reference, case.answer]
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        assert self._kept is not None
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            if self._in_a_row >= MOST_FAILURES:
                self._count(f"not asked, after {MOST_FAILURES} failures in a row")
                return None
            self.asked += 1
        reply = self._ask(kind, case)
        if reply is None:
            return None
        worth = read_verdict(kind, reply)
        with self._lock:
            self._in_a_row = 0
            if worth is None:
                self._count("a reply that is no verdict")
                return None
            self._keep({"key": key, "model": self.model, "kind": kind, "worth": worth})
            self._kept[key] = worth
        return worth

    def _ask(self, kind: str, case: Case) -> str | None:
        """The reply; None, with the reason counted, where there is none after all retries."""
        text = f"Question:\n{case.question}\n\nReference:\n{case.reference}\n\nAnswer to judge:\n{case.answer}"
        messages: Any = [{"role": "system", "content": _ASKS[kind]}, {"role": "user", "content": text}]
        api = self._openai
        try:
            made = self._client.chat.completions.create(model=self.model, messages=messages, temperature=0)
            return (made.choices[0].message.content if made.choices else None) or ""
        except (api.AuthenticationError, api.PermissionDeniedError, api.NotFoundError) as error:
            # `from None`, and no text of the server's: it may repeat the key
            raise JudgeError(
                f"the judge's server answers {error.status_code}: check {KEY_VARIABLE}, --judge-url and --judge-model"
            ) from None
        except api.APIStatusError as error:
            reason = f"the server answers {error.status_code}"
        except api.APITimeoutError:
            reason = "no reply in time"
        except (api.APIError, json.JSONDecodeError) as error:
            reason = f"no reply ({type(error).__name__})"
        with self._lock:
            self._in_a_row += 1
            self._count(reason)
        return None

    def _count(self, reason: str) -> None:
        self.failed[reason] = self.failed.get(reason, 0) + 1

    def _keep(self, verdict: dict[str, Any]) -> None:
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
    found = re.search(r"(?<![\d.-])(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*$", text)
    return float(found.group(1)) / 10 if found and float(found.group(1)) <= 10 else None


def _read_verdicts(path: Path) -> dict[str, float]:
    """The verdicts that are kept; a line that a kill cut short is asked again."""
    kept = {}
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                verdict = json.loads(line)
                kept[verdict["key"]] = float(verdict["worth"])
            except (ValueError, KeyError, TypeError):
                continue  # asked again
    return kept
