"""The sampler and the evidence at ten million samples: `python bench/sampler.py` → bench/results/sampler.json.

Prints a table (p20, median and p80 of wall time over the repeats, and the median of the process's own CPU time, which
other processes on the machine do not lengthen) and, as the last line, JSON. The baselines, in the same run, are
what NumPy offers without a tree: one `Generator.choice` over all weights, and summing all weights up anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hardsample.trainer.selection.evidence import Evidence
from hardsample.trainer.selection.policies import POLICIES, Context, PolicyConfig, weigh
from hardsample.trainer.selection.sampler import PromptSampler
from hardsample.trainer.selection.strata import Strata

RESULTS = Path(__file__).parent / "results"
SAMPLES, BATCH, GENERATIONS = 10_000_000, 1024, 8


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="another size, to try it (nothing is written)")
    parser.add_argument("--repeats", type=int, default=200, help="of what takes milliseconds (default: 200)")
    arguments = parser.parse_args()
    size, repeats = arguments.samples, arguments.repeats
    rng = np.random.default_rng(0)
    evidence = pool(size, rng)
    strata = Strata(evidence)
    sampler = PromptSampler(size, seed=0, exploration=0.05)
    bytes_a_sample = (evidence.nbytes + strata.codes.nbytes + sampler.tree.nbytes) / size
    rows: list[dict[str, Any]] = []

    def say(what: str, times: Times, each: int | None = None) -> None:
        cuts = statistics.quantiles(times.wall, n=10, method="inclusive")
        quantiles = {"p20_ms": cuts[1], "p50_ms": statistics.median(times.wall), "p80_ms": cuts[7]}
        quantiles["cpu_p50_ms"] = statistics.median(times.cpu)
        if each:
            quantiles["p50_us_each"] = quantiles["p50_ms"] * 1e3 / each
        rows.append({"what": what, **{name: round(value, 3) for name, value in quantiles.items()}})
        cells = " | ".join(f"{value:.3f}" for value in quantiles.values())
        print(f"| {what} | {cells} |{'' if each else ' |'}", flush=True)

    load = os.getloadavg()[0]
    print(f"{machine()}; {size:,} samples, {bytes_a_sample:.1f} bytes each; load {load:.1f}\n")
    print("| what | p20, ms | p50, ms | p80, ms | CPU p50, ms | p50, µs each |\n|---|---|---|---|---|---|")
    step = 0
    for name in POLICIES:
        context = Context(PolicyConfig(policy=name), step, 1000, GENERATIONS, BATCH, tuple(strata.counts))
        say(
            f"reweight all: {name}",
            timed(lambda context=context: sampler.set_weights(weigh(evidence, strata, context).values), 3),
        )
        say(f"draw {BATCH}: {name}", timed(lambda: sampler.next_batch(BATCH), repeats), BATCH)
        times = Times([], [])
        for _ in range(repeats):
            step += 1
            drawn = sampler.next_batch(BATCH).rows
            rewards = (rng.random((BATCH, GENERATIONS)) < rng.random((BATCH, 1))).astype(np.float32)
            call = timed(lambda r=drawn, g=rewards, s=step, c=context: absorb(evidence, strata, sampler, r, g, s, c))
            times.wall.extend(call.wall)
            times.cpu.extend(call.cpu)
        say(f"absorb {BATCH}: {name}", times)
    context = Context(
        PolicyConfig(policy="signal", signal_estimate="thompson"),
        *(step, 1000, GENERATIONS, BATCH, tuple(strata.counts)),
    )

    def score(candidates: np.ndarray, drawer: np.random.Generator) -> np.ndarray:
        return weigh(evidence, strata, replace(context, rng=drawer), candidates).values

    say(f"draw {BATCH}: signal, Thompson", timed(lambda: sampler.next_batch(BATCH, score), repeats), BATCH)
    levels = evidence.levels
    scored = np.flatnonzero(levels.level[: 10 * BATCH] >= 0)[:BATCH]
    say(
        f"absorb {BATCH} masked probes",
        timed(
            lambda: levels.observe(
                scored, levels.next_probe(scored), rng.integers(0, 9, len(scored)), np.full(len(scored), 8)
            ),
            repeats,
        ),
    )
    say("restratify all", timed(lambda: strata.refresh(step), 3))
    weights = sampler.tree.weights.astype(np.float64)
    chances = weights / weights.sum()
    say(
        f"baseline: NumPy choice of {BATCH}", timed(lambda: rng.choice(size, BATCH, replace=False, p=chances), 3), BATCH
    )
    say("baseline: sum all weights up anew", timed(lambda: np.cumsum(weights), 5))
    results = {
        "machine": machine(),
        "samples": size,
        "bytes_a_sample": round(bytes_a_sample, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "load": round(load, 1),
        "rows": rows,
    }
    if size == SAMPLES:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "sampler.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(results, ensure_ascii=False))


def pool(size: int, rng: np.random.Generator) -> Evidence:
    """Return the evidence of a scored dataset: strata in about the paper's shares, a tenth without a PISM score."""
    evidence = Evidence(size)
    thresholds = rng.choice([0.0, 0.2, 0.5, 0.8, np.nan], size, p=[0.5, 0.1, 0.1, 0.1, 0.2])
    evidence.levels.seed(np.arange(size), thresholds, rng.random(size) < 0.9)
    wins = np.where(thresholds == 0, 0.0, rng.integers(1, 5, size))
    evidence.successes[:], evidence.failures[:] = wins, 4 - wins
    return evidence


def absorb(
    evidence: Evidence,
    strata: Strata,
    sampler: PromptSampler,
    rows: np.ndarray,
    rewards: np.ndarray,
    step: int,
    context: Context,
) -> None:
    """Update evidence, strata, weights and tree with the groups of a training step, as a training does."""
    evidence.observe(rows, rewards, step)
    strata.refresh(step, rows)
    now = replace(context, step=step, counts=tuple(strata.counts))
    sampler.set_weights(weigh(evidence, strata, now, rows).values, rows)


@dataclass(frozen=True)
class Times:
    """Milliseconds of each call."""

    wall: list[float]
    cpu: list[float]


def timed(call: Callable[[], Any], repeats: int = 1) -> Times:
    """Time calls."""
    times = Times([], [])
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        call()
        times.wall.append((time.perf_counter() - began) * 1e3)
        times.cpu.append((time.process_time() - began_cpu) * 1e3)
    return times


def machine() -> str:
    """Return processor and versions in one line. Everything runs on one thread."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    return f"{model}, one thread, Python {platform.python_version()}, NumPy {np.__version__}"


if __name__ == "__main__":
    main()
