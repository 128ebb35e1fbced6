"""The process in which answers are compared by computer algebra, which can run away.

Both sides are in this file. The parent's is :class:`MathWorker`; the worker's is :func:`main`, run as a separate
script. That is safe beside torch threads and CUDA (no fork), needs no ``__main__`` guard in the user's program, and
imports neither torch nor this package. The parent writes one line, a JSON list of ``[answer, gold, decimals]``; the
worker replies to each item with a line, ``1`` or ``0``. A worker that takes too long for one item is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

MEMORY_LIMIT_BYTES = 2 << 30
START_TIMEOUT_S = 120.0
RELATIVE_TOLERANCE = 2e-6

_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt)\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class MathWorker:
    """The parent's side. Starts the worker at the first question; not thread-safe (the caller holds a lock).

    Attributes:
        timeouts: items that took longer than the time-out.
        crashes: items at which a worker died twice (out of memory, for instance).
    """

    def __init__(self, timeout_s: float) -> None:
        """Create the parent's side; no process starts yet.

        Args:
            timeout_s: seconds allowed for one item.
        """
        self.timeout_s = timeout_s
        self.timeouts = 0
        self.crashes = 0
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, questions: Sequence[tuple[str, str, int]]) -> list[bool]:
        """Compare answers with golds.

        Args:
            questions: (answer, gold, decimals) of each item.

        Returns:
            A verdict for each; False for an item that ran out of time or memory.

        Raises:
            RuntimeError: the worker process cannot be started.
        """
        verdicts: list[bool] = []
        died_at = -1
        try:
            while len(verdicts) < len(questions):
                self._send(questions[len(verdicts) :])
                for reply in self._replies(len(questions) - len(verdicts)):
                    if reply is None:  # out of time
                        self.timeouts += 1
                        verdicts.append(False)
                    elif reply == "" and died_at != len(verdicts):
                        died_at = len(verdicts)  # may not be the item's fault: ask once more
                    else:
                        self.crashes += reply == ""
                        verdicts.append(reply == "1\n")
        except BaseException:  # Ctrl-C, for instance: late replies to old questions may follow, so end this worker
            self.close()
            raise
        return verdicts

    def close(self) -> None:
        """End the worker; the next question starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):  # text that the worker did not read before it ended
                    pipe.close()  # type: ignore[union-attr]

    def _replies(self, count: int) -> Iterator[str | None]:
        """Yield the replies up to the first that ends the worker: None if it is late, empty if the worker died."""
        for _ in range(count):
            try:
                reply = self._lines.get(timeout=self.timeout_s)
            except queue.Empty:
                reply = None
            if not reply:
                self.close()
            yield reply
            if not reply:
                return

    def _send(self, questions: Sequence[tuple[str, str, int]]) -> None:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has just died: the reader gets an end of file
            self._process.stdin.write(json.dumps(questions) + "\n")
            self._process.stdin.flush()

    def _start(self) -> None:
        command = [sys.executable, "-P", str(Path(__file__).resolve()), str(self.timeout_s)]
        # A fixed hash seed: sympy orders by hash in places, and a grade must not depend on the process.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="ascii",
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            ready = self._lines.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            ready = ""
        if ready != "ready\n":
            self.close()
            raise RuntimeError(f"the grading worker did not start; run this command to see why: {' '.join(command)}")


def _forward(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Put a worker's lines into its queue, and an empty line at the end."""
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed while reading
        pass
    lines.put("")


def equal(answer: str, gold: str, decimals: int) -> bool:
    r"""Compare an answer with the gold by math-verify. Call it in the worker only: it may run forever.

    Both are read as LaTeX (as if boxed). A text with words of three letters or more is also read as a sentence, of
    which math-verify takes the last expression (a gold only if it has a single number). Units are dropped, ``12%``
    equals both ``0.12`` and ``12``, ``x = 5`` equals ``5``, sets are compared without order, as in math-verify.

    Args:
        answer: the model's answer.
        gold: the gold answer.
        decimals: decimals to which floats have to agree.

    Returns:
        Whether they are equal.
    """
    from math_verify import verify

    golds = _expressions(gold, sentence=len(_NUMBER.findall(gold)) == 1)
    answers = _expressions(answer, sentence=True)
    if not verify(golds, answers, float_rounding=decimals, timeout_seconds=None):
        return False
    parsed_answers = [item for item in answers if not isinstance(item, str)]
    parsed_golds = [item for item in golds if not isinstance(item, str)]
    return not any(_far_apart(left, right, decimals) for left in parsed_answers for right in parsed_golds)


def _far_apart(answer: Any, gold: Any, decimals: int) -> bool:
    """Return whether two constants are so small that agreeing decimals mean nothing: 1/2004! and 1/2006!."""
    try:
        if not (answer.is_number and gold.is_number) or gold == 0:
            return False
        difference, size = abs((answer - gold).evalf(30)), abs(gold.evalf(30))
        return bool(difference > RELATIVE_TOLERANCE * size) and bool(size * 10**decimals < 100)
    except (AttributeError, TypeError, ValueError):  # sets, relations: verify has compared them
        return False


def _expressions(text: str, *, sentence: bool) -> list[Any]:
    from math_verify import parse

    expressions = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
    if sentence and _PROSE.search(text) and not _FUNCTION.search(text):
        expressions = expressions + parse(text, parsing_timeout=None)
    return list(expressions)


def main() -> None:
    """Answer questions from standard input until it ends, as it does when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    timeout_s = float(sys.argv[1])
    logging.disable(logging.CRITICAL)
    # Output of libraries must not get between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import math_verify  # noqa: F401 - loaded before the clock of the first item starts

    _limit_memory()
    equal("1", "2", 6)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        for answer, gold, decimals in json.loads(line):
            _alarm(2 * timeout_s + 1)
            verdict = equal(answer, gold, decimals)
            _alarm(0)
            print(int(verdict), file=replies, flush=True)


def _alarm(seconds: float) -> None:
    """Let the kernel end this process if the parent is gone and an item runs forever."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, MEMORY_LIMIT_BYTES) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


if __name__ == "__main__":
    main()
