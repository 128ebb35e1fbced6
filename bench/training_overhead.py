"""What choosing costs a training step: `python bench/training_overhead.py` (a quiet machine; some ten minutes).

Two trainings on the same rows take turns, step by step, in one process: TRL's GRPOTrainer, which is fed the rows that
ours has just chosen, and ours. Medians over the steps after the first five, beside their spread; the whole step counts,
generation, rewards, loss, optimizer. Then the same with attention balance read inline, and both with one-megapixel
JPEGs as images. Writes bench/results/training_overhead.{json,md}.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from datasets import Dataset, Image, List
from run import describe_machine
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hardsample.demo import KNOBS, load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.grading.grader import correctness_reward
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

RESULTS = Path(__file__).parent / "results"
SAMPLES, WARM_UP = 120, 5
CASES = {
    "strata and evidence": ({"policy": "strata"}, False),
    "strata, evidence, attention balance": ({"policy": "strata", "attention_balance": True}, False),
    "strata and evidence, 1 MP JPEGs": ({"policy": "strata"}, True),
    "strata, evidence, attention balance, 1 MP JPEGs": ({"policy": "strata", "attention_balance": True}, True),
}


def questions(large: bool) -> Dataset:
    """Return the first questions of the pool; large: with their images enlarged to 1,024² JPEGs."""
    data = load_split("demo:pool", SAMPLES).remove_columns(list(KNOBS)).cast_column("images", List(Image()))
    if not large:
        return data

    def blow_up(record: dict) -> dict:
        image = record["images"][0].convert("RGB").resize((1024, 1024))
        noise = np.random.default_rng(0).integers(0, 24, (1024, 1024, 3), dtype=np.uint8)
        file = io.BytesIO()
        from PIL import Image as Images

        Images.fromarray(np.asarray(image) // 2 + noise).save(file, "JPEG", quality=90)
        return {"images": [{"bytes": file.getvalue(), "path": None}]}

    return data.map(blow_up)


class Clock(TrainerCallback):
    """Seconds of each step, from the end of the one before: loading and decoding count."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, *_, **__) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *_, **__) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


class Replays(GRPOTrainer):
    """GRPOTrainer on rows that are given: the order of its loader is replaced, nothing else."""

    order: list[int]

    def _get_train_sampler(self, dataset=None):
        return self.order


def trained(trainer_class, config_class, data, folder, steps, order=None, **options):
    """Train once; return the seconds of each step, and the rows in the order they were trained on."""
    clock = Clock()
    args = config_class(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        seed=0,
        per_device_train_batch_size=32,
        num_generations=4,
        max_completion_length=16,
        max_steps=steps,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    trainer = trainer_class(
        model=load_model(str(model_path()), "cpu"),
        args=args,
        reward_funcs=correctness_reward,
        train_dataset=data,
        processing_class=load_processor(str(model_path())),
        callbacks=[clock],
    )
    if order is not None:
        trainer.order = order
        trainer.shuffle_dataset = False
    drawn: list[int] = []
    if getattr(trainer, "difficulty", None) is not None:
        choose = trainer.difficulty.next_prompts

        def spy(step: int, total: int):
            batch = choose(step, total)
            drawn.extend(batch.rows.tolist())
            return batch

        trainer.difficulty.next_prompts = spy
    trainer.train()
    return clock.seconds, [row for row in drawn for _ in range(4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scored: dict[bool, str] = {}  # the trainer takes only scores of the very images that it trains on
        for name, (options, large) in CASES.items():
            data = questions(large)
            if large not in scored:
                scored[large] = f"{folder}/scores-{'large' if large else 'small'}"
                score(data, "demo", scored[large], ScoringConfig(num_masks=4, batch_size=128))
            ours, stock = [], []
            for _ in range(arguments.rounds):  # ours, stock, ours, stock: slow drift of the machine hits both
                seconds, order = trained(
                    DifficultyAwareGRPOTrainer,
                    DifficultyAwareGRPOConfig,
                    data,
                    folder,
                    arguments.steps,
                    scores=scored[large],
                    **options,
                )
                ours += seconds[WARM_UP:]
                seconds, _ = trained(Replays, GRPOConfig, data, folder, arguments.steps, order)
                stock += seconds[WARM_UP:]
            row = {
                "case": name,
                "steps": len(ours),
                "stock_ms": round(1e3 * median(stock), 1),
                "ours_ms": round(1e3 * median(ours), 1),
                "ratio": round(median(ours) / median(stock), 4),
                "stock_quartiles_ms": [round(1e3 * float(q), 1) for q in np.quantile(stock, [0.25, 0.75])],
                "ours_quartiles_ms": [round(1e3 * float(q), 1) for q in np.quantile(ours, [0.25, 0.75])],
            }
            print(row, flush=True)
            rows.append(row)
    about = describe_machine("cpu", arguments.threads)
    RESULTS.joinpath("training_overhead.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    lines = [
        "# A step of training with choosing, beside TRL's GRPOTrainer on the same rows",
        "",
        f"`python bench/training_overhead.py`: {about}. Eight prompts × 4 completions a step, demo model, fp32;",
        f"{rows[0]['steps']} steps each, the runs alternating. Medians, quartiles in brackets.",
        "",
        "| | GRPOTrainer, ms | ours, ms | ratio |",
        "|---|---|---|---|",
    ]
    for row in rows:
        stock, ours = (f"{row[f'{who}_ms']} {row[f'{who}_quartiles_ms']}" for who in ("stock", "ours"))
        lines.append(f"| {row['case']} | {stock} | {ours} | {row['ratio']} |")
    lines += [
        "",
        "With images that are dear to decode ours is faster than GRPOTrainer: a group's image is decoded once, not",
        "once for each completion.",
    ]
    RESULTS.joinpath("training_overhead.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
