"""How many completions agree between batch sizes: `python bench/agreement.py` → bench/results/agreement.json."""

from __future__ import annotations

import json
from pathlib import Path

from hardsample.demo import load_split, model_path
from hardsample.engines.protocol import Request
from hardsample.engines.transformers import TransformersEngine, load_model, load_processor
from hardsample.scoring.config import ScoringConfig

RESULTS = Path(__file__).parent / "results"
RATIOS = (0.0, 0.3, 0.6)


def completions(dtype: str, size: int, requests: list[Request]) -> list[object]:
    model = load_model(str(model_path()), "cpu", dtype)
    engine = TransformersEngine(model, load_processor(str(model_path())), ScoringConfig())
    batches = [requests[start : start + size] for start in range(0, len(requests), size)]
    return [result for batch in batches for result in engine.generate(engine.prepare(batch))]


def main() -> None:
    requests = [Request(record, ratio, 0) for record in load_split("demo") for ratio in RATIOS]
    results = {"rollouts": len(requests), "batch_sizes": [1, 64], "device": "cpu"}
    for dtype in ("float32", "bfloat16"):
        pairs = zip(completions(dtype, 1, requests), completions(dtype, 64, requests), strict=True)
        results[f"agreement_{dtype}"] = round(sum(a == b for a, b in pairs) / len(requests), 4)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "agreement.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
