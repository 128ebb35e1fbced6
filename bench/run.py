"""Run the kernels' benchmarks: `python bench/run.py [CASE …] [--quick]`.

Prints a table (p20, p50 and p80 of ours, ratios to the baselines of the same run) and, as the last line, JSON: a list
of {case, shape, dtype, device, p50_ms, baseline, ratio} with ratio = baseline time / ours. `--save NAME` also writes
bench/results/NAME.md and NAME.json and the plot NAME.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from cases import Call, Case, cases

RESULTS = Path(__file__).parent / "results"
SECONDS, SLOW_SECONDS = 1.5, 3.0
REPEATS = (5, 100)
WARM_UP = 2


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="run the cases whose name, dtype or shape contains one of these")
    parser.add_argument("--quick", action="store_true", help="leave out the largest sizes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU (default: 1)")
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.md, .json and .png")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = [
        case
        for case in cases(arguments.device, arguments.quick)
        if not arguments.case or any(part in f"{case.name} {case.dtype} {case.shape}" for part in arguments.case)
    ]
    if not chosen:
        names = sorted({case.name for case in cases(arguments.device)})
        sys.exit(f"no case contains {', '.join(arguments.case)}: choose of {', '.join(names)}")
    machine = describe_machine(arguments.device, arguments.threads)
    print(machine)
    table: list[str] = []
    rows: list[dict[str, Any]] = []
    for case in chosen:
        times = measure(case)
        if not table:
            table += ["| case | shape | dtype | p20 / p50 / p80, ms | baseline time / ours |", "|---|---|---|---|---|"]
            print("\n".join(table))
        table.append(table_row(case, times))
        print(table[-1], flush=True)
        rows += json_rows(case, times)
    if arguments.save:
        save(arguments.save, machine, table, rows)
    print(json.dumps(rows, ensure_ascii=False))


def describe_machine(device: str, threads: int) -> str:
    """Return processor, threads and versions in one line."""
    if device == "cuda":
        import triton

        name = f"{torch.cuda.get_device_name()}, triton {triton.__version__}"
    else:
        from hardsample.kernels import native

        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
        name = f"{model} ({native.LEVELS[native.cpu_level()]}), {threads} thread{'s' * (threads > 1)}"
    return f"{name}, torch {torch.__version__}"


def measure(case: Case) -> dict[str, list[float]]:
    """Return milliseconds of ours and of each baseline, in turns so that drift of the machine affects all alike."""
    ours, baselines = case.build()
    calls: dict[str, Call] = {"ours": ours, **baselines}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(1 if name in case.slow else WARM_UP):
            timed(call, case.device)
    began = time.perf_counter()
    turn = 0
    while turn < REPEATS[0] or (turn < REPEATS[1] and time.perf_counter() - began < SECONDS):
        for name, call in calls.items():
            if name not in case.slow:
                times[name].append(timed(call, case.device))
        turn += 1
    for name in case.slow:
        began = time.perf_counter()
        while name in calls and (len(times[name]) < 3 or time.perf_counter() - began < SLOW_SECONDS / 3):
            times[name].append(timed(calls[name], case.device))
            if len(times[name]) >= REPEATS[1]:
                break
    del ours, baselines, calls
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()
    return times


def timed(call: Call, device: str) -> float:
    """Return the milliseconds of one call; on a GPU between two events, with the host ahead of the device."""
    if device != "cuda":
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # so that the events enclose the device's time, not the host's launches
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Return p20, p50 and p80."""
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return cuts[1], statistics.median(times), cuts[7]


def table_row(case: Case, times: dict[str, list[float]]) -> str:
    """Return one line of the table."""
    ours = quantiles(times["ours"])
    parts = []
    for name in times:
        if name == "ours":
            continue
        middle = statistics.median(times[name])
        if name in ("floor", "sdpa", "fused without mass"):  # here the question is how much more ours takes
            parts.append(f"ours is {ours[1] / middle:.2f} x {name} ({middle:.2f} ms)")
        else:
            parts.append(f"{name} {middle / ours[1]:.1f} ({middle:.1f} ms)")
    timing = " / ".join(f"{value:.2f}" for value in ours)
    return f"| {case.name} | {case.shape} | {case.dtype} | {timing} | {'; '.join(parts)} |"


def json_rows(case: Case, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return one object for each baseline."""
    ours = statistics.median(times["ours"])
    facts = {"case": case.name, "shape": case.shape, "dtype": case.dtype, "device": case.device}
    return [
        facts | {"p50_ms": round(ours, 4), "baseline": name, "ratio": round(statistics.median(measured) / ours, 4)}
        for name, measured in times.items()
        if name != "ours"
    ]


def save(name: str, machine: str, table: list[str], rows: list[dict[str, Any]]) -> None:
    """Write the table, the JSON and the plot of throughput against size."""
    RESULTS.mkdir(exist_ok=True)
    command = f"python bench/run.py --save {name}"
    text = f"# Kernels\n\n{machine}. Medians, `{command}`; every baseline in the same run.\n\n"
    (RESULTS / f"{name}.md").write_text(text + "\n".join(table) + "\n")
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
    )
    from plots import throughput

    throughput(rows, machine, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
