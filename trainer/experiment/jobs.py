"""Runs trainings side by side, each in a process of its own, each after the one that it continues from.

A training that fails is told, those that build on it are left out, the others run. Interrupting ends all processes;
so does killing this one, since each of them ends when its standard input does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hardsample.files import LOG_FILE, PROGRESS_FILE

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """One training to be made."""

    key: str
    folder: Path
    """Holds its stage.json; gets its log.txt."""
    after: str | None
    """Key of the job that must have ended well before."""
    steps: int
    """How much work it is, in steps."""


def run_jobs(
    jobs: Iterable[Job], at_once: int, moved: Callable[[int, list[str]], None], gpus: int = 0
) -> dict[str, str]:
    """Runs all jobs.

    Args:
        jobs: in any order; an `after` that is none of them has been done before.
        at_once: how many run side by side, at least 1.
        moved: called with the steps done since the last call, and the keys that run.
        gpus: on this machine; with more than one, each job sees one of them.

    Returns:
        Key → what went wrong, of those that failed or were left out.
    """
    waiting = list(jobs)
    running: dict[str, tuple[Job, subprocess.Popen]] = {}
    failed: dict[str, str] = {}
    seen: dict[str, int] = {}
    places = list(range(at_once))
    held: dict[str, int] = {}
    try:
        while waiting or running:
            for key, (job, process) in list(running.items()):
                code = process.poll()
                seen[key] = _report(job, seen.get(key, 0), code == 0, moved, list(running))
                if code is None:
                    continue
                del running[key]
                places.append(held.pop(key))
                if code:
                    failed[key] = last_words(job.folder / LOG_FILE) or f"exit code {code}"
            for job in list(waiting):
                if job.after in failed:
                    failed[job.key] = f"{job.after}, which it continues from, failed"
                    waiting.remove(job)
                elif places and job.after not in running and all(job.after != other.key for other in waiting):
                    waiting.remove(job)
                    held[job.key] = min(places)
                    places.remove(held[job.key])
                    running[job.key] = job, start(job.folder, at_once, held[job.key], gpus)
            time.sleep(POLL_SECONDS)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def start(folder: Path, at_once: int = 1, place: int = 0, gpus: int = 0, shown: bool = False) -> subprocess.Popen:
    """Starts the process of one training.

    Args:
        folder: of the training.
        at_once: how many run side by side: each gets that share of the processor cores.
        place: which of them it is, from 0.
        gpus: on this machine.
        shown: whether it writes to this process's outputs instead of log.txt.
    """
    environment = dict(os.environ)
    threads = max(1, (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1) // at_once)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    command = [sys.executable, "-m", "hardsample.trainer.experiment.stage", str(folder)]
    if shown:
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment)


def last_words(log: Path) -> str:
    """The last line of a log that says something: of a traceback, the error."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _report(job: Job, before: int, done: bool, moved: Callable[[int, list[str]], None], running: list[str]) -> int:
    """Tells the steps that a job made since the last look; all of them where it is done."""
    try:
        now = job.steps if done else min(job.steps, int((job.folder / PROGRESS_FILE).read_text() or 0))
    except (OSError, ValueError):
        now = before
    moved(max(0, now - before), running)
    return max(before, now)
