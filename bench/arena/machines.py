"""Seconds of different machines, made comparable: each has made the same training, `python bench/arena/machines.py`.

A training takes the same draws and reaches the same accuracy on each of them (float32, one thread), so only its seconds
differ. Those of one training, uniform draws from `demo:wide` with seed 5, say how fast a machine is.
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path

import torch

SPEEDS = Path(__file__).parents[1] / "results" / "arena" / "machines.json"
"""Seconds of that training on each machine, by its name."""


def machine() -> str:
    """Return the name of this machine's processor, with the instructions that PyTorch uses."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    model = f" (model {facts['model']})" if "model" in facts else ""
    return f"{name}{model}, {torch.backends.cpu.get_cpu_capability()}"


def scaled(seconds: float, measured_on: str, to: str) -> float:
    """Return what seconds that were measured on one machine would be on another.

    Raises:
        SystemExit: the training that they are compared by was not made on one of them.
    """
    speeds = json.loads(SPEEDS.read_text()) if SPEEDS.exists() else {}
    for name in (measured_on, to):
        if measured_on != to and name not in speeds:
            raise SystemExit(f"{SPEEDS} has no entry for {name!r}: run `python bench/arena/machines.py` on it, once")
    return seconds if measured_on == to else seconds * speeds[to] / speeds[measured_on]


def main() -> None:
    from run import STEPS, train

    torch.set_num_threads(1)
    cell = train("wide", "uniform", 5, STEPS)
    speeds = json.loads(SPEEDS.read_text()) if SPEEDS.exists() else {}
    speeds[machine()] = cell["rows"][-1]["seconds"]
    with tempfile.NamedTemporaryFile("w", dir=SPEEDS.parent, delete=False) as new:
        new.write(json.dumps(speeds, indent=1) + "\n")
    Path(new.name).rename(SPEEDS)
    print(f"{machine()}: {speeds[machine()]} s")


if __name__ == "__main__":
    main()
