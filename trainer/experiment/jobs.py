"""Run trainings in parallel, each in its own process, each after the one that it continues from.

If a training fails, those that build on it are skipped, and the others run. Interrupting ends all processes;
so does killing this process, since each of them ends when its standard input does.
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
OnProgress = Callable[[int, list[str]], None]


@dataclass(frozen=True)
class Job:
    """A training to run."""

    key: str
    folder: Path
    """Holds its stage.json; gets its log.txt."""
    after: str | None
    """Key of the job that must have succeeded before."""
    steps: int
    """How much work it is, in steps."""


def run_jobs(jobs: Iterable[Job], at_once: int, on_progress: OnProgress, gpus: int = 0) -> dict[str, str]:
    """Run all jobs.

    Args:
        jobs: in any order; an `after` that is not among them is done already.
        at_once: how many run in parallel, at least 1.
        on_progress: called with the steps done since the last call, and the keys of the running jobs.
        gpus: on this machine; with more than one, each job sees one of them.

    Returns:
        Key → what went wrong, for jobs that failed or were skipped.
    """
    waiting = list(jobs)
    running: dict[str, tuple[Job, subprocess.Popen]] = {}
    failed: dict[str, str] = {}
    reported: dict[str, int] = {}
    free_slots = list(range(at_once))
    slots: dict[str, int] = {}
    try:
        while waiting or running:
            for key, (job, process) in list(running.items()):
                code = process.poll()
                reported[key] = _report(job, reported.get(key, 0), code == 0, on_progress, list(running))
                if code is None:
                    continue
                del running[key]
                free_slots.append(slots.pop(key))
                if code:
                    failed[key] = last_words(job.folder / LOG_FILE) or f"exit code {code}"
            for job in list(waiting):
                if job.after in failed:
                    failed[job.key] = f"{job.after}, which it continues from, failed"
                    waiting.remove(job)
                elif free_slots and job.after not in running and all(job.after != other.key for other in waiting):
                    waiting.remove(job)
                    slots[job.key] = min(free_slots)
                    free_slots.remove(slots[job.key])
                    running[job.key] = job, start(job.folder, at_once, slots[job.key], gpus)
            time.sleep(POLL_SECONDS)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def start(folder: Path, at_once: int = 1, slot: int = 0, gpus: int = 0, shown: bool = False) -> subprocess.Popen:
    """Start the process of a training.

    Args:
        folder: of the training.
        at_once: how many run in parallel: each gets that share of the processor cores.
        slot: which of them it is, from 0.
        gpus: on this machine.
        shown: whether it writes to this process's outputs instead of log.txt.
    """
    environment = dict(os.environ)
    threads = max(1, (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1) // at_once)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    command = [sys.executable, "-m", "hardsample.trainer.experiment.stage", str(folder)]
    if shown:
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment)


def last_words(log: Path) -> str:
    """Return the last line of a log that is not blank: of a traceback, the error."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _report(job: Job, before: int, done: bool, on_progress: OnProgress, running: list[str]) -> int:
    """Report the steps that a job made since the last report; all that are left if it is done."""
    try:
        now = job.steps if done else min(job.steps, int((job.folder / PROGRESS_FILE).read_text() or 0))
    except (OSError, ValueError):
        now = before
    on_progress(max(0, now - before), running)
    return max(before, now)
