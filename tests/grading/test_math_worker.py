"""The worker process: it is killed on time-out, restarts, and ends with its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hardsample.grading.math_worker import MathWorker

ROOT = Path(__file__).parents[2]
RUNAWAY = ("9^{9^{9^{9}}}", "5", 6)
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture
def worker():
    worker = MathWorker(timeout_s=3.0)
    yield worker
    worker.close()


def process_of(worker: MathWorker) -> subprocess.Popen[str]:
    assert worker._process is not None
    return worker._process


def test_verdicts_in_order(worker: MathWorker) -> None:
    assert worker.ask([(r"\frac{1}{2}", "0.5", 6), ("x+1", "x+2", 6), ("2^3", "8", 6)]) == [True, False, True]
    assert (worker.timeouts, worker.crashes) == (0, 0)


def test_no_questions_need_no_process(worker: MathWorker) -> None:
    assert worker.ask([]) == []
    assert worker._process is None


def test_a_runaway_is_killed_and_the_rest_is_graded() -> None:
    worker = MathWorker(timeout_s=3.0)
    assert worker.ask([("2", "2", 6), RUNAWAY, ("3", "3", 6)]) == [True, False, True]
    # Which of the two limits, time or memory, stops it depends on the machine; sympy may also refuse it itself.
    assert worker.timeouts + worker.crashes <= 1
    worker.close()


def test_time_out_is_counted() -> None:
    worker = MathWorker(timeout_s=2.0)
    hard = r"\int_0^1 \frac{\sin(x^{7}) \ln(1+x^{3})}{\sqrt{1+x^{11}}} dx"
    assert worker.ask([(hard, "0.123456", 6), ("3", "3", 6)]) == [False, True]
    assert worker.timeouts == 1
    worker.close()


@posix
def test_a_killed_worker_is_started_anew(worker: MathWorker) -> None:
    assert worker.ask([("1", "1", 6)]) == [True]
    first = process_of(worker)
    first.kill()
    assert worker.ask([("1", "1", 6), ("1", "2", 6)]) == [True, False]
    assert process_of(worker).pid != first.pid
    assert worker.crashes == 0


@posix
def test_a_worker_killed_in_the_middle_of_a_batch_costs_no_grade(worker: MathWorker) -> None:
    worker.ask([("1", "1", 6)])
    victim = process_of(worker)
    questions = [(f"\\frac{{{n}}}{{7}}", f"{n}/7", 6) for n in range(400)]
    killer = threading.Timer(0.2, victim.kill)
    killer.start()
    assert worker.ask(questions) == [True] * 400
    killer.join()
    assert process_of(worker).pid != victim.pid


@posix
def test_dies_with_its_parent() -> None:
    script = (
        "from hardsample.grading.math_worker import MathWorker; w = MathWorker(60.0); w.ask([('1', '1', 6)]);"
        "print(w._process.pid, flush=True); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert parent.returncode == -signal.SIGKILL
    assert gone(int(parent.stdout))


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
    return False


def test_worker_starts_without_torch_and_without_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "user_script.py"
    script.write_text(
        "import sys\nfrom hardsample.grading.grader import Grader\n"
        "with Grader() as grader:\n"
        "    print(grader.grade('\\\\frac{1}{2}', {'grader': 'math', 'solution': '0.5'}), 'torch' in sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_worker_that_cannot_start_says_so(worker: MathWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(RuntimeError, match="did not start"):
        worker.ask([("1", "1", 6)])


@posix
def test_memory_is_limited(worker: MathWorker) -> None:
    worker.ask([("1", "1", 6)])
    limits = Path(f"/proc/{process_of(worker).pid}/limits")
    if not limits.exists():
        pytest.skip("no /proc here to read the limit from")
    line = next(line for line in limits.read_text().splitlines() if line.startswith("Max address space"))
    assert int(line.split()[3]) <= 2 << 30
