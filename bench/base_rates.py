"""What a model does on every question of a set before any training, by one prefill a question: successes of 8 rollouts
at T = 1, the oracle of the training environments and the truth that predictions are measured against.

    python bench/base_rates.py demo:pool runs/predict/pool.npz
    python bench/base_rates.py demo:wide runs/predict/wide.npz

The prefill is made once a question and its cache repeated for the rollouts. Resumable by parts of 512 questions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, List
from tqdm import tqdm

from hardsample.data.loading import load
from hardsample.engines.transformers import load_model, load_processor, resolved_model
from hardsample.grading.grader import Grader

PART, ROLLOUTS, TOKENS = 512, 8, 16


@torch.inference_mode()
def roll_out(
    model: Any, processor: Any, records: list[dict], rollouts: int, seed: int, temperature: float = 1.0
) -> list[str]:
    """Return `rollouts` completions of each record, in order."""
    texts = [processor.apply_chat_template(record["prompt"], add_generation_prompt=True) for record in records]
    images = [[record["images"][0]] for record in records]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(**inputs, position_ids=positions, use_cache=True)
    logits, cache = output.logits[:, -1], output.past_key_values
    generator = torch.Generator().manual_seed(seed)
    cache.batch_repeat_interleave(rollouts)
    logits, mask = logits.repeat_interleave(rollouts, 0), mask.repeat_interleave(rollouts, 0)
    place = positions[:, -1:].repeat_interleave(rollouts, 0)
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends)
    done = torch.zeros(len(logits), dtype=torch.bool)
    tokens = []
    for _ in range(TOKENS):
        token = torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)
        token[done] = processor.tokenizer.pad_token_id
        tokens.append(token)
        done |= torch.isin(token[:, 0], torch.tensor(ends))
        if done.all():
            break
        mask, place = torch.cat([mask, torch.ones_like(mask[:, :1])], 1), place + 1
        output = model(input_ids=token, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True)
        logits, cache = output.logits[:, -1], output.past_key_values
    return processor.tokenizer.batch_decode(torch.cat(tokens, 1), skip_special_tokens=True)


def measure(data: Dataset | None, model: str, path: Path, rollouts: int = ROLLOUTS) -> dict[str, np.ndarray]:
    """Return the counts and states of all questions; parts that are there already are read."""
    if path.exists():
        return dict(np.load(path))
    parts = path.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    name = resolved_model(model)
    network, processor = load_model(name, "cpu", "float32"), load_processor(name)
    data = data.cast_column("images", List(Image()))
    files = []
    with Grader() as grader:
        for start in tqdm(range(0, len(data), PART), desc=path.stem):
            file = parts / f"{start:07d}.npz"
            files.append(file)
            if file.exists():
                continue
            rows = []
            for begin in range(start, min(start + PART, len(data)), 64):
                records = list(data.select(range(begin, min(begin + 64, start + PART, len(data)))))
                texts = roll_out(network, processor, records, rollouts, begin)
                pairs = [(text, records[index // rollouts]) for index, text in enumerate(texts)]
                grades = np.array([int(grade) for grade in grader.grade_many(pairs)]).reshape(-1, rollouts)
                rows.append({"grades": grades.astype(np.int8)})
            joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
            np.savez(file.with_suffix(".new.npz"), **joined)
            file.with_suffix(".new.npz").replace(file)
    loaded = [dict(np.load(file)) for file in files]
    whole = {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0]}
    whole["ids"] = np.array(data["id"])
    whole["ability"] = np.array([str(name) for name in data["ability"]])
    np.savez_compressed(path, **whole)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    whole = measure(load(arguments.data, limit=arguments.limit).dataset, arguments.model, arguments.path)
    rates = whole["grades"].mean(1)
    print(f"{len(rates)} questions: {rates.mean():.3f} right, {((rates > 0) & (rates < 1)).mean():.1%} with signal")


if __name__ == "__main__":
    main()
